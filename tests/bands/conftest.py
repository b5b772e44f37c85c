"""Fixtures of the band engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(file_system: Callable[[str], Path]) -> Path:
    """A real file system of 256 KiB."""
    return file_system("256k")
