"""What is said of a batch: a line for each job that ends, and one for all of them."""

from __future__ import annotations

import json
import time

from hirescli.cli.app import say
from hirescli.cli.batching.reading import Batch
from hirescli.cli.options.making import MakingOptions
from hirescli.cli.streams import write_line
from hirescli.runs.batch import Row, Status
from hirescli.units import format_seconds

_COUNTED: tuple[Status, ...] = ("done", "skipped", "busy", "failed")


def jobs_words(count: int) -> str:
    """So many jobs, in words."""
    return "1 job" if count == 1 else f"{count} jobs"


class Teller:
    """Tells rows as they come, and keeps them for the summary.

    Args:
        batch: Whose jobs end.
        how: Whether as JSON, and how much.
        began: When the command did, by `time.monotonic`.
    """

    def __init__(self, batch: Batch, how: MakingOptions, began: float) -> None:
        self.rows: list[Row] = []
        self._batch, self._how, self._began = batch, how, began

    def tell(self, row: Row) -> None:
        """A job has ended: its output goes to stdout, an error to stderr."""
        self.rows.append(row)
        if self._how.json_:
            write_line(json.dumps({"event": "job", **vars(row)}))
        elif row.status in ("done", "skipped"):
            write_line(str(row.output))
        if row.status in ("failed", "busy"):
            kind = "error" if row.status == "failed" else "note"
            say(f"{self._batch.source}, {row.where}: {row.error}", kind=kind)

    def summary(self) -> None:
        """All jobs have ended, or no more are made."""
        count = len(self._batch.jobs)
        counts: dict[str, int] = {status: self._count(status) for status in _COUNTED}
        not_made = count - sum(counts.values())
        seconds = round(time.monotonic() - self._began, 3)
        results = str(self._batch.results_path)
        if self._how.json_:
            told = {"jobs": count, **counts, "seconds": seconds, "not_made": not_made}
            write_line(json.dumps({"event": "result", **told, "results": results}))
        elif not self._how.quiet or counts["failed"]:
            named = {**counts, "not made": not_made}
            parts = ", ".join(f"{number} {what}" for what, number in named.items() if number)
            took = format_seconds(seconds)
            say(f"{jobs_words(count)} in {took}: {parts}; see {results}", kind="note")

    def _count(self, status: Status) -> int:
        return sum(row.status == status for row in self.rows)
