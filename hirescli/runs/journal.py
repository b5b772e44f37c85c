"""The journal: what a run has finished, so that the same run in another process goes on from it.

`journal.jsonl` has a line for every fact, each with a digest of itself and of the line before, the
first of what the run is of: behind a line that is torn, damaged or of another run nothing counts.
Records and snapshots are files of their own, written before their line, which has their digest.

All that is remembered saves time and nothing else. So what cannot be read is made again, and
what cannot be written, on a full disk say, does not end the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

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
_MEASURED_BYTES = 10**6  # less says more of the disk's latency


class Journal:
    """The facts of a run directory.

    Args:
        folder: The run directory.
        warn: Told of what is damaged, and made again, and of what cannot be written.
        of: Tells what the run is of: facts of another one do not count.
        spill: Folder of the run's values on disk, if it is another.
        reads: Whether it is only read; otherwise this process has locked it.

    Attributes:
        seconds: Spent with writing and reading so far.
        bytes_per_second: Of writing to the disk, as measured.

    Raises:
        RunError: If the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        warn: Callable[[str], None],
        *,
        of: str = "",
        spill: Path | None = None,
        reads: bool = False,
    ) -> None:
        self.folder = folder
        self.warn = warn
        self.seconds = 0.0
        self.bytes_per_second = _BYTES_PER_SECOND
        self._folders = [folder] if spill is None else [folder, spill]
        self._reads = reads
        self._timing = False
        self._failed = False
        self._synced = time.monotonic()
        self._facts: dict[str, Fact] = {}
        self._sum = of
        try:
            self._read()
        except OSError as error:
            raise RunError(
                f"cannot read {error.filename or folder}: {error.strerror or error}"
            ) from error

    @property
    def empty(self) -> bool:
        """Whether nothing was finished yet."""
        return not self._facts

    @property
    def at_stake_seconds(self) -> float:
        """Since something was last brought to the disk."""
        return time.monotonic() - self._synced

    def note(self, key: str, *, synced: bool = True, **fact: Any) -> bool:
        """Write a fact under a key, in place of an earlier one.

        Args:
            key: What it is of.
            synced: Whether to wait until it is on the disk: the death of a process takes nothing
                that was written, that of the machine does.
            fact: What is noted.

        Returns:
            Whether a later process will know it.
        """
        self._facts[key] = fact
        with self._timed():
            return self._append(key, fact, synced)

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

    def _append(self, key: str, fact: Fact, synced: bool) -> bool:
        """Write a line, or nothing: behind half a line no other would count."""
        body = json.dumps({"key": key, **fact}, separators=(",", ":"))
        text = digest((self._sum + body).encode())
        line = f'{{"sum":"{text}","fact":{body}}}\n'.encode()
        try:
            with (self.folder / JOURNAL).open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    _write_whole(file, line)
                except OSError:
                    file.truncate(before)
                    raise
                self._sum = text
                if synced:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
        except OSError as error:
            return self._lost(error)
        return True

    def _lost(self, error: OSError) -> bool:
        """Something could not be written; said once, since a full disk stays full."""
        if not self._failed:
            self.warn(
                f"cannot write {error.filename or self.folder}: {error.strerror or error}; the "
                "run goes on, but if it ends early, more of it is made again"
            )
        self._failed = True
        return False

    def fact(self, key: str) -> Fact | None:
        """The latest fact of a key."""
        return self._facts.get(key)

    def stage(self, index: int) -> StageJournal:
        """Of one stage, its calls counted anew."""
        return StageJournal(self, f"stage-{index}.")

    def write(self, key: str, suffix: str, tree: Tree, *, synced: bool = True) -> bool:
        """Write a file of tensors, then its fact.

        Args:
            key: What it is of.
            suffix: Of the file's name.
            tree: What is written.
            synced: As in `note`.

        Returns:
            Whether it is there; otherwise what was there before is.
        """
        before = self.fact(key)
        count = 0 if before is None else before["count"] + 1
        name = f"{key}-{count}{suffix}"
        from hirescli.bands.blob import write_blob  # needs torch, which telling of runs does not

        with self._timed():
            began = time.monotonic()
            try:
                text, size_bytes = write_blob(self.folder / name, tree, synced=synced)
            except OSError as error:
                return self._lost(error)
            if synced and size_bytes > _MEASURED_BYTES:
                self.bytes_per_second = size_bytes / max(1e-3, time.monotonic() - began)
            noted = self.note(key, synced=synced, file=name, count=count, digest=text)
            if noted and before is not None:
                (self.folder / before["file"]).unlink(missing_ok=True)
        return noted

    def holds(self, key: str) -> bool:
        """Whether what `write` wrote under a key is there and whole; damage is told."""
        return self.read(key) is not None

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
            self.warn(f"{error}; it is made again")
            del self._facts[key]
            return None

    def drop(self, beginning: str, *, but: str = "") -> None:
        """Forget the files of all keys with a beginning, but of one key."""
        if self._forget(beginning, but):
            self.note("dropped", beginning=beginning, but=but)
        kept = (self.fact(but) or {}).get("file")
        for path in (path for folder in self._folders for path in folder.iterdir()):
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
                    if line.endswith(b"\n"):  # one that was being written has no end
                        self.warn(
                            f"{self.folder / JOURNAL} is damaged; what followed is made again"
                        )
                    break
                self._sum, fact = found
                if (key := fact.pop("key")) == "dropped":
                    self._forget(fact["beginning"], fact["but"])
                else:
                    self._facts[key] = fact
                whole += len(line)
            if not self._reads:
                file.truncate(whole)


def _write_whole(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


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

    def note(self, key: str, **fact: Any) -> bool:
        """As `Journal.note`, of this stage."""
        return self.journal.note(self.prefix + key, **fact)

    def fact(self, key: str) -> Fact | None:
        """As `Journal.fact`, of this stage."""
        return self.journal.fact(self.prefix + key)

    def drop(self, *, but: str = "") -> None:
        """Forget the files of the stage, but what the first call of a name gave."""
        self.journal.drop(self.prefix, but=self._result(but) if but else "")

    def holds(self, name: str) -> bool:
        """Whether there is a whole record of the first call of a name."""
        return self.journal.holds(self._result(name))

    def adopt(self, name: str, other: StageJournal) -> bool:
        """Take over what the first call of a name gave in another run; whether that is whole.

        Raises:
            RunError: If the disk is full or fails.
        """
        key = other._result(name)
        tree = other.journal.read(key)
        if tree is None:
            return False
        if not self.journal.write(self._result(name), RECORD_SUFFIX, tree):
            raise RunError(f"cannot write the latents into {self.journal.folder}; free some space")
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
        self._since = time.monotonic()
        self._failed = False

    @property
    def halvings(self) -> Mapping[tuple[int, int], int]:
        """The band height after memory ran out, by pass and progress within it."""
        return self._halvings

    def recall(self) -> Tree | None:
        """What the call gave."""
        return self._journal.read(self.prefix + _RESULT)

    def finish(self, tree: Tree) -> None:
        """Remember what it gave; the work of moments need not outlive the machine."""
        synced = self._journal.at_stake_seconds > _SYNCED_SECONDS
        self._journal.write(self.prefix + _RESULT, RECORD_SUFFIX, tree, synced=synced)
        if self._journal.fact(self.prefix + _UNDER_WAY) is not None:
            self._journal.drop(self.prefix, but=self.prefix + _RESULT)

    def latest(self) -> Tree | None:
        """The latest snapshot."""
        return self._journal.read(self.prefix + _UNDER_WAY)

    def due(self, count_bytes: int) -> bool:
        """Whether a snapshot of so many bytes costs little beside the work since the last."""
        if self._failed:  # writing gigabytes in vain again and again would cost more
            return False
        passed = time.monotonic() - self._since
        cost = count_bytes / self._journal.bytes_per_second
        return passed >= max(_LEAST_SECONDS, cost / _SHARE)

    def save(self, tree: Tree) -> bool:
        """Write a snapshot; whether it is there."""
        made = self._journal.write(self.prefix + _UNDER_WAY, SNAPSHOT_SUFFIX, tree)
        self._since, self._failed = time.monotonic(), not made
        return made

    def stale(self, reason: str) -> None:
        """Forget the latest snapshot, and say why."""
        self._journal.warn(f"{reason}; it is made again")
        self.drop()

    def drop(self) -> None:
        """Forget the latest snapshot."""
        self._journal.drop(self.prefix + _UNDER_WAY)

    def halved(self, number: int, progress: int, rows: int) -> None:
        """Remember a halving: the one fact that bits depend on.

        Raises:
            RunError: If it cannot be written.
        """
        self._halvings[number, progress] = rows
        rows_list = [[n, p, r] for (n, p), r in self._halvings.items()]
        if not self._journal.note(self.prefix + "halvings", rows=rows_list):
            raise RunError(
                f"memory and the disk of {self._journal.folder} are full; free some of either, "
                "and the same command goes on"
            )
