"""Errors as lines of JSON, for whoever reads the output of a command with --json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from hirescli.cli.streams import write_line
from hirescli.errors import HiresError


@contextmanager
def json_errors(wanted: bool) -> Iterator[None]:
    """While it lasts, an error of ours is also printed as an event, and goes on as it is.

    Args:
        wanted: Whether the command was given --json; else nothing is printed.
    """
    try:
        yield
    except HiresError as error:
        if wanted:
            code = error.exit_code
            write_line(json.dumps({"event": "error", "message": str(error), "exit_code": code}))
        raise
