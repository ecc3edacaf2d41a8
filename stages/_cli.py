"""Turns a stage's `Params` and `run` into a command: every parameter a flag, params.yaml behind them.

A flag beats params.yaml, which beats the default in the code. Paths are options of the command and
stand in dvc.yaml; machine settings come from the environment (stages/_settings.py).
"""

import difflib
import inspect
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import InputError
from stages._settings import Settings, from_environment

In = Annotated[Path, typer.Option(help="Read from here.")]
Out = Annotated[Path, typer.Option(help="Write here.")]

PATHS, PARAMETERS, RUNNING = "Paths", "Parameters (default: params.yaml)", "Running"


class Section(BaseModel):
    """One section of params.yaml: typed, and a key that it does not know is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


@dataclass(frozen=True)
class StageContext:
    """How this run was asked for: `limit` (trial runs), `dry_run`, machine settings and the log."""

    stage: str
    settings: Settings
    limit: int | None = None
    dry_run: bool = False
    started: float = field(default_factory=time.monotonic)

    def log(self, **fields: Any) -> None:
        """Append one JSON line to logs/<stage>.jsonl, with the clock that outputs must not hold."""
        self.settings.logs_dir.mkdir(parents=True, exist_ok=True)
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "stage": self.stage, **fields}
        with (self.settings.logs_dir / f"{self.stage}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, default=str) + "\n")


def read_params(path: Path, section: str, known_sections: set[str]) -> dict[str, Any]:
    """One section of a params.yaml. InputError for an unknown section or a file that is not a mapping."""
    if not path.exists():
        raise InputError(f"{path}: no such file; run inside the repository or give --params FILE")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: a mapping of sections was expected")
    for name in document:
        if name not in known_sections:
            raise InputError(f"{path}: unknown section {name!r}{_nearest(name, known_sections)}")
    values = document.get(section) or {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: section {section!r} must be a mapping of parameters")
    return values


def build_params(model: type[Section], values: dict[str, Any], source: str) -> Section:
    """Validate parameters. InputError names each wrong key, what was wrong and the nearest known name."""
    try:
        return model(**values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"  {key}: unknown parameter{_nearest(key, set(model.model_fields))}")
            else:
                lines.append(f"  {key}: {problem['msg']} (got {problem['input']!r})")
        raise InputError(f"{source}:\n" + "\n".join(lines)) from error


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(str(name), sorted(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else f"; known are {', '.join(sorted(known))}"


def _flag(name: str, info: FieldInfo) -> inspect.Parameter:
    """A parameter as an option. Its own default stays None, so that we know whether it was given."""
    annotation = info.annotation
    option = typer.Option(help=info.description, show_default=False, rich_help_panel=PARAMETERS)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation | None, option],  # type: ignore[operator]
    )


def make_command(stage: ModuleType, known_sections: set[str]) -> Callable[..., None]:
    """The typer command of a stage module that has `Params` and `run(params, context, *, paths)`."""
    name = stage.__name__.rsplit(".", 1)[-1]
    model: type[Section] = stage.Params
    paths = [p for p in inspect.signature(stage.run).parameters.values() if p.name not in ("params", "context")]

    def command(**given: Any) -> None:
        params_path: Path = given.pop("params")
        limit, dry_run = given.pop("limit"), given.pop("dry_run")
        path_values = {p.name: given.pop(p.name) for p in paths}
        flags = {key: value for key, value in given.items() if value is not None and value != []}
        values = {**read_params(params_path, name, known_sections), **flags}
        params = build_params(model, values, f"{params_path}, section {name!r}, and flags")
        context = StageContext(name, from_environment(), limit=limit, dry_run=dry_run)
        if dry_run:
            print(f"{name}: {params.model_dump_json()}")
            for key, path in path_values.items():
                print(f"  {key}: {path}")
        stage.run(params, context, **path_values)
        if not dry_run:
            context.log(event="done", seconds=round(time.monotonic() - context.started, 2))

    options: list[inspect.Parameter] = []
    for p in paths:
        help_text = next((m.help for m in p.annotation.__metadata__ if hasattr(m, "help")), "")
        option = typer.Option(help=help_text, rich_help_panel=PATHS)
        options.append(p.replace(annotation=Annotated[Path, option]))
    options += [_flag(key, info) for key, info in model.model_fields.items()]
    for key, kind, default, text in (
        ("params", Path, Path("params.yaml"), "The parameter file."),
        ("limit", int | None, None, "Only this many rows a split: a trial run."),
        ("dry_run", bool, False, "Say what would be done; write nothing."),
    ):
        option = typer.Option(help=text, rich_help_panel=RUNNING)
        annotation = Annotated[kind, option]  # type: ignore[valid-type]
        options.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    command.__name__ = name
    command.__doc__ = stage.run.__doc__
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return command


def run_app(app: typer.Typer) -> None:
    """Run the app; an InputError becomes one readable message and exit code 2, never a traceback."""
    try:
        app()
    except InputError as error:
        print(f"im2speech: {error}", file=sys.stderr)
        raise SystemExit(2) from None
