"""The options that all methods of `hires distill` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hirescli.cli.options.option import option

DTYPES = ("float32", "bfloat16")


def _flag(name: str, text: str) -> Any:
    """A switch that is off by default."""
    return typer.Option(name, help=text, show_default=False)


# Options whose defaults differ between the methods.


def samples_of_a_step(default: str) -> Any:
    """`--batch`, with its default in words."""
    text = f"Samples of a step, of all processes together. Default: {default}."
    return option("--batch", metavar="N", min=1, text=text)


def share_without_caption(default: str) -> Any:
    """`--caption-dropout`, with its default in words."""
    text = f"Share of samples without a caption, 0 to 1. Default: {default}."
    return option("--caption-dropout", metavar="X", min=0, max=1, text=text)


def computed_in(default: str) -> Any:
    """`--dtype`, with its default in words."""
    text = f"What is computed in; what learns is float32. Default: {default}."
    return option("--dtype", metavar="|".join(DTYPES), text=text)


def replacing(output: str) -> Any:
    """`--overwrite`; the output is a file or a folder."""
    text = f"Replace a {output} that is there and no distillation's output."
    return _flag("--overwrite", text)


# Options that are the same for all.

Revision = Annotated[
    str | None,
    option("--revision", metavar="NAME", text="Of the model on the hub. Default: the card's."),
]
Prompts = Annotated[
    Path | None,
    option(
        "--prompts",
        metavar="FILE",
        text="In place of pictures: prompts, one a line, each of which the model draws once.",
    ),
]
SamplingSteps = Annotated[
    int | None,
    option(
        "--sampling-steps",
        metavar="N",
        min=1,
        text="Of each picture that the model draws from --prompts. Default: as in `hires "
        "generate`.",
    ),
]
Steps = Annotated[int, option("--steps", metavar="N", min=1, text="Steps. Default: 10000.")]
MicroBatch = Annotated[
    int | None,
    option(
        "--micro-batch",
        metavar="N",
        min=1,
        text="Samples that a process computes at a time; fewer take less memory. "
        "Default: its whole share.",
    ),
]
GradientCheckpointing = Annotated[
    bool,
    _flag(
        "--gradient-checkpointing",
        "Compute activations a second time for the gradients in place of keeping them: less "
        "memory, more time. Default: off.",
    ),
]
Decay = Annotated[
    bool,
    _flag("--decay", "Let the learning rate fall along half a cosine. Default: it stays."),
]
Resolution = Annotated[
    int | None,
    option(
        "--resolution",
        metavar="PX",
        min=8,
        text="Side of the squares to learn on. Default: what the model learned on.",
    ),
]
NoiseWeight = Annotated[
    float,
    option(
        "--noise-weight",
        metavar="X",
        text="What the error against the noise counts. Default: 1, as published.",
    ),
]
TeacherWeight = Annotated[
    float,
    option(
        "--teacher-weight",
        metavar="X",
        text="What the error against the teacher's prediction counts. Default: 0.5, as published.",
    ),
]
AttentionWeight = Annotated[
    float,
    option(
        "--attention-weight",
        metavar="X",
        text="What the errors of attention outputs count. Default: 0.5, as published.",
    ),
]
Seed = Annotated[
    int, option("-s", "--seed", metavar="N", min=0, text="Of all that is drawn. Default: 0.")
]
Device = Annotated[
    str | None,
    option("--device", metavar="cpu|cuda", text="Default: cuda where there is one, else cpu."),
]
Threads = Annotated[
    int | None,
    option(
        "--threads",
        metavar="N",
        min=1,
        max=1024,
        text="CPU threads, 1 to 1024. Default: all cores.",
    ),
]
SaveEvery = Annotated[
    int,
    option(
        "--save-every",
        metavar="N",
        min=1,
        text="Steps between two writings of the state. Default: 500.",
    ),
]
Minutes = Annotated[
    float | None,
    option(
        "--minutes",
        metavar="M",
        min=0,
        text="Save and stop after so long; the same command goes on. Default: no limit.",
    ),
]
SkipBroken = Annotated[
    bool,
    _flag(
        "--skip-broken",
        "Leave out pictures that are damaged, too small or without a caption, and say which. "
        "Default: they are an error.",
    ),
]
Restart = Annotated[
    bool,
    _flag(
        "--restart",
        "Start over where another run's state is. Samples are kept if they are the same.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")]
