"""Imports point downwards only, and planning needs no torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hirescli"
# The layers of docs/design.md, the lowest first. A module imports from its own and lower ones.
LAYERS = [
    {"errors"},
    {"units", "events", "digest", "disk"},
    {"plugins"},
    {"recipe"},
    {"presets"},
    {"planning"},
    {"bands"},
    {"vae", "models", "attention"},
    {"cascade", "runs", "output", "viewer"},
    {"training", "evaluation"},
    {"cli"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
WITHOUT_TORCH = {
    "errors",
    "units",
    "digest",
    "disk",
    "events",
    "plugins",
    "recipe",
    "presets",
    "planning",
    "cli",
    "output",
    "viewer",
}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft", "safetensors"}
IMAGES = {"numpy", "tifffile", "pyvips", "PIL", "scipy", "matplotlib"}
ONLY_CLI = {"typer", "rich"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.Module) -> ast.Module:
    """The module without its function bodies and without what is for type checkers only."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else node

    return Prune().visit(tree)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    own = layer(path)
    if own in ("__init__", "__main__"):
        return
    assert own in RANK, f"{own} has no layer: add it to LAYERS and to docs/design.md"
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "hirescli" or len(parts) == 1:
            continue
        assert parts[1] in RANK, f"{path}: {parts[1]} has no layer"
        assert RANK[parts[1]] <= RANK[own], f"{path}: {own} imports {parts[1]}, above it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path: Path) -> None:
    if layer(path) != "cli":
        names = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert not names & ONLY_CLI


def test_generation_imports_no_training() -> None:
    for path in modules():
        if layer(path) in ("training", "evaluation", "cli"):
            continue
        for name in imported(ast.parse(path.read_text())):
            assert not name.startswith(("hirescli.training", "hirescli.evaluation")), path


def test_training_is_reached_from_its_own_commands_only() -> None:
    for path in (PACKAGE / "cli").glob("*.py"):
        names = set(imported(ast.parse(path.read_text())))
        if path.name not in ("train.py", "distill.py"):
            assert not any(name.startswith("hirescli.training") for name in names), path


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_imports_stay_inside_functions(path: Path) -> None:
    if layer(path) not in WITHOUT_TORCH | {"__init__", "__main__", "runs"}:
        return
    tree = ast.parse(path.read_text())
    names = {name.split(".")[0] for name in imported(at_import_time(tree))}
    forbidden = HEAVY | (IMAGES if layer(path) != "output" else set())
    assert not names & forbidden


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["generate", "--help"],
        ["plan", "-p", "mountains", "--size", "2048"],
        ["generate", "-p", "mountains", "--size", "1024", "--dry-run"],
        ["presets", "list"],
        ["presets", "show", "draft"],
        ["info", "recipe.json"],
    ],
    ids=" ".join,
)
def test_no_torch_without_a_run(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"prompt": "sea", "width_px": 512, "height_px": 512}')
    code = (
        "import sys; from hirescli.cli.app import run; code = run(sys.argv[1:]); "
        f"print(sorted({HEAVY | IMAGES!r} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_no_drawer_modules() -> None:
    names = {path.stem for path in modules()}
    assert not names & {"utils", "helpers", "common", "misc"}
