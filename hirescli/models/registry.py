"""Which models there are, and where they are. No torch: `hires plan` reads this."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from hirescli.attention.clear_published import REPOSITORY, listed, published
from hirescli.errors import RequestError
from hirescli.models import hub, sources
from hirescli.models.clear_files import check_published, variant_of
from hirescli.models.safetensors_check import read_tensors
from hirescli.models.sources import ADAPTER_WEIGHTS, AdapterSource, ModelSource
from hirescli.planning.card import Card, read_card
from hirescli.recipe import Recipe

__all__ = ["AdapterSource", "ModelSource", "card_of", "cards", "download", "find", "find_card"]
_CARDS = Path(__file__).parent / "cards"
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@lru_cache(maxsize=1)
def cards() -> tuple[Card, ...]:
    """The shipped cards, sorted by name."""
    return tuple(read_card(path) for path in sorted(_CARDS.glob("*.toml")))


def find_card(name: str) -> Card:
    """A shipped card.

    Raises:
        RequestError: If there is no such card.
    """
    for card in cards():
        if card.name == name:
            return card
    raise RequestError(_unknown(name))


def find(
    model: str,
    revision: str | None = None,
    *,
    adapter: str | None = None,
    adapter_revision: str | None = None,
    weights: bool = True,
) -> ModelSource:
    """Find a model by what a user calls it.

    Args:
        model: The name of a shipped card, a hub id "owner/name", a local folder in diffusers'
            layout, or a local .safetensors file of a whole model.
        revision: Branch, tag or commit on the hub; None: the card's, "main".
        adapter: LinFusion weights: a local folder or a hub id; None: what the card knows, which
            is not looked for yet (`with_adapter` does).
        adapter_revision: Commit of these on the hub; None: what "main" is. Of local ones it
            says nothing.
        weights: Whether the weights of a shipped card must be there or on the hub; False is
            enough to plan with.

    Raises:
        RequestError: If it is not there, damaged, or of no family that is known. Offline, if
            the cache lacks a file; names the repository and the file.
    """
    source = _find(model, revision, weights)
    if adapter is not None:
        if source.card.closed:
            raise RequestError(
                f"model `{source.card.name}` has its own adapter: leave --adapter out"
            )
        check_published(adapter, source.card)
        looked_for = find_clear if source.card.is_transformer else find_adapter
        source = replace(source, adapter=looked_for(adapter, adapter_revision))
        kind = "clear" if source.card.is_transformer else "linfusion"
        card = source.card.model_copy(update={"adapter": kind})
        source = sources.traced(replace(source, card=card), _base(source))
    elif source.adapter is not None and adapter_revision is not None:
        source = replace(source, adapter=replace(source.adapter, commit=adapter_revision))
    return _with_clear_settings(source)


def _with_clear_settings(source: ModelSource) -> ModelSource:
    """The source with a card that says what CLEAR's weights ask of sizes."""
    variant = source.adapter.variant if source.adapter else None
    if variant is None:
        return source
    settings = {"clear_window": variant.window, "clear_down_factor": variant.down_factor}
    return replace(source, card=source.card.model_copy(update=settings))


def _find(model: str, revision: str | None, weights: bool) -> ModelSource:
    by_name = {card.name: card for card in cards()}
    if model in by_name:
        return _shipped(by_name[model], revision, weights)
    path = Path(model).expanduser()
    if path.exists() or path.suffix in _FILES or model.startswith((".", "/", "~")):
        if not path.exists():
            raise RequestError(f"model {path} does not exist; check the path")
        of = sources.of_folder if path.is_dir() else sources.of_file
        return _unchanged(of(path, by_name), revision)
    if not hub.HUB_ID.fullmatch(model):
        raise RequestError(_unknown(model))
    return _complete(sources.of_snapshot(hub.resolve(model, revision), None, by_name))


def _unchanged(source: ModelSource, revision: str | None) -> ModelSource:
    """A local model, if a recipe that names its revision was made with the same weights."""
    if revision not in (None, source.card.revision):
        raise RequestError(
            f'revision "{revision}" of model {source.path} is not here: its weights and configs '
            f'are "{source.card.revision}"; leave the revision out to use these'
        )
    return source


def _shipped(card: Card, revision: str | None, weights: bool) -> ModelSource:
    if card.hub_id is None:
        if revision not in (None, card.revision):
            raise RequestError(
                f'revision "{revision}" of model `{card.name}` is not here, "{card.revision}" '
                "is; leave the revision out to use that"
            )
        return sources.of_shipped(card)
    if not weights:
        source = sources.of_shipped(card)
        if revision is None:
            return source
        return replace(source, card=card.model_copy(update={"revision": revision}))
    snapshot = hub.resolve(card.hub_id, revision or card.revision)
    by_name = {each.name: each for each in cards()}
    return _complete(sources.of_snapshot(snapshot, card, by_name))


def _complete(source: ModelSource) -> ModelSource:
    """The source, if its weights are in the cache or can be fetched."""
    if hub.offline():
        download(source)
    return source


def card_of(recipe: Recipe) -> Card:
    """What is known of a recipe's model, with its adapter; weights need not be here.

    Raises:
        RequestError: As `find`.
    """
    return find(
        recipe.model,
        recipe.revision,
        adapter=recipe.adapter,
        adapter_revision=recipe.adapter_revision,
        weights=False,
    ).card


def find_adapter(name: str, revision: str | None = None) -> AdapterSource:
    """LinFusion weights by what a user calls them: a local folder or a hub id.

    Args:
        name: The folder or the id.
        revision: Commit on the hub; None: what "main" is. Of a folder it says nothing.

    Raises:
        RequestError: If they are not there, or damaged.
    """
    path = Path(name).expanduser()
    if path.exists() or not hub.HUB_ID.fullmatch(name):
        if not (path / "config.json").is_file():
            raise RequestError(f"adapter {path} is no folder with a config.json; check the path")
        found = [each.name for each in path.iterdir()]
        for file in hub.choose_weights(found, "", ADAPTER_WEIGHTS, str(path)):
            read_tensors(path / file)
        return AdapterSource(path=path)
    snapshot = hub.resolve(name, revision, what="adapter", needs="config.json")
    if "config.json" not in snapshot.files:
        raise RequestError(f"{name} is no LinFusion adapter: config.json is missing")
    files = hub.choose_weights(snapshot.files, "", ADAPTER_WEIGHTS, name)
    folder = hub.fetch(snapshot, ["config.json", *files])
    hub.remember(snapshot)
    return AdapterSource(path=folder, hub_id=name, commit=snapshot.commit)


def find_clear(name: str, revision: str | None = None, *, weights: bool = False) -> AdapterSource:
    """CLEAR's weights by what a user calls them: a published name or a local file.

    Args:
        name: Such as "clear-16", or a .safetensors file that says what it holds.
        revision: Commit on the hub; None: what "main" is. Of a file it says nothing.
        weights: Whether published ones must be there, or are fetched.

    Raises:
        RequestError: If they are not there, or damaged, or do not say their window.
        RunError: If a download fails.
    """
    variant = published(name)
    if variant is not None:
        found = AdapterSource(hub_id=REPOSITORY, commit=revision, variant=variant)
        return _fetched_clear(found) if weights else found
    path = Path(name).expanduser()
    if not path.is_file():
        raise RequestError(
            f"adapter {path} is no file; give one of {listed()}, or a .safetensors file with the "
            "weights of CLEAR"
        )
    variant = variant_of(path)
    if variant is None:
        raise RequestError(
            f"adapter {path} does not say its window; name it as those published, such as "
            "clear_local_16.safetensors"
        )
    return AdapterSource(path=path, variant=variant)


def _fetched_clear(adapter: AdapterSource) -> AdapterSource:
    assert adapter.hub_id is not None
    assert adapter.variant is not None
    file = adapter.variant.file
    snapshot = hub.resolve(adapter.hub_id, adapter.commit, what="adapter", needs=file)
    if file not in snapshot.files:
        raise RequestError(f"{adapter.hub_id} has no {file}")
    folder = hub.fetch(snapshot, [file])
    hub.remember(snapshot)
    return replace(adapter, path=folder / file, commit=snapshot.commit)


def with_adapter(source: ModelSource) -> ModelSource:
    """The source with its adapter's weights looked for and, from the hub, fetched and checked.

    Raises:
        RequestError: If no adapter is known for the model, or it is not there or damaged.
    """
    source = with_found_adapter(source)
    adapter = source.adapter
    assert adapter is not None
    if adapter.variant is not None:
        assert adapter.path is not None
        read_tensors(adapter.path)
        if adapter.commit is not None:
            hub.verify([adapter.path])
    elif adapter.commit is not None and adapter.path is not None:
        names = [each.name for each in adapter.path.iterdir()]
        held = hub.choose_weights(names, "", ADAPTER_WEIGHTS, adapter.name)
        hub.verify(adapter.path / name for name in held)
    return source


def with_found_adapter(source: ModelSource) -> ModelSource:
    """The same without reading the weights: before a run, which checks them when they are loaded.

    Raises:
        RequestError: If no adapter is known for the model, or it is not there.
    """
    adapter = source.adapter
    if adapter is None:
        raise RequestError(
            f"no {_method(source.card)} weights are known for model `{source.card.name}`; name "
            "some with --adapter, or use --attention full"
        )
    if adapter.path is not None or adapter.hub_id is None:
        return source
    if adapter.variant is not None:
        return replace(source, adapter=_fetched_clear(adapter))
    found = replace(source, adapter=find_adapter(adapter.hub_id, adapter.commit))
    return sources.traced(found, _base(found))


def _method(card: Card) -> str:
    return "CLEAR" if card.is_transformer else "LinFusion"


def download(source: ModelSource) -> ModelSource:
    """Make all weights of a source be on this machine, those of the hub in its cache.

    Raises:
        RequestError: Offline, if one is missing.
        RunError: If a download fails.
    """
    if source.hub_id is None or source.path is None:
        return source
    names = [name for _, held in source.weights for name in held]
    assert source.commit is not None
    every = ("model_index.json", *names)
    snapshot = hub.Snapshot(source.hub_id, source.commit, every, source.path, source.revision)
    indices = [f"{part}/{base}.index.json" for part, base in _indices(source)]
    folder = hub.fetch(snapshot, [*every, *indices])
    if not hub.offline():
        hub.remember(snapshot)
    return replace(source, path=folder)


def _indices(source: ModelSource) -> list[tuple[str, str]]:
    """Components in several files, whose index is among the configs."""
    return [
        (part, held[0].rsplit("/", 1)[-1].split("-00001")[0] + ".safetensors")
        for part, held in source.weights
        if len(held) > 1
    ]


def _base(source: ModelSource) -> Card:
    """The shipped card of a source's family."""
    from hirescli.models.families import CONFIGS, base_card_name

    assert source.configs is not None
    inside = source.configs.parent == CONFIGS
    return find_card(source.configs.name if inside else base_card_name(source.configs))


def _unknown(model: str) -> str:
    names = ", ".join(f"`{card.name}`" for card in cards())
    return (
        f'model "{model}" is not known: use one of {names}, a hub id like owner/name, a folder '
        "in diffusers' layout, or a .safetensors file"
    )
