"""COCO's protocol: closed forms of the statistics, the choice of captions, a small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from hirescli.errors import RequestError
from hirescli.evaluation.coco import (
    choose_captions,
    clip_score,
    generate_pictures,
    real_pictures,
    squares,
)
from hirescli.evaluation.frechet import Moments, frechet_distance
from hirescli.evaluation.inception import Inception, load_inception

# The Fréchet distance


def gaussian(mean: list[float], covariance: torch.Tensor, count: int = 1000) -> Moments:
    """Moments as they are, without samples."""
    return Moments(count, torch.tensor(mean, dtype=torch.float64), covariance * (count - 1))


def rotation(size: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


def test_distance_of_variances_along_the_same_axes() -> None:
    """Sum of (sqrt(a) - sqrt(b))^2, and the squared distance of the means."""
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 0.25]).double()
    axes = rotation(3)
    made = frechet_distance(
        gaussian([0, 0, 1], axes @ a.diag() @ axes.T),
        gaussian([0, 2, 1], axes @ b.diag() @ axes.T),
    )
    assert made == pytest.approx((1 - 2) ** 2 + 0 + (3 - 0.5) ** 2 + 4, rel=1e-12)


def test_distance_of_two_by_two_along_different_axes() -> None:
    """For 2 x 2 the trace of the root of M is sqrt(tr M + 2 sqrt(det M))."""
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, -0.5], [-0.5, 3.0]], dtype=torch.float64)
    product = a @ b
    root = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    wanted = float(a.trace() + b.trace() - 2 * root)
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(wanted)


def test_features_that_depend_on_each_other() -> None:
    """Fewer samples than features: the covariance has no full rank, the distance is finite."""
    axes = rotation(64)[:, :3]
    a, b = axes @ axes.T, 4 * axes @ axes.T
    zeros = [0.0] * 64
    assert frechet_distance(gaussian(zeros, a), gaussian(zeros, b)) == pytest.approx(3.0)
    assert frechet_distance(gaussian(zeros, a), gaussian(zeros, a)) == pytest.approx(0, abs=1e-9)


def test_moments_of_batches_are_those_of_all() -> None:
    """A far mean and small spread, where sums of squares lose everything in float32."""
    x = 1e6 + np.random.default_rng(0).normal(size=(101, 5))
    moments = Moments()
    for part in (x[:1], x[1:40], x[40:]):
        moments.add(torch.from_numpy(part))
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(x.T), rtol=1e-8)


# The network


def test_inception_is_the_published_one(tmp_path: Path) -> None:
    """94 convolutions and 21,785,568 parameters without the classifier."""
    torch.manual_seed(0)
    network = Inception()
    assert sum(p.numel() for p in network.parameters()) == 21_785_568
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 94
    state = network.state_dict()
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)

    save_file({**state, "fc.weight": torch.zeros(1008, 2048)}, tmp_path / "good.safetensors")
    loaded = load_inception(tmp_path / "good.safetensors")
    pictures = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        made = loaded(pictures)
        assert made.shape == (1, 2048)
        assert torch.equal(made, network.eval()(pictures))

    del state["Mixed_6b.branch7x7_2.bn.bias"]
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(RequestError, match=r"Mixed_6b\.branch7x7_2\.bn\.bias is missing"):
        load_inception(tmp_path / "bad.safetensors")


# Captions and pictures


def written(path: Path, images: int = 20) -> Path:
    each = [
        {"id": 10 * image + n, "image_id": image, "caption": f"Picture {image},\n {n}. "}
        for image in range(images)
        for n in range(5)
    ]
    path.write_text(json.dumps({"images": [], "annotations": each}))
    return path


def test_captions_are_chosen_by_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path / "captions.json")
    chosen = choose_captions(path, count=12, seed=3)
    assert len({caption.image_id for caption in chosen}) == 12
    assert all(c.text.startswith(f"Picture {c.image_id}, ") for c in chosen)
    assert len({c.text[-2] for c in chosen}) > 1  # not always the first
    assert choose_captions(path, count=12, seed=4) != chosen

    said = json.loads(path.read_text())
    said["annotations"].reverse()
    path.write_text(json.dumps(said))
    assert choose_captions(path, count=12, seed=3) == chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no captions in COCO's format"),
        ('{"annotations": [{"id": 1, "image_id": 2}]}', "KeyError: 'caption'"),
        ('{"annotations": [{"id": 1, "image_id": 2, "caption": "a"}]}', "for 1 pictures, 2 were"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        choose_captions(path, count=2, seed=0)


def test_pictures_are_cut_to_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((300, 700, 3), np.uint8)
    wide[:, 200:500] = 255  # the middle square
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide[:, 200:500]).save(tmp_path / "b.png")
    (batch,) = squares(real_pictures(tmp_path))
    assert batch.shape == (2, 3, 256, 256)
    assert torch.equal(batch, torch.ones_like(batch))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"a\.png is no JPEG"):
        list(squares(real_pictures(tmp_path)))


# The CLIP score


class Embeddings(torch.nn.Module):
    """Stands where CLIP would: pictures by their mean colour, texts by their first words."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        sides = type("Sides", (), {"image_size": 16})
        self.config = type("Config", (), {"vision_config": sides})

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> Any:
        images = torch.stack([pixel_values.mean((1, 2, 3)), pixel_values[:, 0, 0, 0] * 0], 1)
        return type("Out", (), {"image_embeds": images, "text_embeds": input_ids.float()})


class Words(dict):  # type: ignore[type-arg]
    def to(self, _: object) -> Words:
        return self


def test_clip_score_is_the_mean_cosine(tmp_path: Path) -> None:
    seen: list[str] = []

    def tokenizer(texts: list[str], **_: object) -> Words:
        seen.extend(texts)
        return Words(input_ids=torch.tensor([[1, 0] if "same" in t else [0, 1] for t in texts]))

    paths = [tmp_path / f"{n}.png" for n in range(40)]  # more than one batch
    for path in paths:
        Image.new("RGB", (20, 20), "white").save(path)
    texts = ["same"] * 30 + ["other"] * 10
    assert clip_score(paths, texts, Embeddings(), tokenizer) == pytest.approx(0.75)
    assert seen[0] == "A photo depicts same"


# The command


def test_networks_that_are_missing_are_named(tmp_path: Path) -> None:
    from hirescli.cli.evaluate import app

    words = ["coco", "captions.json", "val2014", "-o", str(tmp_path / "made")]
    for more, missing in (([], "--inception"), (["--inception", "i.safetensors"], "--clip")):
        done = CliRunner().invoke(app, [*words, *more])
        assert isinstance(done.exception, RequestError)
        assert str(done.exception).startswith(f"{missing} is missing")
    assert not (tmp_path / "made").exists()


def test_the_model_is_loaded_once_for_many_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that stand there none is made anew, and each is counted."""
    from hirescli.cascade import prepare

    loads: list[object] = []

    def load(*args: Any, **options: Any) -> Any:
        loads.append(args)
        return loaded(*args, **options)

    loaded = prepare.load
    monkeypatch.setattr(prepare, "load", load)
    captions = choose_captions(written(tmp_path / "captions.json"), count=3, seed=0)
    choices = {"size": 128, "seed": 5, "steps": 1, "device": "cpu"}
    told: list[int] = []
    generate_pictures(captions, tmp_path, choices, told=told.append)
    assert (len(loads), told) == (1, [1, 2, 3])
    paths = [tmp_path / caption.name for caption in captions]
    before = [path.read_bytes() for path in paths]
    assert len(set(before)) == 3
    paths[1].unlink()
    told.clear()
    generate_pictures(captions, tmp_path, choices, told=told.append)
    assert (len(loads), sorted(told)) == (2, [1, 2, 3])
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    """With an Inception of drawn weights and a tiny CLIP; what is finished is left."""
    from transformers import CLIPConfig, CLIPModel

    from hirescli.cli.evaluate import app

    torch.manual_seed(0)
    save_file(Inception().state_dict(), tmp_path / "inception.safetensors")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small["num_attention_heads"] = 2
    vision = {**small, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    _tokenizer(tmp_path / "clip")
    real = tmp_path / "real"
    real.mkdir()
    for n in range(3):
        noise = np.random.default_rng(n).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(real / f"{n}.jpg")
    words = [
        "coco", str(written(tmp_path / "captions.json")), str(real),
        "-o", str(tmp_path / "made"), "--inception", str(tmp_path / "inception.safetensors"),
        "--clip", str(tmp_path / "clip"), "--count", "2", "--size", "64", "--steps", "1", "--json",
    ]  # fmt: skip
    first = CliRunner().invoke(app, words, catch_exceptions=False)
    said = json.loads(first.stdout)
    assert said["fid"] > 0
    assert -1 <= said["clip_score"] <= 1

    one, other = sorted((tmp_path / "made").glob("*.png"))
    before = one.stat().st_mtime_ns
    other.unlink()
    again = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(again.stdout) == said
    assert one.stat().st_mtime_ns == before  # finished: left as it is


def _tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with an alphabet and no merges."""
    letters = [chr(n) for n in range(33, 127)]
    tokens = [*letters, *[f"{each}</w>" for each in letters], "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )
