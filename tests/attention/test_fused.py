"""The fused kernels against the plain operator: interpreted on the CPU, and on a GPU if any."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

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
torch.manual_seed(0)
for word in sys.argv[1:]:
    d, dtype = int(word.split(":")[0]), getattr(torch, word.split(":")[1])
    heads = 3 if d < 80 else 1
    tokens = torch.randn(3, 1, 530, heads * d, dtype=dtype)
    q, k, v = tokens.unflatten(-1, (heads, d)).transpose(2, 3)
    v = v + k + 0.5
    wanted = plain_linear_attention(q.double(), k.double(), v.double())
    made = fused_linear_attention(q, k, v)
    assert made.dtype == dtype and made.shape == (1, heads, 530, d)
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

for capability, half, precision, dims in (
    (75, "*fp16", "ieee", (160,)),
    (80, "*bf16", "tf32x3", (64,)),
    (90, "*bf16", "tf32x3", (64, 160)),
):
    for d in dims:
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
@pytest.mark.slow
def test_kernels_are_the_operator(tmp_path: Path) -> None:
    """Every head width; in each dtype to its rounding."""
    bounds = {"float32": 1e-5, "float16": 2.0**-11, "bfloat16": 2.0**-8}
    words = ["40:float32", "64:bfloat16", "80:float16", "160:float32", "64:float32"]
    said = in_child(INTERPRETED, *words, folder=tmp_path, interpret=True).split()
    assert len(said) == len(words)
    for word, error in zip(words, said, strict=True):
        assert float(error) <= bounds[word.partition(":")[2]], word


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


@pytest.mark.parametrize("fault", ["wrong", "unbuildable"])
def test_kernels_that_do_not_work_are_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if fault == "unbuildable":
            raise RuntimeError("no C compiler")
        return plain_linear_attention(q, k, v) * 1.01

    module = ModuleType("hirescli.attention.linfusion_triton")
    module.fused_linear_attention = kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(linfusion, "find_spec", lambda name: name)
    works = linfusion._fused_works.__wrapped__  # the cached answer is the machine's own
    with pytest.warns(RuntimeWarning, match="the plain one is used"):
        assert not works(torch.device("cpu"))
    module.fused_linear_attention = plain_linear_attention  # type: ignore[attr-defined]
    assert works(torch.device("cpu"))


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
