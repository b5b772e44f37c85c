"""What part of a composition is drawn, and what a family's painter gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hirescli.training.scenes.noise import Field, Picture, fractal

ZOOMS: dict[str, float] = {"wide": 1.0, "close": 4.0, "detail": 16.0}


@dataclass(frozen=True)
class View:
    """A square window of the unit composition (x to the right, y down).

    `px` is the side in samples, `factor` the enlargement, `x0`, `y0` the window's corner.
    """

    zoom: str
    px: int
    factor: float
    x0: float
    y0: float

    def grid(self) -> tuple[Field, Field]:
        """Give x (1, px) and y (px, 1) of the sample centres in composition units."""
        step = (np.arange(self.px, dtype=np.float32) + 0.5) / (self.px * self.factor)
        return (self.x0 + step)[None, :].astype(np.float32), (self.y0 + step)[:, None].astype(
            np.float32
        )

    def fractal(
        self,
        rng: np.random.Generator,
        *,
        beta: float,
        cycles: float,
        high: float | None = None,
        stretch: float = 1.0,
    ) -> Field:
        """Make noise whose `cycles` and `high` count per composition, not per window."""
        cap = None if high is None else max(high / self.factor, 2.0)
        return fractal(
            rng, self.px, beta=beta, cycles=cycles / self.factor, high=cap, stretch=stretch
        )


def window(
    rng: np.random.Generator,
    zoom: str,
    px: int,
    *,
    x: tuple[float, float] = (0.1, 0.9),
    y: tuple[float, float] = (0.1, 0.9),
) -> View:
    """Choose a window for `zoom` whose centre lies in the ranges `x` and `y`."""
    factor = ZOOMS[zoom]
    if factor == 1:
        return View(zoom, px, 1.0, 0.0, 0.0)
    half = 0.5 / factor
    cx, cy = rng.uniform(*x), rng.uniform(*y)
    return View(zoom, px, factor, float(cx - half), float(cy - half))


@dataclass(frozen=True)
class Painting:
    """A picture in linear light with the words that are true of it.

    `subjects` are interchangeable noun phrases, `times` interchangeable phrases of light (may
    be empty), `details` phrases that are all true of the wide view.
    """

    linear: Picture
    subjects: tuple[str, ...]
    times: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    exposure: float = 1.0
