"""Whole images with the built-in model: same seed, same bytes; events; failures by name."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tifffile
import torch
from PIL import Image

import hirescli
from hirescli.bands.engine import banded_tensor
from hirescli.cascade.run import run
from hirescli.cascade.stages import Stages
from hirescli.errors import RequestError, RunError
from hirescli.events import (
    Event,
    PassDone,
    RowsDecoded,
    RowsEncoded,
    RunDone,
    RunStarted,
    StageStarted,
    StepDone,
    Warned,
)
from hirescli.models.load import Model
from hirescli.output.spool import Spool
from hirescli.planning.machine import Machine
from hirescli.planning.plan import Plan
from hirescli.runs.directory import RunDirectory
from hirescli.runs.journal import Journal

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def recipe(px: int = 64, **choices: object) -> hirescli.Recipe:
    made = {
        "prompt": "mountains at dusk", "steps": 3, "upscale_steps": 2, "dtype": "float32",
        **choices,
    }  # fmt: skip
    return hirescli.Recipe.model_validate({**made, "width_px": px, "height_px": px})


def names(events: list[Event]) -> list[str]:
    """Their kinds, repeated ones once."""
    kinds = [type(e).__name__ for e in events if not isinstance(e, PassDone)]
    return [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        hirescli.generate(recipe(128, seed=seed), tmp_path / f"{name}.tif")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.sha256 == again.sha256 != other.sha256
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    with tifffile.TiffFile(first.path) as tiff:
        picture = tiff.pages[0].asarray()
    assert picture.shape == (128, 128, 3)
    assert picture.std() > 1


def test_seeds_made_together_equal_those_made_alone(tmp_path: Path) -> None:
    machine = Machine.detect()
    plans = [
        hirescli.plan(recipe(seed=seed)).validate(machine, tmp_path / f"{seed}.tif")
        for seed in (1, 2)
    ]
    together = run(plans)
    alone = hirescli.generate(recipe(seed=2), tmp_path / "alone.tif")
    assert [result.path.name for result in together] == ["1.tif", "2.tif"]
    assert together[1].sha256 == alone.sha256 != together[0].sha256


def test_events_come_in_order(tmp_path: Path) -> None:
    events: list[Event] = []
    output = tmp_path / "out.png"
    result = hirescli.generate(recipe(128), output, listener=events.append)
    assert [kind for kind in names(events) if kind != "Warned"] == [
        "RunStarted",
        *("StageStarted", "StepDone", "RowsDecoded", "StageDone"),
        *("StageStarted", "RowsEncoded", "StepDone", "RowsDecoded", "StageDone"),
        *("Finalising", "FileWritten", "RunDone"),
    ]
    steps = [(e.stage_index, e.step, e.steps) for e in events if isinstance(e, StepDone)]
    assert steps == [(0, 1, 3), (0, 2, 3), (0, 3, 3), (1, 1, 2), (1, 2, 2)]
    started = [e for e in events if isinstance(e, StageStarted)]
    assert [(e.index, e.count, e.kind, e.width_px) for e in started] == [
        (0, 2, "base", 64),
        (1, 2, "upscale", 128),
    ]
    for kind in (RowsDecoded, RowsEncoded):
        last = [e for e in events if isinstance(e, kind)][-1]
        assert (last.rows, last.rows_total) == (128, 128)
    (done,) = (e for e in events if isinstance(e, RunDone))
    assert (done.path, done.peak_rss_bytes) == (output, result.peak_rss_bytes)
    assert result.peak_rss_bytes > 10**8


def test_run_directory_is_removed(tmp_path: Path) -> None:
    output = tmp_path / "out.jpg"
    hirescli.generate(recipe(), output)
    assert list(tmp_path.iterdir()) == [output]
    with Image.open(output) as picture:
        assert (picture.format, picture.size) == ("JPEG", (64, 64))


def test_size_that_is_no_doubling(tmp_path: Path) -> None:
    wide = hirescli.Recipe(
        prompt="sea", width_px=312, height_px=152, steps=1, upscale_steps=1, dtype="float32"
    )
    result = hirescli.generate(wide, tmp_path / "wide.png")
    with Image.open(result.path) as picture:
        assert picture.size == (312, 152)


def test_band_height_changes_the_picture_by_rounding_only(tmp_path: Path) -> None:
    pictures = []
    for rows in (3, 32):
        made = hirescli.generate(recipe(128, rows=rows), tmp_path / f"{rows}.png")
        with Image.open(made.path) as picture:
            pictures.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8))
    difference = (pictures[0].int() - pictures[1].int()).abs()
    assert int(difference.max()) <= 1


def test_long_prompt_is_cut_and_said(tmp_path: Path) -> None:
    events: list[Event] = []
    long = recipe(prompt="sea " * 10_000, negative_prompt="fog " * 47, steps=1)
    result = hirescli.generate(long, tmp_path / "out.tif", listener=events.append)
    assert result.recipe.truncated_to_tokens == 43
    assert result.recipe.negative_truncated_to_tokens == 46
    said = [event.message for event in events if isinstance(event, Warned)]
    assert [message.partition(";")[0] for message in said] == [
        "the prompt has 10000 tokens",
        "the negative prompt has 47 tokens",
    ]
    assert [message[-8:] for message in said] == ["first 43", "first 46"]


def stages_of(model: Model, plan: Plan, folder: Path) -> Stages:
    noise, journal = torch.Generator().manual_seed(0), Journal(folder, print)
    return Stages(model, plan, noise, folder, lambda _: None, journal)


def test_weights_that_are_not_numbers(model: Model, tmp_path: Path) -> None:
    broken = replace(model, unet=copy.deepcopy(model.unet))
    with torch.no_grad():
        broken.unet.conv_in.bias.fill_(float("nan"))
    plan = hirescli.plan(recipe(128))
    stages = stages_of(broken, plan, tmp_path)
    base, upscale = plan.stage_costs
    with pytest.raises(RunError, match=r"stage 1 \(64x64 px\)"):
        stages.base(base)
    encoded = banded_tensor(torch.zeros(1, 16, 32, 32))
    with pytest.raises(RunError, match=r"stage 2 \(128x128 px\).*--guidance-scale") as caught:
        stages.upscale(upscale, encoded)
    assert "unet." in str(caught.value)  # the module is named
    assert "--dtype" not in str(caught.value)  # it is float32 already
    halved = replace(plan, recipe=plan.recipe.model_copy(update={"dtype": "bfloat16"}))
    with pytest.raises(RunError, match="--dtype float32"):
        stages_of(broken, halved, tmp_path).upscale(upscale, encoded)


def test_latents_that_are_not_numbers(model: Model, tmp_path: Path) -> None:
    plan = hirescli.plan(recipe())
    (base,) = plan.stage_costs
    latents = banded_tensor(torch.full((1, 16, 16, 16), float("nan")))
    with (
        Spool.create(tmp_path / "spool", width_px=128, height_px=128) as spool,
        pytest.raises(RunError, match=r"stage 1 .*not a finite number.*try a lower") as caught,
    ):
        stages_of(model, plan, tmp_path).decode(latents, base, spool)
    assert "--dtype" not in str(caught.value)


class OverflowsInHalf(torch.nn.Module):
    """A layer whose values are too large for bfloat16, as those of some decoders are."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.inner(x)
        return made * float("inf") if made.dtype == torch.bfloat16 else made


def test_a_decoder_that_overflows_is_tried_again_in_float32(model: Model, tmp_path: Path) -> None:
    autoencoder = copy.deepcopy(model.autoencoder)
    autoencoder.decoder[-1] = OverflowsInHalf(autoencoder.decoder[-1])
    plan = hirescli.plan(recipe())
    (base,) = plan.stage_costs
    latents = banded_tensor(
        torch.randn((1, 16, 16, 16), generator=torch.Generator().manual_seed(1))
    )
    pixels = []
    for name, dtype in (("wanted", torch.float32), ("again", torch.bfloat16)):
        told: list[Event] = []
        folder = tmp_path / name
        folder.mkdir()
        fragile = replace(model, autoencoder=autoencoder.to(dtype))
        stages = replace(stages_of(fragile, plan, folder), listener=told.append)
        with Spool.create(folder / "spool", width_px=128, height_px=128) as spool:
            stages.decode(latents, base, spool)
            pixels.append(spool.read_rows(0, 128))
        said = [event.message for event in told if isinstance(event, Warned)]
        assert len(said) == (name == "again")
        assert all("decoding again in float32" in each for each in said)
        assert autoencoder.dtype == dtype  # as it was
    assert pixels[0].std() > 1
    assert abs(pixels[0].astype(int) - pixels[1]).max() <= 2  # weights were rounded to bfloat16


def test_schedule_longer_than_the_model_has_is_refused(tmp_path: Path) -> None:
    wrong = recipe(256, strengths=(0.01,), upscale_steps=20)
    with pytest.raises(RequestError, match=r"2000.*1000"):
        hirescli.generate(wrong, tmp_path / "out.tif")
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_gives_a_picture(tmp_path: Path) -> None:
    result = hirescli.generate(recipe(dtype="bfloat16"), tmp_path / "out.tif")
    assert tifffile.imread(result.path).std() > 1


def child(folder: Path, *words: object, **environment: str) -> dict[str, Any]:
    """The result of `hires generate --json` in a process of its own."""
    command = [sys.executable, "-m", "hirescli", "generate", "--prompt", "a lake", "--json"]
    done = subprocess.run(
        [*command, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["images"][0]
    return result


def test_threads_of_the_environment_change_no_byte(tmp_path: Path) -> None:
    made = [
        child(tmp_path, "--steps", 2, "--overwrite", "-o", "out.tif", OMP_NUM_THREADS=count)
        for count in ("1", "2")
    ]
    assert made[0]["sha256"] == made[1]["sha256"]


def test_threads_are_those_of_the_recipe_and_set_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    seen: set[int] = set()
    wanted = recipe(threads=before + 1, steps=1)
    result = hirescli.generate(
        wanted, tmp_path / "out.tif", listener=lambda _: seen.add(torch.get_num_threads())
    )
    assert seen == {before + 1} == {result.recipe.threads}
    assert torch.get_num_threads() == before


def test_an_interrupted_image_leaves_its_run_directory_and_later_ones_nothing(
    tmp_path: Path,
) -> None:
    machine, threads = Machine.detect(), torch.get_num_threads()
    plans = [
        hirescli.plan(recipe(seed=seed)).validate(machine, tmp_path / f"{seed}.tif")
        for seed in (1, 2, 3)
    ]
    spool = tmp_path / "1.tif.run" / "last.spool.tif"
    seen: list[int] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, RunStarted):
            seen.append(spool.stat().st_blocks * 512)
        if isinstance(event, StepDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plans, interrupt)
    assert seen[0] >= 64 * 64 * 3  # reserved before the first step
    assert [path.name for path in tmp_path.iterdir()] == ["1.tif.run"]
    left = {path.name for path in spool.parent.iterdir() if not path.name.endswith(".record")}
    texts = {"recipe.json", "plan.json", "conditions.json", "journal.jsonl"}
    assert left - {"lock"} == {*texts, "last.spool.tif"}
    assert torch.get_num_threads() == threads


def test_conflicts_of_all_images_are_refused_before_the_first(tmp_path: Path) -> None:
    machine, events = Machine.detect(), list[Event]()
    RunDirectory(tmp_path / "2.tif", recipe=recipe(seed=9)).release()
    plans = [
        hirescli.plan(recipe(seed=seed)).validate(machine, tmp_path / f"{seed}.tif")
        for seed in (1, 2)
    ]
    with pytest.raises(RequestError, match=r"2\.tif\.run is left"):
        run(plans, events.append)
    with pytest.raises(RequestError, match="two files"):
        run([plans[0], plans[0]], events.append)
    assert [path.name for path in tmp_path.iterdir()] == ["2.tif.run"]
    assert events == []


def test_an_output_that_appears_during_the_run_stays(tmp_path: Path) -> None:
    output = tmp_path / "out.png"

    def appear(event: Event) -> None:
        if isinstance(event, StepDone):
            output.write_text("of somebody else")

    with pytest.raises(RunError, match="appeared during the run"):
        hirescli.generate(recipe(steps=1), output, listener=appear)
    assert output.read_text() == "of somebody else"
    with Spool.open(tmp_path / "out.png.run" / "last.spool.tif") as spool:
        assert spool.read_rows(0, 64).std() > 1


@pytest.mark.parametrize("px", [128, 512])
def test_memory_is_what_the_plan_says(tmp_path: Path, px: int) -> None:
    made = child(tmp_path, "--size", px, "--steps", 2, "--upscale-steps", 1, "-o", "out.tif")
    planned_bytes = hirescli.plan(hirescli.Recipe.from_fragments(made["recipe"])).store_bytes
    measured_bytes = made["peak_rss_bytes"]
    assert measured_bytes <= planned_bytes["host"] <= 1.6 * measured_bytes
