"""Listeners show events; the bar counts planned operations."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hirescli import events
from hirescli.cli.progress import Display, JsonLines, Lines, Work, listening, seconds_left
from hirescli.cli.streams import Patient
from hirescli.models.registry import find_card
from hirescli.planning.machine import Machine
from hirescli.planning.plan import Plan, make_plan
from hirescli.recipe import Recipe


@pytest.fixture
def plan() -> Plan:
    recipe = Recipe(prompt="sea", width_px=256, height_px=256, seed=1)
    machine = Machine(cores=2, memory_bytes=8 * 10**9)
    return make_plan(recipe, find_card("builtin"), machine=machine)


def story(plan: Plan) -> list[events.Event]:
    """The events of a run of this plan."""
    told: list[events.Event] = [
        events.RunStarted(plan),
        events.Warned("odd"),
        events.Warned("odd"),
    ]
    for stage in plan.stages:
        told.append(
            events.StageStarted(
                stage.index, len(plan.stages), stage.kind, stage.width_px, stage.height_px,
                stage.steps,
            )
        )  # fmt: skip
        if stage.kind == "upscale":
            told.append(events.RowsEncoded(stage.index, stage.height_px, stage.height_px))
        told += [
            events.StepDone(stage.index, step + 1, stage.steps, 0.1) for step in range(stage.steps)
        ]
        told.append(events.RowsDecoded(stage.index, stage.height_px, stage.height_px))
        told.append(events.StageDone(stage.index, 12.0))
    path = Path("sea.tif")
    told.append(events.Finalising(path, "tiff"))
    told += [events.FileWritten(path, 10**6, 1.0), events.RunDone(path, 75.0, 2 * 10**9)]
    return told


@pytest.mark.parametrize(
    ("model", "choices"),
    [("builtin", {}), ("builtin", {"method": "skip"}), ("sd15", {"vae_mode": "tiled"})],
)
def test_work_grows_from_0_to_1(model: str, choices: dict[str, str]) -> None:
    recipe = Recipe.from_fragments({"prompt": "sea", "size": 1024, "model": model}, choices)
    machine = Machine(cores=2, memory_bytes=32 * 10**9)
    plan = make_plan(recipe, find_card(model), machine=machine)
    work = Work(plan)
    seen = []
    for event in story(plan):
        work.take(event)
        seen.append(work.fraction)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)


def test_an_earlier_run_is_no_work_of_this_one(plan: Plan) -> None:
    work, told = Work(plan), story(plan)
    last = [event for event in told if getattr(event, "stage_index", None) == 2]
    work.take(events.WentOn(2, 3))
    assert work.fraction == 0
    assert 0 < work.share < 1
    for event in last:
        work.take(event)
    assert work.fraction == pytest.approx(1)
    work.take(events.WentOn(3, 3))
    assert work.fraction == 1


def test_time_left_is_planned_first_and_measured_later() -> None:
    assert seconds_left(0, 0, 60) == 60
    assert seconds_left(10, 0.5, 60) == 10
    assert seconds_left(100, 0, 60) == 0
    assert 40 < seconds_left(3, 0.05, 60) < 57.1
    assert seconds_left(10, 1, 60) == 0


def test_lines(plan: Plan) -> None:
    out = io.StringIO()
    listener = Lines(Console(file=out, width=100))
    for event in story(plan):
        listener(event)
    shown = out.getvalue()
    assert shown.count("warning: odd") == 1
    for text in ("stage 1/3 base 64x64", "12 s", "sea.tif", "1 min 15 s", "2.0 GB"):
        assert text in shown
    assert "\x1b" not in shown


def test_quiet_lines_warn_only(plan: Plan) -> None:
    out = io.StringIO()
    listener = Lines(Console(file=out, width=100), only_warnings=True)
    for event in story(plan):
        listener(event)
    assert out.getvalue() == "warning: odd\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_nobody_reading_ends_no_run(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    reader, writer = os.pipe()
    with open(writer, "w", buffering=1) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(Patient, "isatty", lambda _: terminal, raising=False)
        with listening(as_json=False, quiet=False) as listener:
            assert isinstance(listener, Display if terminal else Lines)
            for number, event in enumerate(story(plan)):
                if number == 2:
                    os.close(reader)
                listener(event)


def test_display(plan: Plan) -> None:
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=120, color_system=None)
    with Display(terminal, clock=lambda: 5.0) as display:
        for event in story(plan):
            display(event)
            display.refresh()
    shown = out.getvalue()
    for text in ("stage 3/3 upscale 256x256", "decoded rows 256/256", "left, peak memory"):
        assert text in shown
    assert "wrote sea.tif" in shown


def test_json_lines(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    listener = JsonLines()
    for event in story(plan):
        listener(event)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[0] == {"event": "run_started"}
    assert told[-1]["peak_rss_bytes"] == 2 * 10**9
