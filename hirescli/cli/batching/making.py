"""Making the jobs of a batch, with the model loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from hirescli.cli.app import say
from hirescli.cli.batching.options import BatchOptions
from hirescli.cli.batching.reading import Batch
from hirescli.cli.batching.sorting import SortedJobs
from hirescli.cli.batching.telling import Teller, jobs_words
from hirescli.cli.batching.wrong import WrongJob, refusal
from hirescli.cli.options.making import MakingOptions
from hirescli.runs.batch import (
    PlannedJob,
    Results,
    Row,
    by_model,
    exit_code,
    make_jobs,
    refused,
)
from hirescli.runs.directory import clear_finished

if TYPE_CHECKING:
    from hirescli.cascade.run import Runner
    from hirescli.events import Listener
    from hirescli.planning.plan import ValidatedPlan


class Maker:
    """Makes sorted jobs; every row is in the results before it is told.

    Args:
        batch: Whose jobs they are.
        options: How they are gone through.
        how: What is made of each, and what is said of it.
        teller: Tells what becomes of them.
    """

    def __init__(
        self, batch: Batch, options: BatchOptions, how: MakingOptions, teller: Teller
    ) -> None:
        self._batch, self._options, self._how, self._teller = batch, options, how, teller

    def make(self, found: SortedJobs) -> int:
        """Make what is to be made; returns the exit code.

        Raises:
            HiresError: If the results cannot be written, or the runner refuses a job and the
                others are not to be made then.
        """
        results = Results(self._batch.results_path)
        self._note_unmade(found, results)
        if self._how.restart:
            from hirescli.cli.generate import drop_leftovers

            drop_leftovers([each.validated for each in found.todo])
        try:
            if found.todo:
                self._run(found.todo, results)
        finally:
            self._teller.summary()
        return exit_code(self._teller.rows)

    def _note_unmade(self, found: SortedJobs, results: Results) -> None:
        """Tell and record what was finished before, and what cannot be made."""
        for each in found.finished:
            # Of a run that was killed just after its file stood.
            clear_finished(each.validated.output, each.validated.recipe)
        rows = [Row.of(each, "skipped") for each in found.finished]
        rows += [
            Row(each.job.index, each.job.line, each.output_name, "failed", error=each.reason)
            for each in found.wrong
        ]
        rows.sort(key=lambda row: row.index)
        results.add(rows)
        if found.finished:
            count = jobs_words(len(found.finished))
            say(f"{count} finished before; nothing to do for them", kind="note")
        for row in rows:
            self._teller.tell(row)

    def _run(self, todo: Sequence[PlannedJob], results: Results) -> None:
        from hirescli.cli.progress import listening, paused, warn

        with listening(as_json=self._how.json_, quiet=self._how.quiet) as listener:
            warn(listener, [each.validated.plan for each in todo])
            for row in self._rows(todo, results, listener):
                with paused(listener):
                    self._teller.tell(row)

    def _rows(
        self, todo: Sequence[PlannedJob], results: Results, listener: Listener
    ) -> Iterator[Row]:
        """The jobs, as they end."""
        runner, wrong = refused(todo, self._starting(listener))
        if wrong and not self._options.keep_going:
            told = [WrongJob(each.job, each.validated.output, error) for each, error in wrong]
            raise refusal(self._batch.source, told)
        rows = [Row.of(each, "failed", error=str(error)) for each, error in wrong]
        results.add(rows)
        yield from rows
        if runner is None:
            return
        out = {row.index for row in rows}
        yield from make_jobs(
            by_model([each for each in todo if each.job.index not in out]),
            runner,
            results,
            keep_going=self._options.keep_going,
            skip_done=self._options.skip_done,
        )

    def _starting(self, listener: Listener) -> Callable[[Sequence[ValidatedPlan]], Runner]:
        """How a runner is started; the libraries are imported here, after all that can be
        refused without them is.
        """
        from hirescli.cli.imports import importing

        with importing():
            from hirescli.cascade.run import Runner

        def start(plans: Sequence[ValidatedPlan]) -> Runner:
            how = self._how
            return Runner(plans, listener, keep_runs=how.keep_run, previews=how.preview, wait=True)

        return start
