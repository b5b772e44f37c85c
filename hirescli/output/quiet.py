"""What tifffile logs about damaged files, kept away."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tifffile_silent() -> Iterator[None]:
    """Nothing is logged: it would stand beside our own message on the terminal."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
