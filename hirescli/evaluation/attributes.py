"""What is asked of a generated picture: its family, its time of day, and its look.

The renderer knows all three of every picture it makes. A look is the main colour, material or
cover of what is shown, for families that have one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hirescli.training.scenes import Scene

QUESTIONS = ("family", "time", "look")
_LIST = Path(__file__).parent / "alignment_prompts.jsonl"
_PER_FAMILY = 16
_SIDE_PX = 64  # the prompts do not depend on it enough to matter; it is fixed with the list
# Which of a scene's attributes its look is; of several, their words joined.
_LOOKS: dict[str, tuple[str, ...]] = {
    "mountains": ("cover",),
    "dunes": ("colour",),
    "hills": ("season",),
    "forest": ("colour",),
    "aurora": ("colour",),
    "nebula": ("colour",),
    "galaxy": ("colour",),
    "planet": ("colour", "kind"),
    "stone": ("colour", "material"),
    "wood": ("colour",),
}
_ONE_TIME = ("aurora",)  # always at night: to ask would be to give marks away


@dataclass(frozen=True)
class Attributes:
    """What a picture shows.

    Attributes:
        family: One of the renderer's families.
        time: Of day, or storm; None: the family has none.
        look: Main colour, material or cover; None: the family has one only.
    """

    family: str
    time: str | None
    look: str | None

    def asked(self) -> dict[str, str]:
        """The questions that can be asked, with their answers."""
        said = {question: getattr(self, question) for question in QUESTIONS}
        return {question: answer for question, answer in said.items() if answer is not None}


@dataclass(frozen=True)
class AlignmentPrompt:
    """A prompt of the fixed list, with what it asks for."""

    text: str
    attributes: Attributes


def attributes_of(scene: Scene) -> Attributes:
    """What the renderer knows of its picture."""
    known = scene.attributes
    time = None if scene.family in _ONE_TIME else known.get("time")
    look = " ".join(known[name] for name in _LOOKS.get(scene.family, ()))
    return Attributes(scene.family, time, look or None)


def alignment_prompts() -> list[AlignmentPrompt]:
    """The fixed list, families in turn: 14 families, 16 prompts each."""
    lines = _LIST.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [AlignmentPrompt(row.pop("prompt"), Attributes(**row)) for row in rows]


def written_prompts(per_family: int = _PER_FAMILY) -> str:
    """The list as its file holds it: captions of held-out renders, one paraphrase of each."""
    from hirescli.training.dataset import HELD_OUT_SEED
    from hirescli.training.scenes import FAMILIES, render

    lines = []
    for number in range(per_family):
        for place, family in enumerate(FAMILIES):
            seed = HELD_OUT_SEED + (number * len(FAMILIES) + place)
            scene = render(seed=seed, size_px=_SIDE_PX, family=family, zoom="wide")
            caption = scene.captions[number % len(scene.captions)]
            row = {"prompt": caption, **asdict(attributes_of(scene))}
            lines.append(json.dumps(row) + "\n")
    return "".join(lines)


if __name__ == "__main__":
    _LIST.write_text(written_prompts(), encoding="utf-8")
