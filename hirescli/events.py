"""What the core says while it works. The core emits events; listeners show them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class RunStarted:
    """A run begins; `plan` is the validated plan (untyped here: events import no planning)."""

    plan: object


@dataclass(frozen=True)
class WentOn:
    """An earlier run of the image is gone on with, at stage `index` (from 0) of `count`.

    With `index == count` all stages were finished.
    """

    index: int
    count: int


@dataclass(frozen=True)
class StageStarted:
    """Stage `index` (from 0) of `count` begins."""

    index: int
    count: int
    kind: Literal["base", "upscale"]
    width_px: int
    height_px: int
    steps: int


@dataclass(frozen=True)
class StepDone:
    """Denoising step `step` (from 1) of `steps` is done and took `seconds`."""

    stage_index: int
    step: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class RowsEncoded:
    """The first `rows` of `rows_total` pixel rows are encoded."""

    stage_index: int
    rows: int
    rows_total: int


@dataclass(frozen=True)
class RowsDecoded:
    """The first `rows` of `rows_total` pixel rows are decoded."""

    stage_index: int
    rows: int
    rows_total: int


@dataclass(frozen=True)
class PassDone:
    """Pass `number` of `total` of a call in bands is done.

    `call` names the component that was called, "" for what is computed between calls.
    """

    call: str
    number: int
    total: int


@dataclass(frozen=True)
class BandHalved:
    """Memory ran out in pass `number`; it goes on in bands of `rows` rows."""

    number: int
    rows: int


@dataclass(frozen=True)
class StageDone:
    """Stage `index` ended after `seconds`."""

    index: int
    seconds: float


@dataclass(frozen=True)
class PreviewWritten:
    """A small picture of the finished stage `index` stands."""

    index: int
    path: Path


@dataclass(frozen=True)
class Finalising:
    """The spool is being made into the output file."""

    path: Path
    format: str


@dataclass(frozen=True)
class FileWritten:
    """The output stands under its final name."""

    path: Path
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Warned:
    """Something the user should know; the run goes on."""

    message: str


@dataclass(frozen=True)
class RunDone:
    """One image is finished; the peak is that of the whole process, from the system.

    `journal_seconds` of all seconds were spent with the journal.
    """

    path: Path
    seconds: float
    peak_rss_bytes: int
    journal_seconds: float = 0.0


Event = (
    RunStarted
    | WentOn
    | StageStarted
    | StepDone
    | RowsEncoded
    | RowsDecoded
    | PassDone
    | BandHalved
    | StageDone
    | PreviewWritten
    | Finalising
    | FileWritten
    | Warned
    | RunDone
)
Listener = Callable[[Event], None]


def event_dict(event: Event) -> dict[str, Any]:
    """The event as a dictionary for JSON lines: its name in snake case, then its fields.

    The plan of `RunStarted` is left out: a listener that wants it has `Plan.to_json`.
    """
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    fields = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
    fields.pop("plan", None)
    return {"event": name} | {
        key: str(value) if isinstance(value, Path) else value for key, value in fields.items()
    }
