"""Where a model's weights are, and what is known of them before they are loaded. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hirescli.attention.clear_published import DEFAULT_WINDOW, REPOSITORY, Variant, published
from hirescli.errors import RequestError
from hirescli.models import families, hub, single_header
from hirescli.models.safetensors_check import Tensors, read_tensors
from hirescli.models.trace_folder import recorded, trace_folder
from hirescli.planning.card import Card

Kind = Literal["shipped", "folder", "file", "hub"]
Weights = tuple[tuple[str, tuple[str, ...]], ...]
ADAPTER_WEIGHTS = "diffusion_pytorch_model"
_BASES = {
    "unet": "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
}
_SAMPLE_BYTES = 65536  # of a weights file, at its start, middle and end: what tells two apart


@dataclass(frozen=True)
class AdapterSource:
    """Where LinFusion's or CLEAR's weights are.

    Attributes:
        path: The folder, or CLEAR's file, that has them; None: not looked for yet.
        hub_id: On the hub; None: a local folder or file.
        commit: Of the hub.
        variant: Of CLEAR; None: of LinFusion.
    """

    path: Path | None = None
    hub_id: str | None = None
    commit: str | None = None
    variant: Variant | None = None

    @property
    def name(self) -> str:
        """What a person knows it by."""
        return self.hub_id or str(self.path)


@dataclass(frozen=True)
class ModelSource:
    """Where a model is, and its card.

    Attributes:
        card: Of the model itself: for a folder or file with the facts of its own configs.
        kind: "shipped" by the name of a card, else what was named.
        path: Folder in diffusers' layout, or single file; None: nothing was looked for.
        hub_id: On the hub, if it is from there.
        commit: Of the hub: all files are of this one.
        revision: Branch or tag that the commit was found by.
        weights: The files of every component, relative to `path`; empty for a single file.
        configs: Folder of diffusers' configs.
        scheduler_changes: What a single file says of its noise schedule.
        adapter: LinFusion weights that were named, or those that the card knows.
    """

    card: Card
    kind: Kind
    path: Path | None = None
    hub_id: str | None = None
    commit: str | None = None
    revision: str | None = None
    weights: Weights = ()
    configs: Path | None = None
    scheduler_changes: tuple[tuple[str, Any], ...] = ()
    adapter: AdapterSource | None = None


def of_shipped(card: Card) -> ModelSource:
    """A card by its name, its weights not looked for."""
    adapter = _known_adapter(card)
    configs = families.CONFIGS / card.name if card.family != "builtin" else None
    source = ModelSource(card, "shipped", hub_id=card.hub_id, configs=configs, adapter=adapter)
    return traced(source, card) if card.family == "flux" else source


def _known_adapter(card: Card) -> AdapterSource | None:
    """What a card says of its adapter, not looked for."""
    if card.adapter_id is None:
        return None
    variant = published(card.adapter_id) if card.adapter == "clear" else None
    return AdapterSource(hub_id=REPOSITORY if variant else card.adapter_id, variant=variant)


def of_folder(folder: Path, base_of: dict[str, Card]) -> ModelSource:
    """A local folder in diffusers' layout.

    Args:
        folder: With a ``model_index.json``.
        base_of: The shipped cards by name.

    Raises:
        RequestError: If it is of no family that is known, or a file is missing or damaged.
    """
    if not (folder / "model_index.json").is_file():
        raise RequestError(
            f"{folder} is no model in diffusers' layout: it has no model_index.json; name the "
            "folder that holds unet or transformer, vae and text_encoder, or a .safetensors file"
        )
    base = base_of[families.base_card_name(folder)]
    weights = _weights_of(base, _listed(folder), str(folder))
    read = {part: _read_all(folder, names) for part, names in weights}
    configs = sorted(folder.glob("*/*.json"))
    revision = local_revision(configs, (each for held in read.values() for each in held))
    card = families.adapted_card(base, folder, name=folder.resolve().name, revision=revision)
    card = _with_sizes(card, families.parameters_of(read), read.values())
    source = ModelSource(card, "folder", path=folder, weights=weights, configs=folder)
    return traced(source, base)


def of_snapshot(snapshot: hub.Snapshot, base: Card | None, bases: dict[str, Card]) -> ModelSource:
    """A repository of the hub at one commit; its configs are fetched, its weights are not.

    Args:
        snapshot: The commit.
        base: The shipped card that named it; None: a hub id.
        bases: The shipped cards by name.

    Raises:
        RequestError: As `of_folder`, or if a file is not in the cache offline.
    """
    where = f"{snapshot.hub_id} at {snapshot.commit[:8]}"
    if "model_index.json" not in snapshot.files:
        raise RequestError(
            f"{where} is no model in diffusers' layout: model_index.json is missing; download "
            "its .safetensors file and give that to --model"
        )
    parts = ("unet/", "transformer/", "vae/", "scheduler/", "text_encoder", "tokenizer")
    configs = [n for n in snapshot.files if n.endswith((".json", ".txt")) and n.startswith(parts)]
    folder = hub.fetch(snapshot, ["model_index.json", *configs])
    found = bases[families.base_card_name(folder)]
    weights = _weights_of(found, snapshot.files, where)
    card = families.adapted_card(
        found, folder, name=snapshot.hub_id, revision=snapshot.commit
    ).model_copy(update={"hub_id": snapshot.hub_id})
    if base is not None:
        card = base.model_copy(update={"revision": snapshot.commit})
    source = ModelSource(
        card, "hub" if base is None else "shipped", path=folder, hub_id=snapshot.hub_id,
        commit=snapshot.commit, revision=snapshot.revision, weights=weights, configs=folder,
    )  # fmt: skip
    return traced(source, found)


def of_file(path: Path, base_of: dict[str, Card]) -> ModelSource:
    """A single .safetensors file of a whole model; configs come from the package.

    Raises:
        RequestError: If it is of no family that is known, or damaged.
    """
    tensors = read_tensors(path)
    base = base_of[single_header.base_card_of_file(tensors)]
    changes = {
        "name": path.stem,
        "title": f"A model of the shape of {base.title}",
        "revision": local_revision((), [tensors]),
        "licence": "unknown: see where the file came from",
        "notice": "",
        "hub_id": None,
    }
    card = _with_sizes(
        base.model_copy(update=changes), single_header.parameters_of_file(tensors), [[tensors]]
    )
    changed = single_header.scheduler_changes(tensors)
    source = ModelSource(
        card, "file", path=path, configs=families.CONFIGS / base.name,
        scheduler_changes=tuple(changed.items()),
    )  # fmt: skip
    return traced(source, base)


def traced(source: ModelSource, base: Card) -> ModelSource:
    """The source with its adapter, and a card that knows where its traces are.

    Modules that a shipped card has traces of use these; others, and what plugs into
    FLUX's, are recorded when first asked for, on the meta device, and kept in the user's cache.
    """
    adapter, card, configs = source.adapter, source.card, source.configs
    assert configs is not None
    adapter = adapter or _known_adapter(card)
    entries: Any = _entries(adapter)
    variant = adapter.variant if adapter else None
    folder = trace_folder(
        families.configs_digest(configs, [asdict(variant)] if variant else entries)
    )
    changes: dict[str, Any] = {"folder": folder, "traced_as": base.family, "recorder": None}
    recorder = partial(
        recorded, card.model_copy(update=changes), configs,
        variant or (adapter.path if entries and adapter else None),
    )  # fmt: skip
    if families.has_shipped_traces(base, configs) and _is_usual(adapter, entries, base):
        changes |= {"folder": base.folder, "traced_as": base.name}
    if changes["folder"] == folder or card.family == "flux":
        changes["recorder"] = recorder
    return replace(source, adapter=adapter, card=card.model_copy(update=changes))


def _entries(adapter: AdapterSource | None) -> list[dict[str, Any]] | None:
    """What a local adapter replaces; None where it is not here."""
    if adapter is None or adapter.path is None or adapter.variant is not None:
        return None
    entries = families.read_json(adapter.path / "config.json").get("modules_list")
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise RequestError(
            f"{adapter.path} is no LinFusion adapter: its config.json has no modules_list"
        )
    return entries


def _is_usual(
    adapter: AdapterSource | None, entries: list[dict[str, Any]] | None, base: Card
) -> bool:
    """Whether an adapter is of the kind that the shipped traces were recorded with."""
    if adapter is not None and adapter.variant is not None:
        return base.adapter == "clear" and adapter.variant == Variant(DEFAULT_WINDOW)
    scale = MID_DIM_SCALES.get(base.name, 1)
    widths = [(each.get("projection_mid_dim"), each.get("dim_n", 0)) for each in entries or ()]
    return all((dim if mid is None else mid) == dim // scale for mid, dim in widths)


# Of the published adapters: the width of the shift is that of the tokens, divided by this.
MID_DIM_SCALES = {"sd15": 1, "sd21": 1, "sdxl": 16}


def _weights_of(base: Card, files: Iterable[str], where: str) -> Weights:
    names = set(files)
    parts = [part for part, _ in base.parameters if part in _BASES]
    return tuple((p, hub.choose_weights(names, p, _BASES[p], where)) for p in parts)


def _listed(folder: Path) -> list[str]:
    try:
        found = [path for part in _BASES for path in sorted((folder / part).glob("*"))]
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {error.strerror or error}") from error
    return [path.relative_to(folder).as_posix() for path in found if path.is_file()]


def _read_all(folder: Path, names: Iterable[str]) -> list[Tensors]:
    return [read_tensors(folder / name) for name in names]


def _with_sizes(
    card: Card, parameters: tuple[tuple[str, int], ...], files: Iterable[Iterable[Tensors]]
) -> Card:
    """The card with the sizes of these files; the adapter's number stays."""
    adapter = [each for each in card.parameters if each[0] == "linfusion" and card.adapter]
    sized = card.model_copy(
        update={
            "parameters": (*parameters, *adapter),
            "weights_bytes": sum(each.size_bytes for held in files for each in held),
        }
    )
    return sized.model_copy(update={"base_memory_bytes": sized.process_bytes(card.dtype)})


def local_revision(configs: Iterable[Path], files: Iterable[Tensors]) -> str:
    """A name for local weights: other weights have another, as far as samples of them tell."""
    digest = hashlib.sha256()
    for config in configs:
        digest.update(config.read_bytes())
    for tensors in files:
        shapes = json.dumps([tensors.shapes, tensors.dtypes], sort_keys=True)
        digest.update(f"{tensors.size_bytes} {shapes}".encode())
        with tensors.path.open("rb") as file:
            for place in (0, tensors.size_bytes // 2, tensors.size_bytes - _SAMPLE_BYTES):
                file.seek(max(0, place))
                digest.update(file.read(_SAMPLE_BYTES))
    return f"local-{digest.hexdigest()[:16]}"
