"""A distillation from the command line: choices checked, progress printed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hirescli.cli.options.machine import check_words, found_device, set_threads
from hirescli.cli.streams import json_visible, visible

if TYPE_CHECKING:
    from hirescli.training.distill.request import Request


def run(
    make: Callable[[], Request],
    *,
    device: str | None,
    threads: int | None,
    minutes: float | None,
    in_json: bool,
) -> None:
    """Distil what is asked for and print how it goes.

    Args:
        make: Gives the request; its model is looked for before processes are.
        device: "cpu" or "cuda"; None: what there is.
        threads: Of the CPU; None: one per core.
        minutes: After which it stops; None: no limit.
        in_json: Whether objects are printed, or words.
    """
    from hirescli.training.distill.course import Processes
    from hirescli.training.distill.distilling import distil

    check_words(device=(device, ("cpu", "cuda")))
    request = make()
    processes = Processes.found(found_device(device))
    set_threads(threads)
    log = _in_json if in_json else _in_words
    finished = distil(
        request, processes, log=log if processes.is_first else _silent,
        stop_after_seconds=math.inf if minutes is None else 60 * minutes,
    )  # fmt: skip
    if processes.is_first:
        path = str(request.output.path)
        log({"adapter": path} if finished else {"note": "stopped; this command goes on"})


def _in_json(said: Mapping[str, Any]) -> None:
    print(json_visible(json.dumps(said)), flush=True)


def _in_words(said: Mapping[str, Any]) -> None:
    if "note" in said:
        print(visible(said["note"]), flush=True)
    elif "of" in said:
        print(f"samples {said['samples']} of {said['of']}", flush=True)
    else:
        print(visible(", ".join(f"{key} {value}" for key, value in said.items())), flush=True)


def _silent(_: Mapping[str, Any]) -> None:
    pass
