"""Errors that carry an exit code and a message with value, limit and remedy."""

from __future__ import annotations

from collections.abc import Sequence


class HiresError(Exception):
    """An error that the command line shows as one message without a traceback."""

    exit_code: int = 1


class RequestError(HiresError, ValueError):
    """The request is wrong: nothing was loaded and nothing was written."""

    exit_code = 2


class ConfigError(RequestError):
    """All faults of one preset, recipe file or set of choices, reported together.

    Args:
        source: What was read: a file name, or words such as "the request".
        faults: One sentence per fault, each with its line or key; at least one.
    """

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        assert faults, "a ConfigError needs at least one fault"
        self.source = source
        self.faults = tuple(faults)
        super().__init__(f"{source}: " + _listed(self.faults))


class RunError(HiresError):
    """A run that was allowed to start has failed."""

    exit_code = 1


class BusyError(RunError):
    """Another process is making the output."""


class NotFiniteError(RunError):
    """A value that is no number; a black picture would hide it."""


def _listed(faults: tuple[str, ...]) -> str:
    if len(faults) == 1:
        return faults[0]
    return f"{len(faults)} faults\n" + "\n".join(f"  - {fault}" for fault in faults)
