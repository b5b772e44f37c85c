"""`hires models`: tables, JSON, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import sdxl_folder
from typer.main import get_command

from hirescli.cli.models import app
from hirescli.errors import RequestError

Run = Callable[..., str]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def call(*args: object) -> str:
        get_command(app).main([str(arg) for arg in args], standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_the_list_says_where_weights_are(run: Run, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    (snapshot / "snapshots" / "abc").mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "refs" / "main").write_text("abc")
    rows = {row["name"]: row for row in json.loads(run("list", "--json"))}
    assert {name: row["weights"] for name, row in rows.items()} == {
        "builtin": "installed", "sd15": "in the cache", "sd21": "on the hub",
        "sdxl": "on the hub", "flux-dev": "on the hub", "flux-schnell": "on the hub",
        "sd35-large": "on the hub", "sd35-medium": "on the hub",
    }  # fmt: skip
    assert rows["sdxl"]["hub_id"] == "stabilityai/stable-diffusion-xl-base-1.0"
    shown = run("list")
    for name, row in rows.items():
        (line,) = [line for line in shown.splitlines() if line.startswith(name)]
        assert str(row["native_px"]) in line
        assert row["weights"] in line


def test_info_of_a_card_looks_for_nothing(run: Run) -> None:
    facts = json.loads(run("info", "sdxl", "--json"))
    assert facts["kind"] == "shipped"
    assert facts["path"] is facts["commit"] is None
    assert facts["parameters"]["unet"] == 2_567_463_684
    assert facts["linear_attention"] == "Yuanshi/LinFusion-XL"
    shown = run("info", "sdxl")
    assert "CreativeML Open RAIL++-M" in shown
    assert "watermark" in shown


def test_info_of_a_folder_has_its_own_facts(run: Run, tmp_path: Path) -> None:
    folder = sdxl_folder(tmp_path / "mine")
    facts = json.loads(run("info", folder, "--json"))
    assert (facts["kind"], facts["path"]) == ("folder", str(folder))
    assert (facts["family"], facts["native_px"]) == ("sdxl", 128)
    assert facts["licence"].startswith("unknown")


def test_names_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    folder = sdxl_folder(tmp_path / "mine\x1b[31m")
    for shown in (run("info", folder), run("info", folder, "--json")):
        assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["info", "nonsense"], "`sdxl`"),
        (["pull", "builtin"], "on this machine already"),
        (["pull", "sdxl"], r"model_index\.json is missing"),
        (["info", "builtin", "--revision", "7"], 'revision "7"'),
    ],
)
def test_refused(args: list[str], said: str, run: Run) -> None:
    with pytest.raises(RequestError, match=said):
        run(*args)


def test_no_torch_to_list_and_show(tmp_path: Path) -> None:
    folder = sdxl_folder(tmp_path / "mine")
    code = (
        "import sys; from typer.main import get_command; from hirescli.cli.models import app\n"
        "for args in (['list'], ['info', 'sdxl'], ['info', sys.argv[1]]):\n"
        "    get_command(app).main(args, standalone_mode=False)\n"
        "print({'torch', 'diffusers', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "set()\n")
