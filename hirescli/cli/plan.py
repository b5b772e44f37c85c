"""`hires plan`: what a request takes, without running it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from hirescli.cli.options.file import AlsoOptions
from hirescli.cli.options.request import RequestOptions, takes
from hirescli.errors import HiresError, RequestError

if TYPE_CHECKING:
    from hirescli.cli.request import Image
    from hirescli.planning.machine import Machine


@takes(RequestOptions, AlsoOptions)
def plan(
    request: RequestOptions,
    files: AlsoOptions,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Plan for a GPU of this much memory, such as 8GB. Default: this machine's.",
            show_default=False,
        ),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per image; memory in bytes."),
    ] = False,
) -> None:
    """Show stages, steps, memory, disk and time of a request, and whether this machine can run it.

    The schedule shown is the one that `hires generate` executes: passes over bands of rows, what
    they keep in memory and on disk, and the arithmetic beside that of the whole-image call.
    Takes the options of `hires generate` and loads no model; with --gpu it plans for a card that
    need not be here. Ends with 2 if the request cannot run.
    """
    from hirescli.cli.request import images
    from hirescli.planning.machine import Device, Machine
    from hirescli.units import parse_bytes

    machine = Machine.detect(with_devices=gpu is None)
    if gpu is not None:
        machine = replace(machine, devices=(Device(f"a GPU of {gpu}", parse_bytes(gpu)),))
    all_images = images(request, machine, also=files.also or ())
    problem = first_problem(all_images, machine)
    show(all_images, problem, as_json=json_)
    if problem is not None:
        raise problem


def first_problem(all_images: Sequence[Image], machine: Machine) -> HiresError | None:
    """Why the first image that cannot run here cannot; an existing output is no obstacle."""
    for image in all_images:
        try:
            image.plan.validate(machine, image.output, overwrite=True)
        except RequestError as error:
            return error
    return None


def show(all_images: Sequence[Image], problem: HiresError | None, *, as_json: bool) -> None:
    """Print the plans as tables or as JSON lines."""
    if as_json:
        for image in all_images:
            found = {"output": str(image.output), "problem": problem and str(problem)}
            print(json.dumps(found | image.plan.to_dict()))
        return
    from hirescli.cli.render import console, plan_lines, plan_table, schedule_table

    out = console()
    for image in all_images:
        out.print(plan_table(image.plan))
        out.print()
        out.print(schedule_table(image.plan))
        out.print()
        for line in plan_lines(image.plan, image.output):
            out.print(line, soft_wrap=True)
        for warning in image.plan.warnings:
            out.print(f"warning   {warning}", soft_wrap=True)
