"""Rendered pictures on disk: shards of uint8 arrays with their captions.

A shard is ``KIND-00012.npy``, an array (N, 256, 256, 3) of uint8 sRGB, beside
``KIND-00012.json``, a list of N lists of captions. A shard is written whole or not at all and
depends on its kind and number only, so rendering resumes by skipping what is there.

Kinds:
    wide: whole compositions, what the base stage draws.
    crop: quarters of compositions rendered twice as large, what the first doubling sees.
    close, detail: near views rendered at their own scale, what later doublings see.
    photo: squares of photographs, which are cut, not rendered; only who asks for them gets any.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hirescli.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PICTURE_PX = 256
PICTURES_PER_SHARD = 256
KINDS = ("wide", "crop", "close", "detail")
PHOTO = "photo"
LENS_SIGMA_PX = 0.6
HELD_OUT_SEED = 1 << 40  # seeds from here on are never trained on

Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Captioned = tuple[Pictures, list[str]]


def soften(picture: Pictures) -> Pictures:
    """A picture (H, W, 3) as a lens and a sensor see it: nothing left at the Nyquist limit."""
    from scipy.ndimage import gaussian_filter

    soft = gaussian_filter(picture.astype(np.float32), (LENS_SIGMA_PX, LENS_SIGMA_PX, 0))
    rounded: Pictures = np.rint(soft).clip(0, 255).astype(np.uint8)
    return rounded


def render_one(kind: str, seed: int) -> list[Captioned]:
    """Pictures (256, 256, 3) of one kind with their captions; ``crop`` gives four, others one."""
    from hirescli.training.scenes import render

    if kind != "crop":
        scene = render(seed=seed, size_px=PICTURE_PX, zoom=kind)
        return [(soften(scene.picture), list(scene.captions))]
    scene = render(seed=seed, size_px=2 * PICTURE_PX, zoom="wide")
    picture = soften(scene.picture)
    corners = [(y, x) for y in (0, PICTURE_PX) for x in (0, PICTURE_PX)]
    return [
        (picture[y : y + PICTURE_PX, x : x + PICTURE_PX], list(scene.captions)) for y, x in corners
    ]


def render_shard(folder: Path, kind: str, number: int, *, held_out: bool = False) -> None:
    """Write shard ``number`` of ``kind``, unless it is there."""
    target = folder / shard_name(kind, number)
    if target.exists():
        return
    first_seed = (HELD_OUT_SEED if held_out else 0) + number * PICTURES_PER_SHARD
    first_seed += KINDS.index(kind) << 32  # no two kinds share a seed
    made: list[Captioned] = []
    seed = first_seed
    while len(made) < PICTURES_PER_SHARD:
        made += render_one(kind, seed)
        seed += 1
    write_shard(target, made)


def shard_name(kind: str, number: int) -> str:
    """Of the file of pictures."""
    return f"{kind}-{number:05d}.npy"


def write_shard(target: Path, made: Sequence[Captioned]) -> None:
    """Write pictures (256, 256, 3) with their captions as a shard."""
    captions = json.dumps([captions for _, captions in made])
    target.with_suffix(".json").write_text(captions, encoding="utf-8")
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, np.stack([picture for picture, _ in made]))
    os.replace(partial, target)  # the array comes last: a shard with an array is complete


def render_shards(
    folder: Path, counts: dict[str, int], *, workers: int, held_out: bool = False
) -> Iterator[tuple[str, int]]:
    """Render shards of several kinds in turn, ``counts[kind]`` of each; yields what is done.

    Kinds take turns, so that a run that is cut off leaves a fair mixture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = sorted(
        (number / count, kind, number) for kind, count in counts.items() for number in range(count)
    )
    with ProcessPoolExecutor(max_workers=workers) as pool:
        futures = [
            (kind, number, pool.submit(render_shard, folder, kind, number, held_out=held_out))
            for _, kind, number in jobs
        ]
        for kind, number, future in futures:
            future.result()
            yield kind, number


def shard_paths(folder: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """The finished shards of these kinds, sorted by name."""
    return sorted(path for kind in kinds for path in folder.glob(f"{kind}-*.npy"))


def finished_shards(folder: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """As `shard_paths`, at least one.

    Raises:
        RequestError: If the folder is missing or holds none of these kinds.
    """
    paths = shard_paths(folder, kinds)
    if not paths:
        state = "holds no" if folder.is_dir() else "does not exist, so there are no"
        raise RequestError(
            f"folder {folder} {state} rendered shards of kind {' or '.join(kinds)}; "
            "make some with: hires train render"
        )
    return paths


def load_shard(path: Path) -> tuple[Pictures, list[list[str]]]:
    """Pictures (N, 256, 256, 3), mapped not read, and N lists of captions.

    Raises:
        RequestError: If either file is missing, damaged or of something else, or they differ in
            number.
    """
    pictures, captions = load_pictures(path), _load_captions(path.with_suffix(".json"))
    if len(pictures) != len(captions):
        raise RequestError(
            f"{path} has {len(pictures)} pictures and {len(captions)} captions; remove both "
            "files, and make the shard again"
        )
    return pictures, captions


def load_pictures(path: Path) -> Pictures:
    """Pictures (N, 256, 256, 3) of a shard, mapped not read; one or more.

    Raises:
        RequestError: If the file is missing, damaged or of something else.
    """
    try:
        array: Pictures = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(
            f"shard {path} cannot be read: {error}; remove it, and make it again"
        ) from error
    whole = array.dtype == np.uint8 and array.shape[1:] == (PICTURE_PX, PICTURE_PX, 3)
    if not whole or not len(array):
        raise RequestError(
            f"shard {path} holds {array.dtype} {array.shape}; pictures are uint8 "
            f"(N, {PICTURE_PX}, {PICTURE_PX}, 3), one or more; remove it, and make it again"
        )
    return array


def _load_captions(path: Path) -> list[list[str]]:
    try:
        captions: list[list[str]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"captions {path} of a shard cannot be read: {error}; remove the shard, and make it "
            "again"
        ) from error
    if not isinstance(captions, list) or not all(_are_texts(each) for each in captions):
        raise RequestError(
            f"{path} holds no list of lists of captions; remove the shard, and make it again"
        )
    return captions


def _are_texts(texts: object) -> bool:
    return isinstance(texts, list) and bool(texts) and all(isinstance(t, str) for t in texts)
