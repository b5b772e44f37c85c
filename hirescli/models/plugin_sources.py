"""Where ControlNets and IP-Adapters are, and whether they fit a model. No torch.

Local ones are known by a digest as local models are, those of the hub by their commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.errors import RequestError
from hirescli.models import hub
from hirescli.models.families import UNET_DEFAULTS, read_json
from hirescli.models.fits import check_controlnet, check_image_adapter
from hirescli.models.safetensors_check import Tensors, read_tensors
from hirescli.models.sources import ADAPTER_WEIGHTS, ModelSource, local_revision
from hirescli.planning.card import Card

CONFIG = "config.json"
ENCODER = "image_encoder"  # of an IP-Adapter: a folder beside its file


@dataclass(frozen=True)
class PluginSource:
    """Where a ControlNet or an IP-Adapter is on this machine.

    Attributes:
        path: A folder, or a .safetensors file.
        weights: All its weights.
        revision: Of the hub its commit, else a digest "local-...".
        hub_id: On the hub; None: it is local.
    """

    path: Path
    weights: tuple[Path, ...]
    revision: str
    hub_id: str | None = None

    def check(self) -> None:
        """Check headers before a library sees a file, and hashes where they are known.

        Raises:
            RequestError: If a file is damaged.
        """
        for path in self.weights:
            read_tensors(path)
        if self.hub_id is not None:
            hub.verify(self.weights)


# ControlNets


def find_controlnet(kind: str, revision: str | None = None, *, model: ModelSource) -> PluginSource:
    """Find the ControlNet of a control, and check by its config that it fits the model.

    Args:
        kind: A name that the model's card knows, such as "canny", or a local folder, a
            .safetensors file, or a hub id.
        revision: Commit on the hub; None: what "main" is. Of a local one it says nothing.
        model: It is for.

    Raises:
        RequestError: If it is missing, damaged, or made for another family.
        RunError: If a download fails.
    """
    card, unet = model.card, _unet(model)
    found = _local_controlnet(kind, card)
    if found is not None:
        config = None if found.path.is_file() else read_json(found.path / CONFIG)
        check_controlnet(found.path, config or said_by(read_tensors(found.path)), unet, card)
        return found
    hub_id = _controlnet_id(kind, card)
    snapshot = hub.resolve(hub_id, _on_hub(kind, revision), what="ControlNet", needs=CONFIG)
    folder = hub.fetch(snapshot, [CONFIG])
    check_controlnet(Path(hub_id), read_json(folder / CONFIG), unet, card)
    names = hub.choose_weights(snapshot.files, "", ADAPTER_WEIGHTS, hub_id)
    return _fetched(snapshot, (CONFIG, *names), names)


def controlnet_revision(kind: str, revision: str | None, card: Card) -> str | None:
    """What a ControlNet's weights are known by, as far as this machine alone can tell.

    Args:
        kind: As in `find_controlnet`.
        revision: What is known already.
        card: Of the model.

    Returns:
        A digest or a commit; `revision` where nothing of it is in the hub's cache.

    Raises:
        RequestError: If a local one is missing or damaged, or the kind is not known.
    """
    found = _local_controlnet(kind, card)
    if found is not None:
        return found.revision
    return cached_commit(_controlnet_id(kind, card), _on_hub(kind, revision))


def said_by(tensors: Tensors) -> dict[str, Any]:
    """What the tensors of a single file say of a ControlNet's config.

    Raises:
        RequestError: If it is none.
    """
    widths = [shape[-1] for n, shape in tensors.shapes.items() if n.endswith("attn2.to_k.weight")]
    if not widths:
        raise RequestError(f"{tensors.path} is no ControlNet: it has no cross-attention to text")
    sizes = any(
        name.startswith("add_embedding.") or ".label_emb." in name for name in tensors.shapes
    )
    return {
        "_class_name": "ControlNetModel",
        "cross_attention_dim": widths[0],
        "addition_embed_type": "text_time" if sizes else None,
    }


def _local_controlnet(kind: str, card: Card) -> PluginSource | None:
    path = Path(dict(card.controls).get(kind, kind)).expanduser()
    if path.is_file() or path.suffix == ".safetensors":
        return _local(path, [], [path])
    if not path.is_dir():
        return None
    if not (path / CONFIG).is_file():
        raise RequestError(f"ControlNet {path} has no {CONFIG}; check the path")
    names = [each.name for each in path.iterdir()]
    files = hub.choose_weights(names, "", ADAPTER_WEIGHTS, str(path))
    return _local(path, [path / CONFIG], [path / name for name in files])


def _controlnet_id(kind: str, card: Card) -> str:
    named = dict(card.controls).get(kind, kind)
    if not hub.HUB_ID.fullmatch(named):
        known = ", ".join(name for name, _ in card.controls) or "none"
        raise RequestError(
            f'control "{kind}" is not known: model `{card.name}` knows {known}; or name a '
            "ControlNet's folder, .safetensors file or hub id"
        )
    return named


# IP-Adapters


def find_image_adapter(
    named: str | None, revision: str | None = None, *, model: ModelSource
) -> PluginSource:
    """Find an IP-Adapter and its image encoder, and check by its tensors that it fits the model.

    Args:
        named: A .safetensors file beside the folder ``image_encoder``, on this machine or,
            as "owner/name/folder/file.safetensors", on the hub; None: the card's.
        revision: Commit on the hub; None: what "main" is. Of a local one it says nothing.
        model: It is for.

    Raises:
        RequestError: If it is missing, damaged, or made for another family.
        RunError: If a download fails.
    """
    found = _local_image_adapter(named, model.card)
    if found is None:
        found = _hub_image_adapter(named, revision, model.card)
    check_image_adapter(read_tensors(found.path), _unet(model), model.card)
    return found


def image_adapter_revision(named: str | None, revision: str | None, card: Card) -> str | None:
    """What an IP-Adapter's weights are known by; as `controlnet_revision`."""
    found = _local_image_adapter(named, card)
    if found is not None:
        return found.revision
    hub_id, _ = _image_adapter_id(named, card)
    return cached_commit(hub_id, _on_hub(named or hub_id, revision))


def _local_image_adapter(named: str | None, card: Card) -> PluginSource | None:
    path = Path(_image_adapter_name(named, card)).expanduser()
    if not path.exists():
        return None
    file = _only_file(path) if path.is_dir() else path
    encoder = file.parent / ENCODER
    if not (encoder / CONFIG).is_file():
        raise RequestError(f"IP-Adapter {file} has no {ENCODER}/{CONFIG} beside it")
    names = [each.name for each in encoder.iterdir()]
    files = hub.choose_weights(names, "", "model", str(encoder))
    return _local(file, [encoder / CONFIG], [file, *(encoder / name for name in files)])


def _hub_image_adapter(named: str | None, revision: str | None, card: Card) -> PluginSource:
    hub_id, file = _image_adapter_id(named, card)
    wanted = _on_hub(named or hub_id, revision)
    snapshot = hub.resolve(hub_id, wanted, what="IP-Adapter", needs=file)
    folder = "/".join([*file.split("/")[:-1], ENCODER])
    names = (file, *hub.choose_weights(snapshot.files, folder, "model", hub_id))
    return _fetched(snapshot, (*names, f"{folder}/{CONFIG}"), names, file)


def _image_adapter_name(named: str | None, card: Card) -> str:
    name = named or card.image_adapter_id
    if name is None:
        raise RequestError(
            f"no IP-Adapter is known for model `{card.name}`; name one with --image-adapter"
        )
    return name


def _image_adapter_id(named: str | None, card: Card) -> tuple[str, str]:
    """Repository and file in it."""
    name = _image_adapter_name(named, card)
    hub_id, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if not file.endswith(".safetensors") or not hub.HUB_ID.fullmatch(hub_id):
        raise RequestError(
            f"IP-Adapter {name} does not exist; name a .safetensors file, or "
            "owner/name/folder/file.safetensors on the hub"
        )
    return hub_id, file


def _only_file(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*models/*.safetensors"))
    if len(found) != 1:
        raise RequestError(
            f"{folder} has {len(found)} .safetensors files; name the IP-Adapter's file itself"
        )
    return found[0]


# LinFusion weights


def adapter_revision(named: str | None, revision: str | None, card: Card) -> str | None:
    """What LinFusion weights are known by; as `controlnet_revision`.

    Args:
        named: A folder or a hub id; None: those that the card knows, if any.
        revision: What is known already.
        card: Of the model.
    """
    if named is None:
        return card.adapter_id and cached_commit(card.adapter_id, _on_hub("LinFusion", revision))
    path = Path(named).expanduser()
    if not path.exists() and hub.HUB_ID.fullmatch(named):
        return cached_commit(named, _on_hub(named, revision))
    if not (path / CONFIG).is_file():
        raise RequestError(f"adapter {path} is no folder with a {CONFIG}; check the path")
    names = [each.name for each in path.iterdir()]
    files = hub.choose_weights(names, "", ADAPTER_WEIGHTS, str(path))
    return _local(path, [path / CONFIG], [path / name for name in files]).revision


# All


def cached_commit(hub_id: str, revision: str | None) -> str | None:
    """The commit that the hub's cache has for a revision; the revision itself if it has none."""
    found = hub.cached(hub_id, revision)
    return revision if found is None else found.commit


def _on_hub(named: str, revision: str | None) -> str | None:
    """The revision, if the hub can have it."""
    if revision is not None and revision.startswith("local-"):
        raise RequestError(
            f"{named} is not here: the recipe was made with a local one; put that back, or name "
            "one with its option again"
        )
    return revision


def _local(path: Path, configs: Iterable[Path], files: Iterable[Path]) -> PluginSource:
    tensors = [read_tensors(file) for file in files]
    revision = local_revision(configs, tensors)
    return PluginSource(path, tuple(each.path for each in tensors), revision)


def _fetched(
    snapshot: hub.Snapshot, names: Iterable[str], weights: Iterable[str], file: str = ""
) -> PluginSource:
    folder = hub.fetch(snapshot, names)
    if not hub.offline():
        hub.remember(snapshot)
    held = tuple(folder / name for name in weights)
    return PluginSource(folder / file, held, snapshot.commit, snapshot.hub_id)


def _unet(model: ModelSource) -> Mapping[str, Any]:
    assert model.configs is not None
    return UNET_DEFAULTS | read_json(model.configs / "unet" / CONFIG)
