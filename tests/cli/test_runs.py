"""`hires runs`: what is left is listed, shown with the command that goes on, and removed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hirescli.planning.machine import Machine
from hirescli.recipe import Recipe
from hirescli.runs.batch import Planner
from hirescli.runs.directory import RunDirectory, run_path
from hirescli.runs.journal import Journal

MACHINE = Machine(cores=2, memory_bytes=64 * 10**9)


def leave(output: str | Path, age_days: float = 0.0, **choices: Any) -> Path:
    """A run directory as a process that ended leaves it."""
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    recipe = Recipe.from_fragments({"prompt": "a red dune", "size": 128, "steps": 5} | choices)
    plan = Planner(MACHINE).plan(recipe)
    memory = {"torch": "1", "memory": str(plan.budgets.memory_bytes), "host memory": "None"}
    made = RunDirectory(output, recipe=plan.recipe, conditions=memory, plan_json=plan.to_json())
    made.spool(0).write_bytes(b"x" * 100_000)
    made.release()
    then = time.time() - age_days * 86_400
    for path in run_path(output).iterdir():
        os.utime(path, (then, then))
    return run_path(output)


HOLDER = """
    import sys, time
    from pathlib import Path
    from filelock import FileLock
    with FileLock(Path(sys.argv[1]) / "lock"):
        print("locked", flush=True)
        time.sleep(60)
"""


@contextmanager
def at_work(path: Path) -> Iterator[None]:
    """A process that works in a run directory."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        yield
        holder.kill()


def listed(hires: Callable, *words: object) -> list[dict[str, Any]]:
    ran = hires("runs", "list", "--json", *words)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def names(found: list[dict[str, Any]]) -> list[str]:
    return [each["output"] for each in found]


def test_every_option_says_its_default() -> None:
    from typer.main import get_command

    from hirescli.cli.app import app

    for command in get_command(app).commands["runs"].commands.values():
        for parameter in command.params:
            assert parameter.name in ("json_", "run") or "Default:" in parameter.help


def test_list_looks_three_levels_deep_and_at_ours_only(hires: Callable) -> None:
    for output in ("a.tif", "one/b.png", "one/two/c.jpg", "one/two/three/d.tif"):
        leave(output)
    Path("user.tif.run").mkdir()
    Path("user.tif.run/diary.txt").write_text("mine")
    Path("program.run").mkdir()
    Path("program.run/lock").write_text("")
    Path("link.tif.run").symlink_to("a.tif.run")
    Path("loop").symlink_to(".")
    assert names(listed(hires)) == ["a.tif", "one/b.png", "one/two/c.jpg"]
    assert names(listed(hires, "one")) == ["one/b.png", "one/two/c.jpg", "one/two/three/d.tif"]
    ran = hires("runs", "list")
    assert ran.code == 0
    assert "one/two/c.jpg" in ran.out
    assert "0 of 2 stages finished" in ran.out
    assert "kB" in ran.out


def test_list_of_nothing(hires: Callable) -> None:
    ran = hires("runs", "list")
    assert (ran.code, ran.out) == (0, "")
    assert "no run directories here" in ran.err
    assert listed(hires) == []
    for place in ("missing", "a\nb"):
        ran = hires("runs", "list", place)
        assert ran.code == 2
        assert "is no folder" in ran.err


def test_list_says_how_far_and_who_works(hires: Callable) -> None:
    path = leave("a.tif", age_days=3)
    facts = [
        {"key": "stage-0.call-0.result", "file": "x"},
        {"key": "stage-0.done", "rows": []},
        {"key": "dropped", "beginning": "stage-0.", "but": ""},
        {"key": "stage-1.call-0.result", "file": "x"},
        {"key": "stage-1.call-1.result", "file": "x"},
        {"key": "stage-1.call-2.under-way", "file": "x"},
    ]
    lines = "".join(json.dumps({"sum": "", "fact": fact}) + "\n" for fact in facts)
    (path / "journal.jsonl").write_text(lines + '{"torn')
    with at_work(path):
        (found,) = listed(hires)
    assert found["state"] == "1 of 2 stages finished, 2 calls of the next"
    assert found["at_work"]
    assert found["size_bytes"] >= 100_000
    (found,) = listed(hires)
    assert not found["at_work"]


def test_age(hires: Callable) -> None:
    leave("a.tif", age_days=3.2)
    (found,) = listed(hires)
    assert found["age_seconds"] == pytest.approx(3.2 * 86_400, abs=100)
    assert "3 d" in hires("runs", "list").out


@pytest.mark.parametrize("name", ["recipe.json", "plan.json"])
def test_damaged_ones_are_listed_and_removed(hires: Callable, name: str) -> None:
    (leave("a.tif") / name).write_text('{"torn')
    (found,) = listed(hires)
    assert found["state"] == "recipe or plan is damaged"
    assert hires("runs", "show", "a.tif").code == 0
    assert hires("runs", "clean", "--yes").code == 0
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("named", ["a b.tif", "a b.tif.run", "./a b.tif.run/"])
def test_show(hires: Callable, named: str) -> None:
    leave("a b.tif")
    ran = hires("runs", "show", named)
    assert ran.code == 0, ran.err
    for text in ('prompt = "a red dune"', "1 base, 64x64, 5 steps: not finished", "torch = 1",
                 "0 of 2 stages", "hires generate --recipe"):  # fmt: skip
        assert text in ran.out
    told = json.loads(hires("runs", "show", named, "--json").out)
    assert told["recipe"]["prompt"] == "a red dune"
    words = shlex.split(told["command"])
    assert words[:3] == ["hires", "generate", "--recipe"]
    assert Path(words[3]).is_file()
    assert words[-2:] == ["-o", "a b.tif"]


@pytest.mark.parametrize("named", ["missing.tif", ".", "mine.tif"])
def test_show_of_none(hires: Callable, named: str) -> None:
    Path("mine.tif").write_text("x")
    ran = hires("runs", "show", named)
    assert ran.code == 2
    assert "no run directory" in ran.err


def test_clean_needs_yes_where_nobody_can_be_asked(hires: Callable) -> None:
    leave("a.tif")
    for words in ((), ("--json",)):
        ran = hires("runs", "clean", *words)
        assert ran.code == 2
        assert "--yes" in ran.err
    assert names(listed(hires)) == ["a.tif"]
    ran = hires("runs", "clean", "--yes")
    assert (ran.code, ran.out) == (0, "a.tif.run\n")
    assert list(Path().iterdir()) == []
    assert hires("runs", "clean").code == 0  # there is nothing to ask about


def test_clean_takes_what_is_named(hires: Callable) -> None:
    for output in ("a.tif", "b.tif", "one/c.tif"):
        leave(output)
    Path("a.tif").write_text("the picture itself stays")
    ran = hires("runs", "clean", "--yes", "--json", "a.tif", "one", "one/c.tif.run")
    assert ran.code == 0, ran.err
    assert [each["run"] for each in json.loads(ran.out)["removed"]] == [
        "a.tif.run",
        "one/c.tif.run",
    ]
    assert names(listed(hires)) == ["b.tif"]
    assert Path("a.tif").exists()
    ran = hires("runs", "clean", "--yes", "missing")
    assert ran.code == 2
    assert "missing" in ran.err


def test_clean_by_age(hires: Callable) -> None:
    leave("old.tif", age_days=8)
    leave("new.tif", age_days=6)
    assert hires("runs", "clean", "--yes", "--older-than", "7d").out == "old.tif.run\n"
    for age in ("7", "d", "-1d", "1y", "nan", ""):
        ran = hires("runs", "clean", "--yes", "--older-than", age)
        assert ran.code == 2
        assert "12h" in ran.err


def test_clean_leaves_work_and_what_is_not_ours(hires: Callable) -> None:
    path = leave("a.tif")
    Path("user.tif.run").mkdir()
    Path("user.tif.run/diary.txt").write_text("mine")
    with at_work(path):
        ran = hires("runs", "clean", "--yes")
    assert (ran.code, ran.out) == (0, "")
    assert "a process works in it" in ran.err
    assert path.is_dir()
    (path / "notes.txt").write_text("mine")
    ran = hires("runs", "clean", "--yes")
    assert ran.code == 1
    assert "files that no run made" in ran.err
    assert [each.name for each in path.iterdir()] == ["notes.txt"]
    assert Path("user.tif.run/diary.txt").exists()


def test_kept_runs_go_only_by_name(hires: Callable) -> None:
    left = leave("a.tif")
    (left / "kept").touch()
    Path("a.tif").touch()
    assert not listed(hires)[0]["kept"]  # it is not finished yet
    journal = Journal(left, print)
    journal.note("stage-0.done")
    journal.note("stage-1.done")
    (found,) = listed(hires)
    assert (found["state"], found["kept"]) == ("finished and kept", True)
    assert "--from-latents a.tif.run" in hires("runs", "show", "a.tif").out
    ran = hires("runs", "clean", "--yes")
    assert (ran.code, ran.out) == (0, "")
    assert "shall be kept" in ran.err
    assert hires("runs", "clean", "--yes", "a.tif.run").out == "a.tif.run\n"


def test_odd_names_do_not_steer_the_terminal(hires: Callable) -> None:
    leave("a\x1b[31m\n.tif")
    for words in (("list",), ("show", "a\x1b[31m\n.tif"), ("clean", "--yes")):
        ran = hires("runs", *words)
        assert ran.code == 0, ran.err
        assert "\x1b" not in ran.out + ran.err


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("answer", "stays"), [("y", False), ("n", True)])
def test_clean_asks_on_a_terminal(tmp_path: Path, answer: str, stays: bool) -> None:
    path = leave(tmp_path / "a.tif")
    ours, theirs = os.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "hirescli", "runs", "clean"],
        cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    process.wait(timeout=60)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "Remove 1 run directories?" in shown
    assert path.is_dir() == stays


@pytest.mark.slow
def test_the_command_shown_goes_on(hires_process: Callable, tmp_path: Path) -> None:
    """Of a run with choices on its command line, down to the same bytes."""
    words = ("-p", "sea", "--size", 128, "--steps", 12, "--memory", "2GB", "--no-metadata")
    process = hires_process("generate", *words, "--json", "-o", "a.tif", cwd=tmp_path)
    while b"step_done" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    shown = hires_process("runs", "show", "a.tif", "--json", cwd=tmp_path)
    told = json.loads(shown.communicate(timeout=60)[0])
    assert not told["at_work"]
    again = hires_process(*shlex.split(told["command"])[1:], "-q", cwd=tmp_path)
    out, err = again.communicate(timeout=300)
    assert (again.returncode, out) == (0, b"a.tif\n"), err
    assert not (tmp_path / "a.tif.run").exists()
    whole = hires_process("generate", *words, "-q", "-o", "b.tif", cwd=tmp_path)
    whole.communicate(timeout=300)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
