"""From validated plans to finished files: the one way that every image goes."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hirescli.cascade.stages import Stages
from hirescli.events import Event, Listener, RunDone, RunStarted, StageDone, StageStarted, Warned
from hirescli.models.load import Model, load
from hirescli.output.finalise import FinishedFile, finalise
from hirescli.output.spool import Spool
from hirescli.planning.machine import peak_rss_bytes
from hirescli.runs.directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hirescli.planning.plan import Plan, ValidatedPlan
    from hirescli.recipe import Recipe


@dataclass(frozen=True)
class Result:
    """A finished image.

    Attributes:
        path: The output.
        sha256: Of the file.
        seconds: From the first stage to the file, loading of the model not counted.
        peak_rss_bytes: Largest resident memory of this process so far, as the system says.
        recipe: What was made, with what became of it at run time.
    """

    path: Path
    sha256: str
    seconds: float
    peak_rss_bytes: int
    recipe: Recipe


def run(plans: Sequence[ValidatedPlan], listener: Listener | None = None) -> list[Result]:
    """Make the images of validated plans, in order, loading the model once.

    All run directories are locked before anything is loaded, so a request that cannot be run
    fails early; an image that fails leaves the finished ones and its own spool.

    Raises:
        RequestError: If a run directory was left by another recipe.
        RunError: If another process works on an output, the disk is full, or weights fail.
    """
    tell = listener or _ignore
    with ExitStack() as stack:
        directories = [stack.enter_context(_directory(validated)) for validated in plans]
        models: dict[tuple[str, str], Model] = {}
        results = []
        for validated, directory in zip(plans, directories, strict=True):
            model = _model(validated.plan, models)
            results.append(_make(validated, directory, model, tell))
        return results


def _ignore(_: Event) -> None:
    pass


def _directory(validated: ValidatedPlan) -> RunDirectory:
    plan = validated.plan
    return RunDirectory(validated.output, recipe=plan.recipe, plan_json=plan.to_json())


def _model(plan: Plan, models: dict[tuple[str, str], Model]) -> Model:
    assert plan.recipe.dtype is not None, "the recipe is not resolved"
    key = (plan.card.name, plan.recipe.dtype)
    if key not in models:
        models[key] = load(plan.card, dtype=plan.recipe.dtype)
    return models[key]


def _make(
    validated: ValidatedPlan, directory: RunDirectory, model: Model, tell: Listener
) -> Result:
    began = time.monotonic()
    plan = validated.plan
    tell(RunStarted(validated))
    recipe = _with_truncation(plan.recipe, model, tell)
    noise = torch.Generator("cpu").manual_seed(recipe.seed)
    last_spool = _cascade(plan, directory, Stages(model, recipe, noise, tell), tell)
    file = finalise(last_spool, validated.output, recipe=recipe, listener=tell)
    directory.remove()
    return _result(file, recipe, time.monotonic() - began, tell)


def _cascade(plan: Plan, directory: RunDirectory, stages: Stages, tell: Listener) -> Path:
    """Run all stages; returns the 8-bit spool of the last one."""
    *_, last = plan.stages
    last_spool = directory.spool("last")
    _preallocate(last_spool, last.width_px, last.height_px)
    previous: Path | None = None
    for stage in plan.stages:
        began = time.monotonic()
        size_px = (stage.width_px, stage.height_px)
        tell(StageStarted(stage.index, len(plan.stages), stage.kind, *size_px, stage.steps))
        if previous is None:
            latents = stages.base(stage)
        else:
            latents = stages.upscale(stage, stages.encode(previous, stage))
            previous.unlink()
        previous = last_spool if stage is last else directory.spool(stage.index)
        stages.decode(latents, stage, previous, bits=8 if stage is last else 16)
        tell(StageDone(stage.index, time.monotonic() - began))
    return last_spool


def _preallocate(path: Path, width_px: int, height_px: int) -> None:
    """Take the room of the last spool now: a full disk is found before hours of work."""
    with Spool.create(path, width_px=width_px, height_px=height_px, bits=8):
        pass


def _with_truncation(recipe: Recipe, model: Model, tell: Listener) -> Recipe:
    """The recipe with the number of tokens that were kept, where the prompt was too long."""
    tokens = model.text.token_count(recipe.prompt)
    room = model.text.prompt_tokens
    if tokens <= room:
        return recipe
    name = model.card.name
    tell(Warned(f"the prompt has {tokens} tokens; model `{name}` reads the first {room}"))
    return recipe.model_copy(update={"truncated_to_tokens": room})


def _result(file: FinishedFile, recipe: Recipe, seconds: float, tell: Listener) -> Result:
    peak = peak_rss_bytes()
    tell(RunDone(file.path, seconds, peak))
    return Result(file.path, file.sha256, seconds, peak, recipe)
