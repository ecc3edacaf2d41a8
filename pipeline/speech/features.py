"""A seeded sample of encoder frames, with where each came from.

Writes a folder: `frames.npy` float32 [N, D] (mappable), `source.json` (the encoder's identity, counts) and
`origin.npz` (`ids` of the utterances, `utterance` int32 [N] and `frame` int32 [N]), which lets the kmeans
stage compare clusters with phonemes where a corpus has alignments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.files import atomic_path, read_json, write_json
from pipeline.manifest import Caption, count_items, read_rows, shard_paths, split_names
from pipeline.media import MediaError, read_audio
from pipeline.speech.hubert import SpeechEncoder
from pipeline.tokens.parts import npy_bytes, read_npz, write_npz


@dataclass(frozen=True)
class FeatureSample:
    """`frames` float32 [N, D]; `utterance` and `frame` int32 [N] index `ids` and its frames; `source` the facts."""

    frames: npt.NDArray[np.float32]
    ids: npt.NDArray[np.str_]
    utterance: npt.NDArray[np.int32]
    frame: npt.NDArray[np.int32]
    source: dict[str, Any]

    @property
    def num_utterances(self) -> int:
        """Utterances that were read."""
        return len(self.ids)


def draw_captions(manifest_dir: Path, split: str, number: int, seed: int) -> list[Caption]:
    """A seeded draw of a split's captions, in manifest order; of other shards only the captions are counted.

    InputError lists the splits when there is no such one.
    """
    paths = shard_paths(manifest_dir, split)
    if not paths:
        known = ", ".join(split_names(manifest_dir))
        raise InputError(f"{manifest_dir}: no split '{split}'; there are {known}")
    starts = np.cumsum([0, *(count_items(path)[1] for path in paths)])
    drawn = np.sort(np.random.default_rng([seed, 0]).permutation(starts[-1])[:number])
    chosen: list[Caption] = []
    for path, start, stop in zip(paths, starts[:-1], starts[1:], strict=True):
        here = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, stop)] - start
        if len(here):
            captions = [caption for row in read_rows(path) for caption in row.captions]
            chosen += [captions[i] for i in here]
    return chosen


def sample_features(
    chosen: Sequence[Caption],
    root: Path,
    encoder: SpeechEncoder,
    *,
    max_frames: int,
    max_batch_samples: int,
    seed: int,
) -> FeatureSample:
    """Encode the chosen utterances and keep a seeded draw of their frames.

    An utterance that cannot be read is left out and counted (`unreadable`); the units stage rejects it by name.
    Raises InputError when none could be read.
    """
    lengths = [round(caption.num_samples * encoder.sample_rate / caption.sample_rate) for caption in chosen]
    batches = encoder.batches(lengths, max_batch_samples)
    features: dict[int, npt.NDArray[np.float32]] = {}
    for batch in tqdm(batches, desc="features", unit="batch", disable=None):
        waveforms = {}
        for i in batch:
            try:
                waveforms[i] = read_audio(root / chosen[i].audio, encoder.sample_rate)
            except MediaError:
                continue  # the units stage gives it a reject row; here it is only counted
        usable = [i for i, waveform in waveforms.items() if encoder.num_frames(len(waveform)) > 0]
        if usable:
            encoded = encoder.encode([waveforms[i] for i in usable])
            features.update({i: f.float().cpu().numpy() for i, f in zip(usable, encoded, strict=True)})
    if not features:
        raise InputError(f"{root}: none of {len(chosen)} training utterances could be read; see the manifest")
    order = sorted(features)
    frames = np.concatenate([features[i] for i in order])
    utterance = np.repeat(np.arange(len(order), dtype=np.int32), [len(features[i]) for i in order])
    frame = np.concatenate([np.arange(len(features[i]), dtype=np.int32) for i in order])
    keep = np.sort(np.random.default_rng([seed, 1]).permutation(len(frames))[:max_frames])
    source = {
        **encoder.identity,
        "num_utterances": len(order),
        "unreadable": len(chosen) - len(order),
        "num_frames": len(keep),
        "seed": seed,
    }
    ids = np.array([chosen[i].id for i in order], dtype=np.str_)
    return FeatureSample(frames[keep], ids, utterance[keep], frame[keep], source)


def write_sample(out_dir: Path, sample: FeatureSample) -> None:
    """Write the folder; `source.json` last."""
    with atomic_path(out_dir / "frames.npy") as temporary:
        temporary.write_bytes(npy_bytes(sample.frames))
    origin = {"ids": sample.ids, "utterance": sample.utterance, "frame": sample.frame}
    write_npz(out_dir / "origin.npz", origin)
    write_json(out_dir / "source.json", sample.source)


def read_sample(sample_dir: Path) -> FeatureSample:
    """Read the folder, the frames mapped, not copied. InputError when something is missing."""
    source = read_json(sample_dir / "source.json")
    try:
        frames = np.load(sample_dir / "frames.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{sample_dir / 'frames.npy'}: not readable ({error}); run the features stage") from error
    origin = read_npz(sample_dir / "origin.npz", ("ids", "utterance", "frame"))
    return FeatureSample(frames, origin["ids"], origin["utterance"], origin["frame"], source)
