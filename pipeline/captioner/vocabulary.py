"""Speech units to the captioner's ids and back, in a layout that stands beside every checkpoint.

- `compact`: pad 0, BOS 1, EOS 2, unit u -> u + 3, then the pieces (see below), if any.
- `released`: the layout of the paper's released checkpoints: pad 0, BOS 101, EOS 102, u -> u + 1 up to unit
  100 and u + 3 above it. Unit 100 collides with BOS there (ms-dot-k/Image-to-Speech, `add_special_room`);
  it is kept as it is, because those checkpoints were trained so.

Pieces are byte-pair merges over units: a run of units that is spoken often becomes one id, so that
sequences are shorter and sooner learnt. A piece spans at most `max_piece_units` units, which keeps it below a
word, since pieces that glue words together cannot speak a new combination of words.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from pipeline.errors import InputError
from pipeline.files import read_json, write_json

Merge = tuple[tuple[int, ...], tuple[int, ...]]

# A unit as a character, since tokenizers works on text: a plane of 65,536 assigned code points.
_FIRST_CHARACTER = 0x20000


@dataclass(frozen=True)
class UnitVocabulary:
    """`num_units` units, the codebook they belong to, the layout, and the `merges` that make pieces."""

    num_units: int
    codebook_fingerprint: str = ""
    layout: str = "compact"
    merges: tuple[Merge, ...] = ()

    def __post_init__(self) -> None:
        if self.layout not in ("compact", "released"):
            raise InputError(f"unit vocabulary: layout {self.layout!r}; known are compact and released")
        if self.layout == "released" and self.merges:
            raise InputError("unit vocabulary: the released layout has no pieces")

    @property
    def pad(self) -> int:
        """Padding id."""
        return 0

    @property
    def bos(self) -> int:
        """Beginning of sequence."""
        return 1 if self.layout == "compact" else 101

    @property
    def eos(self) -> int:
        """End of sequence."""
        return 2 if self.layout == "compact" else 102

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.num_units + 3 + len(self.merges)

    def encode(self, units: Sequence[int]) -> list[int]:
        """Deduplicated units -> ids without BOS and EOS. InputError for a unit outside the codebook."""
        for unit in units:
            if not 0 <= unit < self.num_units:
                raise InputError(f"unit {unit} is not in a codebook of {self.num_units} units")
        if self.layout == "released":
            return [unit + 1 if unit <= 100 else unit + 3 for unit in units]
        if not self.merges:
            return [unit + 3 for unit in units]
        return self._tokenizer.encode(_text(units)).ids

    def decode(self, ids: Iterable[int]) -> list[int]:
        """Ids -> units, up to the first EOS (or all of them when there is none); BOS and padding are dropped."""
        units: list[int] = []
        for number, token in enumerate(ids):
            if token == self.eos:
                break
            if token == self.pad or (token == self.bos and (self.layout == "compact" or number == 0)):
                continue
            units.extend(self._units(token))
        return units

    def save(self, path: Path) -> None:
        """Write unit_vocabulary.json."""
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What unit_vocabulary.json holds."""
        return {
            "layout": self.layout,
            "num_units": self.num_units,
            "codebook_fingerprint": self.codebook_fingerprint,
            "pad": self.pad,
            "bos": self.bos,
            "eos": self.eos,
            "size": self.size,
            "merges": [[list(left), list(right)] for left, right in self.merges],
        }

    @classmethod
    def load(cls, path: Path) -> "UnitVocabulary":
        """Read unit_vocabulary.json. InputError when a field is missing."""
        record = read_json(path)
        try:
            merges = tuple((tuple(left), tuple(right)) for left, right in record.get("merges", ()))
            return cls(int(record["num_units"]), record.get("codebook_fingerprint", ""), record["layout"], merges)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: not a unit vocabulary ({error})") from error

    def _units(self, token: int) -> tuple[int, ...]:
        if self.layout == "released":
            # 101 inside a sequence is unit 100: the collision that those checkpoints live with.
            return (token - 1,) if token <= 101 else (token - 3,)
        if token < self.num_units + 3:
            return (token - 3,)
        return self._pieces[token - self.num_units - 3]

    @cached_property
    def _pieces(self) -> tuple[tuple[int, ...], ...]:
        return tuple((*left, *right) for left, right in self.merges)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        ids = {_text((unit,)): unit + 3 for unit in range(self.num_units)}
        ids.update({_text(piece): self.num_units + 3 + i for i, piece in enumerate(self._pieces)})
        return Tokenizer(BPE(ids, [(_text(left), _text(right)) for left, right in self.merges]))


def learn_merges(sequences: Iterable[Sequence[int]], num_pieces: int, max_piece_units: int) -> tuple[Merge, ...]:
    """Byte-pair merges over unit sequences, most frequent first (Sennrich et al. 2016), by tokenizers' trainer.

    No merge makes a piece longer than `max_piece_units` units.
    """
    texts = [_text(sequence) for sequence in sequences]
    alphabet = sorted({character for text in texts for character in text})
    trainer = BpeTrainer(
        vocab_size=len(alphabet) + num_pieces,
        initial_alphabet=alphabet,
        max_token_length=max_piece_units,
        show_progress=False,
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    learnt: dict[tuple[int, ...], Merge] = {}
    for left, right in merges:
        learnt.setdefault(_units_of(left + right), (_units_of(left), _units_of(right)))
    return tuple(learnt.values())


def _text(units: Iterable[int]) -> str:
    return "".join(chr(_FIRST_CHARACTER + int(unit)) for unit in units)


def _units_of(text: str) -> tuple[int, ...]:
    return tuple(ord(character) - _FIRST_CHARACTER for character in text)
