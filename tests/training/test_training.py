"""Both trainings on tiny shards: a few steps, resumed, exported, loaded; and wrong requests."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from filelock import FileLock
from PIL import Image

from hirescli.attention.linfusion import LinFusionAdapter
from hirescli.cli import train
from hirescli.errors import BusyError, NotFiniteError, RequestError, RunError
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.load import load as load_model
from hirescli.models.registry import find_card
from hirescli.models.safetensors_check import read_tensors
from hirescli.models.sources import local_revision
from hirescli.models.sums import check_sums
from hirescli.training import autoencoder, denoiser, trainer
from hirescli.training.autoencoder import AutoencoderRun, Crops
from hirescli.training.dataset import PICTURE_PX, PICTURES_PER_SHARD, load_shard, render_shard
from hirescli.training.denoiser import DenoiserRun, DenoiserTraining, v_loss
from hirescli.training.export import export
from hirescli.training.lessons import (
    COMPOSITION,
    DETAIL,
    LESSONS,
    LatentShards,
    Lesson,
    Sampler,
    TextTable,
)
from hirescli.training.sheets import COLUMNS, PROMPTS, write_sheet
from hirescli.training.trainer import cosine_learning_rate, read_state

KEYS = {"model", "ema", "optimizer", "step", "run"}
TINY = (
    Lesson(latent_px=8, batch=2),
    Lesson(latent_px=16, batch=2, degraded_share=0.5, near_share=0.5),
)
WIDTHS = (32, 32, 32)  # the least that group normalisation of 32 groups takes


def write_shard(
    folder: Path, kind: str, *, count: int = 3, number: int = 0, grey: int | None = None
) -> None:
    """A shard of smooth random pictures, or of one grey; rendering a real one takes minutes."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    if grey is not None:
        coarse[:] = grey
    path = folder / f"{kind}-{number:05d}.npy"
    path.with_suffix(".json").write_text(json.dumps([["a lake", "water"]] * count))
    np.save(path, coarse.repeat(PICTURE_PX // 32, 1).repeat(PICTURE_PX // 32, 2))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for kind in ("wide", "close"):
        write_shard(tmp_path / "data", kind)
    return tmp_path / "data"


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    write_shard(tmp_path / "held-out", "wide", number=7)
    return tmp_path / "held-out"


def train_autoencoder(data: Path, held_out: Path, state: Path, steps: int, **more: float) -> list:
    lines: list[str] = []
    run = AutoencoderRun(steps=steps, batch=2, crop_px=16)
    autoencoder.train(data, state, run, held_out=held_out, log=lines.append, **more)
    return [json.loads(line) for line in lines]


def train_denoiser(data: Path, state: Path, steps: int, **more: float) -> list:
    lines: list[str] = []
    run = DenoiserRun(steps=steps, channels=WIDTHS, lessons=TINY)
    model = ThinAutoencoder(decoder_channels=(4, 4, 4), decoder_blocks=(0, 0, 0))
    denoiser.train(data, model, state, run, log=lines.append, **more)
    return [json.loads(line) for line in lines]


def test_autoencoder_trains_and_resumes(data: Path, held_out: Path, tmp_path: Path) -> None:
    state = tmp_path / "ae.pt"
    (first,) = train_autoencoder(data, held_out, state, 3)
    assert set(read_state(state)) == KEYS
    (second,) = train_autoencoder(data, held_out, state, 5)
    assert (first["step"], second["step"]) == (3, 5)
    assert read_state(state)["run"]["steps"] == 5
    assert second["psnr_db"] > 10
    before = state.read_bytes()
    (third,) = train_autoencoder(data / "gone", held_out, state, 5)  # it needs no shards then
    assert (third["step"], "finished already" in third["note"]) == (5, True)
    assert state.read_bytes() == before

    folder = tmp_path / "vae"
    autoencoder.export(autoencoder.load(state), folder)
    read = autoencoder.load(folder)
    assert read.dtype == torch.float32
    torch.testing.assert_close(
        dict(read.state_dict()), dict(autoencoder.load(state).state_dict()), rtol=1e-3, atol=1e-3
    )


def test_only_the_decoder_learns(data: Path, held_out: Path, tmp_path: Path) -> None:
    states = []
    for steps in (1, 4):
        train_autoencoder(data, held_out, tmp_path / "ae.pt", steps)
        states.append(read_state(tmp_path / "ae.pt")["model"])
    before, after = states
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder") for name in changed)


def test_time_is_up(data: Path, held_out: Path, tmp_path: Path) -> None:
    """The first step after the time is the last, whatever the time between two saves."""
    (line,) = train_autoencoder(data, held_out, tmp_path / "a.pt", 1000, stop_after_seconds=0)
    assert line["step"] == read_state(tmp_path / "a.pt")["step"] == 1


def test_photographs_are_a_minority(data: Path, held_out: Path, tmp_path: Path) -> None:
    """A fifth of the crops; the gate goes on measuring renders, photographs beside them."""
    write_shard(data, "photo", grey=255)
    run = AutoencoderRun(crop_px=16)
    crops = Crops(data, run, seed=0).batch(500)
    share = (crops == 1).flatten(1).all(1).float().mean().item()
    assert share == pytest.approx(run.photo_share, abs=0.05)
    assert (
        (Crops(data, AutoencoderRun(photo_share=0.0), seed=0).batch(50) != 1).any((1, 2, 3)).all()
    )

    (without,) = train_autoencoder(data, held_out, tmp_path / "a.pt", 1)
    write_shard(held_out, "photo", grey=128)
    (beside,) = train_autoencoder(data, held_out, tmp_path / "b.pt", 1)
    assert "photo_psnr_db" not in without
    assert beside["psnr_db"] == without["psnr_db"]
    assert beside["photo_psnr_db"] > beside["psnr_db"]  # a flat grey is easy


def test_sample_sheets(data: Path, held_out: Path, tmp_path: Path) -> None:
    """Beside each state: pictures with their reconstructions; samples, twice the base's size."""
    train_autoencoder(data, held_out, tmp_path / "ae.pt", 1)
    with Image.open(tmp_path / "ae.pt.png") as sheet:
        assert sheet.size == (COLUMNS * PICTURE_PX, 2 * PICTURE_PX)  # three pairs and two blanks
        tiles = np.asarray(sheet).reshape(2, PICTURE_PX, COLUMNS, PICTURE_PX, 3)
    shown = np.load(held_out / "wide-00007.npy")
    np.testing.assert_array_equal(
        tiles[:, :, ::2].swapaxes(1, 2).reshape(4, *shown.shape[1:])[:3], shown
    )
    assert np.abs(tiles[0, :, 1].astype(float) - tiles[0, :, 0]).mean() < 60
    train_denoiser(data, tmp_path / "dn.pt", 1)
    with Image.open(tmp_path / "dn.pt.png") as sheet:
        assert sheet.size == (COLUMNS * 128, 128 * len(PROMPTS) // COLUMNS)
        assert np.asarray(sheet).std() > 5


def test_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(RunError, match=r"sheet\.png: "):
        write_sheet(tmp_path / "sheet.png", torch.zeros(2, 3, 8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_denoiser_trains_and_resumes(data: Path, tmp_path: Path) -> None:
    state = tmp_path / "dn.pt"
    (first,) = train_denoiser(data, state, 2)
    write_shard(data, "detail")  # one that appears later is taken up
    (second,) = train_denoiser(data, state, 4)
    assert (first["step"], second["step"]) == (2, 4)
    assert set(read_state(state)) == KEYS
    assert denoiser.load(state).config["block_out_channels"] == WIDTHS


def test_denoiser_begins_at_an_export(data: Path, held_out: Path, tmp_path: Path) -> None:
    train_autoencoder(data, held_out, tmp_path / "ae.pt", 1)
    train_denoiser(data, tmp_path / "dn.pt", 1)
    states = {"autoencoder": tmp_path / "ae.pt", "denoiser": tmp_path / "dn.pt"}
    export(**states, folder=tmp_path / "weights")
    unet = tmp_path / "weights" / "unet"
    begun = denoiser.load(unet).state_dict()

    run = DenoiserRun(steps=1, channels=WIDTHS, lessons=TINY)
    thin = ThinAutoencoder(decoder_channels=(4, 4, 4), decoder_blocks=(0, 0, 0))
    training = DenoiserTraining(data, thin, tmp_path / "more.pt", run, unet)
    torch.testing.assert_close(dict(training.unet.state_dict()), dict(begun))
    torch.testing.assert_close(training.state.average, dict(begun))
    fresh = denoiser.new_unet(channels=WIDTHS).state_dict()
    assert not torch.equal(fresh["conv_in.weight"], begun["conv_in.weight"])

    again = DenoiserTraining(data, thin, tmp_path / "dn.pt", run, unet)  # its state goes before
    assert again.state.step == 1
    with pytest.raises(RequestError, match=r"unet is of another model than UNet2DCond"):
        DenoiserTraining(data, thin, tmp_path / "wide.pt", DenoiserRun(lessons=TINY), unet)


def small_training(data: Path, state: Path, **more: Any) -> DenoiserTraining:
    settings: dict[str, Any] = {"steps": 3, "channels": WIDTHS, "lessons": TINY}
    thin = ThinAutoencoder(decoder_channels=(4, 4, 4), decoder_blocks=(0, 0, 0))
    return DenoiserTraining(data, thin, state, DenoiserRun(**settings | more))


def test_a_loss_that_is_no_number_is_not_learned(data: Path, tmp_path: Path) -> None:
    train_denoiser(data, tmp_path / "dn.pt", 1)
    before = (tmp_path / "dn.pt").read_bytes()
    training = small_training(data, tmp_path / "dn.pt")
    with torch.no_grad():
        training.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="loss of step 2 is no number"):
        trainer.train(training, log=print)
    assert (tmp_path / "dn.pt").read_bytes() == before


def test_a_signal_keeps_the_steps_that_are_finished(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = small_training(data, tmp_path / "dn.pt", steps=5)
    loss = training.loss

    def until_the_third() -> torch.Tensor:
        if training.state.step == 2:
            raise KeyboardInterrupt
        return loss()

    monkeypatch.setattr(training, "loss", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(training, log=print)
    assert read_state(tmp_path / "dn.pt")["step"] == 2


def test_one_process_trains_at_a_state(data: Path, tmp_path: Path) -> None:
    training = small_training(data, tmp_path / "dn.pt")
    with (
        FileLock(tmp_path / "dn.pt.lock"),
        pytest.raises(BusyError, match=r"another process trains at .*dn\.pt"),
    ):
        trainer.train(training, log=print)


def test_another_learning_rate_on_the_way_is_said(data: Path, tmp_path: Path) -> None:
    train_denoiser(data, tmp_path / "dn.pt", 1)
    lines: list[str] = []
    training = small_training(data, tmp_path / "dn.pt", steps=2, learning_rate=1e-5)
    trainer.train(training, log=lines.append)
    notes = [said["note"] for said in map(json.loads, lines) if "note" in said]
    assert notes == ["learning_rate was 0.0006, is 1e-05 from here on"]


def test_export_replaces_nothing_but_an_export(data: Path, held_out: Path, tmp_path: Path) -> None:
    train_autoencoder(data, held_out, tmp_path / "ae.pt", 1)
    train_denoiser(data, tmp_path / "dn.pt", 1)
    theirs = tmp_path / "theirs" / "unet" / "model.bin"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    states = {"autoencoder": tmp_path / "ae.pt", "denoiser": tmp_path / "dn.pt"}
    with pytest.raises(RequestError, match="theirs holds something that is no export"):
        export(**states, folder=tmp_path / "theirs")
    assert theirs.read_text() == "precious"


def test_export_is_a_model_that_loads(data: Path, held_out: Path, tmp_path: Path) -> None:
    train_autoencoder(data, held_out, tmp_path / "ae.pt", 1)
    train_denoiser(data, tmp_path / "dn.pt", 1)
    weights = tmp_path / "weights"
    export(autoencoder=tmp_path / "ae.pt", denoiser=tmp_path / "dn.pt", folder=weights)
    parts = {"vae", "unet", "linfusion", "scheduler"}
    assert {path.name for path in weights.iterdir()} == parts | {"SHA256SUMS"}
    model = load_model(find_card("builtin"), dtype="float32", weights=weights)
    average = read_state(tmp_path / "dn.pt")["ema"]
    torch.testing.assert_close(
        model.unet.conv_in.weight, average["conv_in.weight"], rtol=1e-3, atol=1e-6
    )


def test_export_writes_nothing_if_one_state_is_wrong(
    data: Path, held_out: Path, tmp_path: Path
) -> None:
    state, weights = tmp_path / "ae.pt", tmp_path / "weights"
    train_autoencoder(data, held_out, state, 1)
    with pytest.raises(RequestError, match=r"ae\.pt is of another model"):
        export(autoencoder=state, denoiser=state, folder=weights)
    assert not weights.exists()


def test_export_takes_an_adapter_that_fits_its_denoiser(
    data: Path, held_out: Path, tmp_path: Path
) -> None:
    train_autoencoder(data, held_out, tmp_path / "ae.pt", 1)
    train_denoiser(data, tmp_path / "dn.pt", 1)
    states = {"autoencoder": tmp_path / "ae.pt", "denoiser": tmp_path / "dn.pt"}
    distilled = LinFusionAdapter.for_unet(denoiser.load(tmp_path / "dn.pt"), mid_dim_scale=2)
    distilled.save_pretrained(tmp_path / "distilled")
    export(**states, adapter=tmp_path / "distilled", folder=tmp_path / "weights")
    model = load_model(find_card("builtin"), dtype="float32", weights=tmp_path / "weights")
    assert {entry.projection_mid_dim for entry in model.linfusion.entries} == {16}

    about = tmp_path / "distilled" / "distillation.json"
    teacher = [
        read_tensors(path) for path in (tmp_path / "weights" / "unet").glob("*.safetensors")
    ]
    about.write_text(json.dumps({"revision": local_revision((), teacher)}))
    export(**states, adapter=tmp_path / "distilled", folder=tmp_path / "weights")  # in place
    before = (tmp_path / "weights" / "SHA256SUMS").read_bytes()
    about.write_text(json.dumps({"revision": "local-0123"}))
    with pytest.raises(RequestError, match=r"distilled was distilled from local-0123, and this"):
        export(**states, adapter=tmp_path / "distilled", folder=tmp_path / "weights")
    assert (tmp_path / "weights" / "SHA256SUMS").read_bytes() == before
    check_sums(tmp_path / "weights")
    assert not (tmp_path / "weights.partial").exists()

    other = LinFusionAdapter.for_unet(denoiser.new_unet())
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(RequestError, match="does not fit this model"):
        export(**states, adapter=tmp_path / "other", folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_latents_of_degraded_pictures_differ(data: Path) -> None:
    shards = LatentShards(data, ThinAutoencoder(), LESSONS)
    shapes = {name: tuple(held.shape) for name, held in shards.clean.items()}
    assert shapes["wide", 8] == (3, 16, 8, 8)
    assert shapes["wide", 16] == (3, 16, 16, 16)
    assert shapes["close", 32] == (3, 16, 32, 32)
    assert ("close", 8) not in shapes  # no lesson reads it
    assert set(shards.degraded) == set(shapes) - {("wide", 8)}
    assert not torch.equal(shards.clean["wide", 16], shards.degraded["wide", 16])
    before = shards.clean["wide", 8]
    shards.refresh()
    assert shards.clean["wide", 8] is before  # nothing new
    write_shard(data, "wide", number=1)
    shards.refresh()
    assert len(shards.clean["wide", 8]) == len(shards.captions["wide"]) == 6


def test_sampler_draws_what_a_lesson_says(data: Path) -> None:
    shards = LatentShards(data, ThinAutoencoder(), LESSONS)
    sampler = Sampler(shards, TextTable(), caption_dropout=0.5, seed=0)
    composition = sampler.batch(COMPOSITION, 40)
    assert torch.equal(composition.x_0, composition.begun)
    assert composition.text.shape[1:] == (48, 384)
    empty = sampler.text([""])
    dropped = sum(torch.equal(state, empty[0]) for state in composition.text)
    assert 8 < dropped < 32
    detail = sampler.batch(DETAIL, 40)
    held = torch.cat([shards.clean["wide", 32], shards.clean["close", 32]]).float()
    assert all(any(torch.equal(x, each) for each in held) for x in detail.x_0)
    clean = sum(torch.equal(x, y) for x, y in zip(detail.x_0, detail.begun, strict=True))
    assert 1 <= clean <= 20  # a fifth is not degraded
    assert detail.timesteps.min() >= 20
    assert detail.timesteps.max() < 650


def test_sampler_without_near_views(tmp_path: Path) -> None:
    write_shard(tmp_path, "wide")
    shards = LatentShards(tmp_path, ThinAutoencoder(), LESSONS)
    sampler = Sampler(shards, TextTable(), caption_dropout=0.0, seed=0)
    assert sampler.batch(DETAIL, 4).x_0.shape == (4, 16, 32, 32)


def test_loss_is_zero_at_the_v_that_leads_back() -> None:
    x_0, noise = torch.randn(2, 3, 16, 4, 4).unbind()
    alpha_t, sigma_t = torch.full((3, 1, 1, 1), 0.6), torch.full((3, 1, 1, 1), 0.8)
    x_t = alpha_t * x_0 + sigma_t * noise
    assert float(v_loss(alpha_t * noise - sigma_t * x_0, x_t, x_0, alpha_t, sigma_t)) < 1e-10
    assert float(v_loss(x_0, x_t, x_0, alpha_t, sigma_t)) > 0.1


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [cosine_learning_rate(s, steps=100, peak=2.0, warmup=10) for s in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.04)


def test_shard_that_is_there_is_left_alone(tmp_path: Path) -> None:
    write_shard(tmp_path, "wide")
    before = (tmp_path / "wide-00000.npy").stat()
    render_shard(tmp_path, "wide", 0)
    assert (tmp_path / "wide-00000.npy").stat() == before
    assert len(load_shard(tmp_path / "wide-00000.npy")[1]) == 3 < PICTURES_PER_SHARD


def damaged(path: Path, kind: str) -> Path:
    if kind == "text":
        path.write_text("no state")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "other":
        torch.save({"weights": torch.zeros(1)}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "other", "list"])
def test_file_that_is_no_state_is_named(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path / "state.pt", kind)
    with pytest.raises(RequestError, match=r"state\.pt"):
        autoencoder.load(path)
    with pytest.raises(RequestError, match=r"state\.pt"):
        denoiser.load(path)


def test_folder_without_autoencoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no ThinAutoencoder"):
        autoencoder.load(tmp_path)


def test_folders_of_other_models_are_named(data: Path, held_out: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    train_autoencoder(data, held_out, tmp_path / "ae.pt", 1)
    train_denoiser(data, tmp_path / "dn.pt", 1)
    export(autoencoder=tmp_path / "ae.pt", denoiser=tmp_path / "dn.pt", folder=weights)
    with pytest.raises(RequestError, match=r"holds no ThinAutoencoder .* is of a UNet2DCond"):
        autoencoder.load(weights / "unet")
    with pytest.raises(RequestError, match=r"holds no UNet2DCond.* is of a ThinAutoencoder"):
        denoiser.load(weights / "vae")
    config = json.loads((weights / "unet" / "config.json").read_text())
    for wrong in ([7], "wide", None):
        said = json.dumps(config | {"block_out_channels": wrong})
        (weights / "unet" / "config.json").write_text(said)
        with pytest.raises(RequestError, match="holds no UNet2DCond"):
            denoiser.load(weights / "unet")
    (weights / "unet" / "config.json").write_text(json.dumps(config))
    foreign = UNet2DConditionModel(
        block_out_channels=(32, 32, 32), cross_attention_dim=8,
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3,
    )  # fmt: skip
    foreign.save_pretrained(tmp_path / "foreign")
    with pytest.raises(RequestError, match=r"foreign is of another model"):
        denoiser.load(tmp_path / "foreign")
    (weights / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"holds no UNet2DCond.*cannot be read"):
        denoiser.load(weights / "unet")


def test_state_of_another_model_is_left_alone(data: Path, held_out: Path, tmp_path: Path) -> None:
    state = tmp_path / "ae.pt"
    train_autoencoder(data, held_out, state, 1)
    before = state.read_bytes()
    with pytest.raises(RequestError, match="another model than UNet2DConditionModel"):
        train_denoiser(data, state, 2)
    assert state.read_bytes() == before


def test_schedules_are_as_long_as_the_help_says() -> None:
    for command, run in ((train.autoencoder, AutoencoderRun()), (train.denoiser, DenoiserRun())):
        assert inspect.signature(command).parameters["steps"].default == run.steps


@pytest.mark.parametrize("part", ["ema", "optimizer", "groups", "step"])
def test_states_that_are_damaged_in_part(
    hires: Callable, data: Path, held_out: Path, tmp_path: Path, part: str
) -> None:
    path = tmp_path / "ae.pt"
    train_autoencoder(data, held_out, path, 1)
    state = read_state(path)
    if part == "ema":
        state["ema"].popitem()
    elif part == "groups":
        state["optimizer"]["param_groups"][0]["params"].pop()
    else:
        state[part] = {}
    torch.save(state, path)
    ran = hires("train", "autoencoder", data, path, "--held-out", held_out, "--threads", 1)
    assert (ran.code, str(path) in ran.err) == (2, True), ran.err
    assert "damaged" in ran.err or "step missing" in ran.err


def test_commands(hires: Callable, data: Path, held_out: Path, tmp_path: Path) -> None:
    """Train for no time, go on, and export, from the command line."""
    train_autoencoder(data, held_out, tmp_path / "ae.pt", 1)
    words = ("train", "autoencoder", data, tmp_path / "ae.pt", "--held-out", held_out)
    ran = hires(*words, "--minutes", 0, "--threads", 1, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["step"] == 2
    ran = hires(*words, "--steps", 2, "--threads", 1)
    assert (ran.code, ran.out.startswith("step 2, finished already; ")) == (0, True), ran.err
    train_denoiser(data, tmp_path / "dn.pt", 1)
    both = ("--autoencoder", tmp_path / "ae.pt", "--denoiser", tmp_path / "dn.pt")
    ran = hires("train", "export", *both, tmp_path / "weights")
    assert (ran.code, ran.out.strip()) == (0, str(tmp_path / "weights"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("autoencoder nowhere ae.pt --held-out {held_out}", "nowhere does not exist"),
        ("autoencoder {data} ae.pt --held-out nowhere", "nowhere does not exist"),
        ("autoencoder {data} ae.pt --held-out .", "holds no rendered shards"),
        ("autoencoder {data} no/ae.pt --held-out {held_out}", "folder no of the training state"),
        ("autoencoder {data} . --held-out {held_out}", "is a folder"),
        ("autoencoder {data} ae.pt", "--held-out"),
        ("denoiser {data} dn.pt --autoencoder gone.pt", "gone.pt cannot be read"),
        ("denoiser {data} dn.pt --autoencoder {data}", "holds no ThinAutoencoder"),
        ("export out --autoencoder a.pt --denoiser d.pt", "d.pt cannot be read"),
    ],
)
def test_wrong_requests(
    hires: Callable, data: Path, held_out: Path, words: str, named: str
) -> None:
    filled = words.format(data=data, held_out=held_out).split()
    ran = hires("train", *filled)
    assert ran.code == 2, ran.err
    assert named in ran.err
    assert "Traceback" not in ran.err
    assert list(Path.cwd().iterdir()) == []


def test_denoiser_needs_whole_compositions(tmp_path: Path) -> None:
    write_shard(tmp_path / "near", "close")
    with pytest.raises(RequestError, match="of kind wide"):
        train_denoiser(tmp_path / "near", tmp_path / "dn.pt", 1)
