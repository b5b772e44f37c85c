"""What every training shares: optimiser, running average, schedule, and a state that resumes.

A state is one file with the keys model, ema, optimizer, step and run. It is written whole, so a
kill leaves the old one or the new one, and the same call goes on from it. Beside it, under its
name and ``.png``, lies a sheet of samples; ``.lock`` keeps a second process from it.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hirescli.disk import alone
from hirescli.errors import HiresError, NotFiniteError, RequestError, RunError
from hirescli.models.families import read_json
from hirescli.models.safetensors_check import read_tensors
from hirescli.training.sheets import write_sheet

if TYPE_CHECKING:
    from collections.abc import Iterable

_Model = TypeVar("_Model", bound=nn.Module)
_KEYS = {"model", "ema", "optimizer", "step", "run"}
_SCHEDULED = ("learning_rate", "batch_scale")
_LOSSES_SHOWN = 200  # the loss that is shown is the mean over so many last steps


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a training learns; each kind adds settings of its own.

    Attributes:
        steps: The whole schedule, resumed parts included.
        learning_rate: The peak, after `warmup_steps`.
        ema: Decay of the running average per step.
        save_every_seconds: Time between two writings of the state.
    """

    steps: int
    learning_rate: float
    warmup_steps: int
    ema: float = 0.999
    save_every_seconds: float = 120.0


class Training(Protocol):
    """One kind of training, as `train` drives it."""

    @property
    def state(self) -> State:
        """What is trained."""

    def loss(self) -> Tensor:
        """The loss of the next batch, with its gradient graph."""

    def report(self) -> dict[str, float]:
        """What to show beside step and loss; called after every save."""

    def sheet(self) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] that show the average's state; after every save."""

    def refresh(self) -> None:
        """Take up data that has appeared; called after every save."""


class State:
    """Model, average, optimiser and step of a run; resumed from `path` if that is there.

    Args:
        path: The state's file; its folder must be there.
        model: With fresh weights, as a new run begins.
        parameters: Those of the model that are learned.
        run: The settings, which are kept in the state for people to read.
        weight_decay: Of AdamW.

    Raises:
        RequestError: If the file is no state, or one of another model.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        parameters: Iterable[nn.Parameter],
        run: Schedule,
        *,
        weight_decay: float,
    ) -> None:
        _check_place(path)
        self.path, self.model, self.run, self.step = path, model, run, 0
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1.0, betas=(0.9, 0.99), weight_decay=weight_decay
        )
        self.whole = True  # whether weights, average, optimiser and step belong together
        self.changed: dict[str, tuple[Any, Any]] = {}  # settings that a resumed state had other
        self.average: dict[str, Tensor] = {}
        self.start_average()
        if path.exists():
            self._resume(read_state(path))

    def start_average(self) -> None:
        """Begin the average at the model's weights as they are now."""
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def learn(self, loss: Tensor) -> float:
        """One step of the optimiser; returns the loss.

        Raises:
            NotFiniteError: If it is no number; nothing is learned from it.
        """
        if not torch.isfinite(loss):
            raise NotFiniteError(
                f"the loss of step {self.step + 1} is no number; {self.path} holds the last save: "
                "go on with a lower learning rate"
            )
        rate = cosine_learning_rate(
            self.step,
            steps=self.run.steps,
            peak=self.run.learning_rate,
            warmup=self.run.warmup_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.whole = False
        self.optimizer.step()
        self.step += 1
        self._follow()
        self.whole = True
        return float(loss.detach())

    def save(self) -> None:
        """Write the state, the old one standing until the new one is complete."""
        write_state(
            self.path,
            {
                "model": self.model.state_dict(),
                "ema": self.average,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "run": asdict(self.run),
            },
        )

    def _follow(self) -> None:
        # A young average follows faster, or it would remember the fresh weights for long.
        decay = min(self.run.ema, (self.step + 1) / (self.step + 10))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)

    def _resume(self, state: Mapping[str, Any]) -> None:
        load_weights(self.model, state["model"], self.path)
        try:
            for name, value in self.average.items():
                value.copy_(state["ema"][name])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"training state {self.path} is damaged: {str(error).splitlines()[0]}; name "
                "another STATE file to start over"
            ) from error
        self.step = state["step"]
        now = asdict(self.run)
        self.changed = {
            name: (was, now[name]) for name, was in state["run"].items()
            if name in _SCHEDULED and was != now[name]
        }  # fmt: skip
        torch.manual_seed(self.step)


def train(
    training: Training, *, log: Callable[[str], None], stop_after_seconds: float = math.inf
) -> None:
    """Train to the end of the schedule, or until the time is up; either way saved.

    Args:
        training: Fresh or resumed.
        log: Is given a line of JSON after every save.
        stop_after_seconds: Stop at the first step after so long.

    Raises:
        BusyError: If another process trains at the same state.
        NotFiniteError: If a loss is no number; the state is that of the last save.
    """
    state = training.state
    for name, (was, now) in state.changed.items():
        log(json.dumps({"step": state.step, "note": f"{name} was {was}, is {now} from here on"}))
    lock = state.path.with_name(state.path.name + ".lock")
    with alone(lock, f"another process trains at {state.path}; wait for it"):
        try:
            _steps(training, log, stop_after_seconds)
        except BaseException as error:
            # A signal: what is finished is kept, unless it came in the middle of a step's end.
            if state.whole and not isinstance(error, Exception):
                state.save()
            raise


def _steps(training: Training, log: Callable[[str], None], stop_after_seconds: float) -> None:
    state, run = training.state, training.state.run
    began = saved = time.monotonic()
    losses: list[float] = []
    while state.step < run.steps:
        losses.append(state.learn(training.loss()))
        now = time.monotonic()
        over = state.step == run.steps or now - began > stop_after_seconds
        if over or now - saved > run.save_every_seconds:
            saved = now
            state.save()
            recent = losses[-_LOSSES_SHOWN:]
            log(_line(state.step, sum(recent) / len(recent), training.report(), now - began))
            write_sheet(state.path.with_name(state.path.name + ".png"), training.sheet())
            if over:
                break
            training.refresh()


def is_at_end(path: Path, run: Schedule) -> bool:
    """Whether a state is there and has all steps of the schedule behind it.

    Raises:
        RequestError: If the file is no state.
    """
    return path.is_file() and read_state(path)["step"] >= run.steps


def line_at_end(run: Schedule) -> str:
    """What is logged then, as JSON."""
    return json.dumps({"step": run.steps, "note": "finished already; more --steps go on from it"})


def compile_on_gpu(module: nn.Module, device: torch.device) -> None:
    """Compile a module's forward and backward in place on a GPU, where many small kernels rule.

    On a CPU compiling takes minutes and gains little. Names of parameters stay.
    """
    if device.type == "cuda":
        module.compile()


def cosine_learning_rate(step: int, *, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, at most of half the steps; then half a cosine to a fiftieth of the peak."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))


def write_state(path: Path, state: Mapping[str, object]) -> None:
    """Write a training state so that a kill leaves the old one or the new one.

    Raises:
        RunError: If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into the latter
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write training state {path}: {error}") from error


def read_state(path: Path, keys: Set[str] = frozenset(_KEYS)) -> dict[str, Any]:
    """Read a training state.

    Args:
        path: The file.
        keys: What a state of this kind holds.

    Raises:
        RequestError: If it is missing, damaged, or no training state.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RequestError(
            f"training state {path} cannot be read ({error.strerror or error}); name the STATE "
            "file of a training"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise RequestError(
            f"{path} is no training state, or damaged; name the STATE file of a training"
        ) from error
    missing = keys - set(state) if isinstance(state, dict) else set(keys)
    if not missing and not isinstance(state["step"], int):
        missing = {"step"}
    if missing:
        raise RequestError(
            f"{path} is no training state: {', '.join(sorted(missing))} missing; name the STATE "
            "file of a training"
        )
    return dict(state)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights that were read from `path`.

    Raises:
        RequestError: If they belong to another model.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RequestError(
            f"{path} is of another model than {type(model).__name__} as it is trained here: "
            f"{_first_misfit(model, weights)}; name another"
        ) from error


def load_exported(
    fresh: Callable[[Mapping[str, Any]], _Model], folder: Path, *, kind: str, part: str
) -> _Model:
    """A model of the built-in kind from its folder, in diffusers layout; float32.

    Args:
        fresh: A model of the widths that a config names, with fresh weights.
        folder: With ``config.json`` and one file of weights.
        kind: Its class, which the config must name.
        part: Its name in an export, which the error names.

    Raises:
        RequestError: If there is none, or one of another class or other shapes.
    """
    weights = folder / "diffusion_pytorch_model.safetensors"
    try:
        config = read_json(folder / "config.json")
        if (said := config.get("_class_name")) != kind:
            raise RequestError(f"its config.json is of a {said}, not of a {kind}")
        read_tensors(weights)  # says what is wrong with a damaged file
        model = fresh(config)
        load_weights(model, load_file(weights), folder)
    except (HiresError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise RequestError(
            f"folder {folder} holds no {kind} of the built-in model ({error}); name the "
            f"`{part}` folder of an export, or the STATE file of a training"
        ) from error
    return model


def _first_misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    name = min(set(wanted.items()) ^ set(given.items()))[0]
    return f"{name} is {given.get(name, 'absent')}, not {wanted.get(name, 'absent')}"


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise RequestError(f"training state {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise RequestError(f"folder {path.parent} of the training state does not exist; make it")


def _line(step: int, loss: float, report: Mapping[str, float], seconds: float) -> str:
    return json.dumps({"step": step, "loss": round(loss, 4), **report, "seconds": round(seconds)})
