"""Where ControlNets and IP-Adapters are, and whether they fit a model. No torch.

Local ones are known by a digest as local models are, those of the hub by their commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hirescli.attention.clear_published import REPOSITORY as CLEAR_REPOSITORY
from hirescli.attention.clear_published import listed, published
from hirescli.errors import RequestError
from hirescli.models import hub
from hirescli.models.clear_files import check_published
from hirescli.models.families import UNET_DEFAULTS, read_json
from hirescli.models.fits import check_controlnet, check_image_adapter
from hirescli.models.flux_controls import CLASS as FLUX_CLASS
from hirescli.models.flux_controls import flux_layout
from hirescli.models.flux_images import check_flux_images
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
        encoder: Folder of an IP-Adapter's image encoder.
    """

    path: Path
    weights: tuple[Path, ...]
    revision: str
    hub_id: str | None = None
    encoder: Path | None = None

    def check(self) -> None:
        """Check headers before a library sees a file, and hashes where they are known.

        Raises:
            RequestError: If a file is damaged.
        """
        for path in self.weights:
            read_tensors(path)
        hub.verify(self.weights)  # of those that the hub's cache names by one


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
    found = _local_controlnet(kind, model.card)
    if found is not None:
        fitting_layout(found.path, _config_of(found, model.card), model)
        return found
    hub_id = _controlnet_id(kind, model.card)
    snapshot, config = _hub_controlnet(hub_id, _on_hub(kind, revision))
    fitting_layout(Path(hub_id), config, model)
    names = hub.choose_weights(snapshot.files, "", ADAPTER_WEIGHTS, hub_id)
    return _fetched(snapshot, (CONFIG, *names), names)


def controlnet_layout(kind: str, revision: str | None, *, model: ModelSource) -> str | None:
    """What of a ControlNet's config a plan needs; its weights are not looked for.

    Args:
        kind: As in `find_controlnet`.
        revision: As there.
        model: It is for.

    Returns:
        Of FLUX as `hirescli.plugins.Control` has it; None where all ControlNets are alike.

    Raises:
        RequestError: If its config is missing, or that of another family.
        RunError: If the config is on the hub, and fetching it fails.
    """
    if model.card.family != "flux":
        return None
    found = _local_controlnet(kind, model.card)
    if found is not None:
        return fitting_layout(found.path, _config_of(found, model.card), model)
    hub_id = _controlnet_id(kind, model.card)
    _, config = _hub_controlnet(hub_id, _on_hub(kind, revision))
    return fitting_layout(Path(hub_id), config, model)


def fitting_layout(where: Path, config: Mapping[str, Any], model: ModelSource) -> str | None:
    """The same of a config that is at hand.

    Raises:
        RequestError: If it is that of another family.
    """
    card = model.card
    if card.family == "flux":
        return str(flux_layout(where, config, _transformer(model), card))
    check_controlnet(where, config, _unet(model), card)
    return None


def _config_of(found: PluginSource, card: Card) -> dict[str, Any]:
    if not found.path.is_file():
        return read_json(found.path / CONFIG)
    if card.family == "flux":
        raise RequestError(
            f"{found.path} is a single file, which does not say its layout; name a folder of "
            f"diffusers' {FLUX_CLASS}, with its {CONFIG}"
        )
    return said_by(read_tensors(found.path))


def _hub_controlnet(hub_id: str, revision: str | None) -> tuple[hub.Snapshot, dict[str, Any]]:
    """A commit and the config in it, which is fetched."""
    snapshot = hub.resolve(hub_id, revision, what="ControlNet", needs=CONFIG)
    return snapshot, read_json(hub.fetch(snapshot, [CONFIG]) / CONFIG)


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
        named: A .safetensors file, on this machine or, as
            "owner/name/folder/file.safetensors", on the hub; None: the card's. Its image encoder
            is the folder ``image_encoder`` beside it, else what the card names on the hub.
        revision: Commit on the hub; None: what "main" is. Of a local one it says nothing.
        model: It is for.

    Raises:
        RequestError: If it is missing, damaged, or made for another family.
        RunError: If a download fails.
    """
    found = _local_image_adapter(named, model.card)
    if found is None:
        found = _hub_image_adapter(named, revision, model.card)
    found = _with_encoder(found, model.card)
    fitting_images(found, model)
    return found


def fitting_images(found: PluginSource, model: ModelSource) -> None:
    """Refuse an IP-Adapter that was not made for a model, or for its image encoder.

    Raises:
        RequestError: If it is none, or of another family.
    """
    assert found.encoder is not None
    card, tensors = model.card, read_tensors(found.path)
    if card.family == "flux":
        encoder = read_json(found.encoder / CONFIG)
        check_flux_images(tensors, encoder, _transformer(model), card)
    else:
        check_image_adapter(tensors, _unet(model), card)


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
        if card.image_encoder_id is not None:
            return _local(file, [], [file])
        raise RequestError(f"IP-Adapter {file} has no {ENCODER}/{CONFIG} beside it")
    names = [each.name for each in encoder.iterdir()]
    files = hub.choose_weights(names, "", "model", str(encoder))
    found = _local(file, [encoder / CONFIG], [file, *(encoder / name for name in files)])
    return replace(found, encoder=encoder)


def _hub_image_adapter(named: str | None, revision: str | None, card: Card) -> PluginSource:
    hub_id, file = _image_adapter_id(named, card)
    wanted = _on_hub(named or hub_id, revision)
    snapshot = hub.resolve(hub_id, wanted, what="IP-Adapter", needs=file)
    folder = "/".join([*file.split("/")[:-1], ENCODER])
    config = f"{folder}/{CONFIG}"
    if config not in snapshot.files and card.image_encoder_id is not None:
        return _fetched(snapshot, [file], [file], file)
    names = (file, *hub.choose_weights(snapshot.files, folder, "model", hub_id))
    found = _fetched(snapshot, (*names, config), names, file)
    return replace(found, encoder=found.path.parent / ENCODER)


def _with_encoder(found: PluginSource, card: Card) -> PluginSource:
    """The adapter with the image encoder of its card, where it has none beside it."""
    hub_id = card.image_encoder_id
    if found.encoder is not None or hub_id is None:
        return found
    snapshot = hub.resolve(hub_id, None, what="image encoder", needs=CONFIG)
    names = hub.choose_weights(snapshot.files, "", "model", hub_id)
    fetched = _fetched(snapshot, (CONFIG, *names), names)
    return replace(found, weights=found.weights + fetched.weights, encoder=fetched.path)


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


# LinFusion's and CLEAR's weights


def adapter_revision(named: str | None, revision: str | None, card: Card) -> str | None:
    """What LinFusion's or CLEAR's weights are known by; as `controlnet_revision`.

    Args:
        named: A folder or a hub id, of CLEAR a published name or a file; None: those that the
            card knows, if any.
        revision: What is known already.
        card: Of the model.
    """
    if named is not None:
        check_published(named, card)
    if card.is_transformer:
        return _clear_revision(named or card.adapter_id, revision)
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


def _clear_revision(named: str | None, revision: str | None) -> str | None:
    if named is None:
        return None
    if published(named) is not None:
        return cached_commit(CLEAR_REPOSITORY, _on_hub(named, revision))
    path = Path(named).expanduser()
    if not path.is_file():
        raise RequestError(
            f"adapter {path} is no file; give one of {listed()}, or a .safetensors file with the "
            "weights of CLEAR"
        )
    return _local(path, [], [path]).revision


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


def _transformer(model: ModelSource) -> Mapping[str, Any]:
    assert model.configs is not None
    return read_json(model.configs / model.card.denoiser_part / CONFIG)


def _unet(model: ModelSource) -> Mapping[str, Any]:
    assert model.configs is not None
    return UNET_DEFAULTS | read_json(model.configs / "unet" / CONFIG)
