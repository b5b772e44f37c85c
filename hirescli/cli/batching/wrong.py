"""Jobs that cannot be made, and the one error of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hirescli.errors import ConfigError, HiresError, RequestError, RunError
from hirescli.runs.jobs import Job

_MOST_FAULTS = 100  # shown at once


@dataclass(frozen=True)
class WrongJob:
    """A job that cannot be made.

    Attributes:
        job: As it is written.
        output: Its file; None: it has no name.
        error: Why.
    """

    job: Job
    output: Path | None
    error: HiresError

    @classmethod
    def of(cls, job: Job, output: Path | None, errors: Sequence[HiresError]) -> WrongJob:
        """A job with one error or several, which become one."""
        if len(errors) == 1:
            return cls(job, output, errors[0])
        faults = [fault for error in errors for fault in _faults(error)]
        return cls(job, output, ConfigError(job.where, faults))

    @property
    def output_name(self) -> str | None:
        """The output as text, for JSON."""
        return None if self.output is None else str(self.output)

    @property
    def reason(self) -> str:
        """All its faults on one line."""
        return "; ".join(_faults(self.error))

    @property
    def placed_faults(self) -> list[str]:
        """Its faults, each with the place of the job."""
        return [f"{self.job.where}: {fault}" for fault in _faults(self.error)]


def refusal(source: str, wrong: Sequence[WrongJob]) -> HiresError:
    """One error of all that is wrong, with the place of each; a long list is cut."""
    faults = [fault for each in wrong for fault in each.placed_faults]
    more = len(faults) - _MOST_FAULTS
    shown = [*faults[:_MOST_FAULTS], f"and {more} more"] if more > 0 else faults
    error = ConfigError(source, shown)
    if all(isinstance(each.error, RequestError) for each in wrong):
        return error
    return RunError(str(error))


def _faults(error: HiresError) -> tuple[str, ...]:
    return error.faults if isinstance(error, ConfigError) else (str(error),)
