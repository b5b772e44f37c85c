"""What all jobs of a batch have in common: recipe file, preset, the file's defaults, options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hirescli.cli.batching.options import SharedOptions
from hirescli.cli.request import (
    fitting,
    merged,
    of_its_size,
    preset_file,
    prompt_from_stdin,
    recipe_file,
)
from hirescli.errors import ConfigError
from hirescli.planning.formats import format_for, format_on_paper, layout_for
from hirescli.recipe import Recipe, fragment_faults
from hirescli.runs.batch import Planner
from hirescli.runs.jobs import STDIN, Job


class Defaults:
    """What a job does not say itself.

    Args:
        request: The options, with names of recipe file and preset.
        of_file: The defaults of the file of jobs.
        planner: Knows the sizes that models have by themselves.
        suffix: Of the names that are made by the template; "" if it has none.

    Raises:
        RequestError: If they are wrong by themselves.
    """

    def __init__(
        self, request: SharedOptions, of_file: Mapping[str, Any], planner: Planner, *, suffix: str
    ) -> None:
        if request.prompt == STDIN:
            request = replace(request, prompt=prompt_from_stdin())
        self._recipe_files = recipe_file(request.recipe)
        options = request.fragment()
        self._bits = {} if request.bits is None else {"bits": request.bits}
        self._on_paper = request.print_ is not None and request.format is None
        faults = [f"{key}: {fault}" for key, fault in fragment_faults(options)]
        if faults:
            raise ConfigError("the options", faults)
        self._files = [*preset_file(request.preset), of_file, options]
        self._planner = planner
        self._suffix = suffix

    def recipe(self, job: Job) -> Recipe:
        """What a job asks for.

        Raises:
            RequestError: If it is no recipe.
        """
        files = [*self._recipe_files, *self._files]
        sized, own = self._sized(files, self._with_format(job))
        fragments = [sized, *fitting(files, self._bits | own), own]
        if self._recipe_files:
            fragments[1] = of_its_size(fragments[1], fragments[2:])
        return Recipe.from_fragments(*fragments, source=job.where)

    def _with_format(self, job: Job) -> dict[str, Any]:
        """The job's own choices; a suffix of its output says a format as `format` does."""
        own = dict(job.fragment)
        named = job.output or ("x" + self._suffix if self._suffix else None)
        path = None if named is None else Path(named)
        if self._on_paper and own.get("format") is None:
            own["format"] = format_on_paper(path)
        if path is not None or own.get("format") is not None:
            own["format"] = format_for(path, own.get("format"))
            if (layout := layout_for(path, own.get("tile_layout"))) is not None:
                own["tile_layout"] = layout
        return own

    def _sized(
        self, files: Sequence[Mapping[str, Any]], own: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What comes before the fragments, and the job's own, so that a size is said."""
        given = (own, *reversed(self._files))  # not a recipe file: one with a source has its size
        source = next((f["source"] for f in given if f.get("source") is not None), None)
        if source is not None:
            from hirescli.output.enlarging import enlarging

            path = source if isinstance(source, str) else source["path"]
            completed = enlarging(Path(path), [*files, own])
            return {}, {k: v for k, v in own.items() if k != "size"} | completed
        said = merged([*files, own])
        if any(key in said for key in ("size", "width_px", "height_px")):
            return {}, own
        model = said.get("model", Recipe.model_fields["model"].default)
        return {"size": self._planner.card(model, said.get("revision")).default_px}, own
