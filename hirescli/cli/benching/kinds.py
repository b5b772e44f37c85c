"""The kinds of measurement, and the options that each of them takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hirescli.cli.benching.bands import bands, vae
from hirescli.cli.benching.clear import clear
from hirescli.cli.benching.findings import findings
from hirescli.cli.benching.gpu import gpu
from hirescli.cli.benching.measured import Measured
from hirescli.cli.benching.outputs import outputs
from hirescli.cli.benching.pictures import batch, builtin
from hirescli.errors import RequestError


@dataclass(frozen=True)
class Kind:
    """A kind of measurement.

    Attributes:
        measure: Measures, given options by their names; raises a RequestError if a value makes
            no sense.
        takes: The names of the options that have an effect.
    """

    measure: Callable[[dict[str, Any]], Measured]
    takes: tuple[str, ...]


KINDS = {
    "builtin": Kind(builtin, ("sizes", "repeat", "prompt")),
    "batch": Kind(batch, ("sizes",)),
    "bands": Kind(bands, ("size", "rows", "repeat", "dtype", "threads", "memory")),
    "vae": Kind(vae, ("size", "rows", "dtype", "threads", "memory", "model")),
    "gpu": Kind(gpu, ("sizes", "device")),
    "outputs": Kind(outputs, ("size",)),
    "clear": Kind(clear, ("grids", "device", "dtype", "threads")),
    "findings": Kind(
        findings,
        ("data", "held-out", "work", "model", "steps", "pictures", "threads"),
    ),
}


def kind_of(what: str, asked: Iterable[str]) -> Kind:
    """The kind of measurement of a name.

    Args:
        what: The name.
        asked: The names of the options that were given.

    Raises:
        RequestError: If there is none of that name, or an option would have no effect on it.
    """
    if what not in KINDS:
        raise RequestError(f'"{what}" cannot be measured; measure one of {", ".join(KINDS)}')
    kind = KINDS[what]
    for key in asked:
        if key not in kind.takes:
            takes = ", ".join(f"--{name}" for name in kind.takes)
            raise RequestError(
                f"--{key} has no effect on `hires bench {what}`, which takes {takes}; leave it out"
            )
    return kind
