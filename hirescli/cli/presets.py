"""`hires presets`: partial recipes in TOML, shipped or written by users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hirescli.cli.options.option import paragraphs
from hirescli.cli.options.picture import preset_names
from hirescli.cli.options.request import RequestOptions, takes
from hirescli.cli.streams import json_visible, visible
from hirescli.errors import ConfigError

app = typer.Typer(
    help="List, show, check and write presets: partial recipes in TOML.", no_args_is_help=True
)
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(json_: _Json = False) -> None:
    """List the presets that come with hires."""
    from hirescli import presets

    found = [presets.load(name) for name in presets.names()]
    if json_:
        print(json.dumps([{"name": p.name, "description": p.description} for p in found]))
        return
    from hirescli.cli.render import console, table

    shown = table("preset", "description")
    for preset in found:
        shown.add_row(preset.name, preset.description)
    console().print(shown)


@app.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="A name of `hires presets list`, or a .toml file.",
            autocompletion=preset_names,
        ),
    ],
    json_: _Json = False,
) -> None:
    """Show what a preset chooses."""
    from hirescli import presets

    preset = presets.load(name)
    if json_:
        choices = dict(preset.fragment)
        print(json.dumps({"name": preset.name, "description": preset.description} | choices))
        return
    print(visible(f"{preset.name}: {preset.description}"))
    for key, value in preset.fragment.items():
        print(visible(f"  {key} = {_toml_value(value)}"))


@app.command("validate")
def validate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Preset files (.toml) to check.")
    ],
    json_: _Json = False,
) -> None:
    """Check preset files; name every fault with its line or key."""
    from hirescli import presets

    faults = {path: presets.validate(path) for path in files}
    if json_:
        told = [{"file": str(p), "valid": not f, "faults": list(f)} for p, f in faults.items()]
        print(json_visible(json.dumps(told)))
    else:
        for path in (path for path, found in faults.items() if not found):
            print(visible(f"{path}: is a valid preset"))
    wrong = [f"{path}: {fault}" for path, found in faults.items() for fault in found]
    if wrong:
        raise ConfigError("presets", wrong)


@takes(RequestOptions)
def new(
    request: RequestOptions,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File to write; it must not exist.")
    ],
    json_: _Json = False,
) -> None:
    """Write a preset from the options given, ready to edit.

    Takes the options of `hires generate`, except those of a single run: --seed with several
    values, --output, --memory, --host-memory, --spill and --recipe.
    """
    from hirescli import presets

    choices = _choices(request)
    presets.new(file, choices)
    if json_:
        print(json_visible(json.dumps({"file": str(file)} | choices)))
    else:
        print(visible(str(file)))


app.command("new", help=paragraphs(new.__doc__))(new)


def _choices(request: RequestOptions) -> dict[str, Any]:
    from hirescli import presets
    from hirescli.errors import RequestError

    useless = [
        f"--{name}"
        for name in ("output", "memory", "host-memory", "spill", "recipe")
        if getattr(request, name.replace("-", "_")) is not None
    ]
    if len(request.seed or []) > 1:
        useless.append("several --seed")
    if useless:
        raise RequestError(f"a preset holds no {', '.join(useless)}; leave it out")
    base = {} if request.preset is None else dict(presets.load(request.preset).fragment)
    said = request.fragment() | ({"seed": request.seed[0]} if request.seed else {})
    return _without_other_size(base, said) | said


def _without_other_size(base: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """The base without its size where another one is said."""
    sizes = {"size", "width_px", "height_px"}
    return {k: v for k, v in base.items() if not (k in sizes and sizes & said.keys())}


def _toml_value(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
