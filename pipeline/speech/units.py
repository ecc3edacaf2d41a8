"""Waveforms to speech units in one pass: HuBERT, nearest centroid, deduplication; no feature dump.

Reads one manifest shard and its audio; writes one units part (see pipeline.tokens.parts). An utterance
that cannot be read or is shorter than a frame becomes a reject, and the others go on. Decoding and resampling
run in threads ahead of the model; memory holds a few batches of waveforms, whatever the size of the shard.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.ahead import ahead
from pipeline.arithmetic import Precision
from pipeline.errors import InputError
from pipeline.files import stamp
from pipeline.manifest import Caption, Reject, read_rows
from pipeline.media import MediaError, read_audio
from pipeline.runner import ShardResult, worker_slot
from pipeline.speech.hubert import Chunking, SpeechEncoder, load_encoder
from pipeline.speech.kmeans import Codebook
from pipeline.tokens.parts import UnitsPart, deduplicate, write_units_part


@dataclass(frozen=True)
class Source:
    """Where the units of a corpus come from; small, so that it travels to every worker.

    limits: rows taken of each shard, for trial runs; all of a shard that is not named.
    """

    manifest_dir: Path
    root: Path
    encoder_dir: Path
    codebook_path: Path
    layer: int
    normalize: bool
    max_batch_samples: int
    device: str
    precision: Precision = "fp32"
    chunking: Chunking = "whole"
    limits: Mapping[str, int] = field(default_factory=dict)


def check_belongs(codebook: Codebook, encoder: SpeechEncoder, codebook_path: Path) -> None:
    """InputError, naming both fingerprints, when the codebook was fitted on another encoder or layer."""
    expected, found = encoder.identity, codebook.metadata
    different = [key for key in ("encoder_sha256", "layer", "normalize") if found.get(key) != expected[key]]
    if different:
        says = ", ".join(f"{key} {found.get(key)!r} (encoder: {expected[key]!r})" for key in different)
        raise InputError(
            f"{codebook_path}: codebook {codebook.fingerprint} does not belong to encoder {encoder.fingerprint}: "
            f"{says}. Fit a codebook on this encoder (stage kmeans) or name the encoder it was fitted on."
        )


def encode_units(
    waveforms: Sequence[npt.NDArray[np.float32]],
    encoder: SpeechEncoder,
    codebook: Codebook,
    max_batch_samples: int,
) -> list[npt.NDArray[np.int64]]:
    """Frame-level units int64 [num_frames] of each float32 waveform at 16 kHz, in the order given."""
    units: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * len(waveforms)
    nearest = nearest_unit(codebook, encoder.device)
    for batch in encoder.batches([len(waveform) for waveform in waveforms], max_batch_samples):
        for index, ids in zip(batch, nearest(encoder.encode([waveforms[i] for i in batch])), strict=True):
            units[index] = ids
    return units


def nearest_unit(
    codebook: Codebook, device: torch.device
) -> Callable[[Sequence[torch.Tensor]], list[npt.NDArray[np.int64]]]:
    """Features [num_frames, D] of several utterances -> units int64 [num_frames] each.

    On a GPU the centroids stay there, and of a batch only its units cross to the host.
    """
    if device.type == "cpu":
        return lambda features: [codebook.assign(rows.float().numpy()) for rows in features]
    centroids = torch.from_numpy(codebook.centroids).to(device)
    half_squares = (0.5 * centroids.double().square().sum(1)).float()

    def nearest(features: Sequence[torch.Tensor]) -> list[npt.NDArray[np.int64]]:
        rows = torch.cat([rows.float() for rows in features])
        if rows.shape[1] != centroids.shape[1]:
            raise InputError(f"codebook: {centroids.shape[1]} dimensions, features have {rows.shape[1]}")
        ids = torch.addmm(half_squares, rows, centroids.T, alpha=-1).argmin(1).cpu().numpy()
        return np.split(ids, np.cumsum([len(rows) for rows in features])[:-1])

    return nearest


def units_of_shard(source: Source, name: str, out_path: Path) -> ShardResult:
    """Encode every utterance of shard `name` ("train/00007") into `out_path`."""
    device = _own_device(source.device)
    if device == "cpu":
        torch.set_num_threads(1)  # for the same bytes on any worker: sums over threads differ in their last bit
    encoder = load_encoder(
        source.encoder_dir, source.layer, source.normalize, device, source.precision, source.chunking
    )
    codebook = _codebook(source.codebook_path, stamp(source.codebook_path))
    check_belongs(codebook, encoder, source.codebook_path)
    nearest = nearest_unit(codebook, encoder.device)
    rows = read_rows(source.manifest_dir / f"{name}.jsonl")[: source.limits.get(name)]
    captions = [(row.key, caption) for row in rows for caption in row.captions]
    lengths = [round(c.num_samples * encoder.sample_rate / c.sample_rate) for _, c in captions]
    batches = encoder.batches(lengths, source.max_batch_samples)
    read = partial(_read_batch, source.root, encoder, [caption for _, caption in captions])
    found: dict[int, tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]] = {}
    reasons: dict[int, str] = {}
    num_samples = 0
    for waveforms, unreadable in ahead(read, batches, num_threads=1 if device == "cpu" else 4, depth=8):
        reasons.update(unreadable)
        if waveforms:
            num_samples += sum(len(waveform) for waveform in waveforms.values())
            units = nearest(encoder.encode(list(waveforms.values())))
            found.update(zip(waveforms, map(deduplicate, units), strict=True))
    order = sorted(found)
    part = UnitsPart.from_utterances(
        [captions[i][1].id for i in order], [found[i][0] for i in order], [found[i][1] for i in order]
    )
    write_units_part(out_path, part)
    counts = {
        "utterances": len(part),
        "units": len(part.units),
        "frames": int(part.durations.sum(dtype=np.int64)),
        "samples": num_samples,
    }
    rejects = [Reject(captions[i][0], captions[i][1].id, "units", reasons[i]) for i in sorted(reasons)]
    return ShardResult(counts, rejects)


@lru_cache(maxsize=2)
def _codebook(path: Path, changed: tuple[int, int]) -> Codebook:
    return Codebook.load(path)


def _own_device(device: str) -> str:
    """`cuda` becomes this worker's own card, round-robin; anything else stays."""
    if device != "cuda":
        return device
    return f"cuda:{worker_slot() % max(1, torch.cuda.device_count())}"


def _read_batch(
    root: Path, encoder: SpeechEncoder, captions: Sequence[Caption], batch: Sequence[int]
) -> tuple[dict[int, npt.NDArray[np.float32]], dict[int, str]]:
    """Waveforms of a batch by their place in the shard, and why others could not be read."""
    waveforms: dict[int, npt.NDArray[np.float32]] = {}
    reasons: dict[int, str] = {}
    for i in batch:
        try:
            waveform = read_audio(root / captions[i].audio, encoder.sample_rate)
            if encoder.num_frames(len(waveform)) < 1:
                what = f"{len(waveform)} samples, shorter than one frame of the encoder"
                raise MediaError(f"{captions[i].audio}: {what}")
            waveforms[i] = waveform
        except MediaError as error:
            reasons[i] = f"unreadable audio: {str(error).replace(f'{root}/', '')}"
    return waveforms, reasons
