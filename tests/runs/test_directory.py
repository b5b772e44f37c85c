from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hirescli.errors import RequestError, RunError
from hirescli.output.finalise import finalise
from hirescli.output.spool import Spool
from hirescli.recipe import Recipe
from hirescli.runs.directory import (
    RunDirectory,
    clear_finished,
    finished,
    refuse_conflict,
    run_path,
)


def recipe(**choices: Any) -> Recipe:
    return Recipe.from_fragments({"prompt": "a red dune", "size": 64, "steps": 5} | choices)


def test_it_holds_recipe_and_plan_and_goes_after_success(tmp_path: Path) -> None:
    output = tmp_path / "out.tif"
    with RunDirectory(output, recipe=recipe(), plan_json='{"stages": 1}') as run:
        assert run.path == run_path(output) == tmp_path / "out.tif.run"
        assert json.loads((run.path / "recipe.json").read_text())["prompt"] == "a red dune"
        assert json.loads((run.path / "plan.json").read_text()) == {"stages": 1}
        Spool.create(run.spool(0), width_px=64, height_px=64).close()
        Spool.create(run.spool("decoded"), width_px=64, height_px=64).close()
        run.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_stays_and_the_same_recipe_takes_it_over(tmp_path: Path) -> None:
    output = tmp_path / "out.tif"
    with RunDirectory(output, recipe=recipe()) as run:
        spool = run.spool(0)
        spool.write_bytes(b"half")
    assert spool.exists()
    (tmp_path / "out.tif.partial").write_bytes(b"half")
    with RunDirectory(output, recipe=recipe()):
        assert spool.exists()  # it goes on
    with RunDirectory(output, recipe=recipe(), restart=True):
        assert not spool.exists()  # it begins anew
        assert not (tmp_path / "out.tif.partial").exists()


def test_another_recipe_is_refused_with_its_keys_until_restart(tmp_path: Path) -> None:
    output = tmp_path / "out.tif"
    RunDirectory(output, recipe=recipe(prompt="a blue sea", seed=3)).release()
    with pytest.raises(RequestError, match=r"differs in prompt .*, seed \(3, now 0\).*--restart"):
        RunDirectory(output, recipe=recipe())
    with RunDirectory(output, recipe=recipe(), restart=True) as run:
        assert json.loads((run.path / "recipe.json").read_text())["seed"] == 0


def test_a_damaged_left_recipe_needs_restart(tmp_path: Path) -> None:
    output = tmp_path / "out.tif"
    RunDirectory(output, recipe=recipe()).release()
    (run_path(output) / "recipe.json").write_text("{")
    with pytest.raises(RequestError, match=r"damaged.*--restart"):
        RunDirectory(output, recipe=recipe())


def test_a_folder_of_the_users_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = run_path(tmp_path / "out.tif")
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"no run directory.*-o"):
        RunDirectory(tmp_path / "out.tif", recipe=recipe(), restart=True)
    assert [path.name for path in folder.iterdir()] == ["diary.txt"]


def test_files_of_others_inside_survive_removal(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "out.tif", recipe=recipe()) as run:
        (run.path / "notes.txt").write_text("mine")
        run.remove()
    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]


def test_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    run_path(tmp_path / "out.tif").write_text("a file")
    with pytest.raises(RunError, match=r"out\.tif\.run"):
        RunDirectory(tmp_path / "out.tif", recipe=recipe())


HOLDER = """
    import sys, time
    from pathlib import Path
    from hirescli.recipe import Recipe
    from hirescli.runs.directory import RunDirectory
    wanted = Recipe.from_fragments({"prompt": "a red dune", "size": 64, "steps": 5})
    with RunDirectory(Path(sys.argv[1]), recipe=wanted) as run:
        run.spool(0).write_bytes(b"half")
        print("locked", flush=True)
        time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_does_not_block(tmp_path: Path) -> None:
    output = tmp_path / "out.tif"
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        for restart in (False, True):
            with pytest.raises(RunError, match=r"another process.*-o"):
                RunDirectory(output, recipe=recipe(), restart=restart)
        assert (run_path(output) / "stage-0.spool.tif").read_bytes() == b"half"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with RunDirectory(output, recipe=recipe()) as run:
            run.remove()
    assert not run_path(output).exists()


def test_the_lock_is_free_after_a_refusal(tmp_path: Path) -> None:
    output = tmp_path / "out.tif"
    RunDirectory(output, recipe=recipe(seed=3)).release()
    with pytest.raises(RequestError):
        RunDirectory(output, recipe=recipe())
    RunDirectory(output, recipe=recipe(seed=3)).release()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot make"):
        RunDirectory(tmp_path / "out.tif", recipe=recipe())


@pytest.mark.parametrize("kind", ["tiff", "png", "jpeg"])
def test_finished_knows_its_own_output_only(tmp_path: Path, kind: str) -> None:
    output, wanted = tmp_path / "out", recipe(format=kind)
    assert not finished(output, wanted)
    with Spool.create(tmp_path / "spool", width_px=64, height_px=64) as spool:
        spool.write_rows(0, np.full((64, 64, 3), 99, dtype=np.uint8))
    finalise(tmp_path / "spool", output, recipe=wanted)
    assert finished(output, wanted)
    assert not finished(output, recipe(format=kind, seed=1))
    os.truncate(output, output.stat().st_size - 1)
    assert not finished(output, wanted)
    output.write_text("a letter")
    assert not finished(output, wanted)


def test_what_the_run_found_out_does_not_make_another_recipe(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Spool.create(tmp_path / "spool", width_px=64, height_px=64) as spool:
        spool.write_rows(0, np.zeros((64, 64, 3), dtype=np.uint8))
    ran = recipe().model_copy(update={"truncated_to_tokens": 77})
    finalise(tmp_path / "spool", output, recipe=ran)
    assert finished(output, recipe())


def test_a_conflict_is_refused_without_making_anything(tmp_path: Path) -> None:
    output = tmp_path / "out.tif"
    refuse_conflict(output, recipe())
    assert list(tmp_path.iterdir()) == []
    with RunDirectory(output, recipe=recipe()), pytest.raises(RunError, match="another process"):
        refuse_conflict(output, recipe())
    refuse_conflict(output, recipe())
    with pytest.raises(RequestError, match=r"differs in seed \(.*\).*--restart"):
        refuse_conflict(output, recipe(seed=3))
    other = tmp_path / "other.tif"
    run_path(other).mkdir()
    (run_path(other) / "diary.txt").write_text("mine")
    with pytest.raises(RequestError, match="no run directory"):
        refuse_conflict(other, recipe())
    run_path(tmp_path / "file").write_text("a file")
    with pytest.raises(RunError, match=r"file\.run"):
        refuse_conflict(tmp_path / "file", recipe())


def test_what_a_killed_run_left_beside_a_finished_output_goes(tmp_path: Path) -> None:
    output = tmp_path / "out.tif"
    clear_finished(output, recipe())
    assert list(tmp_path.iterdir()) == []
    with RunDirectory(output, recipe=recipe()) as run:
        run.spool(0).write_bytes(b"half")
        clear_finished(output, recipe())  # it is at work
        assert run.spool(0).exists()
    clear_finished(output, recipe(seed=1))  # of another recipe
    assert run.spool(0).exists()
    clear_finished(output, recipe())
    assert list(tmp_path.iterdir()) == []


def test_runs_that_share_a_spill_folder_keep_apart(tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    outputs = [tmp_path / "out.tif", tmp_path / "there" / "out.tif"]
    outputs[1].parent.mkdir()
    runs = [RunDirectory(output, recipe=recipe(), spill=spill) for output in outputs]
    for run in runs:
        (run.spill / "stage-0.denoiser-0.3.value").write_bytes(b"rows")
        assert run.spill.parent == spill
        run.release()
    assert len(list(spill.iterdir())) == 2
    with RunDirectory(outputs[0], recipe=recipe(), spill=spill) as again:
        assert (again.spill / "stage-0.denoiser-0.3.value").exists()  # it goes on
        again.journal.drop("stage-0.")
        assert list(again.spill.iterdir()) == []
    with RunDirectory(outputs[0], recipe=recipe()):  # its values lie elsewhere now
        assert [path.name for path in spill.iterdir()] == [runs[1].spill.name]
    with RunDirectory(outputs[1], recipe=recipe(seed=9), restart=True) as other:
        other.remove()
    assert list(spill.iterdir()) == []


def test_a_directory_that_is_kept_stays_when_it_is_finished(tmp_path: Path) -> None:
    output = tmp_path / "out.tif"
    with RunDirectory(output, recipe=recipe(), keep=True) as run:
        run.finish()
    with RunDirectory(output, recipe=recipe()) as run:
        run.finish()
    assert run.path.exists()
    clear_finished(output, recipe())
    assert run.path.exists()
    with RunDirectory(output, recipe=recipe(), restart=True) as run:
        run.finish()
    assert not run.path.exists()
