"""train: the captioner. Reads token shards, writes data/train/model and the curves of its training.

The image side starts from the bundled GIT (pretrained on image-text pairs of a wider drawn world) unless
told otherwise, as the paper starts from a vision-language model.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field

from stages._cli import In, Out, Section, StageContext


class Params(Section):
    """What goes in, where it starts, how long it learns."""

    input: Literal["tokens", "pixels"] = Field("tokens", description="What the captioner sees.")
    init: str = Field("bundled", description="`bundled`, `none`, or the folder of a captioner checkpoint.")
    init_decoder: bool = Field(True, description="Take the decoder's layers from `init` too, not only the vision side.")
    freeze_vision: bool = Field(True, description="Keep the vision tower as it is; it then runs once an image.")
    freeze_projection: bool = Field(
        False, description="With freeze_vision, keep the projection behind it too: the reference's --vit_fix."
    )
    steps: int = Field(1200, ge=1, description="Optimiser steps.")
    batch_size: int = Field(64, ge=1, description="Captions of a batch.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate (AdamW).")
    pretrained_rate_scale: float = Field(
        1.0, gt=0, description="Rate of the pretrained layers over that of the units' embeddings and output."
    )
    embedding_steps: int = Field(
        0, ge=0, description="First steps that train only the units' embeddings and output, the rest frozen."
    )
    warmup_steps: int = Field(100, ge=1, description="Steps of linear warm-up; then cosine to zero.")
    weight_decay: float = Field(0.02, ge=0, description="On matrices only.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Of the cross-entropy.")
    dropout: float = Field(0.1, ge=0, lt=1, description="In the decoder.")
    clip_norm: float = Field(1.0, gt=0, description="Gradient norm at most.")
    num_pieces: int = Field(150, ge=0, description="Byte-pair pieces over units, beside the units; 0 for none.")
    max_piece_units: int = Field(4, ge=2, description="Units in a piece at most.")
    max_length: int = Field(256, ge=4, description="Ids of a caption at most, BOS and EOS included.")
    evaluate_every: int = Field(300, ge=1, description="Steps between evaluations.")
    num_validation_images: int = Field(60, ge=1, description="Images spoken freely at each evaluation.")
    stem: Literal["convolutions", "seit"] = Field(
        "convolutions",
        description="First layer over tokens, with init none: two convolutions, or SeiT's one (kernel 4, stride 2).",
    )
    crop_tokens: int = Field(
        0, ge=0, description="Take this many tokens a side, with init none: the grid's centre (SeiT: 28 of 32); 0: all."
    )
    augment_synonyms: float = Field(
        0.0, ge=0, le=1, description="Training tokens, share replaced by one of the codes nearest to them; 0: none."
    )
    augment_num_synonyms: int = Field(5, ge=1, description="How many codes are near enough for that.")
    augment_swap: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Training tokens, largest side of two blocks that change places, over the grid's.",
    )
    augment_crop: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Training tokens, least share of the grid's area that a resized crop keeps; 1: off.",
    )
    augment_random_place: bool = Field(
        False, description="Training tokens, with crop_tokens: that part of the grid from anywhere, not its centre."
    )
    augment_noise: float = Field(
        0.0, ge=0, description="Training tokens, deviation of noise on their vectors, over the codebook's deviation."
    )
    augment_share: float = Field(1.0, ge=0, le=1, description="Share of images that each of these changes.")
    seed: int = Field(0, ge=0, description="Seed of initialisation, order and dropout.")


def run(
    params: Params,
    context: StageContext,
    *,
    shards: In = Path("data/shards"),
    vqgan: Annotated[
        Path, typer.Option(help="Folder of the image tokenizer; none takes the codebook that the shards carry.")
    ] = Path("none"),
    out: Out = Path("data/train"),
) -> None:
    """Train the image-to-speech captioner on token shards, which are all that it needs.

    Writes model/ (config.json, model.safetensors, generation_config.json, unit_vocabulary.json), metrics.json
    and dvclive curves: loss and the unit error rate of free-running generations on the validation split.
    """
    import shutil

    import torch
    from dvclive import Live

    from pipeline.captioner.setup import build_augmentation, build_captioner, read_examples
    from pipeline.captioner.training import TrainingSettings, train_captioner
    from pipeline.errors import InputError
    from pipeline.files import fingerprint, write_json
    from pipeline.tokens.carried import refuse_misfits
    from pipeline.tokens.index import read_index, split_names
    from stages._settings import resolve_device

    splits = split_names(shards)
    if "train" not in splits:
        raise InputError(f"{shards}: no split 'train' (found: {', '.join(splits) or 'none'}); run the shards stage")
    if context.dry_run:
        return
    torch.set_num_threads(context.settings.num_threads)
    validation_split = "val" if "val" in splits else "train"
    index = read_index(shards, "train")
    refuse_misfits(shards, {split: read_index(shards, split) for split in ("train", validation_split)})
    tokenizer = None if str(vqgan) == "none" else vqgan
    model, vocabulary = build_captioner(params.model_dump(), shards, index, tokenizer)
    model.to(resolve_device(context.settings.device))
    augment = build_augmentation(params.model_dump(), model, index)
    # What changes at every step has to go through the tower at every step.
    cache = params.freeze_vision and augment is None
    train = read_examples(shards, "train", model, context.limit, cache=cache)
    validation = read_examples(
        shards, validation_split, model, params.num_validation_images, cache=params.freeze_vision
    )
    fields = {name: getattr(params, name) for name in TrainingSettings.__dataclass_fields__}
    shutil.rmtree(out / "dvclive", ignore_errors=True)  # curves of an earlier run
    with Live(str(out / "dvclive"), dvcyaml=None, save_dvc_exp=False) as live:

        def log(step: int, figures: dict[str, float]) -> None:
            context.log(step=step, **figures)
            live.step = step
            for name, value in figures.items():
                live.log_metric(name, round(value, 5), timestamp=False)
            live.make_summary()

        run_name = fingerprint([params.model_dump(), index["fingerprint"], context.limit, len(train)])
        checkpoint = context.settings.scratch_dir / f"train-{run_name}.safetensors"
        figures = train_captioner(
            model,
            vocabulary,
            train,
            validation,
            TrainingSettings(**fields),
            log,
            checkpoint=checkpoint,
            augment=augment,
        )
    model.save_pretrained(out / "model")
    vocabulary.save(out / "model" / "unit_vocabulary.json")
    write_json(out / "metrics.json", {name: round(value, 5) for name, value in figures.items()})
    print("train: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
