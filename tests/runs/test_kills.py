"""Runs killed at random moments in every phase: the output is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = 5  # in each of eight phases


# Two processes share them: each computes with one thread.
PHASES = (
    ("loading", "base", "encoder", "finalising"),
    ("upscale", "passes", "decoder", "between stages"),
)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forty_kills_change_no_byte(tmp_path: Path) -> None:
    started = []
    for number, phases in enumerate(PHASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        started.append(
            subprocess.Popen(
                [sys.executable, Path(__file__).with_name("warm.py"), folder, str(KILLS), *phases],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    told = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    found = [json.loads(line) for out, _ in told for line in out.splitlines()]
    assert [each["phase"] for each in found] == [*PHASES[0], *PHASES[1]]
    for each in found:
        assert each["same"], each
        assert each["killed"] == KILLS, each
