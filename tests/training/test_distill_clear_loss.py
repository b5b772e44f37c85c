"""CLEAR's students: what they are, what they learn from, and that nothing else learns."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hirescli.attention.clear_mount import attentions, mount
from hirescli.attention.clear_published import Variant
from hirescli.errors import RequestError
from hirescli.models.components import DENOISERS
from hirescli.models.families import CONFIGS
from hirescli.training.distill.batches import Batch, generator_of
from hirescli.training.distill.calls import DenoiserCall, FluxCall, SD3Call, packed, unpacked
from hirescli.training.distill.clear import Clear, parameters
from hirescli.training.distill.course import Processes, State, run_course, together
from hirescli.training.distill.local import Projection
from hirescli.training.distill.loss import Distiller, in_place, outputs_of
from hirescli.training.distill.methods import Students
from hirescli.training.distill.optimizers import check_optimizer
from hirescli.training.distill.schedule import FlowSchedule
from hirescli.training.distill.settings import DistillRun, LossWeights
from tests.attention.clear_models import flux, sd3

FAMILIES = ("flux", "sd3")
ALONE = Processes(0, 1, torch.device("cpu"))
SIDE, TEXT = 4, 5  # tokens


def transformer(family: str) -> Any:
    made = flux(in_channels=16, guidance_embeds=True) if family == "flux" else sd3()
    return made.requires_grad_(False)


def call_of(family: str) -> DenoiserCall:
    made = transformer(family)
    return FluxCall(made, 3.5) if family == "flux" else SD3Call(made)


def students_of(denoiser: Any, family: str, window: int = 2, down_factor: int = 2) -> Students:
    card = SimpleNamespace(multiple_px=16)
    target: Any = SimpleNamespace(
        denoiser=denoiser, family=family, model=SimpleNamespace(card=card)
    )
    return Clear(Variant(window, down_factor)).students(target, 16 * SIDE, None)


def distiller(family: str, **weights: float) -> tuple[Distiller, Students]:
    call = call_of(family)
    students = students_of(call.denoiser, family)
    schedule = FlowSchedule.of({"shift": 3.0})
    return Distiller(call, students.modules, schedule, LossWeights(**weights)), students


class Drawn:
    """Samples that depend on step and place only."""

    def batch(self, step: int, items: Sequence[int]) -> Batch:
        generators = [generator_of(0, step, item) for item in items]
        x_0, noise = (self._of(generators, 4, 2 * SIDE, 2 * SIDE) for _ in range(2))
        timesteps = torch.tensor([(97 * step + 331 * item) % 1000 for item in items])
        text, pooled = self._of(generators, TEXT, 8), self._of(generators, 6)
        return Batch(x_0, x_0, noise, timesteps, text, pooled)

    @staticmethod
    def _of(generators: list[torch.Generator], *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=each) for each in generators])


def course(steps: int, **more: Any) -> DistillRun:
    return DistillRun(**{"steps": steps, "batch": 2, "resolution_px": 64, **more})


def run(family: str, path: Path, settings: DistillRun, *, stops: int = 0) -> Students:
    """Distil; first stopped so often after one step, and begun again from the file."""
    for stop in range(stops + 1):
        made, students = distiller(family)
        state = State(
            path, students.whole, settings.identity(), settings.learning_rate, settings.optimizer
        )
        assert state.step == stop
        run_course(
            made, Drawn(), state, settings, ALONE, log=lambda _: None,
            stop_after_seconds=0 if stop < stops else 1e9,
        )  # fmt: skip
    return students


# What they are


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("down_factor", [1, 2])
def test_students_attend_as_clear_mounted(family: str, down_factor: int) -> None:
    """Before they learn: the teacher's own weights under CLEAR's operator."""
    call, batch = call_of(family), Drawn().batch(0, range(2))
    students = students_of(call.denoiser, family, down_factor=down_factor)
    given: Any = (batch.noise, torch.tensor([300.0, 700.0]), batch.text, batch.pooled)
    plain = call(*given)
    with in_place(call.denoiser, students.modules):
        made = call(*given)
    torch.testing.assert_close(call(*given), plain, rtol=0, atol=0)
    mounted = mount(call.denoiser, window=2, down_factor=down_factor)
    torch.testing.assert_close(made, call(*given))
    assert float((made - plain).detach().abs().max()) > 1e-3
    for name, attn in attentions(call.denoiser):  # all else is there once
        assert students.modules[name].norm_q is attn.norm_q
        assert students.modules[name].to_q.weight.data_ptr() != attn.to_q.weight.data_ptr()
    shapes = {name: p.shape for name, p in mounted.parameters().items()}
    assert {name: p.shape for name, p in parameters(students).items()} == shapes


@pytest.mark.parametrize(
    ("name", "billions"), [("flux-dev", 1.79), ("sd35-medium", 0.35), ("sd35-large", 0.90)]
)
def test_what_learns_of_real_models(name: str, billions: float) -> None:
    """The figures of docs/distillation.md."""
    config = json.loads((CONFIGS / name / "transformer/config.json").read_text())
    with torch.device("meta"):
        made = DENOISERS[config["_class_name"]].from_config(config)
    students = students_of(made, "flux" if name.startswith("flux") else "sd3", down_factor=1)
    count = sum(p.numel() for p in parameters(students).values())
    assert count / 1e9 == pytest.approx(billions, abs=0.005)


def test_a_projection_learns_in_float32_and_computes_as_its_input() -> None:
    like = torch.nn.Linear(4, 3).to(torch.bfloat16)
    made = Projection(like)
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    torch.testing.assert_close(made(x), like(x), rtol=0, atol=0)
    made(x).float().sum().backward()
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in made.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_of_image_and_text_where_the_block_reads_both(family: str) -> None:
    call, batch = call_of(family), Drawn().batch(0, range(2))
    names = {name: None for name, _ in attentions(call.denoiser)}
    with outputs_of(call.denoiser, names) as found:
        call(batch.noise, torch.tensor([300.0, 700.0]), batch.text, batch.pooled)
    both, image = SIDE**2 + TEXT, SIDE**2
    wanted = [both] * 3 if family == "flux" else [both, image, both, image]
    assert [output.shape for output in found] == [(2, tokens, 32) for tokens in wanted]


# What they learn from


@given(
    timestep=st.integers(0, 999),
    config=st.sampled_from([{}, {"shift": 3.0}, {"shift": 3.0, "use_dynamic_shifting": True}]),
)
def test_flows_are_those_of_diffusers(timestep: int, config: dict[str, Any]) -> None:
    schedule, theirs = FlowSchedule.of(config), FlowMatchEulerDiscreteScheduler(**config)
    x_0, noise = torch.randn(2, 2, 4, 3, 3, generator=generator_of(0, timestep, 0)).unbind()
    timesteps = torch.full((2,), timestep)
    told = schedule.told(timesteps)
    torch.testing.assert_close(told[0], theirs.timesteps[999 - timestep])
    x_t = schedule.noised(x_0, noise, timesteps)
    at = theirs.timesteps[[999 - timestep] * 2]
    torch.testing.assert_close(x_t, theirs.scale_noise(x_0, at, noise))
    wanted = schedule.wanted(x_t, x_0, timesteps)
    torch.testing.assert_close(wanted, noise - x_0, rtol=1e-3, atol=1e-3)


@given(batch=st.integers(1, 2), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_tokens_of_flux_and_back(batch: int, rows: int, columns: int) -> None:
    latents = torch.randn(batch, 3, 2 * rows, 2 * columns)
    tokens = packed(latents)
    assert tokens.shape == (batch, rows * columns, 12)
    assert torch.equal(tokens[0, -1], latents[0, :, -2:, -2:].flatten())
    assert torch.equal(unpacked(tokens, 2 * rows, 2 * columns), latents)


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_by_hand(family: str) -> None:
    made, _ = distiller(family, noise=2.0, teacher=0.25, attention=3.0)
    batch = Drawn().batch(0, range(2))
    losses = made.losses(batch)
    sigma = made.schedule.told(batch.timesteps) / 1000
    at = sigma.view(-1, 1, 1, 1)
    x_t = (1 - at) * batch.x_0 + at * batch.noise
    given: Any = (x_t, 1000 * sigma, batch.text, batch.pooled)
    with outputs_of(made.denoiser, made.students) as theirs:
        teacher = made.call(*given)
    with in_place(made.denoiser, made.students), outputs_of(made.denoiser, made.students) as ours:
        student = made.call(*given)
    torch.testing.assert_close(losses.noise, F.mse_loss(student, batch.noise - batch.x_0))
    torch.testing.assert_close(losses.teacher, F.mse_loss(student, teacher))
    each = torch.stack([F.mse_loss(a, b) for a, b in zip(ours, theirs, strict=True)])
    torch.testing.assert_close(losses.attention, each.mean())
    total = 2 * losses.noise + 0.25 * losses.teacher + 3 * losses.attention
    torch.testing.assert_close(losses.total.detach(), total.detach())
    assert min(map(float, (losses.noise, losses.teacher, losses.attention))) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_computed_again_give_the_same_gradients(family: str) -> None:
    gradients = []
    for again in (False, True):
        made, students = distiller(family)
        if again:
            made.denoiser.enable_gradient_checkpointing()
        losses = made.descend(Drawn().batch(0, range(2)), 0.5)
        gradients.append({name: p.grad for name, p in parameters(students).items()})
    assert all(g is not None and float(g.abs().max()) > 0 for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert losses.total.requires_grad


# What learns


@pytest.mark.parametrize("family", FAMILIES)
def test_only_projections_and_pooling_learn(family: str, tmp_path: Path) -> None:
    made, students = distiller(family)
    before = {k: v.clone() for k, v in made.denoiser.state_dict().items()}
    fresh = {k: v.detach().clone() for k, v in parameters(students).items()}
    state = State(tmp_path / "s.pt", students.whole, {}, 1e-2)
    run_course(made, Drawn(), state, course(2, learning_rate=1e-2), ALONE, log=lambda _: None)
    after = made.denoiser.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[k], v) for k, v in after.items())
    assert [k for k, v in parameters(students).items() if torch.equal(fresh[k], v)] == []


@pytest.mark.parametrize(
    ("family", "optimizer", "rate"),
    [("flux", "prodigy", 1.0), ("flux", "adamw", 3e-3), ("sd3", "adamw", 3e-3)],
)
def test_the_loss_falls(family: str, optimizer: Any, rate: float, tmp_path: Path) -> None:
    made, students = distiller(family, noise=0.0)
    batches = [Drawn().batch(1000 + i, range(2)) for i in range(3)]

    def loss() -> float:
        with torch.no_grad():
            return sum(float(made.losses(batch).total) for batch in batches)

    before = loss()
    state = State(tmp_path / "s.pt", students.whole, {}, rate, optimizer)
    settings = course(30, learning_rate=rate, optimizer=optimizer)
    run_course(made, Drawn(), state, settings, ALONE, log=lambda _: None)
    assert loss() < 0.9 * before


@pytest.mark.parametrize(("family", "optimizer"), [("flux", "prodigy"), ("sd3", "adamw")])
def test_resumed_equals_undisturbed(family: str, optimizer: Any, tmp_path: Path) -> None:
    settings = course(4, optimizer=optimizer, learning_rate=1.0 if optimizer != "adamw" else 1e-3)
    whole = parameters(run(family, tmp_path / "a.pt", settings))
    parts = parameters(run(family, tmp_path / "b.pt", settings, stops=2))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_optimizers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    check_optimizer("prodigy", 1.0)
    with pytest.raises(RequestError, match="above 0, as published 1"):
        check_optimizer("prodigy", 0.0)
    monkeypatch.setitem(sys.modules, "prodigyopt", None)  # as if not installed
    with pytest.raises(RequestError, match=r"needs the package prodigyopt.*--optimizer adamw"):
        check_optimizer("prodigy", 1.0)


@given(sizes=st.lists(st.integers(1, 9), max_size=12), most=st.integers(1, 20))
def test_exchanges_hold_all_in_order_and_few(sizes: list[int], most: int) -> None:
    groups = list(together([torch.zeros(size) for size in sizes], most))
    assert [each.numel() for group in groups for each in group] == sizes
    assert all(len(g) == 1 or sum(e.numel() for e in g) <= most for g in groups)


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP"])
def test_sharing_out_weights_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(RequestError, match=rf"{name}.*--multi_gpu"):
        Processes.found("cpu")
