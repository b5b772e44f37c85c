"""Where traces of models that are not shipped are kept: in the user's cache. No torch."""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import hirescli
from hirescli.errors import ConfigError

if TYPE_CHECKING:
    from hirescli.attention.clear_published import Variant
    from hirescli.planning.card import Attention, Card
    from hirescli.planning.trace import Trace


def trace_folder(digest: str) -> Path:
    """The folder for the traces of modules whose configs have this SHA-256.

    What is recorded depends on the code that is recorded, diffusers', and on that which records:
    other versions of either leave older traces alone.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    versions = f"hires-{hirescli.__version__}-diffusers-{version('diffusers')}"
    return home / "hires" / "traces" / f"{versions}-{digest}"


def recorded(
    card: Card, configs: Path, adapter: Path | Variant | None, component: str, dtype: str,
    attention: Attention,
) -> Trace:  # fmt: skip
    """A trace that is kept where the card looks for it, or is recorded on the meta device.

    Loads torch, once for every model or ControlNet whose modules are new.

    Raises:
        RequestError: If the libraries can make no modules of the configs.
    """
    with contextlib.suppress(ConfigError):  # a shipped card looked among those shipped
        return card.trace(component, dtype, attention)
    from hirescli.models.components import naming
    from hirescli.models.traces import record_configs
    from hirescli.planning.card import write_trace

    with naming(configs):
        trace = record_configs(card, configs, adapter, component, dtype, attention)
    with contextlib.suppress(OSError):  # a cache that cannot be written to costs time only
        write_trace(card, component, dtype, trace, attention)
    return trace
