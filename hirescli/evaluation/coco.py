"""The LinFusion paper's protocol on COCO: one picture for each of 30,000 captions; FID, CLIP.

Pictures, generated and real, are cut to their middle square and resized to 256 px. FID is the
Fréchet distance of Inception features. The CLIP score is the mean cosine of picture and
caption, the caption after the words "A photo depicts ".

References:
    LinFusion: 1 GPU, 1 Minute, 16K Image, https://arxiv.org/abs/2409.02097
    CLIPScore, https://arxiv.org/abs/2104.08718
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hirescli.errors import RequestError
from hirescli.evaluation.frechet import Moments, frechet_distance
from hirescli.evaluation.inception import FEATURES, load_inception
from hirescli.evaluation.making import Wanted, make_pictures
from hirescli.evaluation.picture_sets import middle_square
from hirescli.models.quiet import quiet_libraries

SQUARE_PX = 256
_BATCH = 32
_PREFIX = "A photo depicts "
_SUFFIXES = (".jpg", ".jpeg", ".png")
# What CLIP's pictures are normalised with, from its paper's code.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Item = TypeVar("Item")


# Captions and pictures


@dataclass(frozen=True)
class Caption:
    """A caption of one of COCO's pictures."""

    image_id: int
    text: str

    @property
    def name(self) -> str:
        """The file that its generated picture goes to."""
        return f"{self.image_id:012d}.png"


def choose_captions(path: Path, *, count: int, seed: int) -> list[Caption]:
    """Choose captions of different pictures; the same for a seed, whatever the file's order.

    Args:
        path: Annotations in COCO's format: JSON with `annotations`, each with `id`, `image_id`
            and `caption`.
        count: How many.
        seed: Of the choice.

    Raises:
        RequestError: If the file is none, or has captions for fewer pictures.
    """
    by_image: dict[int, list[tuple[int, str]]] = {}
    try:
        for each in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
            text = " ".join(each["caption"].split())
            by_image.setdefault(int(each["image_id"]), []).append((int(each["id"]), text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{path} holds no captions in COCO's format ({type(error).__name__}: {error}); "
            "give captions_val2014.json"
        ) from error
    if len(by_image) < count:
        raise RequestError(
            f"{path} has captions for {len(by_image)} pictures, {count} were asked for; "
            f"use --count {len(by_image)} or less"
        )
    drawn = random.Random(seed)
    images = drawn.sample(sorted(by_image), count)
    return [Caption(each, drawn.choice(sorted(by_image[each]))[1]) for each in images]


def generate_pictures(
    captions: Sequence[Caption],
    folder: Path,
    choices: dict[str, Any],
    *,
    told: Callable[[int], None] = lambda _: None,
) -> None:
    """Make the picture of every caption; those that stand there with the same recipe are left.

    Args:
        captions: As chosen; the place in the list is added to the seed.
        folder: For the pictures.
        choices: A partial recipe, with size and seed.
        told: Called with the number of pictures there are so far.

    Raises:
        RequestError: If a choice is wrong, or another picture is in the way.
        RunError: If a run fails; the same call goes on where it ended.
    """
    wanted = [
        Wanted(caption.name, caption.text, choices["seed"] + place)
        for place, caption in enumerate(captions)
    ]
    make_pictures(wanted, folder, choices, told=told)


def real_pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, sorted by name.

    Raises:
        RequestError: If there are fewer than two, of which nothing can be said.
    """
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder} of real pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(found) < 2:
        raise RequestError(f"{folder} has {len(found)} JPEG or PNG files; give COCO's val2014")
    return found


def squares(paths: Sequence[Path]) -> Iterator[Tensor]:
    """Pictures in batches (B, 3, 256, 256), from 0 to 1."""
    for batch in _batches(paths):
        yield torch.stack([_square(path) for path in batch])


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _square(path: Path) -> Tensor:
    return torch.from_numpy(middle_square(path, SQUARE_PX).copy()).permute(2, 0, 1).float() / 255


# Scores


@torch.no_grad()
def inception_moments(paths: Sequence[Path], network: torch.nn.Module) -> Moments:
    """Moments of the features (D = 2048) of pictures."""
    device = next(network.parameters()).device
    moments = Moments()
    for batch in squares(paths):
        features = network(batch.to(device))
        assert features.shape[1] == FEATURES
        moments.add(features)
    return moments


@torch.no_grad()
def clip_score(paths: Sequence[Path], texts: Sequence[str], model: Any, tokenizer: Any) -> float:
    """Mean cosine between the embeddings of pictures and of their captions."""
    total, device = 0.0, next(model.parameters()).device
    side = model.config.vision_config.image_size
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (_CLIP_MEAN, _CLIP_STD))
    for batch, said in zip(squares(paths), _batches(texts), strict=True):
        pixels = torch.nn.functional.interpolate(
            batch, (side, side), mode="bicubic", antialias=True, align_corners=False
        )
        words = tokenizer(
            [_PREFIX + text for text in said], padding=True, truncation=True, return_tensors="pt"
        ).to(device)
        made = model(pixel_values=((pixels.clamp(0, 1) - mean) / std).to(device), **words)
        cosine = torch.cosine_similarity(made.image_embeds, made.text_embeds)
        total += float(cosine.double().sum())
    return total / len(paths)


def load_clip(folder: Path) -> tuple[Any, Any]:
    """A CLIP model and its tokenizer, from a folder in transformers' layout.

    Raises:
        RequestError: If the folder has none in the safetensors format.
    """
    from transformers import CLIPModel, CLIPTokenizer

    try:
        with quiet_libraries():
            model: Any = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder} holds no CLIP model with its tokenizer: {error}") from error
    return model.eval().requires_grad_(False), tokenizer


def scores(
    captions: Sequence[Caption],
    made: Path,
    real: Path,
    *,
    inception: Path,
    clip: Path,
    device: str,
) -> dict[str, float]:
    """FID and CLIP score of the pictures in `made` against those in `real`."""
    paths, originals = [made / caption.name for caption in captions], real_pictures(real)
    network = load_inception(inception).to(device)
    model, tokenizer = load_clip(clip)
    fid = frechet_distance(
        inception_moments(paths, network), inception_moments(originals, network)
    )
    texts = [caption.text for caption in captions]
    return {"fid": fid, "clip_score": clip_score(paths, texts, model.to(device), tokenizer)}
