"""Errors: what they are of known differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hirescli.evaluation.agreement import max_error, psnr, rmse

WANTED = torch.tensor([-1.0, 1.0, -1.0, 1.0])
DEVIATION = math.sqrt(4 / 3)


def test_known_differences() -> None:
    made = WANTED + torch.tensor([0.0, 0.0, 0.0, 0.2])
    assert max_error(made, WANTED) == pytest.approx(0.2 / DEVIATION)
    assert rmse(made, WANTED) == pytest.approx(0.1 / DEVIATION)
    assert psnr(made, WANTED) == pytest.approx(20 * math.log10(2 / 0.1))


def test_equal_has_no_noise() -> None:
    assert (max_error(WANTED, WANTED), rmse(WANTED, WANTED), psnr(WANTED, WANTED)) == (0, 0, None)


@given(st.integers(0, 99), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_scale_and_shift_do_not_matter(seed: int, scale: float, shift: float) -> None:
    wanted = torch.randn(50, generator=torch.Generator().manual_seed(seed)).double()
    made = wanted + torch.randn(50, generator=torch.Generator().manual_seed(seed + 1)) / 10
    for measure in (max_error, rmse, psnr):
        moved = measure(made * scale + shift, wanted * scale + shift)
        assert moved == pytest.approx(measure(made, wanted), rel=1e-6)


def test_half_precision_is_compared_as_it_stands() -> None:
    made = WANTED.bfloat16() * 1.5
    assert max_error(made, WANTED) == pytest.approx(0.5 / DEVIATION)
