"""What this machine has: cores, memory, disk, GPUs. No torch."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# Part of the installed memory that a run may use unless told otherwise. Never what happens to
# be free: the same command must plan the same on a busy and on an idle machine.
BUDGET_FRACTION = 0.75
# Estimates to weigh moving a value against computing it again, not promises.
DISK_BYTES_PER_SECOND = 0.5e9
BUS_BYTES_PER_SECOND = 20e9  # between host and device
_CGROUPS = Path("/sys/fs/cgroup")  # where Linux says how much memory a group may use
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CPU_FACTS = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Device:
    """A GPU as its driver names it."""

    name: str
    memory_bytes: int


def free_bytes(path: Path) -> int:
    """Free bytes of the file system that holds `path` or its nearest existing parent."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


@dataclass(frozen=True)
class Machine:
    """What planning needs to know of a machine.

    Attributes:
        cores: Cores that this process may use.
        memory_bytes: Installed memory, or the container's limit if that is less.
        devices: GPUs; empty unless asked for in `detect`.
        fast_bfloat16: Whether its CPU multiplies bfloat16 itself; one that has to convert takes
            longer for it than for float32.
        disk_free_bytes: Tells the free bytes of the file system that holds a path.
    """

    cores: int
    memory_bytes: int
    devices: tuple[Device, ...] = ()
    fast_bfloat16: bool = True
    disk_free_bytes: Callable[[Path], int] = field(default=free_bytes, repr=False)

    @classmethod
    def detect(cls, *, with_devices: bool = False) -> Machine:
        """The machine this process runs on; asking for GPUs starts `nvidia-smi`."""
        return cls(
            cores=_usable_cores(),
            memory_bytes=_installed_bytes(),
            devices=cuda_devices() if with_devices else (),
            fast_bfloat16=_has_fast_bfloat16(),
        )


def _has_fast_bfloat16(facts: Path = _CPU_FACTS) -> bool:
    """Whether the system's `facts` name such instructions: of x86 or ARM on Linux."""
    if sys.platform == "darwin":
        return False  # torch has no kernels of this kind there
    try:
        words = set(facts.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return not words.isdisjoint(_BFLOAT16_FLAGS)


def default_budget(machine: Machine) -> int:
    """Bytes a run may use when nothing else is said: a fraction of the installed memory."""
    return int(machine.memory_bytes * BUDGET_FRACTION)


def cuda_devices() -> tuple[Device, ...]:
    """The GPUs that `nvidia-smi` lists; none when it is missing, slow or fails."""
    try:
        answer = subprocess.run(
            _NVIDIA_SMI, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_devices(answer)


def parse_devices(answer: str) -> tuple[Device, ...]:
    """Read the lines "name, MiB" of `nvidia-smi`; lines of another form are left out."""
    devices = []
    for line in answer.splitlines():
        name, _, mebibytes = line.rpartition(",")
        if name and mebibytes.strip().isdecimal():
            devices.append(Device(name.strip(), int(mebibytes) * 2**20))
    return tuple(devices)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _installed_bytes() -> int:
    return min([int(psutil.virtual_memory().total), *memory_limits(_OWN_CGROUPS, _CGROUPS)])


def memory_limits(own: Path, root: Path) -> list[int]:
    """Limits in bytes of the control groups of this process and of all groups above them.

    Args:
        own: Lists the groups, as /proc/self/cgroup does: "0::/group" (version 2) or
            "4:memory:/group" (version 1).
        root: Where the groups lie, as /sys/fs/cgroup.
    """
    found = []
    for line in _lines(own) or ["0::/", "0:memory:/"]:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            folder, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = folder / group.strip("/")
        for place in (inner, *(p for p in inner.parents if p == folder or folder in p.parents)):
            found += [int(text) for text in _lines(place / name) if text.isdecimal()]  # or "max"
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, as the system says.

    Read from /proc where there is one: what `getrusage` says begins with the memory of the
    process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
