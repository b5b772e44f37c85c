"""Exif data: resolution, and the comment in which A1111 keeps its text.

References:
    JEITA CP-3451, "Exif" (UserComment).
"""

from __future__ import annotations

import struct

EXIF_HEAD = b"Exif\0\0"
_EXIF_DIRECTORY, _USER_COMMENT = 0x8769, 0x9286


def exif_data(comment: str, *, dpi: float) -> bytes:
    """Exif, which is a small TIFF: resolution, and a directory with UserComment."""
    value = user_comment(comment)
    # A directory: count of entries (2), 12 bytes an entry, offset of the next one (4).
    exif_at = 8 + 2 + 4 * 12 + 4
    rational_at = exif_at + 2 + 12 + 4
    head = b"MM\0*" + struct.pack(">IH", 8, 4)
    entries = (
        struct.pack(">HHII", 0x011A, 5, 1, rational_at)  # XResolution
        + struct.pack(">HHII", 0x011B, 5, 1, rational_at)  # YResolution
        + struct.pack(">HHIHH", 0x0128, 3, 1, 2, 0)  # ResolutionUnit: inch
        + struct.pack(">HHII", 0x8769, 4, 1, exif_at)  # the Exif directory
    )
    exif = struct.pack(">IHHHIII", 0, 1, 0x9286, 7, len(value), rational_at + 8, 0)
    rational = struct.pack(">II", round(dpi * 1000), 1000)
    return EXIF_HEAD + head + entries + exif + rational + value


def user_comment(text: str) -> bytes:
    """The value of Exif's UserComment, as A1111 writes it: UTF-16, the high byte first."""
    return b"UNICODE\0" + text.encode("utf-16-be")


def read_user_comment(exif: bytes) -> str:
    """The UserComment of Exif data; "" if it has none or is damaged."""
    from PIL import Image

    found = Image.Exif()
    try:
        found.load(exif)
        value = found.get_ifd(_EXIF_DIRECTORY).get(_USER_COMMENT, b"")
    except Exception:  # Pillow raises errors of many kinds for damaged data
        return ""
    if isinstance(value, str):
        return value
    code, text = bytes(value[:8]), bytes(value[8:])
    if code.startswith(b"UNICODE"):
        # Writers differ in the order of bytes; in the wrong one, Latin letters are Chinese ones.
        reads = [text.decode(f"utf-16-{order}", errors="replace") for order in ("be", "le")]
        return max(reads, key=lambda read: sum(map(str.isascii, read))).rstrip("\0")
    return text.decode("utf-8", errors="replace").rstrip("\0")
