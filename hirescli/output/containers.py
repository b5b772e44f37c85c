"""Texts inside PNG and JPEG files, as bytes: chunks and segments, written and read.

Also the question where a file ends, which tells a truncated one.

libvips writes PNG comments as Latin-1 text chunks, which garbles every other script, and does
not comment a JPEG; so these few records are made here and put in while it writes.

References:
    W3C, "Portable Network Graphics (PNG) Specification (Third Edition)", 11.3.3 (iTXt).
    ITU-T T.81, annex B (JPEG segments).
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hirescli.errors import RequestError
from hirescli.output.exif import EXIF_HEAD, exif_data

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffFrame, TiffPage

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
_PNG_INSERT_AT = len(PNG_START) + 25  # after IHDR: 8 bytes of head, 13 of data, 4 of checksum
_JPEG_END = b"\xff\xd9"
_SEARCHED_BYTES = 2**20
_SEGMENT_LIMIT = 65_533  # the 2-byte length of a segment counts itself
_COMMENT_MARK = "hires_comment"
_TEXT_LIMIT_BYTES = 16 * 2**20
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
# Frame headers of JPEG (C0 to CF) but for tables that share their range.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA
# Bytes of a value by TIFF's type codes; all others have one.
_TIFF_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def png_chunks(*, recipe: str, parameters: str, xmp: bytes, recipe_key: str) -> bytes:
    """The texts that are not empty as iTXt chunks (UTF-8), to stand after IHDR."""
    texts = {
        "parameters": parameters.encode(),
        recipe_key: recipe.encode(),
        "XML:com.adobe.xmp": xmp,
    }
    return b"".join(
        # keyword, NUL, not compressed (0, 0), no language, no translated keyword
        _png_chunk(b"iTXt", keyword.encode() + b"\0\0\0\0\0" + text)
        for keyword, text in texts.items()
        if text
    )


def jpeg_head(*, dpi: float) -> bytes:
    """The JFIF head with the resolution; libvips leaves it out where it writes no Exif."""
    density = min(round(dpi), 65_535)
    # version 1.2, dots per inch, horizontal, vertical, no thumbnail
    return _segment(0xE0, b"JFIF\0" + struct.pack(">HBHHBB", 0x0102, 1, density, density, 0, 0))


def jpeg_segments(*, recipe: str, parameters: str, xmp: bytes, dpi: float) -> bytes:
    """The texts as Exif, XMP and comment segments, to stand after the JFIF head.

    The recipe is always whole, in as many comments as it needs. The A1111 text and XMP must fit
    into one segment each and are left out when they do not. Exif repeats the resolution of the
    JFIF head: readers that find Exif without one assume 72 dpi.
    """
    exif = exif_data(parameters, dpi=dpi)
    if len(exif) > _SEGMENT_LIMIT:
        exif = exif_data("", dpi=dpi)
    parts = [_segment(0xE1, exif)]
    if xmp and len(_XMP_HEAD + xmp) <= _SEGMENT_LIMIT:
        parts.append(_segment(0xE1, _XMP_HEAD + xmp))
    parts += [_segment(0xFE, comment) for comment in _comments(recipe)]
    return b"".join(parts)


def png_place(head: bytes) -> tuple[int, int] | None:
    """Which bytes of a PNG give way to chunks: none, after IHDR."""
    return (_PNG_INSERT_AT, _PNG_INSERT_AT) if len(head) >= _PNG_INSERT_AT else None


def jpeg_place(head: bytes) -> tuple[int, int] | None:
    """Which bytes of a JPEG give way to our head: libvips's own JFIF head, if there is one."""
    if len(head) < 24:  # start of image (2), and a JFIF head without thumbnail (18)
        return None
    if head[2:4] != b"\xff\xe0":
        return 2, 2
    return 2, 4 + int.from_bytes(head[4:6])


def read_png(path: Path) -> tuple[int, int, dict[str, str]]:
    """Width, height and the texts of a PNG by their keywords; no pixel is read.

    Raises:
        RequestError: If the file is truncated or damaged.
    """
    with path.open("rb") as file:
        file.seek(len(PNG_START))
        chunks = _png_walk(file)
        name, header = next(chunks, (b"", b""))
        if name != b"IHDR" or len(header) != 13:
            raise RequestError(f"{path} is damaged: it does not begin with a PNG header")
        width_px, height_px = struct.unpack(">II", header[:8])
        texts = dict(_png_text(name, body) for name, body in chunks)
    return width_px, height_px, texts


def read_jpeg(path: Path) -> tuple[int, int, list[str], bytes]:
    """Width, height, the comments and the Exif data of a JPEG; no pixel is read.

    Raises:
        RequestError: If the file is truncated or damaged.
    """
    size: tuple[int, int] | None = None
    comments: list[bytes] = []
    exif = b""
    with path.open("rb") as file:
        file.seek(2)
        for marker, body in _jpeg_walk(file):
            if marker in _FRAMES and len(body) >= 5:
                size = (int.from_bytes(body[3:5]), int.from_bytes(body[1:3]))
            elif marker == 0xFE:
                comments.append(body)
            elif marker == 0xE1 and body.startswith(EXIF_HEAD):
                exif = exif or body
        _check_jpeg_end(file, path)
    if size is None:
        raise RequestError(f"{path} is damaged: it has no JPEG frame header")
    return *size, _joined(comments), exif


def tiff_end(tiff: TiffFile) -> int:
    """The last byte that the directories of an open TIFF speak of: pixels and tag values.

    tifffile leaves out tags that a truncated file cuts off, so the entries are read here.
    """
    return max(max(_directory_ends(tiff, page)) for page in tiff.pages)


def tiff_in_order(tiff: TiffFile) -> bool:
    """Whether all directories of an open TIFF have each tag once and in order, as they must."""
    return all(_in_order(tiff, page.offset) for page in tiff.pages)


def _in_order(tiff: TiffFile, offset: int) -> bool:
    directory = _entries(tiff, offset)
    size, format_ = tiff.tiff.tagsize, tiff.tiff.byteorder + "H"
    codes = [
        struct.unpack_from(format_, directory, at)[0] for at in range(0, len(directory), size)
    ]
    return all(one < other for one, other in itertools.pairwise(codes))


def _entries(tiff: TiffFile, offset: int) -> bytes:
    layout, file = tiff.tiff, tiff.filehandle
    file.seek(offset)
    (entries,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    return file.read(entries * layout.tagsize)


def _directory_ends(tiff: TiffFile, page: TiffPage | TiffFrame) -> Iterator[int]:
    layout = tiff.tiff
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        yield offset + count
    directory = _entries(tiff, page.offset)
    yield page.offset + layout.tagnosize + len(directory) + layout.offsetsize
    for at in range(0, len(directory), layout.tagsize):
        # code (2), type (2), count (4 or 8), and the value or, where it is longer, its place
        _, kind = struct.unpack_from(layout.tagformat1, directory, at)
        count, value = struct.unpack_from(layout.tagformat2, directory, at + 4)
        value_bytes = count * _TIFF_TYPE_BYTES.get(kind, 1)
        if value_bytes > len(value):
            yield int(struct.unpack(layout.offsetformat, value)[0]) + value_bytes


def _png_chunk(name: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(name + body)
    return len(body).to_bytes(4) + name + body + checksum.to_bytes(4)


def _png_walk(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Names and bodies of the header and text chunks; pixel data is jumped over.

    It ends at the end mark, whatever other programs have put behind it.
    """
    while (head := _whole(file, 8))[4:] != b"IEND":
        length, name = int.from_bytes(head[:4]), head[4:]
        if name not in (b"IHDR", b"iTXt", b"tEXt", b"zTXt") or length > _TEXT_LIMIT_BYTES:
            file.seek(length + 4, 1)
            continue
        body = _whole(file, length)
        if _whole(file, 4) != zlib.crc32(name + body).to_bytes(4):
            raise RequestError(f"{file.name} is damaged: wrong checksum of a PNG chunk")
        yield name, body
    _whole(file, 4)


def _png_text(name: bytes, body: bytes) -> tuple[str, str]:
    """Keyword and text of a chunk; of another kind of chunk they are empty."""
    keyword, _, rest = body.partition(b"\0")
    key = keyword.decode("latin-1")
    if name == b"tEXt":
        return key, _latin_or_utf8(rest)
    if name == b"zTXt":  # a byte says how it is compressed; there is one way
        return key, _latin_or_utf8(_inflated(rest[1:]))
    if name != b"iTXt" or len(rest) < 2:
        return "", ""
    text = rest[2:].split(b"\0", 2)[-1]
    return key, (_inflated(text) if rest[0] else text).decode(errors="replace")


def _latin_or_utf8(text: bytes) -> str:
    """Latin-1 as the standard wants it, or the UTF-8 that some programs write in its place."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _TEXT_LIMIT_BYTES)
    except zlib.error:
        return b""


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2) + body


def _comments(text: str) -> list[bytes]:
    """The text in comments that say "part 1 of 3": a segment holds 64 KiB only."""
    data = text.encode()
    step = _SEGMENT_LIMIT - 100
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    heads = [f"{_COMMENT_MARK} {i}/{len(pieces)}\n" for i in range(1, len(pieces) + 1)]
    return [head.encode() + piece for head, piece in zip(heads, pieces, strict=True)]


def _joined(comments: list[bytes]) -> list[str]:
    mark = _COMMENT_MARK.encode()
    ours = [body.partition(b"\n")[2] for body in comments if body.startswith(mark)]
    others = [body for body in comments if not body.startswith(mark)]
    whole = [b"".join(ours)] if ours else []
    return [body.decode(errors="replace") for body in whole + others]


def _jpeg_walk(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Markers and bodies of the segments before the scan."""
    while len(head := file.read(2)) == 2 and head[0] == 0xFF and head[1] != _SCAN:
        length = int.from_bytes(file.read(2))
        body = file.read(max(length - 2, 0))
        if length < 2 or len(body) != length - 2:
            raise RequestError(f"{file.name} is damaged: a JPEG segment is cut off")
        yield head[1], body


def _check_jpeg_end(file: BinaryIO, path: Path) -> None:
    """Look for the end mark: as the last bytes, or from here, where the scan begins, on.

    Pixels hold no such bytes (T.81, B.1.1.5); cameras put videos and other pictures behind it.
    """
    here = file.tell()
    file.seek(max(file.seek(0, 2) - len(_JPEG_END), 0))
    if file.read() == _JPEG_END:
        return
    file.seek(here)
    before = b""
    while part := file.read(_SEARCHED_BYTES):
        if _JPEG_END in before + part:
            return
        before = part[-1:]
    raise _truncated(path)


def _whole(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _truncated(Path(file.name))
    return data


def _truncated(path: Path) -> RequestError:
    size = path.stat().st_size
    return RequestError(f"{path} is truncated ({size} bytes); take a whole copy")
