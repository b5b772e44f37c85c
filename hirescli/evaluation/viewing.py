"""How quickly `hires view` answers with tiles: `python -m hirescli.evaluation.viewing [FILE]`.

Without a file, a picture of 16384 x 16384 px is made in a temporary folder: waves of colour with
grain, which deflate makes about as small as photographs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hirescli.output.finalise import finalise
from hirescli.output.spool import Spool
from hirescli.recipe import Recipe
from hirescli.viewer.server import ViewServer
from hirescli.viewer.shown import Shown

_SIDE_PX = 16384
_TILES = 200
_SEED = 5
_BAND_ROWS = 256


@dataclass(frozen=True)
class TileTimes:
    """Seconds that a tile took, request to last byte, over HTTP on this machine.

    Attributes:
        width_px, height_px: Of the picture.
        tiles: Asked for, one after the other, from all levels alike.
        median_ms, p95_ms, slowest_ms: Of them.
        full_median_ms: Of those of the picture itself, which are seldom asked for twice.
        mean_bytes: Of a tile.
    """

    width_px: int
    height_px: int
    tiles: int
    median_ms: float
    p95_ms: float
    slowest_ms: float
    full_median_ms: float
    mean_bytes: int


def tile_times(path: Path, *, tiles: int = _TILES, seed: int = _SEED) -> TileTimes:
    """Ask for random tiles of a picture.

    Raises:
        RequestError: If it cannot be shown.
    """
    with tempfile.TemporaryDirectory(prefix="hires-view-") as folder:
        shown = Shown(path, Path(folder))
        shown.look()
        with ViewServer([shown], 0) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                return _ask(server, tiles, random.Random(seed))
            finally:
                server.shutdown()
                thread.join()


def make_picture(path: Path, side_px: int) -> None:
    """Write a pyramidal TIFF as runs do, of waves with grain."""
    import numpy as np

    spool_path = path.with_name(path.name + ".spool")
    rng = np.random.default_rng(_SEED)
    x = np.linspace(0, 40, side_px, dtype=np.float32)[None, :, None]
    phases = np.arange(3, dtype=np.float32)
    with Spool.create(spool_path, width_px=side_px, height_px=side_px) as spool:
        for y0 in range(0, side_px, _BAND_ROWS):
            rows = min(_BAND_ROWS, side_px - y0)
            y = np.linspace(y0, y0 + rows, rows, dtype=np.float32)[:, None, None] * 40 / side_px
            waves = 128 + 60 * np.sin(x + phases) + 50 * np.cos(y * 1.3 + x / 7)
            grain = rng.integers(-4, 5, (rows, side_px, 1))
            spool.write_rows(y0, (waves + grain).clip(0, 255).astype(np.uint8))
    recipe = Recipe(prompt="waves with grain", width_px=side_px, height_px=side_px)
    finalise(spool_path, path, recipe=recipe, overwrite=True)
    spool_path.unlink()


def _ask(server: ViewServer, tiles: int, rng: random.Random) -> TileTimes:
    state = server.pictures[0].state()
    shown = server.pictures[0].tiles(state["version"] or "")
    assert shown is not None, state["status"]
    geometry, seconds, sizes = shown.geometry, [], []
    full = []
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    for _ in range(tiles):
        level = rng.randint(geometry.min_level, geometry.max_level)
        columns, rows = (-(-side // geometry.tile_px) for side in geometry.level_size(level))
        place = f"{level}/{rng.randrange(columns)}_{rng.randrange(rows)}.{geometry.suffix}"
        began = time.monotonic()
        connection.request("GET", f"/tiles/0/{state['version']}/{place}")
        answer = connection.getresponse()
        data = answer.read()
        seconds.append(time.monotonic() - began)
        assert answer.status == 200, f"{place}: {answer.status}"
        sizes.append(len(data))
        if level == geometry.max_level:
            full.append(1000 * seconds[-1])
    connection.close()
    milliseconds = sorted(1000 * each for each in seconds)
    return TileTimes(
        geometry.width_px,
        geometry.height_px,
        tiles,
        round(statistics.median(milliseconds), 1),
        round(milliseconds[int(0.95 * tiles)], 1),
        round(milliseconds[-1], 1),
        round(statistics.median(full or milliseconds), 1),
        round(statistics.mean(sizes)),
    )


def main() -> None:
    """Measure, and write the result as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="picture; default: one is made")
    parser.add_argument(
        "--side", type=int, default=_SIDE_PX, help="of the one that is made, in px"
    )
    parser.add_argument("--tiles", type=int, default=_TILES)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = said.file or Path(folder) / "waves.tif"
        if said.file is None:
            make_picture(path, said.side)
        sys.stdout.write(json.dumps(asdict(tile_times(path, tiles=said.tiles))) + "\n")


if __name__ == "__main__":
    main()
