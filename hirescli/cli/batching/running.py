"""A batch from the command line: jobs are read, sorted, and shown or made."""

from __future__ import annotations

import time

from hirescli.cli.app import say
from hirescli.cli.batching.making import Maker
from hirescli.cli.batching.options import BatchOptions, SharedOptions
from hirescli.cli.batching.reading import read_batch
from hirescli.cli.batching.showing import show
from hirescli.cli.batching.sorting import sort_jobs
from hirescli.cli.batching.telling import Teller
from hirescli.cli.batching.wrong import refusal
from hirescli.cli.json_errors import json_errors
from hirescli.cli.options.making import MakingOptions


def run(request: SharedOptions, options: BatchOptions, how: MakingOptions, name: str) -> int:
    """Make what a file of jobs asks for and is not there yet.

    Args:
        request: What jobs do not say.
        options: How they are gone through.
        how: Whether they are made, and what is said of it.
        name: Of the file of jobs.

    Returns:
        The exit code.

    Raises:
        HiresError: If the request is wrong as a whole, or a job is and the others are not to be
            made then.
    """
    began = time.monotonic()
    with json_errors(how.json_):
        batch = read_batch(request, options, name)
        if not batch.jobs:
            say(f"no job of {batch.source} is in shard {options.shard}", kind="note")
            return 0
        found = sort_jobs(batch, how, skip_done=options.skip_done)
        if found.wrong and not options.keep_going:
            raise refusal(batch.source, found.wrong)
        if how.dry_run:
            show(found, as_json=how.json_)
            return found.exit_code
        return Maker(batch, options, how, Teller(batch, how, began)).make(found)
