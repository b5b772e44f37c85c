"""From validated plans to finished files: the one way that every image goes."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hirescli.cascade.pictures import no_larger
from hirescli.cascade.prepare import Models, guides_of
from hirescli.cascade.stages import Stages
from hirescli.errors import RequestError
from hirescli.events import Event, Listener, RunDone, RunStarted, StageDone, StageStarted, Warned
from hirescli.models.load import quiet_libraries
from hirescli.output.finalise import FinishedFile, finalise
from hirescli.output.pictures import to_spool
from hirescli.output.spool import Spool
from hirescli.planning.machine import peak_rss_bytes
from hirescli.runs.directory import RunDirectory, refuse_conflict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from hirescli.models.load import Model
    from hirescli.planning.plan import Plan, ValidatedPlan
    from hirescli.recipe import Recipe


_LAST = "last"  # name of the spool that the output is made from


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

    Conflicts of all images are refused before anything is made. Each image then has its run
    directory, and the disk for its last spool, at its own turn: the first before the model is
    loaded. One that fails leaves the finished ones and its spool; an interrupted one leaves no
    spool, since nothing goes on from it. The number of torch's threads is set for each image
    and is afterwards what it was.

    Raises:
        RequestError: If a run directory was left by another recipe, or two outputs are one.
        RunError: If another process works on an output, the disk is full, weights fail, or a
            file of the output's name appeared during the run without leave to replace it.
    """
    tell = listener or _ignore
    _refuse_conflicts(plans)
    models = Models(plans)
    found = models.find()
    with quiet_libraries():
        return [_image(validated, models, tell) for validated in found]


def _ignore(_: Event) -> None:
    pass


def _refuse_conflicts(plans: Sequence[ValidatedPlan]) -> None:
    outputs = [validated.output for validated in plans]
    for validated in plans:
        if outputs.count(validated.output) > 1:
            raise RequestError(f"two images would be {validated.output}; name each differently")
        refuse_conflict(validated.output, validated.plan.recipe)


def _image(validated: ValidatedPlan, models: Models, tell: Listener) -> Result:
    threads = validated.plan.recipe.threads
    assert threads is not None, "the recipe is not resolved"
    with _directory(validated) as directory, _torch_threads(threads):
        try:
            _reserve(validated.plan, directory)
            return _make(validated, directory, models.of(validated.plan), tell)
        except RequestError:  # of files that the request names: nothing was made
            directory.remove()
            raise
        except BaseException as error:
            if not isinstance(error, Exception):  # a signal; after a failure rows may be of use
                directory.drop_spools()
            raise


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Compute with that many threads: sums are split among them, and so they set rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _directory(validated: ValidatedPlan) -> RunDirectory:
    plan = validated.plan
    return RunDirectory(validated.output, recipe=plan.recipe, plan_json=plan.to_json())


def _make(
    validated: ValidatedPlan, directory: RunDirectory, model: Model, tell: Listener
) -> Result:
    began = time.monotonic()
    plan = validated.plan
    tell(RunStarted(validated))
    recipe = _with_truncation(plan.recipe, model, tell)
    noise = torch.Generator("cpu").manual_seed(recipe.seed)
    spill = plan.spill or directory.path
    guides = guides_of(recipe, model, directory.spool)
    stages = Stages(model, plan, noise, spill, tell, guides)
    last_spool = _cascade(plan, directory, stages, tell)
    file = finalise(
        last_spool,
        validated.output,
        recipe=recipe,
        overwrite=validated.overwrite,
        listener=tell,
    )
    directory.remove()
    return _result(file, recipe, time.monotonic() - began, tell)


def _cascade(plan: Plan, directory: RunDirectory, stages: Stages, tell: Listener) -> Path:
    """Run all stages; returns the 8-bit spool of the last one."""
    *_, last = plan.stages
    previous = _first_picture(plan, directory)
    for cost in plan.stage_costs:
        stage, began = cost.stage, time.monotonic()
        size_px = (stage.width_px, stage.height_px)
        tell(StageStarted(stage.index, len(plan.stages), stage.kind, *size_px, stage.steps))
        if previous is None:
            latents = stages.base(cost)
        else:
            latents = stages.upscale(cost, stages.encode(previous, cost))
            previous.unlink()
        if stage is last:
            spool = Spool.open(directory.spool(_LAST), writable=True)
        else:
            path = directory.spool(stage.index)
            spool = Spool.create(path, width_px=size_px[0], height_px=size_px[1], bits=16)
        with spool:
            stages.decode(latents, cost, spool)
        previous = spool.path
        tell(StageDone(stage.index, time.monotonic() - began))
    assert previous is not None, "a plan has stages"
    return previous


def _first_picture(plan: Plan, directory: RunDirectory) -> Path | None:
    """The spool that the first stage begins with, if it begins with a picture."""
    picture = plan.recipe.source or plan.recipe.init_image
    if picture is None:
        return None
    first, path = plan.stages[0], directory.spool("given")
    to_spool(picture.path, path)
    size_px = {"width_px": first.width_px, "height_px": first.height_px}
    return no_larger(path, directory.spool("given-smaller"), **size_px)


def _reserve(plan: Plan, directory: RunDirectory) -> None:
    """Take the room of the last spool now: a full disk is found before hours of work."""
    *_, last = plan.stages
    path = directory.spool(_LAST)
    Spool.create(path, width_px=last.width_px, height_px=last.height_px, bits=8).close()


def _with_truncation(recipe: Recipe, model: Model, tell: Listener) -> Recipe:
    """The recipe with the numbers of tokens that were kept, where a text was too long."""
    prompt, negative = recipe.prompt, recipe.negative_prompt
    text, kept = model.text, {}
    for what, words, room, key in (
        ("prompt", prompt, text.prompt_tokens, "truncated_to_tokens"),
        ("negative prompt", negative, text.negative_tokens, "negative_truncated_to_tokens"),
    ):
        tokens = text.token_count(words)
        if tokens > room:
            name = model.card.name
            tell(Warned(f"the {what} has {tokens} tokens; model `{name}` reads the first {room}"))
            kept[key] = room
    return recipe.model_copy(update=kept)


def _result(file: FinishedFile, recipe: Recipe, seconds: float, tell: Listener) -> Result:
    peak = peak_rss_bytes()
    tell(RunDone(file.path, seconds, peak))
    return Result(file.path, file.sha256, seconds, peak, recipe)
