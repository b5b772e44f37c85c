"""Photographs become shards: sizes, squares, the split by name, and files that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hirescli.errors import ConfigError, RequestError
from hirescli.training.dataset import load_shard, shard_paths
from hirescli.training.photographs import check, read, split, squares, write_shards


def photograph(path: Path, size: tuple[int, int] = (300, 260), value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 100, 50)).save(path)
    return path


@given(st.integers(256, 1100), st.integers(256, 1100), st.integers(1, 12))
def test_squares_are_squares_and_no_more_than_asked(width: int, height: int, most: int) -> None:
    made = squares(Image.new("RGB", (width, height), (9, 8, 7)), most)
    assert 1 <= len(made) <= most
    assert all(square.shape == (256, 256, 3) for square in made)
    assert all((square == (9, 8, 7)).all() for square in made)


def test_squares_of_every_size() -> None:
    """At 1024x512: eight of its own size, two of the half, which is as small as it gets."""
    picture = np.zeros((512, 1024, 3), np.uint8)
    picture[256:, 768:] = 255
    made = squares(Image.fromarray(picture), 100)
    assert len(made) == 10
    assert [int(square.max()) for square in made] == [0] * 7 + [255, 0, 255]
    wide = squares(Image.new("RGB", (720, 360)), 100)
    assert len(wide) == 2 + 2  # of its own size, and of 512x256


def test_files_are_held_out_by_their_names(tmp_path: Path) -> None:
    for number in range(40):
        photograph(tmp_path / f"{number}.png", (1, 1))
    before = split(tmp_path)
    assert 1 <= len(before.held_out) <= 10
    assert not set(before.trained) & set(before.held_out)
    assert len(before.trained) + len(before.held_out) == 40
    for number in range(40, 60):
        photograph(tmp_path / "more" / f"{number}.jpg", (1, 1))
    after = split(tmp_path)
    assert set(before.held_out) - set(after.held_out) == set()
    assert set(before.trained) - set(after.trained) == set()


def test_one_of_two_is_held_out(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        photograph(tmp_path / name, (1, 1))
    files = split(tmp_path)
    assert (len(files.trained), len(files.held_out)) == (1, 1)


def test_shards_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hirescli.training.photographs.PICTURES_PER_SHARD", 2)
    paths = [photograph(tmp_path / f"{n}.png", value=n) for n in range(5)]
    paths[0].with_suffix(".txt").write_text("a lake\n\nwater \n")
    shards = tmp_path / "shards"
    assert write_shards(paths, shards) == 10  # its own size, and the short side at 256
    found = shard_paths(shards, ["photo"])
    assert [len(load_shard(path)[0]) for path in found] == [2] * 5
    pictures, captions = load_shard(found[0])
    assert captions == [["a lake", "water"]] * 2
    assert load_shard(found[1])[1] == [[""]] * 2
    assert (pictures[0] == (0, 100, 50)).all()
    assert write_shards(paths[:1], shards) == 2
    assert shard_paths(shards, ["photo"]) == found[:1]
    assert {path.name for path in shards.iterdir()} == {"photo-00000.npy", "photo-00000.json"}
    assert shard_paths(shards) == []  # who does not ask for photographs gets none


def test_photographs_are_turned_as_the_camera_says(tmp_path: Path) -> None:
    image = Image.new("CMYK", (300, 400))
    exif = Image.Exif()
    exif[274] = 6  # a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    assert (read(tmp_path / "a.jpg").size, read(tmp_path / "a.jpg").mode) == ((400, 300), "RGB")


def test_shards_stand_until_the_new_ones_are_whole(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"{n}.png", value=n) for n in range(2)]
    shards = tmp_path / "shards"
    write_shards(paths, shards)
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    paths[1].write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"1\.png"):
        write_shards(paths, shards)
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before


def test_all_faults_are_named_together(tmp_path: Path) -> None:
    small = photograph(tmp_path / "small.png", (300, 255))
    broken = tmp_path / "broken.jpg"
    photograph(broken, (600, 600))
    broken.write_bytes(broken.read_bytes()[:400])
    deep = tmp_path / "deep.tif"
    Image.fromarray(np.zeros((300, 300), np.uint16)).save(deep)
    with pytest.raises(ConfigError) as caught:
        check([small, broken, deep, photograph(tmp_path / "good.png")])
    first, second = caught.value.faults
    assert "small.png has 300x255 px; both sides need 256" in first
    assert "broken.jpg is damaged" in second


@pytest.mark.parametrize("count", [0, 1])
def test_folders_without_photographs(count: int, tmp_path: Path) -> None:
    for number in range(count):
        photograph(tmp_path / f"{number}.png", (1, 1))
    with pytest.raises(RequestError, match=f"has {count} pictures"):
        split(tmp_path)
    with pytest.raises(RequestError, match="there is no folder"):
        split(tmp_path / "gone")


def test_command(hires: Callable, tmp_path: Path) -> None:
    for number in range(3):
        photograph(tmp_path / "images" / f"{number}.png")
    words = ("train", "photographs", tmp_path / "images", "shards", "--held-out")
    ran = hires(*words, "shards")
    assert ran.code == 2
    assert "held-out photographs cannot go to shards" in ran.err
    ran = hires(*words, "held-out", "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["squares"] + said["held_out_squares"] == 6
    assert len(shard_paths(Path("held-out"), ["photo"])) == 1
    photograph(tmp_path / "images" / "small.png", (9, 9))
    ran = hires(*words, "new")
    assert (ran.code, Path("new").exists()) == (2, False)
    assert "small.png has 9x9 px" in ran.err
