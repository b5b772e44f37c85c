"""The operator against the paper's formula in float64, up to four million tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from hirescli.attention.linfusion import linear_attention

TOKENS_16K = 2048**2  # latents of 16384 px
PIECE = 1 << 19
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # (1, H, N, d)


def phi(t: np.ndarray) -> np.ndarray:
    return np.where(t > 0, t + 1, np.exp(np.minimum(t, 0)))


def pieces(t: torch.Tensor) -> Iterator[np.ndarray]:
    for start in range(0, t.shape[2], PIECE):
        yield t[:, :, start : start + PIECE].double().numpy()


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Iterator[np.ndarray]:
    """phi(q) (sum phi(k)^T v / N) / (phi(q) mean(phi(k))^T + 1e-4), piece by piece."""
    tokens = k.shape[2]
    kv = sum(phi(a).swapaxes(2, 3) @ b for a, b in zip(pieces(k), pieces(v), strict=True)) / tokens
    mean_k = sum(phi(a).sum(2) for a in pieces(k)) / tokens
    for a in pieces(q):
        yield (phi(a) @ kv) / (phi(a) @ mean_k[..., None] + 1e-4)


def error(made: torch.Tensor, heads: Heads) -> float:
    """Norm of the error over the norm of the reference."""
    wrong = total = 0.0
    for got, wanted in zip(pieces(made), reference(*heads), strict=True):
        wrong += float(np.square(got - wanted).sum())
        total += float(np.square(wanted).sum())
    return (wrong / total) ** 0.5


def drawn(heads: int, tokens: int, d: int, dtype: torch.dtype, spread: float = 1.5) -> Heads:
    """Keys and values that go together, as in a picture, and change along it."""
    generator = torch.Generator().manual_seed(4)
    q, k, v = (
        torch.randn(1, heads, tokens, d, generator=generator).mul_(spread) for _ in range(3)
    )
    v.add_(k, alpha=0.7).add_(torch.linspace(0, 1, tokens)[:, None])
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("d", [40, 64, 80, 160])
def test_4096_tokens_to_1e5(d: int) -> None:
    heads = drawn(2, 64 * 64, d, torch.float32)
    assert error(linear_attention(*heads), heads) <= 1e-5


@pytest.mark.slow
def test_four_million_tokens_to_1e5() -> None:
    heads = drawn(1, TOKENS_16K, 2, torch.float32)
    assert error(linear_attention(*heads), heads) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)]
)
def test_four_million_tokens_in_half_precision(dtype: torch.dtype, rounding: float) -> None:
    """Nothing but the output is rounded; the sums of 4M would overflow float16 at 65,504."""
    heads = drawn(1, TOKENS_16K, 2, dtype)
    made = linear_attention(*heads)
    assert made.dtype == dtype
    assert bool(made.isfinite().all())
    assert error(made, heads) <= rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_values_do_not_overflow(dtype: torch.dtype) -> None:
    q = torch.full((1, 1, 200_000, 4), 30.0, dtype=dtype)
    v = torch.full((1, 1, 200_000, 4), 50_000.0, dtype=dtype)
    torch.testing.assert_close(linear_attention(q, q, v), v, rtol=0.01, atol=0)


def test_sums_in_half_precision_would_be_found() -> None:
    """The bound is no formality: the same formula with its sums in bfloat16 fails it."""
    heads = drawn(2, 64 * 64, 40, torch.bfloat16)
    q, k, v = (torch.nn.functional.elu(t) + 1 if i < 2 else t for i, t in enumerate(heads))
    kv = torch.zeros(1, 2, 40, 40, dtype=torch.bfloat16)
    mean_k = torch.zeros(1, 2, 40, 1, dtype=torch.bfloat16)
    for start in range(0, 4096, 64):
        rows = slice(start, start + 64)
        kv += k[:, :, rows].mT @ v[:, :, rows]
        mean_k += k[:, :, rows].sum(2)[..., None]
    assert error((q @ kv) / (q @ mean_k), heads) > 2.0**-8
