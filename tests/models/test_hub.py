"""The hub: one commit for all files, safetensors only, the cache offline, no token in messages.

A real server on this machine answers huggingface_hub in processes of their own, since the
library reads its environment when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from folders import (
    controlnet_folder,
    flux_folder,
    flux_ip_adapter_folder,
    ip_adapter_folder,
    linfusion_folder,
    sd15_folder,
    sdxl_folder,
)
from hub_server import Files, Hub, serving
from typer.testing import CliRunner

from hirescli.cli.models import app as models_app
from hirescli.errors import RequestError
from hirescli.models import hub as hub_module
from hirescli.models.load import load
from hirescli.models.plugin_sources import find_controlnet, find_image_adapter
from hirescli.models.registry import find, find_adapter
from hirescli.models.sources import AdapterSource

ROOT = Path(__file__).parent.parent.parent
TOKEN = "hf_SeCrEtSeCrEtSeCrEtSeCrEtSeCrEtSeCrEt"
NAME = "someone/small"
JUNK: Files = {
    "README.md": b"# small",
    "model.ckpt": b"\x80\x02pickle",
    "small-pruned.safetensors": b"the whole model again",
    "pipeline.py": b"raise SystemExit",
    "unet/diffusion_pytorch_model.bin": b"\x80\x02pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"in half precision",
    "safety_checker/model.safetensors": b"not loaded",
}
FETCH = """
import hashlib, json, sys
from hirescli.models.registry import download, find
source = download(find(sys.argv[1], *sys.argv[2:3]))
data = (source.path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
said = [source.kind, source.commit, source.card.revision, hashlib.sha256(data).hexdigest()]
print(json.dumps(said))
"""
FIND = """
import sys
from hirescli.models.registry import find
from hirescli.errors import HiresError
try:
    find(sys.argv[1], *sys.argv[2:3])
except HiresError as error:
    import traceback
    print("".join(traceback.format_exception(error)))
    sys.exit(error.exit_code)
"""
PULL = """
import sys
from typer.main import get_command
from hirescli.cli.models import app
from hirescli.errors import HiresError
try:
    get_command(app).main(sys.argv[1:], standalone_mode=False)
except HiresError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
Call = Callable[..., subprocess.CompletedProcess[str]]


def content(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Files, Files]:
    """A folder, its files as a repository, and the same one commit later."""
    from safetensors.torch import load_file, save_file

    folder = sd15_folder(tmp_path_factory.mktemp("repository") / "model")
    first = content(folder) | JUNK
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    states = load_file(path)
    save_file(states | {"conv_in.bias": states["conv_in.bias"] + 1}, path)
    later = content(folder) | JUNK
    save_file(states, path)
    return folder, first, later


@pytest.fixture
def hub(repository: tuple[Path, Files, Files]) -> Iterator[Hub]:
    made = Hub()
    made.add(NAME, *repository[1:])
    with serving(made) as running:
        yield running


@pytest.fixture
def process(hub: Hub, tmp_path: Path) -> Call:
    def call(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            env={**os.environ, **settings, **environment}, capture_output=True, text=True,
        )  # fmt: skip
        assert TOKEN not in done.stdout + done.stderr
        return done

    return call


def test_all_files_are_of_one_commit(hub: Hub, process: Call) -> None:
    """Also where the branch moves on while files are fetched; and then from the cache alone."""
    first, second = hub.commits[NAME]
    hashes = [
        hashlib.sha256(files["unet/diffusion_pytorch_model.safetensors"]).hexdigest()
        for files in hub.commits[NAME].values()
    ]
    hub.moves[NAME] = second  # once it was resolved
    assert fetched(process(FETCH, NAME)) == ["hub", first, first, hashes[0]]
    asked = set(hub.files_asked())
    assert "unet/diffusion_pytorch_model.safetensors" in asked
    assert not asked & JUNK.keys()
    assert not [path for path in hub.asked if "/resolve/" in path and first not in path]
    hub.asked.clear()
    # The branch as it was when all of it was there, not as it has become; and its commit.
    for revision in ([], ["main"], [first]):
        offline = process(FETCH, NAME, *revision, HF_HUB_OFFLINE="1")
        assert fetched(offline) == ["hub", first, first, hashes[0]]
    assert hub.asked == []
    assert fetched(process(FETCH, NAME)) == ["hub", second, second, hashes[1]]


def fetched(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    made: list[str] = json.loads(done.stdout)
    return made


def test_pull_fetches_and_checks(hub: Hub, process: Call, tmp_path: Path) -> None:
    done = process(PULL, "pull", NAME, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["commit"] in said["path"]
    assert Path(said["path"]).is_relative_to(tmp_path / "hf")
    names = {p.relative_to(said["path"]).as_posix() for p in Path(said["path"]).rglob("*.*")}
    assert not names & JUNK.keys()
    again = process(PULL, "pull", NAME, HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout.strip()) == (0, said["path"])
    flip_last_bit((Path(said["path"]) / "vae/diffusion_pytorch_model.safetensors").resolve())
    broken = process(PULL, "pull", NAME, HF_HUB_OFFLINE="1")
    assert broken.returncode == 2
    assert "diffusion_pytorch_model.safetensors is damaged" in broken.stderr


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("someone/else", "main", "there is no model"),
        (NAME, "nowhere", 'no revision "nowhere"'),
        ("someone/gated", "main", "asks for a login"),
    ],
)
def test_what_the_hub_refuses_is_said(
    name: str, revision: str, said: str, hub: Hub, process: Call
) -> None:
    hub.add("someone/gated", {"model_index.json": b"{}"})
    hub.gated.add("someone/gated")
    done = process(FIND, name, revision)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stdout


def test_a_hub_that_is_not_there(process: Call) -> None:
    done = process(FIND, NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "cannot be reached" in done.stdout
    assert NAME in done.stdout


# The cache alone


def cached(cache: Path, name: str, files: Files, commit: str = "c" * 40) -> Path:
    """A repository as huggingface_hub keeps it."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for file, data in files.items():
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("model", ["sdxl", "someone/small"])
def test_a_cold_cache_offline(model: str, cache: Path) -> None:
    with pytest.raises(RequestError, match=r"model_index\.json is missing") as caught:
        find(model)
    wanted = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}.get(model, model)
    assert f'"{wanted}"' in str(caught.value)
    assert str(cache) in str(caught.value)


def test_a_card_plans_without_weights(cache: Path) -> None:
    source = find("sdxl", weights=False)
    assert (source.kind, source.path, source.commit) == ("shipped", None, None)
    assert source.card.trace("denoiser", "bfloat16", "full").ops


@pytest.mark.parametrize(
    "lost", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
)
def test_what_the_cache_lacks_is_named(
    lost: str, cache: Path, repository: tuple[Path, Files, Files]
) -> None:
    cached(cache, NAME, {n: d for n, d in repository[1].items() if n != lost and n not in JUNK})
    with pytest.raises(RequestError, match=f"{lost} is missing") as caught:
        find(NAME)
    assert NAME in str(caught.value)


def test_pickles_only(cache: Path, repository: tuple[Path, Files, Files]) -> None:
    files = {n: d for n, d in repository[1].items() if n.endswith((".json", ".txt"))}
    cached(cache, NAME, files | {"unet/diffusion_pytorch_model.bin": b"\x80\x02"})
    with pytest.raises(RequestError, match=r"diffusion_pytorch_model\.bin .* pickle"):
        find(NAME)


def test_a_card_by_its_name_from_the_cache(cache: Path, tmp_path: Path) -> None:
    name = "stabilityai/stable-diffusion-xl-base-1.0"
    folder = cached(cache, name, content(sdxl_folder(tmp_path / "model")))
    source = find("sdxl")
    assert (source.kind, source.path, source.commit) == ("shipped", folder, "c" * 40)
    assert (source.card.name, source.card.revision) == ("sdxl", "c" * 40)
    with pytest.raises(RequestError, match='revision "v2"'):
        find("sdxl", "v2")


def test_a_flipped_bit_in_the_cache_is_refused(
    cache: Path, repository: tuple[Path, Files, Files]
) -> None:
    files = {n: d for n, d in repository[1].items() if n not in JUNK}
    folder = cached(cache, NAME, files)
    linked(folder)
    load(find(NAME), dtype="float32", linear=False)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    flip_last_bit(unet.resolve())
    with pytest.raises(RequestError, match="is damaged") as caught:
        load(find(NAME), dtype="float32", linear=False)
    assert str(unet) in str(caught.value)


def test_an_adapter_from_the_cache(cache: Path, tmp_path: Path) -> None:
    model = sd15_folder(tmp_path / "model")
    adapter = linfusion_folder(tmp_path / "adapter", model / "unet")
    cached(cache, "someone/linear", content(adapter))
    source = find(str(model), adapter="someone/linear")
    assert source.adapter is not None
    assert (source.adapter.hub_id, source.adapter.commit) == ("someone/linear", "c" * 40)
    with pytest.raises(RequestError, match="someone/nothing"):
        find_adapter("someone/nothing")
    with pytest.raises(RequestError, match="no folder with a config"):
        find_adapter(str(tmp_path / "nowhere"))


def linked(folder: Path) -> None:
    """Large files lie under their SHA-256, and the commit's folder links to them."""
    (folder.parent.parent / "blobs").mkdir()
    for path in folder.rglob("*.safetensors"):
        blob = folder.parent.parent / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        path.replace(blob)
        path.symlink_to(blob)


def test_a_flipped_bit_in_an_adapter_is_refused(cache: Path, tmp_path: Path) -> None:
    model = sd15_folder(tmp_path / "model")
    folder = cached(
        cache, "someone/linear", content(linfusion_folder(tmp_path / "a", model / "unet"))
    )
    linked(folder)
    source = find(str(model), adapter="someone/linear")
    load(source, dtype="float32")
    weights = folder / "diffusion_pytorch_model.safetensors"
    flip_last_bit(weights.resolve())
    for given in (source, replace(source, adapter=AdapterSource(hub_id="someone/linear"))):
        with pytest.raises(RequestError, match="is damaged") as caught:
            load(given, dtype="float32")
        assert str(weights) in str(caught.value)


def test_pull_checks_the_adapter(cache: Path, tmp_path: Path) -> None:
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    model = sd15_folder(tmp_path / "model")
    adapter = linfusion_folder(tmp_path / "a", model / "unet")
    linked(cached(cache, name, content(model)))
    folder = cached(cache, "Yuanshi/LinFusion-1-5", content(adapter))
    linked(folder)
    runner, words = CliRunner(), ["pull", "sd15"]
    assert runner.invoke(models_app, words, catch_exceptions=False).exit_code == 0
    flip_last_bit((folder / "diffusion_pytorch_model.safetensors").resolve())
    assert "is damaged" in str(runner.invoke(models_app, words).exception)


def test_a_cold_cache_says_what_a_plug_in_lacks(cache: Path, tmp_path: Path) -> None:
    source = find(str(sd15_folder(tmp_path / "model")))
    with pytest.raises(RequestError, match=r'ControlNet "a/b".*: config\.json is missing'):
        find_controlnet("a/b", model=source)
    files = content(controlnet_folder(tmp_path / "control", "sd15"))
    cached(cache, "a/b", {"config.json": files["config.json"]})
    with pytest.raises(RequestError, match=r"a/b: diffusion_pytorch_model\.safetensors is miss"):
        find_controlnet("a/b", model=source)
    with pytest.raises(RequestError, match=r'IP-Adapter "c/d".*: models/x\.safetensors is miss'):
        find_image_adapter("c/d/models/x.safetensors", model=source)
    with pytest.raises(RequestError, match=r'adapter "e/f".*: config\.json is missing'):
        find_adapter("e/f")


def test_plug_ins_from_the_cache(cache: Path, tmp_path: Path) -> None:
    """Known by their commit; a flipped bit in one is refused."""
    model = find(str(sd15_folder(tmp_path / "model")))
    control = cached(cache, "a/b", content(controlnet_folder(tmp_path / "control", "sd15")))
    images = cached(cache, "c/d", content(ip_adapter_folder(tmp_path / "ip", "sd15")))
    linked(control)
    linked(images)
    found = [
        find_controlnet("a/b", model=model),
        find_controlnet("a/b", "c" * 40, model=model),
        find_image_adapter("c/d/models/ip-adapter_sd15.safetensors", model=model),
    ]
    for source in found:
        source.check()
        assert source.revision == "c" * 40
        flip_last_bit(source.weights[-1].resolve())
        with pytest.raises(RequestError, match="is damaged"):
            source.check()
        flip_last_bit(source.weights[-1].resolve())
    with pytest.raises(RequestError, match=f'"{"d" * 40}"'):
        find_controlnet("a/b", "d" * 40, model=model)


def test_an_image_encoder_from_the_cache(cache: Path, tmp_path: Path) -> None:
    """Of an adapter that has none beside it, here and on the hub."""
    model = find(str(flux_folder(tmp_path / "model")))
    card = model.card.model_copy(update={"image_encoder_id": "e/f"})
    model = replace(model, card=card)
    folder = flux_ip_adapter_folder(tmp_path / "ip")
    encoder = cached(cache, "e/f", content(folder / "image_encoder"))
    linked(encoder)
    shutil.rmtree(folder / "image_encoder")
    linked(cached(cache, "c/d", content(folder)))
    for named in (str(folder), "c/d/ip_adapter.safetensors"):
        source = find_image_adapter(named, model=model)
        assert source.encoder == encoder
        source.check()
        flip_last_bit(source.weights[-1].resolve())
        with pytest.raises(RequestError, match="is damaged"):
            source.check()
        flip_last_bit(source.weights[-1].resolve())
    card = card.model_copy(update={"image_encoder_id": None})
    with pytest.raises(RequestError, match=r"has no image_encoder/config\.json beside it"):
        find_image_adapter(str(folder), model=replace(model, card=card))


@pytest.mark.parametrize("revision", ["../../../etc", "..", "refs/../../x"])
def test_a_revision_is_no_path(revision: str, cache: Path) -> None:
    cached(cache, NAME, {"model_index.json": b"{}"})
    with pytest.raises(RequestError, match="is not in the cache"):
        find(NAME, revision)


def test_parts_of_weights() -> None:
    choose = hub_module.choose_weights
    parts = [f"unet/model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/model.safetensors.index.json"
    assert choose([*parts, index], "unet", "model", "x") == tuple(parts)
    whole, half = "unet/model.safetensors", "unet/model.fp16.safetensors"
    assert choose([half, whole, *parts, index], "unet", "model", "x") == (whole,)
    assert choose([half], "unet", "model", "x") == (half,)
    with pytest.raises(RequestError, match="1 of 00002"):
        choose([parts[0], index], "unet", "model", "x")
    with pytest.raises(RequestError, match=r"unet/model\.safetensors is missing"):
        choose(["vae/model.safetensors"], "unet", "model", "x")
