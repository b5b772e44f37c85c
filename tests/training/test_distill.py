"""`hires distill linfusion`: every family and kind of data, resumed, loaded again; bad input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.utils import parameters_to_vector

import hirescli
from hirescli.attention.linfusion import LinearAttention, LinFusionAdapter
from hirescli.errors import RequestError
from hirescli.training.distill.cache import Cache
from hirescli.training.distill.captions import list_pictures
from hirescli.training.distill.finding import find_unet
from hirescli.training.distill.making import read_square
from hirescli.training.distill.rendered import RenderedSamples, views_of
from hirescli.training.distill.settings import DistillRun
from hirescli.training.lessons import DETAIL, DOUBLING, SUFFIX
from tests.models.folders import FOLDERS, small_unet
from tests.training.small_builtin import builtin_folder, shards

ROOT = Path(__file__).parents[2]
QUICK = ("--steps", 2, "--batch", 2, "--threads", 1, "--device", "cpu")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of every family."""
    folder = tmp_path_factory.mktemp("models")
    for family, make in FOLDERS.items():
        make(folder / family)
    builtin_folder(folder / "builtin")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures with captions beside them, none square."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i, size in enumerate([(150, 200), (200, 140), (130, 131)]):
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"the cat {i}\n")
    return folder


def sha256(folder: Path) -> str:
    file = folder / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


# What it makes


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_adapters_of_stable_diffusion(
    hires: Callable, models: Path, data: Path, family: str
) -> None:
    ran = hires(
        "distill", "linfusion", "-m", models / family, "--data", data, "-o", "out", *QUICK,
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    said = [json.loads(line) for line in ran.out.splitlines()]
    assert said[0] == {"samples": 3, "of": 3}
    assert said[-2]["step"] == 2
    assert said[-1] == {"adapter": "out"}
    unet = small_unet(family)
    adapter = hirescli.linearize(unet, "linfusion", weights="out")
    assert sum(isinstance(m, LinearAttention) for m in unet.modules()) == len(adapter.entries)
    widths = {(entry.dim_n, entry.projection_mid_dim) for entry in adapter.entries}
    assert widths == {(dim, dim // (16 if family == "sdxl" else 1)) for dim, _ in widths}
    fresh = LinFusionAdapter.for_unet(small_unet(family), mid_dim_scale=1)
    before, after = (each.get_parameter("0.to_q.weight").float() for each in (fresh, adapter))
    assert 0 < float((before - after).detach().abs().max()) < 1e-3  # two steps of 1e-4 away


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_of_the_built_in_model(hires: Callable, models: Path, dtype: str) -> None:
    folder = shards(Path("shards"), "wide", "close")
    words = ("-m", models / "builtin", "--data", folder, "-o", "out", "--dtype", dtype)
    ran = hires("distill", "linfusion", *words, *QUICK)
    assert ran.code == 0, ran.err
    about = json.loads(Path("out/distillation.json").read_text())
    assert (about["resolution_px"], about["mid_dim_scale"], about["steps"]) == (64, 4, 2)
    adapter = LinFusionAdapter.from_pretrained("out")
    assert {entry.projection_mid_dim for entry in adapter.entries} == {2}
    assert ran.out.splitlines()[-1] == "adapter out"
    assert ran.err == ""  # no bars and worries of libraries


@pytest.mark.parametrize("family", ["builtin", "sdxl"])
def test_pictures_that_the_teacher_draws(hires: Callable, models: Path, family: str) -> None:
    Path("prompts.txt").write_text("\ufeffthe cat\n\na sea\r\n")
    words = ("-m", models / family, "--prompts", "prompts.txt", "-o", "out", "--resolution", 64)
    words = (*words, "--sampling-steps", 2)
    ran = hires("distill", "linfusion", *words, *QUICK, "--steps", 1, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out.splitlines()[1]) == {"samples": 2, "of": 2}
    cache = Cache(Path("out.run/cache"))
    before = cache.path(1).read_bytes()
    latents = cache.read(1)["latents"]
    assert latents.shape == (16 if family == "builtin" else 4, 8, 8)
    assert ("pooled" in cache.read(None)) == (family == "sdxl")
    cache.path(1).unlink()  # as after a kill: only what is missing is drawn, and drawn the same
    ran = hires("distill", "linfusion", *words, *QUICK, "--json")
    assert json.loads(ran.out.splitlines()[0]) == {"samples": 1, "of": 1}
    assert cache.path(1).read_bytes() == before


def test_stopped_and_gone_on_gives_the_same_bytes(
    hires: Callable, models: Path, data: Path
) -> None:
    words = ("distill", "linfusion", "-m", models / "sd15", "--data", data, *QUICK, "--steps", 3)
    assert hires(*words, "-o", "whole").code == 0
    ran = hires(*words, "-o", "parts", "--minutes", 0)
    assert (ran.code, Path("parts").exists()) == (0, False)
    assert "stopped" in ran.out
    assert hires(*words, "-o", "parts", "--minutes", 0, "--micro-batch", 2).code == 0
    assert hires(*words, "-o", "parts").code == 0
    assert sha256(Path("whole")) == sha256(Path("parts"))
    ran = hires(*words, "-o", "parts")
    assert (ran.code, "finished already" in ran.out) == (0, True)
    assert hires(*words, "-o", "parts", "--steps", 4).code == 0  # more steps go on
    assert json.loads(Path("parts/distillation.json").read_text())["steps"] == 4
    assert sha256(Path("whole")) != sha256(Path("parts"))
    assert not list(Path().glob("*.partial"))


def test_it_begins_from_an_adapter(hires: Callable, models: Path, data: Path) -> None:
    words = ("distill", "linfusion", "-m", models / "sd15", "--data", data, *QUICK)
    assert hires(*words, "-o", "first", "--mid-dim-scale", 2).code == 0
    ran = hires(*words, "-o", "second", "--start", "first", "--steps", 1)
    assert ran.code == 0, ran.err
    first, second = (LinFusionAdapter.from_pretrained(name) for name in ("first", "second"))
    assert second.entries == first.entries
    about = json.loads(Path("second/distillation.json").read_text())
    assert about["mid_dim_scale"] is None  # as the adapter's that it began from
    ran = hires(*words, "-o", "fourth", "--start", "first", "--mid-dim-scale", 4)
    assert (ran.code, "--mid-dim-scale 4 makes" in ran.err) == (2, True)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    moved = max(float((a - b).detach().abs().max()) for a, b in pairs)
    assert 0 < moved < 5e-4
    ran = hires(*words, "-m", models / "sd21", "-o", "third", "--start", "first")
    assert (ran.code, "does not fit this model" in ran.err) == (2, True)


@pytest.mark.slow
def test_two_processes_do_what_one_does(
    hires: Callable, models: Path, data: Path, tmp_path: Path
) -> None:
    """With the environment that `accelerate launch` and `torchrun` make, on the CPU."""
    words = ["distill", "linfusion", "-m", models / "sd15", "--data", data, *QUICK]
    words += ["--learning-rate", 0.01]
    assert hires(*words, "-o", tmp_path / "one").code == 0
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launched += ["--nproc-per-node", "2", "-m", "hirescli", *map(str, words)]
    done = subprocess.run(
        [*launched, "-o", str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("adapter ") == 1
    assert hires(*words, "-o", tmp_path / "other", "--seed", 1).code == 0
    one, two, other = (
        parameters_to_vector(
            LinFusionAdapter.from_pretrained(tmp_path / name).parameters()
        ).detach()
        for name in ("one", "two", "other")
    )
    # In the mean: AdamW turns the rounding of a gradient near zero into a whole step.
    assert float((one - two).abs().mean()) < 0.01 * float((one - other).abs().mean())


# Samples


def test_views_are_of_the_base_and_the_doublings() -> None:
    assert [view.side_px for view in views_of(64, 1000)] == [64, 128, 256]
    assert sum(view.share for view in views_of(64, 1000)) == pytest.approx(1)
    assert [view.side_px for view in views_of(256, 1000)] == [256]
    with pytest.raises(RequestError, match="divides 256"):
        views_of(96, 1000)


def test_rendered_batches(models: Path, tmp_path: Path) -> None:
    target = find_unet(str(models / "builtin")).load("float32")
    run = DistillRun(batch=6, resolution_px=64, caption_dropout=0.5)
    folder = shards(tmp_path / "shards", "wide", "close")
    samples = RenderedSamples(folder, target, run, timesteps=1000)
    limits = {view.side_px // 8: view.timesteps for view in samples.views}
    assert limits == {8: (0, 1000), 16: DOUBLING.timesteps, 32: DETAIL.timesteps}
    sides, degraded = set(), 0
    for step in range(12):
        batch = samples.batch(step, range(6))
        again = samples.batch(step, [4])
        side = batch.x_0.shape[-1]
        torch.testing.assert_close(again.x_0[0], batch.x_0[4])
        assert torch.equal(again.noise[0], batch.noise[4])
        assert torch.equal(again.timesteps[0], batch.timesteps[4])
        sides.add(side)
        first, end = limits[side]
        assert first <= int(batch.timesteps.min()) <= int(batch.timesteps.max()) < end
        if side > 8:
            degraded += int((batch.begun != batch.x_0).flatten(1).any(1).sum())
        else:
            assert torch.equal(batch.begun, batch.x_0)
    assert sides == {8, 16, 32}
    assert degraded > 0
    texts = {"a lake", "water"}
    assert {""} < set(samples.states) <= {"", *texts, *(t + SUFFIX["close"] for t in texts)}


def test_a_view_has_its_own_timesteps(models: Path, tmp_path: Path) -> None:
    """One that is left to each view, so that any other would be seen."""
    target = find_unet(str(models / "builtin")).load("float32")
    run = DistillRun(batch=2, resolution_px=64)
    views = [replace(v, timesteps=(v.side_px, v.side_px + 1)) for v in views_of(64, 1000)]
    folder = shards(tmp_path / "shards", "wide")
    samples = RenderedSamples(folder, target, run, timesteps=1000, views=views)
    for step in range(12):
        batch = samples.batch(step, range(2))
        assert batch.timesteps.tolist() == [8 * batch.x_0.shape[-1]] * 2


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_captions_are_read(data: Path, kind: str) -> None:
    names = [f"{i}.png" for i in range(3)]
    if kind != "txt":
        for path in data.glob("*.txt"):
            path.write_text("not this one")
    if kind == "jsonl":
        lines = [{"file_name": n, "text": f"the  cat {i}"} for i, n in enumerate(names)]
        (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if kind == "csv":
        rows = ["file_name,caption", *(f'{n},"the cat {i}"' for i, n in enumerate(names))]
        (data / "captions.csv").write_text("\n".join(rows))
    listed = list_pictures(data, least_px=64, skip_broken=False)
    assert [each.caption for each in listed.pictures] == ["the cat 0", "the cat 1", "the cat 2"]
    assert [each.path.name for each in listed.pictures] == names


def test_the_middle_square_is_read(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, 32:96] = 255  # exactly the middle
    Image.fromarray(pixels).save(tmp_path / "a.png")
    made = read_square(tmp_path / "a.png", 32, tmp_path)
    assert made.shape == (3, 32, 32)
    assert float(made[:, :, 4:-4].min()) == 1.0
    lying = Image.fromarray(pixels)
    exif = lying.getexif()
    exif[0x0112] = 6  # stored lying, to be turned
    lying.save(tmp_path / "b.jpg", exif=exif, quality=95)
    assert float(read_square(tmp_path / "b.jpg", 32, tmp_path)[:, 4:-4].min()) > 0.9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.jpg"]


# Bad input


def spoil(data: Path, how: str) -> None:
    """Make a folder of pictures wrong."""
    path = data / "1.png"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif how == "text":
        path.write_text("<html>not found</html>")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "small":
        Image.new("RGB", (40, 300)).save(path)
    elif how == "no caption":
        (data / "1.txt").unlink()
    elif how == "empty caption":
        (data / "1.txt").write_text(" \n")
    elif how == "damaged inside":  # whole by its headers, wrong when it is decoded
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2 : len(raw) // 2 + 2000] = bytes(2000)
        path.write_bytes(raw)


SPOILS = {
    "truncated": "1.png", "text": "1.png", "empty": "1.png", "small": "40x300 px",
    "no caption": "1.png has no caption", "empty caption": "1.png has no caption",
    "damaged inside": "1.png",
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILS)
def test_broken_pictures_are_named_or_left_out(
    hires: Callable, models: Path, data: Path, how: str
) -> None:
    spoil(data, how)
    words = ("distill", "linfusion", "-m", models / "sd15", "--data", data, "-o", "out", *QUICK)
    ran = hires(*words)
    assert ran.code == 2, ran.err
    assert "1 of 3 pictures" in ran.err
    assert SPOILS[how] in ran.err
    assert "--skip-broken" in ran.err
    assert "Traceback" not in ran.err
    assert not Path("out").exists()
    if how in ("small", "damaged inside"):  # one of each way that they are found
        ran = hires(*words, "--skip-broken", "--steps", 1)
        assert ran.code == 0, ran.err
        assert "left out: " in ran.out
        assert len(Cache(Path("out.run/cache")).made(3)) == 2


def test_the_first_of_many_broken_pictures_are_listed(data: Path) -> None:
    for i in range(8):
        (data / f"bad{i}.jpg").write_bytes(b"")
        (data / f"bad{i}.txt").write_text("nothing")
    with pytest.raises(RequestError, match=r"8 of 11 pictures(.|\n)*and 3 more"):
        list_pictures(data, least_px=8, skip_broken=False)
    for i in range(3):
        (data / f"{i}.png").write_bytes(b"")
    with pytest.raises(RequestError, match=r"11 of 11 pictures"):
        list_pictures(data, least_px=8, skip_broken=True)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("metadata.jsonl", '{"file_name": "0.png"}', "line 1: it needs file_name and text"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": 7}', "both text"),
        ("metadata.jsonl", "no json", "JSON lines"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "text": "a"}\n\n{no',
            r"line 3: cannot be read",
        ),
        ("metadata.jsonl", '{"file_name": "../x.png", "text": "a"}', "not in the folder"),
        ("metadata.jsonl", '{"file_name": "9.png", "text": "a"}', "9.png does not exist"),
        ("captions.csv", "name,words\n0.png,a", "line 2: it needs file_name"),
        ("captions.csv", "file_name,text\n/etc/passwd,a", "not in the folder"),
        ("captions.csv", b"file_name,text\n0.png,\xff", "CSV"),
        ("0.txt", b"\xff\xfe", "UTF-8"),
    ],
)
def test_files_of_captions_are_checked(
    data: Path, name: str, text: str | bytes, named: str
) -> None:
    (data / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RequestError, match=named):
        list_pictures(data, least_px=8, skip_broken=False)


def flux(folder: Path) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return folder


def without(data: Path, pattern: str) -> None:
    for path in data.glob(pattern):
        path.unlink()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--data gone -o out", "gone does not exist"),
        ("--data {empty} -o out", "holds no pictures"),
        ("--data {bare} -o out", "have no captions"),
        ("-o out", "one of --data and --prompts"),
        ("--data {data} -o out --sampling-steps 3", "--sampling-steps has no effect"),
        ("--data {data} --prompts p.txt -o out", "one of --data and --prompts"),
        ("--prompts gone.txt -o out", "gone.txt cannot be read"),
        ("--prompts {empty}/none.md -o out", "holds no prompts"),
        ("--data {data} -o no/out", "folder no does not exist"),
        ("--data {data} -o {data}", "no distillation's output"),
        ("--data {data} -o .", "is no new name"),
        ("--data {data} -o / --overwrite", "is no new name"),
        ("--data {data} -o .. --overwrite", "is no new name"),
        ("--data {data} -o out --resolution 100", "no multiple of 8 px; give 96"),
        ("--data {data} -o out --resolution 512", "3 of 3 pictures"),
        ("--data {data} -o out --noise-weight -1", "noise term is -1"),
        ("--data {data} -o out --dtype float16", "float16"),
        ("--data {data} -o out --device tpu", "tpu"),
        ("--data {data} -o out --start gone", "gone"),
        ("--data {data} -o out -m {flux}", "distill clear"),
        ("--data {data} -o out -m flux-dev", "distill clear"),
        ("--data {data} -o out -m {empty}", "model_index.json"),
        ("--data {data} -o out -m {half}", "vae, scheduler missing"),
        ("--data {data} -o out -m nothing", '"nothing" is not known'),
        ("--data {shards} -o out", "shards, which are for the built-in model"),
        ("--data {shards} -o out -m builtin --resolution 96", "divides 256"),
    ],
)
def test_wrong_requests(
    hires: Callable, models: Path, data: Path, tmp_path: Path, words: str, named: str
) -> None:
    places = {name: tmp_path / name for name in ("empty", "bare", "half", "shards", "flux")}
    places["empty"].mkdir()
    (places["empty"] / "none.md").write_text("\n\n")
    shutil.copytree(data, places["bare"])
    without(places["bare"], "*.txt")
    (places["half"] / "unet").mkdir(parents=True)
    shards(places["shards"], "wide")
    flux(places["flux"])
    filled = words.format(data=data, **places).split()
    model = () if "-m" in filled else ("-m", models / "sd15")
    ran = hires("distill", "linfusion", *model, *QUICK, *filled)
    assert ran.code == 2, ran.err
    assert named in ran.err
    assert "Traceback" not in ran.err
    assert not Path("out").exists()


def test_weights_of_another_architecture_are_named(
    hires: Callable, models: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(models / "sd15", folder)
    shutil.copy(models / "sd21" / "unet" / "diffusion_pytorch_model.safetensors", folder / "unet")
    ran = hires("distill", "linfusion", "-m", folder, "--data", data, "-o", "out", *QUICK)
    assert ran.code == 2, ran.err
    assert str(folder / "unet") in ran.err
    assert not Path("out").exists()


def test_another_run_in_the_same_place_is_named(hires: Callable, models: Path, data: Path) -> None:
    words = ("distill", "linfusion", "-m", models / "sd15", "--data", data, "-o", "out", *QUICK)
    assert hires(*words, "--minutes", 0).code == 0
    ran = hires(*words, "--learning-rate", 0.1)
    assert (ran.code, "learning_rate was 0.0001, not 0.1" in ran.err) == (2, True)
    ran = hires(*words, "-m", models / "sd21", "--resolution", 64)
    assert (ran.code, "revision was" in ran.err) == (2, True)
    (data / "0.txt").write_text("another caption")
    ran = hires(*words)
    assert (ran.code, "samples was" in ran.err) == (2, True)
    assert "--restart" in ran.err
    ran = hires(*words, "--restart", "--learning-rate", 0.1)
    assert ran.code == 0, ran.err
    assert json.loads(Path("out/distillation.json").read_text())["learning_rate"] == 0.1


def test_one_that_never_began_blocks_no_other(hires: Callable, models: Path, data: Path) -> None:
    """Its samples could not be made, so there is no step of it to lose."""
    path = data / "1.png"
    whole = path.read_bytes()
    spoil(data, "damaged inside")
    words = ("distill", "linfusion", "-m", models / "sd15", "--data", data, "-o", "out", *QUICK)
    assert hires(*words).code == 2
    assert Path("out.run/run.json").exists()
    path.write_bytes(whole)
    (data / "0.txt").write_text("another caption")
    ran = hires(*words, "--learning-rate", 0.1)
    assert ran.code == 0, ran.err


def test_a_damaged_sample_is_named(hires: Callable, models: Path, data: Path) -> None:
    words = ("distill", "linfusion", "-m", models / "sd15", "--data", data, "-o", "out", *QUICK)
    assert hires(*words, "--minutes", 0).code == 0
    for path in Path("out.run/cache").glob("0*.safetensors"):
        path.write_bytes(b"nothing")
    ran = hires(*words)
    assert (ran.code, "is damaged" in ran.err, Path("out").exists()) == (1, True, False)
