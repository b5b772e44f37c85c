"""SIGINT and SIGTERM end a run cleanly; a second signal ends it now."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked us to end. No `Exception`: nothing between here and the top may eat it.

    Args:
        signum: The number of the signal.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, as shells count."""
        return 128 + self.signum


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `Interrupted`, and let a second one end the process.

    A signal that the caller ignores stays ignored: a shell starts the jobs of a script that
    run in the background with SIGINT ignored, on purpose.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first(signum: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _second)
    raise Interrupted(signum)


def _second(signum: int, _frame: FrameType | None) -> None:
    os._exit(128 + signum)
