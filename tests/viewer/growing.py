"""Pictures of the viewer's tests: files of all kinds, and a run directory that grows by stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hirescli.output.finalise import finalise
from hirescli.output.spool import Spool
from hirescli.recipe import Recipe
from hirescli.runs.directory import RunDirectory
from hirescli.viewer.server import ViewServer
from hirescli.viewer.shown import Shown, Watch


def ramp(width_px: int, height_px: int) -> NDArray[np.uint8]:
    """Red grows to the right and green downwards: a pixel tells its place."""
    x = np.linspace(0, 255, width_px)[None, :]
    y = np.linspace(0, 255, height_px)[:, None]
    planes = [x + 0 * y, y + 0 * x, 128 + 0 * (x + y)]
    return np.rint(np.stack(planes, axis=2)).astype(np.uint8)


def a_recipe(width_px: int, height_px: int, **choices: Any) -> Recipe:
    said = {"prompt": "a red dune", "size": f"{width_px}x{height_px}", "steps": 12}
    return Recipe.from_fragments(said | choices)


def fill(path: Path, pixels: NDArray[np.uint8], bits: int = 8) -> Path:
    """A complete spool of a picture."""
    height_px, width_px, _ = pixels.shape
    with Spool.create(path, width_px=width_px, height_px=height_px, bits=bits) as spool:
        spool.write_rows(0, pixels if bits == 8 else pixels.astype(np.uint16) * 257)
        spool.flush()
    return path


def write_output(path: Path, pixels: NDArray[np.uint8], **choices: Any) -> Path:
    """A file as runs write it."""
    spool = fill(path.with_name(path.name + ".tmp-spool"), pixels)
    try:
        finalise(spool, path, recipe=a_recipe(*pixels.shape[1::-1], **choices), overwrite=True)
    finally:
        spool.unlink()
    return path


class GrowingRun:
    """A run of three stages, each twice as large, that does what a run does on the disk.

    Args:
        output: The final name.
        side_px: Of the last stage.
        choices: Of its recipe.
    """

    def __init__(self, output: Path, side_px: int, **choices: Any) -> None:
        self.output, self.choices = output, choices
        self.sides = [side_px // 4, side_px // 2, side_px]
        stages = [
            {
                "index": i, "kind": "upscale" if i else "base", "steps": 4, "seconds": 1.0,
                "width_px": side, "height_px": side,
                "components": [{"name": "denoiser", "calls": 4, "seconds": 1.0}],
            }
            for i, side in enumerate(self.sides)
        ]  # fmt: skip
        self.directory = RunDirectory(
            output, recipe=a_recipe(side_px, side_px, **choices),
            plan_json=json.dumps({"stages": stages, "spill": None}),
        )  # fmt: skip

    def call(self, stage: int, number: int) -> None:
        """A denoiser call of a stage ends."""
        key = f"stage-{stage}.denoiser-{number}.result"
        self.directory.journal.note(key, file=f"{key}-0.record", count=0, digest="")

    def finish_stage(self, index: int) -> None:
        """A stage's picture stands, and the one before it goes."""
        last = index + 1 == len(self.sides)
        side = self.sides[index]
        spool = self.directory.spool("last" if last else index)
        fill(spool, ramp(side, side), 8 if last else 16)
        self.directory.journal.stage(index).note("done", rows={"sums": []})
        if index:
            self.directory.spool(index - 1).unlink()

    def finish(self) -> None:
        """The file stands, and the run directory goes."""
        side = self.sides[-1]
        write_output(self.output, ramp(side, side), **self.choices)
        self.directory.remove()


@contextmanager
def serving(folder: Path, *named: Path) -> Iterator[ViewServer]:
    """A server that looks at the disk, as the command starts it."""
    import threading

    pictures = []
    for number, each in enumerate(named):
        copies = folder / f"copies-{number}"
        copies.mkdir(exist_ok=True)
        pictures.append(Shown(each, copies))
    with ViewServer(pictures, 0) as server, Watch(pictures):
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
