"""`hires generate`: from a prompt to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hirescli.cli.options import RequestOptions, takes_request
from hirescli.errors import HiresError

if TYPE_CHECKING:
    from hirescli.cascade.run import Result
    from hirescli.cli.request import Image
    from hirescli.planning.machine import Machine
    from hirescli.planning.plan import ValidatedPlan


def _flag(*names: str, text: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Run")


@takes_request
def generate(
    request: RequestOptions,
    dry_run: Annotated[
        bool,
        _flag("--dry-run", text="Plan and check everything, show the plan, make nothing."),
    ] = False,
    overwrite: Annotated[
        bool,
        _flag("--overwrite", text="Replace an output that exists. It stays until the new stands."),
    ] = False,
    restart: Annotated[
        bool,
        _flag("--restart", text="Drop what an interrupted run of the same output has left."),
    ] = False,
    json_: Annotated[
        bool,
        _flag("--json", text="Print events as JSON lines, at the end a result object."),
    ] = False,
    quiet: Annotated[
        bool,
        _flag("-q", "--quiet", text="No progress; print only the path of each finished image."),
    ] = False,
) -> None:
    """Make one image, or several with several seeds.

    Progress goes to stderr, the paths of finished images to stdout. An output that stands there
    already with the same recipe is left as it is.
    """
    try:
        _generate(request, dry_run, overwrite, restart, json_, quiet)
    except HiresError as error:
        if json_:
            from hirescli.cli.progress import write_line

            code = error.exit_code
            write_line(json.dumps({"event": "error", "message": str(error), "exit_code": code}))
        raise


def _generate(
    request: RequestOptions,
    dry_run: bool,
    overwrite: bool,
    restart: bool,
    json_: bool,
    quiet: bool,
) -> None:
    from hirescli.cli.plan import show
    from hirescli.cli.request import images
    from hirescli.planning.machine import Machine

    machine = Machine.detect()
    all_images = images(request, machine)
    todo = _validated(all_images, machine, overwrite)
    if dry_run:
        show(all_images, None, as_json=json_)
        return
    if restart:
        _drop_leftovers(todo)
    results = _run(all_images, todo, json_, quiet) if todo else []
    _report(all_images, results, json_)


def _validated(
    all_images: Sequence[Image], machine: Machine, overwrite: bool
) -> list[ValidatedPlan]:
    """The plans still to be run; finished outputs of the same recipe are none."""
    return [
        image.plan.validate(machine, image.output, overwrite)
        for image in all_images
        if overwrite or not _finished(image)
    ]


def _finished(image: Image) -> bool:
    if not os.path.isfile(image.output):  # unlike Path.is_file also for endless names
        return False
    from hirescli.runs.directory import finished

    return finished(image.output, image.plan.recipe)


def _drop_leftovers(todo: Sequence[ValidatedPlan]) -> None:
    from hirescli.runs.directory import RunDirectory, run_path

    for validated in todo:
        if run_path(validated.output).exists():
            with RunDirectory(validated.output, recipe=validated.recipe, restart=True) as left:
                left.remove()


def _run(
    all_images: Sequence[Image], todo: Sequence[ValidatedPlan], json_: bool, quiet: bool
) -> Sequence[Result]:
    from hirescli.cli.progress import listening
    from hirescli.events import Warned

    with listening(as_json=json_, quiet=quiet) as listener:
        for message in dict.fromkeys(w for image in all_images for w in image.plan.warnings):
            listener(Warned(message))
        _quiet_libraries()
        from hirescli.cascade.run import run  # loads torch: after all that can be refused is

        return run(todo, listener)


def _quiet_libraries() -> None:
    """Keep the libraries' own reports and bars out of our progress, unless the user asks."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _report(all_images: Sequence[Image], results: Sequence[Result], json_: bool) -> None:
    """Print the path of every image, made now or before, in the order asked for."""
    from hirescli.cli.progress import write_line

    made = {result.path: result for result in results}
    if json_:
        shown = [_as_dict(image, made.get(image.output)) for image in all_images]
        write_line(json.dumps({"event": "result", "images": shown}))
        return
    for image in all_images:
        if image.output not in made:
            from hirescli.cli.app import say

            say(f"{image.output} is finished with this recipe; nothing to do", kind="note")
        write_line(str(image.output))


def _as_dict(image: Image, result: Result | None) -> dict[str, Any]:
    if result is None:
        recipe = image.plan.recipe.model_dump(mode="json")
        return {"path": str(image.output), "finished_before": True, "recipe": recipe}
    return {
        "path": str(result.path),
        "finished_before": False,
        "sha256": result.sha256,
        "seconds": result.seconds,
        "peak_rss_bytes": result.peak_rss_bytes,
        "recipe": result.recipe.model_dump(mode="json"),
    }
