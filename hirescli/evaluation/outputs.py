"""Every format of output made from a spool, each in a process of its own: seconds and memory."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import RequestError
from hirescli.evaluation.benchmark import measured
from hirescli.evaluation.tables import table
from hirescli.planning.formats import check_format, usual_suffix
from hirescli.planning.machine import Machine
from hirescli.planning.output_cost import encoder_bytes, written_bytes
from hirescli.recipe import Recipe
from hirescli.units import format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BAND_ROWS = 64
# What is said of a format in the table, and the recipe that makes it.
KINDS: dict[str, dict[str, Any]] = {
    "tiff, deflate": {},
    "tiff, lzw": {"compression": "lzw"},
    "tiff, zstd": {"compression": "zstd"},
    "tiff, jpeg": {"compression": "jpeg"},
    "tiff, no compression": {"compression": "none"},
    "print": {"format": "print"},
    "png": {"format": "png"},
    "jpeg": {"format": "jpeg"},
    "tiles, jpeg": {"format": "tiles"},
    "tiles, png": {"format": "tiles", "tile_format": "png"},
    "webp": {"format": "webp"},
    "avif": {"format": "avif"},
}


@dataclass(frozen=True)
class OutputRun:
    """One format made from a spool of 8 bits.

    Attributes:
        kind: Its words.
        seconds: Of finalising: written, on the disk, hashed. 0 where it was not made.
        peak_rss_bytes: Of the process that did it, with Python and all imports.
        file_bytes: Of the output.
        note: Why it was not made; "" where it was.
    """

    kind: str
    size_px: int
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    file_bytes: int = 0
    note: str = ""

    @property
    def megabytes_per_second(self) -> float:
        """Pixels of the spool, in 10**6 bytes, for each second."""
        return self.size_px**2 * 3 / 1e6 / self.seconds if self.seconds else 0.0


def output_runs(size_px: int) -> list[OutputRun]:
    """Make every format of a picture of a size.

    Raises:
        RequestError: If the disk has no room.
        RunError: If one fails.
    """
    machine = Machine.detect()
    recipes = {kind: _recipe(size_px, choices) for kind, choices in KINDS.items()}
    with tempfile.TemporaryDirectory(prefix="hires-bench-") as name:
        folder = Path(name)
        needed = size_px**2 * 3 + max(map(written_bytes, recipes.values()))
        free = machine.disk_free_bytes(folder)
        if needed > free:
            raise RequestError(
                f"needs {format_bytes(needed)} of disk in {folder.parent}, {format_bytes(free)} "
                "are free; set TMPDIR to another folder, or take a smaller --size"
            )
        _write_spool(folder / "spool.tif", size_px)
        return [_run(folder, kind, recipe, machine) for kind, recipe in recipes.items()]


def outputs_table(runs: Sequence[OutputRun]) -> list[str]:
    """The paragraphs of `hires bench outputs`."""
    rows = [
        [
            f"{run.size_px}x{run.size_px}",
            run.kind,
            run.note or f"{run.seconds:.1f} s",
            "" if run.note else f"{run.megabytes_per_second:.0f} MB/s",
            "" if run.note else format_bytes(run.peak_rss_bytes),
            "" if run.note else format_bytes(run.file_bytes),
        ]
        for run in runs
    ]
    return [
        table(["size", "output", "time", "speed", "peak memory", "file"], rows),
        "Made from a complete spool of 8 bits: smooth colours with grain. Time is that of\n"
        "writing, bringing to the disk and hashing; speed counts the bytes of the spool. Peak\n"
        "memory is the resident set's maximum of the whole process, measured by the system.",
    ]


def _recipe(size_px: int, choices: dict[str, Any]) -> Recipe:
    return Recipe.from_fragments({"prompt": "waves", "size": size_px}, choices)


def _run(folder: Path, kind: str, recipe: Recipe, machine: Machine) -> OutputRun:
    try:
        check_format(recipe.format, recipe.width_px, recipe.height_px)
    except RequestError:
        return OutputRun(kind, recipe.width_px, note="cannot hold it")
    if encoder_bytes(recipe) * 2 > machine.memory_bytes:
        return OutputRun(kind, recipe.width_px, note="not tried: memory")
    output = folder / ("out" + usual_suffix(recipe))
    words = [str(folder / "spool.tif"), str(output), recipe.to_json()]
    run = measured(words, module="hirescli.evaluation.outputs")
    said = json.loads(run.stdout)
    return OutputRun(kind, recipe.width_px, said["seconds"], run.peak_rss_bytes, said["bytes"])


def _write_spool(path: Path, size_px: int) -> None:
    from hirescli.output.spool import Spool

    with Spool.create(path, width_px=size_px, height_px=size_px) as spool:
        for y0 in range(0, size_px, _BAND_ROWS):
            spool.write_rows(y0, _waves(size_px, y0, min(_BAND_ROWS, size_px - y0)))
        spool.flush()


def _waves(size_px: int, y0: int, rows: int) -> NDArray[np.uint8]:
    """Smooth colours with grain of 4 levels, for it is grain that lossless formats work on."""
    import numpy as np

    x = np.linspace(0, 9, size_px, dtype=np.float32)[None, :, None]
    y = (np.arange(y0, y0 + rows, dtype=np.float32) * (9 / size_px))[:, None, None]
    phases = np.array([0, 1, 2], dtype=np.float32)
    waves = 128 + 60 * np.sin(x + phases) + 50 * np.cos(y + 2 * x)
    grain = np.random.default_rng(y0).integers(-4, 5, (rows, size_px, 3), dtype=np.int8)
    made: NDArray[np.uint8] = (waves + grain).clip(0, 255).astype(np.uint8)
    return made


def main(spool: str, output: str, recipe: str) -> dict[str, float]:
    """Make one output, in a process of its own; an older one is replaced."""
    from hirescli.output.finalise import finalise

    made = finalise(Path(spool), Path(output), recipe=Recipe.from_json(recipe), overwrite=True)
    return {"seconds": made.seconds, "bytes": made.bytes}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
