"""`hires batch`: many images from a file of jobs, with the model loaded once."""

from __future__ import annotations

from typing import Annotated

import typer

from hirescli.cli.batching.options import BatchOptions, SharedOptions
from hirescli.cli.options.making import MakingOptions
from hirescli.cli.options.request import takes


@takes(SharedOptions, BatchOptions, MakingOptions)
def batch(
    request: SharedOptions,
    options: BatchOptions,
    how: MakingOptions,
    jobs: Annotated[
        str,
        typer.Argument(
            metavar="JOBS",
            help="File of jobs: .jsonl (a partial recipe on each line), .csv (the header has the "
            "keys of a recipe), .toml (tables job, and one defaults), .txt (a prompt on each "
            "line, # begins a comment), or - for stdin.",
            show_default=False,
        ),
    ],
) -> int:
    """Make the images of many jobs; the model is loaded once.

    A job is a partial recipe; it may also have a `name`, for the template, and an `output`, a
    file in the output folder. What it does not say is said by the options; they win over the
    defaults of a TOML file, those over the preset, and that over --recipe. With several --seed,
    jobs without a seed are made once for each.

    All wrong jobs are named together before anything is made. The same command again makes what
    is missing and goes on with what was interrupted. Ends with 0 if all jobs are done, 3 if some
    failed, 1 if none succeeded, 2 if the request is wrong.
    """
    from hirescli.cli.batching.running import run

    return run(request, options, how, jobs)
