"""What an output says about itself: recipe, A1111 text, XMP; and reading it back.

The recipe travels as JSON: in a TIFF as ImageDescription, in a PNG as a text chunk, in a JPEG
as comments. Headers are read by tifffile or by a walk over chunks: Pillow refuses to open
what is above its limit against decompression bombs, and our own outputs are.

References:
    IPTC, "Guidance on using IPTC photo metadata for generated images" (digital source type).
    Adobe, "XMP Specification Part 1".
"""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from hirescli.errors import RequestError
from hirescli.output.containers import JPEG_START, PNG_START, read_jpeg, read_png, tiff_end
from hirescli.output.quiet import tifffile_silent
from hirescli.recipe import Recipe, read_json_fragment, read_recipe_file

if TYPE_CHECKING:
    from tifffile import TiffFile

RECIPE_KEY = "hires_recipe"
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# A JPEG segment ends at 64 KiB and XMP must fit into one; the recipe holds the whole prompt.
_DESCRIPTION_LIMIT = 2000
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TEXT_LIMIT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Texts:
    """What is embedded in one output; everything is a function of the recipe."""

    recipe: str
    parameters: str
    xmp: bytes


@dataclass(frozen=True)
class ImageFacts:
    """What a file says about itself without its pixels being read.

    Attributes:
        format: "tiff", "png" or "jpeg".
        levels: Levels of the pyramid, 1 without one.
        recipe: The embedded recipe as a fragment; None when there is none.
    """

    path: Path
    format: str
    width_px: int
    height_px: int
    bytes: int
    levels: int
    recipe: dict[str, Any] | None


def describe(recipe: Recipe) -> Texts:
    """The texts that an output of this recipe carries."""
    wrapped = {RECIPE_KEY: json.loads(recipe.to_json())}
    # ASCII with escapes: TIFF's ImageDescription is defined as 7-bit.
    text = json.dumps(wrapped, sort_keys=True, ensure_ascii=True)
    return Texts(recipe=text, parameters=parameters_text(recipe), xmp=xmp_packet(recipe))


def parameters_text(recipe: Recipe) -> str:
    """The `parameters` text that A1111's web interface and its many readers understand."""
    said = {
        "Steps": recipe.steps,
        "Sampler": recipe.scheduler,
        "CFG scale": recipe.guidance_scale,
        "Seed": recipe.seed,
        "Size": f"{recipe.width_px}x{recipe.height_px}",
        "Model": recipe.model,
        "Version": "hires",
    }
    last = ", ".join(f"{key}: {value}" for key, value in said.items() if value is not None)
    negative = [f"Negative prompt: {recipe.negative_prompt}"] if recipe.negative_prompt else []
    return "\n".join([recipe.prompt, *negative, last])


def xmp_packet(recipe: Recipe) -> bytes:
    """XMP that declares the picture as made by a trained model, with the prompt as caption."""
    caption = escape(recipe.prompt[:_DESCRIPTION_LIMIT])
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        '<rdf:Description rdf:about=""\n'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/"\n'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"\n'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">\n'
        f"<Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}"
        "</Iptc4xmpExt:DigitalSourceType>\n"
        "<xmp:CreatorTool>hires</xmp:CreatorTool>\n"
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">'
        f"{caption}</rdf:li></rdf:Alt></dc:description>\n"
        "</rdf:Description>\n</rdf:RDF>\n</x:xmpmeta>\n"
        '<?xpacket end="r"?>'
    ).encode()


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the recipe from an output (TIFF, PNG, JPEG) or from a recipe written as JSON.

    Returns:
        A fragment for `Recipe.from_fragments`.

    Raises:
        RequestError: If the file is missing, damaged, or holds no recipe of ours.
    """
    head = _head(path)
    if not _is_image(head):
        if not _may_be_json(head):
            raise _unknown(path)
        return read_recipe_file(path)
    recipe = inspect(path).recipe
    if recipe is None:
        raise RequestError(
            f"{path} holds no recipe of hires (another program's picture, or made with"
            " --no-metadata); give its prompt and size as options"
        )
    return recipe


def inspect(path: Path) -> ImageFacts:
    """Read a picture's size and recipe without reading its pixels.

    Raises:
        RequestError: If the file is missing, truncated, or no TIFF, PNG or JPEG.
    """
    head = _head(path)
    try:
        if head.startswith(_TIFF_STARTS):
            return _inspect_tiff(path)
        if head.startswith(PNG_START):
            return _facts(path, "png", *read_png(path))
        if head.startswith(JPEG_START):
            return _facts(path, "jpeg", *read_jpeg(path))
    except RequestError:
        raise
    except Exception as error:  # damaged files: tifffile raises errors of many kinds
        raise RequestError(f"{path} is damaged ({error}); take an undamaged copy") from error
    raise _unknown(path)


def _unknown(path: Path) -> RequestError:
    return RequestError(f"{path} is no TIFF, PNG, JPEG or recipe; give a file that hires made")


def _may_be_json(head: bytes) -> bool:
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return not text or text.startswith(b"{")


def _is_image(head: bytes) -> bool:
    return head.startswith((*_TIFF_STARTS, PNG_START, JPEG_START))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}; check the name") from error


def _inspect_tiff(path: Path) -> ImageFacts:
    from tifffile import TiffFile

    with tifffile_silent(), TiffFile(path) as tiff:
        first = tiff.pages.first
        size_bytes, end = path.stat().st_size, tiff_end(tiff)
        if end > size_bytes:
            raise RequestError(
                f"{path} is truncated: {size_bytes} bytes of {end}; take a whole copy"
            )
        width_px, height_px = int(first.shape[1]), int(first.shape[0])
        return _facts(path, "tiff", width_px, height_px, [first.description], _levels(tiff))


def _levels(tiff: TiffFile) -> int:
    """The first page and those after it that are marked as reduced (NewSubfileType, bit 0)."""
    from tifffile import TiffPage

    later = [page for page in list(tiff.pages)[1:] if isinstance(page, TiffPage)]
    return 1 + len([page for page in later if int(page.subfiletype) & 1])


def _facts(
    path: Path, kind: str, width_px: int, height_px: int, texts: list[str], levels: int = 1
) -> ImageFacts:
    recipes = [_embedded(text, source=str(path)) for text in texts]
    return ImageFacts(
        path=path,
        format=kind,
        width_px=width_px,
        height_px=height_px,
        bytes=path.stat().st_size,
        levels=levels,
        recipe=next((recipe for recipe in recipes if recipe is not None), None),
    )


def _embedded(text: str, *, source: str) -> dict[str, Any] | None:
    """The recipe in one text of a file, if it is one; other programs' texts are not."""
    if not text.startswith(f'{{"{RECIPE_KEY}"') or len(text) > _TEXT_LIMIT_BYTES:
        return None
    fragment = read_json_fragment(text, source=source).get(RECIPE_KEY)
    return fragment if isinstance(fragment, dict) else None
