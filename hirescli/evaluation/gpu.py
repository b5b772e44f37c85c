"""One denoising step and the decode of SDXL's real shape on a GPU, several ways in one run.

Weights are random: they are as fast as trained ones. Each figure is measured in a process of
its own, since an access past 2**31 elements, which some kernels do, leaves a device unusable.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from hirescli.attention.linfusion import LinFusionAdapter, mount, plain_operator
from hirescli.bands.stream import stream
from hirescli.errors import HiresError, RequestError, RunError
from hirescli.evaluation.benchmark import measured
from hirescli.evaluation.components import SD_AUTOENCODER
from hirescli.evaluation.page import machine, section
from hirescli.evaluation.peak import peak_memory
from hirescli.evaluation.request import PX_PER_LATENT
from hirescli.evaluation.tables import table
from hirescli.units import format_bytes

SIZES_PX = (1024, 2048, 4096, 8192, 16384)
BUDGET = "8GB"
# What each part is measured as. The first is diffusers without anything of ours.
WAYS = {
    "denoiser": ("softmax", "plain LinFusion", "LinFusion", "resident", "streamed"),
    "decoder": ("whole", "resident", "streamed"),
}
_DTYPE = torch.bfloat16
_MID_DIM_SCALE = 16  # of the published adapter for SDXL
_WARM_PX = 128
_SHORT_SECONDS = 20.0  # calls below are made twice, and the faster counts
_OUT_OF_MEMORY = "out of memory"

# SDXL as its published configurations have it, and the same structure for a dry run.
_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
_SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {  # the last: pooled text
    "sdxl": (
        {
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + 1280,
        },
        {},
        1280,
    ),
    "tiny": (
        {
            "block_out_channels": (32, 64, 64),
            "transformer_layers_per_block": (1, 1, 2),
            "attention_head_dim": (2, 4, 4),
            "cross_attention_dim": 24,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
            "norm_num_groups": 8,
        },
        {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
        16,
    ),
}


@dataclass(frozen=True)
class Case:
    """What is called and how.

    Attributes:
        part: "denoiser" or "decoder".
        way: One of `WAYS[part]`.
        size_px: Side of the square picture, a multiple of 8.
        device: "cuda", or "cpu" for a dry run.
        shape: "sdxl" or "tiny".
    """

    part: str
    way: str
    size_px: int
    device: str
    shape: str


@dataclass(frozen=True)
class Row:
    """One way at one size.

    Attributes:
        part, way, size_px: As in `Case`.
        seconds: Of one call, batch of one; None if it did not end well.
        peak_bytes: On CUDA of the device, weights included; on a CPU of the process, above what
            was resident before the call.
        note: Why there is no figure; "" if there is.
    """

    part: str
    way: str
    size_px: int
    seconds: float | None = None
    peak_bytes: int | None = None
    note: str = ""


def measure(
    sizes: Sequence[int] = SIZES_PX,
    device: str = "cuda",
    *,
    shape: str = "sdxl",
    most_seconds: float = 600.0,
    isolated: bool | None = None,
) -> list[Row]:
    """Measure every part and way at each size.

    Args:
        sizes: Sides of square pictures in px, multiples of 8, growing.
        device: "cuda" or "cpu".
        shape: "sdxl": its real shape. "tiny": the same structure, for a dry run.
        most_seconds: A call that would take longer, as its growth so far says, is left out.
        isolated: Whether each figure has a process of its own. None: on CUDA.

    Returns:
        All rows; what ran out of memory or failed otherwise says so in its note.

    Raises:
        RequestError: If there is no such device or shape, or a size is no multiple of 8.
    """
    if shape not in _SHAPES:
        raise RequestError(f'shape "{shape}" is neither of {", ".join(_SHAPES)}')
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("there is no CUDA device here; `hires doctor` says what there is")
    for size_px in sizes:
        if size_px < PX_PER_LATENT or size_px % PX_PER_LATENT:
            raise RequestError(f"{size_px} px is no multiple of {PX_PER_LATENT}")
    run = _in_child if (device == "cuda" if isolated is None else isolated) else run_case
    rows: list[Row] = []
    for part, ways in WAYS.items():
        for way in ways:
            before: list[Row] = []
            for size_px in sizes:
                case = Case(part, way, size_px, device, shape)
                before.append(_too_long(case, before, most_seconds) or run(case))
            rows += before
    return rows


def _too_long(case: Case, before: Sequence[Row], most_seconds: float) -> Row | None:
    """The row of a case that is left out because of what the sizes before it took."""
    row = Row(case.part, case.way, case.size_px)
    if before and before[-1].seconds is None:
        return replace(row, note="not tried")
    if not before or before[-1].seconds is None:
        return None
    tokens = (case.size_px / before[-1].size_px) ** 2
    # Softmax attention, also in the middle of a whole decoder, is quadratic in the tokens, all
    # else linear.
    seconds = before[-1].seconds * tokens ** (2 if case.way in ("softmax", "whole") else 1)
    if seconds <= most_seconds:
        return None
    return replace(row, note=f"not tried: up to {seconds:.0f} s")


def _in_child(case: Case) -> Row:
    try:
        said = measured([json.dumps(asdict(case))], module="hirescli.evaluation.gpu").stdout
    except (RunError, RequestError) as error:
        lines = str(error).strip().splitlines()
        return Row(case.part, case.way, case.size_px, note=f"failed: {lines[-1]}")
    return Row(**json.loads(said.splitlines()[-1]))


def run_case(case: Case) -> Row:
    """Measure one case in this process."""
    row = Row(case.part, case.way, case.size_px)
    try:
        with torch.no_grad(), ExitStack() as stack:
            call = _ready(case, stack)
            call(_WARM_PX)  # libraries and kernels make ready
            seconds, peak_bytes = _timed(case, call)
            if seconds < _SHORT_SECONDS:
                again, again_bytes = _timed(case, call)
                seconds, peak_bytes = min(seconds, again), max(peak_bytes, again_bytes)
    except torch.OutOfMemoryError:
        return replace(row, note=_OUT_OF_MEMORY)
    except HiresError as error:
        return replace(row, note=str(error))
    return replace(row, seconds=seconds, peak_bytes=peak_bytes)


def _timed(case: Case, call: Callable[[int], Tensor]) -> tuple[float, int]:
    """Seconds and peak bytes of one call."""
    cuda = case.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with nullcontext() if cuda else peak_memory() as peak:
        start = time.perf_counter()
        call(case.size_px)
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() if peak is None else peak.above_bytes


# The models


def _ready(case: Case, stack: ExitStack) -> Callable[[int], Tensor]:
    """The call of a case, from the side of the picture in px."""
    module = _drawn(unweighted(case), case.device)
    if case.way in ("resident", "streamed"):
        bounded = case.way == "streamed" and case.device == "cuda"
        stack.enter_context(stream(module, memory=BUDGET if bounded else None))
    operator: AbstractContextManager[None] = nullcontext()
    if case.way == "plain LinFusion":
        operator = plain_operator()
    stack.enter_context(operator)
    inputs = _unet_inputs if case.part == "denoiser" else _latents

    def call(size_px: int) -> Tensor:
        given = inputs(case, size_px // PX_PER_LATENT)
        made: Tensor = (module if case.part == "denoiser" else module.decode)(
            **given, return_dict=False
        )[0]
        return made

    return call


def unweighted(case: Case) -> Any:
    """The module of a case, on no device."""
    unet, autoencoder, _ = _SHAPES[case.shape]
    with torch.device("meta"):
        if case.part == "decoder":
            return AutoencoderKL(**{**SD_AUTOENCODER, **autoencoder})
        module = UNet2DConditionModel(**_UNET, **unet)
        if case.way != "softmax":
            mount(module, LinFusionAdapter.for_unet(module, mid_dim_scale=_MID_DIM_SCALE))
        return module


@torch.no_grad()
def _drawn(module: Any, device: str) -> Any:
    """The module, made on no device, with weights drawn where they shall be: 2.6 billion in
    a moment. Layers keep the variance, so that bfloat16 does not overflow on the way.
    """
    assert not list(module.buffers()), "buffers hold values that cannot be drawn"
    nn.Module.to(module, _DTYPE).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.normal_(0.5, 0.1, generator=generator)
    return module.eval().requires_grad_(False)


def _unet_inputs(case: Case, side: int) -> dict[str, Any]:
    unet, _, pooled = _SHAPES[case.shape]
    return {
        "sample": _noise(case, 1, 4, side, side),
        "timestep": torch.tensor(500, device=case.device),
        "encoder_hidden_states": _noise(case, 1, 77, unet["cross_attention_dim"]),
        "added_cond_kwargs": {
            "text_embeds": _noise(case, 1, pooled),
            "time_ids": torch.full((1, 6), 1024.0, dtype=_DTYPE, device=case.device),
        },
    }


def _latents(case: Case, side: int) -> dict[str, Any]:
    return {"z": _noise(case, 1, 4, side, side)}


def _noise(case: Case, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)  # of the CPU: the same on every device
    return torch.randn(shape, generator=generator).to(case.device, _DTYPE)


# The page


def gpu_section(rows: Sequence[Row], *, device: str, ran: str, command: str = "") -> str:
    """The section of `hires bench gpu`.

    Args:
        rows: What was measured.
        device: "cuda" or "cpu".
        ran: The day, and what else is to be said of the run.
        command: The words that wrote it; "": without options.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU, a dry run"
    lines = [
        [each.part, each.way, f"{each.size_px} px", *_figures(each)]
        for each in sorted(rows, key=lambda row: (row.part == "decoder", row.size_px))
    ]
    return section(
        "SDXL's shape on a GPU",
        command=command or "hires bench gpu",
        paragraphs=[
            f"{ran} Device: {name}. Machine: {machine()}.",
            table(["part", "way", "size", "time", "peak memory"], lines),
            "Random weights in bfloat16; one call of batch one, without guidance: guidance takes\n"
            "twice the time. Softmax and whole are diffusers' own; plain LinFusion has the\n"
            "operator in plain PyTorch, LinFusion the fused one where Triton runs. Resident and\n"
            "streamed are what pictures are made with: bands, with the whole device's memory and\n"
            f"within {BUDGET}. Peak memory on a GPU is the allocator's, with weights. Calls of\n"
            "less than 20 s were made twice, and the faster counts.",
        ],
    )


def _figures(row: Row) -> list[str]:
    if row.seconds is None or row.peak_bytes is None:
        return [row.note, "-"]
    return [f"{row.seconds:.3g} s", format_bytes(row.peak_bytes)]


def main(words: list[str]) -> int:
    """The child: a case as JSON in, its row as JSON out; returns its exit code."""
    sys.stdout.write(json.dumps(asdict(run_case(Case(**json.loads(words[0]))))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
