"""The journal: what a run has finished, so that the same run in another process goes on from it.

`journal.jsonl` has a line for every fact, each with a digest of itself and of the line before. A
line is written when what it speaks of is on the disk, so a line that is there is true; behind
one that is torn or damaged nothing counts. Records and snapshots are files of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hirescli.digest import digest
from hirescli.errors import RunError

JOURNAL = "journal.jsonl"
RECORD_SUFFIX = ".record"
SNAPSHOT_SUFFIX = ".snapshot"
VALUE_SUFFIX = ".value"
_RESULT = "result"
_UNDER_WAY = "under-way"

SUFFIXES = (RECORD_SUFFIX, SNAPSHOT_SUFFIX, VALUE_SUFFIX)

Tree = Any
Fact = dict[str, Any]

# A snapshot is due when writing it takes no more than this share of the time since the last, and
# at least so many seconds are at stake.
_SHARE = 0.01
_LEAST_SECONDS = 10.0
_SYNCED_SECONDS = 5.0  # of work that a record saves, for it to be worth waiting for the disk
_BYTES_PER_SECOND = 3e8  # of a disk, until it was measured


class Journal:
    """The facts of a run directory.

    Args:
        folder: The run directory.
        warn: Told of records that are damaged, and made again.
        reads: Whether it is only read; otherwise this process has locked it.

    Attributes:
        seconds: Spent with writing and reading so far.

    Raises:
        RunError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], *, reads: bool = False) -> None:
        self.folder = folder
        self._reads = reads
        self._warn = warn
        self.seconds = 0.0
        self._timing = False
        self._facts: dict[str, Fact] = {}
        self._sum = ""
        try:
            self._read()
        except OSError as error:
            raise _cannot_write(folder, error) from error

    @property
    def empty(self) -> bool:
        """Whether nothing was finished yet."""
        return not self._facts

    def note(self, key: str, *, synced: bool = True, **fact: Any) -> None:
        """Write a fact under a key, in place of an earlier one.

        Args:
            key: What it is of.
            synced: Whether to wait until it is on the disk: the death of a process takes nothing
                that was written, that of the machine does.
            fact: What is noted.

        Raises:
            RunError: If the disk is full or fails.
        """
        with self._timed():
            self._append(key, fact, synced)
        self._facts[key] = fact

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self._timing:  # within something that is timed
            yield
            return
        began, self._timing = time.monotonic(), True
        try:
            yield
        finally:
            self.seconds, self._timing = self.seconds + time.monotonic() - began, False

    def _append(self, key: str, fact: Fact, synced: bool) -> None:
        body = json.dumps({"key": key, **fact}, separators=(",", ":"))
        self._sum = digest((self._sum + body).encode())
        line = f'{{"sum":"{self._sum}","fact":{body}}}\n'.encode()
        try:
            with (self.folder / JOURNAL).open("ab", buffering=0) as file:
                view = memoryview(line)
                while view:
                    view = view[file.write(view) :]
                if synced:
                    os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def fact(self, key: str) -> Fact | None:
        """The latest fact of a key."""
        return self._facts.get(key)

    def stage(self, index: int) -> StageJournal:
        """Of one stage, its calls counted anew."""
        return StageJournal(self, f"stage-{index}.")

    def write(self, key: str, suffix: str, tree: Tree, *, synced: bool = True) -> int:
        """Write a file of tensors, then its fact; returns its bytes.

        Args:
            key: What it is of.
            suffix: Of the file's name.
            tree: What is written.
            synced: As in `note`.

        Raises:
            RunError: If the disk is full or fails.
        """
        before = self.fact(key)
        count = 0 if before is None else before["count"] + 1
        name = f"{key}-{count}{suffix}"
        from hirescli.bands.blob import write_blob  # needs torch, which telling of runs does not

        with self._timed():
            try:
                text, size_bytes = write_blob(self.folder / name, tree, synced=synced)
            except OSError as error:
                raise _cannot_write(self.folder, error) from error
            self.note(key, synced=synced, file=name, count=count, digest=text)
            if before is not None:
                (self.folder / before["file"]).unlink(missing_ok=True)
        return size_bytes

    def read(self, key: str) -> Tree | None:
        """What `write` wrote under a key; None if nothing, or nothing whole."""
        fact = self.fact(key)
        if fact is None or fact.get("file") is None:
            return None
        from hirescli.bands.blob import DamagedError, read_blob

        try:
            with self._timed():
                return read_blob(self.folder / fact["file"], fact["digest"])
        except DamagedError as error:
            self._warn(f"{error}; it is made again")
            return None

    def drop(self, beginning: str, *, but: str = "") -> None:
        """Forget the files of all keys with a beginning, but of one key."""
        if self._forget(beginning, but):
            self.note("dropped", beginning=beginning, but=but)
        kept = (self.fact(but) or {}).get("file")
        for path in self.folder.iterdir():
            if path.name.startswith(beginning) and path.suffix in SUFFIXES and path.name != kept:
                path.unlink(missing_ok=True)

    def _forget(self, beginning: str, but: str) -> bool:
        """Drop the facts that speak of files; whether there were any."""
        keys = [key for key in self._facts if key.startswith(beginning) and key != but]
        gone = [key for key in keys if "file" in self._facts[key]]
        for key in gone:
            del self._facts[key]
        return bool(gone)

    def _read(self) -> None:
        """Take the facts of whole lines, and cut off what follows them."""
        whole = 0
        with (self.folder / JOURNAL).open("rb" if self._reads else "a+b") as file:
            file.seek(0)
            for line in file:
                found = _fact_of(line, self._sum)
                if found is None:
                    break
                self._sum, fact = found
                if (key := fact.pop("key")) == "dropped":
                    self._forget(fact["beginning"], fact["but"])
                else:
                    self._facts[key] = fact
                whole += len(line)
            if not self._reads:
                file.truncate(whole)


def _fact_of(line: bytes, before: str) -> tuple[str, Fact] | None:
    """The digest and the fact of a line; None if it is torn or damaged."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(line)
        body = json.dumps(said["fact"], separators=(",", ":"))
        if line.endswith(b"\n") and said["sum"] == digest((before + body).encode()):
            return said["sum"], said["fact"]
    return None


@dataclass
class StageJournal:
    """What a journal knows of one stage; the engine's `Journal`."""

    journal: Journal
    prefix: str
    _counts: dict[str, int] = field(default_factory=dict)

    def call(self, name: str) -> CallRecord:
        """The record of the next call of that name."""
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        return CallRecord(self.journal, f"{self.prefix}{name}-{number}.")

    def note(self, key: str, **fact: Any) -> None:
        """As `Journal.note`, of this stage."""
        self.journal.note(self.prefix + key, **fact)

    def fact(self, key: str) -> Fact | None:
        """As `Journal.fact`, of this stage."""
        return self.journal.fact(self.prefix + key)

    def drop(self, *, but: str = "") -> None:
        """Forget the files of the stage, but what the first call of a name gave."""
        self.journal.drop(self.prefix, but=self._result(but) if but else "")

    def knows(self, name: str) -> bool:
        """Whether there is a record of the first call of a name."""
        return self.journal.fact(self._result(name)) is not None

    def adopt(self, name: str, other: StageJournal) -> bool:
        """Take over what the first call of a name gave in another run; whether that is known.

        Raises:
            RunError: If the disk is full or fails.
        """
        fact = other.journal.fact(other._result(name))
        if fact is None:
            return False
        try:
            shutil.copyfile(
                other.journal.folder / fact["file"], self.journal.folder / fact["file"]
            )
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _cannot_write(self.journal.folder, error) from error
        self.journal.note(self._result(name), **fact)
        return True

    def _result(self, name: str) -> str:
        return f"{self.prefix}{name}-0.{_RESULT}"


class CallRecord:
    """One call: its snapshots while it is under way, and what it gave.

    Args:
        journal: Of the run.
        prefix: Begins the names of its files and keys.

    Attributes:
        halvings: See `hirescli.bands.snapshot.Snapshots`.
    """

    def __init__(self, journal: Journal, prefix: str) -> None:
        self._journal = journal
        self.prefix = prefix
        said = journal.fact(prefix + "halvings") or {"rows": []}
        self._halvings = {(number, progress): rows for number, progress, rows in said["rows"]}
        self._began = self._since = time.monotonic()
        self._bytes_per_second = _BYTES_PER_SECOND

    @property
    def halvings(self) -> Mapping[tuple[int, int], int]:
        """The band height after memory ran out, by pass and progress within it."""
        return self._halvings

    def recall(self) -> Tree | None:
        """What the call gave."""
        return self._journal.read(self.prefix + _RESULT)

    def finish(self, tree: Tree) -> None:
        """Remember what it gave; what was quick need not outlive the machine."""
        synced = time.monotonic() - self._began > _SYNCED_SECONDS
        self._journal.write(self.prefix + _RESULT, RECORD_SUFFIX, tree, synced=synced)
        if self._journal.fact(self.prefix + _UNDER_WAY) is not None:
            self._journal.drop(self.prefix, but=self.prefix + _RESULT)

    def latest(self) -> Tree | None:
        """The latest snapshot."""
        return self._journal.read(self.prefix + _UNDER_WAY)

    def due(self, count_bytes: int) -> bool:
        """Whether a snapshot of so many bytes costs little beside the work since the last."""
        passed = time.monotonic() - self._since
        return passed >= max(_LEAST_SECONDS, count_bytes / self._bytes_per_second / _SHARE)

    def save(self, tree: Tree) -> None:
        """Write a snapshot."""
        began = time.monotonic()
        size_bytes = self._journal.write(self.prefix + _UNDER_WAY, SNAPSHOT_SUFFIX, tree)
        self._since = time.monotonic()
        self._bytes_per_second = size_bytes / max(1e-3, self._since - began)

    def drop(self) -> None:
        """Forget the latest snapshot."""
        self._journal.drop(self.prefix + _UNDER_WAY)

    def halved(self, number: int, progress: int, rows: int) -> None:
        """Remember a halving."""
        self._halvings[number, progress] = rows
        rows_list = [[n, p, r] for (n, p), r in self._halvings.items()]
        self._journal.note(self.prefix + "halvings", rows=rows_list)


def _cannot_write(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {error.filename or folder}: {error.strerror or error}; what is finished "
        "is kept, and the same command goes on"
    )
