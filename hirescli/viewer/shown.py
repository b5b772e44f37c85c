"""What the page shows for one name: the tiles that stand, and what is told beside them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import RequestError
from hirescli.output.metadata import inspect
from hirescli.recipe import Recipe
from hirescli.runs.left import LeftRun
from hirescli.units import format_bytes
from hirescli.viewer import standing as disk
from hirescli.viewer.preparing import NOT_SHOWN, check, tiles_of, tiles_of_spool
from hirescli.viewer.standing import Standing
from hirescli.viewer.tiles import Tiles

if TYPE_CHECKING:
    import pyvips

_KEPT = 2  # versions: the page asks for tiles of the last one until the next is all there
_FEW_PX = 1_000_000  # a size says enough of fewer
_SECONDS = 0.5  # between two looks at the disk


@dataclass(frozen=True)
class _Version:
    standing: Standing
    tiles: Tiles
    facts: Sequence[tuple[str, str]]
    recipe: dict[str, Any] | None
    copy: Path


class Shown:
    """One picture of the page, exchanged when something newer stands.

    Args:
        named: A file, an output that is being made, or a run directory.
        folder: For copies of what is not stored in tiles.

    Raises:
        RequestError: If there is no such picture or run, or the file is truncated or damaged.
    """

    def __init__(self, named: Path, folder: Path) -> None:
        self.output = disk.named_output(named)
        self._folder = folder
        self._versions: list[_Version] = []
        self._failed: tuple[str, str] | None = None  # a version that cannot be shown, and why
        self._found: str | None = None  # the version that stands, shown already or not yet
        self._folder_stands = False  # the output is finished, and of a kind that is not shown
        self._left = disk.left_run(self.output)
        self._lock = threading.Lock()
        self._copying: pyvips.Image | None = None
        self._ended = False
        found = disk.standing(self.output, self._left)
        if found is not None and found.stage is None and not self._is_replaced(found):
            check(found.path)

    def look(self) -> None:
        """Look at the disk, and take what is newer there. One thread does it."""
        left = disk.left_run(self.output)
        found = disk.standing(self.output, left)
        with self._lock:
            self._left = left
            if self._failed is not None and (found is None or self._failed[0] != found.version):
                self._failed = None  # what could not be shown is gone
            self._folder_stands = found is not None and _is_folder(found)
            self._found = None if found is None else found.version
            known = [each.standing.version for each in self._versions]
        if (
            found is None
            or _is_folder(found)
            or found.version in (*known[-1:], self._failed and self._failed[0])
        ):
            return
        try:
            made = self._made(found, left)
        except FileNotFoundError:  # the next stage has just taken its place
            return
        except Exception as error:  # whatever a file brings: it is not tried again
            with self._lock:
                self._failed = (found.version, str(error) or type(error).__name__)
            return
        with self._lock:
            self._failed = None
            self._versions = [*self._versions, made]
            gone, self._versions = self._versions[:-_KEPT], self._versions[-_KEPT:]
        for each in gone:
            each.copy.unlink(missing_ok=True)

    def fail(self, error: Exception) -> None:
        """Let the page say what kept `look` from looking; the next one clears it."""
        with self._lock:
            self._failed = ("", str(error) or type(error).__name__)

    def end(self) -> None:
        """Stop what `look` is doing in another thread; it is not asked again."""
        with self._lock:
            self._ended = True
            if self._copying is not None:
                self._copying.set_kill(True)

    def tiles(self, version: str) -> Tiles | None:
        """The tiles of a version that is or was shown a moment ago."""
        with self._lock:
            found = [each for each in self._versions if each.standing.version == version]
        return found[0].tiles if found else None

    def state(self) -> dict[str, Any]:
        """All that the page needs to know, in JSON's types."""
        with self._lock:
            left, failed, folder_stands = self._left, self._failed, self._folder_stands
            version = self._versions[-1] if self._versions else None
            awaited = version is not None and self._found not in (None, version.standing.version)
        told: dict[str, Any] = {"name": self.output.name, "version": None, "geometry": None}
        told["status"] = disk.status(left, None if version is None else version.standing)
        told["facts"], told["recipe"] = [], _recipe_of_run(left)
        if version is not None:
            told |= {"version": version.standing.version, "facts": version.facts}
            told["geometry"] = _geometry(version.tiles)
            told["recipe"] = version.recipe or told["recipe"]
        if failed is not None:
            told["status"] |= {"kind": "failed", "text": failed[1]}
        elif folder_stands and told["status"]["kind"] == "done":
            told["status"]["text"] = f"finished; {NOT_SHOWN.format(self.output.suffix)}"
        elif told["status"]["kind"] == "done" and (version is None or awaited):
            told["status"] |= {"kind": "preparing", "text": "preparing the picture"}
        return told

    def _is_replaced(self, found: Standing) -> bool:
        """Whether it is a folder of tiles that a run is about to make anew."""
        return _is_folder(found) and self._left is not None and self._left.at_work

    def _begun(self, image: pyvips.Image) -> None:
        with self._lock:
            self._copying = image
            if self._ended:
                image.set_kill(True)

    def _made(self, found: Standing, left: LeftRun | None) -> _Version:
        copy = self._folder / f"{found.version}.tif"
        try:
            if found.stage is None:
                tiles = tiles_of(found.path, copy, self._begun)
            else:
                tiles = tiles_of_spool(found.path, copy, self._begun)
            facts, recipe = _facts(found, tiles)
        except RequestError:
            copy.unlink(missing_ok=True)
            if not found.path.exists():
                raise FileNotFoundError(found.path) from None
            raise
        finally:
            self._copying = None
        return _Version(found, tiles, facts, recipe or _recipe_of_run(left), copy)


class Watch:
    """Looks at the disk for all pictures until it is left; use it in a `with` statement.

    Args:
        pictures: What is looked at.
    """

    def __init__(self, pictures: Sequence[Shown]) -> None:
        self._pictures = pictures
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for each in self._pictures:
            each.end()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            for each in self._pictures:
                try:
                    each.look()
                except Exception as error:  # else nothing would be looked at any more
                    each.fail(error)
            self._ended.wait(_SECONDS)


def _is_folder(found: Standing) -> bool:
    return found.stage is None and found.path.is_dir()


def _geometry(tiles: Tiles) -> dict[str, Any]:
    geometry = tiles.geometry
    return {
        "width_px": geometry.width_px,
        "height_px": geometry.height_px,
        "tile_px": geometry.tile_px,
        "overlap_px": geometry.overlap_px,
        "min_level": geometry.min_level,
        "max_level": geometry.max_level,
        "suffix": geometry.suffix,
    }


def _facts(
    found: Standing, tiles: Tiles
) -> tuple[Sequence[tuple[str, str]], dict[str, Any] | None]:
    """What is told of a file beside its recipe, and that."""
    geometry = tiles.geometry
    px = geometry.width_px * geometry.height_px
    levels = geometry.max_level - geometry.min_level + 1
    size = disk.size_text(geometry.width_px, geometry.height_px)
    facts = [("Size", f"{size} px")]
    if px >= _FEW_PX:
        facts.append(("Pixels", _pixels(px)))
    recipe = None
    if found.stage is None:
        size_bytes, form = found.path.stat().st_size, ""
        with contextlib.suppress(RequestError):  # a format without a recipe
            said = inspect(found.path)
            size_bytes = said.bytes  # of tiles all together
            form = "Deep Zoom" if said.format == "tiles" else said.format.upper()
            recipe = None if said.recipe is None else _ordered(said.recipe)
        facts.append(("File", format_bytes(size_bytes)))
        if form:
            facts.append(("Format", form))
    facts.append(("Levels", f"{levels}, in tiles of {geometry.tile_px} px"))
    return facts, recipe


def _ordered(recipe: dict[str, Any]) -> dict[str, Any]:
    """In the order of a recipe's fields: files hold them by the alphabet."""
    known = [key for key in Recipe.model_fields if key in recipe]
    return {key: recipe[key] for key in [*known, *(set(recipe) - set(known))]}


def _pixels(px: int) -> str:
    return f"{px / 1e9:.2f} gigapixels" if px >= 1e9 else f"{px / 1e6:.1f} megapixels"


def _recipe_of_run(left: LeftRun | None) -> dict[str, Any] | None:
    if left is None or left.recipe is None:
        return None
    made: dict[str, Any] = left.recipe.model_dump(mode="json")
    return made
