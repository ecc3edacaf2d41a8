"""features: a seeded sample of HuBERT frames for the codebook. Reads train rows and their audio, writes sample.npy.

Never the whole corpus: 768 floats at 50 Hz outweigh the audio ten to one, and k-means needs a sample only.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from stages._cli import In, Out, Section, StageContext


class Params(Section):
    """Which encoder, which layer, how much of the training speech."""

    encoder: str = Field("bundled", description="`bundled`, or the folder of a transformers HuBERT model.")
    layer: int = Field(2, ge=1, description="Encoder layer, 1-based: transformers' hidden_states[layer].")
    normalize: bool = Field(False, description="Zero mean, unit variance per utterance (true for HuBERT large).")
    num_utterances: int = Field(1000, ge=1, description="Training utterances drawn for the sample.")
    max_frames: int = Field(200_000, ge=1, description="Frames kept of them at most, drawn at random.")
    max_batch_seconds: float = Field(
        24.0, gt=0, description="Padded seconds of audio in a batch; on a CPU no more than its cache holds."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Of the encoder's arithmetic; see units.")
    chunking: Literal["whole", "fairseq"] = Field("whole", description="Of utterances above 100 s; see units.")
    split: str = Field("train", description="The split that the sample is drawn from.")
    seed: int = Field(0, ge=0, description="Seed of both draws.")
    kind: Literal["hubert"] = Field("hubert", description="The kind of features.")


def run(
    params: Params,
    context: StageContext,
    *,
    manifests: In = Path("manifests"),
    root: In = Path("data/demo"),
    out: Out = Path("data/features"),
) -> None:
    """Draw a sample of training frames for the codebook: HuBERT features of one layer, with their source."""
    import torch

    from pipeline.errors import InputError
    from pipeline.speech.features import draw_captions, sample_features, write_sample
    from pipeline.speech.hubert import BUNDLED, SpeechEncoder
    from stages._settings import bound_caches, resolve_device

    bound_caches()

    if context.dry_run:
        return
    torch.set_num_threads(context.settings.num_threads)
    number = min(params.num_utterances, context.limit or params.num_utterances)
    captions = draw_captions(manifests, params.split, number, params.seed)
    if not captions:
        raise InputError(f"{manifests}: split {params.split!r} has no spoken captions (features.split)")
    encoder = SpeechEncoder(
        BUNDLED if params.encoder == "bundled" else Path(params.encoder),
        params.layer,
        params.normalize,
        resolve_device(context.settings.device),
        params.precision,
        params.chunking,
    )
    sample = sample_features(
        captions,
        root,
        encoder,
        max_frames=params.max_frames,
        max_batch_samples=round(params.max_batch_seconds * encoder.sample_rate),
        seed=params.seed,
    )
    write_sample(out, sample)
    print(f"features: {len(sample.frames)} frames of {sample.num_utterances} utterances -> {out}")
