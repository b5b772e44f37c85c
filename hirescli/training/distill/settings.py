"""The settings of a distillation, and which of them may change while it goes on. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hirescli.errors import RequestError

DType = Literal["float32", "bfloat16"]
Optimizer = Literal["adamw", "prodigy"]
# What may differ when a run goes on: how long, how often it saves, how it is spread.
_FREE = ("steps", "save_every", "micro_batch", "gradient_checkpointing")


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What the terms of the loss count; a term of 0 is not computed.

    Attributes:
        noise: Of the error against what was really added, in the scheduler's own prediction
            type; of flow models that is the published flow-matching loss.
        teacher: Of the error against the teacher's prediction.
        attention: Of the mean over layers of the errors of attention outputs.
    """

    noise: float = 1.0
    teacher: float = 0.5
    attention: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a loss that is always zero, or that rewards errors."""
        found = asdict(self)
        wrong = [name for name, value in found.items() if not 0 <= value < float("inf")]
        if wrong:
            raise RequestError(
                f"the weight of the loss's {wrong[0]} term is {found[wrong[0]]}; it must be 0 or "
                "more"
            )
        if not any(found.values()):
            raise RequestError("all weights of the loss are 0; at least one must be above 0")


@dataclass(frozen=True, kw_only=True)
class DistillRun:
    """What distillations by any method are told; defaults as published for LinFusion.

    Attributes:
        steps: Of the optimiser.
        batch: Samples of a step, of all processes together.
        micro_batch: Samples that a process computes at a time; None: its whole share.
        optimizer: Without weight decay.
        learning_rate: Of the optimiser; of Prodigy a factor of what it finds itself.
        decay: Whether the learning rate falls to a fiftieth along half a cosine.
        weights: Of the terms of the loss.
        caption_dropout: Share of samples that are given no caption, so that guidance works.
        resolution_px: Side of the pictures; of shards the side of the base pictures.
        seed: Of samples, timesteps and noise.
        dtype: What is computed in; what learns is float32 always.
        save_every: Steps between two writings of the state.
        gradient_checkpointing: Compute activations again for gradients, which keeps fewer.
    """

    steps: int = 10_000
    batch: int = 8
    micro_batch: int | None = None
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-4
    decay: bool = False
    weights: LossWeights = field(default_factory=LossWeights)
    caption_dropout: float = 0.1
    resolution_px: int
    seed: int = 0
    dtype: DType = "float32"
    save_every: int = 500
    gradient_checkpointing: bool = False

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on, by the names of the attributes."""
        said = {key: value for key, value in asdict(self).items() if key not in _FREE}
        if self.decay:  # the rate of every step depends on how many there are
            said["steps"] = self.steps
        return said


def check_same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    place: object,
    remedy: str = "another output, or --restart to start over",
) -> None:
    """Refuse to go on with another run's state.

    Args:
        before: The identity of the run that the state is of.
        now: What is asked for.
        place: The state, as a person knows it.
        remedy: What to do if they are to differ.

    Raises:
        RequestError: If they differ; lists what differs.
    """
    wrong = [key for key in now if before.get(key) != now[key]]
    if wrong:
        listed = "\n".join(f"  - {key} was {before.get(key)}, not {now[key]}" for key in wrong)
        raise RequestError(
            f"{place} is of another run:\n{listed}\ngive the same choices to go on, {remedy}"
        )
