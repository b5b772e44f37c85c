"""`hires distill clear`: both families, prompts and pictures, resumed, loaded again; bad input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hirescli
from hirescli.attention.clear_mount import mount
from hirescli.attention.clear_weights import save_clear
from hirescli.training.distill.cache import Cache
from hirescli.training.distill.calls import FluxCall, SD3Call
from hirescli.training.distill.finding import find_transformer
from tests.models.folders import TRANSFORMERS, flux_folder, sd15_folder, small_flux, small_sd3
from tests.training.small_builtin import builtin_folder

ROOT = Path(__file__).parents[2]
OUT = "out.safetensors"
# 4x4 tokens
QUICK = ("--steps", 2, "--batch", 2, "--resolution", 64, "--window", 3, "--threads", 1)
QUICK = (*QUICK, "--device", "cpu", "--sampling-steps", 1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of every family, and of those that are refused."""
    folder = tmp_path_factory.mktemp("transformers")
    for family, make in TRANSFORMERS.items():
        make(folder / family)
    flux_folder(folder / "schnell", guided=False)
    sd15_folder(folder / "sd15")
    builtin_folder(folder / "builtin")
    (folder / "pixart").mkdir()
    (folder / "pixart" / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("the cat\na sea\nthe hat\n")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures with captions beside them."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(2):
        pixels = random.integers(0, 256, (80, 100 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"the cat {i}\n")
    return folder


def sha256(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def metadata(path: str) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def small(family: str) -> Any:
    return small_sd3() if family == "sd3" else small_flux(family == "flux")


# What it makes


@pytest.mark.parametrize("family", ["flux", "schnell", "sd3"])
def test_a_file_of_each_family(hires: Callable, models: Path, prompts: Path, family: str) -> None:
    words = ("-m", models / family, "--prompts", prompts, "-o", OUT, "--down-factor", 2)
    ran = hires("distill", "clear", *words, *QUICK, "--json")
    assert ran.code == 0, ran.err
    said = [json.loads(line) for line in ran.out.splitlines()]
    assert said[2] == {"samples": 3, "of": 3}
    assert (said[-2]["step"], said[-1]) == (2, {"adapter": OUT})
    about = json.loads(metadata(OUT)["distillation"])
    assert (about["method"], about["window"], about["down_factor"]) == ("clear", 3, 2)
    assert (about["optimizer"], about["learning_rate"], about["batch"]) == ("prodigy", 1.0, 2)
    assert about["caption_dropout"] == (0.1 if family == "sd3" else 0.0)
    cache = Cache(Path(OUT + ".run/cache"))
    assert cache.read(1)["latents"].shape == (4, 8, 8)
    assert cache.read(None).keys() == {"text", "pooled"}
    made = small(family)
    mounted = hirescli.linearize(made, "clear", weights=OUT)
    assert (mounted.settings.window, mounted.settings.down_factor) == (3, 2)
    assert set(load_file(OUT)) == set(mounted.parameters())
    before = cache.path(1).read_bytes()
    cache.path(1).unlink()  # as after a kill: only what is missing is drawn, and drawn the same
    ran = hires("distill", "clear", *words, *QUICK, "--json", "--steps", 3)
    assert json.loads(ran.out.splitlines()[0]) == {"samples": 1, "of": 1}
    assert cache.path(1).read_bytes() == before


def test_generate_takes_the_file(hires: Callable, models: Path, prompts: Path) -> None:
    words = ("-m", models / "flux", "--prompts", prompts, "-o", OUT, *QUICK)
    assert hires("distill", "clear", *words, "--optimizer", "adamw").code == 0
    ran = hires(
        "generate", "-m", models / "flux", "--adapter", OUT, "--attention", "linear",
        "-p", "a sea", "--size", 256, "--steps", 1, "--dtype", "float32",
        "--vae-dtype", "float32", "-o", "a.png",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    with Image.open("a.png") as image:
        assert image.size == (256, 256)


def test_pictures_with_captions(hires: Callable, models: Path, data: Path) -> None:
    """And from an adapter: one step of AdamW away from it."""
    words = ("distill", "clear", "-m", models / "sd3", *QUICK[:-2], "--optimizer", "adamw")
    words = (*words, "--data", data, "--dtype", "float32", "--steps", 1)
    assert hires(*words, "-o", "first.safetensors", "--learning-rate", 0.1).code == 0
    ran = hires(*words, "-o", "second.safetensors", "--start", "first.safetensors")
    assert ran.code == 0, ran.err
    first, second = (load_file(f"{name}.safetensors") for name in ("first", "second"))
    own = small("sd3").state_dict()
    for name in first:
        a, b = first[name].float(), second[name].float()
        torch.testing.assert_close(a, b, rtol=0.01, atol=1.1e-4)  # bfloat16, and one step
        assert float((a - own[name]).abs().max()) > 0.05


def test_stopped_and_gone_on_gives_the_same_bytes(
    hires: Callable, models: Path, prompts: Path
) -> None:
    words = ("distill", "clear", "-m", models / "flux", "--prompts", prompts, *QUICK)
    words = (*words, "--steps", 3, "--down-factor", 2)
    assert hires(*words, "-o", "whole.safetensors").code == 0
    ran = hires(*words, "-o", OUT, "--minutes", 0)
    assert (ran.code, Path(OUT).exists(), "stopped" in ran.out) == (0, False, True)
    assert hires(*words, "-o", OUT, "--gradient-checkpointing").code == 0
    assert sha256("whole.safetensors") == sha256(OUT)
    ran = hires(*words, "-o", OUT)
    assert (ran.code, "finished already" in ran.out) == (0, True)
    ran = hires(*words, "-o", OUT, "--window", 2)
    assert (ran.code, "window was 3, not 2" in ran.err) == (2, True)
    ran = hires(*words, "-o", OUT, "--optimizer", "adamw")
    assert (ran.code, "optimizer was prodigy, not adamw" in ran.err) == (2, True)
    ran = hires(*words, "-m", models / "sd3", "-o", OUT)
    assert (ran.code, "model was flux, not sd3" in ran.err) == (2, True)
    assert hires(*words, "-o", OUT, "--window", 2, "--restart").code == 0
    assert metadata(OUT)["clear_window"] == "2"
    assert not list(Path().glob("*.partial"))


@pytest.mark.slow
def test_killed_and_gone_on_gives_the_same_bytes(
    hires: Callable, models: Path, prompts: Path
) -> None:
    words = ["distill", "clear", "-m", models / "sd3", "--prompts", prompts, *QUICK]
    many = [*words, "--save-every", 1, "--steps", 100_000, "-o", OUT]
    process = subprocess.Popen(
        [sys.executable, "-m", "hirescli", *map(str, many)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    state = Path(OUT + ".run/state.pt")
    end = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = torch.load(state, weights_only=True)["step"]
    assert done >= 1
    steps = ("--steps", done + 1)
    ran = hires(*words, "-o", OUT, *steps)
    assert ran.code == 0, ran.err
    assert f"going on from step {done}" in ran.out
    assert hires(*words, "-o", "whole.safetensors", *steps).code == 0
    assert sha256("whole.safetensors") == sha256(OUT)


@pytest.mark.parametrize("family", ["flux", "schnell", "sd3"])
def test_a_call_is_that_of_the_pipeline(models: Path, family: str) -> None:
    """Its one step from noise at sigma 1 to 0 takes the whole prediction off the noise."""
    target = find_transformer(str(models / family)).load("float32")
    text, pooled = target.states(["the cat"])
    assert pooled is not None
    call, schedule = target.call(64), target.schedule()
    assert isinstance(call, SD3Call if family == "sd3" else FluxCall)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = call(noise, schedule.told(torch.tensor([999])), text, pooled)
    pipeline = target.model.text.pipeline(
        transformer=target.denoiser, vae=target.model.autoencoder, scheduler=target.model.scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    guidance = {} if family == "schnell" else {"guidance_scale": 3.5 if family == "flux" else 1.0}
    drawn = pipeline(
        prompt="the cat", height=64, width=64, num_inference_steps=1, output_type="latent",
        latents=noise if family == "sd3" else pipeline._pack_latents(noise, 1, 4, 8, 8),
        max_sequence_length=256 if family != "flux" else 512, **guidance,
    ).images  # fmt: skip
    if family != "sd3":
        drawn = pipeline._unpack_latents(drawn, 64, 64, 8)
    torch.testing.assert_close(noise - drawn, made, rtol=1e-4, atol=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("-m {sd15}", "whose denoiser is a UNet"),
        ("-m {builtin}", "hires distill linfusion"),
        ("-m builtin", "hires distill linfusion"),
        ("-m sdxl", "hires distill linfusion"),
        ("-m {pixart}", "PixArtAlphaPipeline"),
        ("-m {flux} --window 5", "--resolution 64 is 4x4 tokens of 16 px"),
        ("-m {flux} --window 5", "a window of at most 4"),
        ("-m {flux} --down-factor 3", "down factors that work: 1, 2, 4"),
        ("-m {flux} --resolution 72", "no multiple of 16 px; give 64"),
        ("-m {sd3} --resolution 208", "ends at 192 px"),
        ("-m {flux} --optimizer sgd", '--optimizer "sgd" is not known; give adamw or prodigy'),
        ("-m {flux} --dtype float16", "float16"),
        ("-m {flux} --learning-rate 0", "must be above 0"),
        ("-m {flux} -o out", "give out.safetensors"),
        ("-m {flux} -o {prompts}", "does not end in .safetensors"),
        ("-m {flux} -o {other}", "no distillation's output; name another file, or give"),
        ("-m {flux} --start gone.safetensors", "no CLEAR weights gone.safetensors"),
        ("-m {flux} --start {wide}", "was made for window 4, not 3"),
        ("-m {flux} --start {foreign}", "which this model has no place for"),
        ("-m {flux} --start {other} --down-factor 2", "is not complete"),
    ],
)
def test_wrong_requests(
    hires: Callable, models: Path, prompts: Path, tmp_path: Path, words: str, named: str
) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("wide", "foreign", "other")}
    for name, file in files.items():
        model = small("sd3" if name == "foreign" else "flux")
        mount(model, window=4 if name == "wide" else 3)
        save_clear(model, file)
    if "--down-factor" in words:  # words that say nothing of it
        save_file(load_file(files["other"]), files["other"])
    folders = {path.name: path for path in models.iterdir()}
    filled = words.format(**folders, **files, prompts=prompts).split()
    out = () if "-o" in filled else ("-o", OUT)
    before = sha256(files["other"]), sha256(prompts)
    ran = hires("distill", "clear", "--prompts", prompts, *QUICK, *out, *filled)
    assert ran.code == 2, ran.err
    assert named in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert not Path(OUT).exists()
    assert before == (sha256(files["other"]), sha256(prompts))


@pytest.mark.parametrize("how", ["damaged", "no caption", "small"])
def test_broken_pictures_are_named_or_left_out(
    hires: Callable, models: Path, data: Path, how: str
) -> None:
    path = data / "1.png"
    if how == "damaged":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "no caption":
        (data / "1.txt").unlink()
    else:
        Image.new("RGB", (40, 300)).save(path)
    words = ("distill", "clear", "-m", models / "sd3", "--data", data, *QUICK[:-2], "-o", OUT)
    ran = hires(*words)
    assert (ran.code, "1.png" in ran.err, "--skip-broken" in ran.err) == (2, True, True)
    assert not Path(OUT).exists()
    if how == "small":
        ran = hires(*words, "--skip-broken", "--steps", 1)
        assert (ran.code, "left out: " in ran.out) == (0, True)


def test_weights_of_another_architecture_are_named(
    hires: Callable, models: Path, prompts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(models / "flux", folder)
    file = "transformer/diffusion_pytorch_model.safetensors"
    shutil.copy(models / "sd3" / file, folder / file)
    ran = hires("distill", "clear", "-m", folder, "--prompts", prompts, "-o", OUT, *QUICK)
    assert (ran.code, str(folder / "transformer") in ran.err) == (2, True), ran.err
    assert not Path(OUT).exists()
