"""Pictures as many small files: Deep Zoom, Zoomify and IIIF, read back.

References:
    Microsoft, "Deep Zoom File Format Overview"; IIIF, "Image API 3.0" (level 0).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from hirescli.errors import RequestError

SIDECAR = "hires.json"
_MOST_TEXT_BYTES = 16 * 2**20
_LAYOUTS = {"info.json": "iiif3", "ImageProperties.xml": "zoomify"}


@dataclass(frozen=True)
class TileFolder:
    """A picture of tiles.

    Attributes:
        path: The `.dzi`, or the folder.
        folder: Where the tiles lie.
        layout: "dz", "zoomify" or "iiif3".
        width_px, height_px: Of the picture.
        tile_px: Side of a tile.
        levels: Of the pyramid.
        bytes: Of all its files.
        sidecar: The text of the file with its recipe; "" without one.
    """

    path: Path
    folder: Path
    layout: str
    width_px: int
    height_px: int
    tile_px: int
    levels: int
    bytes: int
    sidecar: str

    @property
    def parameters(self) -> str:
        """The A1111 text of the sidecar; "" without one."""
        try:
            said = json.loads(self.sidecar).get("parameters", "") if self.sidecar else ""
        except (ValueError, AttributeError, RecursionError):
            return ""
        return said if isinstance(said, str) else ""


def read_tiles(path: Path) -> TileFolder | None:
    """Read what a `.dzi` or a folder of tiles says; None if it is neither.

    Raises:
        RequestError: If tiles of the largest level are missing.
    """
    if not path.is_dir():
        return _deep_zoom(path)
    for name, layout in _LAYOUTS.items():
        if (path / name).is_file():
            read = _iiif if layout == "iiif3" else _zoomify
            return read(path, _text(path / name))
    return None


def _deep_zoom(path: Path) -> TileFolder | None:
    text = _text(path)
    found = {
        key: re.search(rf'\b{key}="([0-9]{{1,9}})"', text)
        for key in ("TileSize", "Width", "Height")
    }
    if not all(found.values()):
        return None
    tile_px, width_px, height_px = (int(match[1]) for match in found.values() if match)
    folder = path.with_name(path.stem + "_files")
    top = (max(width_px, height_px, 1) - 1).bit_length()
    tiles = list((folder / str(top)).glob("*_*.*"))
    _check_tiles(path, len(tiles), width_px, height_px, tile_px)
    return _found(path, folder, "dz", (width_px, height_px), tile_px, top + 1)


def _zoomify(path: Path, text: str) -> TileFolder | None:
    found = [
        re.search(rf'\b{key}="([0-9]{{1,9}})"', text) for key in ("WIDTH", "HEIGHT", "TILESIZE")
    ]
    width_px, height_px, tile_px = (int(match[1]) if match else 0 for match in found)
    if not width_px or not height_px or not tile_px:
        return None
    levels = (-(-max(width_px, height_px) // tile_px) - 1).bit_length() + 1
    tiles = list(path.glob(f"TileGroup*/{levels - 1}-*.*"))
    _check_tiles(path, len(tiles), width_px, height_px, tile_px)
    return _found(path, path, "zoomify", (width_px, height_px), tile_px, levels)


def _iiif(path: Path, text: str) -> TileFolder | None:
    try:
        said = json.loads(text)
        width_px, height_px = int(said["width"]), int(said["height"])
        tile_px = int(said["tiles"][0]["width"])
        levels = len(said["tiles"][0]["scaleFactors"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    # Folders "x,y,width,height"; those of the largest level are no larger than a tile.
    sizes = (
        [int(part) for part in each.name.split(",")[2:]]
        for each in path.iterdir()
        if re.fullmatch(r"[0-9]+(,[0-9]+){3}", each.name)
    )
    tiles = sum(max(size) <= tile_px for size in sizes)
    if max(width_px, height_px) > tile_px:  # a single tile is called "full"
        _check_tiles(path, tiles, width_px, height_px, tile_px)
    return _found(path, path, "iiif3", (width_px, height_px), tile_px, levels)


def _check_tiles(path: Path, found: int, width_px: int, height_px: int, tile_px: int) -> None:
    wanted = -(-width_px // max(tile_px, 1)) * -(-height_px // max(tile_px, 1))
    if found < wanted:
        raise RequestError(
            f"{path} is incomplete: {found} of the {wanted} tiles of its largest level are there; "
            "take a whole copy"
        )


def _found(
    path: Path, folder: Path, layout: str, size_px: tuple[int, int], tile_px: int, levels: int
) -> TileFolder:
    files = [each for each in folder.rglob("*") if each.is_file()]
    own = 0 if path == folder else path.stat().st_size
    sidecar = folder / SIDECAR
    return TileFolder(
        path=path,
        folder=folder,
        layout=layout,
        width_px=size_px[0],
        height_px=size_px[1],
        tile_px=tile_px,
        levels=levels,
        bytes=own + sum(each.stat().st_size for each in files),
        sidecar=_text(sidecar) if sidecar.is_file() else "",
    )


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_TEXT_BYTES).decode("utf-8-sig", errors="replace")
