"""Joins the stages and the tools beside them into one command: `im2speech` or `python -m stages`."""

import importlib
import keyword
from types import ModuleType

import typer

from stages._cli import make_command, run_app

STAGES = (
    "demo",
    "manifest",
    "features",
    "kmeans",
    "units",
    "vqgan",
    "images",
    "shards",
    "vocoder",
    "train",
    "evaluate",
)
TOOLS = ("caption", "tokens", "use", "fetch", "import", "export", "pretrain", "times")


def build_app() -> typer.Typer:
    """The typer app: one command a stage, in the order of the graph, then the tools."""
    app = typer.Typer(
        name="im2speech",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Images with spoken captions -> discrete tokens -> an image-to-speech captioner. "
        "`dvc repro` runs the stages end to end; each stage is also a command by itself.",
    )
    for name in STAGES:
        stage = importlib.import_module(f"stages.{name}")
        app.command(name, rich_help_panel="Stages", help=_help(stage))(make_command(stage, set(STAGES)))
    for name in TOOLS:
        tool = importlib.import_module(f"stages.tools.{name}{'_' if keyword.iskeyword(name) else ''}")
        if isinstance(tool.command, typer.Typer):
            app.add_typer(tool.command, name=name, rich_help_panel="Tools")
        else:
            app.command(name, rich_help_panel="Tools")(tool.command)
    return app


def _help(stage: ModuleType) -> str:
    return (stage.run.__doc__ or "").strip()


def main() -> None:
    """Entry point of the console script."""
    run_app(build_app())


if __name__ == "__main__":
    main()
