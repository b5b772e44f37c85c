"""The rendered training pictures: determinism, shape, and the truth of what captions say."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from hirescli.training.scenes import FAMILIES, Scene, render
from hirescli.training.scenes.sheet import contact_sheet

ZOOMS = ("wide", "close", "detail")
NOUNS = {
    "mountains": ("mountain",),
    "dunes": ("dune",),
    "canyon": ("canyon",),
    "hills": ("hills",),
    "forest": ("forest",),
    "aurora": ("aurora",),
    "sea": ("sea",),
    "sky": ("sky",),
    "nebula": ("nebula",),
    "galaxy": ("galaxy",),
    "planet": ("planet",),
    "islands": ("islands",),
    "stone": ("stone", "marble", "agate"),
    "wood": ("wood",),
}


@lru_cache(maxsize=512)
def wide(family: str, seed: int) -> Scene:
    return render(seed=seed, size_px=48, family=family, zoom="wide")


def having(family: str, key: str, value: str, count: int = 4) -> list[Scene]:
    """The first `count` wide scenes of a family whose attribute has a value."""
    found = (wide(family, seed) for seed in range(70))
    return [scene for scene in found if scene.attributes[key] == value][:count]


def mean_colour(scenes: list[Scene]) -> np.ndarray:
    return np.mean([scene.picture.reshape(-1, 3).mean(axis=0) for scene in scenes], axis=0)


def test_at_least_eight_families() -> None:
    assert len(FAMILIES) >= 8
    assert set(FAMILIES) == set(NOUNS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("zoom", ZOOMS)
def test_same_arguments_same_scene(family: str, zoom: str) -> None:
    first = render(seed=5, size_px=40, family=family, zoom=zoom)
    second = render(seed=5, size_px=40, family=family, zoom=zoom)
    assert np.array_equal(first.picture, second.picture)
    assert first.captions == second.captions
    assert first.attributes == second.attributes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("zoom", ZOOMS)
def test_shape_captions_and_contrast(family: str, zoom: str) -> None:
    deviations = []
    for seed in range(3):
        scene = render(seed=seed, size_px=50, family=family, zoom=zoom)
        assert scene.picture.shape == (50, 50, 3)
        assert scene.picture.dtype == np.uint8
        assert scene.family == family
        assert scene.attributes["zoom"] == zoom
        assert len(set(scene.captions)) >= 3
        for caption in scene.captions:
            assert caption == caption.lower().strip()
            assert any(noun in caption for noun in NOUNS[family]), caption
            assert len(caption.split()) <= 20
            assert caption.endswith(", close view") == (zoom == "close")
            assert caption.endswith(", detail") == (zoom == "detail")
        deviations.append(scene.picture.std(axis=(0, 1)).mean())
    assert np.median(deviations) > 6


def test_other_seed_other_picture() -> None:
    for family in FAMILIES:
        assert not np.array_equal(wide(family, 0).picture, wide(family, 1).picture)


def test_seed_chooses_family_and_zoom() -> None:
    scenes = [render(seed=seed, size_px=16) for seed in range(60)]
    assert len({scene.family for scene in scenes}) > len(FAMILIES) // 2
    assert {scene.attributes["zoom"] for scene in scenes} == set(ZOOMS)


@pytest.mark.parametrize(
    "family", ["mountains", "dunes", "canyon", "hills", "forest", "sea", "sky"]
)
def test_night_is_darker_than_day_and_sunset_warmer(family: str) -> None:
    night, day, sunset = (
        mean_colour(having(family, "time", time)) for time in ("night", "day", "sunset")
    )
    assert night.mean() < 0.6 * day.mean()
    assert sunset[0] - sunset[2] > day[0] - day[2]


def test_nebula_has_the_colour_of_its_name() -> None:
    single = [wide("nebula", seed) for seed in range(120)]
    single = [scene for scene in single if not scene.attributes["second"]]
    colours = {
        name: mean_colour([s for s in single if s.attributes["colour"] == name][:5])
        for name in ("blue", "red", "green")
    }
    assert colours["blue"].argmax() == 2
    assert colours["red"].argmax() == 0
    assert colours["green"].argmax() == 1


@pytest.mark.parametrize(
    ("family", "key", "brighter", "darker"),
    [
        ("wood", "colour", "light", "dark"),
        ("dunes", "colour", "white", "red"),
        ("hills", "season", "winter", "spring"),
        ("mountains", "cover", "snowy", "rocky"),
    ],
)
def test_named_ground_shows(family: str, key: str, brighter: str, darker: str) -> None:
    first, second = (mean_colour(having(family, key, v, 10)) for v in (brighter, darker))
    assert first[2] > second[2]


def test_sun_stands_where_the_caption_says() -> None:
    checked = 0
    for seed in range(120):
        scene = wide("sea", seed)
        if scene.attributes["time"] not in ("sunset", "night"):
            continue
        glare = scene.picture.astype(float).sum(axis=2) ** 8
        place = float((glare.sum(axis=0) * np.arange(48)).sum() / glare.sum()) / 48
        text = scene.captions[0]
        low, high = (0, 0.46) if "left" in text else (0.54, 1) if "right" in text else (0.36, 0.64)
        assert low < place < high, (seed, text, place)
        checked += 1
    assert checked > 10


def test_families_differ_more_than_they_vary() -> None:
    def signature(scene: Scene) -> np.ndarray:
        blocks = scene.picture.astype(float).reshape(4, 12, 4, 12, 3)
        return np.concatenate([blocks.mean(axis=(1, 3)).ravel(), blocks.std(axis=(1, 3)).ravel()])

    means = {f: np.mean([signature(wide(f, s)) for s in range(10)], axis=0) for f in FAMILIES}
    names = list(means)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(means[first] - means[second]).mean() > 4, (first, second)


@pytest.mark.parametrize(
    "arguments",
    [
        {"family": "cheese"},
        {"zoom": "huge"},
        {"size_px": 8},
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, str | int]) -> None:
    with pytest.raises(ValueError, match=r"unknown|needs"):
        render(**{"seed": 0, "size_px": 32, **arguments})  # type: ignore[arg-type]


def test_contact_sheet_lays_out_rows() -> None:
    scenes = [wide(family, 0) for family in FAMILIES[:5]]
    sheet = contact_sheet(scenes, 3)
    assert sheet.size == (3 * 48, 2 * 48)
    assert np.array_equal(np.asarray(sheet)[48:96, 0:48], scenes[3].picture)
    with pytest.raises(ValueError, match="columns"):
        contact_sheet(scenes, 0)
