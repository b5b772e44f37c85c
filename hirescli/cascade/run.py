"""From validated plans to finished files: the one way that every image goes."""

from __future__ import annotations

import contextlib
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from hirescli.cascade.decoded import holds
from hirescli.cascade.pictures import no_larger
from hirescli.cascade.prepare import Models, guides_of
from hirescli.cascade.stages import LATENTS, Stages
from hirescli.errors import RequestError, RunError
from hirescli.events import (
    Event,
    Listener,
    PreviewWritten,
    RunDone,
    RunStarted,
    StageDone,
    StageStarted,
    Warned,
    WentOn,
)
from hirescli.models.load import quiet_libraries
from hirescli.output.finalise import finalise
from hirescli.output.pictures import to_spool
from hirescli.output.preview import write_preview
from hirescli.output.spool import Spool
from hirescli.planning.also import check_apart
from hirescli.planning.machine import peak_rss_bytes
from hirescli.runs.conditions import conditions
from hirescli.runs.directory import RunDirectory, kept_journal, refuse_conflict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from hirescli.models.load import Model
    from hirescli.planning.plan import Plan, ValidatedPlan
    from hirescli.recipe import Recipe


_LAST = "last"  # name of the spool that the output is made from
_DONE = "done"  # in the journal, of a stage


@dataclass(frozen=True)
class Result:
    """A finished image.

    Attributes:
        path: The output.
        sha256: Of the file.
        seconds: From the first stage to the file, loading of the model not counted.
        peak_rss_bytes: Largest resident memory of this process so far, as the system says.
        recipe: What was made, with what became of it at run time.
        journal_seconds: Of all, spent with remembering what is finished.
        also: Further files that were asked for; they stand too.
    """

    path: Path
    sha256: str
    seconds: float
    peak_rss_bytes: int
    recipe: Recipe
    journal_seconds: float = 0.0
    also: tuple[Path, ...] = ()


class Runner:
    """Makes the images of validated plans, one at a time, loading each model once.

    Args:
        plans: All that may be made: conflicts of any of them are refused before anything is
            made, and their prompts are encoded when their model is loaded.
        listener: Told of everything.
        keep_runs: Whether run directories stay when their images are finished.
        latents: A kept run directory whose latents are decoded again.
        wait: Whether outputs that other processes are making are no fault yet.
        previews: Whether every finished stage leaves a small JPEG beside the output.

    Raises:
        RequestError: If a run directory was left by another recipe, or two outputs are one.
        RunError: If another process works on an output, or weights are missing.
    """

    def __init__(
        self,
        plans: Sequence[ValidatedPlan],
        listener: Listener | None = None,
        *,
        keep_runs: bool = False,
        latents: Path | None = None,
        wait: bool = False,
        previews: bool = False,
    ) -> None:
        self._keep_runs, self._latents, self._previews = keep_runs, latents, previews
        self._tell = listener or _ignore
        _refuse_conflicts(plans, wait=wait)
        self._models = Models(plans)
        # With the commits and digests of the weights that were found.
        self._plans = {found.output: found for found in self._models.find()}

    def make(self, validated: ValidatedPlan) -> Result:
        """Make one of the images.

        It has its run directory, and the disk for its last spool, from the beginning: the first
        image before the model is loaded. One that fails or is interrupted leaves its run
        directory, and the same plan goes on from there. The number of torch's threads is set
        for the image and is afterwards what it was.

        Raises:
            RequestError: If a file that the request names cannot be used; a new run directory is
                not left then.
            BusyError: If another process works on the output.
            RunError: If the disk is full, weights fail, or a file of the output's name appeared
                during the run without leave to replace it.
        """
        validated, tell = self._plans[validated.output], self._tell
        threads = validated.plan.recipe.threads
        assert threads is not None, "the recipe is not resolved"
        with (
            quiet_libraries(),
            _directory(validated, tell, keep=self._keep_runs) as directory,
            _torch_threads(threads),
        ):
            _reserve(validated.plan, directory)
            fresh = directory.journal.empty
            try:
                if self._latents is not None:
                    _adopt_latents(self._latents, directory, validated.plan)
                model = self._models.of(validated.plan)
                made = _make(validated, directory, model, tell, previews=self._previews)
            except RequestError:  # of files that the request names
                if fresh:
                    directory.remove()
                raise
            directory.finish()
            return made


def run(
    plans: Sequence[ValidatedPlan],
    listener: Listener | None = None,
    *,
    keep_runs: bool = False,
    latents: Path | None = None,
    previews: bool = False,
) -> list[Result]:
    """Make all images of validated plans, in order; the first that fails ends it.

    The arguments are those of `Runner`.

    Raises:
        RequestError, RunError: As `Runner`.
    """
    runner = Runner(plans, listener, keep_runs=keep_runs, latents=latents, previews=previews)
    return [runner.make(validated) for validated in plans]


def _ignore(_: Event) -> None:
    pass


def _refuse_conflicts(plans: Sequence[ValidatedPlan], *, wait: bool) -> None:
    check_apart([path for each in plans for path in each.outputs])
    for validated in plans:
        plan = validated.plan
        refuse_conflict(validated.output, plan.recipe, partial(conditions, plan), wait=wait)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Compute with that many threads: sums are split among them, and so they set rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _directory(validated: ValidatedPlan, tell: Listener, *, keep: bool) -> RunDirectory:
    plan = validated.plan
    return RunDirectory(
        validated.output,
        recipe=plan.recipe,
        conditions=conditions(plan),
        plan_json=plan.to_json(),
        spill=plan.spill,
        keep=keep,
        warn=lambda message: tell(Warned(message)),
    )


def _make(
    validated: ValidatedPlan,
    directory: RunDirectory,
    model: Model,
    tell: Listener,
    *,
    previews: bool,
) -> Result:
    began = time.monotonic()
    plan = validated.plan
    tell(RunStarted(validated))
    recipe = _with_truncation(plan.recipe, model, tell)
    noise = torch.Generator("cpu").manual_seed(recipe.seed)
    guides = guides_of(recipe, model, directory.spool)
    stages = Stages(model, plan, noise, directory.spill, tell, directory.journal, guides)
    preview = partial(write_preview, recipe=recipe, overwrite=validated.overwrite)
    last_spool = _cascade(plan, directory, stages, tell, preview if previews else None)
    also = {each.path: each.recipe(recipe) for each in plan.also}
    file = finalise(
        last_spool,
        validated.output,
        recipe=recipe,
        also=also,
        overwrite=validated.overwrite,
        whole=lambda: directory.names_next([*also, validated.output], validated.overwrite),
        listener=tell,
    )
    seconds, peak = time.monotonic() - began, peak_rss_bytes()
    spent = directory.journal.seconds
    tell(RunDone(file.path, seconds, peak, spent))
    return Result(file.path, file.sha256, seconds, peak, recipe, spent, tuple(also))


def _cascade(
    plan: Plan,
    directory: RunDirectory,
    stages: Stages,
    tell: Listener,
    preview: Callable[[Path, Path, int], Path] | None,
) -> Path:
    """Run the stages that are not finished; returns the spool of the last one."""
    first = _first_unfinished(plan, directory, stages, tell)
    if not directory.journal.empty:
        tell(WentOn(first, len(plan.stages)))
    for cost in plan.stage_costs[first:]:
        stage, began = cost.stage, time.monotonic()
        size_px = (stage.width_px, stage.height_px)
        tell(StageStarted(stage.index, len(plan.stages), stage.kind, *size_px, stage.steps))
        latents = stages.latents(cost, partial(_picture_before, plan, directory, stage.index))
        with _spool(plan, directory, stage.index) as spool:
            rows = stages.decode(latents, cost, spool)
        journal = directory.journal.stage(stage.index)
        journal.note(_DONE, rows=rows)
        journal.drop(but=LATENTS if stage.index + 1 == len(plan.stages) else "")
        if stage.index:
            _spool_path(plan, directory, stage.index - 1).unlink(missing_ok=True)
        tell(StageDone(stage.index, time.monotonic() - began))
        if preview is not None:
            spool_path = _spool_path(plan, directory, stage.index)
            _preview(
                partial(preview, spool_path, directory.output, stage.index), tell, stage.index
            )
    return _spool_path(plan, directory, len(plan.stages) - 1)


def _preview(write: Callable[[], Path], tell: Listener, index: int) -> None:
    """Write the preview of a stage; a run does not fail for want of one."""
    try:
        tell(PreviewWritten(index, write()))
    except RunError as error:
        tell(Warned(str(error)))


def _first_unfinished(plan: Plan, directory: RunDirectory, stages: Stages, tell: Listener) -> int:
    """The index of the first stage to run; behind the last if all are finished.

    The noise goes on from where the stage before left it; a stage whose latents are whole draws
    none and needs no picture before it.
    """
    for index in reversed(range(len(plan.stages))):
        if _stands(plan, directory, index, tell) and stages.go_on_behind(index):
            return index + 1
        if stages.has_latents(index):
            return index
    return 0


def _stands(plan: Plan, directory: RunDirectory, index: int, tell: Listener) -> bool:
    """Whether a stage is finished, and its spool what it was then; damage is told."""
    done, path = directory.journal.stage(index).fact(_DONE), _spool_path(plan, directory, index)
    if done is None or not path.exists():  # it goes with the stage that enlarges it
        return False
    with contextlib.suppress(RunError), Spool.open(path) as spool:
        if holds(spool, done["rows"]):
            return True
    tell(Warned(f"{path.name} is damaged; it is made again"))
    return False


def _adopt_latents(left: Path, directory: RunDirectory, plan: Plan) -> None:
    """Begin with the latents that another run has kept.

    Raises:
        RequestError: If it has none, they are damaged or of another picture, or it is the run
            directory of this very output.
    """
    if left.resolve() == directory.path.resolve():
        raise RequestError(f"{left} is the run directory of this output; choose another with -o")
    index = len(plan.stages) - 1
    kept, own = kept_journal(left, plan.recipe).stage(index), directory.journal.stage(index)
    if own.holds(LATENTS):  # of an earlier process that ended early
        return
    if not Stages.adopt_latents(own, kept):
        raise RequestError(
            f"{left} has no latents, or damaged ones; keep those of a run with --keep-run"
        )


def _spool_path(plan: Plan, directory: RunDirectory, index: int) -> Path:
    return directory.spool(_LAST if index + 1 == len(plan.stages) else index)


def _spool(plan: Plan, directory: RunDirectory, index: int) -> Spool:
    """The writable spool of a stage; what an earlier process wrote into it is there."""
    stage, path = plan.stages[index], _spool_path(plan, directory, index)
    if path.exists():
        with contextlib.suppress(RunError):
            return Spool.open(path, writable=True)
    size_px = {"width_px": stage.width_px, "height_px": stage.height_px}
    return Spool.create(
        path, **size_px, bits=plan.recipe.bits if index + 1 == len(plan.stages) else 16
    )


def _picture_before(plan: Plan, directory: RunDirectory, index: int) -> Path:
    """The spool of the picture that a stage enlarges."""
    if index:
        return _spool_path(plan, directory, index - 1)
    picture = plan.recipe.source or plan.recipe.init_image
    assert picture is not None, "a stage without strength begins from noise"
    first, path = plan.stages[0], directory.spool("given")
    to_spool(picture.path, path)
    size_px = {"width_px": first.width_px, "height_px": first.height_px}
    return no_larger(path, directory.spool("given-smaller"), **size_px)


def _reserve(plan: Plan, directory: RunDirectory) -> None:
    """Take the room of the last spool now: a full disk is found before hours of work."""
    _spool(plan, directory, len(plan.stages) - 1).close()


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
