"""The published loss, the noise, and the course of steps, on small UNets with fixed weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from hirescli.attention.linfusion import LinearAttention, LinFusionAdapter, self_attentions
from hirescli.errors import NotFiniteError, RequestError
from hirescli.training.distill.batches import Batch, generator_of, place_in_turn
from hirescli.training.distill.calls import UNetCall
from hirescli.training.distill.course import Processes, State, learning_rate, run_course
from hirescli.training.distill.linfusion import LinFusion, named
from hirescli.training.distill.loss import Distiller, in_place
from hirescli.training.distill.methods import Students
from hirescli.training.distill.outputs import AdapterFolder
from hirescli.training.distill.schedule import NoiseSchedule
from hirescli.training.distill.settings import DistillRun, LossWeights, check_same

ALONE = Processes(0, 1, torch.device("cpu"))
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    made = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
    )  # fmt: skip
    return made.eval().requires_grad_(False)


class Drawn:
    """Samples that depend on step and place only."""

    def batch(self, step: int, items: Sequence[int]) -> Batch:
        drawn = [torch.randn(3, 4, 4, 4, generator=generator_of(0, step, i)) for i in items]
        x_0, noise, text = torch.stack(drawn).unbind(1)
        timesteps = torch.tensor([(97 * step + 31 * i) % 1000 for i in items])
        return Batch(x_0, x_0, noise, timesteps, text.reshape(len(items), 8, 8))


def course(steps: int, **more: object) -> DistillRun:
    said = {"batch": 4, "resolution_px": 32, "save_every": 1000, **more}
    return DistillRun(steps=steps, **said)


def distiller(weights: LossWeights | None = None) -> tuple[Distiller, LinFusionAdapter]:
    model = unet()
    torch.manual_seed(2)
    adapter = LinFusionAdapter.for_unet(model)
    schedule = NoiseSchedule.of(NOISE)
    return Distiller(UNetCall(model), named(adapter), schedule, weights or LossWeights()), adapter


def distilled(tmp_path: Path, run: DistillRun, processes: Processes = ALONE) -> LinFusionAdapter:
    made, adapter = distiller(run.weights)
    state = State(tmp_path / "state.pt", adapter, run.identity(), run.learning_rate)
    run_course(made, Drawn(), state, run, processes, log=lambda _: None)
    return adapter


def assert_same(a: torch.nn.Module, b: torch.nn.Module, **tolerance: float) -> None:
    for name, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], value, msg=name, **tolerance)


# The loss


def test_terms_by_hand() -> None:
    """Each term from two plain calls of the UNet, attention outputs by hooks of our own."""
    made, _ = distiller(LossWeights(noise=2.0, teacher=0.25, attention=3.0))
    batch = Drawn().batch(0, range(3))
    losses = made.losses(batch)
    x_t = made.schedule.noised(batch.x_0, batch.noise, batch.timesteps)
    predictions, outputs = [], []
    for modules in ({}, made.students):
        kept: list[torch.Tensor] = []
        with in_place(made.denoiser, modules):
            hooks = [
                module.register_forward_hook(lambda *a, k=kept: k.append(a[2]))
                for module in map(made.denoiser.get_submodule, made.students)
            ]
            predictions.append(made.denoiser(x_t, batch.timesteps, batch.text).sample)
            for hook in hooks:
                hook.remove()
        outputs.append(kept)
    teacher, student = predictions
    assert len(outputs[0]) == len(outputs[1]) == 4
    noise_term = F.mse_loss(student, batch.noise)
    teacher_term = F.mse_loss(student, teacher)
    attention_term = sum(map(F.mse_loss, *outputs)) / 4
    torch.testing.assert_close(losses.noise, noise_term)
    torch.testing.assert_close(losses.teacher, teacher_term)
    torch.testing.assert_close(losses.attention, attention_term)
    wanted = 2 * noise_term + 0.25 * teacher_term + 3 * attention_term
    torch.testing.assert_close(losses.total, wanted)
    assert min(map(float, (losses.noise, losses.teacher, losses.attention))) > 0


def test_a_student_that_is_the_teacher_has_no_error() -> None:
    made, _ = distiller()
    same = Distiller(made.call, dict(self_attentions(made.denoiser)), made.schedule, made.weights)
    losses = same.losses(Drawn().batch(0, range(2)))
    assert float(losses.teacher) == float(losses.attention) == 0.0
    torch.testing.assert_close(losses.total, losses.noise)


@pytest.mark.parametrize("left_out", ["noise", "teacher", "attention"])
def test_a_term_of_weight_zero_is_left_out(left_out: str) -> None:
    made, _ = distiller(LossWeights(**{left_out: 0.0}))
    losses = made.losses(Drawn().batch(0, range(2)))
    terms = {name: float(getattr(losses, name)) for name in ("noise", "teacher", "attention")}
    assert [name for name, value in terms.items() if value == 0] == [left_out]


def test_activations_computed_again_give_the_same_gradients() -> None:
    gradients = []
    for again in (False, True):
        made, adapter = distiller()
        if again:
            made.denoiser.enable_gradient_checkpointing()
        made.descend(Drawn().batch(0, range(2)))
        gradients.append([p.grad for p in adapter.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert max(float(grad.abs().max()) for grad in gradients[0]) > 0


def test_attentions_come_back() -> None:
    made, _ = distiller()
    before = dict(self_attentions(made.denoiser))
    with contextlib.suppress(KeyError), in_place(made.denoiser, made.students):
        linear = [m for m in made.denoiser.modules() if isinstance(m, LinearAttention)]
        assert len(linear) == len(before) == 4
        raise KeyError
    assert dict(self_attentions(made.denoiser)) == before


@given(
    prediction=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    timestep=st.integers(0, 999),
    zero_terminal=st.booleans(),
)
def test_what_is_wanted_is_what_diffusers_trains(
    prediction: str, timestep: int, zero_terminal: bool
) -> None:
    config = {**NOISE, "prediction_type": prediction, "rescale_betas_zero_snr": zero_terminal}
    schedule, theirs = NoiseSchedule.of(config), DDPMScheduler(**config)
    x_0, noise = torch.randn(2, 2, 4, 3, 3, generator=generator_of(0, timestep, 0)).unbind()
    timesteps = torch.full((2,), timestep)
    x_t = schedule.noised(x_0, noise, timesteps)
    torch.testing.assert_close(x_t, theirs.add_noise(x_0, noise, timesteps))
    wanted = {
        "epsilon": noise, "sample": x_0,
        "v_prediction": theirs.get_velocity(x_0, noise, timesteps),
    }[prediction]  # fmt: skip
    torch.testing.assert_close(schedule.wanted(x_t, x_0, timesteps), wanted, rtol=1e-4, atol=1e-4)


def test_what_is_wanted_leads_to_the_clean_picture() -> None:
    """Also where noise was added to a degraded one: x_0 = alpha x_t - sigma v."""
    schedule = NoiseSchedule.of({**NOISE, "prediction_type": "v_prediction"})
    x_0, begun, noise = torch.randn(3, 2, 4, 3, 3).unbind()
    timesteps = torch.tensor([100, 500])
    x_t = schedule.noised(begun, noise, timesteps)
    v = schedule.wanted(x_t, x_0, timesteps)
    alpha_bar = schedule.alphas_bar[timesteps].view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v, x_0)


def test_another_prediction_type_is_named() -> None:
    with pytest.raises(RequestError, match="flow"):
        NoiseSchedule.of({"prediction_type": "flow"})


@pytest.mark.parametrize("wrong", [{"noise": -1.0}, {"teacher": float("nan")}])
def test_weights_of_the_loss_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        LossWeights(**wrong)
    with pytest.raises(RequestError, match="at least one"):
        LossWeights(noise=0, teacher=0, attention=0)


# The course


def test_only_the_linear_attentions_learn(tmp_path: Path) -> None:
    made, adapter = distiller()
    before = {k: v.clone() for k, v in made.denoiser.state_dict().items()}
    fresh = {k: v.clone() for k, v in adapter.state_dict().items()}
    state = State(tmp_path / "s.pt", adapter, {}, 1e-2)
    run_course(made, Drawn(), state, course(3), ALONE, log=lambda _: None)
    assert all(torch.equal(before[k], v) for k, v in made.denoiser.state_dict().items())
    assert all(not torch.equal(fresh[k], v) for k, v in adapter.state_dict().items())


def test_the_loss_falls(tmp_path: Path) -> None:
    made, adapter = distiller(LossWeights(noise=0.0))
    batches = [Drawn().batch(1000 + i, range(4)) for i in range(4)]

    def loss() -> float:
        with torch.no_grad():
            return sum(float(made.losses(batch).total) for batch in batches)

    before = loss()
    state = State(tmp_path / "s.pt", adapter, {}, 1e-2)
    run_course(made, Drawn(), state, course(20, learning_rate=1e-2), ALONE, log=lambda _: None)
    assert loss() < 0.7 * before


@pytest.mark.parametrize("decay", [False, True])
def test_resumed_equals_undisturbed(tmp_path: Path, decay: bool) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run = course(6, decay=decay)
    whole = distilled(tmp_path / "a", run)
    made, adapter = distiller()
    state = State(tmp_path / "b" / "state.pt", adapter, run.identity(), run.learning_rate)
    for _ in range(3):  # stopped after every step
        assert not run_course(
            made, Drawn(), state, run, ALONE, log=lambda _: None, stop_after_seconds=0
        )
    resumed = distilled(tmp_path / "b", run)  # fresh modules, and the state's file
    assert_same(whole, resumed, rtol=0, atol=0)


def test_libraries_say_nothing_when_an_adapter_is_written(tmp_path: Path) -> None:
    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    said: list[str] = []
    _, adapter = distiller()
    output, logger = AdapterFolder(tmp_path / "out"), logging.getLogger("diffusers")
    handler = Kept()
    logger.addHandler(handler)
    try:
        LinFusion(1).publish(Students(named(adapter), adapter), output, {})
    finally:
        logger.removeHandler(handler)
    assert (said, output.about()) == ([], {})


def test_all_processes_stop_at_the_same_step(tmp_path: Path) -> None:
    """The clock of one of two says that the time is up; this one's never does."""

    class OneOfTwo(Processes):
        def average(self, tensors: Sequence[torch.Tensor]) -> None:
            tensors[-1].add_(1).div_(2)

    run, (made, adapter) = course(3), distiller()
    state = State(tmp_path / "state.pt", adapter, run.identity(), run.learning_rate)
    processes = OneOfTwo(0, 1, torch.device("cpu"))
    assert not run_course(made, Drawn(), state, run, processes, log=lambda _: None)
    assert State(tmp_path / "state.pt", adapter, run.identity(), run.learning_rate).step == 1


def test_a_signal_loses_nothing(tmp_path: Path) -> None:
    class Interrupted(Drawn):
        def batch(self, step: int, items: Sequence[int]) -> Batch:
            if step == 2:
                raise KeyboardInterrupt
            return super().batch(step, items)

    run = course(4)
    made, adapter = distiller()
    state = State(tmp_path / "state.pt", adapter, run.identity(), run.learning_rate)
    with pytest.raises(KeyboardInterrupt):
        run_course(made, Interrupted(), state, run, ALONE, log=lambda _: None)
    again = State(tmp_path / "state.pt", distiller()[1], run.identity(), run.learning_rate)
    assert again.step == 2
    (tmp_path / "other").mkdir()
    assert_same(distilled(tmp_path / "other", run), distilled(tmp_path, run), rtol=0, atol=0)


def test_micro_batches_make_the_same_step(tmp_path: Path) -> None:
    made = []
    for size in (None, 1, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        made.append(distilled(folder, course(2, micro_batch=size, learning_rate=1e-3)))
    for other in made[1:]:
        assert_same(made[0], other, rtol=1e-3, atol=1e-4)


@given(batch=st.integers(1, 24), count=st.integers(1, 6))
def test_processes_share_a_batch_without_remainder(batch: int, count: int) -> None:
    shares = [
        Processes(rank, count, torch.device("cpu")).share(range(batch * count))
        for rank in range(count)
    ]
    assert {len(share) for share in shares} == {batch}
    assert sorted(item for share in shares for item in share) == list(range(batch * count))


@given(count=st.integers(1, 40), seed=st.integers(0, 9))
def test_all_samples_come_in_turn(count: int, seed: int) -> None:
    for turn in range(2):
        places = [place_in_turn(turn * count + i, count, seed) for i in range(count)]
        assert sorted(places) == list(range(count))


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    made, adapter = distiller()
    torch.nn.init.constant_(adapter.get_parameter("0.to_q.weight"), float("nan"))
    state = State(tmp_path / "state.pt", adapter, {}, 1e-4)
    with pytest.raises(NotFiniteError, match="step 1 is no number"):
        run_course(made, Drawn(), state, course(2), ALONE, log=lambda _: None)
    assert not (tmp_path / "state.pt").exists()


def test_the_state_of_another_run_is_named(tmp_path: Path) -> None:
    distilled(tmp_path, course(1))
    with pytest.raises(RequestError, match=r"learning_rate was 0.0001, not 0.1"):
        distilled(tmp_path, course(2, learning_rate=0.1))
    (tmp_path / "state.pt").write_text("no state")
    with pytest.raises(RequestError, match="no training state"):
        distilled(tmp_path, course(2))


def test_the_state_of_another_architecture_is_named(tmp_path: Path) -> None:
    distilled(tmp_path, course(1))
    wider = LinFusionAdapter.for_unet(unet(), mid_dim_scale=2)
    with pytest.raises(RequestError, match="another model"):
        State(tmp_path / "state.pt", wider, course(1).identity(), 1e-4)


def test_differences_are_listed() -> None:
    with pytest.raises(RequestError, match=r"a was 1, not 2\n  - b was None, not 3"):
        check_same({"a": 1}, {"a": 2, "b": 3}, place="it")
    check_same({"a": 1, "more": 2}, {"a": 1}, place="it")


def test_the_rate_stays_or_falls() -> None:
    rates = [learning_rate(step, course(10, decay=True)) for step in range(11)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[-1] == pytest.approx(2e-6)
    assert rates == sorted(rates, reverse=True)
    assert {learning_rate(step, course(10)) for step in range(10)} == {1e-4}
