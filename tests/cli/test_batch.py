"""`hires batch`: jobs over defaults, all faults together, and only what is missing is made."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

TINY = ("--size", 64, "--steps", 1)


def plans(ran: Any) -> list[dict[str, Any]]:
    """What a dry run says of each job."""
    assert ran.code == 0, ran.err
    return [json.loads(line) for line in ran.out.splitlines()]


def planned(hires: Callable, jobs: str, *words: object, name: str = "jobs.jsonl") -> list[dict]:
    Path(name).write_text(jobs)
    return plans(hires("batch", name, "--dry-run", "--json", *words))


def rows(path: str | Path = "results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def statuses(path: str | Path = "results.jsonl") -> list[tuple[int, str]]:
    return [(row["index"], row["status"]) for row in rows(path)]


def damaged_picture() -> None:
    """Beside a whole picture one that is whole, too, until its pixels are read."""
    Image.effect_noise((64, 64), 50).save("whole.png")
    data = bytearray(Path("whole.png").read_bytes())
    data[1000:1100] = bytes(100)
    Path("bad.png").write_bytes(data)


def test_every_option_says_its_default() -> None:
    from hirescli.cli.app import app

    for parameter in get_command(app).commands["batch"].params:
        plain = ("jobs", "dry_run", "overwrite", "restart", "keep_run", "json_", "quiet")
        if parameter.name not in plain:
            assert "Default:" in parameter.help, parameter.name


def test_the_jobs_win_over_options_over_file_over_preset_over_recipe(hires: Callable) -> None:
    Path("old.json").write_text(
        '{"prompt": "sea", "width_px": 64, "height_px": 64, "seed": 4, "dpi": 72, "steps": 9}'
    )
    Path("own.toml").write_text("[recipe]\ndpi = 100\nsteps = 8\n")
    jobs = "[defaults]\nsteps = 7\ndpi = 150\n[[job]]\n[[job]]\nprompt='stone'\nsteps=5\n"
    words = ("--recipe", "old.json", "--preset", "own.toml", "--dpi", 200)
    first, second = (
        plan["recipe"] for plan in planned(hires, jobs, *words, "--seed", 2, name="jobs.toml")
    )
    assert (first["prompt"], first["dpi"], first["steps"], first["seed"]) == ("sea", 200, 7, 2)
    assert (second["prompt"], second["steps"], second["dpi"]) == ("stone", 5, 200)


def test_a_size_of_the_job_replaces_the_others(hires: Callable) -> None:
    jobs = '{"prompt": "sea"}\n{"prompt": "b", "width_px": 64, "height_px": 128}\n'
    sizes = [
        (plan["recipe"]["width_px"], plan["recipe"]["height_px"])
        for plan in planned(hires, jobs, "--size", 72)
    ]
    assert sizes == [(72, 72), (64, 128)]
    (native,) = planned(hires, '{"prompt": "sea"}')
    assert native["recipe"]["width_px"] >= 128


def test_outputs(hires: Callable) -> None:
    jobs = (
        '{"prompt": "sea"}\n{"prompt": "sea", "name": "../../x", "format": "jpeg"}\n'
        '{"prompt": "sea", "output": "own.png"}\n{"prompt": "sea", "name": "a.tif", "seed": 5}\n'
    )
    Path("out").mkdir()
    outputs = [plan["output"] for plan in planned(hires, jobs, "-o", "out", *TINY)]
    assert outputs == ["out/sea-seed0.tif", "out/x.jpg", "out/own.png", "out/a.tif"]
    words = ("--output-template", "{index:03d}_{name}_{seed}_{width}x{height}.png", *TINY)
    outputs = [
        plan["output"]
        for plan in planned(hires, '{"prompt": "sea"}\n{"prompt":"b","name":"-rf"}', *words)
    ]
    assert outputs == ["001_sea-seed0_0_64x64.png", "002_rf_0_64x64.png"]


def test_print_files(hires: Callable) -> None:
    def made(jobs: str, *words: object) -> list[tuple[str, str]]:
        return [(p["output"], p["recipe"]["format"]) for p in planned(hires, jobs, *words)]

    sea = '{"prompt": "sea"}'
    template = ("--output-template", "{prompt}.print.tif")
    assert made(sea, *template, *TINY) == [("sea.print.tif", "print")]
    own = '{"prompt": "sea", "format": "print"}'
    assert made(own, "--output-template", "{prompt}", *TINY) == [("sea.print.tif", "print")]
    paper = ("--print", "3x3cm@100", "--steps", 1)
    jobs = f'{sea}\n{{"prompt": "b", "output": "b.tif"}}\n{{"prompt": "c", "output": "c.png"}}\n'
    jobs += '{"prompt": "d", "format": "tiff"}'
    assert made(jobs, *paper) == [
        ("sea-seed0.print.tif", "print"), ("b.tif", "print"), ("c.png", "png"),
        ("d-seed0.tif", "tiff"),
    ]  # fmt: skip
    assert made(sea, *paper, "--output-template", "{prompt}.tif") == [("sea.tif", "print")]
    assert made(sea, *paper, "--format", "tiff") == [("sea-seed0.tif", "tiff")]


def test_seeds_make_each_prompt_several_times(hires: Callable) -> None:
    made = planned(hires, "sea\nstone\n", "-s", 1, "-s", 2, *TINY, name="jobs.txt")
    assert [plan["output"] for plan in made] == [
        "sea-seed1.tif", "sea-seed2.tif", "stone-seed1.tif", "stone-seed2.tif",
    ]  # fmt: skip


def test_what_served_another_format_is_dropped(hires: Callable) -> None:
    jobs = '{"prompt": "sea", "output": "a.png"}\n{"prompt": "sea", "output": "a.tif"}\n'
    png, tiff = planned(hires, jobs, "--tile", 256, *TINY)
    assert (png["recipe"]["tile_px"], tiff["recipe"]["tile_px"]) == (512, 256)


@pytest.mark.parametrize(("shard", "indices"), [("1/2", [1, 3]), ("2/2", [2]), ("1/1", [1, 2, 3])])
def test_shards(hires: Callable, shard: str, indices: list[int]) -> None:
    made = planned(hires, "a sea\nb sea\nc sea\n", "--shard", shard, *TINY, name="jobs.txt")
    assert [plan["index"] for plan in made] == indices


def test_a_shard_without_jobs(hires: Callable) -> None:
    ran = hires("batch", "-", "--shard", "3/3", *TINY, stdin=b"sea\n")
    assert (ran.code, ran.out) == (0, "")
    assert "no job of stdin is in shard 3/3" in ran.err


def test_pictures_are_enlarged(hires: Callable) -> None:
    Image.new("RGB", (128, 64), "red").save("small.png")
    jobs = '{"source": "small.png"}\n{"source": {"path": "small.png"}, "size": 192, "name": "s"}\n'
    made = [plan["recipe"] for plan in planned(hires, jobs)]
    assert [(each["width_px"], each["height_px"]) for each in made] == [(256, 128), (192, 96)]

    jobs = '[defaults]\nsource = "small.png"\n[[job]]\nseed = 1\n'
    (made_by_default,) = planned(hires, jobs, name="jobs.toml")
    assert made_by_default["recipe"]["width_px"] == 256


def test_all_faults_of_all_jobs_together(hires: Callable) -> None:
    jobs = [
        {"prompt": "sea", "sise": 3},
        {"prompt": "sea", "size": 63, "name": "two"},
        {"prompt": "sea", "output": "../x.tif"},
        {"prompt": "sea", "output": "/etc/x.tif"},
        {"prompt": "sea", "output": "x" * 300 + ".tif"},
        {"prompt": "sea", "output": "a.bmp"},
        {"prompt": "sea", "output": "a.png", "format": "jpeg"},
        {"prompt": ""},
        {"prompt": "sea", "model": "nope", "name": "nine"},
        {"prompt": "sea", "init_image": "missing.png", "name": "ten"},
        {"prompt": "sea", "output": "theirs.tif"},
        {"prompt": "sea", "output": "one.tif"},
        {"prompt": "stone", "output": "ONE.tif", "size": 65},
        {"prompt": "good"},
    ]
    Path("theirs.tif").write_text("mine")
    text = "\n".join(map(json.dumps, jobs)) + "\n{broken\n"
    ran = hires("batch", "-", *TINY, "--json", stdin=text.encode())
    assert ran.code == 2
    assert "Traceback" not in ran.err
    for number, words in {
        1: "sise: is no choice", 2: "63x63", 3: "../x.tif", 4: "/etc/x.tif", 5: "304 bytes",
        6: ".bmp", 7: "png by its suffix", 8: "prompt", 9: '"nope" is not known',
        10: "missing.png", 11: "theirs.tif exists", 13: "ONE.tif is the output of line 12",
        15: "no JSON",
    }.items():  # fmt: skip
        told = [line for line in ran.err.splitlines() if f" line {number}: " in line]
        assert len(told) == 1 + (number == 13)
        assert words in told[0]
    assert " line 12:" not in ran.err
    assert " line 14:" not in ran.err
    error = json.loads(ran.out)
    assert (error["event"], error["exit_code"]) == ("error", 2)
    assert sorted(path.name for path in Path().iterdir()) == ["theirs.tif"]


def test_many_faults_are_not_all_shown(hires: Callable) -> None:
    ran = hires("batch", "-", *TINY, stdin=b'{"prompt": "sea", "steps": 0}\n' * 150)
    assert "and 50 more" in ran.err
    assert len(ran.err.splitlines()) < 110


def test_all_bad_jobs_fail_when_it_keeps_going(hires: Callable) -> None:
    ran = hires("batch", "-", "--keep-going", *TINY, stdin=b'{broken\n{"prompt": ""}\n')
    assert (ran.code, ran.out) == (1, "")
    assert statuses() == [(1, "failed"), (2, "failed")]
    assert rows()[0]["output"] is None
    assert "line 1: " in ran.err
    assert "2 failed" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.txt"], "missing.txt: cannot be read"),
        (["jobs.txt", "-o", "missing"], "folder missing does not exist"),
        (["jobs.txt", "-o", "jobs.txt"], "is no folder"),
        (["jobs.txt", "-o", ""], "empty"),
        (["jobs.txt", "--shard", "5/4"], '"5/4"'),
        (["jobs.txt", "--output-template", "../{name}"], "output folder"),
        (["jobs.txt", "--output-template", "{nope}"], "{nope} is unknown"),
        (["jobs.txt", "--output-template", "one"], "one.tif is the output of line 1"),
        (["jobs.txt", "--results", "jobs.txt"], "is the file of jobs"),
        (["jobs.txt", "--results", "."], "is a folder"),
        (["jobs.txt", "--results", "missing/r.jsonl"], "--results"),
        (["jobs.txt", "-s", "1", "-s", "1"], "seed 1 is given twice"),
        (["jobs.txt", "--steps", "0"], "the options: steps"),
        (["jobs.txt", "--memory", "x"], '"x" is no amount'),
        (["-", "-p", "-"], "both the jobs and the prompt"),
        (["empty.txt"], "holds no job"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_requests(hires: Callable, words: list[str], message: str) -> None:
    Path("jobs.txt").write_text("sea\nstone\n")
    Path("empty.txt").write_text("")
    ran = hires("batch", *words, "--size", 64)
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert sorted(path.name for path in Path().iterdir()) == ["empty.txt", "jobs.txt"]


def test_symlinks_out_of_the_folder_are_refused(hires: Callable, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    Path("link").symlink_to(tmp_path / "outside")
    ran = hires("batch", "-", *TINY, stdin=b'{"prompt": "sea", "output": "link/x.tif"}')
    assert ran.code == 2
    assert "by a symlink" in ran.err


def test_dry_run_makes_nothing(hires: Callable) -> None:
    ran = hires("batch", "-", *TINY, "--dry-run", stdin=b"sea\nstone\n")
    assert ran.code == 0
    assert "sea-seed0.tif" in ran.out
    assert "2 jobs to make" in ran.out
    ran = hires("batch", "-", "--dry-run", "--keep-going", *TINY, stdin=b'{"prompt":"a"}\n{')
    assert ran.code == 3
    assert "line 2" in ran.err
    assert list(Path().iterdir()) == []


def test_a_left_run_of_another_recipe_is_refused(hires: Callable) -> None:
    left = Path("sea-seed0.tif.run")
    left.mkdir()
    (left / "recipe.json").write_text('{"prompt": "stone", "width_px": 64, "height_px": 64}')
    ran = hires("batch", "-", *TINY, stdin=b"sea\n")
    assert ran.code == 2
    assert "line 1: " in ran.err
    assert "--restart" in ran.err


def test_planning_many_jobs_is_quick(hires: Callable) -> None:
    """A thousand jobs of one size are planned as one."""
    import time

    text = "".join(f"sea {number}\n" for number in range(1000)).encode()
    hires("batch", "-", *TINY, "--dry-run", "--json", stdin=b"sea\n")
    began = time.process_time()
    ran = hires("batch", "-", *TINY, "--dry-run", "--json", stdin=text)
    assert len(ran.out.splitlines()) == 1000
    assert time.process_time() - began < 20


# --- with the model ------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_fails_the_others_finish_and_again_makes_what_is_missing(hires: Callable) -> None:
    damaged_picture()
    jobs = '{"prompt": "sea"}\n{"prompt": "sea", "init_image": "bad.png", "name": "bad"}\n'
    jobs += '{"prompt": "stone"}\n'
    Path("jobs.jsonl").write_text(jobs)
    words = ("batch", "jobs.jsonl", *TINY, "--keep-going")
    ran = hires(*words)
    assert ran.code == 3, ran.err
    assert ran.out.split() == ["sea-seed0.tif", "stone-seed0.tif"]
    assert "jobs.jsonl, line 2: " in ran.err
    assert "2 done, 1 failed" in ran.err
    assert statuses() == [(1, "done"), (2, "failed"), (3, "done")]
    assert "bad.png" in rows()[1]["error"]
    assert not list(Path().glob("*.run"))
    before = Path("sea-seed0.tif").stat().st_mtime_ns

    Path("jobs.jsonl").write_text(jobs.replace("bad.png", "whole.png"))
    again = hires(*words, "--json")
    assert again.code == 0, again.err
    told = [json.loads(line) for line in again.out.splitlines()]
    assert [told[-1][key] for key in ("event", "jobs", "done", "skipped", "failed")] == [
        "result", 3, 1, 2, 0,
    ]  # fmt: skip
    job_lines = [each["index"] for each in told if each["event"] == "job"]
    assert job_lines == [1, 3, 2]
    assert Path("sea-seed0.tif").stat().st_mtime_ns == before
    assert statuses()[3:] == [(1, "skipped"), (3, "skipped"), (2, "done")]

    import hashlib

    done = rows()[-1]
    assert done["sha256"] == hashlib.sha256(Path("bad.tif").read_bytes()).hexdigest()
    assert done["line"] == 2
    ran = hires("batch", "jobs.jsonl", *TINY, "-q", "--shard", "1/3", "--no-skip-done")
    assert (ran.code, ran.out) == (0, "sea-seed0.tif\n")
    assert Path("sea-seed0.tif").stat().st_mtime_ns != before
    assert rows()[-1]["sha256"] == rows()[0]["sha256"]


@pytest.mark.slow
def test_the_first_failure_ends_it(hires: Callable) -> None:
    damaged_picture()
    jobs = b'{"prompt": "sea", "init_image": "bad.png"}\n{"prompt": "stone"}\n'
    ran = hires("batch", "-", *TINY, stdin=jobs)
    assert ran.code == 1
    assert "1 failed, 1 not made" in ran.err
    swapped = b"".join(reversed(jobs.splitlines(keepends=True)))
    ran = hires("batch", "-", *TINY, stdin=swapped)
    assert (ran.code, ran.out) == (3, "stone-seed0.tif\n")


@pytest.mark.slow
def test_foreign_files_need_overwrite(hires: Callable) -> None:
    Path("sea-seed0.png").write_text("mine")
    words = ("batch", "-", *TINY, "--output-template", "{name}.png", "-q")
    for more in ((), ("--no-skip-done",)):
        ran = hires(*words, *more, stdin=b"sea\n")
        assert ran.code == 2
        assert "sea-seed0.png exists" in ran.err
    assert Path("sea-seed0.png").read_text() == "mine"
    assert hires(*words, "--overwrite", stdin=b"sea\n").code == 0
    before = Path("sea-seed0.png").stat().st_mtime_ns
    assert hires(*words, "--overwrite", stdin=b"sea\n").code == 0  # it is ours now
    assert Path("sea-seed0.png").stat().st_mtime_ns == before


@pytest.mark.slow
def test_without_metadata_the_results_know_what_is_done(hires: Callable) -> None:
    words = ("batch", "-", *TINY, "--no-metadata", "-q")
    assert hires(*words, stdin=b"sea\n").code == 0
    with Path("results.jsonl").open("a") as file:
        file.write('{"torn\n[]\n')
    assert hires(*words, stdin=b"sea\n").code == 0
    lines = Path("results.jsonl").read_text().splitlines()
    assert [json.loads(lines[number])["status"] for number in (0, -1)] == ["done", "skipped"]
    Path("sea-seed0.tif").write_bytes(Path("sea-seed0.tif").read_bytes() + b"x")
    ran = hires(*words, stdin=b"sea\n")
    assert ran.code == 2
    assert "sea-seed0.tif exists" in ran.err


@pytest.mark.slow
def test_two_shards_at_once_share_results(hires_process: Callable, tmp_path: Path) -> None:
    (tmp_path / "jobs.txt").write_text("sea\nstone\nmountains\nclouds\n")
    words = ("batch", "jobs.txt", *TINY, "-q")
    both = [hires_process(*words, "--shard", f"{i}/2", cwd=tmp_path) for i in (1, 2)]
    ended = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    found = statuses(tmp_path / "results.jsonl")
    assert sorted(found) == [(index, "done") for index in (1, 2, 3, 4)]
    assert len(list(tmp_path.glob("*.tif"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143)], ids=["SIGTERM"])
def test_interrupted_then_again(
    hires_process: Callable, tmp_path: Path, number: int, code: int
) -> None:
    jobs = '{"prompt": "sea"}\n{"prompt": "stone", "size": 128, "steps": 8}\n{"prompt": "dunes"}\n'
    (tmp_path / "jobs.jsonl").write_text(jobs)
    words = ("batch", "jobs.jsonl", *TINY)
    process = hires_process(*words, "--json", cwd=tmp_path)
    steps = 0
    while steps < 3:  # the first job has one
        line = process.stdout.readline()
        assert line, process.stderr.read()
        steps += b"step_done" in line
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert statuses(tmp_path / "results.jsonl") == [(1, "done"), (2, "interrupted")]
    assert (tmp_path / "stone-seed0.tif.run").is_dir()
    assert not (tmp_path / "stone-seed0.tif").exists()
    again = subprocess.CompletedProcess([], *_ended(hires_process(*words, cwd=tmp_path)))
    assert again.returncode == 0, again.stderr
    assert statuses(tmp_path / "results.jsonl")[2:] == [(1, "skipped"), (2, "done"), (3, "done")]
    assert not list(tmp_path.glob("*.run"))


def _ended(process: subprocess.Popen) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_a_job_that_another_process_makes_is_left_to_it(
    hires_process: Callable, tmp_path: Path
) -> None:
    words = ("--size", 256, "--steps", 200, "--json", "-o", "sea-seed0.tif")
    first = hires_process("generate", "-p", "sea", *words, cwd=tmp_path)
    while b"step_done" not in first.stdout.readline():
        assert first.poll() is None
    (tmp_path / "jobs.jsonl").write_text(
        '{"prompt": "sea", "size": 256, "steps": 200}\n{"prompt": "stone"}\n'
    )
    ran = _ended(hires_process("batch", "jobs.jsonl", *TINY, cwd=tmp_path))
    assert ran[0] == 0, ran
    assert b"line 1: another process is making sea-seed0.tif" in ran[2]
    assert b"1 done, 1 busy" in ran[2]
    assert statuses(tmp_path / "results.jsonl") == [(2, "done"), (1, "busy")]
    first.terminate()
    first.communicate(timeout=60)
