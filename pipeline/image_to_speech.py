"""Image in, spoken caption out: image tokenizer, captioner and vocoder as one object.

This is the one place of the library that joins vision, captioner and speech. Reads the folders that the
stages vqgan, train and vocoder wrote, and refuses parts that do not belong together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.captioner.generation import Caption, GenerationSettings, generate_captions, generate_units
from pipeline.captioner.model import Captioner, load_captioner
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError
from pipeline.media import read_image
from pipeline.speech.vocoder import Vocoder, load_vocoder
from pipeline.vision.tokenizer import ImageTokenizer, load_tokenizer
from pipeline.vision.transforms import image_to_tensor

ImageLike = str | Path | Image.Image


@dataclass(frozen=True)
class Speech:
    """`waveform` float32 [num_samples] at `sample_rate` Hz, the deduplicated `units` uint16 [n] it says, and their
    `score`: the captioner's log-probability over length."""

    waveform: npt.NDArray[np.float32]
    sample_rate: int
    units: npt.NDArray[np.uint16]
    score: float = 0.0


class ImageToSpeech:
    """A captioner with its tokenizer and voice. Call it with an image, or a list of images."""

    def __init__(
        self,
        model: Captioner,
        vocabulary: UnitVocabulary,
        tokenizer: ImageTokenizer | None,
        vocoder: Vocoder | None,
    ) -> None:
        self.model, self.vocabulary, self.tokenizer, self.vocoder = model, vocabulary, tokenizer, vocoder

    @classmethod
    def from_pretrained(
        cls,
        model_dir: str | Path,
        *,
        vqgan_dir: str | Path | None = None,
        vocoder_dir: str | Path | None = None,
        device: str = "cpu",
    ) -> "ImageToSpeech":
        """Load a captioner folder with what it needs.

        vqgan_dir, vocoder_dir: by default the folders `vqgan` and `vocoder` inside `model_dir` (as people
        share them) or beside the stage's folder (`data/train/model` finds `data/vqgan` and `data/vocoder`).
        Raises InputError when a part is missing or belongs to another codebook or tokenizer.
        """
        model_dir = Path(model_dir)
        model = load_captioner(model_dir).to(device)
        vocabulary = UnitVocabulary.load(model_dir / "unit_vocabulary.json")
        tokenizer = None
        if model.config.input == "tokens":
            tokenizer = load_tokenizer(_beside(model_dir, vqgan_dir, "vqgan")).to(device).eval()
            if tokenizer.fingerprint != model.config.image_tokenizer:
                raise InputError(
                    f"{model_dir}: trained on image tokenizer {model.config.image_tokenizer}, but the one at "
                    f"hand is {tokenizer.fingerprint}; give the right folder"
                )
        voice = _beside(model_dir, vocoder_dir, "vocoder")
        vocoder = load_vocoder(voice, device, units_fingerprint=vocabulary.codebook_fingerprint)
        return cls(model, vocabulary, tokenizer, vocoder)

    def prepare(self, images: Sequence[ImageLike]) -> torch.Tensor:
        """Images -> what the captioner takes: pixels [N, 3, S, S] or tokens [N, 1, H, W]."""
        opened = [image if isinstance(image, Image.Image) else read_image(Path(image)) for image in images]
        if self.tokenizer is None:
            size, resize = self.model.config.vision_config.image_size, self.model.config.image_resize
            return torch.stack([image_to_tensor(image, size, resize) for image in opened])  # type: ignore[arg-type]
        device = next(self.model.parameters()).device
        size = self.tokenizer.config.image_size
        pixels = torch.stack([image_to_tensor(image, size, self.tokenizer.config.resize) for image in opened])
        with torch.inference_mode():
            return self.tokenizer.encode_codes(pixels.to(device))[:, None]

    def generate_units(
        self,
        images: Sequence[ImageLike] | torch.Tensor,
        *,
        batch_size: int = 64,
        num_beams: int = 1,
        settings: GenerationSettings | None = None,
    ) -> list[npt.NDArray[np.uint16]]:
        """Deduplicated units uint16 [n] of each image; a tensor is taken as `prepare` would give it.

        settings: how captions are chosen; without it greedily, or by `num_beams` beams.
        """
        settings = settings or GenerationSettings(num_beams=num_beams)
        inputs = images if isinstance(images, torch.Tensor) else self.prepare(images)
        length = self.model.config.max_units
        return generate_units(
            self.model, self.vocabulary, inputs, batch_size=batch_size, max_length=length, settings=settings
        )

    def generate_captions(
        self, images: Sequence[ImageLike] | torch.Tensor, settings: GenerationSettings, *, batch_size: int = 64
    ) -> list[list[Caption]]:
        """All different captions that beams or samples found for each image, best first, with their scores."""
        inputs = images if isinstance(images, torch.Tensor) else self.prepare(images)
        length = self.model.config.max_units
        return generate_captions(
            self.model, self.vocabulary, inputs, settings, batch_size=batch_size, max_length=length
        )

    def __call__(self, image: ImageLike) -> Speech:
        """One image -> its spoken caption."""
        return self.caption([image])[0]

    def caption(
        self, images: Sequence[ImageLike], *, num_beams: int = 1, settings: GenerationSettings | None = None
    ) -> list[Speech]:
        """Several images -> their spoken captions, in order."""
        settings = settings or GenerationSettings(num_beams=num_beams)
        return [found[0] for found in self.caption_best(images, settings, num_best=1)]

    def caption_best(
        self, images: Sequence[ImageLike], settings: GenerationSettings, *, num_best: int
    ) -> list[list[Speech]]:
        """Several images -> up to `num_best` different spoken captions of each, best first, with their scores."""
        if self.vocoder is None:
            raise InputError("this ImageToSpeech has no vocoder; generate_units works without one")
        found = [captions[:num_best] for captions in self.generate_captions(images, settings)]
        waveforms = iter(self.vocoder.synthesize([caption.units for captions in found for caption in captions]))
        rate = self.vocoder.sample_rate
        return [
            [Speech(next(waveforms), rate, caption.units, caption.score) for caption in captions] for captions in found
        ]


def _beside(model_dir: Path, given: str | Path | None, word: str) -> Path:
    """The folder of a part: as given, inside the model's folder, or where the stages put it."""
    candidates = [Path(given)] if given is not None else [model_dir / word, model_dir.absolute().parent.parent / word]
    for folder in candidates:
        if (folder / "config.json").exists():
            return folder
    raise InputError(
        f"{model_dir}: no {word} in {' or '.join(map(str, candidates))}; run that stage or name its folder"
    )
