"""im2speech export: our tokens in the formats that other toolkits read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

command = typer.Typer(help="Write tokens for other toolkits.", no_args_is_help=True)


@command.callback()
def about() -> None:
    """Write tokens for other toolkits."""


@command.command()
def units(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    format: Annotated[
        Literal["fairseq", "textless", "km"],
        typer.Option(help="fairseq: name|units. textless: name<tab>units and durations. km: .tsv, .km, dict.km.txt."),
    ] = "fairseq",
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given again.")] = None,
    manifests: Annotated[Path, typer.Option(help="Rows: names and order.")] = Path("manifests"),
    source: Annotated[Path, typer.Option("--units", help="Units, as the stage units writes them.")] = Path(
        "data/units"
    ),
    root: Annotated[str, typer.Option(help="km: the corpus root that the .tsv names.")] = ".",
) -> None:
    """Speech units in the text formats of fairseq and textlesslib, in the manifest's order, names kept whole."""
    from pipeline.tokens.exchange import export_units

    for name in _splits(split, manifests, source, "units"):
        for path in export_units(manifests, source, name, format, out, root=root):
            typer.echo(str(path))


@command.command()
def images(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given again.")] = None,
    manifests: Annotated[Path, typer.Option(help="Rows: names and order.")] = Path("manifests"),
    source: Annotated[Path, typer.Option("--images", help="Tokens, as the stage images writes them.")] = Path(
        "data/images"
    ),
) -> None:
    """Image tokens as SeiT's archives, <split>.data.bin.gz and <split>.index.npy.gz, and the pictures' names."""
    from pipeline.tokens.seit import export_images

    for name in _splits(split, manifests, source, "images"):
        for path in export_images(manifests, source, name, out):
            typer.echo(str(path))


def _splits(chosen: list[str] | None, manifests: Path, source: Path, stage: str) -> list[str]:
    """The splits that were asked for, or all that `source` holds."""
    from pipeline.errors import InputError
    from pipeline.manifest import split_names

    splits = chosen or [name for name in split_names(manifests) if (source / name).is_dir()]
    if not splits:
        raise InputError(f"{source}: no split in it; run the stage {stage}")
    return splits
