"""The server of the page: on this machine only, to be read only, confined to its pictures.

Every answer depends on the pictures that were named when it was started. Nothing in a request
becomes a path: static files are a fixed table, tiles are numbers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hirescli.errors import HiresError, RequestError
from hirescli.viewer.shown import Shown
from hirescli.viewer.standing import labels
from hirescli.viewer.tiles import OutsideError

HOST = "127.0.0.1"
DEFAULT_PORT = 8765
_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILES = ("index.html", "viewer.css", "viewer.js", "openseadragon.min.js", "icon.svg")
_TILE = re.compile(
    r"/tiles/([0-9])/([0-9a-f]{16})/([0-9]{1,2})/([0-9]{1,7})_([0-9]{1,7})\.(jpg|jpeg|png)"
)
# A web page elsewhere has another name. The port may be another: one that ssh carries over.
_OWN = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_ALLOWED = "GET, HEAD"
_HEADERS = {
    # The hash is that of the one style sheet that OpenSeadragon puts into the page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_FOR_EVER = "private, max-age=31536000, immutable"


class ViewServer(ThreadingHTTPServer):
    """Serves the page and the tiles of some pictures.

    Args:
        pictures: At most ten.
        port: Where; 0: any that is free; None: the usual one, or any if that is taken.

    Raises:
        RequestError: If the port is taken.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, pictures: Sequence[Shown], port: int | None) -> None:
        self.pictures = tuple(pictures)
        self.labels = labels([each.output for each in self.pictures])
        self.files = {"/" + name: _static(name) for name in _FILES}
        self.files["/"] = self.files["/index.html"]
        try:
            super().__init__((HOST, DEFAULT_PORT if port is None else port), _Handler)
        except OSError as error:
            if port is not None:
                raise RequestError(
                    f"port {port} cannot be had ({error.strerror}); give another, or --port 0 "
                    "for any that is free"
                ) from error
            super().__init__((HOST, 0), _Handler)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of pages that were closed while they were answered."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: ViewServer
    server_version, sys_version = "hires", ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # of a connection that says nothing
    # Head and body are two writes; without this the second waits for the first's receipt.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer with a file, the state, or a tile."""
        refused = self._refusal()
        if refused is not None:
            self.send_error(refused)
            return
        path = unquote(self.path.partition("?")[0])
        if path == "/state.json":
            state = {
                "pictures": [
                    each.state() | {"name": label}
                    for each, label in zip(self.server.pictures, self.server.labels, strict=True)
                ]
            }
            self._send(json.dumps(state).encode(), "application/json", "no-store")
        elif path in self.server.files:
            self._send(*self.server.files[path], "no-cache")
        elif (match := _TILE.fullmatch(path)) is not None:
            self._send_tile(match)
        else:  # all that this server has is listed above
            self.send_error(HTTPStatus.FORBIDDEN)

    def do_HEAD(self) -> None:
        """Answer as `do_GET`, without the body."""
        self.do_GET()

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Answer with a status and its name. What is asked for is not repeated."""
        status = HTTPStatus(code)
        if status == HTTPStatus.NOT_IMPLEMENTED:  # what the base class says of POST
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self.close_connection = True  # the body of a request is not read
        headers = {"Connection": "close"}
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = _ALLOWED
        body = f"{status.value} {status.phrase}\n".encode()
        self._send(body, "text/plain; charset=utf-8", "no-store", status, headers)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (of the base class)
        """Nothing is logged."""

    def _refusal(self) -> HTTPStatus | None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or _OWN.fullmatch(hosts[0].strip()) is None:
            return HTTPStatus.FORBIDDEN
        path = unquote(self.path)
        if not path.startswith("/") or ".." in path or "\\" in path or "\0" in path:
            return HTTPStatus.FORBIDDEN
        return None

    def _send_tile(self, match: re.Match[str]) -> None:
        import pyvips

        index, version, suffix = int(match[1]), match[2], match[6]
        place = int(match[3]), int(match[4]), int(match[5])
        pictures = self.server.pictures
        tiles = pictures[index].tiles(version) if index < len(pictures) else None
        if tiles is None or suffix != tiles.geometry.suffix or not tiles.geometry.has(*place):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            data = tiles.tile(*place)
        except OutsideError:
            self.send_error(HTTPStatus.FORBIDDEN)
        except FileNotFoundError:
            self.send_error(HTTPStatus.NOT_FOUND)
        except (HiresError, OSError, pyvips.Error):
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            kind = "image/png" if suffix == "png" else "image/jpeg"
            self._send(data, kind, _FOR_EVER)

    def _send(
        self,
        body: bytes,
        kind: str,
        cache: str,
        status: HTTPStatus = HTTPStatus.OK,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        told = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": cache}
        for name, value in {**told, **_HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _static(name: str) -> tuple[bytes, str]:
    path = _PAGE / name
    return path.read_bytes(), _TYPES[path.suffix]
