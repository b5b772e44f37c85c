"""Both trainings on tiny shards: a few steps, resumed, exported, loaded; and wrong requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hirescli.errors import RequestError
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.load import load as load_model
from hirescli.models.registry import find_card
from hirescli.training import autoencoder, denoiser
from hirescli.training.autoencoder import AutoencoderRun
from hirescli.training.dataset import PICTURE_PX, PICTURES_PER_SHARD, load_shard, render_shard
from hirescli.training.denoiser import DenoiserRun, LatentShards, v_loss
from hirescli.training.export import export
from hirescli.training.trainer import cosine_learning_rate, read_state

KEYS = {"model", "ema", "optimizer", "step", "run"}
WIDTHS = (32, 32, 32)  # the least that group normalisation of 32 groups takes


def write_shard(folder: Path, kind: str, *, count: int = 3, number: int = 0) -> None:
    """A shard of smooth random pictures; rendering a real one takes minutes."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
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
    run = DenoiserRun(steps=steps, batch=2, full_batch=2, full_every=2, channels=WIDTHS)
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
    assert train_autoencoder(data, held_out, state, 5) == []  # at its end: nothing to do

    folder = tmp_path / "vae"
    made = autoencoder.export(state, folder)
    for read in (autoencoder.load(folder), autoencoder.load(state)):
        assert read.dtype == torch.float32
        for name, value in made.state_dict().items():
            torch.testing.assert_close(read.state_dict()[name], value, rtol=1e-3, atol=1e-6)


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


def test_denoiser_trains_and_resumes(data: Path, tmp_path: Path) -> None:
    state = tmp_path / "dn.pt"
    (first,) = train_denoiser(data, state, 2)
    write_shard(data, "detail")  # one that appears later is taken up
    (second,) = train_denoiser(data, state, 4)
    assert (first["step"], second["step"]) == (2, 4)
    assert set(read_state(state)) == KEYS
    unet, adapter = denoiser.load(state)
    assert unet.config["block_out_channels"] == WIDTHS
    assert {entry.projection_mid_dim for entry in adapter.entries} == {8}


def test_export_is_a_model_that_loads(data: Path, held_out: Path, tmp_path: Path) -> None:
    train_autoencoder(data, held_out, tmp_path / "ae.pt", 1)
    train_denoiser(data, tmp_path / "dn.pt", 1)
    weights = tmp_path / "weights"
    export(autoencoder_state=tmp_path / "ae.pt", denoiser_state=tmp_path / "dn.pt", folder=weights)
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
        export(autoencoder_state=state, denoiser_state=state, folder=weights)
    assert not weights.exists()


def test_latents_of_degraded_pictures_differ(data: Path) -> None:
    shards = LatentShards(data, ThinAutoencoder())
    assert [len(shards.clean[kind]) for kind in ("wide", "close")] == [3, 3]
    assert len(shards.small) == 3
    assert shards.small[0].shape == (16, 16, 16)
    assert shards.clean["close"][0].shape == (16, 32, 32)
    assert not torch.equal(shards.clean["wide"][0], shards.degraded["wide"][0])


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
    with pytest.raises(RequestError, match="holds no autoencoder"):
        autoencoder.load(tmp_path)


def test_state_of_another_model_is_left_alone(data: Path, held_out: Path, tmp_path: Path) -> None:
    state = tmp_path / "ae.pt"
    train_autoencoder(data, held_out, state, 1)
    before = state.read_bytes()
    with pytest.raises(RequestError, match="another model than UNet2DConditionModel"):
        train_denoiser(data, state, 2)
    assert state.read_bytes() == before


def test_commands(hires: Callable, data: Path, held_out: Path, tmp_path: Path) -> None:
    """Train for no time, go on, and export, from the command line."""
    train_autoencoder(data, held_out, tmp_path / "ae.pt", 1)
    words = ("train", "autoencoder", data, tmp_path / "ae.pt", "--held-out", held_out)
    ran = hires(*words, "--minutes", 0, "--threads", 1, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["step"] == 2
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
        ("denoiser {data} dn.pt --autoencoder {data}", "holds no autoencoder"),
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
