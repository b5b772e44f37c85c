"""Sets of pictures, their distances, and autoencoders on them."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hirescli.errors import RequestError
from hirescli.evaluation.picture_sets import prompted, read_set, some_of_set
from hirescli.evaluation.reconstruction import (
    decode_seconds,
    load_autoencoder,
    reconstruction,
)
from hirescli.evaluation.sets import distance
from hirescli.models.builtin.autoencoder import ThinAutoencoder


def shard(folder: Path, kind: str, count: int, value: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    pictures = np.full((count, 256, 256, 3), value, np.uint8)
    pictures[:, 0, 0, 0] = np.arange(count)
    np.save(folder / f"{kind}-00000.npy", pictures)
    return folder


def test_pictures_of_shards_by_kind_and_count(tmp_path: Path) -> None:
    shard(tmp_path, "wide", 5, 10)
    shard(tmp_path, "photo", 3, 20)
    assert len(read_set(tmp_path)) == 8
    assert set(read_set(tmp_path, kinds=["photo"])[:, 1, 1, 1]) == {20}
    chosen = read_set(tmp_path, count=3, kinds=["wide"])
    assert chosen[:, 0, 0, 0].tolist() == [0, 2, 4]  # even, the first and the last among them
    assert len(some_of_set(tmp_path, None, most=4)) == 4
    assert len(some_of_set(tmp_path, None, most=100)) == 8


def test_kinds_that_are_not_there_are_named(tmp_path: Path) -> None:
    shard(tmp_path, "wide", 5)
    shard(tmp_path, "photo", 3)
    with pytest.raises(RequestError, match="no shards of kind typo; it has photo, wide"):
        read_set(tmp_path, kinds=["typo", "wide"])


def test_only_what_is_chosen_is_read(tmp_path: Path) -> None:
    shard(tmp_path, "wide", 400)
    tracemalloc.start()
    try:
        some_of_set(tmp_path, None, most=4)
        assert tracemalloc.get_traced_memory()[1] < 40 * 256 * 256 * 3
    finally:
        tracemalloc.stop()


def test_files_are_upright_and_of_eight_bits(tmp_path: Path) -> None:
    levels = np.full((300, 300), 128 * 257, np.uint16)
    levels[:, :150] = 0
    Image.fromarray(levels).save(tmp_path / "deep.png")
    lying = Image.fromarray((levels.T // 257).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, to the right
    lying.save(tmp_path / "lying.png", exif=exif)
    deep, turned = read_set(tmp_path)
    assert (deep[:, :120] == 0).all()
    assert (deep[:, -120:] == 128).all()
    assert (turned == deep[:, ::-1]).all()


def test_files_are_cut_to_the_middle_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((300, 700, 3), np.uint8)
    wide[:, 200:500] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide[:, 200:500]).convert("L").save(tmp_path / "b.jpg")
    made = read_set(tmp_path)
    assert made.shape == (2, 256, 256, 3)
    assert made.min() >= 254


@pytest.mark.parametrize(
    ("name", "named"),
    [("nothing", "has 0 pictures"), ("one", "has 1 pictures"),
     ("broken", r"a\.png is no JPEG"), ("shape", r"holds float64 \(2, 8\)"),
     ("damaged", "shard .* cannot be read")],
)  # fmt: skip
def test_sets_that_cannot_be_read(name: str, named: str, tmp_path: Path) -> None:
    if name in ("one", "broken"):
        for each in ("a.png", "b.png")[: 1 if name == "one" else 2]:
            (tmp_path / each).write_bytes(b"no picture")
    if name == "shape":
        np.save(tmp_path / "wide-00000.npy", np.zeros((2, 8)))
    if name == "damaged":
        (tmp_path / "wide-00000.npy").write_bytes(b"\x80\x04pickle")
    with pytest.raises(RequestError, match=named):
        read_set(tmp_path)
    with pytest.raises(RequestError, match="there is no folder"):
        read_set(tmp_path / "gone")


def test_prompts_are_those_beside_or_inside(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match=r"a\.png has no prompt in it; write it into a\.txt"):
        prompted(tmp_path)
    (tmp_path / "a.txt").write_text("a lake\n")
    assert prompted(tmp_path) == [(tmp_path / "a.png", "a lake")]


def test_missing_inception_is_named(tmp_path: Path) -> None:
    pictures = np.zeros((2, 256, 256, 3), np.uint8)
    with pytest.raises(RequestError, match="--inception"):
        distance(pictures, pictures, inception=tmp_path / "gone.safetensors")


class Off(torch.nn.Module):
    """An autoencoder in diffusers' manner that is wrong by a number of 8-bit steps."""

    def __init__(self, steps: float) -> None:
        super().__init__()
        self.steps = steps

    def encode(self, x: torch.Tensor) -> object:
        return type("Encoded", (), {"latents": x})

    def decode(self, z: torch.Tensor) -> object:
        return type("Decoded", (), {"sample": z + self.steps / 127.5})


def test_psnr_in_closed_form() -> None:
    """Wrong by 5 of 255 everywhere: 20 log10(255 / 5) dB; below a rounding step: no error."""
    pictures = np.full((9, 256, 256, 3), 100, np.uint8)
    found = reconstruction(Off(5), pictures)
    wanted = 20 * math.log10(255 / 5)
    assert found.count == 9
    for made in (found.psnr_db, found.mean_psnr_db, found.worst_psnr_db):
        assert made == pytest.approx(wanted, rel=1e-6)
    assert reconstruction(Off(0.4), pictures).worst_psnr_db == 100  # which JSON can say


def test_worst_picture_counts_by_itself() -> None:
    pictures = np.full((2, 256, 256, 3), 100, np.uint8)
    pictures[1] = 253  # clamped to 255, two off
    found = reconstruction(Off(10), pictures)
    assert found.worst_psnr_db == pytest.approx(20 * math.log10(25.5))
    assert found.psnr_db == pytest.approx(10 * math.log10(255**2 / 52))


def test_autoencoders_are_loaded_by_what_their_folder_says(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    small = {"block_out_channels": [8, 8], "norm_num_groups": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2,
              "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
    AutoencoderKL(**small, **blocks, layers_per_block=1).save_pretrained(tmp_path / "kl")
    thin = ThinAutoencoder(decoder_channels=(4, 4, 4), decoder_blocks=(0, 0, 0))
    thin.save_pretrained(tmp_path / "thin")
    pictures = np.zeros((1, 256, 256, 3), np.uint8)
    for name in ("kl", "thin"):
        model = load_autoencoder(tmp_path / name)
        assert reconstruction(model, pictures).psnr_db > 0
        assert decode_seconds(model, 64, torch.bfloat16) > 0
        assert next(model.parameters()).dtype == torch.float32
    (tmp_path / "kl" / "config.json").write_text(json.dumps({"_class_name": "Horse"}))
    with pytest.raises(RequestError, match="holds Horse"):
        load_autoencoder(tmp_path / "kl")
    (tmp_path / "thin" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(RequestError, match="holds no ThinAutoencoder"):
        load_autoencoder(tmp_path / "thin")
