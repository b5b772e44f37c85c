"""`hires generate`: from a prompt to a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hirescli.cli.json_errors import json_errors
from hirescli.cli.options.file import AlsoOptions
from hirescli.cli.options.making import MakingOptions
from hirescli.cli.options.request import RequestOptions, takes
from hirescli.cli.streams import write_line
from hirescli.errors import RequestError

if TYPE_CHECKING:
    from hirescli.cascade.run import Result
    from hirescli.cli.request import Image
    from hirescli.planning.machine import Machine
    from hirescli.planning.plan import Plan, ValidatedPlan


@takes(RequestOptions, MakingOptions, AlsoOptions)
def generate(
    request: RequestOptions,
    how: MakingOptions,
    files: AlsoOptions,
    from_latents: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Decode again what a run with --keep-run has left: its directory, or its output. "
            "Only how latents are decoded and written can be chosen then. Default: the image is "
            "drawn.",
            show_default=False,
            rich_help_panel="Run",
        ),
    ] = None,
) -> None:
    """Make one image, or several with several seeds.

    Progress goes to stderr, the paths of finished images to stdout. An output that stands there
    already with the same recipe is left as it is. A run that was interrupted or killed goes on
    where it was when the same command is given again.
    """
    make(request, how, latents=from_latents, also=files.also or ())


def make(
    request: RequestOptions,
    how: MakingOptions,
    source: Path | None = None,
    latents: Path | None = None,
    also: Sequence[str] = (),
) -> None:
    """Make the images of a request.

    Args:
        request: What is asked for.
        how: Whether to make them, and what to say.
        source: A picture that is enlarged; None: images begin from noise.
        latents: A kept run directory, or its output, whose latents are decoded again.
        also: Names of further files of each image.
    """
    with json_errors(how.json_):
        if latents is not None:
            request, latents = _of_kept(request, latents)
        _make(request, how, source, latents, also)


def _of_kept(request: RequestOptions, named: Path) -> tuple[RequestOptions, Path]:
    """The request over the recipe of a kept run, and its directory."""
    from hirescli.runs.directory import RECIPE, kept_run

    if request.recipe is not None or request.preset is not None:
        raise RequestError("--from-latents has a recipe: leave --recipe and --preset out")
    path = kept_run(named)
    return dataclasses.replace(request, recipe=path / RECIPE), path


def _make(
    request: RequestOptions,
    how: MakingOptions,
    source: Path | None,
    latents: Path | None,
    also: Sequence[str],
) -> None:
    from hirescli.cli.plan import show
    from hirescli.cli.request import images
    from hirescli.planning.machine import Machine

    machine = Machine.detect(with_devices=True)
    all_images = images(request, machine, source, also)
    todo = _validated(all_images, machine, how.overwrite)
    if how.dry_run:
        show(all_images, None, as_json=how.json_)
        return
    if how.restart:
        drop_leftovers(todo)
    to_make = {validated.output for validated in todo}
    if how.keep_run:
        _say_not_kept([image for image in all_images if image.output not in to_make])
    _clear_finished([image for image in all_images if image.output not in to_make])
    paths = Paths(all_images, to_make, silent=how.json_)
    try:
        results = _run(all_images, todo, paths, how, latents) if todo else []
    finally:
        paths.end()
    if how.json_:
        _print_result(all_images, results)


def _validated(
    all_images: Sequence[Image], machine: Machine, overwrite: bool
) -> list[ValidatedPlan]:
    """The plans still to be run; finished outputs of the same recipe are none."""
    from hirescli.planning.plan import check_disk_together

    todo = [
        _without_finished(image, overwrite).validate(machine, image.output, overwrite)
        for image in all_images
        if overwrite or not _finished(image)
    ]
    check_disk_together(todo, machine)
    return todo


def _finished(image: Image) -> bool:
    """Whether an image stands with all its files.

    Raises:
        RequestError: If it stands without one of them.
    """
    from hirescli.runs.directory import complete_naming, finished

    if complete_naming(image.output, image.plan.recipe):
        return True
    if not os.path.exists(image.output):  # unlike Path.exists also for endless names
        return False
    if not finished(image.output, image.plan.recipe):
        return False
    if missing := _without_finished(image, overwrite=False).also:
        raise RequestError(
            f"{image.output} is finished with this recipe, but {missing[0].path} is not there or "
            f"another's; {_remedy(image, [each.path for each in missing])}"
        )
    return True


def _remedy(image: Image, missing: Sequence[Path]) -> str:
    """How further files come to be: from the output, if that holds all of the picture."""
    recipe = image.plan.recipe
    if recipe.format in ("tiff", "png", "print") and recipe.compression != "jpeg":
        targets = " ".join(f"--to {path}" for path in missing)
        return f"make it with: hires export {image.output} {targets}"
    return "--overwrite makes all of them again"


def _without_finished(image: Image, overwrite: bool) -> Plan:
    """The plan without further files that stand; the output gets its name after them."""
    if overwrite or not image.plan.also:
        return image.plan
    from hirescli.runs.directory import finished

    recipe = image.plan.recipe
    missing = [e for e in image.plan.also if not finished(e.path, e.recipe(recipe))]
    return dataclasses.replace(image.plan, also=tuple(missing))


def _say_not_kept(images: Sequence[Image]) -> None:
    from hirescli.cli.app import say
    from hirescli.runs.directory import run_path

    for image in images:
        if not run_path(image.output).exists():
            say(
                f"{image.output} was finished without --keep-run: there is nothing to keep; "
                "with --overwrite it is made again",
                kind="warning",
            )


def _clear_finished(images: Sequence[Image]) -> None:
    """Remove what a run that was killed just after its file stood has left beside it."""
    for image in images:
        from hirescli.runs.directory import clear_finished

        clear_finished(image.output, image.plan.recipe)


def drop_leftovers(todo: Sequence[ValidatedPlan]) -> None:
    """Remove what earlier runs of the outputs have left."""
    from hirescli.runs.directory import RunDirectory, run_path

    for validated in todo:
        if run_path(validated.output).exists():
            with RunDirectory(validated.output, recipe=validated.recipe, restart=True) as left:
                left.remove()


def _run(
    all_images: Sequence[Image],
    todo: Sequence[ValidatedPlan],
    paths: Paths,
    how: MakingOptions,
    latents: Path | None,
) -> Sequence[Result]:
    from hirescli.cli.imports import importing
    from hirescli.cli.progress import listening, paused, warn
    from hirescli.events import Event, RunDone

    with listening(as_json=how.json_, quiet=how.quiet) as listener:

        def tell(event: Event) -> None:
            listener(event)
            if isinstance(event, RunDone):
                with paused(listener):
                    paths.done(event.path)

        warn(listener, [image.plan for image in all_images])
        with importing():  # after all that can be refused is
            from hirescli.cascade.run import run

        return run(todo, tell, keep_runs=how.keep_run, latents=latents, previews=how.preview)


class Paths:
    """Prints the path of every image as soon as it stands, in the order asked for.

    Args:
        all_images: The images in order.
        to_make: Outputs that are made now; the others were finished before.
        silent: Whether to print nothing.
    """

    def __init__(
        self, all_images: Sequence[Image], to_make: Collection[Path], *, silent: bool
    ) -> None:
        self._waiting = [] if silent else [image.output for image in all_images]
        self._before = {path for path in self._waiting if path not in to_make}
        self._done = set(self._before)
        self._print(self._ready())

    def done(self, path: Path) -> None:
        """An image stands; print it, unless one before it is still being made."""
        self._done.add(path)
        self._print(self._ready())

    def end(self) -> None:
        """Print what stands, also behind an image that failed."""
        self._print([path for path in self._waiting if path in self._done])
        self._waiting = []

    def _ready(self) -> list[Path]:
        return list(itertools.takewhile(self._done.__contains__, self._waiting))

    def _print(self, paths: Sequence[Path]) -> None:
        from hirescli.cli.app import say

        for path in paths:
            if path in self._before:
                say(f"{path} is finished with this recipe; nothing to do", kind="note")
            write_line(str(path))
            self._waiting.remove(path)


def _print_result(all_images: Sequence[Image], results: Sequence[Result]) -> None:
    """The last line of JSON: every image, made now or before, in the order asked for."""
    made = {result.path: result for result in results}
    shown = [_as_dict(image, made.get(image.output)) for image in all_images]
    write_line(json.dumps({"event": "result", "images": shown}))


def _as_dict(image: Image, result: Result | None) -> dict[str, Any]:
    also = {"also": [str(each.path) for each in image.plan.also]}
    if result is None:
        recipe = image.plan.recipe.model_dump(mode="json")
        return {"path": str(image.output), "finished_before": True, "recipe": recipe} | also
    return {
        "path": str(result.path),
        "finished_before": False,
        "sha256": result.sha256,
        "seconds": result.seconds,
        "peak_rss_bytes": result.peak_rss_bytes,
        "journal_seconds": result.journal_seconds,
        "recipe": result.recipe.model_dump(mode="json"),
    } | also
