"""Runs that end for real reasons, and go on: full disks, damaged files, other machines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import hirescli
from hirescli.errors import RequestError, RunError
from hirescli.events import (
    Event,
    Finalising,
    RowsDecoded,
    StageDone,
    StageStarted,
    StepDone,
    Warned,
    WentOn,
)
from hirescli.recipe import Recipe
from hirescli.runs import journal

pytestmark = pytest.mark.slow
CHOICES = {"prompt": "a lake", "size": 128, "seed": 3, "steps": 3, "upscale_steps": 2, "rows": 2}


class Ended(BaseException):
    """What a signal does."""


def recipe(**more: object) -> Recipe:
    return Recipe.from_fragments(CHOICES, more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of an undisturbed run's output."""
    return hirescli.generate(recipe(), tmp_path_factory.mktemp("whole") / "out.tif").sha256


def end_at(kind: type, index: int) -> Callable[[Event], None]:
    """A listener that ends the run at an event of a stage."""

    def tell(event: Event) -> None:
        of = getattr(event, "stage_index", getattr(event, "index", None))
        if isinstance(event, kind) and of == index:
            raise Ended

    return tell


def ended(output: Path, kind: type = StepDone, index: int = 1) -> Path:
    """A run that ended there; returns its directory."""
    with pytest.raises(Ended):
        hirescli.generate(recipe(), output, listener=end_at(kind, index))
    return output.with_name(output.name + ".run")


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_what_is_finished_is_not_made_again(tmp_path: Path, whole: str) -> None:
    ended(tmp_path / "out.tif")
    told: list[Event] = []
    made = hirescli.generate(recipe(), tmp_path / "out.tif", listener=told.append)
    assert made.sha256 == whole
    assert WentOn(1, 2) in told
    assert [event.index for event in told if isinstance(event, StageStarted)] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stage-0.spool.tif", StepDone),
        ("last.spool.tif", StageDone),
        ("journal.jsonl", StepDone),
        ("stage-1.encoder-0", StepDone),
        ("stage-1.latents", StageDone),
        ("stage-1.latents", RowsDecoded),
    ],
)
def test_one_flipped_bit_costs_time_only(
    tmp_path: Path, whole: str, name: str, kind: type
) -> None:
    folder = ended(tmp_path / "out.tif", kind, 1)
    found = [path for path in folder.iterdir() if path.name.startswith(name)]
    (path,) = found
    flip(path)
    told: list[Event] = []
    assert hirescli.generate(recipe(), tmp_path / "out.tif", listener=told.append).sha256 == whole
    said = [event.message for event in told if isinstance(event, Warned)]
    read = (name, kind) != ("stage-1.latents", StageDone)  # the picture behind them stands
    assert bool(said) == read
    assert all("made again" in each for each in said)


def test_a_journal_without_its_recipe_is_of_that_run_only(tmp_path: Path) -> None:
    """A kill while a run directory is removed leaves some of its files."""
    folder = ended(tmp_path / "out.tif")
    (folder / "recipe.json").unlink()
    (folder / "plan.json").unlink()
    other = recipe(prompt="red dunes")
    wanted = hirescli.generate(other, tmp_path / "other.tif").sha256
    told: list[Event] = []
    assert hirescli.generate(other, tmp_path / "out.tif", listener=told.append).sha256 == wanted
    assert not [event for event in told if isinstance(event, WentOn)]


def test_a_disk_that_fills_up_ends_the_run_which_then_goes_on(
    file_system: Callable[[str], Path], whole: str
) -> None:
    folder = file_system("8m")
    filler = folder / "filler"

    def fill(event: Event) -> None:
        if isinstance(event, StepDone | Finalising):
            with filler.open("wb") as file:
                free = os.statvfs(folder)
                file.write(bytes(free.f_bavail * free.f_frsize))

    with pytest.raises(RunError) as caught:
        hirescli.generate(recipe(), folder / "out.tif", listener=fill)
    assert "No space" in str(caught.value) or "full" in str(caught.value)
    assert not (folder / "out.tif").exists()
    assert not list(folder.glob("*.partial"))
    filler.unlink()
    assert hirescli.generate(recipe(), folder / "out.tif").sha256 == whole


@pytest.mark.parametrize(
    ("key", "now"), [("torch", "0.1"), ("processor features", "none"), ("memory", "1")]
)
def test_other_conditions_are_refused_by_name(tmp_path: Path, key: str, now: str) -> None:
    folder = ended(tmp_path / "out.tif", StepDone, 0)
    left = json.loads((folder / "conditions.json").read_text())
    (folder / "conditions.json").write_text(json.dumps(left | {key: now}))
    with pytest.raises(RequestError, match=f"{key}.*--restart"):
        hirescli.generate(recipe(), tmp_path / "out.tif")
    assert (folder / "journal.jsonl").exists()


@pytest.mark.parametrize("named", ["out.jpg", "out.png", "out_files", "out.dzi"])
def test_what_is_whole_is_only_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A run that ends before one of its files gets its name; no file says its recipe."""
    choices = recipe(format="tiles", metadata=False, size=64)
    folders = tmp_path / "whole", tmp_path / "cut"
    also = [["out.jpg", "out.png"], []][named.startswith("out_")]

    def generate(folder: Path, listener: Callable[[Event], None]) -> hirescli.Result:
        files = [folder / name for name in also]
        return hirescli.generate(choices, folder / "out.dzi", also=files, listener=listener)

    for folder in folders:
        folder.mkdir()
    wanted = generate(folders[0], lambda event: None)
    for function in ("link", "rename"):
        real = getattr(os, function)

        def ending(source: Path, target: Path, real: Callable[..., None] = real) -> None:
            if Path(target) == folders[1] / named:
                raise Ended
            real(source, target)

        monkeypatch.setattr(os, function, ending)
    with pytest.raises(Ended):
        generate(folders[1], lambda event: None)
    monkeypatch.undo()
    told: list[Event] = []
    made = generate(folders[1], told.append)
    assert not told  # nothing is computed, nor written
    assert made.sha256 == wanted.sha256
    files = [sorted(path.relative_to(f) for path in f.rglob("*")) for f in folders]
    assert files[0] == files[1]


def test_a_file_that_came_in_the_way_is_not_taken_for_ours(tmp_path: Path) -> None:
    output, choices = tmp_path / "out.png", recipe(size=64, metadata=False)

    def appear(event: Event) -> None:
        if isinstance(event, Finalising):
            output.write_text("of somebody else")

    with pytest.raises(RunError, match="appeared"):
        hirescli.generate(choices, output, listener=appear)
    with pytest.raises(RequestError, match="exists"):
        hirescli.generate(choices, output)
    assert output.read_text() == "of somebody else"


def test_another_recipe_is_refused_with_both_values(tmp_path: Path) -> None:
    ended(tmp_path / "out.tif", StepDone, 0)
    with pytest.raises(RequestError, match=r"seed \(3, now 4\)"):
        hirescli.generate(recipe(seed=4), tmp_path / "out.tif")


def test_a_missing_guide_does_not_cost_what_is_finished(tmp_path: Path) -> None:
    """A run that cannot go on now can go on later."""
    folder = ended(tmp_path / "out.tif")
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(RequestError):
        hirescli.generate(recipe(steps=2), tmp_path / "out.tif")
    assert {path.name for path in folder.iterdir()} == before


def test_halved_bands_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str
) -> None:
    """After memory ran out once, a later process halves at the same place: same bits."""
    from hirescli.bands.execute import _PassRun

    band, calls = _PassRun._band, [0]

    def scarce(run: object, each: object) -> None:
        calls[0] += 1
        if calls[0] == 40:
            raise MemoryError
        band(run, each)  # type: ignore[arg-type]

    monkeypatch.setattr(_PassRun, "_band", scarce)
    once = hirescli.generate(recipe(), tmp_path / "once.tif").sha256
    calls[0] = 0
    monkeypatch.setattr(journal, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(journal, "_SHARE", 1e9)
    ended(tmp_path / "out.tif", StepDone, 1)
    assert hirescli.generate(recipe(), tmp_path / "out.tif").sha256 == once


def test_latents_of_a_kept_run_are_decoded_again(tmp_path: Path, whole: str) -> None:
    from hirescli.cascade.run import run
    from hirescli.planning.machine import Machine

    machine = Machine.detect()
    first = hirescli.plan(recipe()).validate(machine, tmp_path / "one.tif")
    (one,) = run([first], keep_runs=True)
    again = hirescli.plan(recipe(format="png")).validate(machine, tmp_path / "two.png")
    told: list[Event] = []
    run([again], told.append, latents=tmp_path / "one.tif.run")
    assert one.sha256 == whole
    assert not any(isinstance(event, StepDone) for event in told)
    other = hirescli.plan(recipe(seed=9)).validate(machine, tmp_path / "three.tif")
    with pytest.raises(RequestError, match="differs in seed"):
        run([other], latents=tmp_path / "one.tif.run")
    assert not (tmp_path / "three.tif.run").exists()

    with pytest.raises(RequestError, match="run directory of this output"):
        run([first], latents=tmp_path / "one.tif.run")
    (latents,) = (tmp_path / "one.tif.run").glob("*latents*.record")
    flip(latents)
    fourth = hirescli.plan(recipe(format="png")).validate(machine, tmp_path / "four.png")
    with pytest.raises(RequestError, match="damaged"):
        run([fourth], latents=tmp_path / "one.tif.run")
    assert not (tmp_path / "four.png.run").exists()


def test_adopted_latents_are_never_drawn_anew(tmp_path: Path) -> None:
    from hirescli.cascade.run import run
    from hirescli.planning.machine import Machine

    machine = Machine.detect()
    first = hirescli.plan(recipe()).validate(machine, tmp_path / "one.tif")
    run([first], keep_runs=True)
    again = hirescli.plan(recipe(format="png")).validate(machine, tmp_path / "two.png")
    with pytest.raises(Ended):
        run([again], end_at(RowsDecoded, 1), latents=tmp_path / "one.tif.run")
    (latents,) = (tmp_path / "two.png.run").glob("*latents*.record")
    flip(latents)
    with pytest.raises(RunError, match="--from-latents again"):
        run([again])


def test_a_kept_run_stays_when_its_output_is_made_again(tmp_path: Path) -> None:
    from hirescli.cascade.run import run
    from hirescli.planning.machine import Machine

    plan, machine = hirescli.plan(recipe()), Machine.detect()
    run([plan.validate(machine, tmp_path / "out.tif")], keep_runs=True)
    told: list[Event] = []
    run([plan.validate(machine, tmp_path / "out.tif", overwrite=True)], told.append)
    assert not [event for event in told if isinstance(event, StageStarted)]
    assert (tmp_path / "out.tif.run" / "journal.jsonl").exists()
