"""Reading and showing bytes, sizes and seconds: units are parsed once, at the edge.

GB = 10^9 bytes and GiB = 2^30 bytes, as on the labels of disks and of memory.
"""

from __future__ import annotations

import re

from hirescli.errors import RequestError

_DECIMAL = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BINARY = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_BYTES_PER_UNIT = _DECIMAL | _BINARY | {"b": 1}
# ASCII digits only: `\d` would also take the digits of other scripts.
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_SIZE = re.compile(r"([0-9]+)(?:[x×]([0-9]+))?")  # noqa: RUF001 (people type the real sign)
_MOST_DIGITS = 12  # longer numbers are typing errors, and int() of a huge text is slow


def parse_bytes(value: str | int) -> int:
    """Read an amount of memory or disk.

    Args:
        value: A number of bytes, or text such as "8GB", "8GiB", "1.5 GB" or "500MB".

    Returns:
        The amount in bytes, at least 1.

    Raises:
        RequestError: If `value` is no positive amount in a known unit.
    """
    match = _BYTES.fullmatch(str(value).strip().lower())
    unit = _BYTES_PER_UNIT.get(match[2]) if match else None
    if isinstance(value, bool) or match is None or unit is None:
        raise RequestError(f'"{value}" is no amount of bytes; write it like 8GB, 8GiB or 500MB')
    amount_bytes = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if amount_bytes < 1:
        raise RequestError(f'"{value}" is less than 1 byte; write it like 8GB, 8GiB or 500MB')
    return amount_bytes


def parse_size(value: str | int) -> tuple[int, int]:
    """Read a picture's size. Multiples and limits are the cascade's matter, not checked here.

    Args:
        value: "2048" for a square, or "2048x1024" for width by height, in pixels.

    Returns:
        `(width_px, height_px)`, each at least 1.

    Raises:
        RequestError: If `value` is not one or two positive whole numbers.
    """
    match = _SIZE.fullmatch(str(value).strip().lower())
    if isinstance(value, bool) or match is None:
        raise RequestError(
            f'size "{value}" is not understood; write whole pixels, like 2048 or 2048x1024'
        )
    sides = [side for side in match.groups() if side is not None]
    if any(len(side) > _MOST_DIGITS for side in sides):
        raise RequestError(f'size "{value}" is far above what any format holds; try 16384')
    width_px, height_px = int(sides[0]), int(sides[-1])
    if min(width_px, height_px) < 1:
        raise RequestError(f'size "{value}" has a side of 0 px; a side is at least 1 px')
    return width_px, height_px


def format_bytes(amount_bytes: float) -> str:
    """Show an amount in the unit that leaves one to three digits before the point: "9.1 GB"."""
    if amount_bytes < 1000:
        return f"{int(amount_bytes)} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        amount_bytes /= 1000
        if amount_bytes < 999.95 or unit == "TB":
            break
    return f"{amount_bytes:.1f} {unit}"


def format_flops(flops: float) -> str:
    """Show arithmetic in the unit that leaves one to three digits before the point."""
    for unit in ("GFLOP", "TFLOP", "PFLOP"):
        if flops < 999.95e9 or unit == "PFLOP":
            break
        flops /= 1000
    return f"{flops / 1e9:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Show a duration in its two largest units: "0.4 s", "12 s", "1 min 20 s", "2 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_pixels(width_px: int, height_px: int) -> str:
    """Show a size with its megapixels: "2048x1024 px (2.1 MP)"."""
    return f"{width_px}x{height_px} px ({width_px * height_px / 1e6:.1f} MP)"
