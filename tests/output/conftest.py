"""Fixtures of the output's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(file_system: Callable[[str], Path]) -> Path:
    """A real file system of 8 MiB."""
    return file_system("8m")
