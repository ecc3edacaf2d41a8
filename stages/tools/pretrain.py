"""im2speech pretrain: the recipes of the bundled models, so that anybody can make them again.

Each writes a model folder with its figures. Nothing is read but what the wheels carry: all pictures are
drawn and all speech is synthetic. Budgets are steps, so another machine makes the same kind of model.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stages._settings import from_environment, resolve_device

command = typer.Typer(no_args_is_help=True, help="Make the bundled small models again (minutes to an hour each).")

Out = Annotated[Path, typer.Option(help="Folder to write the model into.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of data and weights.")]


def _print(**fields: Any) -> None:
    print(time.strftime("%H:%M:%S"), json.dumps(fields, default=str), flush=True)


@command.command()
def hubert(
    out: Out = Path("data/pretrain/hubert"),
    num_utterances: Annotated[int, typer.Option(min=50, help="Random sentences to speak.")] = 3500,
    steps_1: Annotated[int, typer.Option(min=1, help="Steps on MFCC targets.")] = 2200,
    steps_2: Annotated[int, typer.Option(min=1, help="Steps on the first iteration's clusters.")] = 2200,
    seed: Seed = 0,
) -> None:
    """A small HuBERT on synthetic speech: masked prediction of MFCC clusters, then of its own."""
    import torch

    from pipeline.speech.hubert_pretraining import Recipe, pretrain_hubert

    settings = from_environment()
    torch.set_num_threads(settings.num_threads)
    recipe = Recipe(num_utterances=num_utterances, steps=(steps_1, steps_2), seed=seed)
    pretrain_hubert(out, recipe, settings.num_workers, _print)


@command.command()
def vqgan(
    out: Out = Path("data/pretrain/vit_vqgan"),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 5000,
    seed: Seed = 0,
) -> None:
    """A small ViT-VQGAN on drawn scenes, handwriting and textures."""
    import torch

    from pipeline.vision.pretrain import pretrain_vqgan

    settings = from_environment()
    torch.set_num_threads(settings.num_threads)
    device = resolve_device(settings.device)
    pretrain_vqgan(out, steps, seed, checkpoint=out / "checkpoint", device=device, log=lambda fields: _print(**fields))


@command.command()
def git(
    input: Annotated[Literal["tokens", "pixels"], typer.Option(help="What the model sees.")] = "tokens",
    out: Out = Path("data/pretrain/git"),
    num_images: Annotated[int, typer.Option(min=100, help="Wide scenes to draw.")] = 40_000,
    see_steps: Annotated[int, typer.Option(min=1, help="Steps of 64 pairs in which the vision tower learns.")] = 2500,
    say_steps: Annotated[int, typer.Option(min=1, help="Then steps in which the decoder learns.")] = 1500,
    see_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate of the tower (one cycle).")] = 1e-3,
    say_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate of the decoder (one cycle).")] = 2e-3,
    start_from: Annotated[Path | None, typer.Option(help="A captioner whose fitting weights are copied.")] = None,
    vqgan: Annotated[Path | None, typer.Option(help="Image tokenizer for tokens; else the bundled one.")] = None,
    seed: Seed = 0,
) -> None:
    """GIT on drawn scenes with captions in words: where the captioner learns to see, and to say what it sees."""
    import torch

    from pipeline.captioner.model import load_captioner
    from pipeline.captioner.text_pretraining import pretrain_git
    from pipeline.files import write_json
    from pipeline.git_inputs import git_inputs

    settings = from_environment()
    torch.set_num_threads(settings.num_threads)
    config, tokenize, codebook = git_inputs(input, vqgan)
    figures = pretrain_git(
        out,
        config,
        tokenize,
        num_images=num_images,
        see_steps=see_steps,
        say_steps=say_steps,
        batch_size=64,
        see_rate=see_rate,
        say_rate=say_rate,
        seed=seed,
        num_workers=settings.num_workers,
        log=_print,
        start_from=None if start_from is None else load_captioner(start_from),
        codebook=codebook,
    )
    write_json(out / "figures.json", figures)


@command.command()
def recogniser(out: Out = Path("data/pretrain/ctc"), seed: Seed = 0) -> None:
    """The strict recogniser: a small character CTC on synthetic speech, without a language model."""
    from dataclasses import replace

    import torch

    from pipeline.evaluation.ctc_pretraining import CTCRecipe, pretrain_ctc

    torch.set_num_threads(from_environment().num_threads)
    pretrain_ctc(out, replace(CTCRecipe(), seed=seed), log=print)
