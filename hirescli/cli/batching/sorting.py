"""The jobs of a batch by what is to be done with them; nothing is made yet."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from hirescli.cli.batching.naming import NamedJob, doubled_outputs, named_jobs
from hirescli.cli.batching.reading import Batch
from hirescli.cli.batching.wrong import WrongJob
from hirescli.cli.options.making import MakingOptions
from hirescli.errors import HiresError, RequestError
from hirescli.planning.plan import Plan, check_disk_together
from hirescli.runs.batch import Made, PlannedJob
from hirescli.runs.directory import complete_naming, finished, refuse_conflict
from hirescli.runs.jobs import Job


@dataclass
class SortedJobs:
    """Jobs by what is to be done with them.

    Attributes:
        todo: To be made.
        finished: Whose outputs stand already.
        wrong: That cannot be made.
    """

    todo: list[PlannedJob] = field(default_factory=list)
    finished: list[PlannedJob] = field(default_factory=list)
    wrong: list[WrongJob] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """If all that is to be made succeeds: 0, 3 if something is wrong, 1 if everything."""
        if not self.wrong:
            return 0
        return 3 if self.todo or self.finished else 1


def sort_jobs(batch: Batch, how: MakingOptions, *, skip_done: bool) -> SortedJobs:
    """Sort the jobs of a shard.

    Args:
        batch: The batch.
        how: Whether outputs are replaced, and what earlier runs have left dropped.
        skip_done: Whether an output that stands already with the job's recipe is left.

    Raises:
        RequestError: If the disk cannot hold all that is to be made.
    """
    named, sorter = named_jobs(batch), _Sorter(batch, how, skip_done=skip_done)
    doubled = doubled_outputs(named)
    for job in batch.jobs:
        sorter.add(job, named[job.index], doubled.get(job.index))
    check_disk_together([each.validated for each in sorter.found.todo], batch.machine)
    return sorter.found


class _Sorter:
    def __init__(self, batch: Batch, how: MakingOptions, *, skip_done: bool) -> None:
        self.found = SortedJobs()
        self._batch, self._how, self._skip_done = batch, how, skip_done
        self._made_before: Made | None = None  # read once it is asked for

    def add(self, job: Job, named: NamedJob | HiresError, doubled: str | None) -> None:
        """Put a job where it belongs; `doubled` says whose output its own is already."""
        errors: list[HiresError] = [] if doubled is None else [RequestError(doubled)]
        try:
            planned, is_done = self._planned(named)
        except HiresError as error:
            errors.append(error)
        else:
            if not errors:
                (self.found.finished if is_done else self.found.todo).append(planned)
        if errors:
            output = named.output if isinstance(named, NamedJob) else None
            self.found.wrong.append(WrongJob.of(job, output, errors))

    def _planned(self, named: NamedJob | HiresError) -> tuple[PlannedJob, bool]:
        """The job with its plan, and whether it is left as it is."""
        if isinstance(named, HiresError):
            raise named
        output, plan = named.output, self._batch.planner.plan(named.asked)
        is_ours = self._is_finished(output, plan)
        was_there = os.path.lexists(output)
        overwrite = self._how.overwrite or is_ours
        validated = plan.validate(self._batch.machine, output, overwrite)
        is_done = is_ours and self._skip_done
        if not is_done and not self._how.restart:
            # What can be said without torch; the runner looks at the rest.
            refuse_conflict(output, plan.recipe, wait=True)
        return PlannedJob(named.job, validated, was_there), is_done

    def _is_finished(self, output: Path, plan: Plan) -> bool:
        if complete_naming(output, plan.recipe):
            return True
        if not os.path.exists(output):  # unlike Path.exists also for endless names
            return False
        if finished(output, plan.recipe):
            return True
        if plan.recipe.metadata:
            return False
        if self._made_before is None:
            self._made_before = Made(self._batch.results_path)
        return self._made_before.holds(output, plan.recipe)
