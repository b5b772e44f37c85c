"""What evaluations found, as Markdown tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hirescli.evaluation.attributes import QUESTIONS
from hirescli.evaluation.charts import GREY, INK, drawn
from hirescli.evaluation.tables import table

if TYPE_CHECKING:
    from pathlib import Path

    from hirescli.evaluation.alignment import Alignment, Answered
    from hirescli.evaluation.patches import PatchDistances

_DARK = 0.5  # share of a row from which its number is written in white


def alignment_page(alignment: Alignment) -> str:
    """Accuracy by question, and the confusion of families, in Markdown."""
    rows = [
        [question, _share(alignment.generated, question), _share(alignment.held_out, question)]
        for question in (*QUESTIONS, "all")
    ]
    families, counts = alignment.generated.confusion()
    confused = [
        [family, *(str(count) if count else "" for count in row)]
        for family, row in zip(families, counts, strict=True)
    ]
    parts = [
        table(["asked", "generated pictures", "held-out renders"], rows),
        "Families of generated pictures: asked for (rows), seen (columns).",
        table(["", *families], confused),
    ]
    return "\n\n".join(parts) + "\n"


def patches_page(found: Sequence[PatchDistances]) -> str:
    """Patch Fréchet distances by size and way, in Markdown."""
    ways = list(dict.fromkeys(way for each in found for way in each.distances))
    rows = [
        [
            f"{each.size_px} px",
            f"{each.base_px} px",
            *(f"{each.distances[way]:.1f}" if way in each.distances else "" for way in ways),
            f"{each.patches}, {each.reference}",
        ]
        for each in found
    ]
    return table(["size", "base", *ways, "patches, of renders"], rows) + "\n"


def confusion_chart(path: Path, answered: Answered, *, title: str) -> None:
    """The confusion of families as a PNG: rows were asked for, columns were seen."""
    families, counts = answered.confusion()
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    side = 2.0 + 0.45 * len(families)
    with drawn(path, width=side + 0.6, height=side, title=title) as figure:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        axes.set_xticks(range(len(families)), families, rotation=45, ha="right")
        axes.set_yticks(range(len(families)), families)
        axes.set(xlabel="seen", ylabel="asked for")
        axes.spines[:].set_color(GREY)
        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                if count:
                    colour = "white" if shares[row][column] > _DARK else INK
                    axes.text(column, row, str(count), ha="center", va="center", color=colour)


def _share(answered: Answered, question: str) -> str:
    right, asked = answered.right(question)
    return f"{answered.accuracy(question):.1%} ({right} of {asked})" if asked else "not asked"
