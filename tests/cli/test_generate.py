"""Whole runs with the built-in model, small."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
SMALL = ("-p", "mountains", "--size", 64, "--steps", 2)


def result(out: str) -> dict:
    last = json.loads(out.splitlines()[-1])
    assert last["event"] == "result"
    return last


def image_of(out: bytes) -> dict:
    (image,) = result(out.decode())["images"]
    return image


def test_two_seeds_and_the_same_again(hires: Callable) -> None:
    ran = hires("generate", *SMALL, "-s", 1, "-s", 2, "--json")
    assert ran.code == 0, ran.err
    first, second = result(ran.out)["images"]
    assert first["sha256"] != second["sha256"]
    again = hires("generate", *SMALL, "-s", 1, "--json", "-o", "again.tif")
    assert result(again.out)["images"][0]["sha256"] == first["sha256"]
    assert Path("again.tif").read_bytes() == Path("mountains-seed1.tif").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == [
        "again.tif", "mountains-seed1.tif", "mountains-seed2.tif",
    ]  # fmt: skip


def test_events_tell_the_story(hires: Callable) -> None:
    ran = hires("generate", *SMALL, "--json", "-o", "a.png")
    told = [json.loads(line)["event"] for line in ran.out.splitlines()]
    story = ["run_started", "stage_started", "step_done", "rows_decoded", "stage_done",
             "finalising", "file_written", "run_done", "result"]  # fmt: skip
    assert [name for name in dict.fromkeys(told) if name in story] == story
    assert told.count("step_done") == 2


def test_finished_is_left_alone(hires: Callable) -> None:
    assert hires("generate", *SMALL, "-q", "-o", "a.tif").out == "a.tif\n"
    before = Path("a.tif").stat()
    ran = hires("generate", *SMALL, "-q", "-o", "a.tif")
    assert (ran.code, ran.out) == (0, "a.tif\n")
    assert "nothing to do" in ran.err
    assert Path("a.tif").stat().st_mtime_ns == before.st_mtime_ns
    assert hires("generate", *SMALL, "-s", 9, "-o", "a.tif").code == 2
    assert hires("generate", *SMALL, "-s", 9, "-o", "a.tif", "--overwrite").code == 0
    assert json.loads(hires("info", "a.tif", "--json").out)["seed"] == 9


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
def test_recipe_in_the_image_repeats_it(hires: Callable, name: str) -> None:
    assert hires("generate", *SMALL, "-q", "-o", name).code == 0
    assert json.loads(hires("info", name, "--json").out)["prompt"] == "mountains"
    twin = f"twin{Path(name).suffix}"
    assert hires("generate", "--recipe", name, "-q", "-o", twin).code == 0
    assert Path(twin).read_bytes() == Path(name).read_bytes()


def test_two_stages(hires: Callable) -> None:
    words = ("--size", "128x64", "--steps", 2, "--upscale-steps", 1, "--json")
    ran = hires("generate", "-p", "sea", *words)
    assert ran.code == 0, ran.err
    told = [json.loads(line) for line in ran.out.splitlines()]
    kinds = [event["kind"] for event in told if event["event"] == "stage_started"]
    assert kinds == ["base", "upscale"]


def test_foreign_prompt_warns_once(hires: Callable) -> None:
    ran = hires("generate", "-p", "a tax form", "--size", 64, "--steps", 1, "-q")
    assert ran.code == 0
    assert ran.err.count("may not follow this prompt") == 1


def test_left_run_of_another_recipe(hires: Callable) -> None:
    left = Path("a.tif.run")
    left.mkdir()
    recipe = '{"prompt": "sea", "width_px": 64, "height_px": 64}'
    (left / "recipe.json").write_text(recipe)
    ran = hires("generate", *SMALL, "-o", "a.tif")
    assert ran.code == 2
    assert "--restart" in ran.err
    assert "prompt" in ran.err
    assert hires("generate", *SMALL, "-o", "a.tif", "--restart").code == 0
    assert not left.exists()


LASTING = ("-p", "sea", "--size", 128, "--steps", 20, "--json")
TOKEN = "hf_SeCrEtSeCrEtSeCrEtSeCrEtSeCrEtSeCrEt"


def until(process: subprocess.Popen[bytes], event: str, **said: object) -> None:
    """Read what a run tells until an event."""
    for line in iter(process.stdout.readline, b""):
        told = json.loads(line)
        if told["event"] == event and said.items() <= told.items():
            return
    raise AssertionError(process.communicate(timeout=60))


def test_interrupted_leaves_no_half_file_and_goes_on(
    hires_process: Callable, tmp_path: Path
) -> None:
    """The command that is shown goes on to the bytes of an undisturbed run."""
    environment = {**os.environ, "HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    words = ("generate", *LASTING, "-o", "a picture.tif")
    process = hires_process(*words, cwd=tmp_path, env=environment)
    until(process, "step_done", step=3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"Traceback" not in err
    assert not (tmp_path / "a picture.tif").exists()
    assert not list(tmp_path.glob("*.partial"))
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert left
    assert not any(TOKEN.encode() in each for each in [*left, out, err])

    shown = err.decode().split("this goes on: hires ")[1]
    resumed = hires_process(*shlex.split(shown), cwd=tmp_path)
    told, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["a picture.tif"]
    whole = hires_process("generate", *LASTING, "-o", "b.tif", cwd=tmp_path)
    whole_told = whole.communicate(timeout=120)[0]
    assert image_of(told)["sha256"] == image_of(whole_told)["sha256"]
    assert b'"went_on"' in told
    assert told.count(b'"pass_done"') < whole_told.count(b'"pass_done"')  # finished steps are not


def test_a_second_signal_ends_it_now(hires_process: Callable, tmp_path: Path) -> None:
    process = hires_process("generate", *LASTING, "-o", "a.tif", cwd=tmp_path)
    until(process, "step_done", step=3)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode in (130, 143)
    assert not (tmp_path / "a.tif").exists()
    assert (tmp_path / "a.tif.run" / "journal.jsonl").exists()


def test_reader_who_leaves_does_not_end_the_run(hires_process: Callable, tmp_path: Path) -> None:
    process = hires_process("generate", *SMALL, "--json", "-o", "a.tif", cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0, process.stderr.read()
    assert process.stderr.read() == b""
    assert (tmp_path / "a.tif").is_file()
    process.stdin.close()
    process.stderr.close()


def test_second_process_is_refused(hires_process: Callable, tmp_path: Path) -> None:
    words = ("generate", "-p", "sea", "--size", 512, "--steps", 200, "--json", "-o", "a.tif")
    first = hires_process(*words, cwd=tmp_path)
    while b"step_done" not in first.stdout.readline():
        assert first.poll() is None
    second = hires_process(*words, cwd=tmp_path)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert b"another process" in err
    first.terminate()
    first.communicate(timeout=60)
    assert first.returncode == 143


def test_killed_again_and_again(hires_process: Callable, tmp_path: Path) -> None:
    words = ("generate", "-p", "sea", "--size", 256, "--steps", 3, "--upscale-steps", 2)
    words = (*words, "--json", "-o")
    whole = hires_process(*words, "whole.tif", cwd=tmp_path).communicate(timeout=120)[0]
    for event, stage in (("step_done", 0), ("stage_done", 0), ("step_done", 1)):
        killed = hires_process(*words, "a.tif", cwd=tmp_path)
        key = "index" if event == "stage_done" else "stage_index"
        until(killed, event, **{key: stage})
        killed.kill()
        killed.communicate(timeout=60)
        assert not (tmp_path / "a.tif").exists()
    again = hires_process(*words, "a.tif", cwd=tmp_path).communicate(timeout=120)[0]
    assert image_of(again)["sha256"] == image_of(whole)["sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "whole.tif"]


def test_a_read_only_file_system_is_refused_before_the_work(
    hires: Callable, file_system: Callable[[str], Path]
) -> None:
    folder = file_system("8m")
    assert hires("generate", *SMALL, "-q", "-o", folder / "done.tif").code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for words in (
        ("-o", folder / "a.tif"),
        ("-o", folder / "done.tif", "--overwrite"),
        ("-o", "a.tif", "--spill", folder),
    ):
        ran = hires("generate", *SMALL, *words)
        assert ran.code == 2, ran.err
        assert "Traceback" not in ran.err
        assert str(folder) in ran.err
        assert not list(Path().iterdir())
    # What is finished needs no writing.
    assert hires("generate", *SMALL, "-q", "-o", folder / "done.tif").code == 0


def test_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hirescli", "plan", "-p", "sea"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "sea-seed0.tif" in done.stdout
