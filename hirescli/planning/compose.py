"""Traces of components that run together, made from those of each. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hirescli.planning.trace import CONSTANT, CONVOLUTION, Op, Pool, Trace, Window


def controlled(denoiser: Trace, controlnets: Sequence[Trace]) -> Trace:
    """A denoiser that reads what ControlNets give, which never stands whole.

    Args:
        denoiser: Its inputs are the sample and the residuals, in the order of the ControlNets'
            outputs.
        controlnets: Each reads the sample and its own control image.
    """
    ops: list[Op] = [denoiser.ops[0]]
    weight_bytes: dict[str, int] = {}
    residuals: list[int] = []
    for number, controlnet in enumerate(controlnets, start=1):
        place = _append(ops, weight_bytes, controlnet, [0], f"{number}.")
        given = [place[output] for output in controlnet.outputs]
        residuals = _sums(ops, residuals, given) if residuals else given
    place = _append(ops, weight_bytes, denoiser, [0, *residuals], "")
    return Trace(tuple(ops), tuple(place[o] for o in denoiser.outputs), weight_bytes)


def _append(
    ops: list[Op], weight_bytes: dict[str, int], trace: Trace, known: Sequence[int], prefix: str
) -> dict[int, int]:
    """Put a trace behind others; returns where its operations are.

    `known` are the places of its first inputs, which stand there already.
    """
    place: dict[int, int] = {}
    waiting = list(known)
    for index, op in enumerate(trace.ops):
        if op.kind == "input" and waiting:
            place[index] = waiting.pop(0)
            continue
        place[index] = len(ops)
        ops.append(
            replace(
                op,
                inputs=tuple(place[i] for i in op.inputs),
                weights=tuple(_renamed(name, prefix) for name in op.weights),
            )
        )
    weight_bytes |= {_renamed(name, prefix): count for name, count in trace.weight_bytes.items()}
    return place


def _renamed(name: str, prefix: str) -> str:
    """A name that another trace's weights do not have; constants stay to be known as such."""
    if name.startswith(CONSTANT):
        return CONSTANT + prefix + name.removeprefix(CONSTANT)
    return prefix + name


def _sums(ops: list[Op], first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Of residuals of several ControlNets."""
    made = []
    for a, b in zip(first, second, strict=True):
        like = ops[b]
        made.append(len(ops))
        ops.append(Op("local", "add", (a, b), px=like.px, itemsize=like.itemsize))
    return made


def dilated(trace: Trace, ratio: int) -> Trace:
    """A component whose convolutions reach `ratio` times as far; sizes stay what they were."""
    return replace(trace, ops=tuple(_dilated(op, ratio) for op in trace.ops))


def _dilated(op: Op, ratio: int) -> Op:
    if op.name != CONVOLUTION:
        return op
    return replace(op, reach=_wider(op.reach, ratio), width_reach=_wider(op.width_reach, ratio))


def _wider(reach: object, ratio: int) -> Window | None:
    if reach is None:  # of 1x1
        return None
    assert isinstance(reach, Window)
    return Window(
        ratio * (reach.span - 1) + 1, reach.stride, ratio * reach.before, ratio * reach.after
    )


def unpooled(trace: Trace) -> Trace:
    """A component whose attention reads every key, where it was recorded with pooled ones."""
    ops: list[Op] = []
    place: dict[int, int] = {}
    for index, op in enumerate(trace.ops):
        if isinstance(op.reach, Pool):
            place[index] = place[op.inputs[0]]
            continue
        place[index] = len(ops)
        ops.append(replace(op, inputs=tuple(place[i] for i in op.inputs)))
    return Trace(tuple(ops), tuple(place[o] for o in trace.outputs), trace.weight_bytes)
