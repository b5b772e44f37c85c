"""A batch as it is asked for: its jobs, and what they share, checked for all of them together."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hirescli.cli.batching.defaults import Defaults
from hirescli.cli.batching.options import BatchOptions, SharedOptions
from hirescli.cli.request import distinct_seeds, limits
from hirescli.errors import RequestError
from hirescli.planning.machine import Machine
from hirescli.runs.batch import Planner
from hirescli.runs.jobs import STDIN, Job, Template, read_jobs, seeded, shard_of

_RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Batch:
    """Jobs, and what they share.

    Attributes:
        source: How messages call their file.
        all_jobs: Of all shards, those without a seed once for each seed.
        jobs: Of this shard.
        folder: Of the outputs; it is there.
        template: Names outputs that their jobs do not name.
        results_path: Where rows go.
        machine: Where the images are made.
        planner: Plans them.
        defaults: What jobs do not say.
    """

    source: str
    all_jobs: Sequence[Job]
    jobs: Sequence[Job]
    folder: Path
    template: Template
    results_path: Path
    machine: Machine
    planner: Planner
    defaults: Defaults


def read_batch(request: SharedOptions, options: BatchOptions, name: str) -> Batch:
    """Read a batch; what is wrong with single jobs is left to whoever sorts them.

    Args:
        request: What jobs do not say.
        options: How they are gone through.
        name: Of the file of jobs.

    Raises:
        RequestError: If the request is wrong as a whole.
    """
    folder = _folder(request.output)
    template = Template(options.output_template)
    is_mine = None if options.shard is None else shard_of(options.shard)
    if name == STDIN and request.prompt == STDIN:
        raise RequestError("stdin cannot be both the jobs and the prompt; give one of them")
    file = read_jobs(name, lambda: sys.stdin.buffer)
    results_path = options.results or folder / _RESULTS
    _check_results(results_path, name)
    all_jobs = seeded(file.jobs, distinct_seeds(request))
    machine = Machine.detect(with_devices=True)
    planner = Planner(machine, **limits(request))
    return Batch(
        source=file.source,
        all_jobs=all_jobs,
        jobs=[job for job in all_jobs if is_mine is None or is_mine(job.index)],
        folder=folder,
        template=template,
        results_path=results_path,
        machine=machine,
        planner=planner,
        defaults=Defaults(request, file.defaults, planner, suffix=template.suffix),
    )


def _folder(text: str | None) -> Path:
    if text == "":
        raise RequestError("output folder is empty; give one with -o, or leave it out")
    folder = Path(text or ".")
    if not os.path.isdir(folder):
        what = "is no folder" if os.path.lexists(folder) else "does not exist; make it"
        raise RequestError(f"output folder {folder} {what}, or choose another with -o")
    return folder


def _check_results(path: Path, jobs: str) -> None:
    """Refuse results where the jobs stand, or where a folder is."""
    if os.path.isdir(path):
        raise RequestError(f"results {path} is a folder; name a file with --results")
    same = False
    with contextlib.suppress(OSError, ValueError):
        same = os.path.samefile(path, jobs)
    if same:
        raise RequestError(f"results {path} is the file of jobs; name another with --results")
