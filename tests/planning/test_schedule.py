"""Schedules as sums, under budgets, and of a decoder as large as Stable Diffusion's."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hirescli.planning.passes import Schedule, Store
from hirescli.planning.schedule import BudgetError, make_schedule
from hirescli.planning.trace import Op, Trace, Window
from hirescli.units import parse_bytes

PLENTY = 10**18
CONV = Window(3, 1, 1, 1)
GIGABYTE = 10**9


def norms(count: int, channels: int = 8) -> Trace:
    """A convolution, then `count` times a norm and a convolution; three channels come out."""
    ops = [
        Op("input", "input", px=4),
        Op("local", "conv2d", (0,), CONV, CONV, px=channels, px_flops=100, anchor=True),
    ]
    for i in range(count):
        last, value = i == count - 1, len(ops) - 1
        px = 3 if last else channels
        ops += [
            Op("reduction", "moments", (value,), state_numbers=4, itemsize=8),
            Op("local", "group_norm", (value, value + 1), px=channels),
            Op("local", "conv2d", (value + 2,), CONV, CONV, px=px, px_flops=300, anchor=True),
        ]
    return Trace(tuple(ops), (len(ops) - 1,))


def within(trace: Trace, host: int, disk: int = 0, **options: object) -> Schedule:
    stores = (Store("host", host), Store("disk", disk, 5e8))
    return make_schedule(trace, 8, 5, stores=stores, **options)  # type: ignore[arg-type]


def test_passes_are_what_reductions_part() -> None:
    made = within(norms(1), PLENTY)
    first, second = made.passes
    assert (first.order, first.loads, first.folds, first.keeps) == ((0, 1, 2), (0,), (2,), (1,))
    assert (second.order, second.loads, second.outputs) == ((1, 3, 4), (1,), (4,))
    assert second.frees == (1,)
    assert made.kept == {1: 0}


def test_work_and_peak_are_short_sums() -> None:
    made = within(norms(1), PLENTY, rows=8)
    px = 8 * 5 * 4  # rows, columns, bytes of a number
    first, second = made.passes
    assert first.work_bytes == px * (4 + 8)  # input and convolution
    assert second.work_bytes == px * (8 + 3)  # the norm of what is kept, and the output
    # One band holds all rows: those that it keeps are its work, those it reads stay to its end.
    assert (first.stored_bytes, second.stored_bytes) == ((0, 0), (px * 8, 0))
    assert made.state_bytes == 4 * 8
    assert made.peak_bytes == {"host": px * (8 + 8 + 3) + 4 * 8, "disk": 0}


def test_what_a_pass_keeps_fills_up_band_by_band() -> None:
    """In the last of four bands three quarters stand already, and the rest is its work."""
    made = within(norms(1), PLENTY, rows=2)
    kept = 8 * 5 * 4 * 8
    first, second = made.passes
    assert first.stored_bytes == (kept * 3 // 4, 0)
    assert second.stored_bytes == (kept, 0)


def test_flops_are_short_sums() -> None:
    made = within(norms(1), PLENTY)
    assert made.plain_flops == made.flops == 8 * 5 * (100 + 300)
    nothing_kept = within(norms(1), made.peak_bytes["host"] - 1, rows=8)
    assert nothing_kept.kept == {}
    assert nothing_kept.plain_flops == made.plain_flops
    assert nothing_kept.flops == 8 * 5 * (100 + 100 + 300)  # the first convolution twice
    assert nothing_kept.peak_bytes["host"] == 8 * 5 * 4 * (8 + 8) + 4 * 8


def test_moves_are_written_once_and_read_once() -> None:
    made = within(norms(1), PLENTY, PLENTY, rows=2, keep_in=1)
    size = 8 * 5 * 4 * 8
    assert made.kept == {1: 1}
    assert made.peak_bytes["disk"] == size
    assert made.moved_bytes == 2 * size
    assert made.seconds == pytest.approx(2 * size / 5e8 + made.flops / 1e11)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_plenty_computes_nothing_twice(count: int) -> None:
    made = within(norms(count), PLENTY)
    assert made.flops == made.plain_flops
    assert made.moved_bytes == 0
    assert len(made.passes) == count + 1


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(100, 8000), st.sampled_from([0, 700, 1400, PLENTY]))
def test_every_store_stays_within_its_budget(count: int, host: int, disk: int) -> None:
    best = within(norms(count), PLENTY)
    try:
        made = within(norms(count), host, disk)
    except BudgetError:
        return  # what it says is tested below
    peaks = made.peak_bytes
    assert peaks["host"] <= host
    assert peaks["disk"] <= disk
    assert made.flops >= made.plain_flops == best.plain_flops
    assert made.seconds >= best.seconds


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 8))
def test_less_budget_never_costs_less(count: int, rows: int) -> None:
    trace = norms(count)
    roomy = within(trace, PLENTY, rows=rows)
    seconds, budget = roomy.seconds, roomy.peak_bytes["host"]
    while True:
        try:
            made = within(trace, budget, rows=rows)
        except BudgetError:
            break
        assert made.seconds >= seconds * (1 - 1e-9)
        seconds, budget = made.seconds, made.peak_bytes["host"] - 1


@pytest.mark.parametrize("rows", [None, 1, 4])
def test_a_budget_that_is_too_small_names_both_numbers(rows: int | None) -> None:
    with pytest.raises(BudgetError) as caught:
        within(norms(2), 300, rows=rows)
    assert ("fewer rows" in str(caught.value)) == (rows == 4)
    needed, given_bytes = re.findall(r"(?:at least|budget is) ([\d.]+ \w+)", str(caught.value))
    assert parse_bytes(given_bytes.replace(" bytes", "")) == 300
    named = parse_bytes(needed.replace(" bytes", ""))
    assert within(norms(2), named, rows=rows).peak_bytes["host"] <= named
    assert caught.value.least_bytes <= named


def test_a_store_that_is_asked_for_is_not_left() -> None:
    trace = norms(2)
    for keep_in, name in enumerate(("host", "disk")):
        made = within(trace, PLENTY, PLENTY, rows=1, keep_in=keep_in)
        assert set(made.kept.values()) == {keep_in}
        budgets = [PLENTY, PLENTY]
        budgets[keep_in] = made.peak_bytes[name] - 1
        with pytest.raises(BudgetError, match=f"on the {name}"):
            within(trace, *budgets, rows=1, keep_in=keep_in)


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_a_band_height_that_is_asked_for_is_taken(rows: int) -> None:
    made = within(norms(2), PLENTY, rows=rows)
    assert made.rows == rows
    assert {each.band_rows for each in made.passes} == {rows}


def test_bands_are_lower_where_memory_is_short() -> None:
    heights = [within(norms(3), host, PLENTY).rows for host in (PLENTY, 4000, 2000, 1400)]
    assert heights[0] == 8
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] < 8


def test_attention_keeps_its_keys_and_values() -> None:
    ops = (
        Op("input", "input", px=4),
        Op("local", "linear", (0,), px=6, px_flops=48, anchor=True),
        Op("gather", "gather", (1,)),
        Op("local", "attention", (0, 2, 2), px=4, px_key_flops=16, anchor=True),
    )
    made = within(Trace(ops, (3,)), PLENTY)
    assert made.kept == {1: 0}
    assert made.flops == 8 * 5 * (48 + 16 * 8 * 5)
    spilled = within(Trace(ops, (3,)), 500, PLENTY)
    assert spilled.kept == {1: 1}, "keys are never computed again for every band of queries"


@pytest.fixture(scope="module")
def decoder() -> Trace:
    """Of an autoencoder in the size of Stable Diffusion's, recorded without weights."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from hirescli.bands.attention import pooling_keys
    from hirescli.bands.engine import banded
    from hirescli.bands.graph import Graph

    def nothing(lo: int, hi: int) -> torch.Tensor:
        raise AssertionError("a recorded input is never read")

    with torch.device("meta"):
        autoencoder = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    latents = banded((1, 4, 64, 64), nothing, dtype=torch.float32, device="meta")
    with torch.no_grad(), pooling_keys(True):
        (picture,) = autoencoder.decode(latents, return_dict=False)
    return Graph.of(picture.nodes).trace


FULL_BYTES = 16384**2 * 128 * 4  # of the narrowest value of full resolution that is worth it


def large(decoder: Trace, disk: int) -> Schedule:
    stores = (Store("host", 8 * GIGABYTE), Store("disk", disk, 5e8))
    return make_schedule(decoder, 2048, 2048, stores=stores)


def test_a_large_decoder_computes_once_where_everything_can_rest(decoder: Trace) -> None:
    made = large(decoder, PLENTY)
    assert made.flops == pytest.approx(made.plain_flops, rel=1e-3)
    assert made.peak_bytes["host"] <= 8 * GIGABYTE
    assert made.peak_bytes["disk"] > 2 * FULL_BYTES


@pytest.mark.parametrize("disk", [70, 100, 130])
def test_a_large_decoder_computes_about_fourfold_without_full_resolution(
    decoder: Trace, disk: int
) -> None:
    made = large(decoder, disk * GIGABYTE)
    assert 3 < made.flops / made.plain_flops < 4.5
    assert made.peak_bytes["disk"] <= disk * GIGABYTE < FULL_BYTES
    assert all(made.ops[op].width < 16384 for op in made.kept)


def test_more_room_is_never_slower_for_a_large_decoder(decoder: Trace) -> None:
    seconds = [large(decoder, disk * GIGABYTE).seconds for disk in (0, 20, 70, 140, 10**6)]
    assert seconds == sorted(seconds, reverse=True)
