"""The measurement of the viewer measures a viewer."""

from __future__ import annotations

from pathlib import Path

from hirescli.evaluation.viewing import make_picture, tile_times
from hirescli.output.metadata import inspect


def test_tiles_of_a_made_picture(tmp_path: Path) -> None:
    path = tmp_path / "waves.tif"
    make_picture(path, 1500)
    assert inspect(path).levels == 3
    times = tile_times(path, tiles=20)
    assert (times.width_px, times.height_px, times.tiles) == (1500, 1500, 20)
    assert 0 < times.median_ms <= times.p95_ms <= times.slowest_ms
    assert times.mean_bytes > 1000
