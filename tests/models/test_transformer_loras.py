"""LoRAs of FLUX and SD3: as diffusers has them, with CLEAR as without, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from folders import TRANSFORMERS, lora_file, small_flux, transformer_lora
from safetensors.torch import load_file, save_file
from torch import Tensor

import hirescli
from hirescli.attention.clear_mount import mount
from hirescli.attention.clear_weights import save_clear
from hirescli.errors import RequestError
from hirescli.models.load import Model, load
from hirescli.models.loras import apply_loras, check_loras
from hirescli.models.registry import find

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
FAMILIES = ("flux", "sd3")
SCALE = 0.7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loras")
    for family, make in TRANSFORMERS.items():
        make(root / family)
        transformer_lora(root / f"{family}.safetensors", family)
    lora_file(root / "sd15.safetensors", "sd15")
    clear = small_flux()
    for weight in mount(clear, window=2).parameters().values():
        weight.data *= 1.1
    save_clear(clear, root / "clear.safetensors")
    return root


def loaded(root: Path, family: str, *, linear: bool = False, dtype: str = "float32") -> Model:
    adapter = str(root / "clear.safetensors") if linear else None
    return load(find(str(root / family), adapter=adapter), dtype=dtype, linear=linear)


@torch.no_grad()
def predicted(transformer: Any, states: dict[str, Tensor]) -> Tensor:
    """What a denoiser sees in one fixed sample of 4x3 tokens."""
    flux = type(transformer).__name__.startswith("Flux")
    size = (1, 12, 16) if flux else (1, 4, 8, 6)
    sample = torch.randn(size, generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {
        "encoder_hidden_states": states["prompt_embeds"],
        "pooled_projections": states["pooled_prompt_embeds"],
        "timestep": torch.tensor([0.5]),
    }
    if flux:
        places = torch.zeros(4, 3, 3)
        places[..., 1], places[..., 2] = torch.arange(4)[:, None], torch.arange(3)
        text = torch.zeros(given["encoder_hidden_states"].shape[1], 3)
        given |= {"img_ids": places.flatten(0, 1), "txt_ids": text, "guidance": torch.ones(1)}
    return transformer(sample, **given).sample  # type: ignore[no-any-return]


def in_diffusers(root: Path, family: str, *loras: tuple[Path, float]) -> Any:
    pipe = DiffusionPipeline.from_pretrained(root / family, local_files_only=True)
    for number, (path, _) in enumerate(loras):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"x{number}")
    pipe.set_adapters([f"x{n}" for n in range(len(loras))], [scale for _, scale in loras])
    return pipe


def encoded(pipe: Any, family: str) -> dict[str, Tensor]:
    if family == "flux":
        states, pooled, _ = pipe.encode_prompt("the sea", None)
    else:
        states, _, pooled, _ = pipe.encode_prompt("the sea", None, None)
    return {"prompt_embeds": states, "pooled_prompt_embeds": pooled}


@pytest.mark.parametrize("family", FAMILIES)
def test_loras_are_as_in_diffusers(family: str, root: Path, tmp_path: Path) -> None:
    """Two of them, on all layers of the denoiser and on a text encoder."""
    other = transformer_lora(tmp_path / "other.safetensors", family, seed=77, text=False)
    both = [(root / f"{family}.safetensors", SCALE), (other, -0.3)]
    model, pipe = loaded(root, family), in_diffusers(root, family, *both)
    before = predicted(model.unet, encoded(pipe, family))
    apply_loras(model, both)
    wanted, states = encoded(pipe, family), model.text.encode("the sea", "")
    for key, tensor in wanted.items():
        tokens = tensor.shape[1]
        torch.testing.assert_close(states[key][:, :tokens], tensor, rtol=1e-4, atol=1e-4)
    made = predicted(model.unet, wanted)
    torch.testing.assert_close(made, predicted(pipe.transformer, wanted), rtol=1e-4, atol=1e-4)
    assert float((made - before).abs().max()) > 0.1
    assert not any("lora" in name for name, _ in model.unet.named_modules())


def test_clear_gets_what_the_attention_it_stands_for_gets(root: Path) -> None:
    """As a LoRA that is loaded into a linearised pipeline, without training."""
    model = loaded(root, "flux", linear=True)
    apply_loras(model, [(root / "flux.safetensors", SCALE)])
    pipe = DiffusionPipeline.from_pretrained(root / "flux", local_files_only=True)
    hirescli.linearize(
        pipe, "clear", weights=root / "clear.safetensors"
    ).settings.proportional = True
    pipe.load_lora_weights(str(root), weight_name="flux.safetensors", adapter_name="x")
    pipe.set_adapters(["x"], [SCALE])
    states = encoded(pipe, "flux")
    with model.attending("linear"):
        made = predicted(model.unet, states)
    wanted = predicted(pipe.transformer, states)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    full = in_diffusers(root, "flux", (root / "flux.safetensors", SCALE)).transformer
    wanted = predicted(full, states)  # off again, the model has the LoRA on its own weights
    torch.testing.assert_close(predicted(model.unet, states), wanted, rtol=1e-4, atol=1e-4)


def test_the_weights_of_clear_are_read_once(root: Path, tmp_path: Path) -> None:
    """Every stage mounts them."""
    path = tmp_path / "clear.safetensors"
    path.write_bytes((root / "clear.safetensors").read_bytes())
    model = load(find(str(root / "flux"), adapter=str(path)), dtype="float32")
    path.unlink()
    states = model.text.encode("the sea", "")
    full, made = predicted(model.unet, states), []
    for _ in range(2):
        with model.attending("linear"):
            made.append(predicted(model.unet, states))
    assert torch.equal(*made)
    assert not torch.equal(made[0], full)
    assert torch.equal(predicted(model.unet, states), full)


KOHYA = {
    "transformer_blocks.0.attn.to_out.0": "double_blocks_0_img_attn_proj",
    "transformer_blocks.0.ff.net.2": "double_blocks_0_img_mlp_2",
    "transformer_blocks.0.attn.to_add_out": "double_blocks_0_txt_attn_proj",
    "single_transformer_blocks.0.proj_out": "single_blocks_0_linear2",
}


def kohya_file(path: Path) -> Path:
    """Of rank 2 and alpha 1, queries, keys and values as one layer."""
    generator, states = torch.Generator().manual_seed(4), {}
    shapes = {name: tuple(m.weight.shape) for name, m in small_flux().named_modules()
              if isinstance(m, torch.nn.Linear)}  # fmt: skip
    layers = {theirs: shapes[name] for name, theirs in KOHYA.items()}
    for which in ("img", "txt"):
        layers[f"double_blocks_0_{which}_attn_qkv"] = (48, 16)
    for name, (rows, columns) in layers.items():
        states[f"lora_unet_{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
        states[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator) / 4
        states[f"lora_unet_{name}.alpha"] = torch.tensor(1.0)
    save_file(states, path)
    return path


def test_a_lora_under_the_names_of_its_trainer(root: Path, tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "kohya.safetensors")
    model, pipe = loaded(root, "flux"), in_diffusers(root, "flux", (path, SCALE))
    check_loras(model.source, [path])
    states = model.text.encode("the sea", "")
    before = predicted(model.unet, states)
    apply_loras(model, [(path, SCALE)])
    made = predicted(model.unet, states)
    torch.testing.assert_close(made, predicted(pipe.transformer, states), rtol=1e-4, atol=1e-4)
    assert float((made - before).abs().max()) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_all_of_a_lora_is_found_again(
    dtype: str, stored: torch.dtype, root: Path, tmp_path: Path
) -> None:
    states = load_file(root / "sd3.safetensors")
    path = tmp_path / "lora.safetensors"
    save_file({key: tensor.to(stored) for key, tensor in states.items()}, path)
    model = loaded(root, "sd3", dtype=dtype)
    apply_loras(model, [(path, 1.0)])
    assert not any("lora" in name for name, _ in model.unet.named_modules())


# Refused


def pair(name: str, rows: int, columns: int, ends: tuple[str, str] = ("lora_A", "lora_B")) -> Any:
    down, up = (f"{name}.{end}.weight" for end in ends)
    return {down: torch.zeros(2, columns), up: torch.zeros(rows, 2)}


KOHYA_ENDS = ("lora_down", "lora_up")
FILES: dict[str, tuple[dict[str, Tensor], str]] = {
    "empty": ({"a.weight": torch.zeros(2)}, "is no LoRA"),
    "of a UNet": (pair("unet.mid_block.attentions.0.proj_in", 8, 8), "Stable Diffusion 1.5, 2.1"),
    "nowhere": (pair("transformer.nowhere", 8, 8), "no layer transformer.nowhere"),
    "shape": (pair("transformer.x_embedder", 16, 17), "the layer of .16, 16."),
    "norm": (
        pair("transformer.x_embedder", 16, 16)
        | {"transformer.norm_out.norm.scale": torch.zeros(2)},
        "no part of a plain LoRA",
    ),
    "T5": (pair("text_encoder_2.encoder.block.0.layer.0.q", 8, 8), "leave that part out"),
    "no prefix": (pair("x_embedder", 16, 16), "does not say which component"),
    "kohya nowhere": (
        pair("lora_unet_double_blocks_7_img_mlp_2", 16, 64, KOHYA_ENDS),
        "no layer lora_unet_double_blocks_7_img_mlp_2",
    ),
    "kohya shape": (
        pair("lora_unet_double_blocks_0_img_attn_qkv", 47, 16, KOHYA_ENDS), "the layer of .48, 16."
    ),
    "kohya text": (
        pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 64, 32, KOHYA_ENDS)
        | pair("lora_te1_text_model_encoder_layers_9_mlp_fc1", 64, 32, KOHYA_ENDS),
        "layers_9_mlp_fc1.lora_down.weight changes no layer",
    ),
    "nothing but such": (
        pair("lora_te1_text_model_encoder_layers_9_mlp_fc1", 64, 32, KOHYA_ENDS), "be loaded"
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", FILES)
def test_files_that_are_no_lora_for_it(which: str, root: Path, tmp_path: Path) -> None:
    tensors, said = FILES[which]
    path = tmp_path / "it.safetensors"
    save_file(tensors, path)
    model = loaded(root, "flux")
    before = {key: tensor.clone() for key, tensor in model.unet.state_dict().items()}
    with pytest.raises(RequestError, match=said) as caught:
        apply_loras(model, [(path, 1.0)])
    assert str(path) in str(caught.value)
    after = model.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


@pytest.mark.parametrize(("family", "other"), [("flux", "sd3"), ("sd3", "flux"), ("flux", "sd15")])
def test_loras_of_another_family_are_refused(family: str, other: str, root: Path) -> None:
    """Before weights are loaded."""
    path, source = root / f"{other}.safetensors", find(str(root / family))
    with pytest.raises(RequestError, match=f"`{family}`") as caught:
        check_loras(source, [path])
    assert str(path) in str(caught.value)
    check_loras(source, [root / f"{family}.safetensors"])


def test_kohyas_names_are_those_of_flux_only(root: Path, tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "kohya.safetensors")
    with pytest.raises(RequestError, match="does not say which component"):
        check_loras(find(str(root / "sd3")), [path])
