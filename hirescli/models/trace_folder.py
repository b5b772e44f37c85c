"""Where traces of models that are not shipped are kept: in the user's cache. No torch."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hirescli.planning.card import Attention, Card
    from hirescli.planning.trace import Trace

_FORMAT = "1"  # of what is recorded: another number leaves older traces alone


def trace_folder(digest: str) -> Path:
    """The folder for the traces of modules whose configs have this SHA-256."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return home / "hires" / "traces" / f"{_FORMAT}-{digest}"


def recorded(
    card: Card, configs: Path, adapter: Path | None, component: str, dtype: str,
    attention: Attention,
) -> Trace:  # fmt: skip
    """Record a trace on the meta device and keep it where the card looks for it.

    Loads torch, once for every model whose modules are new.
    """
    from hirescli.models.traces import record_configs
    from hirescli.planning.card import write_trace

    trace = record_configs(card, configs, adapter, component, dtype, attention)
    with contextlib.suppress(OSError):  # a cache that cannot be written to costs time only
        write_trace(card, component, dtype, trace, attention)
    return trace
