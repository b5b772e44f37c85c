"""`hires batch`: many images from a file of jobs, with the model loaded once."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hirescli.cli.options.making import MakingOptions
from hirescli.cli.options.option import option
from hirescli.cli.options.request import RequestOptions, takes
from hirescli.cli.streams import write_line
from hirescli.errors import ConfigError, HiresError, RequestError, RunError

if TYPE_CHECKING:
    from hirescli.events import Listener
    from hirescli.planning.plan import Plan, ValidatedPlan
    from hirescli.recipe import Recipe
    from hirescli.runs.batch import Made, PlannedJob, Planner, Results, Row, Status
    from hirescli.runs.jobs import Job, JobFile

_PANEL = "Batch"
_RESULTS = "results.jsonl"
_MOST_FAULTS = 100  # shown at once


@dataclass(frozen=True)
class SharedOptions(RequestOptions):
    """What jobs do not say themselves."""

    output: Annotated[
        str | None,
        option(
            "-o",
            "--output-dir",
            panel=_PANEL,
            metavar="DIR",
            text="Folder of the outputs; nothing is written outside it. Default: this folder.",
        ),
    ] = None


@dataclass(frozen=True)
class BatchOptions:
    """How the jobs are gone through."""

    output_template: Annotated[
        str,
        option(
            "--output-template",
            panel=_PANEL,
            metavar="TEXT",
            text="Names of outputs that their jobs do not name: text with {index}, {name}, "
            "{prompt}, {seed}, {width}, {height} or {hash} in it, such as {index:04d}-{prompt}; "
            "a job without a name is called by its prompt and seed. Names are made safe. "
            "Default: {name}.",
        ),
    ] = "{name}"
    skip_done: Annotated[
        bool,
        option(
            "--skip-done/--no-skip-done",
            panel=_PANEL,
            metavar=None,
            text="Whether an output that stands there already with the job's recipe is left; else "
            "it is made again and replaced. Default: it is left.",
        ),
    ] = True
    keep_going: Annotated[
        bool,
        option(
            "--keep-going",
            panel=_PANEL,
            metavar=None,
            text="Make the other jobs when one is wrong or fails. Default: a wrong job refuses "
            "the batch, and one that fails ends it.",
        ),
    ] = False
    shard: Annotated[
        str | None,
        option(
            "--shard",
            panel=_PANEL,
            metavar="I/N",
            text="Make only every Nth job, from the Ith: 1/4 to 4/4 are four machines' shares. "
            "Default: all jobs.",
        ),
    ] = None
    results: Annotated[
        Path | None,
        option(
            "--results",
            panel=_PANEL,
            metavar="FILE",
            text="File that gets a line of JSON for every job that ends; several processes may "
            "share it. Default: results.jsonl in the output folder.",
        ),
    ] = None


@takes(SharedOptions, BatchOptions, MakingOptions)
def batch(
    request: SharedOptions,
    options: BatchOptions,
    how: MakingOptions,
    jobs: Annotated[
        str,
        typer.Argument(
            metavar="JOBS",
            help="File of jobs: .jsonl (a partial recipe on each line), .csv (the header has the "
            "keys of a recipe), .toml (tables job, and one defaults), .txt (a prompt on each "
            "line, # begins a comment), or - for stdin.",
            show_default=False,
        ),
    ],
) -> int:
    """Make the images of many jobs; the model is loaded once.

    A job is a partial recipe; it may also have a `name`, for the template, and an `output`, a
    file in the output folder. What it does not say is said by the options; they win over the
    defaults of a TOML file, those over the preset, and that over --recipe. With several --seed,
    jobs without a seed are made once for each.

    All wrong jobs are named together before anything is made. The same command again makes what
    is missing and goes on with what was interrupted. Ends with 0 if all jobs are done, 3 if some
    failed, 1 if none succeeded, 2 if the request is wrong.
    """
    try:
        return _Batch(request, options, how, jobs).run()
    except HiresError as error:
        if how.json_:
            code = error.exit_code
            write_line(json.dumps({"event": "error", "message": str(error), "exit_code": code}))
        raise


@dataclass
class _Sorted:
    """The jobs of a batch by what is to be done with them."""

    todo: list[PlannedJob] = field(default_factory=list)
    finished: list[PlannedJob] = field(default_factory=list)
    wrong: list[tuple[Job, Path | None, HiresError]] = field(default_factory=list)


class _Batch:
    """One batch, from its options to its rows.

    Args:
        request: What jobs do not say.
        options: How they are gone through.
        how: Whether they are made, and what is said of it.
        name: Of the file of jobs.

    Raises:
        RequestError: If the request is wrong as a whole.
    """

    def __init__(
        self, request: SharedOptions, options: BatchOptions, how: MakingOptions, name: str
    ) -> None:
        from hirescli.planning.machine import Machine
        from hirescli.runs.batch import Planner
        from hirescli.runs.jobs import STDIN, Template, read_jobs, seeded, shard_of

        self._began = time.monotonic()
        self._options, self._how = options, how
        self._folder = _folder(request.output)
        self._template = Template(options.output_template)
        mine = shard_of(options.shard) if options.shard is not None else None
        if name == STDIN and request.prompt == STDIN:
            raise RequestError("stdin cannot be both the jobs and the prompt; give one of them")
        self._file = read_jobs(name, lambda: sys.stdin.buffer)
        self._results_path = options.results or self._folder / _RESULTS
        _check_results(self._results_path, name)
        every = seeded(self._file.jobs, _seeds(request))
        self._jobs = [job for job in every if mine is None or mine(job.index)]
        self._machine = Machine.detect(with_devices=True)
        self._planner = Planner(self._machine, **_limits(request))
        self._defaults = _Defaults(request, self._file, self._planner, self._template.suffix)
        self._rows: list[Row] = []
        self._made_before: Made | None = None
        # Outputs are compared over all shards: two machines shall not make one file.
        self._recipes = {job.index: self._recipe(job) for job in every}
        self._outputs = {job.index: self._output(job) for job in every}
        self._every = every

    def run(self) -> int:
        """Make what is to be made; returns the exit code."""
        if not self._jobs:
            _say(f"no job of {self._file.source} is in shard {self._options.shard}", "note")
            return 0
        found = self._sorted()
        if found.wrong and not self._options.keep_going:
            raise _refusal(self._file.source, [(job, error) for job, _, error in found.wrong])
        if self._how.dry_run:
            _show(found, as_json=self._how.json_)
            return _code([*found.todo, *found.finished], found.wrong)
        return self._make(found)

    # --- before anything is made ---------------------------------------------------------------

    def _recipe(self, job: Job) -> Recipe | HiresError:
        if job.faults:
            return ConfigError(job.where, job.faults)
        try:
            return self._defaults.recipe(job)
        except HiresError as error:
            return error

    def _output(self, job: Job) -> Path | HiresError:
        from hirescli.runs.jobs import check_inside, check_own_output

        asked = self._recipes[job.index]
        if isinstance(asked, HiresError):
            return asked
        try:
            if job.output is not None:
                check_own_output(job.output)
            output = self._folder / (job.output or self._template.name(job, asked))
            check_inside(output, self._folder)
        except HiresError as error:
            return error
        return output

    def _sorted(self) -> _Sorted:
        from hirescli.runs.jobs import same_outputs

        named = [(job, self._outputs[job.index]) for job in self._every]
        doubled = {
            job.index: fault
            for job, fault in same_outputs((j, o) for j, o in named if isinstance(o, Path))
        }
        found = _Sorted()
        for job in self._jobs:
            output = self._outputs[job.index]
            faults: list[HiresError] = []
            if job.index in doubled:
                faults.append(RequestError(doubled[job.index]))
            try:
                self._sort(job, output, found, only_check=bool(faults))
            except HiresError as error:
                faults.append(error)
            if faults:
                place = output if isinstance(output, Path) else None
                every = [text for fault in faults for text in _faults(fault)]
                only = faults[0] if len(faults) == 1 else ConfigError(job.where, every)
                found.wrong.append((job, place, only))
        self._check_disk(found)
        return found

    def _sort(
        self, job: Job, output: Path | HiresError, found: _Sorted, *, only_check: bool
    ) -> None:
        from hirescli.runs.batch import PlannedJob

        asked = self._recipes[job.index]
        if isinstance(output, HiresError):
            raise output
        assert not isinstance(asked, HiresError)
        plan = self._planner.plan(asked)
        ours = self._is_finished(output, plan)
        there = os.path.lexists(output)
        overwrite = self._how.overwrite or ours
        validated = plan.validate(self._machine, output, overwrite)
        done = ours and self._options.skip_done
        if not done and not self._how.restart:
            _refuse_conflict(output, plan)
        if not only_check:
            where = found.finished if done else found.todo
            where.append(PlannedJob(job, validated, there))

    def _is_finished(self, output: Path, plan: Plan) -> bool:
        from hirescli.runs.batch import Made
        from hirescli.runs.directory import complete_naming, finished

        if complete_naming(output, plan.recipe):
            return True
        if not os.path.exists(output):
            return False
        if finished(output, plan.recipe):
            return True
        if plan.recipe.metadata:
            return False
        if self._made_before is None:
            self._made_before = Made(self._results_path)
        return self._made_before.holds(output, plan.recipe)

    def _check_disk(self, found: _Sorted) -> None:
        from hirescli.planning.plan import check_disk_together

        check_disk_together([each.validated for each in found.todo], self._machine)

    # --- making --------------------------------------------------------------------------------

    def _make(self, found: _Sorted) -> int:
        from hirescli.runs.batch import Results, exit_code

        results = Results(self._results_path)
        self._note_before(found, results)
        if self._how.restart:
            from hirescli.cli.generate import drop_leftovers

            drop_leftovers([each.validated for each in found.todo])
        try:
            if found.todo:
                self._run(found.todo, results)
        finally:
            self._summary()
        return exit_code(self._rows)

    def _note_before(self, found: _Sorted, results: Results) -> None:
        """Tell and record what was finished before, and what cannot be made."""
        from hirescli.runs.batch import Row

        for each in found.finished:
            _clear_finished(each)
        rows = [Row.of(each, "skipped") for each in found.finished]
        for job, output, error in found.wrong:
            said = None if output is None else str(output)
            reason = "; ".join(_faults(error))
            rows.append(Row(job.index, job.line, said, "failed", error=reason))
        rows.sort(key=lambda row: row.index)
        results.add(rows)
        if found.finished:
            _say(f"{_jobs(len(found.finished))} finished before; nothing to do for them", "note")
        for row in rows:
            self._tell(row)

    def _run(self, todo: Sequence[PlannedJob], results: Results) -> None:
        from hirescli.cli.progress import listening
        from hirescli.events import Warned

        with listening(as_json=self._how.json_, quiet=self._how.quiet) as listener:
            plans = [each.validated.plan for each in todo]
            for message in dict.fromkeys(w for plan in plans for w in plan.warnings):
                listener(Warned(message))
            for row in self._made(todo, results, listener):
                with _paused(listener):
                    self._tell(row)

    def _made(
        self, todo: Sequence[PlannedJob], results: Results, listener: Listener
    ) -> Iterator[Row]:
        from hirescli.cli.imports import importing

        with importing():  # after all that can be refused is
            from hirescli.cascade.run import Runner
        from hirescli.runs.batch import Row, by_model, make_jobs, refused

        def start(plans: Sequence[ValidatedPlan]) -> Runner:
            how = self._how
            return Runner(plans, listener, keep_runs=how.keep_run, previews=how.preview, wait=True)

        runner, wrong = refused(todo, start)
        if wrong and not self._options.keep_going:
            raise _refusal(self._file.source, [(each.job, error) for each, error in wrong])
        rows = [Row.of(each, "failed", error=str(error)) for each, error in wrong]
        results.add(rows)
        yield from rows
        if runner is None:
            return
        out = {row.index for row in rows}
        yield from make_jobs(
            by_model([each for each in todo if each.job.index not in out]),
            runner,
            results,
            keep_going=self._options.keep_going,
            skip_done=self._options.skip_done,
        )

    # --- telling -------------------------------------------------------------------------------

    def _tell(self, row: Row) -> None:
        self._rows.append(row)
        if self._how.json_:
            write_line(json.dumps({"event": "job", **vars(row)}))
        elif row.status in ("done", "skipped"):
            write_line(str(row.output))
        if row.status in ("failed", "busy"):
            place = f"job {row.index}" if row.line is None else f"line {row.line}"
            kind = "error" if row.status == "failed" else "note"
            _say(f"{self._file.source}, {place}: {row.error}", kind)

    def _summary(self) -> None:
        counts = {status: self._count(status) for status in ("done", "skipped", "busy", "failed")}
        counts["not made"] = len(self._jobs) - sum(counts.values())
        seconds = round(time.monotonic() - self._began, 3)
        if self._how.json_:
            told = {"jobs": len(self._jobs), **counts, "seconds": seconds}
            told["not_made"] = told.pop("not made")
            write_line(json.dumps({"event": "result", **told, "results": str(self._results_path)}))
        elif not self._how.quiet or counts["failed"]:
            from hirescli.units import format_seconds

            parts = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
            took = format_seconds(seconds)
            _say(f"{_jobs(len(self._jobs))} in {took}: {parts}; see {self._results_path}", "note")

    def _count(self, status: Status | str) -> int:
        return sum(row.status == status for row in self._rows)


class _Defaults:
    """What all jobs have in common: recipe file, preset, the file's defaults, options.

    Raises:
        RequestError: If they are wrong by themselves.
    """

    def __init__(
        self, request: SharedOptions, file: JobFile, planner: Planner, suffix: str
    ) -> None:
        from hirescli.cli.request import preset_file, prompt_from_stdin, recipe_file
        from hirescli.recipe import fragment_faults

        if request.prompt == "-":
            request = replace(request, prompt=prompt_from_stdin())
        self._recipe_files = recipe_file(request.recipe)
        options = request.fragment()
        self._bits = {} if request.bits is None else {"bits": request.bits}
        self._on_paper = request.print_ is not None and request.format is None
        faults = [f"{key}: {fault}" for key, fault in fragment_faults(options)]
        if faults:
            raise ConfigError("the options", faults)
        self._files = [*preset_file(request.preset), file.defaults, options]
        self._planner = planner
        self._suffix = suffix
        self._source = file.source

    def recipe(self, job: Job) -> Recipe:
        """What a job asks for.

        Raises:
            RequestError: If it is no recipe.
        """
        from hirescli.cli.request import fitting, of_its_size
        from hirescli.planning.formats import format_for, format_on_paper, layout_for
        from hirescli.recipe import Recipe

        own = dict(job.fragment)
        named = job.output or ("x" + self._suffix if self._suffix else None)
        path = None if named is None else Path(named)
        if self._on_paper and own.get("format") is None:
            own["format"] = format_on_paper(path)
        if path is not None or own.get("format") is not None:
            own["format"] = format_for(path, own.get("format"))
            if (layout := layout_for(path, own.get("tile_layout"))) is not None:
                own["tile_layout"] = layout
        files = [*self._recipe_files, *self._files]
        sized, own = self._sized(files, own)
        fragments = [sized, *fitting(files, self._bits | own), own]
        if self._recipe_files:
            fragments[1] = of_its_size(fragments[1], fragments[2:])
        return Recipe.from_fragments(*fragments, source=job.where)

    def _sized(
        self, files: Sequence[Mapping[str, Any]], own: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What comes before the fragments, and the job's own, so that a size is said."""
        from hirescli.recipe import Recipe

        given = self._files[1:]  # an old recipe with a source has its size
        source = next((f["source"] for f in (own, *given) if f.get("source") is not None), None)
        if source is not None:
            from hirescli.output.enlarging import enlarging

            path = source if isinstance(source, str) else source["path"]
            completed = enlarging(Path(path), [*files, own])
            return {}, {k: v for k, v in own.items() if k != "size"} | completed
        said: dict[str, Any] = {}
        for fragment in (*files, own):
            said |= {key: value for key, value in fragment.items() if value is not None}
        if any(key in said for key in ("size", "width_px", "height_px")):
            return {}, own
        model = said.get("model", Recipe.model_fields["model"].default)
        return {"size": self._planner.card(model, said.get("revision")).default_px}, own


def _folder(text: str | None) -> Path:
    if text == "":
        raise RequestError("output folder is empty; give one with -o, or leave it out")
    folder = Path(text or ".")
    if not os.path.isdir(folder):
        what = "is no folder" if os.path.lexists(folder) else "does not exist; make it"
        raise RequestError(f"output folder {folder} {what}, or choose another with -o")
    return folder


def _check_results(path: Path, jobs: str) -> None:
    """Refuse results where the jobs stand, or where a folder is."""
    if os.path.isdir(path):
        raise RequestError(f"results {path} is a folder; name a file with --results")
    same = False
    with contextlib.suppress(OSError, ValueError):
        same = os.path.samefile(path, jobs)
    if same:
        raise RequestError(f"results {path} is the file of jobs; name another with --results")


def _seeds(request: SharedOptions) -> Sequence[int]:
    seeds = request.seed or []
    doubled = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if doubled:
        raise RequestError(f"seed {doubled[0]} is given twice; give each seed once")
    return seeds


def _limits(request: SharedOptions) -> dict[str, Any]:
    from hirescli.units import parse_bytes

    def read(text: str | None) -> int | None:
        return None if text is None else parse_bytes(text)

    return {
        "memory_bytes": read(request.memory),
        "host_memory_bytes": read(request.host_memory),
        "spill": request.spill,
    }


def _refuse_conflict(output: Path, plan: Plan) -> None:
    """What a run directory says without torch; the runner looks at the rest."""
    if not os.path.lexists(output.with_name(output.name + ".run")):
        return
    from hirescli.runs.directory import refuse_conflict

    refuse_conflict(output, plan.recipe, wait=True)


def _clear_finished(each: PlannedJob) -> None:
    from hirescli.runs.directory import clear_finished

    clear_finished(each.validated.output, each.validated.recipe)


def _refusal(source: str, wrong: Sequence[tuple[Job, HiresError]]) -> HiresError:
    """One error of all that is wrong, with the place of each."""
    faults = [f"{job.where}: {fault}" for job, error in wrong for fault in _faults(error)]
    more = len(faults) - _MOST_FAULTS
    shown = [*faults[:_MOST_FAULTS], f"and {more} more"] if more > 0 else faults
    refusal = ConfigError(source, shown)
    if all(isinstance(error, RequestError) for _, error in wrong):
        return refusal
    return RunError(str(refusal))


def _faults(error: HiresError) -> tuple[str, ...]:
    return error.faults if isinstance(error, ConfigError) else (str(error),)


def _show(found: _Sorted, *, as_json: bool) -> None:
    """Print what would be done with each job."""
    rows = [(each, "to make") for each in found.todo]
    rows += [(each, "done") for each in found.finished]
    rows.sort(key=lambda row: row[0].job.index)
    if as_json:
        for each, state in rows:
            write_line(json.dumps(_planned_dict(each, state)))
        for job, output, error in found.wrong:
            said = None if output is None else str(output)
            wrong = {"index": job.index, "line": job.line, "output": said, "state": "wrong"}
            write_line(json.dumps(wrong | {"error": "; ".join(_faults(error))}))
        return
    from hirescli.cli.render import console, table
    from hirescli.units import format_bytes, format_seconds

    shown = table(
        "job", "output", "size", "seed", "memory", "time", "state", right=("job", "time")
    )
    for each, state in rows:
        plan = each.validated.plan
        shown.add_row(
            str(each.job.index), str(each.validated.output),
            f"{plan.recipe.width_px}x{plan.recipe.height_px}", str(plan.recipe.seed),
            format_bytes(plan.peak_memory_bytes), format_seconds(plan.seconds), state,
        )  # fmt: skip
    console().print(shown)
    for job, _, error in found.wrong:
        _say(f"{job.where}: {'; '.join(_faults(error))}")
    seconds = sum(each.validated.plan.seconds for each in found.todo)
    console().print(f"{_jobs(len(found.todo))} to make, about {format_seconds(seconds)}")


def _planned_dict(each: PlannedJob, state: str) -> dict[str, Any]:
    plan = each.validated.plan
    return {
        "index": each.job.index,
        "line": each.job.line,
        "output": str(each.validated.output),
        "state": state,
        "seconds": plan.seconds,
        "peak_memory_bytes": plan.peak_memory_bytes,
        "disk_bytes": plan.disk_bytes,
        "recipe_hash": plan.recipe.hash,
        "recipe": plan.recipe.model_dump(mode="json"),
    }


def _code(good: Sequence[object], wrong: Sequence[object]) -> int:
    if not wrong:
        return 0
    return 3 if good else 1


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _paused(listener: Any) -> contextlib.AbstractContextManager[Any]:
    """A time in which paths can be printed: no bars are drawn."""
    made: contextlib.AbstractContextManager[Any] = getattr(
        listener, "paused", contextlib.nullcontext
    )()
    return made


def _say(message: str, kind: str = "error") -> None:
    from hirescli.cli.app import say

    say(message, kind=kind)
