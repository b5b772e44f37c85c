"""What a batch takes beside making its pictures: its start, and what goes between jobs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.errors import RunError

JOBS = 20
_PROMPTS = (
    "golden sand dunes at dawn",
    "the sea at night",
    "snowy mountains",
    "an agate, polished",
)
_BEGINS = ("stage_started", "finalising")
_ENDS = {"stage_done": "stages", "file_written": "writing"}


@dataclass(frozen=True)
class BatchRun:
    """One `hires batch` in a process of its own, timed from outside by its events.

    Attributes:
        jobs: Pictures.
        width_px: Of each.
        height_px: Of each.
        seconds: From the start of the process to its end.
        start_seconds: Until the first picture began: imports, planning, loading the model.
        stages_seconds: Between the beginnings and ends of stages: model calls.
        writing_seconds: Between the beginnings and ends of files.
    """

    jobs: int
    width_px: int
    height_px: int
    seconds: float
    start_seconds: float
    stages_seconds: float
    writing_seconds: float

    @property
    def outside_share(self) -> float:
        """The share of the time that is neither in stages nor in writing."""
        return 1 - (self.stages_seconds + self.writing_seconds) / self.seconds


def batch_run(width_px: int, height_px: int, jobs: int = JOBS) -> BatchRun:
    """Make `jobs` pictures of the built-in model in one batch.

    Raises:
        RunError: If the batch fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.jsonl"
        lines = ({"prompt": _PROMPTS[i % len(_PROMPTS)], "seed": i} for i in range(jobs))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        words = ["batch", str(path), "--size", f"{width_px}x{height_px}", "-o", folder, "--json"]
        began = time.monotonic()
        start, spent = _follow([sys.executable, "-m", "hirescli", *words], began)
        seconds = time.monotonic() - began
    return BatchRun(jobs, width_px, height_px, seconds, start, spent["stages"], spent["writing"])


def _follow(command: list[str], began: float) -> tuple[float, dict[str, float]]:
    """Run a command that tells events; when the first picture began, and what they took."""
    start, since = 0.0, began
    spent = {"stages": 0.0, "writing": 0.0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            now, told = time.monotonic(), _event(line)
            if told == "run_started" and not start:
                start = now - began
            elif told in _BEGINS:
                since = now
            elif told in _ENDS:
                spent[_ENDS[told]] += now - since
        said = child.stderr.read().decode(errors="replace").strip()
    if child.returncode:
        raise RunError(f"hires batch ended with {child.returncode}: {said}")
    return start, spent


def _event(line: bytes) -> Any:
    return json.loads(line)["event"]
