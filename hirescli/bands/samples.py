"""One sample out of the arguments of a batch, what varies along the rows made banded.

A UNet, an autoencoder and SD3's transformer are given images (B, C, H, W). FLUX's transformer is
given tokens (B, N, C), and their places (N, 3) in ``img_ids``: kind, row and column. Its rows are
read from these.

FLUX's pipelines give places in the dtype of the model. bfloat16 has not every whole number above
256, so that in pictures above 4096 px neighbours would share one: such places are put right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from hirescli.bands.engine import banded_input, banded_tensor
from hirescli.bands.tensor import BandedTensor, Grid
from hirescli.errors import RequestError

_IMAGES = ("controlnet_cond",)  # arguments with rows beside the first
_PLACES, _TEXT_PLACES = "img_ids", "txt_ids"
_TOKENS = ("hidden_states", "controlnet_cond")  # arguments (B, N, C) with a token for each place

Arguments = tuple[list[Any], dict[str, Any]]


def samples_of(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], title: str
) -> tuple[torch.device, list[Arguments]]:
    """Where a call computes, and its arguments for each sample of the batch.

    Args:
        forward: What is called.
        args: Of the call.
        kwargs: Of the call.
        title: Of the component, for messages.

    Raises:
        RequestError: If no image or tokens with places are among them.
    """
    if _PLACES in inspect.signature(forward).parameters:
        bound = inspect.signature(forward).bind(*args, **kwargs)
        return _of_tokens(dict(bound.arguments), title)
    sample = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(sample, Tensor) or sample.ndim != 4:
        raise RequestError(f"{title} was not given an image (B, C, H, W) to stream")
    batch, height = sample.shape[0], sample.shape[2]
    return sample.device, [_Images(b, batch, height).arguments(args, kwargs) for b in range(batch)]


def cut_batch(value: Any, index: int, batch: int) -> Any:
    """One sample of a value, and of what it holds."""
    if isinstance(value, BandedTensor):
        return BandedTensor.of([value.nodes[index if len(value.nodes) > 1 else 0]])
    if isinstance(value, Tensor):
        own = batch > 1 and value.ndim > 0 and value.shape[0] == batch
        return value[index : index + 1] if own else value
    if isinstance(value, dict):
        return {key: cut_batch(each, index, batch) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [cut_batch(each, index, batch) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


@dataclass(frozen=True)
class _Images:
    """Cuts one sample out of the arguments of a batch of images."""

    index: int
    batch: int
    height: int

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        own = [self._cut(value, image=i == 0) for i, value in enumerate(args)]
        named = {
            key: self._cut(value, image=(not args and i == 0) or key in _IMAGES)
            for i, (key, value) in enumerate(kwargs.items())
        }
        return own, named

    def _cut(self, value: Any, image: bool) -> Any:
        own = cut_batch(value, self.index, self.batch)
        if not image or isinstance(own, BandedTensor) or not isinstance(own, Tensor):
            return own
        return banded_tensor(own, level=Fraction(own.shape[2], self.height))


# Tokens


def _of_tokens(given: dict[str, Any], title: str) -> tuple[torch.device, list[Arguments]]:
    tokens, places = given.get("hidden_states"), given.get(_PLACES)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or not isinstance(places, Tensor):
        raise RequestError(
            f"{title} was not given tokens (B, N, C) and their places, {_PLACES} (N, 3), to stream"
        )
    whole = {key: value for key, value in given.items() if key in (_PLACES, _TEXT_PLACES)}
    grid = places_grid(places, tokens.shape[1], title)
    made: list[Arguments] = []
    for b in range(tokens.shape[0]):
        own = {key: cut_batch(value, b, tokens.shape[0]) for key, value in given.items()}
        own |= {key: value[0] if value.ndim == 3 else value for key, value in whole.items()}
        own[_PLACES] = _exact_places(own[_PLACES], grid)
        for key in (*_TOKENS, _PLACES):
            if isinstance(own.get(key), Tensor):
                own[key] = banded_rows(own[key], grid.at(0 if key == _PLACES else 1))
        made.append(([], own))
    return tokens.device, made


def places_grid(places: Tensor, tokens: int, title: str) -> Grid:
    """The rows and columns that places say; the dimension is that of tokens (B, N, C).

    Args:
        places: (N, 3), or (1, N, 3): of each token a kind, its row and its column.
        tokens: How many there are.
        title: Of the component, for messages.

    Raises:
        RequestError: If they are not those of one picture, row by row.
    """
    if isinstance(places, BandedTensor):
        known = places.nodes[0].grid
        assert known is not None
        return known.at(1)
    places = places.reshape(-1, places.shape[-1])
    rows, width = _sides(places) if places.shape[0] == tokens else (0, 0)
    if rows * width != tokens or not _one_picture(places.view(rows, width, -1)):
        raise RequestError(
            f"{title} was given {_PLACES} {tuple(places.shape)} for {tokens} tokens that are not "
            "the rows of one picture; run it without hirescli.stream"
        )
    return Grid(rows, width, Fraction(1), 1)


def _exact_places(places: Tensor, grid: Grid) -> Tensor:
    """Places (N, 3) without rounding, in rows, where they are rounded row and column numbers."""
    if isinstance(places, BandedTensor) or places.dtype in (torch.float32, torch.float64):
        return places

    def rows(lo: int, hi: int) -> Tensor:
        made = torch.zeros(hi - lo, grid.width, 3, device=places.device)
        made[..., 0] = places[0, 0]
        made[..., 1] = torch.arange(lo, hi, device=places.device)[:, None]
        made[..., 2] = torch.arange(grid.width, device=places.device)
        return made.flatten(0, 1)

    if not torch.equal(rows(0, grid.rows).to(places.dtype), places):
        return places
    size = (grid.rows * grid.width, 3)
    return banded_input(
        size, rows, dtype=torch.float32, device=places.device, grid=grid.at(0)
    )  # fmt: skip


def _sides(places: Tensor) -> tuple[int, int]:
    if places.device.type == "meta":
        raise RequestError(f"{_PLACES} hold no numbers on the meta device; give them on the CPU")
    after = (places[:, 1] != places[0, 1]).nonzero()  # half precision tells rows 0 and 1 apart
    width = int(after[0]) if len(after) else places.shape[0]
    return places.shape[0] // width, width


def _one_picture(places: Tensor) -> bool:
    """Whether places (rows, columns, 3) are of one kind, and of one row and column each."""
    kinds, rows, columns = places[..., 0], places[..., 1], places[..., 2]
    return bool(
        (kinds == kinds[0, 0]).all() and (rows == rows[:, :1]).all()
        and (columns == columns[:1]).all()
    )  # fmt: skip


def banded_places(grid: Grid, device: torch.device) -> BandedTensor:
    """Places of the tokens of a picture that stands outside the engine, never read.

    Args:
        grid: Rows and columns of tokens.
        device: Where they are computed with.
    """
    return banded_input(
        (grid.rows * grid.width, 3), _unread, dtype=torch.float32, device=device, grid=grid.at(0)
    )


def _unread(lo: int, hi: int) -> Tensor:
    raise AssertionError("only the shape is wanted")


def banded_rows(whole: Tensor, grid: Grid) -> BandedTensor:
    """A whole tensor of one sample with its rows in the dimension of the grid."""
    if isinstance(whole, BandedTensor):
        return whole
    per_row = whole.shape[grid.dim] // grid.rows

    def source(lo: int, hi: int) -> Tensor:
        return whole.narrow(grid.dim, lo * per_row, (hi - lo) * per_row)

    return banded_input(whole.shape, source, dtype=whole.dtype, device=whole.device, grid=grid)
