"""A classifier of attributes on features of pictures: one hidden layer, three questions.

The look is answered among those of the family that was asked for: a wrong family is counted
once, as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hirescli.errors import RequestError
from hirescli.evaluation.attributes import QUESTIONS, Attributes
from hirescli.evaluation.features import Features
from hirescli.evaluation.rendered import Known

_WIDTH = 512
_DROPOUT = 0.5
_STEPS = 400
_BATCH = 256
_RATE = 1e-3
_WEIGHT_DECAY = 1e-2
_NEVER = -1e9  # the logit of an answer that cannot be

Answer = tuple[str, str, str]  # question, family (empty if all share the question), answer
_SHARED = ("family", "time")


class Heads(nn.Module):
    """Features (B, d) to a logit of every answer, (B, answers)."""

    def __init__(self, features: int, answers: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.layers = nn.Sequential(
            nn.Dropout(_DROPOUT / 2),
            nn.Linear(features, _WIDTH),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(_WIDTH, answers),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of standardised features."""
        logits: Tensor = self.layers((x - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Classifier:
    """Heads with what their outputs mean.

    Attributes:
        heads: Trained.
        answers: Of each output; equal answers of two families are two outputs.
    """

    heads: Heads
    answers: tuple[Answer, ...]

    @torch.no_grad()
    def classify(self, values: Features, wanted: Sequence[Attributes]) -> list[Attributes]:
        """What pictures show.

        Args:
            values: (N, d) features.
            wanted: What each was asked to show; says its family, and which questions it has.

        Raises:
            RequestError: If one was asked for a family that the classifier has not seen.
        """
        logits = self.heads.eval()(torch.from_numpy(values))
        found = {}
        for question in QUESTIONS:
            allowed = self._allowed(question, wanted)
            best = logits.masked_fill(~allowed, _NEVER).argmax(1).tolist()
            found[question] = [
                self.answers[place][2] if some else None
                for place, some in zip(best, allowed.any(1).tolist(), strict=True)
            ]
        return [
            Attributes(family=family or "", time=time, look=look)
            for family, time, look in zip(
                found["family"], found["time"], found["look"], strict=True
            )
        ]

    def _allowed(self, question: str, wanted: Sequence[Attributes]) -> Tensor:
        """(N, answers): which answers a question has, for the family that was asked for."""
        known = {answer for asked, _, answer in self.answers if asked == "family"}
        for each in wanted:
            if each.family not in known:
                raise RequestError(f'family "{each.family}" is none of {", ".join(sorted(known))}')
        return torch.tensor(
            [
                [
                    asked == question and family in ("", each.family) and question in each.asked()
                    for asked, family, _ in self.answers
                ]
                for each in wanted
            ]
        )


def train_classifier(known: Known, *, seed: int = 0, steps: int = _STEPS) -> Classifier:
    """Train on features of renders; the same features and seed give the same classifier."""
    answers = tuple(sorted({answer for each in known.attributes for answer in _answers(each)}))
    x = torch.from_numpy(known.features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = Heads(x.shape[1], len(answers))
        heads.mean, heads.std = x.mean(0), x.std(0).clamp(min=1e-3)
        targets = _targets(known.attributes, answers)
        _learn(heads, x, targets, _groups(answers), steps=steps)
    return Classifier(heads.eval().requires_grad_(False), answers)


def _learn(
    heads: Heads, x: Tensor, targets: Tensor, groups: Sequence[Tensor], *, steps: int
) -> None:
    optimizer = torch.optim.AdamW(heads.parameters(), lr=_RATE, weight_decay=_WEIGHT_DECAY)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        batch = torch.randint(len(x), (_BATCH,))
        logits = heads(x[batch])
        loss = sum(
            (_loss(logits[:, group], targets[batch][:, group]) for group in groups),
            start=logits.new_zeros(()),
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy over those that the group of answers is for, weighted by their share."""
    asked = targets.any(1)
    if not asked.any():
        return logits.sum() * 0
    share = asked.float().mean()
    return share * F.cross_entropy(logits[asked], targets[asked].float().argmax(1))


def _answers(attributes: Attributes) -> list[Answer]:
    """Looks belong to a family: white dunes and white marble have nothing else in common."""
    return [
        (question, "" if question in _SHARED else attributes.family, answer)
        for question, answer in attributes.asked().items()
    ]


def _targets(attributes: Sequence[Attributes], answers: Sequence[Answer]) -> Tensor:
    """(N, answers): which answers are right."""
    places = {answer: place for place, answer in enumerate(answers)}
    targets = torch.zeros(len(attributes), len(answers), dtype=torch.bool)
    for row, each in enumerate(attributes):
        for answer in _answers(each):
            targets[row, places[answer]] = True
    return targets


def _groups(answers: Sequence[Answer]) -> list[Tensor]:
    """Places of the answers that exclude each other."""
    keys = list(dict.fromkeys(answer[:2] for answer in answers))
    return [
        torch.tensor([place for place, answer in enumerate(answers) if answer[:2] == key])
        for key in keys
    ]
