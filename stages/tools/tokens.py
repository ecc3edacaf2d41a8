"""im2speech tokens: what a set of token shards is, whether it is intact, and how it gets from one place to another.

Reads folders of token shards (and urls, to pull from); `card`, `stats`, `pull` and `push` write.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.tokens.transfer import Copied

command = typer.Typer(
    help="Token shards: what is this (info, stats, card), is it intact (verify), what differs (diff), "
    "get them (pull), give them away (push).",
    no_args_is_help=True,
)

Shards = Annotated[Path, typer.Argument(help="Folder with <split>/index.json and tars.")]
DEFAULT = Path("data/shards")


@command.command()
def info(
    shards: Annotated[str, typer.Argument(help="Folder of token shards, or a url as `pull` takes it.")] = str(DEFAULT),
    quick: Annotated[bool, typer.Option(help="Indexes only: do not read shards of a set without statistics.")] = False,
) -> None:
    """Print tokenizers, vocabularies, counts, hours, bit rates and histograms of every split.

    Of a url only indexes and statistics are fetched.
    """
    from pipeline.tokens.contents import read_contents
    from pipeline.tokens.index import read_index
    from pipeline.tokens.info import describe
    from pipeline.tokens.statistics import read_statistics
    from pipeline.tokens.transfer import preview

    statistics: dict[str, Any] | None = None
    if "://" in shards:
        fingerprint, indexes, statistics = preview(shards)
    else:
        folder = Path(shards)
        indexes = {split: read_index(folder, split) for split in _splits(folder)}
        fingerprint = (read_contents(folder) or {}).get("fingerprint", "")
        statistics = None if quick else read_statistics(folder)
    if fingerprint:
        typer.echo(f"set {fingerprint}")
    typer.echo("\n".join(describe(indexes, None if quick else statistics)))


@command.command()
def verify(
    shards: Shards = DEFAULT,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given again.")] = None,
    codebook: Annotated[Path | None, typer.Option(help="The units must be of this codebook.safetensors.")] = None,
    vqgan: Annotated[Path | None, typer.Option(help="The image tokens must be of this folder's tokenizer.")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="The set's, as its publisher gave it.")] = None,
) -> None:
    """Check hashes, counts, keys, ids, offsets, durations, codebooks; name every fault with its shard and key.

    Exit code 1 when there is a fault. Nothing in the shards is unpickled, so this is safe on anybody's files.
    """
    from pipeline.speech.kmeans import Codebook
    from pipeline.tokens.carried import read_image_codebook
    from pipeline.tokens.verify import verify as find_faults

    expected = None if codebook is None else Codebook.load(codebook).fingerprint
    tokenizer = None if vqgan is None else read_image_codebook(vqgan / "model.safetensors")[1]
    faults = find_faults(shards, split, codebook=expected, image_tokenizer=tokenizer, fingerprint=fingerprint)
    for fault in faults:
        typer.echo(str(fault))
    if faults:
        typer.echo(f"{shards}: {len(faults)} fault(s)", err=True)
        raise typer.Exit(1)
    typer.echo(f"{shards}: intact")


@command.command()
def stats(
    shards: Shards = DEFAULT,
    out: Annotated[Path | None, typer.Option(help="Write statistics.json and plots/ into this folder.")] = None,
) -> None:
    """Count usage, perplexity, entropy, lengths, bit rates and duplicates; JSON on the terminal or into a folder."""
    import json

    from pipeline.tokens.statistics import set_statistics, write_statistics

    _splits(shards)
    if out is None:
        typer.echo(json.dumps(set_statistics(shards)[0], indent=2, sort_keys=True))
    else:
        write_statistics(shards, out)
        typer.echo(f"{out}: statistics.json and plots/")


@command.command()
def card(
    shards: Shards = DEFAULT,
    title: Annotated[str | None, typer.Option(help="Title of the data set.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the source, as the Hub names it.")] = None,
    description: Annotated[str | None, typer.Option(help="What the source is, in Markdown.")] = None,
    citation: Annotated[str | None, typer.Option(help="How to cite the source, in Markdown.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Replace README.md; without it the card is printed.")] = False,
) -> None:
    """Make the dataset card of the Hugging Face Hub. What is not given is kept from the card that is there."""
    from dataclasses import replace

    from pipeline.files import write_text
    from pipeline.tokens.card import dataset_card, read_about
    from pipeline.tokens.index import read_index
    from pipeline.tokens.statistics import PICTURE, read_statistics

    indexes = {split: read_index(shards, split) for split in _splits(shards)}
    path = shards / "README.md"
    given = {"title": title, "licence": licence, "description": description, "citation": citation}
    about = read_about(path.read_text(encoding="utf-8") if path.is_file() else "")
    about = replace(about, **{name: value for name, value in given.items() if value is not None})
    text = dataset_card(about, indexes, read_statistics(shards), picture=(shards / PICTURE).is_file())
    if write:
        write_text(path, text)
        typer.echo(f"{path}: written")
    else:
        typer.echo(text, nl=False)


@command.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A folder of token shards.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Say what differs between two sets: tokenizers, splits, keys, tokens. Exit code 1 when something does."""
    from pipeline.tokens.diff import diff as differences

    _splits(first), _splits(second)
    found = False
    for line in differences(first, second):
        found = True
        typer.echo(line)
    if found:
        raise typer.Exit(1)
    typer.echo("the same samples, token for token")


@command.command()
def pull(
    url: Annotated[
        str, typer.Argument(help="Where the set lies: http(s)://, s3://, gs://, hf://datasets/..., a folder.")
    ],
    shards: Annotated[Path, typer.Argument(help="Folder to copy it into.")] = DEFAULT,
    out: Annotated[Path | None, typer.Option(help="The same, as an option.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given again.")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="Refuse any other set than this.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="The folder may hold another set.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Files at a time.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="Faults in a row before giving up on a file.")] = 5,
) -> None:
    """Copy a set of token shards and check every byte; run again after an interruption, it goes on.

    Then: im2speech train --shards FOLDER. s3 needs the package s3fs, gs needs gcsfs.
    """
    from pipeline.tokens.transfer import pull as copy

    folder = out or shards
    done = copy(
        url,
        folder,
        splits=split or (),
        num_workers=workers,
        fingerprint=fingerprint,
        replace=replace,
        retries=retries,
    )
    _say(folder, done)


@command.command()
def push(
    shards: Annotated[Path, typer.Argument(help="Folder of token shards.")],
    url: Annotated[str, typer.Argument(help="A folder, or a url that fsspec can write to (s3://, gs://).")],
) -> None:
    """Verify a set, then copy it to where others can pull it from. The layout is the Hub's own."""
    from pipeline.errors import InputError
    from pipeline.tokens.transfer import push as copy
    from pipeline.tokens.verify import verify as find_faults

    _splits(shards)
    if faults := find_faults(shards):
        raise InputError(f"{shards}: {len(faults)} fault(s), not pushed; the first: {faults[0]}")
    _say(Path(url), copy(shards, url))


def _splits(shards: Path) -> list[str]:
    from pipeline.errors import InputError
    from pipeline.tokens.index import split_names

    splits = split_names(shards)
    if not splits:
        raise InputError(f"{shards}: no <split>/index.json in it; give a folder that the shards stage wrote")
    return splits


def _say(where: object, done: "Copied") -> None:
    typer.echo(
        f"{where}: set {done.fingerprint}, {', '.join(done.splits)}: {done.num_files} files, {done.num_bytes:,} bytes, "
        f"{done.num_copied} of them copied now"
    )
