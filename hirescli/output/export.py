"""Other formats of a finished picture, without a model; what it says about itself stays."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import ConfigError, RequestError
from hirescli.events import Listener
from hirescli.output.finalise import FinishedFile, finalise_all
from hirescli.output.metadata import ImageFacts, inspect
from hirescli.output.picture_header import Header, read_header
from hirescli.output.pictures import to_spool
from hirescli.output.spool import Bits, spool_bytes
from hirescli.output.texts import Texts
from hirescli.output.turning import turned_size
from hirescli.planning.also import OF_SOME_FORMATS, check_apart, choices_for, effective
from hirescli.planning.formats import check_format
from hirescli.planning.machine import Machine
from hirescli.planning.output_cost import encoder_bytes, written_bytes
from hirescli.planning.places import check_output
from hirescli.recipe import Recipe
from hirescli.units import format_bytes

if TYPE_CHECKING:
    import pyvips

# Everything is read in bands and room on the disk is checked: no size is a bomb here.
_MOST_PX = 2**40
# What a recipe says of its own file, and not of another.
_OF_THE_FILE = {
    "format", "bits", "tile_px", "compression", "pyramid", "tile_layout", "tile_format", "quality",
    "metadata",
}  # fmt: skip
_MM_PER_INCH = 25.4
_LEAST_DPI, _MOST_DPI = 1, 10_000
_NO_RESOLUTION = 1.0  # pixels per millimetre, where libvips finds none


@dataclass(frozen=True)
class Export:
    """An export that may be made. Only `prepared` makes one.

    Attributes:
        source: The picture.
        recipes: Of each file that is written, in order.
        texts: What is embedded in all; None: what their recipes say.
        bits: Of the spool between.
    """

    source: Path
    recipes: Mapping[Path, Recipe]
    texts: Texts | None
    bits: Bits


def prepared(
    source: Path, targets: Sequence[Path], choices: Mapping[str, Any], *, overwrite: bool
) -> Export:
    """Check an export; nothing is written.

    Args:
        source: A TIFF, PNG, JPEG, WebP, AVIF or GIF, of any program.
        targets: Files to write; their suffixes say their formats.
        choices: Of a recipe, about files: bits, compression, quality, dpi, metadata, ...
        overwrite: Whether existing files are replaced.

    Raises:
        RequestError: If the source is damaged, foreign or missing, a format cannot hold the
            picture or a choice, or a target cannot be written.
    """
    assert targets, "an export has a target"
    header = read_header(source, most_px=_MOST_PX)
    # What is left behind is not read either: it may be damaged.
    texts = choices.get("metadata", True) and header.format != "gif"
    facts = inspect(source) if texts else None
    foreign = _foreign(header, facts) if texts else None
    recipes = _recipes(header, facts, foreign, targets, choices)
    check_apart(targets)
    for path in targets:
        if path.resolve() == source.resolve():
            raise RequestError(f"{path} would replace its own source; choose another name")
        check_output(path, overwrite)
    bits: Bits = 16 if any(recipe.bits == 16 for recipe in recipes.values()) else 8
    made = Export(source, recipes, foreign, bits)
    first = recipes[targets[0]]
    _check_memory(made, Machine.detect())
    _check_disk(made, (first.width_px, first.height_px))
    return made


def export(
    asked: Export, *, overwrite: bool = False, listener: Listener | None = None
) -> tuple[FinishedFile, ...]:
    """Write the files of an export, all or none.

    Raises:
        RequestError: If the pixels of the source are damaged.
        RunError: As `finalise`.
    """
    folder = _work_folder(asked)
    with tempfile.TemporaryDirectory(prefix=".hires-export-", dir=folder) as work:
        spool = Path(work) / "spool.tif"
        to_spool(asked.source, spool, most_px=_MOST_PX, bits=asked.bits)
        return finalise_all(
            spool, asked.recipes, texts=asked.texts, overwrite=overwrite, listener=listener
        )


def _recipes(
    header: Header,
    facts: ImageFacts | None,
    foreign: Texts | None,
    targets: Sequence[Path],
    choices: Mapping[str, Any],
) -> dict[Path, Recipe]:
    """The recipe of each target: the source's own, or one that says nothing but the file."""
    width_px, height_px = turned_size(header.image.width, header.image.height, header.orientation)
    size = {"width_px": width_px, "height_px": height_px}
    own = _own_recipe(facts)
    if own is None:
        # The prompt is never written: texts of others, or none, take its place.
        said = foreign is not None
        own = {"prompt": "another program's", "dpi": _dpi(header.image), "metadata": said}
    bits = {"bits": 16 if header.bits > 8 else 8}
    asked = Recipe.from_fragments(own, size, bits, choices, source="the export")
    recipes = {path: asked.model_copy(update=choices_for(asked, path)) for path in targets}
    _refuse_idle(recipes, choices)
    for path, recipe in recipes.items():
        check_format(recipe.format, width_px, height_px)
        if choices.get("bits", 8) > recipe.bits:
            raise RequestError(
                f"{path} holds 8 bits a sample, not {choices['bits']}; leave --bits out"
            )
    return recipes


def _refuse_idle(recipes: Mapping[Path, Recipe], choices: Mapping[str, Any]) -> None:
    """Refuse choices that say nothing in any of the files."""
    used = {key for recipe in recipes.values() for key in effective(recipe)}
    idle = [f"{key} {choices[key]}" for key in choices if key in OF_SOME_FORMATS - used]
    if idle:
        names = ", ".join(path.name for path in recipes)
        raise RequestError(f"{', '.join(idle)} has no effect on {names}; leave it out")


def _own_recipe(facts: ImageFacts | None) -> dict[str, Any] | None:
    """What the source's recipe says of the picture; None if it has none."""
    if facts is None or facts.recipe is None:
        return None
    own = {key: value for key, value in facts.recipe.items() if key not in _OF_THE_FILE}
    try:
        Recipe.from_fragments(own)
    except ConfigError as error:
        raise RequestError(
            f"the recipe in {facts.path} is of another version, or damaged ({error}); leave it "
            "behind with --no-metadata"
        ) from error
    return own


def _foreign(header: Header, facts: ImageFacts | None) -> Texts | None:
    """The texts of another program's picture; None if it has none, or a recipe of ours."""
    if facts is not None and facts.recipe is not None:
        return None
    image, text = header.image, "" if facts is None else facts.parameters_text
    xmp = bytes(image.get("xmp-data")) if image.get_typeof("xmp-data") else b""
    parameters = text if facts is not None and facts.parameters is not None else ""
    return Texts("", parameters, xmp) if parameters or xmp else None


def _dpi(image: pyvips.Image) -> float:
    """The resolution that the file says, or that of a recipe that says none."""
    dpi = round(image.xres * _MM_PER_INCH, 3)
    known = image.xres != _NO_RESOLUTION and _LEAST_DPI <= dpi <= _MOST_DPI
    return float(dpi if known else Recipe.model_fields["dpi"].default)


def _check_disk(made: Export, size_px: tuple[int, int]) -> None:
    """Check that the disk holds the spool and all files, by folder."""
    needed: dict[Path, int] = {}
    for path, recipe in made.recipes.items():
        needed[path.parent] = needed.get(path.parent, 0) + written_bytes(recipe)
    spool = spool_bytes(width_px=size_px[0], height_px=size_px[1], bits=made.bits)
    needed[_work_folder(made)] += spool
    for folder, bytes_ in needed.items():
        free = shutil.disk_usage(folder).free
        if bytes_ > free:
            raise RequestError(
                f"needs up to {format_bytes(bytes_)} of disk in {folder}, {format_bytes(free)} "
                "are free; free some or choose another folder"
            )


def _check_memory(made: Export, machine: Machine) -> None:
    """Check that the memory holds what encodes whole pictures."""
    recipe = max(made.recipes.values(), key=encoder_bytes)
    if encoder_bytes(recipe) > machine.memory_bytes:
        raise RequestError(
            f"{recipe.format} is encoded whole: that takes {format_bytes(encoder_bytes(recipe))} "
            f"of memory, this machine has {format_bytes(machine.memory_bytes)}; use png, jpeg or "
            "tiff"
        )


def _work_folder(made: Export) -> Path:
    """Where the spool grows: beside the last file."""
    return list(made.recipes)[-1].parent
