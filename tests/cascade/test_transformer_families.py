"""FLUX and SD3 from the command line, in bands: what plain diffusers makes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

import hirescli
from hirescli.attention.clear_mount import mount
from hirescli.attention.clear_weights import save_clear
from hirescli.cascade.methods import anchor_colours
from hirescli.output.metadata import read_recipe
from hirescli.output.resize import ArrayRows, Resized
from hirescli.planning.cascade import Stage, schedule_steps

sys.path.append(str(Path(__file__).parent.parent / "models"))
from folders import (
    TRANSFORMERS,
    flux_controlnet_folder,
    flux_ip_adapter_folder,
    small_flux,
    transformer_lora,
)
from plain import opened, resized

pytestmark = pytest.mark.slow
WORDS = ("-p", "a lake", "--seed", 3, "--dtype", "float32", "--vae-dtype", "float32", "--rows", 6)
STEPS = ("--steps", 2, "--upscale-steps", 2, "-o", "out.png")


class Plain:
    """The cascade written out with whole calls of plain diffusers.

    `controls` are folders of ControlNets, each with its picture and how strongly it acts.
    """

    def __init__(self, folder: Path, controls: Sequence[tuple[Path, Path, float]] = ()) -> None:
        self.pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        self.flux = type(self.pipe).__name__.startswith("Flux")
        self.noise = torch.Generator().manual_seed(3)
        load = diffusers.FluxControlNetModel.from_pretrained
        self.nets = [load(path, local_files_only=True) for path, _, _ in controls]
        self.controls = controls
        self.pictures: list[Any] = []

    @torch.no_grad()
    def draw(self, plan: hirescli.Plan, picture: Any = None) -> Any:
        for stage in plan.stages:
            encoded = None if picture is None else self.encode(picture, stage)
            latents = self.denoise(plan, stage, encoded)
            if stage.kind == "upscale":
                latents = anchor_colours(latents, encoded, deviation=True)
            config = self.pipe.vae.config
            pixels = latents / config.scaling_factor + config.shift_factor
            made = self.pipe.vae.decode(pixels)[0][0].permute(1, 2, 0)
            picture = np.rint((made / 2 + 0.5).numpy().clip(0, 1) * 65535).astype(np.uint16)
        return picture / 65535

    def look_at(self, adapter: Path, pictures: Sequence[tuple[Path, float]]) -> None:
        """Load an IP-Adapter; `draw` gives it these pictures."""
        self.pipe.load_ip_adapter(
            adapter, weight_name=["ip_adapter.safetensors"] * len(pictures),
            image_encoder_pretrained_model_name_or_path=str(adapter / "image_encoder"),
            image_encoder_dtype=torch.float32,
        )  # fmt: skip
        self.pipe.set_ip_adapter_scale([scale for _, scale in pictures])
        self.pictures = [Image.open(path).convert("RGB") for path, _ in pictures]

    def linearize(self, weights: Path) -> None:
        """By CLEAR, as a run has it."""
        hirescli.linearize(
            self.pipe.transformer, "clear", weights=weights
        ).settings.proportional = True

    def encode(self, picture: Any, stage: Stage) -> Any:
        resized = Resized(
            ArrayRows(picture), width_px=stage.width_px, height_px=stage.height_px
        ).rows(0, stage.height_px)
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None] * 2 - 1
        config = self.pipe.vae.config
        mode = self.pipe.vae.encode(pixels).latent_dist.mode()
        return (mode - config.shift_factor) * config.scaling_factor

    def denoise(self, plan: hirescli.Plan, stage: Stage, encoded: Any) -> Any:
        name = "Flux" if self.flux else "StableDiffusion3"
        name += "ControlNet" if self.nets else ""
        kind = getattr(diffusers, f"{name}{'' if encoded is None else 'Img2Img'}Pipeline")
        parts = {key: part for key, part in self.pipe.components.items() if part is not None}
        pipeline = kind(**parts, **({"controlnet": self.nets} if self.nets else {}))
        pipeline.set_progress_bar_config(disable=True)
        given: dict[str, Any] = {"num_inference_steps": stage.steps}
        if encoded is not None:
            assert stage.strength is not None
            length = schedule_steps(stage.strength, stage.steps, flows=True)
            given = {"image": encoded, "strength": stage.strength, "num_inference_steps": length}
        if self.nets:
            _, images, scales = zip(*self.controls, strict=True)
            given["control_image"] = [resized(opened(p), stage) * 2 - 1 for p in images]
            given["controlnet_conditioning_scale"] = list(scales)
            given["control_mode"] = [None] * len(self.nets)
            # It takes pictures only, where the others take latents.
            pipeline._encode_vae_image = lambda image, generator: image
        if self.pictures:
            # Of no effect; by itself it takes one for what several pictures need.
            given["negative_ip_adapter_image"] = given["ip_adapter_image"] = self.pictures
        made = pipeline(
            prompt=plan.recipe.prompt, height=stage.height_px, width=stage.width_px,
            guidance_scale=stage.guidance_scale, generator=self.noise, output_type="latent",
            max_sequence_length=512 if self.flux else 256, **given,
        ).images  # fmt: skip
        if not self.flux:
            return made
        return pipeline._unpack_latents(made, stage.height_px, stage.width_px, 8)


def own_clear(path: Path) -> Path:
    """CLEAR's weights for FLUX's folder, which are not those of its attention."""
    model = small_flux()
    for weight in mount(model, window=3).parameters().values():
        weight.data *= 1.1
    save_clear(model, path)
    return path


def made_by(hires: Callable[..., Any], folder: Path, *words: object) -> tuple[Any, Any]:
    """What the command made, and its recipe's plan."""
    ran = hires("generate", "-m", folder, *WORDS, *STEPS, *words)
    assert ran.code == 0, ran.err
    plan = hirescli.plan(hirescli.Recipe.from_fragments(read_recipe(Path("out.png"))))
    with Image.open("out.png") as image:
        return np.asarray(image) / 255, plan


def test_flux_from_a_prompt(hires: Callable[..., Any], tmp_path: Path) -> None:
    folder = TRANSFORMERS["flux"](tmp_path / "flux")
    made, plan = made_by(hires, folder, "--size", "320x256")
    assert np.abs(made - Plain(folder).draw(plan)).max() <= 1.01 / 255


def test_flux_from_a_picture_by_clear(hires: Callable[..., Any], tmp_path: Path) -> None:
    """Weights from a file, and a LoRA that was not made for them."""
    folder = TRANSFORMERS["flux"](tmp_path / "flux")
    clear = own_clear(tmp_path / "mine.safetensors")
    start = np.random.default_rng(0).integers(0, 255, (256, 320, 3), dtype=np.uint8)
    Image.fromarray(start).save(tmp_path / "start.png")
    lora = transformer_lora(tmp_path / "lora.safetensors", "flux")
    made, plan = made_by(
        hires, folder, "--size", "320x256", "--init-image", tmp_path / "start.png",
        "--attention", "linear", "--adapter", clear, "--lora", lora,
    )  # fmt: skip
    plain = Plain(folder)
    plain.linearize(clear)
    plain.pipe.load_lora_weights(str(tmp_path), weight_name=lora.name)
    wanted = plain.draw(plan, start.astype(np.uint16) * 257)
    assert np.abs(made - wanted).max() <= 1.01 / 255


def test_sd3_from_a_prompt_with_a_lora(hires: Callable[..., Any], tmp_path: Path) -> None:
    """Two stages, the second beyond where the table of positions is trained."""
    folder = TRANSFORMERS["sd3"](tmp_path / "sd3")
    lora = transformer_lora(tmp_path / "lora.safetensors", "sd3")
    made, plan = made_by(hires, folder, "--size", "192x160", "--lora", f"{lora}:0.5")
    assert len(plan.stages) == 2
    plain = Plain(folder)
    without = plain.draw(plan)
    plain = Plain(folder)
    plain.pipe.load_lora_weights(str(tmp_path), weight_name=lora.name, adapter_name="x")
    plain.pipe.set_adapters(["x"], [0.5])
    assert np.abs(made - plain.draw(plan)).max() <= 1.01 / 255
    assert np.abs(made - without).max() > 0.1


@pytest.mark.parametrize("kind", ["one", "two, from a picture, by CLEAR", "with a ControlNet"])
def test_flux_with_image_prompts(
    hires: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The picture is shrunk to the image encoder's size by diffusers, in both."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _=None: self.mode())
    folder = TRANSFORMERS["flux"](tmp_path / "flux")
    adapter = flux_ip_adapter_folder(tmp_path / "ip")
    pictures = []
    for number, scale in enumerate((2.0, 0.5) if kind.startswith("two") else (1.5,)):
        pixels = np.random.default_rng(number).integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"mood-{number}.png")
        pictures.append((tmp_path / f"mood-{number}.png", scale))
    words = [w for path, x in pictures for w in ("--image-prompt", f"{path}:{x}")]
    clear, begun, controls = tmp_path / "mine.safetensors", None, []
    if kind.startswith("two"):
        begun = opened(pictures[0][0])
        words += ["--init-image", str(pictures[0][0]), "--attention", "linear"]
        words += ["--adapter", str(own_clear(clear))]
    if kind.startswith("with"):
        controls = [(flux_controlnet_folder(tmp_path / "net"), pictures[0][0], 0.6)]
        words += ["--control", f"{controls[0][0]}={controls[0][1]}:{controls[0][2]}"]
    made, plan = made_by(hires, folder, "--size", "320x256", *words, "--image-adapter", adapter)
    for looks in (True, False):
        plain = Plain(folder, controls)
        if looks:
            plain.look_at(adapter, pictures)
        if begun is not None:
            plain.linearize(clear)
        error = np.abs(made - plain.draw(plan, begun)).max()
        assert error <= 1.01 / 255 if looks else error > 0.1


@pytest.fixture
def _no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers draws the latents of control images; here they are the most likely ones."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _=None: self.mode())


@pytest.mark.usefixtures("_no_draws")
@pytest.mark.parametrize("count", [1, 2])
def test_flux_with_controlnets(hires: Callable[..., Any], tmp_path: Path, count: int) -> None:
    """Two begin from a picture, by CLEAR. Of two blocks of a kind what the first gives is read."""
    folder = TRANSFORMERS["flux"](tmp_path / "flux")
    controls = []
    for number, scale in list(enumerate((0.6, 1.0)))[:count]:
        net = flux_controlnet_folder(tmp_path / f"net-{number}", seed=3 + number)
        pixels = np.random.default_rng(number).integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"edges-{number}.png")
        controls.append((net, tmp_path / f"edges-{number}.png", scale))
    words = [w for net, edges, x in controls for w in ("--control", f"{net}={edges}:{x}")]
    start = np.random.default_rng(9).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(start).save(tmp_path / "start.png")
    begun = opened(tmp_path / "start.png") if count == 2 else None
    clear = tmp_path / "mine.safetensors"
    if begun is not None:
        words += ["--init-image", str(tmp_path / "start.png"), "--attention", "linear"]
        words += ["--adapter", str(own_clear(clear))]
    made, plan = made_by(hires, folder, "--size", "320x256", *words)
    for plain, same in ((Plain(folder, controls), True), (Plain(folder), False)):
        if begun is not None:
            plain.linearize(clear)
        error = np.abs(made - plain.draw(plan, begun)).max()
        assert error <= 1.01 / 255 if same else error > 0.1
