"""What a picture's file is: format, size, bits, resolution; no pixel is read."""

from __future__ import annotations

from typing import Any

from hirescli.output.metadata import ImageFacts
from hirescli.output.picture_header import load, naming

_MM_PER_INCH = 25.4
_NO_RESOLUTION = 1.0  # pixels per millimetre, where libvips finds none
_BITS = {"uchar": 8, "ushort": 16, "float": 32}
_LOADERS = {"avif": "heif"}


def file_facts(facts: ImageFacts) -> dict[str, Any]:
    """Format, sides in pixels, levels and bytes; bits and dpi where the file says them.

    Raises:
        RequestError: If its header is damaged.
    """
    said: dict[str, Any] = {
        "format": facts.format, "width_px": facts.width_px, "height_px": facts.height_px,
        "levels": facts.levels, "bytes": facts.bytes,
    }  # fmt: skip
    if facts.format == "tiles":
        return said
    with naming(facts.path):
        image = load(facts.path, _LOADERS.get(facts.format, facts.format))
    fields = set(image.get_fields())
    by_type = _BITS.get(image.format)
    bits = image.get("bits-per-sample") if "bits-per-sample" in fields else by_type
    if bits is not None:
        said["bits"] = int(bits)
    if image.xres != _NO_RESOLUTION:
        said["dpi"] = round(image.xres * _MM_PER_INCH, 2)
    return said
