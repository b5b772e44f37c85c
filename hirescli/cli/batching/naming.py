"""From jobs to recipes and files: what each job asks for, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hirescli.cli.batching.reading import Batch
from hirescli.errors import ConfigError, HiresError
from hirescli.recipe import Recipe
from hirescli.runs.jobs import Job, check_inside, check_own_output, same_outputs


@dataclass(frozen=True)
class NamedJob:
    """A job that is right by itself.

    Attributes:
        job: As it is written.
        asked: Its recipe before anything is resolved.
        output: Its file, in the output folder.
    """

    job: Job
    asked: Recipe
    output: Path


def named_jobs(batch: Batch) -> dict[int, NamedJob | HiresError]:
    """All jobs of a batch by their numbers, in order; or what is wrong with one.

    Those of other shards are among them: two machines shall not make one file.
    """
    return {job.index: _named_or_error(job, batch) for job in batch.all_jobs}


def doubled_outputs(named: dict[int, NamedJob | HiresError]) -> dict[int, str]:
    """What is wrong with jobs whose output is an earlier one's, by their numbers."""
    good = (each for each in named.values() if isinstance(each, NamedJob))
    return {job.index: fault for job, fault in same_outputs((e.job, e.output) for e in good)}


def _named_or_error(job: Job, batch: Batch) -> NamedJob | HiresError:
    try:
        return _named(job, batch)
    except HiresError as error:
        return error


def _named(job: Job, batch: Batch) -> NamedJob:
    if job.faults:
        raise ConfigError(job.where, job.faults)
    asked = batch.defaults.recipe(job)
    if job.output is not None:
        check_own_output(job.output)
    output = batch.folder / (job.output or batch.template.name(job, asked))
    check_inside(output, batch.folder)
    return NamedJob(job, asked, output)
