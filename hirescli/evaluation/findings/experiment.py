"""The experiment: distil each variant, let it draw, compare; every finished piece is kept.

What is finished stands in ``results.json`` of the folder that is worked in, and half-learned
students in ``VARIANT.pt``: the same call goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hirescli.attention.linfusion import LinearAttention, check_fit
from hirescli.attention.loading import load_adapter
from hirescli.cascade.pipelines import pipeline_of
from hirescli.cascade.stages import GUIDANCE_RESCALE
from hirescli.disk import write_atomically
from hirescli.errors import RequestError
from hirescli.evaluation.efficientnet import load_efficientnet
from hirescli.evaluation.features import features, frechet_distance
from hirescli.evaluation.findings.operators import VariantAttention, tokens_of
from hirescli.evaluation.findings.variants import SCALES, VARIANTS, Variant
from hirescli.training.dataset import PICTURE_PX, finished_shards, load_shard
from hirescli.training.distill.batches import seed_of
from hirescli.training.distill.captions import digest_of
from hirescli.training.distill.course import Processes, State, run_course
from hirescli.training.distill.finding import find_unet
from hirescli.training.distill.linfusion import MID_DIM_SCALES, named, new_adapter
from hirescli.training.distill.loss import Distiller, in_place
from hirescli.training.distill.rendered import RenderedSamples, View
from hirescli.training.distill.settings import DistillRun, LossWeights, check_same
from hirescli.training.distill.targets import Target

_DRAWN_TOGETHER = 16
_TEST_STEPS = 4  # batches of held-out pictures that errors are taken on
_SHOWN = 0  # the prompt whose picture is kept
Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is done.

    Attributes:
        steps, batch, learning_rate: Of each variant's distillation; the rate falls to a fiftieth.
        pictures: That each variant draws at each size.
        sampling_steps: Of each picture.
        seed: Of all of it.
    """

    steps: int = 200
    batch: int = 16
    learning_rate: float = 5e-4
    pictures: int = 96
    sampling_steps: int = 8
    seed: int = 0


@dataclass
class Experiment:
    """One experiment in a folder.

    Args:
        model: "builtin", or a folder that `hires train export` wrote.
        data: Shards to learn from.
        held_out: Shards of whole compositions that the teacher has never seen.
        work: The folder that is worked in; made if need be.
        settings: How much is done.
        told: Is given a line when something is finished.

    Raises:
        RequestError: If the model is another, shards are missing, or `work` holds another
            experiment's results.
    """

    model: str
    data: Path
    held_out: Path
    work: Path
    settings: Settings
    told: Callable[[str], None]

    def __post_init__(self) -> None:
        """Check what can be checked at once, and load the model."""
        self.found = find_unet(self.model)
        if self.found.family != "builtin":
            raise RequestError(f"the findings are of the built-in model, not of {self.model}")
        finished_shards(self.data, ["wide"])
        self.truth, self.captions = _held_out(self.held_out, self.settings.pictures)
        if not self.work.parent.is_dir():
            raise RequestError(f"folder {self.work.parent} does not exist; make it first")
        self.work.mkdir(exist_ok=True)
        self.target: Target = self.found.load("bfloat16")
        self.schedule = self.target.schedule()
        self.results = self._begun()
        self.network = load_efficientnet()
        self.text = torch.cat([self.target.states([c])[0] for c in self.captions])

    @property
    def side_px(self) -> int:
        """Of the pictures that are learned on: such that there are renders four times as large."""
        return min(self.found.native_px, PICTURE_PX // max(SCALES))

    def run(self, variants: Sequence[Variant] = VARIANTS) -> dict[str, Any]:
        """Do what is not done yet; gives all results."""
        for variant in variants:
            done = self.results["variants"].setdefault(variant.key, {"distances": {}})
            if len(done["distances"]) < len(SCALES):
                self._variant(variant, done)
        return self.results

    def _variant(self, variant: Variant, done: dict[str, Any]) -> None:
        distiller = self._distilled(variant)
        if "teacher_error" not in done and variant.linear:
            done["teacher_error"] = self._teacher_error(distiller)
        for scale in SCALES:
            if str(scale) in done["distances"]:
                continue
            pictures = self._drawn(distiller, scale)
            Image.fromarray(pictures[_SHOWN]).save(self.shown_path(variant, scale))
            distance = frechet_distance(
                features(pictures, self.network), self._true_features(scale)
            )
            done["distances"][str(scale)] = distance
            self._keep()
            self.told(f"{variant.title} at {scale}x: {distance:.1f}")

    def shown_path(self, variant: Variant, scale: int) -> Path:
        """The picture that is kept of a variant at a size."""
        return self.work / f"{variant.key}-{scale}x.png"

    def _students(self, variant: Variant) -> dict[str, nn.Module]:
        if not variant.linear:
            return {}
        if variant.own:
            assert self.found.folder is not None, "the built-in model lies in a folder"
            own = load_adapter(self.found.folder / "linfusion").float()  # type: ignore[no-untyped-call]
            check_fit(self.target.denoiser, own)
            return named(own)
        torch.manual_seed(self.settings.seed)
        modules = named(new_adapter(self.target.denoiser, mid_dim_scale=MID_DIM_SCALES["builtin"]))
        if variant.normalised and not variant.causal:
            return modules
        tokens = tokens_of(self.target.denoiser, modules, self.side_px // self.target.factor)
        made: dict[str, nn.Module] = {}
        for name, module in modules.items():
            assert isinstance(module, LinearAttention)
            made[name] = VariantAttention(
                module, normalised=variant.normalised, causal=variant.causal, tokens=tokens[name]
            )
        return made

    def _distilled(self, variant: Variant) -> Distiller:
        students, said = self._students(variant), self.settings
        call = self.target.call(self.side_px)
        distiller = Distiller(call, students, self.schedule, variant.weights)
        if variant.own or not variant.linear:
            return distiller
        run = self._course(variant.weights)
        identity = {"variant": variant.key, **self._identity()}
        state = State(
            self.work / f"{variant.key}.pt", nn.ModuleList(students.values()), identity,
            said.learning_rate,
        )  # fmt: skip
        samples = self._samples(self.data, run)
        alone = Processes(0, 1, torch.device("cpu"))
        run_course(distiller, samples, state, run, alone, log=self._log(variant))
        return distiller

    def _course(self, weights: LossWeights) -> DistillRun:
        said = self.settings
        return DistillRun(
            steps=said.steps, batch=said.batch, learning_rate=said.learning_rate, decay=True,
            weights=weights, resolution_px=self.side_px,
            seed=said.seed, dtype="bfloat16", save_every=50,
        )  # fmt: skip

    def _samples(self, folder: Path, run: DistillRun) -> RenderedSamples:
        timesteps = self.schedule.timesteps
        whole = View(self.side_px, 1.0, 0.0, 0.0, (0, timesteps))
        return RenderedSamples(folder, self.target, run, timesteps=timesteps, views=[whole])

    @torch.no_grad()
    def _teacher_error(self, distiller: Distiller) -> float:
        """Mean square of student less teacher, over that of the teacher, on held-out pictures."""
        samples = self._samples(self.held_out, self._course(LossWeights()))
        error = power = 0.0
        for step in range(_TEST_STEPS):
            batch = samples.batch(step, range(self.settings.batch))
            x_t = self.schedule.noised(batch.begun, batch.noise, batch.timesteps)
            wanted, _ = distiller.teacher(batch, x_t)
            made, _ = distiller.student(batch, x_t)
            error += float((made - wanted).square().sum())
            power += float(wanted.square().sum())
        return error / power

    @torch.no_grad()
    def _drawn(self, distiller: Distiller, scale: int) -> Pictures:
        """Pictures (N, S, S, 3) of the captions, from the same noise for all variants."""
        side = scale * self.side_px // self.target.factor
        generator = torch.Generator().manual_seed(seed_of(self.settings.seed, scale))
        count, channels = len(self.captions), self.target.denoiser.config["in_channels"]
        noise = torch.randn(count, channels, side, side, generator=generator)
        students = distiller.students
        context: AbstractContextManager[None] = (
            in_place(self.target.denoiser, students) if students else nullcontext()
        )
        with context, torch.autocast("cpu", torch.bfloat16):
            parts = [
                self._sampled(noise[i : i + _DRAWN_TOGETHER], self.text[i : i + _DRAWN_TOGETHER])
                for i in range(0, count, _DRAWN_TOGETHER)
            ]
        return np.concatenate(parts)

    def _sampled(self, noise: Tensor, text: Tensor) -> Pictures:
        """Pictures of noise (B, C, h, w) and text states (B, tokens, channels)."""
        model, card = self.target.model, self.target.model.card
        none, _ = self.target.no_states()
        pipeline = pipeline_of(
            model, scheduler=card.scheduler, from_picture=False, place=torch.device("cpu")
        )
        dtype = self.target.denoiser.dtype
        latents = pipeline(
            prompt_embeds=text.to(dtype),
            negative_prompt_embeds=none.expand(len(text), -1, -1).to(dtype),
            latents=noise.to(dtype),
            height=noise.shape[2] * self.target.factor,
            width=noise.shape[3] * self.target.factor,
            num_inference_steps=self.settings.sampling_steps,
            guidance_scale=card.guidance_scale,
            guidance_rescale=GUIDANCE_RESCALE,
            output_type="latent",
        ).images
        decoded = model.autoencoder.decode(latents.float()).sample
        scaled = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        made: Pictures = scaled.permute(0, 2, 3, 1).contiguous().numpy()
        return made

    def _true_features(self, scale: int) -> Any:
        """Of the held-out renders at a size, taken once."""
        path = self.work / f"renders-{scale}x.npy"
        if not path.exists():
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, self._computed_features(scale))
            os.replace(partial, path)
        return np.load(path)

    def _computed_features(self, scale: int) -> Any:
        side_px = scale * self.side_px
        x = torch.from_numpy(self.truth).permute(0, 3, 1, 2).float()
        shrunk = F.avg_pool2d(x, PICTURE_PX // side_px) if side_px < PICTURE_PX else x
        rounded = shrunk.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return features(rounded.numpy(), self.network)

    # What is kept

    def _identity(self) -> dict[str, Any]:
        return {
            "revision": self.target.revision, "held_out": len(self.truth),
            "captions": digest_of(self.captions), **asdict(self.settings),
        }  # fmt: skip

    def _begun(self) -> dict[str, Any]:
        path = self.work / "results.json"
        if not path.exists():
            return {"run": self._identity(), "side_px": self.side_px, "variants": {}}
        try:
            results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            before = results["run"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} is damaged; remove it, or name another folder") from error
        check_same(before, self._identity(), place=path, remedy="or another --work folder")
        return results

    def _keep(self) -> None:
        write_atomically(self.work / "results.json", json.dumps(self.results, indent=2))

    def _log(self, variant: Variant) -> Callable[[Mapping[str, float]], None]:
        return lambda said: self.told(
            f"{variant.title}: step {said['step']}, loss {said['loss']}, {said['seconds']} s"
        )


def _held_out(folder: Path, count: int) -> tuple[Pictures, list[str]]:
    """All held-out whole compositions (N, 256, 256, 3), and captions of the first `count`."""
    pictures, captions = [], []
    for path in finished_shards(folder, ["wide"]):
        held, texts = load_shard(path)
        pictures.append(np.array(held))
        captions += [each[0] for each in texts]
    if len(captions) < count:
        raise RequestError(
            f"{folder} holds {len(captions)} held-out pictures, and {count} captions are to be "
            "drawn; render more with: hires train render --held-out, or give fewer --pictures"
        )
    return np.concatenate(pictures), captions[:count]
