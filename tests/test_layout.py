"""The rules of the house: one word everywhere, imports one way, a light command line, nothing swallowed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from stages.__main__ import STAGES

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/**/*.py")])
APART = {"speech", "vision", "captioner"}
NO_TORCH = (
    "pipeline/manifest",
    "pipeline/media",
    "pipeline/tokens",
    "pipeline/corpora",
    "pipeline/runner",
    "pipeline/files",
)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_one_word_everywhere():
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    files = {path.stem for path in ROOT.glob("stages/[a-z]*.py")}
    assert set(graph) == set(STAGES) == files == set(params)
    for name, stage in graph.items():
        home = "manifests" if name == "manifest" else f"data/{name}"
        outs = [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]]
        assert all(out.startswith(home) for out in outs), name
        assert stage["params"] == [name] and f"stages/{name}.py" in stage["deps"]
        assert stage["cmd"].startswith(f"python -m stages {name}")


def test_compiled_python_is_no_dependency_of_a_stage():
    # Folders of code are dependencies: without the rule, running a stage would change what it depends on.
    ignored = Repo(str(ROOT)).dvcignore.is_ignored_dir
    assert ignored(str(ROOT / "pipeline" / "captioner" / "__pycache__"))
    assert not ignored(str(ROOT / "pipeline" / "captioner"))


def test_presets_name_known_sections():
    for path in ROOT.glob("presets/*.yaml"):
        assert set(yaml.safe_load(path.read_text())) <= {*STAGES, "use"}, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    parts = path.relative_to(ROOT).parts
    names = imports(path)
    if parts[0] == "pipeline":
        assert not any(name.split(".")[0] in ("stages", "tests", "typer", "dvc", "dvclive") for name in names)
        package = parts[1]
        others = {name.split(".")[1] for name in names if name.startswith("pipeline.")}
        if package in APART:
            assert not others & (APART - {package}), f"{path} imports {others}"
        assert package == "evaluation" or "evaluation" not in others
    elif parts[1] != "__main__.py":
        stages = {name.split(".")[1] for name in names if name.startswith("stages.")}
        assert all(name.startswith("_") or name == "tools" for name in stages), f"{path} imports {stages}"


def test_no_torch_at_module_level_where_it_is_not_needed():
    for path in MODULES:
        if str(path.relative_to(ROOT)).startswith(NO_TORCH):
            heavy = {name.split(".")[0] for name in imports(path, top_level_only=True)} & {
                "torch",
                "transformers",
            }
            assert not heavy, f"{path} imports {heavy}"


def test_environment_is_read_in_one_place():
    for path in MODULES:
        if path.name != "_settings.py":
            assert "os.environ" not in path.read_text() and "getenv" not in path.read_text(), path


def test_nothing_swallows_every_exception():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                name = getattr(node.type, "id", "") if node.type else ""
                broad = node.type is None or name in ("Exception", "BaseException")
                assert not broad or isinstance(node.body[-1], ast.Raise), f"{path}:{node.lineno}"


def test_help_imports_nothing_heavy():
    code = "import sys; from stages.__main__ import build_app; build_app(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    for heavy in ("torch", "transformers", "sklearn", "librosa", "dvc", "numpy"):
        assert f"'{heavy}'" not in done.stdout, heavy
