"""Runs of the whole command, each in a process of its own, with what the system measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.errors import HiresError, RequestError, RunError

# ru_maxrss counts KiB on Linux and bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_HELP_RUNS = 5
# Pillow warns above this and refuses above twice this: a guard against bombs, not lifted.
_PILLOW_LIMIT_PX = 89_478_485


@dataclass(frozen=True)
class Run:
    """One command, measured from outside.

    Attributes:
        seconds: From start to end of the process, loading included.
        peak_rss_bytes: Of that process, by the system (`wait4`).
        stdout: What it printed.
    """

    seconds: float
    peak_rss_bytes: int
    stdout: str


@dataclass(frozen=True)
class ImageRun:
    """One image made by `hires generate`, against its plan."""

    width_px: int
    height_px: int
    stages: int
    seconds: float
    peak_rss_bytes: int
    planned_seconds: float
    planned_peak_bytes: int
    planned_spill_bytes: int
    sha256: str
    same_bytes: bool | None  # None: made once only
    file_bytes: int
    journal_share: float  # of the time from the first stage to the file
    readers: dict[str, str]


def measured(args: Sequence[str], *, module: str = "hirescli") -> Run:
    """Run `hires`, or another module of ours, with these words in a child process.

    Raises:
        RequestError: If it ends with 2: what was asked for is wrong.
        RunError: If it ends with another code than 0.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-m", module, *args], stdout=out, stderr=err)
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode != 0:
            raise _failure(args, child.returncode, err.read().decode(errors="replace").strip())
        return Run(seconds, usage.ru_maxrss * _RSS_UNIT, out.read().decode())


def _failure(args: Sequence[str], code: int, told: str) -> HiresError:
    if code == RequestError.exit_code:
        return RequestError(told.removeprefix("error: "))
    return RunError(f"hires {' '.join(args)} ended with {code}: {told}")


def help_seconds() -> float:
    """The fastest of a few runs of `hires --help`."""
    return min(measured(["--help"]).seconds for _ in range(_HELP_RUNS))


def image_run(request: Sequence[str], *, repeat: int) -> ImageRun:
    """Make an image `repeat` times, each into a fresh folder, and measure the slowest.

    Args:
        request: Options of `hires generate`, without an output.
        repeat: At least 1; from 2 on, the files are compared byte by byte.

    Raises:
        RunError: If a command fails.
    """
    plan = json.loads(measured(["plan", "--json", *request]).stdout)
    runs, results, readers, file_bytes = [], [], {}, 0
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "benchmark.tif"
            run = measured(["generate", "--json", *request, "-o", str(path)])
            runs.append(run)
            results.append(_result(run.stdout))
            readers, file_bytes = read_back(path), path.stat().st_size
    hashes = {result["sha256"] for result in results}
    return ImageRun(
        width_px=plan["recipe"]["width_px"],
        height_px=plan["recipe"]["height_px"],
        stages=len(plan["stages"]),
        seconds=max(run.seconds for run in runs),
        peak_rss_bytes=max(run.peak_rss_bytes for run in runs),
        planned_seconds=plan["seconds"],
        planned_peak_bytes=plan["store_bytes"]["host"],
        planned_spill_bytes=plan["store_bytes"]["disk"],
        sha256=results[0]["sha256"],
        same_bytes=len(hashes) == 1 if repeat > 1 else None,
        file_bytes=file_bytes,
        journal_share=max(each["journal_seconds"] / each["seconds"] for each in results),
        readers=readers,
    )


def read_back(path: Path) -> dict[str, str]:
    """The sizes of all levels as tifffile, libvips and Pillow see them."""
    return {"tifffile": _by_tifffile(path), "libvips": _by_vips(path), "Pillow": _by_pillow(path)}


def _result(stdout: str) -> dict[str, Any]:
    (image,) = json.loads(stdout.splitlines()[-1])["images"]
    assert isinstance(image, dict)
    return image


def _by_tifffile(path: Path) -> str:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        return _levels((page.shape[1], page.shape[0]) for page in list(tiff.pages))


def _by_vips(path: Path) -> str:
    import pyvips

    count = pyvips.Image.new_from_file(str(path)).get("n-pages")
    pages = (pyvips.Image.new_from_file(str(path), page=page) for page in range(count))
    return _levels((page.width, page.height) for page in pages)


def _by_pillow(path: Path) -> str:
    import tifffile
    from PIL import Image

    with tifffile.TiffFile(path) as tiff:
        height_px, width_px = tiff.pages.first.shape[:2]
    if height_px * width_px > _PILLOW_LIMIT_PX:
        return "above its limit"
    with Image.open(path) as image:
        image.load()
        return f"{image.width}x{image.height}"


def _levels(sizes: Any) -> str:
    return " ".join(f"{width}x{height}" for width, height in sizes)
