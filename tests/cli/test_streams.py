"""Signals, closed streams and terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

WAITING = ("plan", "-p", "-")  # waits for its prompt: a command that lasts, without a model


def started(hires_process: Callable, **options: object) -> subprocess.Popen[bytes]:
    process = hires_process(*WAITING, **options)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not _catches(process.pid, signal.SIGTERM):
        time.sleep(0.02)
    return process


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler by now (Linux tells)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_signals_end_cleanly(hires_process: Callable, number: int, code: int) -> None:
    process = started(hires_process)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert b"interrupted by" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "-p", "a sea", "--restart"], "this goes on: hires generate -p 'a sea'"),
        (["batch", "-", "--no-skip-done"], "this, given the same input, goes on: hires batch -"),
        (["plan", "-p", "sea"], "the same command starts again"),
        (["view", "dunes.tif"], "the viewer has ended"),
    ],
)
def test_what_is_said_to_go_on_does_not_start_over(words: list[str], told: str) -> None:
    from hirescli.cli.app import _what_next

    assert _what_next(words) == told


def test_background_jobs_ignore_sigint_and_heed_sigterm(hires_process: Callable) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = started(hires_process, preexec_fn=ignore)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


@pytest.mark.parametrize(
    "words", [["presets", "list"], ["--help"], ["plan", "-p", "sea", "--json"]], ids=" ".join
)
def test_closed_stdout_is_quiet(hires_process: Callable, words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = hires_process(*words, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, b"")


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-"])
def test_missing_streams(hires_process: Callable, closing: str) -> None:
    command = f'"{sys.executable}" -m hirescli plan -p sea {closing}'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, timeout=30, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("no_color", [True, False])
def test_control_characters_only_on_terminals(hires_process: Callable, no_color: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)}
    if no_color:
        environment["NO_COLOR"] = "1"
    process = hires_process("presets", "list", stdout=theirs, env=environment)
    os.close(theirs)
    process.communicate(timeout=20)
    shown = os.read(ours, 100_000)
    os.close(ours)
    assert process.returncode == 0
    assert b"poster-16k" in shown
    if no_color:
        assert b"\x1b[3" not in shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("words", [["plan", "-p", "sea"], ["info", "a.json"], ["presets", "list"]])
def test_full_disk_behind_stdout(
    hires_process: Callable, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "a.json").write_text('{"prompt": "sea", "width_px": 64, "height_px": 64}')
    with open("/dev/full", "w") as full:
        process = hires_process(*words, stdout=full, cwd=tmp_path)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"No space left" in err
    assert err.count(b"\n") == 1


def test_narrow_encoding(hires_process: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"prompt": "a 🌊", "width_px": 64, "height_px": 64}')
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for words in (["info", "a.json"], ["plan", "--recipe", "a.json", "-o", "🌊.tif"]):
        process = hires_process(*words, cwd=tmp_path, env=environment)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, b"")
        assert b"\\U0001f30a" in out


def test_odd_bytes_pass_through_and_the_rest_is_shown() -> None:
    from hirescli.cli.streams import prepare_streams

    prepare_streams()
    assert "a\udcff🌊".encode("ascii", errors="hires") == b"a\xff\\U0001f30a"


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["stderr", "both"])
def test_reader_of_progress_who_leaves(
    hires_process: Callable, tmp_path: Path, closed: str
) -> None:
    """As `hires generate ... 2>&1 | head -1` does."""
    words = ("generate", "-p", "sea", "--size", 128, "--steps", 2, "-o", "a.tif")
    reader, writer = os.pipe()
    both = {"stdout": writer} if closed == "both" else {}
    process = hires_process(*words, cwd=tmp_path, stderr=writer, **both)
    os.close(writer)
    os.close(reader)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / "a.tif").is_file()
