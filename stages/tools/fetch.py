"""im2speech fetch: gets what manifests/models.yaml names. The only command that uses the network.

Writes models/<name>/ (a corpus: data/corpus/<name>/), and fetched.json in it with the sha256 of every file.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.registry import Entry, RemoteFile


def command(
    names: Annotated[list[str] | None, typer.Argument(help="Entries of the registry; none: list them.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write into; else models/<name>, for a corpus data/corpus/<name>.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A file or folder that you downloaded by hand: checked and copied.")
    ] = None,
    registry: Annotated[Path, typer.Option(help="The registry.")] = Path("manifests/models.yaml"),
) -> None:
    """Download published models and corpora: resumed after a break, sha256 checked before use, licence shown.

    Without names it lists what there is. Google Drive and pages with a form cannot be fetched by a program:
    such entries say what to do, and --from takes the file that you have downloaded.
    """
    from pipeline.registry import read_registry

    entries = read_registry(registry)
    if not names:
        _list(entries)
        return
    unknown = [name for name in names if name not in entries]
    if unknown:
        raise InputError(f"{registry}: no entry {unknown[0]!r}; there are {', '.join(sorted(entries))}")
    if len(names) > 1 and (source is not None or out is not None):
        raise InputError("--from and --out are for one entry at a time")
    for name in names:
        entry = entries[name]
        default = Path("data/corpus" if entry.kind == "corpus" else "models") / name
        _fetch(entry, out or default, source)


def _list(entries: "dict[str, Entry]") -> None:
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].kind, item[0])):
        how = "by hand" if entry.by_hand and not entry.files else entry.size
        typer.echo(f"{entry.kind:10} {name:32} {entry.about}{f' ({how})' if how else ''}")


def _fetch(entry: "Entry", folder: Path, source: Path | None) -> None:
    from pipeline.files import read_json, write_json

    typer.echo(f"{entry.name}: {entry.about}")
    typer.echo(f"  licence: {entry.licence}")
    if entry.size:
        typer.echo(f"  size: {entry.size}")
    if not entry.files and source is None:
        raise InputError(
            f"{entry.name} has to be downloaded by hand. {entry.by_hand} "
            f"Then: im2speech fetch {entry.name} --from FILE (or copy it to {folder}/)"
        )
    record = folder / "fetched.json"
    known: dict[str, str] = read_json(record) if record.exists() else {}
    for file in entry.files or _by_hand(source, known):
        expected = file.sha256 or known.get(file.name, "")
        found = _copy(file, folder, source, expected) if source is not None else _get(entry, file, folder, expected)
        word = "as published" if file.sha256 else "no hash is published; compared with this one from now on"
        typer.echo(f"  {folder / file.name}: sha256 {found} ({word})")
        known[file.name] = found
        write_json(record, known)
    if entry.then:
        typer.echo(f"  next: {entry.then.strip()}")


def _by_hand(source: Path | None, known: dict[str, str]) -> "list[RemoteFile]":
    """The files of an entry that lists none: whatever was downloaded."""
    from pipeline.registry import RemoteFile

    if source is None or not source.exists():
        raise InputError(f"{source}: no such file or folder (--from)")
    paths = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    return [RemoteFile(path.name, "", known.get(path.name, "")) for path in paths]


def _copy(file: "RemoteFile", folder: Path, source: Path, expected: str) -> str:
    from pipeline.fetch import check
    from pipeline.files import atomic_path

    path = source / file.name if source.is_dir() else source
    if not path.is_file():
        raise InputError(f"{path}: no such file; --from wants {file.name} or the folder that it lies in")
    found = check(path, expected)
    if path.resolve() != (folder / file.name).resolve():
        with atomic_path(folder / file.name) as temporary:
            shutil.copyfile(path, temporary)
    return found


def _get(entry: "Entry", file: "RemoteFile", folder: Path, expected: str) -> str:
    from tqdm import tqdm

    from pipeline.fetch import download

    with tqdm(desc=f"  {file.name}", unit="B", unit_scale=True, disable=None) as bar:

        def progress(have: int, total: int) -> None:
            bar.total = total or None
            bar.update(have - bar.n)

        try:
            return download(file.url, folder / file.name, sha256=expected, progress=progress)
        except InputError as error:
            raise InputError(
                f"{error}\n  By hand: download {file.url}, then im2speech fetch {entry.name} --from FILE"
            ) from error
