"""The shell scripts of the docs run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
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
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts with what trips shells: a dash, quotes, an empty line, no last line end."""
    path = tmp_path / "prompts.txt"
    path.write_text('-mountains\n\nthe "sea" at $HOME\nstone')
    return path


def test_every_script_is_tried() -> None:
    names = {path.name for path in SCRIPTS.iterdir()}
    assert names == {
        "builtin.sh", "cards.sh", "photographs.sh", "pictures.sh", "prompts.sh", "slurm-array.sh",
    }  # fmt: skip


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


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")
def test_photographs_are_those_of_the_table(tmp_path: Path, environment: dict) -> None:
    """From a package with the listed files and one that must be left out."""
    page = (ROOT / "docs" / "photographs.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 160
    assert {row[3].rstrip(" |") for row in rows} == {"public-domain"}
    names = [row[0].removeprefix("| ") for row in rows]
    land = tmp_path / "tree" / "usr/share/games/endless-sky/images/land"
    land.mkdir(parents=True)
    for name in (*names, "beach7-sfiera.jpg"):
        (land / name).write_bytes(b"picture")
    (tmp_path / "tree" / "DEBIAN").mkdir()
    control = "Package: endless-sky-data\nVersion: 1\nArchitecture: all\n"
    control += "Maintainer: Nobody <nobody@example.org>\nDescription: photographs\n"
    (tmp_path / "tree" / "DEBIAN" / "control").write_text(control)
    command = ["dpkg-deb", "--build", "-Znone", "tree", "a.deb"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    done = run("photographs.sh", environment, tmp_path, "out", "a.deb")
    assert (done.returncode, done.stdout) == (0, "out: 160 files\n"), done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


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


@pytest.mark.parametrize("trained_on", [True, False])
def test_builtin_distils_anew_from_a_teacher_that_was_trained_on(
    tmp_path: Path, environment: dict[str, str], trained_on: bool
) -> None:
    """With a `hires` that only says what it is asked for and what is there: the script's part."""
    shim = tmp_path / "bin" / "hires"
    shim.write_text('#!/bin/sh\necho "$1 $2 $3"\n[ "$2" != linfusion ] || ls\n')
    sums = tmp_path / "made" / "teacher" / "SHA256SUMS"
    for folder in (sums.parent, tmp_path / "made" / "linfusion.run"):
        folder.mkdir(parents=True)
    for path in (tmp_path / "made" / "denoiser.pt", sums):
        path.touch()
    os.utime(sums, (1, 1) if trained_on else (2e9, 2e9))
    done = run("builtin.sh", environment, tmp_path, "made")
    assert done.returncode == 0, done.stderr
    assert ("train export teacher" in done.stdout) == trained_on
    assert ("linfusion.run" not in done.stdout) == trained_on

    (tmp_path / "made" / "linfusion.run").mkdir(exist_ok=True)
    os.utime(sums, (2e9, 2e9))
    assert "linfusion.run" in run("builtin.sh", environment, tmp_path, "made").stdout
    longer = environment | {"DISTIL": "1200"}
    assert "linfusion.run" not in run("builtin.sh", longer, tmp_path, "made").stdout


@pytest.mark.slow
def test_builtin_makes_a_model_and_goes_on(tmp_path: Path, environment: dict) -> None:
    """From shards that are there, since one takes minutes; then again, with nothing left to do."""
    random = np.random.default_rng(0)
    for folder, kinds in (
        ("shards", ("wide", "crop", "close", "detail")),
        ("held-out", ("wide",)),
    ):
        (tmp_path / "made" / folder).mkdir(parents=True)
        for kind in kinds:
            path = tmp_path / "made" / folder / f"{kind}-00000.npy"
            path.with_suffix(".json").write_text(json.dumps([["the sea"]] * 2))
            np.save(path, random.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8))
    for kind in ("close", "detail"):
        path = tmp_path / "made" / "held-out" / f"{kind}-00000.npy"
        shutil.copy(tmp_path / "made" / "shards" / path.name, path)
        shutil.copy(tmp_path / "made" / "shards" / f"{path.stem}.json", path.with_suffix(".json"))
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (256, 256), "teal").save(photographs / name)
    environment |= {"SHARDS": "1", "SHARPEN": "1", "STEPS": "1", "DISTIL": "1"}
    done = run("builtin.sh", environment, tmp_path, "made", "photographs")
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "made" / "weights"
    parts = {"vae", "unet", "linfusion", "scheduler", "SHA256SUMS"}
    assert {path.name for path in weights.iterdir()} == parts
    for state in ("autoencoder.pt", "denoiser.pt"):
        assert (tmp_path / "made" / f"{state}.png").is_file()
    states = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").glob("*.pt")}
    again = run("builtin.sh", environment, tmp_path, "made", "photographs")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in states} == states
