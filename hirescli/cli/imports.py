"""Importing torch and diffusers, the one slow thing before the first stage."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """While it lasts, the libraries are imported: quietly, and without looking for garbage.

    They make a million objects, all of which stay; looking through them again and again would
    take a fifth of the time.
    """
    # They report at import already, before a run can quieten them.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
