"""Batches: plans that share what they can, results in one file, and jobs made one by one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from hirescli.errors import BusyError, HiresError, RequestError, RunError
from hirescli.models.registry import card_of, find
from hirescli.output.inputs import identified
from hirescli.output.places import sha256_of
from hirescli.planning.card import Card
from hirescli.planning.machine import Machine
from hirescli.planning.plan import Plan, ValidatedPlan, make_plan
from hirescli.recipe import Recipe
from hirescli.runs.jobs import Job, place

if TYPE_CHECKING:
    from hirescli.cascade.run import Result

T = TypeVar("T")
Status = Literal["done", "skipped", "busy", "failed", "interrupted"]


@dataclass(frozen=True)
class PlannedJob:
    """A job that may be made.

    Attributes:
        job: As it is written.
        validated: Its plan and its output.
        was_there: Whether a file stood there already when it was planned.
    """

    job: Job
    validated: ValidatedPlan
    was_there: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the results: what became of a job.

    Attributes:
        index: The job's number, from 1.
        line: Where it stands in its file, from 1.
        output: Its file; None: it has no name yet.
        status: "done" now, "skipped" since it was done before, "busy" since another process is
            making it, "failed" or "interrupted".
        sha256: Of a file that was made.
        seconds: It took.
        error: Why it was not made.
        recipe_hash: Of the resolved recipe; None: it has none.
        time: When, in UTC, as ISO 8601.
    """

    index: int
    line: int | None
    output: str | None
    status: Status
    sha256: str | None = None
    seconds: float = 0.0
    error: str | None = None
    recipe_hash: str | None = None
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    @property
    def where(self) -> str:
        """The job's place, for messages."""
        return place(self.index, self.line)

    @classmethod
    def of(cls, planned: PlannedJob, status: Status, **more: Any) -> Row:
        """The row of a planned job."""
        job, validated = planned.job, planned.validated
        output, recipe_hash = str(validated.output), validated.recipe.hash
        return cls(job.index, job.line, output, status, recipe_hash=recipe_hash, **more)


class Results:
    """A file of rows as JSON lines that several processes may append to at once.

    Args:
        path: It is made if it is missing; None: nothing is written.

    Raises:
        RequestError: If it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            self._append(b"")

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows, all or none of them, and bring them to the disk.

        Raises:
            RunError: If the disk is full or fails.
        """
        if self._path is None or not rows:
            return
        lines = "".join(json.dumps(asdict(row), ensure_ascii=True) + "\n" for row in rows)
        try:
            self._append(lines.encode())
        except RequestError as error:
            raise RunError(str(error)) from error

    def _append(self, data: bytes) -> None:
        import fcntl

        try:
            # O_RDWR, since the last byte is looked at; O_NONBLOCK, lest a pipe makes us wait.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self._path or os.devnull, flags, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _append_whole(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RequestError(
                f"results {self._path} cannot be written ({error.strerror or error}); choose "
                "another file with --results"
            ) from error


def _append_whole(descriptor: int, data: bytes) -> None:
    """Write everything behind a whole last line, or nothing; the file is locked."""
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.write(descriptor, data)
        return
    if data and facts.st_size and os.pread(descriptor, 1, facts.st_size - 1) != b"\n":
        data = b"\n" + data  # behind what another program has left there
    if data and os.write(descriptor, data) < len(data):
        os.ftruncate(descriptor, facts.st_size)
        raise OSError(0, "the disk is full")
    os.fsync(descriptor)


class Made:
    """What results say was made: of pictures without metadata nothing else does.

    Args:
        path: Of the results; it need not be there. Lines that are none of ours are passed over.
    """

    def __init__(self, path: Path) -> None:
        self._done: set[tuple[Any, Any]] = set()
        with contextlib.suppress(OSError), path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                    row = json.loads(line)
                    if row["status"] == "done":
                        self._done.add((row["recipe_hash"], row["sha256"]))

    def holds(self, output: Path, recipe: Recipe) -> bool:
        """Whether an output, wherever it lies now, is to the byte what was made of a recipe."""
        if not any(made == recipe.hash for made, _ in self._done):
            return False
        return (recipe.hash, sha256_of(output)) in self._done


class Planner:
    """Plans many recipes; what they have in common is found out once.

    A plan says nothing of prompt and seed but that they are the recipe's, so jobs that differ in
    no more share one, and the files that they name are read once.

    Args:
        machine: Where they shall be made.
        limits: What `make_plan` takes beside the machine.
    """

    def __init__(self, machine: Machine, **limits: Any) -> None:
        self._machine = machine
        self._limits = limits
        self._known: dict[Hashable, Any] = {}

    def card(self, model: str, revision: str | None) -> Card:
        """The card of a model without an adapter of its own.

        Raises:
            RequestError: If it is not there.
        """
        key = ("card", model, revision)
        return self._once(key, lambda: find(model, revision, weights=False).card)

    def plan(self, recipe: Recipe) -> Plan:
        """The plan of a recipe, as `make_plan` makes it.

        Raises:
            RequestError: If a file is missing that it names, or it cannot be planned.
        """
        like = recipe.model_copy(update={"prompt": "", "seed": 0})
        plan = self._once(("plan", like), lambda: self._plan(recipe))
        own = {"prompt": recipe.prompt, "seed": recipe.seed}
        return replace(
            plan,
            recipe=plan.recipe.model_copy(update=own),
            warnings=_own_warnings(plan, recipe.prompt),
        )

    def _plan(self, recipe: Recipe) -> Plan:
        recipe = identified(recipe)
        return make_plan(recipe, card_of(recipe), machine=self._machine, **self._limits)

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives or raises, asked once for each key."""
        if key not in self._known:
            try:
                self._known[key] = make()
            except HiresError as error:
                self._known[key] = error
        made = self._known[key]
        if isinstance(made, HiresError):
            raise made
        return made  # type: ignore[no-any-return]


def _own_warnings(plan: Plan, prompt: str) -> tuple[str, ...]:
    """The warnings of a plan, with those of another prompt in place of its own."""
    of_plan = plan.card.foreign_prompt_warning(plan.recipe.prompt)
    own = plan.card.foreign_prompt_warning(prompt)
    others = tuple(warning for warning in plan.warnings if warning != of_plan)
    return others if own is None else (own, *others)


class Runs(Protocol):
    """Makes images of plans, as `hirescli.cascade.run.Runner` does."""

    def make(self, validated: ValidatedPlan, /) -> Result:
        """Make one."""


def by_model(planned: Sequence[PlannedJob]) -> list[PlannedJob]:
    """The jobs with those of one model behind each other, else in their order."""
    first: dict[Hashable, int] = {}
    return sorted(planned, key=lambda each: first.setdefault(_model(each), len(first)))


def _model(planned: PlannedJob) -> Hashable:
    """What has to be loaded."""
    recipe = planned.validated.recipe
    linear = any(stage.attention == "linear" for stage in planned.validated.plan.stages)
    return (
        recipe.model, recipe.revision, recipe.adapter, recipe.loras, recipe.device, recipe.dtype,
        recipe.vae_dtype, linear,
    )  # fmt: skip


def refused(
    planned: Sequence[PlannedJob], start: Callable[[Sequence[ValidatedPlan]], Runs]
) -> tuple[Runs | None, list[tuple[PlannedJob, HiresError]]]:
    """Start a runner for jobs; those that it would refuse alone are told, and left out.

    Args:
        planned: The jobs.
        start: Makes the runner; loads no model.

    Returns:
        The runner of all that it does not refuse, None if there are none; and the refused.

    Raises:
        HiresError: If all are refused, though none alone is.
    """
    wrong: list[tuple[PlannedJob, HiresError]] = []
    try:
        return start([each.validated for each in planned]), wrong
    except HiresError as error:
        together = error
    for each in planned:
        try:
            start([each.validated])
        except HiresError as error:
            wrong.append((each, error))
    if not wrong:
        raise together
    out = {id(each) for each, _ in wrong}
    rest = [each.validated for each in planned if id(each) not in out]
    return start(rest) if rest else None, wrong


def make_jobs(
    planned: Sequence[PlannedJob],
    runner: Runs,
    results: Results,
    *,
    keep_going: bool,
    skip_done: bool,
) -> Iterator[Row]:
    """Make jobs one by one; each row is in the results before it is given.

    What another process is making waits until the others are made, and is then looked at again.

    Args:
        planned: What is made, in order.
        runner: Makes it.
        results: What became of each; also of one that is interrupted.
        keep_going: Whether the others are made behind one that failed.
        skip_done: Whether what another process has finished meanwhile is left.

    Raises:
        RunError: If the results cannot be written.
        Exception: What is no error of ours, without `keep_going`; its row is written.
    """
    from hirescli.runs.directory import clear_finished, finished

    waiting: list[PlannedJob] = []
    last_look = zip(waiting, itertools.repeat(True))  # grows until it is reached
    for each, last in itertools.chain(zip(planned, itertools.repeat(False)), last_look):
        validated, began = each.validated, time.monotonic()
        if skip_done and not each.was_there and finished(validated.output, validated.recipe):
            clear_finished(validated.output, validated.recipe)
            row = Row.of(each, "skipped")
        else:
            row = _made(each, runner, results, began, keep_going=keep_going)
            if row.status == "busy" and not last:
                waiting.append(each)
                continue
        results.add([row])
        yield row
        if row.status == "failed" and not keep_going:
            return


def _made(
    each: PlannedJob, runner: Runs, results: Results, began: float, *, keep_going: bool
) -> Row:
    def ended(status: Status, error: str) -> Row:
        return Row.of(each, status, seconds=_since(began), error=error)

    try:
        result = runner.make(each.validated)
    except BusyError as error:
        return ended("busy", str(error))
    except HiresError as error:
        return ended("failed", str(error))
    except Exception as error:
        row = ended("failed", f"{type(error).__name__}: {error}")
        if keep_going:
            return row
        results.add([row])
        raise
    except BaseException as error:  # a signal: the same batch goes on from here
        with contextlib.suppress(RunError):
            results.add([ended("interrupted", f"interrupted by {error}")])
        raise
    done = Row.of(each, "done", sha256=result.sha256, seconds=_since(began))
    return replace(done, recipe_hash=result.recipe.hash)  # with the weights that were found


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def exit_code(rows: Sequence[Row]) -> int:
    """0 if nothing failed, 3 if something, 1 if everything."""
    failed = sum(row.status == "failed" for row in rows)
    if not failed:
        return 0
    return 1 if failed == len(rows) else 3
