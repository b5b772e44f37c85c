"""The fused kernels against the plain operator: interpreted on the CPU, and on a GPU if any."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hirescli.attention import linfusion
from hirescli.attention.linfusion import LinearAttention, linear_attention, plain_linear_attention

ROOT = Path(__file__).parent.parent.parent
HEAD_DIMS = (40, 64, 80, 160)  # of SD 1.5 by level, SD 2.1 and SDXL
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

# Two parts of tokens, the last block not full; strides as projections leave them.
INTERPRETED = """
import sys, torch
from hirescli.attention.linfusion import plain_linear_attention
from hirescli.attention.linfusion_triton import fused_linear_attention
d, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 530, 2 * d, dtype=dtype).unflatten(-1, (2, d)).transpose(2, 3)
v = v + k + 0.5
wanted = plain_linear_attention(q.double(), k.double(), v.double())
made = fused_linear_attention(q, k, v)
assert made.dtype == dtype and made.shape == (1, 2, 530, d)
assert made.transpose(1, 2).is_contiguous()
print(float((made.double() - wanted).norm() / wanted.norm()))
"""

BUILT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from hirescli.attention import linfusion_triton as kernels

def build(kernel, floats, capability, **constants):
    signature = dict.fromkeys(kernel.arg_names, "i32") | floats
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs={})
    return compile(source, target=GPUTarget("cuda", capability, 32))

for capability, half, precision in ((75, "*fp16", "ieee"), (80, "*bf16", "tf32x3")):
    for d in (64, 160):
        same = {"d": d, "e_block": kernels._column_block(d), "precision": precision}
        fold = {"k": half, "v": half, "kv_parts": "*fp32", "k_parts": "*fp32"}
        d_pad = triton.next_power_of_2(d)
        made = build(kernels.fold_kernel, fold, capability, d_pad=d_pad, n_block=32, **same)
        assert made.asm["cubin"]
        apply = {"q": half, "out": half, "kv": "*fp32", "mean_k": "*fp32", "epsilon": "fp32"}
        made = build(kernels.apply_kernel, apply, capability, d_block=32, n_block=64, **same)
        assert made.asm["cubin"]
"""


def in_child(code: str, *words: object, folder: Path, interpret: bool) -> str:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path[1:]])
    environment["TRITON_INTERPRET"] = str(int(interpret))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
@pytest.mark.parametrize(
    ("d", "dtype", "bound"),
    [
        (40, "float32", 1e-5),
        (64, "bfloat16", 2.0**-8),
        (80, "float16", 2.0**-11),
        (160, "float32", 1e-5),
    ],
)
def test_kernels_are_the_operator(d: int, dtype: str, bound: float, tmp_path: Path) -> None:
    assert float(in_child(INTERPRETED, d, dtype, folder=tmp_path, interpret=True)) <= bound


@needs_triton
@pytest.mark.slow
def test_kernels_build_for_cards_that_are_not_here(tmp_path: Path) -> None:
    """Down to machine code, by the assembler that Triton brings."""
    in_child(BUILT, folder=tmp_path, interpret=False)


def test_the_plain_path_is_taken_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise AssertionError("asked for a tensor that is on no GPU")

    monkeypatch.setattr(linfusion, "_fused_works", broken)
    tokens = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    wanted = plain_linear_attention(tokens, tokens, tokens)
    assert torch.equal(linear_attention(tokens, tokens, tokens), wanted)


@needs_triton
@needs_cuda
@pytest.mark.parametrize("d", HEAD_DIMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_on_a_gpu(d: int, dtype: torch.dtype) -> None:
    tokens = torch.randn(3, 2, 70_001, 3 * d, dtype=dtype, device="cuda")
    q, k, v = tokens.unflatten(-1, (3, d)).transpose(2, 3)
    v = v + k + 0.5
    assert linfusion._fused_works(q.device)
    wanted = plain_linear_attention(q, k, v)
    made = linear_attention(q, k, v)
    bound = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    assert float((made - wanted).float().norm() / wanted.float().norm()) <= bound


@needs_triton
@needs_cuda
@torch.no_grad()
def test_offsets_past_two_to_the_31_on_a_gpu() -> None:
    """The last tokens lie past 2**31 elements; half the card is asked for at most."""
    tokens, channels = (1 << 31) // 640 + 1000, 640
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of free device memory")
    x = torch.randn(1, tokens, channels, dtype=torch.bfloat16, device="cuda")
    heads = x.unflatten(-1, (10, 64)).transpose(1, 2)
    made = linear_attention(heads, heads, heads)
    state = [plain_linear_attention(heads[:, h : h + 1], *[heads[:, h : h + 1]] * 2) for h in (9,)]
    torch.testing.assert_close(made[:, 9:, -1000:], state[0][:, :, -1000:], rtol=0.02, atol=0.01)


@needs_triton
@needs_cuda
def test_training_takes_the_plain_path_on_a_gpu() -> None:
    module = LinearAttention(64, 2).cuda()
    module(torch.randn(1, 9, 64, device="cuda")).sum().backward()
    assert module.to_q.weight.grad is not None
