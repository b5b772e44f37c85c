"""The published loss: a student with linear attention against its teacher and against the noise.

    loss = w_n |s - y|^2 + w_t |s - u|^2 + w_a mean_l |a_l(s) - a_l(u)|^2

with s and u the student's and the teacher's predictions for the same x_t, y what the schedule
asks for (of flow models that is the flow-matching loss), and a_l what the l-th attention gives;
| |^2 is the mean square. Published weights, of LinFusion and of CLEAR: 1, 0.5, 0.5.

References:
    LinFusion: 1 GPU, 1 Minute, 16K Image, https://arxiv.org/abs/2409.02097
    CLEAR: Conv-Like Linearization Revs Pre-Trained Diffusion Transformers Up,
    https://arxiv.org/abs/2412.16112
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hirescli.training.distill.batches import Batch
from hirescli.training.distill.calls import DenoiserCall
from hirescli.training.distill.schedule import Schedule
from hirescli.training.distill.settings import LossWeights


@contextmanager
def in_place(denoiser: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put modules under their names while the context lasts; those that were there come back."""
    before = {name: denoiser.get_submodule(name) for name in modules}
    _put(denoiser, modules)
    try:
        yield
    finally:
        _put(denoiser, before)


def _put(denoiser: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, module)


@contextmanager
def outputs_of(denoiser: nn.Module, names: Mapping[str, object]) -> Iterator[list[Tensor]]:
    """What attentions of these names give while the context lasts, in the order of the names."""
    found: dict[str, Tensor] = {}
    held: list[Tensor] = []

    def keep(name: str) -> Any:
        return lambda module, _args, output: found.__setitem__(name, _read_on(module, output))

    hooks = [denoiser.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield held
        held.extend(found[name] for name in names)
    finally:
        for hook in hooks:
            hook.remove()


def _read_on(attention: nn.Module, output: Any) -> Tensor:
    """Of image and text (B, tokens, channels) together what the block goes on with.

    Stable Diffusion 3's last block gives the text's away.
    """
    if isinstance(output, Tensor):
        return output
    image, text = output
    unread = getattr(attention, "context_pre_only", False)
    return image if unread else torch.cat([text, image], 1)


@dataclass(frozen=True)
class Losses:
    """The terms of one batch, each a scalar; 0 where the weight is 0.

    Attributes:
        total: Weighted, with its graph.
        noise, teacher, attention: Unweighted.
    """

    total: Tensor
    noise: Tensor
    teacher: Tensor
    attention: Tensor


@dataclass(frozen=True)
class Distiller:
    """One denoiser with the modules that learn to stand in for its attentions.

    All else is there once: teacher and student share it.

    Attributes:
        call: Of the denoiser, frozen, with its own attentions in place.
        students: By the names of the attentions that they stand for; float32.
        schedule: Of the noise.
        weights: Of the loss.
    """

    call: DenoiserCall
    students: Mapping[str, nn.Module]
    schedule: Schedule
    weights: LossWeights

    @property
    def denoiser(self) -> nn.Module:
        """The module that is teacher and student."""
        return self.call.denoiser

    def descend(self, batch: Batch, share: float = 1.0) -> Losses:
        """Add the gradients of a batch, times its share of a step, to those of the students."""
        losses = self.losses(batch)
        # In place: where activations are computed again, it is now.
        with in_place(self.denoiser, self.students):
            (losses.total * share).backward()
        return losses

    def losses(self, batch: Batch) -> Losses:
        """The loss of a batch on the denoiser's device."""
        x_t = self.schedule.noised(batch.begun, batch.noise, batch.timesteps)
        zero = x_t.new_zeros(())
        with_teacher = self.weights.teacher > 0 or self.weights.attention > 0
        wanted, attended = self.teacher(batch, x_t) if with_teacher else (None, [])
        prediction, attentions = self.student(batch, x_t)
        noise = teacher = attention = zero
        if self.weights.noise:
            y = self.schedule.wanted(x_t, batch.x_0, batch.timesteps)
            noise = F.mse_loss(prediction, y)
        if wanted is not None and self.weights.teacher:
            teacher = F.mse_loss(prediction, wanted)
        if self.weights.attention:
            pairs = zip(attentions, attended, strict=True)
            errors = [F.mse_loss(a.float(), b.float()) for a, b in pairs]
            attention = torch.stack(errors).mean()
        w = self.weights
        total = w.noise * noise + w.teacher * teacher + w.attention * attention
        return Losses(total, noise.detach(), teacher.detach(), attention.detach())

    @torch.no_grad()
    def teacher(self, batch: Batch, x_t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The prediction, float32, and the attention outputs with the model's own attention."""
        return self._predict(batch, x_t)

    def student(self, batch: Batch, x_t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same with the students in place."""
        with in_place(self.denoiser, self.students):
            return self._predict(batch, x_t)

    def _predict(self, batch: Batch, x_t: Tensor) -> tuple[Tensor, list[Tensor]]:
        told = self.schedule.told(batch.timesteps)
        with outputs_of(self.denoiser, self.students) as attentions:
            prediction = self.call(x_t, told, batch.text, batch.pooled)
        return prediction, attentions
