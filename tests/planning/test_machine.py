from pathlib import Path

from hirescli.planning.machine import (
    Device,
    Machine,
    default_budget,
    free_bytes,
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


def test_devices_are_read_from_the_drivers_tool() -> None:
    answer = "NVIDIA Big, 40960\n\nNo devices were found\nOdd, Name, 1024\nbroken, [N/A]\n"
    assert parse_devices(answer) == (
        Device("NVIDIA Big", 40960 * 2**20),
        Device("Odd, Name", 2**30),
    )
