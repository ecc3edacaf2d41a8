"""How well speech units match phonemes: PNMI, phone purity and cluster purity, as HuBERT's paper defines them.

Needs the phoneme of every frame, which a corpus with alignments has (the demo's come from espeak-ng).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.files import read_jsonl
from pipeline.speech.features import FeatureSample
from pipeline.speech.kmeans import Codebook
from pipeline.speech.mfcc import HOP, WINDOW


def frame_phonemes(phonemes: Sequence[tuple[int, str]], num_frames: int) -> list[str]:
    """The phoneme under the middle of each frame. `phonemes`: (first sample at 16 kHz, name), in order."""
    if not phonemes:
        return ["_"] * num_frames
    starts = np.array([start for start, _ in phonemes])
    middles = np.arange(num_frames) * HOP + WINDOW // 2
    index = np.clip(np.searchsorted(starts, middles, side="right") - 1, 0, len(phonemes) - 1)
    # Stress marks are prosody, not phoneme identity.
    return [phonemes[i][1].lstrip("',") or "_" for i in index]


def unit_quality(units: npt.NDArray[np.integer], phonemes: Sequence[str]) -> dict[str, float]:
    """Frame-level `units` int [T] beside `phonemes` [T] -> pnmi, phone_purity, cluster_purity in [0, 1].

    PNMI = I(phoneme; unit) / H(phoneme). Source: Hsu et al. 2021, HuBERT, section IV-C.
    """
    _, phoneme_ids = np.unique(np.asarray(phonemes), return_inverse=True)
    _, unit_ids = np.unique(units, return_inverse=True)
    joint = np.zeros((phoneme_ids.max() + 1, unit_ids.max() + 1))
    np.add.at(joint, (phoneme_ids, unit_ids), 1)
    joint /= joint.sum()
    phoneme_probability, unit_probability = joint.sum(1), joint.sum(0)
    outer = phoneme_probability[:, None] * unit_probability[None]
    filled = joint > 0
    information = float((joint[filled] * np.log(joint[filled] / outer[filled])).sum())
    entropy = float(-(phoneme_probability * np.log(phoneme_probability)).sum())
    return {
        "pnmi": information / max(entropy, 1e-12),
        "phone_purity": float(joint.max(0).sum()),
        "cluster_purity": float(joint.max(1).sum()),
    }


def sample_quality(codebook: Codebook, sample: FeatureSample, alignments_path: Path) -> dict[str, float]:
    """`unit_quality` over a feature sample, where `alignments_path` exists; else an empty dict.

    The file holds one object a line: {"id": utterance, "phonemes": [[first sample, name], ...]}.
    """
    if not alignments_path.exists():
        return {}
    wanted = set(sample.ids.tolist())
    phonemes = {r["id"]: r["phonemes"] for r in read_jsonl(alignments_path) if r["id"] in wanted}
    per_utterance: list[npt.NDArray[np.str_] | None] = []
    for number, name in enumerate(sample.ids.tolist()):
        frames = sample.frame[sample.utterance == number]
        if name not in phonemes or not len(frames):
            per_utterance.append(None)
            continue
        per_utterance.append(np.array(frame_phonemes(phonemes[name], int(frames.max()) + 1), dtype=np.str_))
    known = np.array([per_utterance[u] is not None for u in sample.utterance])
    if not known.any():
        return {}
    labels = [per_utterance[u][f] for u, f in zip(sample.utterance[known], sample.frame[known], strict=True)]
    figures = unit_quality(codebook.assign(sample.frames[known]), labels)
    return {name: round(value, 4) for name, value in figures.items()}
