"""im2speech tokens: say what a folder of token shards is, and whether it is intact."""

from pathlib import Path
from typing import Annotated

import typer

command = typer.Typer(help="Token shards: what is this (info), is it intact (verify).", no_args_is_help=True)

Shards = Annotated[Path, typer.Argument(help="Folder with <split>/index.json and tars.")]


@command.command()
def info(shards: Shards = Path("data/shards")) -> None:
    """Print tokenizers, vocabularies, counts, hours and bit rate of every split."""
    from pipeline.errors import InputError
    from pipeline.tokens.index import read_index, split_names
    from pipeline.tokens.info import describe

    splits = split_names(shards)
    if not splits:
        raise InputError(f"{shards}: no <split>/index.json in it; give a folder that the shards stage wrote")
    typer.echo("\n".join(describe({split: read_index(shards, split) for split in splits})))


@command.command()
def verify(
    shards: Shards = Path("data/shards"),
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given again.")] = None,
    codebook: Annotated[Path | None, typer.Option(help="The units must be of this codebook.")] = None,
) -> None:
    """Check hashes, counts, keys, ids, offsets and durations; name every fault with its shard and key."""
    from pipeline.speech.kmeans import Codebook
    from pipeline.tokens.verify import verify as find_faults

    expected = None if codebook is None else Codebook.load(codebook).fingerprint
    faults = find_faults(shards, split, codebook=expected)
    for fault in faults:
        typer.echo(str(fault))
    if faults:
        typer.echo(f"{shards}: {len(faults)} fault(s)", err=True)
        raise typer.Exit(1)
    typer.echo(f"{shards}: intact")
