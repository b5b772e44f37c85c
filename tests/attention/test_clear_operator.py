"""CLEAR's operator: tiles and blocks against the dense reference in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hirescli.attention import clear
from hirescli.attention.clear import clear_attention, local_attention, pool, proportional_scale
from hirescli.attention.clear_geometry import Geometry
from hirescli.attention.clear_reference import dense_clear_attention, visible
from hirescli.attention.clear_tiles import TILE, runs
from hirescli.errors import RequestError

HEADS, CHANNELS = 2, 16
Given = tuple[Tensor, Tensor, Tensor]


def drawn(geometry: Geometry, batch: int = 1, channels: int = CHANNELS) -> tuple[Given, Any]:
    generator = torch.Generator().manual_seed(3)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    f, shape = geometry.down_factor, (batch, HEADS, geometry.tokens, channels)
    weight = 1 / f**2 + 0.1 * tensor(1, 1, 1, f, 1, f, 1) if f > 1 else None
    return (2 * tensor(*shape), tensor(*shape), tensor(*shape)), weight


def error(made: Tensor, wanted: Tensor) -> float:
    """Norm of the error over the norm of the reference."""
    return float((made.double() - wanted).norm() / wanted.norm())


def reference(tensors: Given, weight: Any, geometry: Geometry, **more: Any) -> Tensor:
    q, k, v = (t.double() for t in tensors)
    weight = None if weight is None else weight.double()
    return dense_clear_attention(q, k, v, geometry, spatial_weight=weight, **more)


def check(geometry: Geometry, batch: int = 1) -> None:
    tensors, weight = drawn(geometry, batch)
    made = clear_attention(*tensors, geometry, spatial_weight=weight)
    assert made.dtype == torch.float32
    assert error(made, reference(tensors, weight, geometry)) <= 1e-5


@pytest.mark.parametrize("down_factor", [1, 4])
@pytest.mark.parametrize("window", [8, 16, 32])
@pytest.mark.parametrize(("rows", "columns"), [(36, 44), (32, 32)])
def test_published_settings_to_1e5(rows: int, columns: int, window: int, down_factor: int) -> None:
    assert rows % TILE or columns % TILE or (rows, columns) == (32, 32)
    check(Geometry(rows, columns, window, down_factor, 7))


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("text_tokens", [0, 1, 77, 333, 512])
def test_text_lengths_to_1e5(text_tokens: int, text_first: bool) -> None:
    check(Geometry(19, 33, 8, 1, text_tokens, text_first), batch=2)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_geometry_is_the_dense_one(data: st.DataObject) -> None:
    f = data.draw(st.integers(1, 4))
    rows, columns = (f * data.draw(st.integers(1, 44 // f)) for _ in range(2))
    window = data.draw(st.integers(1, min(rows, columns)))
    text = data.draw(st.integers(0, 9))
    check(Geometry(rows, columns, window, f, text, data.draw(st.booleans())))


def test_float64_is_exact_and_bfloat16_near() -> None:
    geometry = Geometry(20, 35, 8, 1, 9)
    tensors, _ = drawn(geometry)
    wanted = reference(tensors, None, geometry)
    double = clear_attention(*(t.double() for t in tensors), geometry)
    assert error(double, wanted) <= 1e-12
    half = [t.bfloat16() for t in tensors]
    made = clear_attention(*half, geometry)
    assert made.dtype == torch.bfloat16
    rounded = reference(tuple(half), None, geometry)  # type: ignore[arg-type]
    assert error(made, rounded) <= 1e-2


def test_the_scale_is_that_of_scores() -> None:
    geometry = Geometry(10, 10, 4, 1, 3)
    tensors, _ = drawn(geometry)
    made = clear_attention(*tensors, geometry, scale=0.7)
    assert error(made, reference(tensors, None, geometry, scale=0.7)) <= 1e-5


@pytest.mark.parametrize(
    "geometry", [Geometry(20, 36, 7, 4, 6), Geometry(17, 18, 16, 1, 0), Geometry(9, 40, 5, 1, 4)]
)
def test_gradients_are_those_of_the_reference(geometry: Geometry) -> None:
    tensors, weight = drawn(geometry, batch=2)
    learned = [*tensors] if weight is None else [*tensors, weight]
    for t in learned:
        t.requires_grad_()
    weighting = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(9))
    made = clear_attention(*tensors, geometry, spatial_weight=weight)
    found = torch.autograd.grad((made * weighting).sum(), learned)
    wanted = torch.autograd.grad((reference(tensors, weight, geometry) * weighting).sum(), learned)
    for one, other in zip(found, wanted, strict=True):
        assert error(one, other.double()) <= 1e-5


def test_tokens_outside_heads_give_the_same() -> None:
    """FLUX's layout, (B, N, H, d), seen as (B, H, N, d)."""
    geometry = Geometry(18, 20, 6, 2, 5)
    tensors, weight = drawn(geometry, batch=2)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    made, same = (clear_attention(*t, geometry, spatial_weight=weight) for t in (tensors, strided))
    assert torch.equal(made, same)


def test_bands_of_queries_with_a_halo_are_the_whole() -> None:
    geometry = Geometry(40, 21, 9, 1, 6)
    (q, k, v), _ = drawn(geometry)
    whole = reference((q, k, v), None, geometry)[:, :, geometry.image_span]
    image = [t[:, :, geometry.image_span].unflatten(2, (40, 21)) for t in (q, k, v)]
    text = [t[:, :, geometry.text_span] for t in (k, v)]
    made = []
    for lo, hi in ((0, 3), (3, 21), (21, 40)):
        first, last = max(0, lo - geometry.halo), min(40, hi + geometry.halo)
        made.append(
            local_attention(
                image[0][:, :, lo:hi].flatten(2, 3),
                *(t[:, :, first:last].flatten(2, 3) for t in image[1:]), *text,
                columns=21, window=9, scale=CHANNELS**-0.5, first_row=lo - first,
            )
        )  # fmt: skip
    assert error(torch.cat(made, 2), whole) <= 1e-5


def test_more_heads_than_a_kernel_counts_are_taken_in_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    geometry = Geometry(16, 16, 4, 4, 3)
    tensors, weight = drawn(geometry)
    whole = clear_attention(*tensors, geometry, spatial_weight=weight)
    monkeypatch.setattr(clear, "_MOST_ELEMENTS", geometry.tokens * CHANNELS)
    assert torch.equal(clear_attention(*tensors, geometry, spatial_weight=weight), whole)


def test_no_tensor_is_touched_on_the_meta_device() -> None:
    geometry = Geometry(512, 512, 8, 1, 512)
    q = torch.empty(1, 24, geometry.tokens, 128, device="meta")
    assert clear_attention(q, q, q, geometry).shape == q.shape


def test_pooling_sums_squares() -> None:
    tokens = torch.arange(16.0).view(1, 1, 16, 1)
    weight = torch.tensor([[1.0, 0.0], [0.0, 10.0]]).view(1, 1, 1, 2, 1, 2, 1)
    assert pool(tokens, 4, weight).flatten().tolist() == [50, 72, 138, 160]


def test_proportional_attention_is_as_published() -> None:
    trained = 64**2 + 512
    assert proportional_scale(128, trained) == pytest.approx(128**-0.5)
    assert proportional_scale(64, trained**2) == pytest.approx(math.sqrt(2 / 64))
    assert proportional_scale(64, trained, pooled=True) == pytest.approx(
        math.sqrt(math.log(10 * trained) / math.log(trained) / 64)
    )


# Tiles and geometry


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_runs_are_all_queries_once_with_all_keys_in_reach(
    queries: int, offset: int, more: int, reach: int
) -> None:
    keys, seen = queries + offset + more, []
    for run in runs(queries, keys, offset=offset, reach=reach):
        for one in (each for part in run.split(2) for each in part.split(1)):
            seen += range(one.first, one.first + one.size)
            wanted = range(
                max(0, offset + one.first - reach),
                min(keys, offset + one.first + one.size + reach),
            )
            assert range(one.first_key, one.first_key + one.keys) == wanted
            assert one.first_key + one.before == offset + one.first
    assert seen == list(range(queries))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))
def test_pairs_are_counted_right(rows: int, columns: int, window: int, text: int) -> None:
    geometry = Geometry(rows, columns, min(window, rows, columns), 1, text)
    assert geometry.pairs == int(visible(geometry).sum())
    assert geometry.flops(3, 5) == 4 * 3 * 5 * geometry.pairs


def test_pooled_pairs_are_counted() -> None:
    geometry = Geometry(8, 12, 5, 4, 3, text_first=False)
    assert geometry.pooled_tokens == 6
    assert geometry.pairs == int(visible(geometry).sum())


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((8, 64, 16), "8x64.*window of at most 8"),
        ((64, 8, 16), "64x8.*window of at most 8"),
        ((30, 40, 8, 4), "30x40.*that work: 1, 2, 5, 10"),
        ((40, 30, 8, 4), "40x30"),
        ((40, 40, 0), "window is 0"),
        ((40, 40, 8, -1), "down factor is -1"),
        ((40, 40, 8.0), "window is 8.0"),
        ((40, 40, True), "window is True"),
    ],
)
def test_impossible_geometries_are_refused(numbers: Any, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        Geometry(*numbers)
