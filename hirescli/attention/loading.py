"""LinFusion adapters from folders and from the model hub, checked before anything is mounted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hirescli.attention.linfusion import LinFusionAdapter
from hirescli.errors import RequestError
from hirescli.models import hub
from hirescli.models.safetensors_check import read_tensors
from hirescli.models.sums import check_sums

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"
_FLOATS = ("F16", "BF16", "F32", "F64")


def load_adapter(source: str | Path) -> LinFusionAdapter:
    """Read an adapter in the published format, with all its weights in the stored dtype.

    Args:
        source: A folder with `config.json` and the weights in safetensors files (whole, in
            shards, or in half precision as `.fp16.safetensors`), or the id of a repository on
            the hub.

    Raises:
        RequestError: If a file is missing or damaged, is no safetensors file, or its tensors
            are not those that `config.json` asks for.
        RunError: If a download fails on its way.
    """
    folder = Path(source)
    if folder.is_dir():
        files = _weight_files((path.name for path in folder.iterdir()), folder)
    else:
        folder, files = _fetched(source)
    try:
        check_sums(folder)
    except (OSError, ValueError) as error:
        raise RequestError(f"the adapter in {folder} is refused: {error}") from error
    with torch.device("meta"):
        adapter: LinFusionAdapter = LinFusionAdapter(modules_list=_modules_list(folder / CONFIG))
    shapes = {key: tuple(value.shape) for key, value in adapter.state_dict().items()}
    tensors = _tensors([folder / name for name in files], shapes)
    adapter.load_state_dict(tensors, assign=True)
    adapter.eval()
    return adapter


# Where the files are


def _weight_files(names: Iterable[str], where: str | Path) -> tuple[str, ...]:
    return hub.choose_weights(set(names), "", STEM, str(where))


def _fetched(source: str | Path) -> tuple[Path, tuple[str, ...]]:
    """Folder and weights of one commit of a repository, from the cache or the hub."""
    if isinstance(source, Path) or not hub.HUB_ID.fullmatch(source):
        raise RequestError(
            f"there is no adapter folder {source}; give a folder with {CONFIG} and "
            f"{STEM}.safetensors, or the id of a repository on the hub"
        )
    snapshot = _resolved(source)
    if CONFIG not in snapshot.files:
        raise RequestError(f"{CONFIG} of the adapter {source} is missing at {snapshot.commit[:8]}")
    files = _weight_files(snapshot.files, source)
    folder = hub.fetch(snapshot, [CONFIG, *files])
    hub.verify(folder / name for name in files)
    return folder, files


def _resolved(hub_id: str) -> hub.Snapshot:
    if hub.offline() and hub.cached(hub_id) is None:
        raise RequestError(
            f"{CONFIG} of the adapter {hub_id} is not in the cache {hub.cache_folder()}, and "
            "HF_HUB_OFFLINE is set; unset it, run this once online, or give a folder that has it"
        )
    try:
        return hub.resolve(hub_id, None)
    except RequestError as error:
        raise RequestError(f"{CONFIG} of the adapter {hub_id} cannot be had: {error}") from error


# What is in them


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(
            f"{path} is missing; an adapter is a folder with {CONFIG} and {STEM}.safetensors"
        ) from error
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from error
    if not isinstance(said, dict):
        raise RequestError(f"{path} is damaged: it holds no object")
    return said


def _modules_list(path: Path) -> list[dict[str, Any]]:
    """The entries of a `config.json`; keys beside them are of no concern."""
    entries = _json(path).get("modules_list")
    if not isinstance(entries, list) or not entries:
        raise RequestError(f"{path} lists no modules (`modules_list`): it is no LinFusion adapter")
    for index, entry in enumerate(entries):
        if not _is_entry(entry):
            raise RequestError(
                f"{path}: entry {index} of `modules_list` is no attention; it needs module_name, "
                "dim_n and heads that divide it, and projection_mid_dim if any: -1 or a width"
            )
    (name, count), *_ = Counter(entry["module_name"] for entry in entries).most_common()
    if count > 1:
        raise RequestError(f"{path} lists {name} {count} times; each module has one entry")
    return entries


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("module_name"), str):
        return False
    dim_n, heads = entry.get("dim_n"), entry.get("heads")
    mid_dim = entry.get("projection_mid_dim")
    if type(dim_n) is not int or type(heads) is not int or min(dim_n, heads) < 1:
        return False
    return dim_n % heads == 0 and (mid_dim is None or (type(mid_dim) is int and mid_dim >= -1))


def _tensors(files: list[Path], wanted: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """All tensors, if they are those wanted; headers are compared before tensors are read."""
    found: set[str] = set()
    for file in files:
        header = read_tensors(file)
        for key, shape in sorted(header.shapes.items()):
            if key not in wanted:
                raise RequestError(f"{file} holds {key}, which {CONFIG} does not ask for")
            if shape != wanted[key]:
                raise RequestError(
                    f"{file}: {key} is {shape}, and {CONFIG} asks for {wanted[key]}"
                )
            if header.dtypes[key] not in _FLOATS:
                raise RequestError(
                    f"{file}: {key} is stored as {header.dtypes[key]}; one of "
                    f"{', '.join(_FLOATS)} can be loaded"
                )
        found |= header.shapes.keys()
    missing = [key for key in wanted if key not in found]
    if missing:
        more = f", and {len(missing) - 1} more" if missing[1:] else ""
        raise RequestError(f"{files[0]} is not complete: {missing[0]} is missing{more}")
    return {key: value for file in files for key, value in load_file(file).items()}
