import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hirescli.errors import RequestError
from hirescli.events import Listener, RunStarted
from hirescli.models.registry import cards, find_card
from hirescli.planning.budgets import default_memory
from hirescli.planning.machine import Machine
from hirescli.planning.plan import Plan, ValidatedPlan, make_plan
from hirescli.recipe import CONSEQUENCES, Recipe
from hirescli.units import format_bytes

CARD = find_card("builtin")
MACHINE = Machine(cores=2, memory_bytes=16 * 10**9, disk_free_bytes=lambda _: 10**12)


def plan(memory_bytes: int | None = None, **choices: Any) -> Plan:
    recipe = Recipe.from_fragments({"prompt": "a mountain", "size": 1024} | choices)
    return make_plan(recipe, CARD, memory_bytes=memory_bytes, machine=MACHINE)


# What a recipe may go without: there is nothing to choose where none is named.
GUIDES = {
    "adapter", "adapter_revision", "image_adapter", "image_adapter_revision", "init_image",
    "init_strength", "source",
}  # fmt: skip


def test_a_planned_recipe_has_no_open_choice() -> None:
    open_choices = {
        key
        for key, value in plan().recipe.model_dump().items()
        if value is None and key not in CONSEQUENCES
    }
    assert open_choices <= GUIDES


@pytest.mark.parametrize("size", [64, 256, 1024, "3840x2160"])
def test_planning_a_planned_recipe_changes_nothing(size: int | str) -> None:
    first = plan(size=size)
    again = make_plan(Recipe.from_json(first.recipe.to_json()), CARD, machine=MACHINE)
    assert again.recipe.hash == first.recipe.hash
    assert again.stages == first.stages


def test_cores_change_the_time_only() -> None:
    recipe = Recipe.from_fragments({"prompt": "a mountain", "size": 2048})
    many = Machine(cores=8, memory_bytes=64 * 10**9)
    slow, fast = (make_plan(recipe, CARD, machine=machine) for machine in (MACHINE, many))
    assert fast.recipe == slow.recipe.model_copy(update={"threads": 8})
    assert fast.peak_memory_bytes == slow.peak_memory_bytes
    drawing = [made.seconds - CARD.load_seconds for made in (slow, fast)]
    assert drawing[1] == pytest.approx(drawing[0] / 4)


def test_the_plan_is_json() -> None:
    data = json.loads(plan().to_json())
    assert [stage["width_px"] for stage in data["stages"]] == [64, 128, 256, 512, 1024]
    assert data["store_bytes"]["host"] == max(s["memory"]["peak_bytes"] for s in data["stages"])
    assert data["recipe_hash"] == plan().recipe.hash


def test_only_a_validated_plan_runs(tmp_path: Path) -> None:
    def runner(plans: Sequence[ValidatedPlan], listener: Listener | None) -> list[Path]:
        assert listener is not None
        listener(RunStarted(plans[0]))
        return [validated.output for validated in plans]

    seen: list[object] = []
    output = tmp_path / "a.tif"
    validated = plan().validate(MACHINE, output)
    assert validated.execute(runner, seen.append) == output
    assert len(seen) == 1
    assert not hasattr(plan(), "execute")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError):
        ValidatedPlan(plan(), output, False, object())


def test_a_budget_below_one_band_shows_both_numbers() -> None:
    with pytest.raises(RequestError, match=r"needs at least .* of memory .* is 500\.0 MB"):
        plan(memory_bytes=500_000_000)


@pytest.mark.parametrize("rows", [None, 16])
def test_the_remedy_works(rows: int | None) -> None:
    with pytest.raises(RequestError) as caught:
        plan(memory_bytes=500_000_000, rows=rows)
    assert ("fewer --rows" in str(caught.value)) == (rows == 16)
    amount_gb = float(str(caught.value).split("--memory ")[1].split("GB")[0])
    made = plan(memory_bytes=int(amount_gb * 10**9), rows=rows)
    assert made.peak_memory_bytes <= amount_gb * 10**9


@pytest.mark.parametrize("size", [256, 1024, 4096, 16384])
def test_the_default_is_what_the_model_takes_and_some_room(size: int) -> None:
    """Not a share of the machine: pictures of all sizes are made in about the same memory."""
    made = plan(size=size)
    assert CARD.base_memory_bytes < made.peak_memory_bytes <= made.budgets.memory_bytes
    assert made.budgets.memory_bytes == default_memory(CARD, made.recipe, MACHINE)
    assert made.budgets.memory_bytes < 2 * CARD.base_memory_bytes
    larger = Machine(cores=2, memory_bytes=10**12)
    again = make_plan(made.recipe, CARD, machine=larger)
    assert again.recipe.hash == made.recipe.hash
    assert again.store_bytes == made.store_bytes


def test_values_that_rest_on_disk_count_where_they_rest(tmp_path: Path) -> None:
    recipe = Recipe.from_fragments({"prompt": "a mountain", "size": 4096})
    beside, elsewhere = (
        make_plan(recipe, CARD, machine=MACHINE, spill=spill) for spill in (None, tmp_path)
    )
    assert beside.spill_bytes == elsewhere.spill_bytes > 0
    assert beside.disk_bytes == beside.spool_bytes + beside.spill_bytes
    assert elsewhere.disk_bytes == elsewhere.spool_bytes
    free = elsewhere.spill_bytes - 1
    full = Machine(
        cores=2, memory_bytes=16 * 10**9,
        disk_free_bytes=lambda path: free if path == tmp_path else 10**12,
    )  # fmt: skip
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(RequestError, match=r"--spill .* are free"):
        elsewhere.validate(full, folder / "a.tif")
    with pytest.raises(RequestError, match="no folder"):
        make_plan(recipe, CARD, machine=MACHINE, spill=tmp_path / "none").validate(
            MACHINE, folder / "a.tif"
        )


def test_every_component_is_planned_in_the_plans_bands() -> None:
    made = plan(size=2048, rows=12)
    assert made.rows == made.recipe.rows == 12
    for row in made.stage_costs:
        heights = {each.name: each.schedule.rows for each in row.components}
        assert heights["denoiser"] == 12
        assert heights.get("encoder", 96) == 96


def test_a_budget_does_not_make_memory(tmp_path: Path) -> None:
    small = Machine(cores=2, memory_bytes=500_000_000)
    with pytest.raises(RequestError, match=r"this machine has 500\.0 MB"):
        plan(memory_bytes=10**12).validate(small, tmp_path / "a.tif")


def test_disk_shows_both_numbers_and_counts_what_a_killed_run_left(tmp_path: Path) -> None:
    planned = plan()
    free = planned.disk_bytes - 1000
    full = Machine(cores=2, memory_bytes=16 * 10**9, disk_free_bytes=lambda _: free)
    output = tmp_path / "a.tif"
    said = re.escape(format_bytes(free))
    with pytest.raises(RequestError, match=rf"needs {said} of disk .* {said} are free"):
        planned.validate(full, output)
    run = tmp_path / "a.tif.run"
    run.mkdir()
    (run / "spool.tif").write_bytes(bytes(1000))
    planned.validate(full, output)


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "old.tif").write_text("x")
    (tmp_path / "folder.tif").mkdir()
    for name, said in [
        ("none/a.tif", "does not exist; make it"),
        ("file/a.tif", "is a file"),
        ("old.tif", "exists; use --overwrite"),
        ("folder.tif", "is a folder"),
        ("a\0.tif", "NUL"),
        ("a" * 252 + ".tif", "256 bytes, at most 247"),
        ("a.webp", "webp"),
        ("a.png", "is png by its suffix"),
    ]:
        with pytest.raises(RequestError, match=said):
            plan().validate(MACHINE, tmp_path / name)
    plan().validate(MACHINE, tmp_path / "old.tif", overwrite=True)
    assert (tmp_path / "old.tif").read_text() == "x"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that no one can write")
def test_a_folder_that_no_one_can_write() -> None:
    with pytest.raises(RequestError, match=r"/proc cannot be written.*choose another"):
        plan().validate(MACHINE, Path("/proc/a.tif"))


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(RequestError, match="cannot be written"):
        plan().validate(MACHINE, tmp_path / "a.tif")


def test_a_format_that_cannot_hold_the_size_is_refused_while_planning() -> None:
    with pytest.raises(RequestError, match="65500 px"):
        plan(size="65536x16384", format="jpeg")


def test_foreign_prompts_are_warned_of() -> None:
    assert plan(prompt="Mountains at dawn").warnings == ()
    (warning,) = plan(prompt="a red bicycle").warnings
    assert "--model" in warning
    assert len(plan(prompt="a sea", size=32).warnings) == 1


def test_unknown_models_are_refused() -> None:
    assert [card.name for card in cards()] == [
        "builtin", "flux-dev", "flux-schnell", "sd15", "sd21", "sd35-large", "sd35-medium", "sdxl",
    ]  # fmt: skip
    with pytest.raises(RequestError, match='model "stabilityai/sdxl" is not known: use one of'):
        find_card("stabilityai/sdxl")


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hirescli.models.registry import find_card;"
        "from hirescli.planning.plan import make_plan; from hirescli.recipe import Recipe;"
        "make_plan(Recipe(prompt='a sea', width_px=2048, height_px=2048), find_card('builtin'));"
        "print([m for m in ('torch', 'numpy', 'diffusers', 'pyvips') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
