"""`hires distill`: linear attention for a model that has none, by distillation."""

from __future__ import annotations

import typer

from hirescli.cli.distilling.clear import clear
from hirescli.cli.distilling.linfusion import linfusion
from hirescli.cli.options.option import paragraphs

app = typer.Typer(
    help="Distil linear attention for a model: its own attention is the teacher.",
    no_args_is_help=True,
)
for name, command in (("linfusion", linfusion), ("clear", clear)):
    app.command(name, help=paragraphs(command.__doc__))(command)
