"""Captions: short, exact sentences put together from a painting's phrases."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes.view import Painting

SUFFIX = {"wide": "", "close": ", close view", "detail": ", detail"}


def captions(rng: np.random.Generator, painting: Painting, zoom: str) -> tuple[str, ...]:
    """Write one caption per subject phrase, richest first.

    Details describe the whole composition, so only the wide view names them.
    """
    times = painting.times or ("",)
    details = painting.details if zoom == "wide" else ()
    lines = []
    for index, subject in enumerate(painting.subjects):
        time = times[index % len(times)]
        line = f"{subject} {time}".strip()
        # The second caption leaves the details out: people often do not name them.
        if details and index != 1:
            chosen = details if index == 0 else (str(rng.choice(list(details))),)
            line += ", " + ", ".join(chosen)
        lines.append(line + SUFFIX[zoom])
    return tuple(dict.fromkeys(lines))
