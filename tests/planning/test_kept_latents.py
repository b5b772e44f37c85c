"""The latents that a run keeps at their most are those of its plan, to the byte."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import hirescli
from hirescli.bands import engine
from hirescli.bands.stores import Ledger
from hirescli.bands.tensor import BandedTensor
from hirescli.cascade import stages

sys.path.append(str(Path(__file__).parent.parent / "models"))
from folders import sd15_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Counts what is kept between calls, by all engines of a run, and noise."""
    counted = Ledger()
    new_value, noise_like = engine.new_value, stages.noise_like

    def counting(node: Any, store: str, spill: Path, _: Ledger, **more: Any) -> Any:
        return new_value(node, store, spill, counted, **more)

    def counting_noise(
        latents: BandedTensor, generator: torch.Generator, folder: Path | None
    ) -> BandedTensor:
        made = noise_like(latents, generator, folder)
        count_bytes = 4 * latents.numel()
        counted.add("host", count_bytes)
        weakref.finalize(made.nodes[0], lambda: counted.add("host", -count_bytes))
        return made

    monkeypatch.setattr(engine, "new_value", counting)
    monkeypatch.setattr(stages, "noise_like", counting_noise)
    return counted


@pytest.mark.parametrize(
    "choices",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "method": "skip"},
        {"dtype": "bfloat16", "model": "sd15", "scheduler": "euler"},
        {"dtype": "bfloat16", "model": "sd15", "scheduler": "dpm++"},
    ],
    ids=lambda choices: " ".join(choices.values()),
)
def test_latents_are_kept_as_planned(
    choices: dict[str, str], ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "model" in choices:
        choices = choices | {"model": str(sd15_folder(tmp_path / "small")), "attention": "full"}
    asked = {"prompt": "a lake", "size": 256, "steps": 1, "upscale_steps": 4, "strengths": 0.3}
    recipe = hirescli.Recipe.from_fragments(asked, choices, {"upscale_guidance_scale": 3.0})
    *_, last = hirescli.plan(recipe).stage_costs
    assert last.latents_store == "host"
    hirescli.generate(recipe, tmp_path / "out.tif")
    assert ledger.peak["host"] == last.memory.latents_bytes
