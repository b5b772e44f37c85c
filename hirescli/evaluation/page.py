"""The page of benchmarks: sections in Markdown, each written by its own command."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from hirescli.planning.machine import Machine
from hirescli.units import format_bytes

_TITLE = "# Benchmarks\n"


def section(title: str, *, command: str, paragraphs: Sequence[str]) -> str:
    """One section of the page.

    Args:
        title: Its heading.
        command: The words that wrote it, `hires` the first.
        paragraphs: Text and tables.
    """
    written = f"Written by `{command}`; do not edit by hand."
    return "\n\n".join([f"## {title}", written, *paragraphs]) + "\n"


def with_section(page: str, new: str) -> str:
    """The page with a section put in, in place of the one with the same heading if there is one.

    Args:
        page: What is there; empty for a page that is not there yet.
        new: A section as `section` makes it.
    """
    head, *old = re.split(r"^(?=## )", page or _TITLE, flags=re.MULTILINE)
    heading = new.partition("\n")[0]
    found = [each.partition("\n")[0].rstrip() for each in old]
    if heading in found:
        old[found.index(heading)] = new
    else:
        old.append(new)
    return "\n\n".join(part.strip("\n") for part in (head, *old)) + "\n"


def machine() -> str:
    """Processor, memory and versions, in words."""
    found = Machine.detect()
    return (
        f"{_processor()}, {found.cores} cores, {format_bytes(found.memory_bytes)}, "
        f"{platform.system()}, Python {platform.python_version()}, torch {version('torch')}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def busy_cores() -> float:
    """Cores that other programs keep busy, looked at for half a second."""
    return float(psutil.cpu_percent(interval=0.5)) / 100 * (psutil.cpu_count() or 1)
