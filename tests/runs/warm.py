"""A process that has everything imported, and forks runs which it kills.

    python warm.py FOLDER KILLS PHASE...

Prints a JSON line for each phase: how often a run was killed in it, and whether the output had
the undisturbed run's SHA-256. Runs compute with one thread: those of OpenMP do not outlive a fork.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch

import hirescli
from hirescli.cascade import run as cascade_run
from hirescli.events import Event
from hirescli.runs import journal

# Where a run is killed: an event, the stage it is of (None: any), and how many of these may go
# before.
PHASES = {
    "loading": ("run_started", None, 0),
    "base": ("step_done", 0, 2),
    "encoder": ("rows_encoded", 1, 6),
    "upscale": ("step_done", 1, 1),
    "passes": ("pass_done", None, 40),
    "decoder": ("rows_decoded", 1, 6),
    "between stages": ("stage_done", 0, 0),
    "finalising": ("finalising", None, 0),
}
RECIPE = {
    "prompt": "a lake", "size": 256, "seed": 5, "steps": 3, "upscale_steps": 2, "rows": 2,
    "threads": 1,
}  # fmt: skip
SECONDS = 120.0


def run(output: Path, seen: int) -> None:
    """What a child does."""
    from hirescli.events import event_dict

    def tell(event: Event) -> None:
        said = event_dict(event)
        stage = said.get("stage_index", said.get("index"))
        os.write(seen, f"{said['event']} {stage}\n".encode())

    hirescli.generate(hirescli.Recipe.from_fragments(RECIPE), output, listener=tell)


def child(output: Path) -> tuple[int, int]:
    """Start a run; returns its process id and the pipe of its events."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    code = 1
    try:
        os.close(read)
        run(output, write)
        code = 0
    finally:
        os._exit(code)


def finish(output: Path) -> str:
    """Run to the end; returns the output's SHA-256."""
    pid, read = child(output)
    with os.fdopen(read) as events:
        events.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"a run ended with {status}"
    return hirescli.generate(hirescli.Recipe.from_fragments(RECIPE), output).sha256


def kill_in(output: Path, phase: str, count: int, delay: float) -> bool:
    """Kill a run some time behind the event of a phase; whether it was still alive."""
    pid, read = child(output)
    name, stage, _ = PHASES[phase]
    deadline = time.monotonic() + SECONDS
    with os.fdopen(read) as events:
        for line in iter(events.readline, ""):
            said, of = line.split()
            count -= said == name and of == str(stage if stage is not None else of)
            if count < 0:
                select.select([], [], [], delay)
                os.kill(pid, signal.SIGKILL)
                break
            assert time.monotonic() < deadline
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or status == 0, f"a run ended with {status}"
    return os.WIFSIGNALED(status)


def main(folder: Path, kills: int, phases: list[str]) -> None:
    torch.set_num_threads(1)
    assert cascade_run is not None  # imported before the first fork
    journal._LEAST_SECONDS, journal._SHARE = 0.05, 1e9  # many snapshots
    moments = random.Random(7)
    wanted = finish(folder / "undisturbed.tif")
    for phase in phases:
        _, _, most = PHASES[phase]
        killed, outputs = 0, [folder / f"{phase}-0.tif"]
        for _ in range(5 * kills):
            if killed == kills:
                break
            if not kill_in(outputs[-1], phase, moments.randint(0, most), moments.random() * 0.05):
                outputs.append(folder / f"{phase}-{len(outputs)}.tif")  # that one is finished
            else:
                killed += 1
        same = all(finish(output) == wanted for output in outputs)
        sys.stdout.write(json.dumps({"phase": phase, "killed": killed, "same": same}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
