"""train: the captioner. Reads token shards, writes data/train/model and the curves of its training.

The image side starts from the bundled GIT (pretrained on image-text pairs of a wider drawn world) unless
told otherwise, as the paper starts from a vision-language model.
"""

import contextlib
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import Field

from stages._cli import In, Out, Section, StageContext

if TYPE_CHECKING:
    from pipeline.captioner.batches import Stream
    from pipeline.captioner.data import Examples
    from pipeline.captioner.distributed import Processes
    from pipeline.captioner.model import Captioner
    from pipeline.captioner.vocabulary import UnitVocabulary
    from stages._listening import Listener
    from stages._trackers import Tracker


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
    batch_size: int = Field(64, ge=1, description="Captions of a step, of all processes together.")
    batch_tokens: int = Field(
        0, ge=0, description="Ids of a step, padding included, in place of batch_size; 0: by captions. See streaming."
    )
    accumulation_steps: int = Field(
        1, ge=1, description="Turns in which a process takes its share of a step: less memory, the same result."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Arithmetic of the model; weights and optimiser stay fp32. fp16 needs a GPU."
    )
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate (AdamW).")
    schedule: Literal["cosine", "linear", "constant", "reference"] = Field(
        "cosine",
        description="Learning rate after a linear warm-up: down to zero by a cosine or a line, or constant; reference: "
        "as the paper's code, whose warm-up begins at zero.",
    )
    pretrained_rate_scale: float = Field(
        1.0, gt=0, description="Rate of the pretrained layers over that of the units' embeddings and output."
    )
    embedding_steps: int = Field(
        0, ge=0, description="First steps that train only the units' embeddings and output, the rest frozen."
    )
    warmup_steps: int = Field(100, ge=1, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.02, ge=0, description="On matrices only.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Of the cross-entropy.")
    dropout: float = Field(0.1, ge=0, lt=1, description="In the decoder.")
    clip_norm: float = Field(1.0, ge=0, description="Gradient norm at most; 0: not clipped.")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Evaluate and keep a running mean of the weights, such as 0.999; 0: the weights."
    )
    patience: int = Field(0, ge=0, description="Stop after so many evaluations without a better one; 0: never.")
    num_pieces: int = Field(150, ge=0, description="Byte-pair pieces over units, beside the units; 0 for none.")
    max_piece_units: int = Field(4, ge=2, description="Units in a piece at most.")
    max_length: int = Field(256, ge=4, description="Ids of a caption at most, BOS and EOS included.")
    streaming: bool = Field(
        False, description="Read the shards while training, for corpora larger than memory; batch_tokens counts units."
    )
    evaluate_every: int = Field(300, ge=1, description="Steps between evaluations.")
    save_every: int = Field(0, ge=0, description="Steps between checkpoints to go on from; 0: at evaluations.")
    num_validation_images: int = Field(
        60, ge=1, description="Validation images, the first so many: their loss, and what is said of them freely."
    )
    num_samples: int = Field(4, ge=0, description="With --vocoder: validation images whose speech goes to the log.")
    bleu_images: int = Field(
        0, ge=0, description="With --vocoder: validation images whose speech is recognised and scored; 0: off."
    )
    bleu_recogniser: Literal["pocketsphinx", "ctc", "wav2vec2"] = Field(
        "pocketsphinx", description="Who hears it; pocketsphinx's language model is made of the training captions."
    )
    bleu_recogniser_model: str = Field("", description="Folder of the wav2vec 2.0 (or ctc) model.")
    tracker: Literal["dvclive", "tensorboard", "wandb"] = Field(
        "dvclive", description="Curves and samples besides DVCLive's, in the logs; the last two are extras."
    )
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


_NOT_DECIDING = {"tracker", "save_every", "num_samples"}  # parameters with which a run stays the same run


def run(
    params: Params,
    context: StageContext,
    *,
    shards: In = Path("data/shards"),
    vqgan: Annotated[
        Path, typer.Option(help="Folder of the image tokenizer; none takes the codebook that the shards carry.")
    ] = Path("none"),
    vocoder: Annotated[
        Path, typer.Option(help="Folder of a vocoder, to hear at each evaluation what the captioner says; none: no.")
    ] = Path("none"),
    out: Out = Path("data/train"),
) -> None:
    """Train the image-to-speech captioner on token shards, which are all that it needs.

    Writes model/ (config.json, model.safetensors, generation_config.json, unit_vocabulary.json), metrics.json
    and dvclive curves: loss and the unit error rate of free-running generations on the validation split.

    Several GPUs or machines: `accelerate launch ... -m stages train` or torchrun. Interrupted (Ctrl-C, SIGTERM, a
    kill), the same command goes on from its last checkpoint to the same result. See docs/training.md.
    """
    from pipeline.captioner.distributed import Processes
    from pipeline.errors import InputError
    from pipeline.tokens.index import split_names
    from stages._settings import resolve_device
    from stages._trackers import refuse_missing

    splits = split_names(shards)
    if "train" not in splits:
        raise InputError(f"{shards}: no split 'train' (found: {', '.join(splits) or 'none'}); run the shards stage")
    _refuse_deaf(params, vocoder)
    refuse_missing(params.tracker)
    if "val" not in splits:
        print(f"train: {shards} has no split val, so validation figures are of the first training images")
    if context.dry_run:
        return
    resolve_device(context.settings.device)  # refuses a GPU that is not here
    processes = Processes.launched(context.settings.device)
    try:
        _train(params, context, processes, shards, "val" if "val" in splits else "train", vqgan, vocoder, out)
    finally:
        processes.close()


def _refuse_deaf(params: Params, vocoder: Path) -> None:
    """InputError for a BLEU that could not be measured as it is asked for."""
    from pipeline.errors import InputError

    if not params.bleu_images:
        return
    if str(vocoder) == "none":
        raise InputError("train.bleu_images: speech has to be made first; give --vocoder FOLDER")
    if params.bleu_images > params.num_validation_images:
        raise InputError(
            f"train.bleu_images: {params.bleu_images} are to be heard, but train.num_validation_images says that "
            f"{params.num_validation_images} are spoken; raise that"
        )
    if params.bleu_recogniser == "wav2vec2" and not params.bleu_recogniser_model:
        raise InputError("train.bleu_recogniser: wav2vec2 needs train.bleu_recogniser_model, the folder of a model")


def _train(
    params: Params,
    context: StageContext,
    processes: "Processes",
    shards: Path,
    validation_split: str,
    vqgan: Path,
    vocoder: Path,
    out: Path,
) -> None:
    import torch

    from pipeline.captioner.setup import build_augmentation, build_captioner, open_stream, read_examples
    from pipeline.captioner.training import Interrupted, TrainingSettings, train_captioner
    from pipeline.tokens.carried import refuse_misfits
    from pipeline.tokens.index import read_index
    from pipeline.vision.transforms import image_to_tensor
    from stages._trackers import watched

    torch.set_num_threads(max(1, context.settings.num_threads // processes.num_local))
    index = read_index(shards, "train")
    refuse_misfits(shards, {split: read_index(shards, split) for split in ("train", validation_split)})
    tokenizer = None if str(vqgan) == "none" else vqgan
    model, vocabulary = build_captioner(params.model_dump(), shards, index, tokenizer)
    model.to(processes.device)
    augment = build_augmentation(params.model_dump(), model, index)
    # A frozen tower is run once an image where nothing changes its input.
    cache = params.freeze_vision and augment is None
    train: Examples | Stream
    if params.streaming and context.limit is None:
        train = open_stream(shards, "train", model, image_to_tensor, params.seed)
    else:
        train = read_examples(shards, "train", model, image_to_tensor, context.limit, cache=cache)
    validation = read_examples(
        shards, validation_split, model, image_to_tensor, params.num_validation_images, cache=params.freeze_vision
    )
    run_name = _run_name(params, context, index["fingerprint"])
    checkpoint = context.settings.scratch_dir / f"train-{run_name}.safetensors"
    settings = TrainingSettings(**{name: getattr(params, name) for name in TrainingSettings.__dataclass_fields__})
    voice = None if str(vocoder) == "none" else vocoder
    hear = partial(_listener, params, context, shards, validation_split, voice, vocabulary, processes)
    watching = watched(params.tracker, context, out / "dvclive", run_name, params.model_dump(), hear)
    with watching if processes.is_main else contextlib.nullcontext((_tell_nobody, None)) as (log, watch):
        try:
            figures = train_captioner(
                *(model, vocabulary, train, validation, settings, log, checkpoint),
                processes=processes,
                watch=watch,
                augment=augment,
            )
        except Interrupted as stopped:
            if processes.is_main:
                context.log(event="interrupted", step=stopped.step, signal=stopped.name)
                saved = f"train: stopped by {stopped.name} behind step {stopped.step}, which is saved"
                print(f"{saved}; the same command goes on from there", file=sys.stderr)
            raise
    if processes.is_main:
        _publish(model, vocabulary, figures, out)
        checkpoint.unlink(missing_ok=True)


def _run_name(params: Params, context: StageContext, data: str) -> str:
    """The same for an interrupted run of the same parameters, data, weights to start from and code."""
    from pipeline import captioner, tokens
    from pipeline.captioner.setup import starting_folder
    from pipeline.files import sha256_file
    from pipeline.training_state import run_fingerprint
    from pipeline.vision import transforms

    start = starting_folder(params.model_dump())
    named = {
        "params": params.model_dump(exclude=_NOT_DECIDING),
        "data": data,
        "limit": context.limit,
        "start": "" if start is None else sha256_file(start / "model.safetensors"),
    }
    return run_fingerprint(named, [captioner, tokens, transforms])


def _tell_nobody(step: int, figures: dict[str, float]) -> None:
    """The log of all processes but the first."""


def _listener(
    params: Params,
    context: StageContext,
    shards: Path,
    split: str,
    vocoder: Path | None,
    vocabulary: "UnitVocabulary",
    processes: "Processes",
    tracker: "Tracker",
) -> "Listener | None":
    from pipeline.evaluation.recogniser import RecogniserSettings
    from stages._listening import Listener

    if vocoder is None or not params.num_samples + params.bleu_images:
        return None
    return Listener(
        *(shards, split, vocoder, tracker),
        num_samples=params.num_samples,
        bleu_images=params.bleu_images,
        recogniser=RecogniserSettings(params.bleu_recogniser, params.bleu_recogniser_model, seed=params.seed),
        units_fingerprint=vocabulary.codebook_fingerprint,
        device=str(processes.device),
        num_workers=context.settings.num_workers,
    )


def _publish(model: "Captioner", vocabulary: "UnitVocabulary", figures: dict[str, float], out: Path) -> None:
    """The model's folder whole or not at all, then the figures."""
    from pipeline.files import write_json

    unfinished = out / ".model.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    vocabulary.save(unfinished / "unit_vocabulary.json")
    shutil.rmtree(out / "model", ignore_errors=True)
    unfinished.replace(out / "model")
    write_json(out / "metrics.json", {name: round(value, 5) for name, value in figures.items()})
    print("train: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
