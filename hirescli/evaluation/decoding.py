"""Ways to decode a large picture, each in a process of its own, against the whole-image call."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hirescli.evaluation.agreement import max_error, psnr, rmse
from hirescli.evaluation.case import Case, Outcome, in_child
from hirescli.evaluation.request import PX_PER_LATENT

WAYS = ("plain", "banded", "tiled")


@dataclass(frozen=True)
class Decode:
    """One way at one size.

    Attributes:
        width_px, height_px: Of the picture.
        way: One of `WAYS`; "plain" is the whole-image decode that the others are held against.
        outcome: Seconds and memory.
        max_error, rmse: From the whole-image decode, in its standard deviations.
        psnr_db: From it, over its range; None if equal.
    """

    width_px: int
    height_px: int
    way: str
    outcome: Outcome
    max_error: float
    rmse: float
    psnr_db: float | None


def decodes(case: Case) -> list[Decode]:
    """All ways at one size.

    Args:
        case: Of the whole-image decode.

    Raises:
        RequestError: If the budget is too small.
        RunError: If a decode fails.
    """
    made: list[Decode] = []
    height, width = case.latents
    with tempfile.TemporaryDirectory() as folder:
        whole = None
        for way in WAYS:
            outcome, got = in_child(replace(case, way=way), Path(folder) / f"{way}.safetensors")
            whole = got if whole is None else whole
            made.append(
                Decode(
                    width_px=width * PX_PER_LATENT,
                    height_px=height * PX_PER_LATENT,
                    way=way,
                    outcome=outcome,
                    max_error=max_error(got, whole),
                    rmse=rmse(got, whole),
                    psnr_db=psnr(got, whole),
                )
            )
    return made
