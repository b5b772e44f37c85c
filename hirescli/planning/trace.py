"""The trace of a component: its operations as numbers, at any size. No torch.

A component (denoiser, ControlNet, encoder, decoder) that has been recorded once is known well
enough to be planned at every size: each operation says which rows of its input a row reads, how
many bytes and floating-point operations one pixel of its output takes, and which weights it
reads. `Trace.at` gives the same operations with the rows, widths and bytes of one size.

A *level* is the ratio of an operation's rows to the component's input rows: 1/2 after a
convolution of stride 2, 8 at the end of a decoder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from hirescli.planning.scratch import clear_scratch_bytes

Kind = Literal["input", "local", "reduction", "gather", "resident"]


@dataclass(frozen=True)
class Window:
    """Row o reads `span` rows from row ``o * stride - before`` on, as a convolution does.

    Attributes:
        span: Rows from the first to the last that are read: dilation * (kernel - 1) + 1.
        stride: Input rows between two output rows.
        before, after: Rows of zeros above and below the input.
    """

    span: int
    stride: int = 1
    before: int = 0
    after: int = 0

    def size_out(self, size_in: int) -> int:
        """Rows (or columns) of the output."""
        return (size_in + self.before + self.after - self.span) // self.stride + 1

    def reads(self, lo: int, hi: int) -> tuple[int, int]:
        """The input rows of output rows lo to hi; some may lie above row 0 or below the last."""
        first = lo * self.stride - self.before
        return first, first + (hi - lo - 1) * self.stride + self.span


@dataclass(frozen=True)
class Stretch:
    """Row o reads row ``floor(o * rows_in / rows_out)``: nearest upsampling, pixel shuffle.

    Attributes:
        factor: Rows of the output for each of the input; upsampling to a given odd size differs
            from it by less than one input row.
    """

    factor: int

    @staticmethod
    def reads(lo: int, hi: int, size_in: int, size_out: int) -> tuple[int, int]:
        """The input rows of output rows lo to hi.

        One row of slack each side unless the ratio is whole: torch rounds it in float32.
        """
        slack = 1 if size_out % size_in else 0
        first = lo * size_in // size_out - slack
        return first, (hi - 1) * size_in // size_out + 1 + slack


@dataclass(frozen=True)
class Pool:
    """Squares of f by f pixels are averaged, f just large enough for `most_px` results."""

    most_px: int

    def factor(self, rows: int, width: int) -> int:
        """Side of a square, 1 where nothing needs pooling."""
        factor = max(1, math.isqrt(max(0, rows * width - 1) // self.most_px))
        while math.ceil(rows / factor) * math.ceil(width / factor) > self.most_px:
            factor += 1
        return factor

    def window(self, size: int, factor: int) -> Window:
        """The same as a window; the last square may be cut off."""
        return Window(factor, factor, 0, -size % factor)


CONVOLUTION = "conv2d"  # the name of its operations
CLEAR_ATTENTION = "clear attention"  # the same of CLEAR's
CONSTANT = "constant."  # begins the names of whole tensors that are no parameters

Reach = Window | Stretch | Pool | None  # None: row o reads row o


@dataclass(frozen=True)
class Op:
    """One operation, for every size. "Pixel" is a row and column of its own level.

    Attributes:
        kind: "input" comes from outside; "local" reads some rows for a row; "reduction" folds
            all rows of its inputs to a small state; "gather" keeps its one input whole, for
            attention; "resident" computes with states and needs no rows.
        name: Of the torch function, for people.
        inputs: Indices of the operations it reads.
        reach: Which rows of its banded inputs a row reads.
        width_reach: The same for columns.
        level: Of an "input"; of the others it follows.
        px: Numbers for each pixel of the output.
        itemsize: Bytes of one of them, in the dtype it was recorded in.
        px_flops: Floating-point operations for each pixel of the output.
        px_key_flops: The same for each pixel of the gathered keys.
        state_numbers: Numbers in the state of a reduction or a resident operation.
        anchor: Whether keeping it saves arithmetic: activations and views never do.
        weights: Names of the weights and other whole tensors it reads.
        module: Where in the component it is called.
        scratch_bytes: That one call takes beside its inputs and output, whatever the size.
        px_scratch_bytes: The same for each pixel of the output; the larger of both counts.
    """

    kind: Kind
    name: str
    inputs: tuple[int, ...] = ()
    reach: Reach = None
    width_reach: Reach = None
    level: Fraction = Fraction(1)
    px: float = 0.0
    itemsize: int = 4
    px_flops: float = 0.0
    px_key_flops: float = 0.0
    state_numbers: int = 0
    anchor: bool = False
    weights: tuple[str, ...] = ()
    module: str = ""
    scratch_bytes: int = 0
    px_scratch_bytes: float = 0.0


@dataclass(frozen=True)
class SizedOp:
    """One operation at one size.

    Attributes:
        op: The operation.
        reach: Which rows of its banded inputs a row reads.
        rows, width: Of its output; 0 for what has no rows.
        swept_rows: Rows that a pass goes over: those of the output, or of what is folded.
        level: Rows for each row of the component's input.
        row_bytes, row_flops: For each row.
        state_bytes: Of a reduction's or resident operation's state.
        scratch_bytes: That one call takes beside its inputs and output.
        row_scratch_bytes: The same for each row; the larger of both counts.
        state_flops: Of a resident operation, which is computed once.
    """

    op: Op
    reach: Window | Stretch | None
    rows: int
    width: int
    swept_rows: int
    level: Fraction
    row_bytes: int
    row_flops: float
    state_bytes: int
    scratch_bytes: int = 0
    row_scratch_bytes: int = 0
    state_flops: float = 0.0

    @property
    def banded(self) -> bool:
        """Whether it has rows."""
        return self.rows > 0

    def scratch(self, rows: int) -> int:
        """Bytes that a call for so many rows takes beside its inputs and output."""
        return max(self.scratch_bytes, rows * self.row_scratch_bytes)

    def reads(self, lo: int, hi: int, rows_in: int) -> tuple[int, int]:
        """Rows of a banded input of `rows_in` rows that output rows lo to hi read, unclipped."""
        if self.reach is None:
            return lo, hi
        if isinstance(self.reach, Window):
            return self.reach.reads(lo, hi)
        return self.reach.reads(lo, hi, rows_in, self.rows)


@dataclass(frozen=True)
class Trace:
    """What a component does, in the order it does it.

    Attributes:
        ops: The operations; each reads only earlier ones.
        outputs: Indices of those that leave the component.
        weight_bytes: Of every weight and other whole tensor that is read, by name, in the dtype
            it was recorded in.
    """

    ops: tuple[Op, ...]
    outputs: tuple[int, ...]
    weight_bytes: dict[str, int] = field(default_factory=dict)

    def at(self, rows: int, width: int) -> tuple[SizedOp, ...]:
        """The operations for an input of this many rows and columns at level 1."""
        sizes = _Sizes(rows, width)
        sized: list[SizedOp] = []
        for op in self.ops:
            sized.append(_sized(op, sized, sizes, self._scratch_bytes(op)))
        return tuple(sized)

    @property
    def parameter_bytes(self) -> dict[str, int]:
        """Of the weights, by name."""
        return {n: count for n, count in self.weight_bytes.items() if not n.startswith(CONSTANT)}

    @property
    def constant_bytes(self) -> int:
        """Of whole tensors that stand ready and are no parameters: keys of a text, embeddings."""
        return sum(self.weight_bytes.values()) - sum(self.parameter_bytes.values())

    def _scratch_bytes(self, op: Op) -> int:
        """On a CPU, oneDNN lays the weights of a convolution out anew for each call."""
        if op.name != CONVOLUTION:
            return op.scratch_bytes
        return sum(self.weight_bytes[name] for name in op.weights)

    def to_json(self) -> str:
        """The trace as JSON, without what is at its default."""
        return json.dumps(
            {
                "ops": [_op_to_dict(op) for op in self.ops],
                "outputs": self.outputs,
                "weight_bytes": self.weight_bytes,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace that `to_json` wrote."""
        read = json.loads(text)
        ops = tuple(_op_from_dict(entry) for entry in read["ops"])
        return cls(ops, tuple(read["outputs"]), read["weight_bytes"])


class _Sizes:
    """Rows and columns of every level, as the way down met them.

    A size is halved on the way down with rounding; upsampling goes back to exactly the size that
    the level had, as diffusers' UNet does for odd sizes.
    """

    def __init__(self, rows: int, width: int) -> None:
        self._known: dict[Fraction, tuple[int, int]] = {Fraction(1): (rows, width)}

    def of_input(self, level: Fraction) -> tuple[int, int]:
        rows, width = self._known[Fraction(1)]
        return math.ceil(rows * level), math.ceil(width * level)

    def remember(self, level: Fraction, size: tuple[int, int]) -> None:
        self._known.setdefault(level, size)

    def stretched(self, level: Fraction, exact: tuple[int, int], factor: int) -> tuple[int, int]:
        """The known size of the level if upsampling can have been asked for it."""
        known = self._known.get(level, exact)
        near = all(e - factor < k <= e for k, e in zip(known, exact, strict=True))
        return known if near else exact


def _sized(op: Op, earlier: list[SizedOp], sizes: _Sizes, scratch_bytes: int) -> SizedOp:
    banded = [earlier[i] for i in op.inputs if earlier[i].banded]
    reach, level, rows, width = None, Fraction(1), 0, 0
    if op.kind == "input":
        level = op.level
        rows, width = sizes.of_input(op.level)
    elif op.kind == "local":
        reach, level, rows, width = _output_size(op, banded[0], sizes)
    if rows:
        sizes.remember(level, (rows, width))
    if op.name == CLEAR_ATTENTION and isinstance(reach, Window):
        scratch_bytes = clear_scratch_bytes(
            width=width, px=op.px, itemsize=op.itemsize, reach=reach.span
        )
    folded = banded[0] if op.kind == "reduction" else None
    key_px = sum(k.rows * k.width for k in _gathered(op, earlier)) / 2  # of keys and values
    return SizedOp(
        op=op,
        reach=reach,
        rows=rows,
        width=width,
        swept_rows=folded.rows if folded else rows,
        level=level,
        row_bytes=round(width * op.px * op.itemsize),
        row_flops=(folded.width if folded else width) * (op.px_flops + op.px_key_flops * key_px),
        state_bytes=op.state_numbers * op.itemsize,
        scratch_bytes=scratch_bytes,
        row_scratch_bytes=round(width * op.px_scratch_bytes),
        state_flops=op.px_flops if op.kind == "resident" else 0.0,
    )


def _gathered(op: Op, earlier: list[SizedOp]) -> Iterable[SizedOp]:
    return (earlier[earlier[i].op.inputs[0]] for i in op.inputs if earlier[i].op.kind == "gather")


def _output_size(
    op: Op, first: SizedOp, sizes: _Sizes
) -> tuple[Window | Stretch | None, Fraction, int, int]:
    """Reach, level, rows and columns of a local operation on `first`."""
    reach, across = op.reach, op.width_reach
    if isinstance(reach, Stretch):
        level = first.level * reach.factor
        exact = first.rows * reach.factor, first.width * reach.factor
        return reach, level, *sizes.stretched(level, exact, reach.factor)
    if isinstance(reach, Pool):
        factor = reach.factor(first.rows, first.width)
        across = reach.window(first.width, factor)
        reach = reach.window(first.rows, factor)
    rows = reach.size_out(first.rows) if reach else first.rows
    width = across.size_out(first.width) if isinstance(across, Window) else first.width
    return reach, first.level / (reach.stride if reach else 1), rows, width


_SHORT = {  # attribute of an operation: its key in JSON
    "inputs": "in", "px": "px", "itemsize": "item", "px_flops": "flops",
    "px_key_flops": "key_flops", "state_numbers": "state", "anchor": "anchor",
    "weights": "weights", "module": "module", "scratch_bytes": "scratch",
    "px_scratch_bytes": "px_scratch",
}  # fmt: skip


def _op_to_dict(op: Op) -> dict[str, Any]:
    usual = Op(op.kind, op.name)
    made: dict[str, Any] = {"kind": op.kind, "name": op.name}
    for attribute, key in _SHORT.items():
        if getattr(op, attribute) != getattr(usual, attribute):
            made[key] = getattr(op, attribute)
    for attribute in ("reach", "width_reach"):
        reach = getattr(op, attribute)
        if isinstance(reach, Window):
            made[attribute] = [reach.span, reach.stride, reach.before, reach.after]
        elif isinstance(reach, Stretch):
            made[attribute] = reach.factor
        elif isinstance(reach, Pool):
            made[attribute] = {"most_px": reach.most_px}
    if op.level != 1:
        made["level"] = str(op.level)
    return made


def _op_from_dict(entry: dict[str, Any]) -> Op:
    values = {attribute: entry[key] for attribute, key in _SHORT.items() if key in entry}
    for attribute in ("inputs", "weights"):
        values[attribute] = tuple(values.get(attribute, ()))
    for attribute in ("reach", "width_reach"):
        reach = entry.get(attribute)
        if isinstance(reach, list):
            values[attribute] = Window(*reach)
        elif isinstance(reach, dict):
            values[attribute] = Pool(**reach)
        elif reach is not None:
            values[attribute] = Stretch(reach)
    level = Fraction(entry.get("level", 1))
    return Op(entry["kind"], entry["name"], level=level, **values)
