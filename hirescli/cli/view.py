"""`hires view`: a local page that zooms into a picture while and after it is made."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

from hirescli.cli.options.option import whole
from hirescli.cli.streams import json_visible, visible, write_line
from hirescli.errors import RequestError

_MOST_PICTURES = 2
_MOST_PORT = 65_535


def view(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT [OUT2]",
            help="Picture: a TIFF, PNG, JPEG, WebP, AVIF, GIF or .dzi, or an output that is being "
            "made (OUT.run is there). With two, they are compared, with linked zoom.",
            show_default=False,
        ),
    ],
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="N",
            parser=whole,
            help="Port of the page, on this machine only; 0 is any that is free. Default: 8765, "
            "or any if that is taken.",
            show_default=False,
        ),
    ] = None,
    open_: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open",
            help="Whether to show the page in the browser. Default: where there is a display.",
            show_default=False,
        ),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print the address as a line of JSON."),
    ] = False,
) -> None:
    """Zoom into a picture, on a local page, while and after it is made.

    The page shows each finished stage at once and keeps its place; beside the picture it shows
    the recipe. It is reached from this machine only, and shows the given files only. Ends with
    Ctrl+C.
    """
    from hirescli.viewer.server import ViewServer
    from hirescli.viewer.shown import Shown, Watch

    if len(files) > _MOST_PICTURES:
        raise RequestError(f"{len(files)} pictures are given; name one, or two to compare")
    if port is not None and not 0 <= port <= _MOST_PORT:
        raise RequestError(f"port {port} is none; give one from 1 to {_MOST_PORT}, or 0 for any")
    with tempfile.TemporaryDirectory(prefix="hires-view-") as folder:
        pictures = [Shown(file, _made(Path(folder) / str(i))) for i, file in enumerate(files)]
        with ViewServer(pictures, port) as server, Watch(pictures):
            _say_address(server.url, as_json=json_)
            if _has_display() if open_ is None else open_:
                _open(server.url)
            server.serve_forever(poll_interval=0.1)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _say_address(url: str, *, as_json: bool) -> None:
    if as_json:
        write_line(json_visible(json.dumps({"event": "serving", "url": url})))
        return
    from hirescli.cli.app import say

    write_line(visible(url))
    say("open this address in a browser; Ctrl+C ends it", kind="note")


def _has_display() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(url: str) -> None:
    """Show the page; a browser that is slow to start does not hold the server up."""
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), name="browser", daemon=True).start()
