"""Waveforms to speech units in one pass: HuBERT, nearest centroid, deduplication; no feature dump.

Reads one manifest shard and its audio; writes one units part (see pipeline.tokens.parts). An utterance
that cannot be read or is shorter than a frame becomes a reject, and the others go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import InputError
from pipeline.manifest import Caption, Reject, read_rows
from pipeline.media import MediaError, read_audio
from pipeline.runner import ShardResult, worker_slot
from pipeline.speech.hubert import SpeechEncoder, length_batches, load_encoder
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
    for batch in length_batches([len(waveform) for waveform in waveforms], max_batch_samples):
        for index, features in zip(batch, encoder.encode([waveforms[i] for i in batch]), strict=True):
            units[index] = codebook.assign(features.float().cpu().numpy())
    return units


def units_of_shard(source: Source, name: str, out_path: Path) -> ShardResult:
    """Encode every utterance of shard `name` ("train/00007") into `out_path`."""
    encoder = load_encoder(source.encoder_dir, source.layer, source.normalize, _own_device(source.device))
    codebook = Codebook.load(source.codebook_path)
    check_belongs(codebook, encoder, source.codebook_path)
    rejects: list[Reject] = []
    ids: list[str] = []
    waveforms: list[npt.NDArray[np.float32]] = []
    rows = read_rows(source.manifest_dir / f"{name}.jsonl")[: source.limits.get(name)]
    for row in rows:
        for caption in row.captions:
            try:
                waveforms.append(_waveform(source.root, caption, encoder))
                ids.append(caption.id)
            except MediaError as error:
                reason = str(error).replace(f"{source.root}/", "")
                rejects.append(Reject(row.key, caption.id, "units", f"unreadable audio: {reason}"))
    sequences = [deduplicate(u) for u in encode_units(waveforms, encoder, codebook, source.max_batch_samples)]
    part = UnitsPart(
        ids=np.array(ids, dtype=np.str_),
        offsets=np.cumsum([0, *(len(units) for units, _ in sequences)], dtype=np.int64),
        units=np.concatenate([np.empty(0, np.uint16), *(units for units, _ in sequences)]),
        durations=np.concatenate([np.empty(0, np.uint16), *(durations for _, durations in sequences)]),
    )
    write_units_part(out_path, part)
    counts: dict[str, Any] = {
        "utterances": len(ids),
        "units": len(part.units),
        "frames": int(part.durations.sum(dtype=np.int64)),
        "samples": sum(len(waveform) for waveform in waveforms),
    }
    return ShardResult(counts, rejects)


def _own_device(device: str) -> str:
    """`cuda` becomes this worker's own card, round-robin; anything else stays."""
    if device != "cuda":
        return device
    return f"cuda:{worker_slot() % max(1, torch.cuda.device_count())}"


def _waveform(root: Path, caption: Caption, encoder: SpeechEncoder) -> npt.NDArray[np.float32]:
    waveform = read_audio(root / caption.audio, encoder.sample_rate)
    if encoder.num_frames(len(waveform)) < 1:
        raise MediaError(f"{caption.audio}: {len(waveform)} samples, shorter than one frame of the encoder")
    return waveform
