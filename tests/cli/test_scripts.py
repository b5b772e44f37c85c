"""The shell scripts of the docs run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "docs" / "scripts"
SMALL = ("--size", "64", "--steps", "1")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose `hires` is this source tree."""
    programs = tmp_path / "bin"
    programs.mkdir()
    shim = programs / "hires"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hirescli "$@"\n')
    shim.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(
    script: str, environment: dict[str, str], folder: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPTS / script), *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts with what trips shells: a dash, quotes, an empty line, no last line end."""
    path = tmp_path / "prompts.txt"
    path.write_text('-mountains\n\nthe "sea" at $HOME\nstone')
    return path


def test_every_script_is_tried() -> None:
    names = {path.name for path in SCRIPTS.iterdir()}
    assert names == {"cards.sh", "pictures.sh", "prompts.sh", "slurm-array.sh"}


def test_prompts_plans_each_line(tmp_path: Path, prompts: Path, environment: dict) -> None:
    done = run("prompts.sh", environment, tmp_path, str(prompts), "out", *SMALL, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("mountains-seed0.tif", "the-sea-at-home-seed0.tif", "stone-seed0.tif"):
        assert f"out/{name}" in done.stdout
    assert "3 jobs to make" in done.stdout


def test_prompts_goes_on_after_a_failure(tmp_path: Path, prompts: Path, environment: dict) -> None:
    prompts.write_text("\x01sea\nstone\n")
    done = run("prompts.sh", environment, tmp_path, str(prompts), "out", *SMALL, "--dry-run")
    assert done.returncode == 3
    assert "line 1: " in done.stderr
    assert "out/stone-seed0.tif" in done.stdout


def test_cards_tells_what_cards_take(tmp_path: Path, environment: dict) -> None:
    done = run("cards.sh", environment, tmp_path, "sd15", "1024")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[1] == "|---" * 7 + "|"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 8GB", "| 12GB", "| 24GB", "| 80GB"]


def test_slurm_array_takes_its_share(tmp_path: Path, prompts: Path, environment: dict) -> None:
    environment |= {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "3"}
    words = (str(prompts), "out", *SMALL, "--dry-run")
    done = run("slurm-array.sh", environment, tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "out/the-sea-at-home-seed0.tif" in done.stdout
    assert "1 job to make" in done.stdout


def test_slurm_array_without_slurm(tmp_path: Path, prompts: Path, environment: dict) -> None:
    done = run("slurm-array.sh", environment, tmp_path, str(prompts), "out")
    assert done.returncode != 0
    assert "SLURM_ARRAY_TASK_ID" in done.stderr


@pytest.mark.slow
def test_prompts_makes_images(tmp_path: Path, environment: dict) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("mountains\nsea\n")
    done = run("prompts.sh", environment, tmp_path, str(prompts), "out", *SMALL, "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["out/mountains-seed0.tif", "out/sea-seed0.tif"]
    assert all((tmp_path / name).is_file() for name in done.stdout.split())


@pytest.mark.slow
def test_pictures_makes_a_sheet(tmp_path: Path, environment: dict) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("peaks 1 mountains\nwaves 2 the sea\n")
    environment |= {"LIST": str(listed), "SIZE": "64", "CELL_PX": "32", "PYTHON": sys.executable}
    done = run("pictures.sh", environment, tmp_path, "out", "--steps", "1", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["out/peaks.jpg", "out/waves.jpg", "out/sheet.jpg"]
    with Image.open(tmp_path / "out" / "sheet.jpg") as sheet:
        assert sheet.size == (64, 32)
