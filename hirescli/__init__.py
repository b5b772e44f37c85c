"""Ultra-high-resolution images from text, on one machine.

The public interface; nothing heavy is imported until it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hirescli.attention.linearize import linearize, unlinearize
    from hirescli.bands.stream import stream
    from hirescli.cascade.run import Result
    from hirescli.events import Listener
    from hirescli.planning.also import AlsoFile
    from hirescli.planning.plan import Plan
    from hirescli.recipe import Recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "generate", "linearize", "plan", "stream", "unlinearize", "upscale"]


def __getattr__(name: str) -> Any:
    if name == "Recipe":
        from hirescli.recipe import Recipe

        return Recipe
    if name == "stream":
        from hirescli.bands.stream import stream

        return stream
    if name in ("linearize", "unlinearize"):
        from hirescli.attention import linearize as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def plan(
    recipe: Recipe,
    *,
    memory: str | int | None = None,
    host_memory: str | int | None = None,
    spill: str | Path | None = None,
    also: Sequence[str | Path] = (),
) -> Plan:
    """Plan an image: stages, schedules, memory, disk, time. Loads no model and no torch.

    Args:
        recipe: What is asked for.
        memory: Budget of the whole process, or of the GPU, in bytes or such as "8GB"; None:
            what the model takes and 170 MB to work in; of a GPU three quarters.
        host_memory: Budget of values on the host beside a GPU; None: three quarters of what is
            installed, less what the model takes there.
        spill: Folder for values that find no room in memory; None: the run's own, beside the
            output.
        also: Further files of the picture.

    Raises:
        RequestError: If the size, format or another choice does not work with the model.
    """
    from hirescli.models.registry import card_of
    from hirescli.output.inputs import identified
    from hirescli.planning.also import with_also
    from hirescli.planning.plan import make_plan
    from hirescli.units import parse_bytes

    recipe, files = with_also(identified(recipe), [Path(name) for name in also])
    return make_plan(
        recipe,
        card_of(recipe),
        memory_bytes=None if memory is None else parse_bytes(memory),
        host_memory_bytes=None if host_memory is None else parse_bytes(host_memory),
        spill=None if spill is None else Path(spill),
        also=files,
    )


def generate(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    memory: str | int | None = None,
    host_memory: str | int | None = None,
    spill: str | Path | None = None,
    overwrite: bool = False,
    also: Sequence[str | Path] = (),
    listener: Listener | None = None,
) -> Result:
    """Make one image and write it; an output that stands there with the same recipe is left.

    Args:
        recipe: What is asked for.
        output: The file; its suffix chooses the format, and must agree with a recipe's other
            than "tiff". None: a name made from prompt and seed, in the current folder.
        memory: As in `plan`.
        host_memory: As in `plan`.
        spill: As in `plan`.
        overwrite: Whether an existing output is replaced.
        also: Further files of the picture; their suffixes say their formats.
        listener: Called with every event of the run.

    Returns:
        What was made. Of a finished output that was left, `seconds` is 0.

    Raises:
        RequestError: If the request cannot be carried out here; nothing was loaded or written.
        RunError: If the run failed.
    """
    from hirescli.cascade.run import run
    from hirescli.planning.formats import default_output, with_output
    from hirescli.planning.machine import Machine

    path = None if output is None else Path(output)
    limits: Any = {"memory": memory, "host_memory": host_memory, "spill": spill}
    made = plan(with_output(recipe, path), **limits, also=also)
    target = path or default_output(made.recipe)
    if not overwrite:
        if (before := _finished(target, made)) is not None:
            return before
        made = dataclasses.replace(made, also=_unfinished_also(made))
    machine = Machine.detect(with_devices=made.recipe.device == "cuda")
    return made.validate(machine, target, overwrite).execute(run, listener)


def upscale(
    picture: str | Path,
    output: str | Path | None = None,
    *,
    memory: str | int | None = None,
    host_memory: str | int | None = None,
    spill: str | Path | None = None,
    overwrite: bool = False,
    also: Sequence[str | Path] = (),
    listener: Listener | None = None,
    **choices: Any,
) -> Result:
    """Enlarge a picture; the model draws what the larger one shows of it.

    Args:
        picture: TIFF, also of gigapixels, PNG, JPEG or another that Pillow reads.
        output: As in `generate`.
        memory: As in `plan`.
        host_memory: As in `plan`.
        spill: As in `plan`.
        overwrite: As in `generate`.
        also: As in `generate`.
        listener: As in `generate`.
        choices: Of a recipe: `size`, the long side or "WIDTHxHEIGHT" (default: both sides are
            doubled), `prompt`, `model`, `strengths`, `upscale_steps`, ...

    Returns:
        What was made.

    Raises:
        RequestError, RunError: As `generate`.
    """
    from hirescli.output.enlarging import enlarging
    from hirescli.recipe import Recipe

    completed = enlarging(Path(picture), [choices])
    others = {key: value for key, value in choices.items() if key != "size"}
    return generate(
        Recipe.from_fragments(others, completed),
        output,
        memory=memory,
        host_memory=host_memory,
        spill=spill,
        overwrite=overwrite,
        also=also,
        listener=listener,
    )


def _finished(target: Path, made: Plan) -> Result | None:
    """The output that stands there already with this recipe and all its files, if one does."""
    import os

    from hirescli.runs.directory import clear_finished, complete_naming, finished

    if not complete_naming(target, made.recipe):
        stands = os.path.exists(target) and finished(target, made.recipe)
        if not stands or _unfinished_also(made):
            return None
    from hirescli.cascade.run import Result
    from hirescli.output.places import sha256_of
    from hirescli.planning.machine import peak_rss_bytes

    clear_finished(target, made.recipe)
    also = tuple(each.path for each in made.also)
    return Result(target, sha256_of(target), 0.0, peak_rss_bytes(), made.recipe, also=also)


def _unfinished_also(made: Plan) -> tuple[AlsoFile, ...]:
    """The further files that do not stand yet."""
    from hirescli.runs.directory import finished

    return tuple(e for e in made.also if not finished(e.path, e.recipe(made.recipe)))
