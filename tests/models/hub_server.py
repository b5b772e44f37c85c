"""A hub on this machine: repositories with commits, over HTTP as huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Files = dict[str, bytes]


@dataclass
class Hub:
    """What the hub has, and what it was asked.

    Attributes:
        commits: Files of every commit, by repository.
        main: The commit that "main" is, by repository.
        moves: What "main" becomes once it was asked for, by repository.
        gated: Repositories that ask for a login.
        asked: Paths of all requests.
        url: Where it listens.
    """

    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    main: dict[str, str] = field(default_factory=dict)
    moves: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, repository: str, *commits: Files) -> list[str]:
        """Publish a repository; "main" is its first commit. Returns the commits' names."""
        names = [
            hashlib.sha1(f"{repository}{i}".encode()).hexdigest() for i in range(len(commits))
        ]
        self.commits[repository] = dict(zip(names, commits, strict=True))
        self.main[repository] = names[0]
        return names

    def resolve(self, repository: str, revision: str) -> str | None:
        """The commit of a revision."""
        if revision != "main":
            return revision if revision in self.commits[repository] else None
        commit = self.main[repository]
        self.main[repository] = self.moves.get(repository, commit)
        return commit

    def files_asked(self) -> list[str]:
        """Names of files whose content was asked for."""
        parts = [path.split("/resolve/") for path in self.asked if path.startswith("GET /")]
        return [part[1].split("/", 1)[1] for part in parts if len(part) == 2]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            hub.asked.append(f"{self.command} {path}")
            for repository in hub.commits:
                for prefix in (f"/api/models/{repository}", f"/{repository}/resolve/"):
                    if path.startswith(prefix):
                        self._repository(repository, path.removeprefix(prefix), path, body)
                        return
            self._error(404, "RepoNotFound")

        def _repository(self, repository: str, rest: str, path: str, body: bool) -> None:
            if repository in hub.gated:
                self._error(403, "GatedRepo")
            elif path.startswith("/api/"):
                what, _, revision = rest.strip("/").partition("/")
                commit = hub.resolve(repository, revision or "main")
                if commit is None:
                    self._error(404, "RevisionNotFound")
                    return
                files = hub.commits[repository][commit]
                made: Any = {
                    "id": repository, "modelId": repository, "sha": commit, "private": False,
                    "tags": [], "downloads": 0, "likes": 0,
                    "siblings": [{"rfilename": name} for name in files],
                }  # fmt: skip
                if what == "tree":
                    made = [
                        {"type": "file", "path": n, "size": len(d), "oid": _sha1(d)}
                        for n, d in files.items()
                    ]
                self._send(200, json.dumps(made).encode(), {}, body)
            else:
                commit, _, name = rest.partition("/")
                data = hub.commits[repository].get(commit, {}).get(name)
                if data is None:
                    self._error(404, "EntryNotFound")
                    return
                large = name.endswith(".safetensors")
                tag = hashlib.sha256(data).hexdigest() if large else _sha1(data)
                self._send(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": commit}, body)

        def _error(self, code: int, kind: str) -> None:
            self._send(code, b"{}", {"X-Error-Code": kind, "X-Error-Message": kind}, True)

        def _send(self, code: int, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
