"""`hires models`: the models that this version runs, what is known of one, and fetching it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hirescli.cli.options.option import paragraphs
from hirescli.cli.streams import json_visible, visible

if TYPE_CHECKING:
    from hirescli.models.sources import ModelSource
    from hirescli.planning.card import Card

app = typer.Typer(
    help="List the models that hires runs, show what is known of one, and fetch it.",
    no_args_is_help=True,
)
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name of `hires models list`, a hub id like owner/name, a folder in diffusers' "
        "layout, or a .safetensors file.",
    ),
]
_Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit on the hub. Default: main."),
]


def list_(json_: _Json = False) -> None:
    """List the models that have a card, and whether their weights are on this machine."""
    from hirescli.models.registry import cards

    rows = [(card, _place(card)) for card in cards()]
    if json_:
        print(json.dumps([_summary(card) | {"weights": place} for card, place in rows]))
        return
    from hirescli.cli.render import console, table
    from hirescli.units import format_bytes

    shown = table("model", "title", "native", "size", "weights", right=("native", "size"))
    for card, place in rows:
        size = format_bytes(card.weights_bytes)
        shown.add_row(card.name, card.title, f"{card.native_px} px", size, place)
    console().print(shown)


def _place(card: Card) -> str:
    from hirescli.models import hub

    if card.hub_id is None:
        return "installed"
    return "on the hub" if hub.cached(card.hub_id) is None else "in the cache"


def _summary(card: Card) -> dict[str, Any]:
    keys = ("name", "title", "family", "revision", "licence", "hub_id", "native_px", "dtype")
    return {key: getattr(card, key) for key in keys} | {"weights_bytes": card.weights_bytes}


def info(model: _Model, revision: _Revision = None, json_: _Json = False) -> None:
    """Show what is known of a model. Of a card by its name, nothing is fetched or looked for."""
    from hirescli.models.registry import find

    source = find(model, revision, weights=False)
    facts = _facts(source)
    if json_:
        print(json_visible(json.dumps(facts, ensure_ascii=False)))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        if value not in (None, "", [], {}):
            print(visible(f"{key:<{width}}  {_shown(value)}"))


def _facts(source: ModelSource) -> dict[str, Any]:
    card = source.card
    facts: dict[str, Any] = card.model_dump(mode="json", exclude={"parameters", "controls"})
    facts |= {"parameters": dict(card.parameters), "controls": dict(card.controls)}
    where = {
        "kind": source.kind,
        "path": None if source.path is None else str(source.path),
        "commit": source.commit,
        "linear_attention": None if source.adapter is None else source.adapter.name,
        "memory_bytes": card.process_bytes(card.dtype),
    }
    return where | facts


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def pull(
    model: _Model,
    revision: _Revision = None,
    adapter: Annotated[
        bool,
        typer.Option("--adapter/--no-adapter", help="Also fetch its LinFusion weights."),
    ] = True,
    json_: _Json = False,
) -> None:
    """Fetch a model's weights from the hub into its cache, all of one commit, and check them.

    Prints the folder. Only safetensors, JSON and text are fetched. A download that was
    interrupted goes on where it was. HF_HOME says where the cache is, HF_TOKEN is sent to
    repositories that ask for a login.
    """
    from hirescli.errors import RequestError
    from hirescli.models import hub
    from hirescli.models.registry import download, find, with_adapter

    source = find(model, revision)
    if source.hub_id is None:
        raise RequestError(f"model {model} is on this machine already; there is nothing to fetch")
    source = download(source)
    assert source.path is not None
    hub.verify(source.path / name for _, held in source.weights for name in held)
    if adapter and source.adapter is not None:
        source = with_adapter(source)
    place = None if source.adapter is None else source.adapter.path
    if json_:
        said = {"hub_id": source.hub_id, "commit": source.commit, "path": str(source.path)}
        print(json.dumps(said | {"adapter": None if place is None else str(place)}))
        return
    print(visible(str(source.path)))


for name, command in (("list", list_), ("info", info), ("pull", pull)):
    app.command(name, help=paragraphs(command.__doc__))(command)
