"""Text alignment: do generated pictures show what their prompts asked for?

A classifier that has seen renders only looks at pictures of a fixed list of prompts with fixed
seeds, and at held-out renders beside them, which say how far it can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hirescli.evaluation.attributes import QUESTIONS, AlignmentPrompt, Attributes
from hirescli.evaluation.classifier import Classifier, train_classifier
from hirescli.evaluation.making import make_pictures, numbered
from hirescli.evaluation.picture_sets import middle_square
from hirescli.evaluation.rendered import (
    HELD_OUT_PER_FAMILY,
    TRAINED_PER_FAMILY,
    Known,
    described,
    known_features,
)

Told = Callable[[str, int], None]


@dataclass(frozen=True)
class Answered:
    """Pictures with what they were to show and what the classifier saw.

    Attributes:
        wanted: What each picture was asked to show, or shows.
        found: What the classifier says of it.
    """

    wanted: list[Attributes]
    found: list[Attributes]

    def right(self, question: str) -> tuple[int, int]:
        """How many answers are right, of how many that were asked; "all" sums the questions."""
        if question == "all":
            counts = [self.right(each) for each in QUESTIONS]
            return sum(right for right, _ in counts), sum(asked for _, asked in counts)
        asked = [(w, f) for w, f in zip(self.wanted, self.found, strict=True) if _of(w, question)]
        return sum(_of(w, question) == _of(f, question) for w, f in asked), len(asked)

    def accuracy(self, question: str) -> float:
        """Share of right answers; 0 if the question was never asked."""
        right, asked = self.right(question)
        return right / asked if asked else 0.0

    def confusion(self) -> tuple[list[str], list[list[int]]]:
        """Families, and how often each (row) was seen as each (column)."""
        families = list(dict.fromkeys(each.family for each in (*self.wanted, *self.found)))
        counts = [[0] * len(families) for _ in families]
        for wanted, found in zip(self.wanted, self.found, strict=True):
            counts[families.index(wanted.family)][families.index(found.family)] += 1
        return families, counts


@dataclass(frozen=True)
class Alignment:
    """What was found.

    Attributes:
        generated: Of pictures that a model made.
        held_out: Of renders that the classifier has not seen.
    """

    generated: Answered
    held_out: Answered

    def to_json(self) -> dict[str, Any]:
        """Accuracies, counts and the confusion matrix."""
        families, confusion = self.generated.confusion()
        return {
            **{f"{name}_accuracy": _accuracies(each) for name, each in self._both()},
            **{f"{name}_count": len(each.wanted) for name, each in self._both()},
            "families": families,
            "confusion": confusion,
            "answers": [
                {"wanted": wanted.asked(), "found": found.asked()}
                for wanted, found in zip(self.generated.wanted, self.generated.found, strict=True)
            ],
        }

    def _both(self) -> list[tuple[str, Answered]]:
        return [("generated", self.generated), ("held_out", self.held_out)]


def trained_classifier(
    folder: Path, network: nn.Module, *, size_px: int, told: Told
) -> tuple[Classifier, Answered]:
    """The classifier, and how it does on held-out renders; renders' features are kept.

    Args:
        folder: For the features.
        network: As for `features`.
        size_px: Side of the renders: that of the pictures it shall look at.
        told: Called with what is made and how many there are.
    """

    def some(held_out: bool, per_family: int) -> Known:
        words = "held-out renders" if held_out else "renders"
        return known_features(
            folder,
            network,
            size_px=size_px,
            per_family=per_family,
            held_out=held_out,
            told=lambda count: told(words, count),
        )

    classifier = train_classifier(some(False, TRAINED_PER_FAMILY))
    test = some(True, HELD_OUT_PER_FAMILY)
    found = classifier.classify(test.features, test.attributes)
    return classifier, Answered(test.attributes, found)


def measure_alignment(
    prompts: Sequence[AlignmentPrompt],
    folder: Path,
    renders: Path,
    choices: dict[str, Any],
    *,
    seed: int,
    network: nn.Module,
    told: Told = lambda _, __: None,
) -> Alignment:
    """Make the pictures of prompts and look at them.

    Args:
        prompts: At least one; the place in the list is added to the seed.
        folder: For the pictures; those that stand there with the same recipe are left.
        renders: For the features of renders.
        choices: A partial recipe, with `size`, one number.
        seed: Of the first picture.
        network: As for `features`.
        told: Called with what is made and how many there are.

    Raises:
        RequestError: If a choice is wrong, or another picture is in the way.
        RunError: If a run fails; the same call goes on where it ended.
    """
    size_px = int(choices["size"])
    wanted = numbered([prompt.text for prompt in prompts], seed)
    make_pictures(wanted, folder, choices, told=lambda count: told("pictures", count))
    classifier, held_out = trained_classifier(renders, network, size_px=size_px, told=told)
    pictures = np.stack([middle_square(folder / each.name, size_px) for each in wanted])
    asked = [prompt.attributes for prompt in prompts]
    found = classifier.classify(described(pictures, network), asked)
    return Alignment(generated=Answered(asked, found), held_out=held_out)


def _of(attributes: Attributes, question: str) -> str | None:
    return attributes.asked().get(question)


def _accuracies(answered: Answered) -> dict[str, float]:
    return {question: answered.accuracy(question) for question in (*QUESTIONS, "all")}
