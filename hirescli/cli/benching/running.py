"""A measurement from the command line: checked, done, written, printed."""

from __future__ import annotations

import json

from hirescli.cli.benching.kinds import kind_of
from hirescli.cli.benching.options import MeasuringOptions, WritingOptions
from hirescli.cli.benching.page import print_section, read_page, write_page
from hirescli.evaluation.charts import check_target


def run(what: str, options: MeasuringOptions, writing: WritingOptions) -> None:
    """Measure, and tell the figures.

    Args:
        what: The name of a kind of measurement.
        options: What is measured.
        writing: Where the figures go.

    Raises:
        RequestError: If the request is wrong; nothing was measured or written then.
    """
    asked = options.asked()
    kind = kind_of(what, asked)
    before = read_page(writing.output)
    if writing.chart is not None:
        check_target(writing.chart)
    measured = kind.measure(asked)
    if writing.output is not None:
        write_page(writing.output, before, measured.text)
    if writing.chart is not None:
        measured.draw(writing.chart)
    if writing.json_:
        print(json.dumps(measured.facts))
    else:
        print_section(measured.text)
