"""`hires view` as a process: it says where, serves, and ends; wrong requests are named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hirescli.output.finalise import finalise
from hirescli.output.spool import Spool
from hirescli.recipe import Recipe


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    spool, path = tmp_path / "spool.tif", tmp_path / "dunes.tif"
    with Spool.create(spool, width_px=200, height_px=100) as made:
        made.write_rows(0, np.full((100, 200, 3), 90, np.uint8))
    finalise(spool, path, recipe=Recipe.from_fragments({"prompt": "dunes", "size": "200x100"}))
    return path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_a_signal(
    hires_process: Callable, picture: Path, tmp_path: Path, number: int, code: int
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment = {**environment, "TMPDIR": str(copies)}
    process = hires_process("view", picture, "--port", 0, "--no-open", "--json", env=environment)
    try:
        told = json.loads(process.stdout.readline())
        assert told["event"] == "serving"
        with urllib.request.urlopen(told["url"] + "state.json", timeout=10) as answer:
            state = json.load(answer)
        assert state["pictures"][0]["name"] == "dunes.tif"
        assert len(list(copies.iterdir())) == 1
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == code
    assert b"Traceback" not in err
    assert list(copies.iterdir()) == []


def test_the_usual_port_may_be_taken(hires_process: Callable, picture: Path) -> None:
    first = hires_process("view", picture, "--no-open", "--json")
    second = hires_process("view", picture, "--no-open")
    try:
        addresses = [json.loads(first.stdout.readline())["url"]]
        addresses.append(second.stdout.readline().decode().strip())
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert all(address.startswith("http://127.0.0.1:") for address in addresses)
    assert addresses[0] != addresses[1]


def test_a_port_that_is_taken(hires: Callable, hires_process: Callable, picture: Path) -> None:
    process = hires_process("view", picture, "--port", 0, "--no-open", "--json")
    try:
        port = json.loads(process.stdout.readline())["url"].split(":")[-1].strip("/")
        ran = hires("view", picture, "--port", port)
    finally:
        process.kill()
        process.communicate()
    assert ran.code == 2
    assert port in ran.err
    assert "--port 0" in ran.err


@pytest.mark.parametrize("words", [["--port", "-1"], ["--port", "70000"], ["--port", "x"]])
def test_ports_that_are_none(hires: Callable, picture: Path, words: list[str]) -> None:
    assert hires("view", picture, *words).code == 2


def test_what_cannot_be_shown_is_named(hires: Callable, picture: Path) -> None:
    cut = picture.with_name("cut.tif")
    cut.write_bytes(picture.read_bytes()[:-100])
    Path("text.tif").write_text("no picture")
    Path("empty.png").touch()
    Path("folder").mkdir()
    Path("folder.tif.run").mkdir()
    for named in (cut, "missing.tif", "text.tif", "empty.png", "folder", "folder.tif.run"):
        ran = hires("view", named, "--port", 0)
        assert ran.code == 2, named
        assert Path(named).name in ran.err
        assert "Traceback" not in ran.err
    assert hires("view", picture, picture, picture).code == 2
    assert hires("view").code == 2


def test_no_torch_is_loaded(picture: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hirescli.viewer.shown import Shown;"
        "shown = Shown(Path(sys.argv[1]), Path(sys.argv[2])); shown.look();"
        "assert shown.state()['version'];"
        "print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(picture), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
