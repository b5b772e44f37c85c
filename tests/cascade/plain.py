"""The cascade of Stable Diffusion models written out with whole calls of plain diffusers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import hirescli
from hirescli.cascade.methods import anchor_colours
from hirescli.output.resize import ArrayRows, Resized
from hirescli.planning.cascade import Stage, schedule_steps
from hirescli.planning.sizes import base_size

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-a": diffusers.EulerAncestralDiscreteScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
Scaled = list[tuple[Path, float]]


@dataclass
class Plain:
    """One model with all that plugs into it, as diffusers loads them.

    Attributes:
        folder: Of the model.
        scheduler: A name of recipes.
        adapter: LinFusion weights that are mounted.
        loras, controls, image_prompts: With how strongly each acts.
        image_adapter: Folder of the IP-Adapter.
    """

    folder: Path
    scheduler: str
    adapter: Path | None = None
    loras: Scaled = field(default_factory=list)
    controls: list[tuple[Path, Path, float]] = field(default_factory=list)
    image_prompts: Scaled = field(default_factory=list)
    image_adapter: Path | None = None

    def __post_init__(self) -> None:
        self.pipe: Any = diffusers.DiffusionPipeline.from_pretrained(
            self.folder, local_files_only=True
        )
        if self.adapter is not None:
            hirescli.linearize(self.pipe, "linfusion", weights=self.adapter)
        for number, (path, _) in enumerate(self.loras):
            self.pipe.load_lora_weights(
                str(path.parent), weight_name=path.name, adapter_name=f"lora{number}"
            )
        if self.loras:
            names = [f"lora{number}" for number in range(len(self.loras))]
            self.pipe.set_adapters(names, [scale for _, scale in self.loras])
        if self.image_prompts:
            (file,) = sorted(self.image_adapter.glob("*models/*.safetensors"))
            self.pipe.load_ip_adapter(
                str(file.parent), subfolder="", weight_name=[file.name] * len(self.image_prompts),
                image_encoder_folder="image_encoder",
            )  # fmt: skip
            self.pipe.set_ip_adapter_scale([scale for _, scale in self.image_prompts])
        self.xl = "XL" in type(self.pipe).__name__
        self.controlnets = [
            diffusers.ControlNetModel.from_pretrained(path) for path, _, _ in self.controls
        ]

    def draw(self, plan: hirescli.Plan, first: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """The picture (H, W, 3) in about [0, 1] of a plan, from another one or from noise."""
        noise = torch.Generator().manual_seed(plan.recipe.seed)
        picture = first
        for stage in plan.stages:
            encoded = None if picture is None else self._encode(picture, stage)
            latents = self._denoise(plan, stage, encoded, noise)
            if stage.kind == "upscale":
                latents = anchor_colours(latents, encoded, deviation=True)
            with torch.no_grad():
                made = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor)[0]
            rows = (made[0].permute(1, 2, 0) / 2 + 0.5).numpy()
            picture = np.rint(rows.clip(0, 1) * 65535).astype(np.uint16)  # as spools keep it
        return rows

    @torch.no_grad()
    def _encode(self, picture: NDArray[Any], stage: Stage) -> Tensor:
        pixels = resized(picture, stage) * 2 - 1
        vae = self.pipe.vae
        return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor

    def _denoise(
        self, plan: hirescli.Plan, stage: Stage, encoded: Tensor | None, noise: torch.Generator
    ) -> Tensor:
        name = "StableDiffusionXL" if self.xl else "StableDiffusion"
        name += ("ControlNet" if self.controls else "") + ("" if encoded is None else "Img2Img")
        parts = {**self.pipe.components, "controlnet": self.controlnets}
        kind = getattr(diffusers, f"{name}Pipeline")
        wanted = kind.__init__.__annotations__
        parts = {key: part for key, part in parts.items() if key in wanted}
        scheduler = SCHEDULERS[self.scheduler].from_config(
            {**self.pipe.scheduler.config, "clip_sample": False}
        )
        pipeline = kind(
            **parts | {"scheduler": scheduler, "requires_safety_checker": False}
            if not self.xl
            else parts | {"scheduler": scheduler}
        )
        pipeline.set_progress_bar_config(disable=True)
        recipe = plan.recipe
        given: dict[str, Any] = {
            "prompt": recipe.prompt,
            "negative_prompt": recipe.negative_prompt or None,
            "num_inference_steps": stage.steps,
            "guidance_scale": stage.guidance_scale,
            "generator": noise,
            "output_type": "latent",
        }
        if encoded is None:
            given |= {"height": stage.height_px, "width": stage.width_px}
        else:
            given |= {"image": encoded, "strength": stage.strength}
            given["num_inference_steps"] = schedule_steps(stage.strength, stage.steps)
        if self.xl:
            width_px, height_px = base_size(recipe.width_px, recipe.height_px, plan.card)
            given["original_size"] = given["target_size"] = (height_px, width_px)
        if self.controls:
            images = [resized(opened(path), stage) for _, path, _ in self.controls]
            given["image" if encoded is None else "control_image"] = images
            given["controlnet_conditioning_scale"] = [scale for _, _, scale in self.controls]
        if self.image_prompts:
            given["ip_adapter_image"] = [Image.open(path) for path, _ in self.image_prompts]
        return pipeline(**given).images


def opened(path: Path) -> NDArray[Any]:
    """A picture (H, W, 3) in 16 bits, as spools keep it."""
    return np.asarray(Image.open(path).convert("RGB")).astype(np.uint16) * 257


def resized(picture: NDArray[Any], stage: Stage) -> Tensor:
    """A picture (1, 3, H, W) in [0, 1] at the size of a stage."""
    size = {"width_px": stage.width_px, "height_px": stage.height_px}
    rows = Resized(ArrayRows(picture), **size).rows(0, stage.height_px)
    return torch.from_numpy(rows).permute(2, 0, 1)[None]
