"""Files of jobs, names of outputs, plans that share what they can, and results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hirescli.errors import ConfigError, RequestError, RunError
from hirescli.models.registry import find
from hirescli.planning.formats import format_for
from hirescli.planning.machine import Machine
from hirescli.planning.plan import ValidatedPlan, make_plan
from hirescli.recipe import Recipe
from hirescli.runs.batch import PlannedJob, Planner, Results, Row, exit_code, make_jobs, refused
from hirescli.runs.jobs import (
    Job,
    JobFile,
    Template,
    check_inside,
    check_own_output,
    read_jobs,
    safe,
    same_outputs,
    seeded,
    shard_of,
)

MACHINE = Machine(cores=2, memory_bytes=64 * 10**9)


def read(text: str | bytes, name: str = "-") -> JobFile:
    data = text if isinstance(text, bytes) else text.encode()
    if name == "-":
        return read_jobs(name, lambda: BytesIO(data))
    Path(name).write_bytes(data)
    return read_jobs(name, lambda: BytesIO(b""))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(file: JobFile) -> list[tuple[int | None, dict[str, Any]]]:
    assert [job.faults for job in file.jobs] == [()] * len(file.jobs)
    return [(job.line, dict(job.fragment)) for job in file.jobs]


def faults(file: JobFile) -> dict[str, str]:
    return {job.where: "; ".join(job.faults) for job in file.jobs if job.faults}


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ('{"prompt": "sea"}', {"prompt": "sea"}),
        ("\n[[job]]\nprompt = 'sea'\n", {"prompt": "sea"}),
        ("[defaults]\nseed = 3\n[[job]]\nprompt = 'sea'\n", {"prompt": "sea"}),
        ("prompt,seed\nsea,3\n", {"prompt": "sea", "seed": 3}),
        ("prompt\nsea\n", {"prompt": "sea"}),
        ("sea, prompt and all\n", {"prompt": "sea, prompt and all"}),
        ("[a] sea\n", {"prompt": "[a] sea"}),
    ],
)
def test_stdin_is_what_its_first_line_tells(text: str, first: dict[str, Any]) -> None:
    assert said(read(text))[0][1] == first


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("name", ["-", "a.txt"])
def test_prompts(name: str, end: str) -> None:
    text = f"\ufeff# a comment{end}{end}  sea {end}-fog{end}# x{end}حب 🏔️"
    assert said(read(text, name)) == [
        (3, {"prompt": "sea"}), (4, {"prompt": "-fog"}), (6, {"prompt": "حب 🏔️"}),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["-", "a.jsonl", "a.JSONL", "a.ndjson", "nosuffix"])
def test_json_lines(name: str) -> None:
    text = '\n{"prompt": "sea", "size": 64}\r\n\n{"seed": 2, "name": "n", "output": "o.tif"}'
    file = read(text, name)
    assert said(file) == [(2, {"prompt": "sea", "size": 64}), (4, {"seed": 2})]
    assert [(job.index, job.name, job.output) for job in file.jobs] == [
        (1, None, None), (2, "n", "o.tif"),
    ]  # fmt: skip


def test_csv_has_the_types_of_a_recipe() -> None:
    text = (
        "\ufeffprompt,size,seed,steps,strengths,metadata,dpi,loras,name,device\r\n"
        '"a ""b"",\nc",64,7,3,"0.4,0.3",False,72,,x,cpu\r\n'
        "\r\n"
        "sea,128x64,,,,,,a.safetensors:0.5,,\r\n"
    )
    file = read(text, "a.csv")
    first = {
        "prompt": 'a "b",\nc', "size": "64", "seed": 7, "steps": 3, "strengths": [0.4, 0.3],
        "metadata": False, "dpi": 72.0, "device": "cpu",
    }  # fmt: skip
    second = {"prompt": "sea", "size": "128x64", "loras": ["a.safetensors:0.5"]}
    assert said(file) == [(2, first), (5, second)]
    assert [job.name for job in file.jobs] == ["x", None]


def test_toml_with_defaults() -> None:
    first, second = '[[job]]\nprompt = "sea"', '[[ job ]]\nname = "n"\nseed = 3'
    text = f"\ufeff[defaults]\nsize = 64\n\n{first}\n\n{second}\n"
    file = read(text, "a.toml")
    assert file.defaults == {"size": 64}
    assert said(file) == [(4, {"prompt": "sea"}), (7, {"seed": 3})]


def test_toml_in_which_lines_cannot_be_told() -> None:
    file = read('job = [{prompt = "a"}, {prompt = "b", sise = 1}]', "a.toml")
    assert [job.line for job in file.jobs] == [None, None]
    assert "sise" in faults(file)["job 2"]


def test_all_faults_with_their_lines() -> None:
    file = read(
        b'{"prompt": "sea", "sise": 3, "steps": 0}\n{"prompt": "a", "prompt": "b", "name": "n"}\n'
        b'{broken\n{"steps": NaN}\n[1]\n{"name": 3, "output": " "}\n{"prompt": "a\\u0000"}\n'
        b'{"prompt": "\xff"}\n{"prompt": "a\0"}\n{"prompt": "good"}\n',
        "a.jsonl",
    )
    found = faults(file)
    assert list(found) == [f"line {n}" for n in range(1, 10)]
    assert "sise" in found["line 1"]
    assert "steps: 0" in found["line 1"]
    assert found["line 2"] == "prompt: stands there twice; keep one"
    assert "no JSON" in found["line 3"]
    assert "line 1" not in found["line 3"]
    assert "NaN" in found["line 4"]
    assert "no JSON object" in found["line 5"]
    assert "name: must be text" in found["line 6"]
    assert "output: must" in found["line 6"]
    assert "U+0000" in found["line 7"]
    assert "UTF-8" in found["line 8"]
    assert "NUL" in found["line 9"]
    assert len(file.jobs) == 10


def test_faults_of_csv_rows() -> None:
    file = read("prompt,steps,dpi\nsea,x,nan\nsea,1\nsea,1,2,3\nok,1,72\n", "a.csv")
    found = faults(file)
    assert list(found) == ["line 2", "line 3", "line 4"]
    assert '"x"' in found["line 2"]
    assert "NaN" in found["line 2"]
    assert "2 cells" in found["line 3"]
    assert "4 cells" in found["line 4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "holds no job"),
        ("a.txt", "# only\n\n", "holds no job"),
        ("a.jsonl", "\n", "holds no job"),
        ("a.csv", "", "holds no job"),
        ("a.csv", "prompt,size\n", "holds no job"),
        ("a.csv", "prompt,prompt\nsea,2\n", "line 1: prompt: stands in the header twice"),
        ("a.csv", "prompt,sise,\nsea,2,\n", "sise: is no choice"),
        ("a.csv", "prompt,\nsea,2\n", "no name"),
        ("a.toml", "", "holds no job"),
        ("a.toml", "[[job]]\nsize = 1\nsize = 2\n", "line 3: "),
        ("a.toml", "[defaults]\nsise = 1\nsteps = nan\n[jobs]\n", "jobs: is unknown"),
        ("a.toml", "[defaults]\nsise = 1\n", "defaults.sise: is no choice"),
        ("a.toml", "job = 3\n", "job: must be tables"),
        ("a.toml", "[[job]]\nprompt = 'a\0'\n", "line 2: holds a NUL"),
        ("a.json", "[]", "known are .jsonl"),
        ("a.txt", "sea".encode("utf-16"), "UTF-16"),
    ],
)  # fmt: skip
def test_files_that_are_refused(name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace("[", r"\[")):
        read(text, name)


@pytest.mark.parametrize("name", ["missing.txt", ".", "a\0b.txt", "x" * 300 + ".txt"])
def test_files_that_cannot_be_read(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_jobs(name, lambda: BytesIO(b""))


def test_seeds_are_for_jobs_without_one() -> None:
    jobs = seeded(read("a\nb\n").jobs + read('{"prompt": "c", "seed": 9}').jobs, [1, 2])
    assert [(job.index, job.line, job.fragment["seed"]) for job in jobs] == [
        (1, 1, 1), (2, 1, 2), (3, 2, 1), (4, 2, 2), (5, 1, 9),
    ]  # fmt: skip
    assert seeded(jobs, []) == jobs


@given(st.integers(1, 9), st.integers(0, 40))
def test_shards_share_all_jobs_out(count: int, jobs: int) -> None:
    shards = [shard_of(f"{i}/{count}") for i in range(1, count + 1)]
    for index in range(1, jobs + 1):
        assert [i for i, mine in enumerate(shards, start=1) if mine(index)] == [
            index % count or count
        ]


@pytest.mark.parametrize(
    "text", ["", "0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "1.0/2", "\uff11/2"]
)
def test_shards_that_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="1/4"):
        shard_of(text)


# --- names ---------------------------------------------------------------------------------------


def asked(**choices: Any) -> Recipe:
    return Recipe.from_fragments({"prompt": "The Sea!", "size": "64x128", "seed": 3} | choices)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{name}", "the-sea-seed3.tif"),
        ("{index:04d}-{prompt}", "0007-the-sea.tif"),
        ("{prompt:.3}_{width}x{height}_s{seed:03d}.tiff", "the_64x128_s003.tiff"),
        ("sub/{index}", "sub/7.tif"),
        ("{{{index}}}", "{7}.tif"),
        ("-rf {index}", "rf 7.tif"),
        ("..{index}", "7.tif"),
        ("nul.{index}", "_nul.7.tif"),
    ],
)
def test_templates(template: str, name: str) -> None:
    assert Template(template).name(Job(7, 1, {}), asked()) == name


@pytest.mark.parametrize(
    ("template", "said", "name"),
    [
        ("{prompt}", None, "the-sea.print.tif"),
        ("{name}", None, "the-sea-seed3.print.tif"),
        ("{name}", "a.print.tif", "a.print.tif"),
        ("{prompt}.print.tif", None, "the-sea.print.tif"),
        ("{prompt}.tif", None, "the-sea.tif"),
    ],
)
def test_templates_of_print_files(template: str, said: str | None, name: str) -> None:
    made = Template(template)
    assert format_for(Path("x" + (made.suffix or ".print.tif")), "print") == "print"
    assert made.name(Job(7, 1, {}, name=said), asked(format="print")) == name


@pytest.mark.parametrize("said", ["a.print", "a.print-"])
def test_a_name_makes_no_print_file(said: str) -> None:
    for template in ("{name}", "{name}.tif"):
        assert Template(template).name(Job(7, 1, {}, name=said), asked()) == "a.tif"


def test_hash_tells_recipes_apart() -> None:
    one, other = (Template("{hash}").name(Job(1, 1, {}), asked(steps=n)) for n in (1, 2))
    assert one != other
    assert len(one) == len("123456789012.tif")


@pytest.mark.parametrize(
    "template",
    ["", "/etc/{name}", "../{name}", "a/../{name}", "a//{name}", "{name}/", "{nam}", "{}", "{0}",
     "{prompt.__class__}", "{prompt[0]}", "{index:99999999d}", "{index:{seed}}", "{name!r}", "{",
     "}", "{index:.5f}", "{name}.bmp", "a\\{name}"],
)  # fmt: skip
def test_templates_that_are_refused(template: str) -> None:
    with pytest.raises(RequestError):
        Template(template)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("../../x", "x"), ("/etc/x", "etc-x"), ("-rf", "rf"), ("--", "image"), ("", "image"),
        ("...", "image"), (".bashrc", "bashrc"), ("a\nb\x00c\x1b[31m", "a-b-c-[31m"),
        ("CON", "_CON"), ("con.x", "_con.x"), ("LPT1", "_LPT1"), ("COM¹", "_COM¹"),
        ("console", "console"), ("a:b*c?", "a-b-c"), ("  a  ", "a"), ("a\u202eb", "a-b"),
        ("حب 🏔", "حب 🏔"), ("e\u0301", "\xe9"), ("a\udc80", "a"), ("x.", "x"),
    ],
)  # fmt: skip
def test_safe_names(name: str, made: str) -> None:
    assert safe(name, ".tif") == made + ".tif"


@given(st.text(max_size=400))
def test_every_text_makes_a_name_that_works(text: str) -> None:
    from hirescli.planning.places import check_output

    made = safe(text, ".tif")
    check_own_output(made)
    check_output(Path(made), overwrite=False)
    assert len((made + ".partial").encode()) <= 255
    assert "/" not in made


def test_long_names_stay_different() -> None:
    one, other = safe("x" * 300 + "a", ".tif"), safe("x" * 300 + "b", ".tif")
    assert one != other
    assert len(one.encode()) == 247
    assert len(safe("🏔" * 100, ".tif").encode()) <= 247


@pytest.mark.parametrize(
    "output",
    ["../../x.tif", "/etc/x.tif", "a/../../x.tif", "./a.tif", "a//b.tif", "a/", "-rf.tif",
     "a/-b.tif", "a\nb.tif", "a\0.tif", "CON.tif", "a/nul.tif", "C:x.tif", "..\\x.tif", "a|b.tif"],
)  # fmt: skip
def test_own_outputs_that_are_refused(output: str) -> None:
    with pytest.raises(RequestError, match="name a file in the output folder"):
        check_own_output(output)


def test_symlinks_do_not_lead_out(tmp_path: Path) -> None:
    folder, outside = tmp_path / "out", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "inner").mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "same").symlink_to(folder / "inner")
    check_inside(folder / "same" / "x.tif", folder)
    check_inside(folder / "x.tif", folder)
    with pytest.raises(RequestError, match="symlink"):
        check_inside(folder / "link" / "x.tif", folder)
    for beside in ("", ".run", ".partial"):
        (folder / f"y.tif{beside}").symlink_to(outside / "z")
        with pytest.raises(RequestError, match="symlink"):
            check_inside(folder / "y.tif", folder)
        (folder / f"y.tif{beside}").unlink()
    doubled = same_outputs(
        [(Job(1, 1, {}), folder / "inner" / "x.tif"), (Job(2, 5, {}), folder / "same" / "X.tif")]
    )
    assert [(job.line, "line 1" in fault) for job, fault in doubled] == [(5, True)]


# --- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 72, 256])
@pytest.mark.parametrize("choices", [{}, {"negative_prompt": "fog", "guidance_scale": 1.0}])
def test_shared_plans_are_those_of_each_recipe(size: int, choices: dict) -> None:
    planner = Planner(MACHINE)
    card = find("builtin", weights=False).card
    for prompt, seed in (("sea", 0), ("a tax form", 5), ("a cat", 1), ("stone", 2**63 - 1)):
        each = Recipe.from_fragments({"prompt": prompt, "seed": seed, "size": size} | choices)
        assert planner.plan(each) == make_plan(each, card, machine=MACHINE)


def test_a_fault_is_found_once_and_told_for_each(tmp_path: Path) -> None:
    planner = Planner(MACHINE)
    each = Recipe.from_fragments({"prompt": "sea", "size": 64, "init_image": "missing.png"})
    for _ in range(2):
        with pytest.raises(RequestError, match=r"missing\.png"):
            planner.plan(each)


# --- results -------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_are_appended_behind_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"torn')
    Results(path).add([Row(1, 2, "a.tif", "done", "ab", 1.5, None, "cd", "now")])
    torn, line = path.read_text().splitlines()
    assert torn == '{"torn'
    assert json.loads(line) == {
        "index": 1, "line": 2, "output": "a.tif", "status": "done", "sha256": "ab",
        "seconds": 1.5, "error": None, "recipe_hash": "cd", "time": "now",
    }  # fmt: skip
    Results(None).add([Row(1, 2, "a.tif", "done")])
    Results(Path(os.devnull)).add([Row(1, 2, "a.tif", "done")])


def test_time_stamps_are_utc() -> None:
    assert Row(1, None, None, "failed").time.endswith("+00:00")


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--results"):
        Results(tmp_path / "missing" / "results.jsonl")
    with pytest.raises(RequestError, match="--results"):
        Results(tmp_path)


def test_results_on_a_full_disk_have_no_half_line(file_system: Any) -> None:
    folder = file_system("64k")
    results = Results(folder / "results.jsonl")
    row = Row(1, 1, "x" * 1000, "done")
    with pytest.raises(RunError, match=r"results\.jsonl"):
        list(map(results.add, [[row]] * 100))
    whole = (folder / "results.jsonl").read_text()
    assert whole.endswith("}\n")
    assert len(rows(folder / "results.jsonl")) > 10


WRITER = """
    import sys
    from pathlib import Path
    from hirescli.runs.batch import Results, Row
    results = Results(Path(sys.argv[1]))
    for index in range(100):
        results.add([Row(index, index, sys.argv[2] * 3000, "done")])
"""


def test_processes_share_a_results_file(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(path), letter])
        for letter in "abc"
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    found = rows(path)
    for letter in "abc":
        own = [row["index"] for row in found if row["output"] == letter * 3000]
        assert own == list(range(100))
    assert len(found) == 300


@pytest.mark.parametrize(
    ("statuses", "code"),
    [("", 0), ("done skipped", 0), ("failed", 1), ("failed failed", 1), ("failed skipped", 3),
     ("done failed", 3)],
)  # fmt: skip
def test_exit_codes(statuses: str, code: int) -> None:
    assert exit_code([Row(1, 1, None, status) for status in statuses.split()]) == code


# --- making --------------------------------------------------------------------------------------


def planned(count: int, folder: Path) -> list[PlannedJob]:
    planner = Planner(MACHINE)
    made = []
    for index in range(1, count + 1):
        plan = planner.plan(Recipe.from_fragments({"prompt": "sea", "size": 64, "seed": index}))
        validated = plan.validate(MACHINE, folder / f"{index}.tif")
        made.append(PlannedJob(Job(index, index, {}), validated))
    return made


class Failing:
    """Fails on its first image as it is told; `Runner`'s other ways are tried with real runs."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def make(self, validated: ValidatedPlan) -> Any:
        raise self.error


class Stopped(BaseException):
    """As a signal raises."""


def gone_through(error: BaseException, folder: Path, **options: bool) -> list[Row]:
    results = Results(folder / "results.jsonl")
    jobs = planned(2, folder)
    return list(make_jobs(jobs, Failing(error), results, skip_done=True, **options))


def test_a_failure_ends_the_batch_unless_it_keeps_going(tmp_path: Path) -> None:
    made = gone_through(RunError("no disk"), tmp_path, keep_going=False)
    assert [(row.status, row.error) for row in made] == [("failed", "no disk")]
    made = gone_through(RunError("no disk"), tmp_path, keep_going=True)
    assert [row.index for row in made] == [1, 2]
    made = gone_through(RuntimeError("odd"), tmp_path, keep_going=True)
    assert [row.error for row in made] == ["RuntimeError: odd"] * 2
    assert len(rows(tmp_path / "results.jsonl")) == 5


@pytest.mark.parametrize(
    ("error", "status"), [(Stopped("x"), "interrupted"), (RuntimeError("x"), "failed")]
)
def test_what_ends_the_process_is_written_before(
    tmp_path: Path, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)):
        gone_through(error, tmp_path, keep_going=False)
    (row,) = rows(tmp_path / "results.jsonl")
    assert (row["index"], row["status"]) == (1, status)


def test_what_another_process_finished_meanwhile_is_left(tmp_path: Path) -> None:
    import numpy as np

    from hirescli.output.finalise import finalise
    from hirescli.output.spool import Spool

    jobs = planned(1, tmp_path)
    with Spool.create(tmp_path / "spool", width_px=64, height_px=64) as spool:
        spool.write_rows(0, np.zeros((64, 64, 3), dtype=np.uint8))
    validated = jobs[0].validated
    finalise(tmp_path / "spool", validated.output, recipe=validated.recipe)
    results = Results(tmp_path / "results.jsonl")
    failing = Failing(RunError("made again"))
    for skip_done, status in ((True, "skipped"), (False, "failed")):
        (row,) = make_jobs(jobs, failing, results, keep_going=True, skip_done=skip_done)
        assert row.status == status


def test_refused_jobs_are_left_out(tmp_path: Path) -> None:
    jobs = planned(3, tmp_path)

    def start(plans: Sequence[ValidatedPlan]) -> Failing:
        if any(plan.output.name == "2.tif" for plan in plans):
            raise RunError("another process is making 2.tif")
        return Failing(RunError(str(len(plans))))

    runner, wrong = refused(jobs, start)
    assert str(runner.error) == "2"
    assert [(each.job.index, str(error)) for each, error in wrong] == [
        (2, "another process is making 2.tif")
    ]
    assert refused(jobs[1:2], start)[0] is None
