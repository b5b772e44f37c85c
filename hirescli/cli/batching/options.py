"""The options of `hires batch` beside those of making pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from hirescli.cli.options.option import option
from hirescli.cli.options.request import RequestOptions

_PANEL = "Batch"


@dataclass(frozen=True)
class SharedOptions(RequestOptions):
    """What jobs do not say themselves."""

    output: Annotated[
        str | None,
        option(
            "-o",
            "--output-dir",
            panel=_PANEL,
            metavar="DIR",
            text="Folder of the outputs; nothing is written outside it. Default: this folder.",
        ),
    ] = None


@dataclass(frozen=True)
class BatchOptions:
    """How the jobs are gone through."""

    output_template: Annotated[
        str,
        option(
            "--output-template",
            panel=_PANEL,
            metavar="TEXT",
            text="Names of outputs that their jobs do not name: text with {index}, {name}, "
            "{prompt}, {seed}, {width}, {height} or {hash} in it, such as {index:04d}-{prompt}; "
            "a job without a name is called by its prompt and seed. Names are made safe. "
            "Default: {name}.",
        ),
    ] = "{name}"
    skip_done: Annotated[
        bool,
        option(
            "--skip-done/--no-skip-done",
            panel=_PANEL,
            metavar=None,
            text="Whether an output that stands there already with the job's recipe is left; else "
            "it is made again and replaced. Default: it is left.",
        ),
    ] = True
    keep_going: Annotated[
        bool,
        option(
            "--keep-going",
            panel=_PANEL,
            metavar=None,
            text="Make the other jobs when one is wrong or fails. Default: a wrong job refuses "
            "the batch, and one that fails ends it.",
        ),
    ] = False
    shard: Annotated[
        str | None,
        option(
            "--shard",
            panel=_PANEL,
            metavar="I/N",
            text="Make only every Nth job, from the Ith: 1/4 to 4/4 are four machines' shares. "
            "Default: all jobs.",
        ),
    ] = None
    results: Annotated[
        Path | None,
        option(
            "--results",
            panel=_PANEL,
            metavar="FILE",
            text="File that gets a line of JSON for every job that ends; several processes may "
            "share it. Default: results.jsonl in the output folder.",
        ),
    ] = None
