"""The course of a distillation: steps, states that resume, and several processes.

Every process computes its share of each batch, and gradients are averaged before the optimiser
steps: the outcome is that of one process, up to rounding. What a step sees depends on its number
only, and a state holds weights, optimiser and step, so a run that was stopped or killed goes on
to the bytes of an undisturbed one (on the same machine, with as many threads and processes).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hirescli.errors import NotFiniteError, RequestError
from hirescli.training.distill.batches import Samples
from hirescli.training.distill.loss import Distiller, Losses
from hirescli.training.distill.optimizers import make_optimizer
from hirescli.training.distill.settings import DistillRun, Optimizer, check_same
from hirescli.training.trainer import read_state, write_state

MAX_GRADIENT = 1.0
_LOSSES_SHOWN = 100  # the losses that are shown are means over so many last steps
_LOG_EVERY_SECONDS = 15.0
_EXCHANGED = 2**26  # numbers that processes exchange at a time: 256 MiB, and as much for sums
_KEYS = {"students", "optimizer", "step", "run"}
Log = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Processes:
    """This process among those that distil together.

    Attributes:
        rank: Of this one, from 0.
        count: Of all.
        device: Where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @classmethod
    def found(cls, device: str) -> Processes:
        """As `accelerate launch` or `torchrun` started them; else this one alone.

        Args:
            device: "cpu" or "cuda".

        Raises:
            RequestError: If they were started to share out weights, which this course does not.
        """
        from accelerate import PartialState

        _refuse_sharding(os.environ)
        more: dict[str, Any] = {"timeout": timedelta(days=1)}  # one may encode for long
        state = PartialState(cpu=device == "cpu", **more)
        place = state.device if state.num_processes > 1 else torch.device(device)
        return cls(state.process_index, state.num_processes, place)

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """Those of this process; all processes have as many if their number divides that."""
        return items[self.rank :: self.count]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes in place of these, in few exchanges."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        for group in together(tensors, _EXCHANGED):
            joined = torch.cat([tensor.flatten() for tensor in group])
            mean: Any = reduce(joined, "mean")
            parts = mean.split([tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


def together(tensors: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Tensors in their order, in groups of at most so many elements, or of one tensor."""
    group: list[Tensor] = []
    for tensor in tensors:
        if group and sum(each.numel() for each in group) + tensor.numel() > most:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def _refuse_sharding(environment: Mapping[str, str]) -> None:
    for name in ("DEEPSPEED", "FSDP"):
        if environment.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true"):
            raise RequestError(
                f"accelerate was told to use {name}, which shares out weights among processes, "
                "and here each has all: launch with --multi_gpu; --gradient-checkpointing, "
                "--micro-batch 1 and, for CLEAR, --optimizer adamw take less memory"
            )


class State:
    """Students, optimiser and step of a run; resumed from `path` if that is there.

    Args:
        path: The state's file; its folder must be there.
        students: What learns, fresh, on the device where it learns.
        identity: What tells the run from others.
        learning_rate, optimizer: Of the steps.

    Raises:
        RequestError: If the file is no such state, or another run's.
    """

    def __init__(
        self,
        path: Path,
        students: nn.Module,
        identity: Mapping[str, Any],
        learning_rate: float,
        optimizer: Optimizer = "adamw",
    ) -> None:
        self.path, self.students, self.identity, self.step = path, students, dict(identity), 0
        self.parameters = [p for p in students.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(optimizer, self.parameters, learning_rate)
        self.whole = True  # whether weights, optimiser and step belong together
        if path.exists():
            self._resume(read_state(path, _KEYS))

    def save(self) -> None:
        """Write the state, the old one standing until the new one is complete."""
        write_state(
            self.path,
            {
                "students": self.students.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "run": self.identity,
            },
        )

    def learn(self, rate: float) -> None:
        """One step of the optimiser along the gradients that are there."""
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.whole = False
        self.optimizer.step()
        self.step += 1
        self.whole = True
        self.optimizer.zero_grad(set_to_none=True)

    def _resume(self, state: Mapping[str, Any]) -> None:
        check_same(state["run"], self.identity, place=f"state {self.path}")
        try:
            self.students.load_state_dict(state["students"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RequestError(
                f"state {self.path} is of another model: {str(error).splitlines()[0]}; name "
                "another output, or --restart to start over"
            ) from error
        self.step = state["step"]


def run_course(
    distiller: Distiller,
    samples: Samples,
    state: State,
    run: DistillRun,
    processes: Processes,
    *,
    log: Log,
    stop_after_seconds: float = math.inf,
) -> bool:
    """Distil to the end of the run, or until the time is up; either way saved.

    Args:
        distiller: On the device of this process.
        samples: The same in every process.
        state: Fresh or resumed.
        run: The settings.
        processes: Those that take part.
        log: Is given step, mean losses and seconds now and then, and at the end.
        stop_after_seconds: Stop at the first step after so long, by the clock of any process:
            all stop at the same.

    Returns:
        Whether the run is at its end.

    Raises:
        NotFiniteError: If a loss is no number; the state is that of the last save.
    """
    began = said = time.monotonic()
    recent: list[Tensor] = []
    try:
        while state.step < run.steps:
            until = began + stop_after_seconds
            losses, late = _step(distiller, samples, state, run, processes, until=until)
            recent = [*recent[1 - _LOSSES_SHOWN :], losses]
            now = time.monotonic()
            over = state.step == run.steps or late
            if processes.is_first and (over or state.step % run.save_every == 0):
                state.save()
            if processes.is_first and (over or now - said > _LOG_EVERY_SECONDS):
                said = now
                log(_line(state.step, recent, now - began))
            if over:
                break
    except BaseException as error:
        # A signal: what is finished is kept, unless it came in the middle of a step's end.
        if processes.is_first and state.whole and not isinstance(error, Exception):
            state.save()
        raise
    processes.wait()
    return state.step >= run.steps


def learning_rate(step: int, run: DistillRun) -> float:
    """Of a step; constant, or half a cosine down to a fiftieth."""
    if not run.decay:
        return run.learning_rate
    return run.learning_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * step / run.steps)))


def _step(
    distiller: Distiller,
    samples: Samples,
    state: State,
    run: DistillRun,
    processes: Processes,
    *,
    until: float,
) -> tuple[Tensor, bool]:
    """One step; returns the losses (total, noise, teacher, attention) of this process, and
    whether the time is up in any of them.
    """
    share = processes.share(range(run.batch))
    shown = torch.zeros(4)
    for items in _parts(share, run.micro_batch or len(share)):
        batch = samples.batch(state.step, items).to(processes.device)
        part = len(items) / len(share)
        shown += part * _shown(distiller.descend(batch, part))
    if not bool(torch.isfinite(shown).all()):
        raise NotFiniteError(
            f"the loss of step {state.step + 1} is no number; try --dtype float32 or a lower "
            "--learning-rate"
        )
    gradients = [p.grad for p in state.parameters if p.grad is not None]
    late = torch.tensor(float(time.monotonic() > until), device=processes.device)
    processes.average([*gradients, late])  # or one would stop, and the others wait for it
    state.learn(learning_rate(state.step, run))
    return shown, bool(late)


def _parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _shown(losses: Losses) -> Tensor:
    terms = (losses.total, losses.noise, losses.teacher, losses.attention)
    return torch.stack([term.detach().float().cpu() for term in terms])


def _line(step: int, recent: Sequence[Tensor], seconds: float) -> dict[str, float]:
    means = torch.stack(list(recent)).mean(0).tolist()
    names = ("loss", "noise", "teacher", "attention")
    shown = {name: round(mean, 5) for name, mean in zip(names, means, strict=True)}
    return {"step": step, **shown, "seconds": round(seconds)}
