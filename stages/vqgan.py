"""vqgan: the image tokenizer, bundled, imported, trained or fine-tuned, and how well it does on this corpus.

Reads manifests/ and the corpus' pictures; writes data/vqgan/: config.json, model.safetensors, metrics.json
(PSNR, codebook usage, perplexity), reconstructions.png, usage.csv and training.csv for plots.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages._cli import In, Out, Section, StageContext

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.vision.lpips import LPIPS
    from pipeline.vision.tokenizer import ImageTokenizer
    from pipeline.vision.training import VQGANTraining
    from pipeline.vision.vit_vqgan import ViTVQGAN


class Params(Section):
    """The section `vqgan` of params.yaml."""

    source: Literal["bundled", "path", "train", "finetune"] = Field(
        "bundled",
        description="bundled: as pretrained. path: the folder `path`. train: from nothing. finetune: from "
        "`path`, or from the bundled one where that is empty.",
    )
    path: str = Field("", description="Folder of config.json and model.safetensors.")
    image_size: int = Field(64, ge=1, description="train: side of the square picture, in pixels.")
    patch_size: int = Field(4, ge=1, description="train: side of a token's square, in pixels.")
    resize: Literal["squash", "crop"] = Field("squash", description="train: how pictures become square.")
    num_codes: int = Field(1024, ge=2, le=65536, description="train: size of the codebook.")
    code_dim: int = Field(32, ge=1, description="train: dimensions of a code.")
    dim: int = Field(96, ge=4, description="train: width of encoder and decoder, a multiple of 4.")
    encoder_depth: int = Field(1, ge=1, description="train: layers of the encoder.")
    decoder_depth: int = Field(2, ge=1, description="train: layers of the decoder.")
    mlp_ratio: int = Field(2, ge=1, description="train: width of the feed-forward parts over `dim`.")
    heads: int = Field(1, ge=1, description="train: attention heads, of 64 dimensions each.")
    steps: int = Field(2000, ge=1, description="train, finetune: steps of the optimizer.")
    images_per_step: int = Field(16, ge=1, description="train, finetune: pictures a step.")
    learning_rate: float = Field(2e-3, gt=0, description="train, finetune: peak of the learning rate.")
    l2_weight: float = Field(1.0, ge=0, description="train, finetune: weight of the squared error.")
    l1_weight: float = Field(0.1, ge=0, description="train, finetune: weight of the absolute error.")
    codebook_weight: float = Field(1.0, ge=0, description="train, finetune: weight of the codebook loss.")
    logit_laplace_weight: float = Field(0.0, ge=0, description="train, finetune: weight of the logit-Laplace loss.")
    perceptual_weights: str = Field(
        "", description="File or folder of VGG16 and LPIPS' heads; empty: no perceptual loss, no LPIPS figures."
    )
    perceptual_weight: float = Field(0.1, ge=0, description="train, finetune: of LPIPS, if perceptual_weights is set.")
    adversarial_weight: float = Field(0.0, ge=0, description="train, finetune: of the patch discriminator; 0: none.")
    adversarial_loss: Literal["hinge", "vanilla", "non_saturating"] = Field(
        "non_saturating", description="train, finetune: hinge and vanilla as in taming, non_saturating as in ViT-VQGAN."
    )
    adaptive_weight: bool = Field(True, description="train, finetune: scale adversarial_weight by gradients.")
    discriminator_start: int = Field(0, ge=0, description="train, finetune: the first step with a discriminator.")
    discriminator_rate_scale: float = Field(
        1.0, gt=0, description="train, finetune: its learning rate over the tokenizer's."
    )
    discriminator_layers: int = Field(3, ge=1, description="train, finetune: its convolutions of stride 2.")
    discriminator_channels: int = Field(64, ge=1, description="train, finetune: of its first convolution.")
    restart_every: int = Field(50, ge=0, description="train, finetune: steps between restarts of idle codes; 0: none.")
    codebook_decay: float = Field(
        0.0, ge=0, lt=1, description="train, finetune: codes follow a moving average (0.99, say); 0: gradients."
    )
    average_decay: float = Field(
        0.0, ge=0, lt=1, description="train, finetune: keep a moving average of the weights (0.999, say); 0: the last."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="train, finetune: arithmetic of the networks.")
    pictures: Literal["memory", "stream"] = Field(
        "memory", description="train, finetune: memory: at most max_images. stream: all, read as they are needed."
    )
    augment: Literal["none", "crop_flip"] = Field(
        "none", description="train, finetune: crop_flip: random parts of pictures, mirrored at random (stream only)."
    )
    max_images: int = Field(50_000, ge=1, description="train, finetune: pictures kept in memory.")
    eval_images: int = Field(256, ge=1, description="Pictures that the metrics are measured on.")
    seed: int = Field(0, ge=0, description="Decides weights, choice and order of pictures.")


def run(
    params: Params,
    context: StageContext,
    *,
    root: In = Path("data/demo"),
    manifests: In = Path("manifests"),
    out: Out = Path("data/vqgan"),
) -> None:
    """Provide the image tokenizer, trained if the parameters ask for it, and measure it on this corpus."""
    import torch

    from pipeline.manifest import split_names
    from pipeline.vision.encode import batches, choose_rows, read_pictures
    from pipeline.vision.lpips import load_lpips
    from pipeline.vision.report import write_report
    from pipeline.vision.stream import StreamSettings, training_batches
    from pipeline.vision.training import measure
    from stages._settings import resolve_device

    splits = split_names(manifests)
    if context.dry_run:
        print(f"  source: {params.source}; splits: {', '.join(splits)}")
        return
    torch.set_num_threads(context.settings.num_threads)
    device = resolve_device(context.settings.device)
    model = _starting_point(params).to(device)
    perceptual = load_lpips(Path(params.perceptual_weights), device) if params.perceptual_weights else None
    sides, resize = model.config.image_sides, model.config.resize
    history: list[dict[str, float]] = []
    if params.source in ("train", "finetune"):
        split = "train" if "train" in splits else splits[0]
        limit = params.max_images if context.limit is None else min(context.limit, params.max_images)
        with training_batches(
            root,
            choose_rows(manifests, split, limit if params.pictures == "memory" else context.limit, params.seed),
            StreamSettings(params.images_per_step, sides, resize, params.augment, params.seed),
            stream=params.pictures == "stream",
            num_threads=context.settings.num_threads,
        ) as (batch_at, data, unreadable):
            history = _train(_trainable(model, params), batch_at, data, params, context, perceptual)
        _log_unreadable(unreadable, "trained on", context)
    # The first of these splits that has pictures; a corpus of speech alone has none, and goes through unmeasured.
    order = sorted(splits, key=lambda split: (split != "val", split != "train", split))
    found = (choose_rows(manifests, split, params.eval_images, params.seed) for split in order)
    rows = next((some for some in found if some), [])
    pictures, reasons = read_pictures(root, rows, sides, resize, context.settings.num_threads)
    if rows:
        _refuse_empty(pictures, reasons, manifests)
    _log_unreadable(reasons, "measured on", context)
    figures, counts = measure(model, batches(pictures, 32), perceptual)
    model.save(out)
    write_report(out, model, figures, counts, history, next(batches(pictures[:24], 24), None))
    context.log(event="vqgan", fingerprint=model.fingerprint, unreadable=len(reasons), **figures)
    if not rows:
        print(f"vqgan: {model.fingerprint}; the corpus has no pictures to measure it on")
        return
    print(
        f"vqgan: {model.fingerprint}, "
        + (f"PSNR {figures['psnr']:.1f} dB, " if "psnr" in figures else "encodes only, ")
        + f"{100 * figures['usage']:.0f} % of codes used, perplexity {figures['perplexity']:.0f}"
    )


def _starting_point(params: Params) -> "ImageTokenizer":
    import torch

    from pipeline.errors import InputError
    from pipeline.vision.tokenizer import load_tokenizer
    from pipeline.vision.vit_vqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig

    if params.source == "train":
        torch.manual_seed(params.seed)
        encoder, decoder = (
            TransformerConfig(params.dim, depth, params.heads, params.mlp_ratio * params.dim)
            for depth in (params.encoder_depth, params.decoder_depth)
        )
        try:
            return ViTVQGAN(
                ViTVQGANConfig(
                    *(params.image_size, params.patch_size, encoder, decoder),
                    *(params.num_codes, params.code_dim),
                    resize=params.resize,
                )
            )
        except ValueError as error:
            raise InputError(f"params.yaml, section 'vqgan': {error}") from error
    if params.source == "path" and not params.path:
        raise InputError("params.yaml, section 'vqgan': source is 'path', so give the folder in 'path'")
    if params.source == "bundled" or not params.path:
        import pipeline

        return load_tokenizer(Path(pipeline.__file__).parent / "bundled" / "vit_vqgan")
    return load_tokenizer(Path(params.path))


def _trainable(model: "ImageTokenizer", params: Params) -> "ViTVQGAN":
    from pipeline.errors import InputError
    from pipeline.vision.vit_vqgan import ViTVQGAN

    if not isinstance(model, ViTVQGAN) or not model.can_decode:
        raise InputError(
            f"params.yaml, section 'vqgan': {params.path} cannot be fine-tuned here (only a ViT-VQGAN with its "
            "decoder can); take it as it is with source: path"
        )
    return model


def _refuse_empty(pictures: "NDArray[np.uint8]", unreadable: list[str], manifests: Path) -> None:
    from pipeline.errors import InputError

    if not len(pictures):
        reason = f": {unreadable[0]}" if unreadable else ""
        raise InputError(f"{manifests}: not one picture of its rows can be read{reason}")


def _log_unreadable(reasons: "Collection[str]", purpose: str, context: StageContext) -> None:
    """Say how many pictures were left out, and name each in the log: what is published holds no paths."""
    for reason in sorted(reasons):
        context.log(event="unreadable", purpose=purpose, reason=reason)
    if reasons:
        log = context.settings.logs_dir / f"{context.stage}.jsonl"
        print(f"vqgan: pictures to be {purpose} that cannot be read: {len(reasons)}; named in {log}")


def _training_settings(params: Params) -> "VQGANTraining":
    from pipeline.vision.losses import Adversary
    from pipeline.vision.training import VQGANTraining

    adversary = Adversary(
        weight=params.adversarial_weight,
        loss=params.adversarial_loss,
        start=params.discriminator_start,
        layers=params.discriminator_layers,
        channels=params.discriminator_channels,
        adaptive=params.adaptive_weight,
        rate_scale=params.discriminator_rate_scale,
    )
    return VQGANTraining(
        steps=params.steps,
        seed=params.seed,
        learning_rate=params.learning_rate,
        l2_weight=params.l2_weight,
        l1_weight=params.l1_weight,
        logit_laplace_weight=params.logit_laplace_weight,
        perceptual_weight=params.perceptual_weight if params.perceptual_weights else 0.0,
        adversary=adversary if params.adversarial_weight else None,
        codebook_weight=params.codebook_weight,
        codebook_decay=params.codebook_decay,
        average_decay=params.average_decay,
        precision=params.precision,
        warmup_steps=min(100, params.steps // 10),
        continuous_steps=min(200, params.steps // 10),
        restart_every=params.restart_every,
    )


def _train(
    model: "ViTVQGAN",
    batch_at: "Callable[[int], torch.Tensor]",
    data: str,
    params: Params,
    context: StageContext,
    perceptual: "LPIPS | None",
) -> list[dict[str, float]]:
    """Train in place; an interrupted run goes on when data, parameters and code are the same."""
    import shutil

    from pipeline.vision.training import train_vit_vqgan

    checkpoint = _checkpoint(model, data, params, context)
    history = train_vit_vqgan(
        model,
        batch_at,
        _training_settings(params),
        perceptual=perceptual,
        checkpoint=checkpoint,
        fresh_codebook=params.source == "train",
        log=lambda record: context.log(event="step", **record),
    )
    shutil.rmtree(checkpoint, ignore_errors=True)
    return history


def _checkpoint(model: "ViTVQGAN", data: str, params: Params, context: StageContext) -> Path:
    """The folder from which an interrupted run of the same parameters, data, weights and code goes on."""
    from pipeline import vision
    from pipeline.files import sha256_file
    from pipeline.training_state import run_fingerprint
    from pipeline.vision.lpips import weight_files

    perceptual = weight_files(Path(params.perceptual_weights)) if params.perceptual_weights else []
    named = {
        "params": params.model_dump(),
        "data": data,
        "start": model.fingerprint,
        "perceptual": [sha256_file(path) for path in perceptual],
    }
    return context.settings.scratch_dir / f"vqgan-{run_fingerprint(named, [vision])}"
