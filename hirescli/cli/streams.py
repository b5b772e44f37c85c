"""Standard streams that are missing, closed, full or narrow: they end no run."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from typing import Any, TextIO

_ERRORS = "hires"  # our way with what an encoding cannot hold
_JOINERS = "\u200c\u200d"  # of Persian words and of emoji: not printable by themselves, harmless
_failed: list[OSError] = []


def prepare_streams() -> None:
    """Missing streams (`>&-`) become the null device; nothing that is printed fails to encode."""
    _failed.clear()
    codecs.register_error(_ERRORS, _encode)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (lives as long as we do)
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_ERRORS)


def visible(text: str) -> str:
    """The text with control characters, line ends included, shown as escapes."""
    return "".join(c if c.isprintable() or c in _JOINERS else _escaped(c) for c in text)


def json_visible(text: str) -> str:
    """JSON on one line with all that is not printable as JSON's own escapes: the same data."""
    return "".join(c if c.isprintable() or c in _JOINERS else _json_escaped(c) for c in text)


def write_line(text: str) -> None:
    """Print to stdout at once. Nobody reading is no reason to lose hours of work."""
    try:
        print(text, flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _failed.append(error)
        silence(sys.stdout)


def lost_output() -> OSError | None:
    """Why `write_line` could not write, if the reader did not simply leave."""
    return _failed[0] if _failed else None


def silence(stream: TextIO) -> None:
    """Point a stream at the null device, so that the interpreter's last flush is quiet, too."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test may have no number
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


class Patient:
    """A text stream that falls silent when it cannot be written, in place of raising.

    Args:
        stream: What is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """All but writing is the stream's own."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or fall silent."""
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush, or fall silent."""
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)


def _encode(error: UnicodeError) -> tuple[str | bytes, int]:
    """Odd bytes of file names pass through, what else does not fit is shown as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong, following = error.object[error.start], error.start + 1
    if 0xDC80 <= ord(wrong) <= 0xDCFF:
        return bytes([ord(wrong) - 0xDC00]), following
    return _escaped(wrong), following


def _escaped(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escaped(character: str) -> str:
    units = character.encode("utf-16-be", errors="surrogatepass")
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs)
