"""Alignment: the classifier on features made by hand, renders that are kept, the sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hirescli.errors import RequestError
from hirescli.evaluation import rendered
from hirescli.evaluation.alignment import Alignment, Answered
from hirescli.evaluation.attributes import Attributes
from hirescli.evaluation.classifier import Classifier, train_classifier
from hirescli.evaluation.rendered import Known, described, known_features, worsened
from hirescli.evaluation.reports import alignment_page, confusion_chart
from hirescli.training.scenes import FAMILIES

SEA, DAY, NIGHT = (Attributes("sea", time, None) for time in ("dusk", "day", "night"))
DUNES = [Attributes("dunes", "day", look) for look in ("red", "white")]
STONE = [Attributes("stone", None, look) for look in ("red agate", "white marble")]


class Colours(torch.nn.Module):
    """Features that are the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * self.one


def separable(count: int, seed: int) -> Known:
    """Every answer has a direction of its own."""
    random = np.random.default_rng(seed)
    shown = [[SEA, DAY, NIGHT, *DUNES, *STONE][index] for index in random.integers(0, 7, count)]
    words = ["sea", "dunes", "stone", "dusk", "day", "night", "red", "white", "red agate"]
    x = [[3.0 * (word in each.asked().values()) for word in words] for each in shown]
    noise = random.normal(0, 0.3, (count, len(words)))
    return Known((np.array(x) + noise).astype(np.float32), shown)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return train_classifier(separable(300, 0), steps=60)


def test_classifier_learns_what_can_be_told_apart(classifier: Classifier) -> None:
    test = separable(200, 1)
    found = classifier.classify(test.features, test.attributes)
    assert Answered(test.attributes, found).accuracy("all") > 0.97


def test_same_features_give_the_same_classifier(classifier: Classifier) -> None:
    before = torch.random.get_rng_state()
    again = train_classifier(separable(300, 0), steps=60)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in classifier.heads.state_dict().items():
        assert torch.equal(again.heads.state_dict()[name], value)


def test_looks_are_those_of_the_family_asked_for(classifier: Classifier) -> None:
    """Features of red stone, asked for as dunes: seen as stone, and its look among dunes'."""
    test = separable(200, 2)
    red = test.features[[each == STONE[0] for each in test.attributes]]
    for each in classifier.classify(red, [DUNES[0]] * len(red)):
        assert each.look in ("red", "white")
        assert each.family == "stone"
    for each in classifier.classify(red, [DAY] * len(red)):
        assert each.look is None


def test_unknown_family_is_named(classifier: Classifier) -> None:
    with pytest.raises(RequestError, match='"horses" is none of dunes, sea, stone'):
        classifier.classify(np.zeros((1, 9), np.float32), [Attributes("horses", None, None)])


def test_accuracy_counts_questions_that_were_asked() -> None:
    answered = Answered([SEA, DAY, DUNES[0], STONE[0]], [SEA, NIGHT, DUNES[1], STONE[0]])
    assert answered.right("family") == (4, 4)
    assert answered.right("time") == (2, 3)
    assert answered.right("look") == (1, 2)
    assert answered.right("all") == (7, 9)
    assert Answered([STONE[0]], [STONE[0]]).accuracy("time") == 0


def test_confusion_and_page(tmp_path: Path) -> None:
    answered = Answered([SEA, DAY, STONE[0]], [SEA, DUNES[0], STONE[0]])
    families, counts = answered.confusion()
    assert families == ["sea", "stone", "dunes"]
    assert counts == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    alignment = Alignment(generated=answered, held_out=Answered([SEA], [SEA]))
    page = alignment_page(alignment)
    assert "| family | 66.7% (2 of 3) | 100.0% (1 of 1) |" in page
    assert "| look | 100.0% (1 of 1) | not asked |" in page
    assert "| sea | 1 |  | 1 |" in page
    assert alignment.to_json()["generated_accuracy"]["family"] == pytest.approx(2 / 3)
    confusion_chart(tmp_path / "c.png", answered, title="Families")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_renders_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that stands there is read, a damaged one is made again, both to the same values."""
    monkeypatch.setattr(rendered, "_PART", 1)
    told: list[int] = []
    choices = {"size_px": 32, "per_family": 1}

    def known(*, held_out: bool) -> Known:
        return known_features(tmp_path, Colours(), held_out=held_out, told=told.append, **choices)

    first = known(held_out=True)
    assert [each.family for each in first.attributes] == list(FAMILIES)
    assert first.features.shape == (14, 3 + 192)
    assert told == [14]
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    np.testing.assert_array_equal(known(held_out=True).features, first.features)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(known(held_out=True).features, first.features)
    assert not np.array_equal(known(held_out=False).features, first.features)


def test_colours_of_fields_are_seen() -> None:
    picture = np.zeros((1, 16, 16, 3), np.uint8)
    picture[0, :2, 2:4] = (10, 20, 30)  # the second field
    made = described(picture, Colours())
    assert made[0, 3:9].tolist() == [0, 0, 0, 10, 20, 30]


def test_worse_renders_are_softer_and_sometimes_untouched() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    made = [worsened(picture, np.random.default_rng(seed)) for seed in range(20)]
    same = sum(np.array_equal(each, picture) for each in made)
    assert 1 <= same <= 10
    assert min(each.std() for each in made) < 0.7 * picture.std()
