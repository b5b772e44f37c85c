import sys
from pathlib import Path

import pytest

from hirescli.planning.machine import (
    Device,
    Machine,
    _has_fast_bfloat16,
    default_budget,
    free_bytes,
    memory_limits,
    parse_devices,
)


def test_this_machine_has_something() -> None:
    machine = Machine.detect()
    assert machine.cores >= 1
    assert machine.memory_bytes > 10**8
    assert machine.devices == ()


def test_the_budget_is_a_stated_fraction_of_what_is_installed() -> None:
    assert default_budget(Machine(cores=2, memory_bytes=8 * 10**9)) == 6 * 10**9


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_limits_of_control_groups(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    inner = root / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (root / "a" / "memory.max").write_text("3000\n")
    (tmp_path / "memory.max").write_text("1\n")  # above the root: no group
    own.write_text("0::/a/b\n")
    assert memory_limits(own, root) == [3000]
    (root / "memory" / "c").mkdir(parents=True)
    (root / "memory" / "c" / "memory.limit_in_bytes").write_text("2000\n")
    own.write_text("5:cpu:/c\n4:memory:/c\n")
    assert memory_limits(own, root) == [2000]
    (root / "memory.max").write_text("4000")
    assert memory_limits(tmp_path / "none", root) == [4000]


def test_devices_are_read_from_the_drivers_tool() -> None:
    answer = "NVIDIA Big, 40960\n\nNo devices were found\nOdd, Name, 1024\nbroken, [N/A]\n"
    assert parse_devices(answer) == (
        Device("NVIDIA Big", 40960 * 2**20),
        Device("Odd, Name", 2**30),
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="torch has no such kernels there")
@pytest.mark.parametrize(
    ("line", "fast"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("Features\t: fp asimd i8mm", False),
    ],
)
def test_bfloat16_is_in_the_facts_of_the_cpu(tmp_path: Path, line: str, fast: bool) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor\t: 0\nmodel name\t: a CPU\n{line}\n")
    assert _has_fast_bfloat16(facts) is fast
    assert not _has_fast_bfloat16(tmp_path / "none")
