"""Sequences of two parts: tokens of a picture, in rows, and tokens without rows beside them.

The transformers of FLUX and SD3 put a text and a picture into one sequence, attend, and take it
apart again. Of the two parts the picture's tokens are a banded node; the text's are a tensor, as
long as they do not depend on the picture, and then a resident node. What works on each token by
itself is recorded for each part by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hirescli.bands import elementwise, layers, sums, views
from hirescli.bands.record import HANDLERS, flatten, infer, name_of
from hirescli.bands.tensor import Grid, Node, unknown

_T = Tensor
Part = Node | Tensor


@dataclass(eq=False)
class Joint:
    """One sample of a sequence of two parts.

    Attributes:
        parts: In order; one of them has rows.
        dim: The dimension that counts tokens.
    """

    parts: tuple[Part, Part]
    dim: int
    name: str = "joint"

    @property
    def image(self) -> Node:
        """The part with rows."""
        return next(part for part in self.parts if _has_rows(part))  # type: ignore[return-value]

    @property
    def text(self) -> Part:
        """The part without."""
        return next(part for part in self.parts if not _has_rows(part))

    @property
    def text_first(self) -> bool:
        """Whether the part without rows comes first."""
        return not _has_rows(self.parts[0])

    @property
    def sizes(self) -> list[int]:
        """Tokens of each part."""
        return [part.shape[self.dim] for part in self.parts]

    @property
    def shape(self) -> torch.Size:
        """Of the whole sequence."""
        shape = list(self.image.shape)
        shape[self.dim] = sum(self.sizes)
        return torch.Size(shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return self.image.dtype

    @property
    def device(self) -> torch.device:
        """Where it is computed with."""
        return self.image.device

    @property
    def grid(self) -> Grid | None:
        """Of the part with rows."""
        return self.image.grid

    def beside(self, image: Any, text: Any) -> Joint:
        """A sequence in the same order of these parts."""
        grid = image.grid if isinstance(image, Node) else None
        if grid is None or _size(text, grid.dim) is None:
            raise unknown("an operation", "mixes the tokens of text and picture")
        return Joint((text, image) if self.text_first else (image, text), grid.dim)


def _size(part: Any, dim: int) -> int | None:
    return part.shape[dim] if dim < len(part.shape) else None


def _has_rows(part: Any) -> bool:
    return isinstance(part, Node) and part.grid is not None


def joined(tensors: Sequence[Any], dim: int) -> Joint:
    """Tokens of a picture behind or before tokens without rows.

    Raises:
        UnknownOperationError: If they are not two such parts.
    """
    if len(tensors) != 2 or sum(map(_has_rows, tensors)) != 1:
        raise unknown("cat", "puts rows below rows")
    first, second = tensors
    return Joint((first, second), dim)


def is_joint(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a sequence of two parts is among the arguments."""
    return any(isinstance(value, Joint) for value in flatten((args, kwargs)))


def record_parts(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Record a call with sequences of two parts.

    Raises:
        UnknownOperationError: If it does not work on each token by itself.
    """
    if func in _ON_SEQUENCES:
        made = _ON_SEQUENCES[func](func, *args, **kwargs)
        if made is not NotImplemented:
            return made
    if HANDLERS[func] not in _BY_TOKEN:
        raise unknown(name_of(func), "on a sequence of text and picture")
    return _by_part(func, args, kwargs)


def _by_part(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    first = next(value for value in flatten((args, kwargs)) if isinstance(value, Joint))
    splits = HANDLERS[func] is elementwise.elementwise
    image, text = (
        _recorded(func, *_of_part((args, kwargs), first, index, splits))
        for index in ((1, 0) if first.text_first else (0, 1))
    )
    if isinstance(image, (list, tuple)):
        return tuple(first.beside(i, t) for i, t in zip(image, text, strict=True))
    return first.beside(image, text)


def _recorded(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A node, or, where there is none among the arguments, the result itself."""
    if any(isinstance(value, Node) for value in flatten((args, kwargs))):
        return HANDLERS[func](func, *args, **kwargs)
    return func(*args, **kwargs)


def _of_part(value: Any, sequence: Joint, index: int, splits: bool) -> Any:
    """Arguments with one part in place of each sequence.

    With `splits`, whole tensors that count as many tokens are cut likewise.
    """
    if isinstance(value, Joint):
        if value.text_first != sequence.text_first or value.sizes != sequence.sizes:
            raise unknown("an operation", "joins sequences of other parts")
        return value.parts[index]
    if isinstance(value, Tensor) and splits:
        return _cut(value, sequence, index)
    if isinstance(value, Node) and splits and value.grid is not None:
        raise unknown("an operation", "joins rows and a sequence of text and picture")
    if isinstance(value, dict):
        return {key: _of_part(each, sequence, index, splits) for key, each in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(_of_part(each, sequence, index, splits) for each in value)
    return value


def _cut(whole: Tensor, sequence: Joint, index: int) -> Tensor:
    place = sequence.dim - len(sequence.shape)  # counted from the end, as tensors broadcast
    if whole.ndim < -place or whole.shape[place] == 1:
        return whole
    lo = sum(sequence.sizes[:index])
    return whole.narrow(place, lo, sequence.sizes[index])


# What works on each token by itself, if what it is told does not name their dimension.
_BY_TOKEN: set[Callable[..., Any]] = {
    elementwise.elementwise, elementwise.cast, elementwise.named_cast, elementwise.same,
    layers.linear, layers.layer_norm, layers.rms_norm, sums.mean_or_sum, views.permute,
    views.transpose, views.movedim, views.cat, views.split, views.getitem, views.stack,
    views.reshape, views.outer, views.repeat_interleave,
}  # fmt: skip


# What names the dimension of the tokens


def _reshape(func: Any, x: Joint, *args: Any, **kwargs: Any) -> Any:
    """The same numbers in another shape; each part keeps its tokens."""
    (meta,) = infer(func, (_blank(x), *args), kwargs)
    before, tokens = math.prod(x.shape[: x.dim]), sum(x.sizes)
    dims = [
        dim
        for dim in range(meta.ndim)
        if math.prod(meta.shape[:dim]) == before and meta.shape[dim] == tokens
    ]
    if not dims:
        raise unknown(name_of(func), "does not keep the tokens of a sequence together")
    dim = x.dim if x.dim in dims else dims[-1]
    made = {}
    for part in x.parts:
        shape = list(meta.shape)
        shape[dim] = part.shape[x.dim]
        made[_has_rows(part)] = _recorded(_T.reshape, (part, shape), {})
    return x.beside(made[True], made[False])


def _blank(x: Joint) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _split(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Cut between the parts; along other dimensions each is cut by itself."""
    place = 0 if name_of(func) == "unbind" else 1
    dim = kwargs.get("dim", args[place] if len(args) > place else 0) % len(x.shape)
    if dim != x.dim:
        return NotImplemented
    sizes = [meta.shape[dim] for meta in infer(func, (_blank(x), *args), kwargs)]
    if sizes != x.sizes:
        raise unknown(name_of(func), f"cuts a sequence of {x.sizes} tokens into {sizes}")
    return x.parts


def _getitem(func: Any, x: Any, index: Any) -> Any:
    """One part, where its tokens are asked for."""
    parts = index if isinstance(index, tuple) else (index,)
    if len(parts) <= x.dim or not all(isinstance(p, slice) for p in parts[: x.dim + 1]):
        return NotImplemented
    lo, hi, step = parts[x.dim].indices(sum(x.sizes))
    if (lo, hi, step) == (0, sum(x.sizes), 1):
        return NotImplemented
    first = x.sizes[0]
    if step != 1 or (lo, hi) not in ((0, first), (first, sum(x.sizes))):
        raise unknown("indexing", "takes a part of a text or of the rows")
    rest = (*parts[: x.dim], slice(None), *parts[x.dim + 1 :])
    return _recorded(func, (x.parts[0 if lo == 0 else 1], rest), {})


def _cat(func: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    first = next(t for t in tensors if isinstance(t, Joint))
    if dim % len(first.shape) == first.dim:
        raise unknown("cat", "adds tokens to a sequence of text and picture")
    if not all(isinstance(t, Joint) for t in tensors):
        raise unknown("cat", "puts a sequence of text and picture beside other values")
    return NotImplemented


_ON_SEQUENCES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (_T.reshape, _T.view, torch.reshape, _T.flatten, torch.flatten, _T.unflatten,
         torch.unflatten), _reshape,
    ),
    **dict.fromkeys(
        (torch.split, _T.split, torch.chunk, _T.chunk, torch.split_with_sizes,
         _T.split_with_sizes, torch.unbind, _T.unbind), _split,
    ),
    _T.__getitem__: _getitem,
    torch.cat: _cat,
    torch.concat: _cat,
}  # fmt: skip


def on_sequences(*funcs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what records functions of whole sequences of two parts."""

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        _ON_SEQUENCES.update(dict.fromkeys(funcs, handler))
        return handler

    return register
