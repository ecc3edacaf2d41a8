"""im2speech use: points params.yaml at a corpus, from a preset.

Reads presets/<name>.yaml, writes params.yaml with `manifest.root` set to the corpus; a preset whose `use`
block says so (digits) first makes a corpus from what lies in --root.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pipeline.errors import InputError
from pipeline.files import write_text


def command(
    preset: Annotated[str, typer.Argument(help="A file in presets/, without its ending.")],
    root: Annotated[Path, typer.Option(help="Folder of the corpus as you have it (digits: a tar will do).")],
    out: Annotated[
        Path | None, typer.Option(help="Where a preset that makes a corpus puts it; else the preset's root.")
    ] = None,
    params: Annotated[Path, typer.Option(help="The parameter file to write.")] = Path("params.yaml"),
    presets: Annotated[Path, typer.Option(help="Folder of the presets.")] = Path("presets"),
) -> None:
    """Write params.yaml for a real corpus from a preset; `dvc repro` then runs on it."""
    text, document = _read(presets, preset)
    if not root.exists():
        raise InputError(f"{root}: no such file or folder; --root is where the corpus lies")
    recipe = document.pop("use", None)
    corpus = root
    if recipe is not None:
        corpus = out or Path(document["manifest"]["root"])
        _make(recipe, root, corpus)
    elif out is not None:
        raise InputError(f"--out is for presets that make a corpus; {preset} reads --root as it is")
    write_text(params, _with_root(text, str(corpus)))
    typer.echo(f"{params}: written from {presets / preset}.yaml, manifest.root is {corpus}. Next: dvc repro")


def _read(presets: Path, name: str) -> tuple[str, dict[str, Any]]:
    path = presets / f"{name}.yaml"
    known = sorted(path.stem for path in presets.glob("*.yaml"))
    if name not in known:
        raise InputError(f"no preset {name!r}; there are {', '.join(known) or f'none in {presets}'}")
    text = path.read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    if not isinstance(document, dict) or "root" not in document.get("manifest", {}):
        raise InputError(f"{path}: a preset has a section 'manifest' with a 'root'")
    return text, document


def _make(recipe: dict[str, Any], source: Path, out: Path) -> None:
    from pipeline.corpora.digits import DigitsSize, write_digits

    options = {name: value for name, value in recipe.items() if name != "build"}
    unknown = sorted(set(options) - set(DigitsSize.__dataclass_fields__))
    if recipe.get("build") != "digits" or unknown:
        wrong = unknown[0] if unknown else f"build: {recipe.get('build')}"
        raise InputError(f"the preset's section 'use' has an unknown entry: {wrong}")
    note = write_digits(source, out, DigitsSize(**options))
    typer.echo(f"{out}: {sum(note['images'].values())} images, {note['captions']} spoken captions")


def _with_root(text: str, root: str) -> str:
    """The preset's text, comments kept, without its `use` block and with another `manifest.root`."""
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        if line[:1].isalpha():
            section = line.split(":")[0]
        if section == "manifest" and line.startswith("  root:"):
            line = f"  root: {json.dumps(root)}"  # a JSON string is a YAML string
        if section != "use":
            lines.append(line)
    return "\n".join(lines) + "\n"
