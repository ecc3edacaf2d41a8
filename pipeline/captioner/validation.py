"""How well a captioner in training does: teacher-forced loss, and unit error rate of what it says freely."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz.distance import Levenshtein

from pipeline.arithmetic import Precision, arithmetic
from pipeline.captioner.data import Examples, collate, encode_captions
from pipeline.captioner.distributed import Processes
from pipeline.captioner.generation import generate_units
from pipeline.captioner.model import Captioner, caption_loss
from pipeline.captioner.vocabulary import UnitVocabulary

Spoken = list[npt.NDArray[np.uint16]]


@dataclass(frozen=True)
class Validator:
    """Examples to be measured on, and how: ids of a caption at most, captions of a batch, images spoken freely."""

    examples: Examples
    vocabulary: UnitVocabulary
    max_length: int
    batch_size: int
    num_images: int
    precision: Precision
    processes: Processes

    def __call__(self, model: Captioner) -> tuple[dict[str, float], Spoken]:
        """(validation_loss and unit_error_rate, as far as there is something to measure; the units said of the first
        images). The work is shared by all processes, and all get the same."""
        if not len(self.examples):
            return {}, []
        model.eval()
        with arithmetic(self.processes.device, self.precision):
            figures = self._loss(model)
            spoken = self._speak(model)
        errors = [
            unit_error_rate(units.tolist(), references)
            for units, references in zip(spoken, self.examples.captions, strict=False)
            if references
        ]
        return ({**figures, "unit_error_rate": float(np.mean(errors))} if errors else figures), spoken

    def _loss(self, model: Captioner) -> dict[str, float]:
        pairs, _ = encode_captions(self.examples, self.vocabulary, self.max_length)
        losses, weights = [], []
        starts = range(0, len(pairs), self.batch_size)[self.processes.rank :: self.processes.count]
        with torch.inference_mode():
            for start in starts:
                chosen = range(start, min(start + self.batch_size, len(pairs)))
                images, ids = collate(self.examples, pairs, chosen, self.vocabulary.pad)
                images, ids = images.to(model.device), ids.to(model.device)
                losses.append(float(caption_loss(model, images, ids)))
                weights.append(int((ids[:, 1:] != self.vocabulary.pad).sum()))
        sums = torch.tensor([float(np.dot(losses, weights)), float(sum(weights))], dtype=torch.float64)
        total, weight = self.processes.sum(sums).tolist()
        return {"validation_loss": total / weight} if weight else {}

    def _speak(self, model: Captioner) -> Spoken:
        number = min(self.num_images, len(self.examples))
        mine = range(number)[self.processes.rank :: self.processes.count]
        images = self.examples.images[list(mine)] if self.processes.count > 1 else self.examples.images[:number]
        said = generate_units(model, self.vocabulary, images, max_length=self.max_length) if len(images) else []
        return said if self.processes.count == 1 else self._collect(said, number)

    def _collect(self, said: Spoken, number: int) -> Spoken:
        """The units of all processes, in the order of the images."""
        table = torch.full((max(1, len(said)), max([1, *map(len, said)])), -1, dtype=torch.int64)
        for row, units in zip(table, said, strict=False):
            row[: len(units)] = torch.from_numpy(units.astype(np.int64))
        gathered = self.processes.gather(table).numpy()
        rows = [gathered[i % self.processes.count, i // self.processes.count] for i in range(number)]
        return [row[row >= 0].astype(np.uint16) for row in rows]


def unit_error_rate(units: list[int], references: list[list[int]]) -> float:
    """Edit distance to the nearest reference over its length: 0 is perfect."""
    return min(edit_distance(units, reference) / max(1, len(reference)) for reference in references)


def edit_distance(first: list[int], second: list[int]) -> int:
    """Levenshtein distance."""
    return int(Levenshtein.distance(first, second))
