"""`hires bench bands` and `hires bench vae`: computing in bands against computing whole."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from hirescli.cli.benching.measured import Measured
from hirescli.errors import RequestError
from hirescli.evaluation.charts import bands_chart, decodes_chart
from hirescli.evaluation.page import section
from hirescli.evaluation.request import Request
from hirescli.evaluation.tables import bands_table, decodes_table


def bands(asked: dict[str, Any]) -> Measured:
    """Measure denoiser and decoder, plain and in bands, in turns in this process."""
    request = Request.of(asked)
    ran = request.told(f"Calls of each kind: {request.repeat}.")
    from hirescli.evaluation.bands import compare

    figures = [
        figure
        for size_px in request.sizes_px
        for component in ("unet", "decoder")
        for figure in compare(
            request.case(component, size_px), request.rows, repeat=request.repeat
        )
    ]
    text = section(
        "Bands against plain calls",
        command=f"hires bench bands{request.words}",
        paragraphs=[ran, *bands_table(figures)],
    )
    components = [
        asdict(f) | {"best_ratio": f.best_ratio, "median_ratio": f.median_ratio} for f in figures
    ]
    facts = request.facts() | {"repeat": request.repeat, "components": components}
    return Measured(text, facts, partial(bands_chart, figures=figures))


def vae(asked: dict[str, Any]) -> Measured:
    """Measure three ways to decode, each in a process of its own."""
    request = Request.of(asked)
    if len(request.rows) > 1:
        raise RequestError("`hires bench vae` takes one --rows; `hires bench bands` compares them")
    from hirescli.evaluation.decoding import decodes
    from hirescli.evaluation.folder import check_folder

    if request.folder is not None:
        check_folder(request.folder)
    ran = request.told(f"Weights: {request.folder or 'random, in the size of Stable Diffusion'}.")
    figures = [
        figure
        for size_px in request.sizes_px
        for figure in decodes(request.case("decoder", size_px))
    ]
    text = section(
        "Ways to decode",
        command=f"hires bench vae{request.words}",
        paragraphs=[ran, *decodes_table(figures)],
    )
    facts = request.facts() | {"decodes": [asdict(figure) for figure in figures]}
    return Measured(text, facts, partial(decodes_chart, figures=figures))
