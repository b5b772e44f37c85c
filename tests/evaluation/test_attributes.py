"""What is asked of pictures: the list is what the renderer says, and the fixed lists are fixed."""

from __future__ import annotations

from collections import Counter

from hirescli.evaluation.attributes import alignment_prompts, attributes_of, written_prompts
from hirescli.evaluation.making import numbered, sheet_prompts
from hirescli.training.scenes import FAMILIES, Scene


def test_list_is_what_the_renderer_says() -> None:
    """The first prompt of every family, rendered again."""
    made = [line for line in written_prompts(per_family=1).splitlines() if line]
    listed = alignment_prompts()[: len(FAMILIES)]
    assert [prompt.attributes.family for prompt in listed] == list(FAMILIES)
    for line, prompt in zip(made, listed, strict=True):
        assert f'"prompt": "{prompt.text}"' in line
        assert prompt.attributes.look is None or f'"look": "{prompt.attributes.look}"' in line


def test_list_is_balanced() -> None:
    prompts = alignment_prompts()
    assert Counter(prompt.attributes.family for prompt in prompts) == dict.fromkeys(FAMILIES, 16)
    times = Counter(prompt.attributes.time for prompt in prompts)
    assert {time for time in times if time} == {"dawn", "day", "sunset", "dusk", "night", "storm"}


def test_questions_that_give_marks_away_are_not_asked() -> None:
    """Northern lights are always at night, canyons always red, and islands have no time."""

    def asked(family: str, **known: str) -> dict[str, str]:
        return attributes_of(Scene(None, (), family, known)).asked()  # type: ignore[arg-type]

    assert asked("aurora", time="night", colour="red") == {"family": "aurora", "look": "red"}
    assert asked("canyon", time="day") == {"family": "canyon", "time": "day"}
    assert asked("islands", layout="a coast") == {"family": "islands"}
    stone = asked("stone", colour="blue", material="agate")
    assert stone == {"family": "stone", "look": "blue agate"}


def test_sheet_shows_every_family() -> None:
    words = ["mountain", "dune", "canyon", "hill", "forest", "aurora", "sea", "sky", "nebula",
             "galaxy", "planet", "islands", "agate", "wood"]  # fmt: skip
    prompts = sheet_prompts()
    assert len(prompts) == len(set(prompts)) == 24
    assert all(any(word in prompt for prompt in prompts) for word in words)


def test_pictures_count_on_from_the_seed() -> None:
    made = numbered(["a", "b"], 7)
    assert [(each.name, each.prompt, each.seed) for each in made] == [
        ("0000.png", "a", 7),
        ("0001.png", "b", 8),
    ]
