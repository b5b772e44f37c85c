"""What cannot be done in bands is refused by name, and nothing is ever silently wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from agreement import assert_exact, trace_of
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from models import FAMILIES, Family
from pipelines import CASES
from torch import Tensor, nn

import hirescli
from hirescli.errors import RequestError, RunError

SIZE = (8, 8)
Operation = Callable[[Tensor], Tensor]


class Extended(nn.Module):
    """A block with one more operation behind it."""

    def __init__(self, block: nn.Module, operation: Operation) -> None:
        super().__init__()
        self.block, self.operation = block, operation

    def forward(self, *args: Any, **options: Any) -> Tensor:
        return self.operation(self.block(*args, **options))


def extended(module: nn.Module, path: str, operation: Operation) -> nn.Module:
    """The module with the block at `path` extended by the operation."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, Extended(module.get_submodule(path), operation))
    return module.eval()


@torch.no_grad()
def call(family: Family, module: nn.Module, **options: Any) -> models.Outputs:
    size = SIZE if min(family.sizes[-1]) < 40 else (40, 40)
    with hirescli.stream(module, **{"rows": 3, **options}):
        return family.call(module, family.inputs(size, 1, 1))


def refusal(family: Family, module: nn.Module, **options: Any) -> str:
    """The message of the refusal; the component must be left as it was."""
    before = trace_of(module)
    with pytest.raises(RequestError) as caught:
        call(family, module, **options)
    assert trace_of(module) == before
    return str(caught.value)


BLOCKS = [
    ("SD15", "mid_block.resnets.0"),
    ("SD15", "up_blocks.2.resnets.1"),
    ("CONTROLNET", "down_blocks.1.resnets.0"),
    ("KL_DECODE", "decoder.up_blocks.1.resnets.0"),
    ("KL_ENCODE", "encoder.down_blocks.2.resnets.0"),
    ("TINY_DECODE", "decoder.layers.2"),
]


@pytest.mark.parametrize(("name", "path"), BLOCKS)
@pytest.mark.parametrize(
    ("operation", "apply"),
    [
        ("fft", lambda x: x + torch.fft.fft2(x).real),
        ("sort", lambda x: torch.sort(x, dim=2).values),
    ],
    ids=["fft", "sort"],
)
def test_unknown_operation_and_its_module_are_named(
    name: str, path: str, operation: str, apply: Operation
) -> None:
    family = FAMILIES[name]
    message = refusal(family, extended(family.build(), path, apply))
    assert operation in message
    assert path in message


@pytest.mark.parametrize(
    "apply",
    [
        lambda x: x if x.max() > 0 else -x,
        lambda x: x * x.mean().item(),
        lambda x: x + torch.from_numpy(x.numpy()),
        lambda x: x * float(x.std()),
        lambda x: x * len(x.mean((0, 1, 3)).tolist()),
    ],
    ids=["if", "item", "numpy", "float", "tolist"],
)
def test_looking_at_values_is_refused(apply: Operation) -> None:
    path = "mid_block.resnets.0"
    module = extended(models.sd15_unet(), path, apply)
    assert path in refusal(models.SD15, module)


OPERATIONS: dict[str, Operation] = {
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(1, 2),
    "cumsum": lambda x: x.cumsum(2) / 8,
    "largest": lambda x: x - x.amax((2, 3), keepdim=True),
    "slice rows": lambda x: torch.cat([x[:, :, 1:], x[:, :, :1]], 2),
    "slice columns": lambda x: torch.cat([x[..., 1:], x[..., :1]], 3),
    "index": lambda x: x + x[:, :, :1],
    "write": lambda x: x.clone().index_fill_(2, torch.tensor([0]), 0.0),
    "assign": lambda x: _assigned(x),
    "pool": lambda x: x + nn.functional.avg_pool2d(x, 3, 1, 1),
    "shrink": lambda x: x + nn.functional.interpolate(x, size=(1, 1), mode="area"),
    "bilinear": lambda x: nn.functional.interpolate(x, scale_factor=1.0, mode="bilinear"),
    "turn": lambda x: x + x.transpose(2, 3) if x.shape[2] == x.shape[3] else x,
    "mix shape": lambda x: x.reshape(x.shape[0], -1, 4).flip(1).reshape(x.shape),
    "softmax over rows": lambda x: x * x.softmax(2),
    "instance norm": nn.functional.instance_norm,
    "norm": lambda x: x / x.norm(dim=(2, 3), keepdim=True),
    "wrapped padding": lambda x: nn.functional.pad(x, (1, 1, 1, 1), "circular")[..., 2:, 2:],
    "mirrored padding": lambda x: nn.functional.pad(x, (1, 1, 1, 1), "replicate")[..., 2:, 2:],
    "dilated": lambda x: nn.functional.conv2d(
        x, models.draw((x.shape[1], 1, 3, 3), 1) / 3, padding=2, dilation=2, groups=x.shape[1]
    ),
    "noise": lambda x: x + 0 * torch.rand_like(x),
    "rows as plain tensor": lambda x: x * torch.linspace(0, 1, x.shape[2])[:, None],
    "like": lambda x: x + torch.ones_like(x) / 2,
    "zeros": lambda x: torch.cat([x, torch.zeros_like(x)], 1)[:, : x.shape[1]],
}


def _assigned(x: Tensor) -> Tensor:
    y = x * 1
    y[:, :, 0] = 0
    return y


@pytest.mark.parametrize("name", OPERATIONS)
def test_other_operations_are_exact_or_refused(name: str) -> None:
    family = Family(
        lambda: extended(models.sd15_unet(), "up_blocks.1.resnets.0", OPERATIONS[name]),
        models.unet_inputs,
        models.call_unet,
    )
    exact_or_refused(family, family.module())


def exact_or_refused(family: Family, module: nn.Module) -> None:
    """An answer is either right or none."""
    inputs = family.inputs((16, 16), 1, 1)
    with torch.no_grad():
        wanted = family.call(module, inputs)
    before = trace_of(module)
    try:
        with torch.no_grad(), hirescli.stream(module, rows=5):
            made = family.call(module, inputs)
    except RequestError:
        pass
    else:
        assert_exact(made, wanted)
    assert trace_of(module) == before


CHANGES: dict[str, Callable[[Any], object]] = {
    "fused projections": lambda unet: unet.fuse_qkv_projections(),
    "layerwise casting": lambda unet: unet.enable_layerwise_casting(torch.bfloat16, torch.float32),
    "forward chunking": lambda unet: [
        block.set_chunk_feed_forward(4, 1)
        for block in unet.modules()
        if isinstance(block, BasicTransformerBlock)
    ],
    "forward hook": lambda unet: unet.mid_block.register_forward_hook(lambda m, i, o: o * 2),
    "pre hook": lambda unet: unet.conv_out.register_forward_pre_hook(lambda m, i: (i[0] * 2,)),
    "a forward of its own": lambda unet: _wrapped(unet.mid_block.resnets[0]),
}


def _wrapped(module: nn.Module) -> None:
    plain = module.forward
    module.forward = lambda *args, **options: plain(*args, **options) * 2


@pytest.mark.parametrize("name", CHANGES)
def test_changed_components_are_exact_or_refused(name: str) -> None:
    unet = models.sd15_unet()
    CHANGES[name](unet)
    exact_or_refused(models.SD15, unet)


def test_tiling_is_exact_or_refused() -> None:
    vae = models.autoencoder()
    vae.enable_tiling()
    exact_or_refused(models.KL_DECODE, vae)


def test_freeu() -> None:
    unet = models.sd15_unet()
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert "FreeU" in refusal(models.SD15, unet)
    unet.disable_freeu()  # leaves attributes that are None
    assert_exact(call(models.SD15, unet), models.SD15.reference(models.unet_inputs(SIZE, 1, 1)))


def test_attention_slicing() -> None:
    unet = models.sd15_unet()
    unet.set_attention_slice("max")
    assert "slic" in refusal(models.SD15, unet)


@pytest.mark.parametrize("default", [False, True])
def test_attention_without_the_fused_kernel(default: bool) -> None:
    """Its matrix of weights has rows both ways and would not fit."""
    unet = models.sd15_unet()
    if default:
        unet.set_default_attn_processor()
    else:
        unet.set_attn_processor(AttnProcessor())
    message = refusal(models.SD15, unet)
    assert "attn1" in message or "AttnProcessor" in message
    assert any(name in message for name in ("baddbmm", "bmm", "softmax", "AttnProcessor"))


def test_hook_of_accelerate() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    unet = models.sd15_unet()
    add_hook_to_module(unet, AlignDevicesHook(execution_device="cpu"))
    assert re.search("offload|hook", refusal(models.SD15, unet))


def test_hooks_of_accelerate_on_parts() -> None:
    from accelerate import cpu_offload

    unet = cpu_offload(models.sd15_unet(), execution_device=torch.device("cpu"))
    assert re.search("offload|hook", refusal(models.SD15, unet))


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload_of_diffusers(kind: str) -> None:
    unet, cpu = models.sd15_unet(), torch.device("cpu")
    blocks: dict[str, Any] = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    unet.enable_group_offload(cpu, cpu, offload_type=kind, **blocks)
    assert "offload" in refusal(models.SD15, unet)


def test_hooks_within_a_pipeline_are_named_with_the_component() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    case = CASES["controlnet"]
    pipeline = case.pipeline()
    add_hook_to_module(pipeline.controlnet, AlignDevicesHook(execution_device="cpu"))
    before = trace_of(pipeline.unet)
    with pytest.raises(RequestError, match=r"(?i)controlnet"):  # noqa: SIM117
        with hirescli.stream(pipeline, rows=4):
            case.run(pipeline)
    assert trace_of(pipeline.unet) == before


@pytest.mark.parametrize("outside", [True, False])
def test_autocast(outside: bool) -> None:
    unet, inputs = models.sd15_unet(), models.unet_inputs(SIZE, 1, 1)
    contexts = [torch.autocast("cpu", torch.bfloat16), hirescli.stream(unet, rows=3)]
    first, second = contexts if outside else reversed(contexts)
    with torch.no_grad(), pytest.raises(RequestError, match="autocast"), first, second:
        unet(**inputs)


@pytest.mark.parametrize("how", ["wrapped", "in place", "part"])
def test_compiled(how: str) -> None:
    unet: Any = models.sd15_unet()
    if how == "wrapped":
        unet = torch.compile(unet)
    elif how == "in place":
        unet.compile()
    else:
        unet.mid_block = torch.compile(unet.mid_block)
    assert "compile" in refusal(models.SD15, unet)


def test_dropout_that_is_switched_on() -> None:
    unet = models.sd15_unet(dropout=0.2)
    unet.train()
    assert "dropout" in refusal(models.SD15, unet).lower()


@pytest.mark.parametrize("component", [nn.Linear(2, 2), nn.Identity()])
def test_components_that_are_unknown(component: nn.Module) -> None:
    with pytest.raises(RequestError, match=type(component).__name__):  # noqa: SIM117
        with hirescli.stream(component):
            component(torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": 0}, ["rows", "0"]),
        ({"rows": -3}, ["rows", "-3"]),
        ({"rows": 2.5}, ["rows", "2.5"]),
        ({"rows": "many"}, ["rows", "many"]),
        ({"store": "tape"}, ["tape", "device", "host", "disk"]),
        ({"memory": "8 bananas"}, ["8 bananas"]),
        ({"memory": 0}, ["0"]),
        ({"memory": -1}, ["-1"]),
        ({"host_memory": "8 bananas"}, ["8 bananas"]),
        ({"disk": "8 bananas"}, ["8 bananas"]),
        ({"vae_attention": "sparse"}, ["sparse", "pooled", "exact"]),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], said: list[str]) -> None:
    message = refusal(models.SD15, models.SD15.module(), **{"rows": 3, **options})
    for word in said:
        assert word in message


# Which module the message may name: the faulty one, or the next that looks at values.
WEIGHTS = [
    ("SD15", "conv_in", r"conv_in|down_blocks\.0\.resnets\.0"),
    ("SD15", "up_blocks.1.resnets.0.conv1", r"up_blocks\.1\.resnets\.0"),
    (
        "SD15",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k",
        r"down_blocks\.(0\.attentions|1\.resnets\.0)",
    ),
    ("SD15", "conv_out", "conv_out"),
    (
        "LINFUSION",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
        r"down_blocks\.1\.attentions\.0",
    ),
    ("CONTROLNET", "controlnet_mid_block", "controlnet_mid_block"),
    ("KL_DECODE", "decoder.mid_block.attentions.0.to_v", r"mid_block\.(attentions|resnets\.1)"),
    ("KL_DECODE", "decoder.conv_out", "conv_out"),
    (
        "KL_ENCODE",
        "encoder.down_blocks.1.resnets.0.conv2",
        r"down_blocks\.(1|2\.resnets\.0)",
    ),
    ("TINY_DECODE", "decoder.layers.0", "layers"),
]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "path", "named"), WEIGHTS)
@torch.no_grad()
def test_value_that_is_no_number_is_named(name: str, path: str, named: str, value: float) -> None:
    family = FAMILIES[name]
    module = family.build()
    next(module.get_submodule(path).parameters()).flatten()[0] = value
    before = trace_of(module)
    with pytest.raises(RunError, match=named):
        call(family, module)
    assert trace_of(module) == before


def test_latents_that_are_no_numbers() -> None:
    inputs = models.unet_inputs(SIZE, 1, 1)
    inputs["sample"][0, 0, 7, 3] = float("nan")
    unet = models.SD15.module()
    with torch.no_grad(), pytest.raises(RunError), hirescli.stream(unet, rows=3):
        unet(**inputs)


def test_unet_is_a_unet() -> None:
    """The tiny components are diffusers' own classes, not subclasses that know of bands."""
    assert type(models.sd15_unet()) is UNet2DConditionModel
