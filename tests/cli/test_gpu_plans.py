"""Plans for models and cards that are not here: weights, memory, attention, guides."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

P = ("-p", "a lake", "--json")
GB = 10**9


def planned(hires: Callable, *words: object) -> dict[str, Any]:
    ran = hires("plan", *P, *words)
    assert ran.out, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


@pytest.mark.parametrize(
    ("model", "gpu"),
    [("sd15", 8), ("sd15", 80), ("sd21", 12), ("sdxl", 8), ("sdxl", 12), ("sdxl", 80)],
)
def test_every_card_gets_a_plan_within_it(hires: Callable, model: str, gpu: int) -> None:
    """Without weights here, and without a GPU."""
    plan = planned(hires, "-m", model, "--size", 4096, "--gpu", f"{gpu}GB")
    assert plan["recipe"]["device"] == "cuda"
    assert plan["store_bytes"]["device"] <= 0.75 * gpu * GB
    rests = plan["weights"].startswith("host")
    assert rests == (model == "sdxl" and gpu == 8)
    for stage in plan["stages"]:  # its own attention where that is as fast
        assert stage["attention"] == ("full" if stage["width_px"] <= 1024 else "linear")


def test_more_memory_never_takes_longer(hires: Callable) -> None:
    words = ("-m", "sdxl", "--size", 8192)
    seconds = [planned(hires, *words, "--gpu", f"{n}GB")["seconds"] for n in (8, 24, 80)]
    assert seconds == sorted(seconds, reverse=True)


def test_attention_can_be_asked_for(hires: Callable) -> None:
    words = ("-m", "sd15", "--size", 1024, "--gpu", "24GB")
    for attention in ("linear", "full"):
        plan = planned(hires, *words, "--attention", attention)
        assert {stage["attention"] for stage in plan["stages"]} == {attention}


def test_what_flux_does_not_run_is_said(hires: Callable) -> None:
    words = ("-m", "flux-dev", "--size", 1024, "--gpu", "40GB")
    warned = planned(hires, *words, "--negative-prompt", "fog")["warnings"]
    assert any("no effect with model `flux-dev`" in warning for warning in warned)
    ran = hires("plan", *P, *words, "--method", "skip")
    assert ran.code == 2
    assert "--method skip does not work with model `flux-dev`" in ran.err


def test_a_card_that_is_too_small_is_refused(hires: Callable) -> None:
    ran = hires("plan", "-p", "a lake", "-m", "sd15", "--size", 512, "--gpu", "0.8GB")
    assert ran.code == 2
    assert "GPU memory" in ran.err
    assert "--memory" in ran.err


def test_the_skip_method_counts_its_second_prediction(hires: Callable) -> None:
    words = ("-m", "sdxl", "--size", 2048, "--gpu", "24GB")
    plain = planned(hires, *words)["flops"]
    assert planned(hires, *words, "--method", "skip")["flops"] > 1.2 * plain


@pytest.mark.parametrize("option", ["--dtype", "--vae-dtype"])
def test_float16_is_not_offered(hires: Callable, option: str) -> None:
    """It overflows in SDXL's decoder."""
    ran = hires("plan", "-p", "x", "-m", "sdxl", "--size", 1024, option, "float16")
    assert ran.code == 2
    assert "bfloat16" in ran.err
