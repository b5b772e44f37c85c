"""What is asked of a distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hirescli.training.distill.methods import Method
from hirescli.training.distill.outputs import Output
from hirescli.training.distill.settings import DistillRun
from hirescli.training.distill.targets import Found


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be distilled, from what, and where to.

    Attributes:
        found: The model.
        method: What takes the place of its attention.
        run: The settings.
        output: The adapter.
        data: A folder of pictures with captions, or of rendered shards; None: of prompts.
        prompts: A file of prompts, whose pictures the teacher draws; None: of `data`.
        sampling_steps: Of each picture that the teacher draws; None: as its card says.
        start: An adapter to begin from; None: the teacher's own projections.
        skip_broken: Leave out pictures that cannot be used.
        restart: Start over where another run's state is.
        overwrite: Replace an output that is no distillation's.
    """

    found: Found
    method: Method
    run: DistillRun
    output: Output
    data: Path | None = None
    prompts: Path | None = None
    sampling_steps: int | None = None
    start: str | None = None
    skip_broken: bool = False
    restart: bool = False
    overwrite: bool = False
