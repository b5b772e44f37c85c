"""All of a distillation: from a request to an adapter in the published format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import torch

from hirescli.errors import RequestError
from hirescli.training.distill.course import Log, Processes, State, run_course
from hirescli.training.distill.data import Data, look, samples_of
from hirescli.training.distill.loss import Distiller
from hirescli.training.distill.methods import Method, Students
from hirescli.training.distill.optimizers import check_optimizer
from hirescli.training.distill.outputs import Output
from hirescli.training.distill.place import Place
from hirescli.training.distill.request import Request
from hirescli.training.distill.settings import DistillRun
from hirescli.training.distill.targets import Target


def distil(
    request: Request,
    processes: Processes,
    *,
    log: Log,
    stop_after_seconds: float = math.inf,
) -> bool:
    """Distil, or go on with it, and write the adapter.

    Args:
        request: What, from what, where to.
        processes: Those that take part.
        log: Is given what happens: `{"note": ...}` or numbers by name.
        stop_after_seconds: Stop at the first step after so long.

    Returns:
        Whether the adapter is there; False: the time was up, and the same call goes on.

    Raises:
        RequestError: If anything asked for cannot be had. Nothing is written then but in the
            folder beside the output.
        NotFiniteError: If a loss is no number.
    """
    place = Place(request.output.path)
    place.check()
    request.output.check(overwrite=request.overwrite)
    _check_run(request, processes)
    data = look(request, log if processes.is_first else lambda _: None)
    with place.held() if processes.is_first else nullcontext():
        torch.manual_seed(request.run.seed)
        target = request.found.load(request.run.dtype)
        identity = _identity(request, target, data)
        if _is_finished(request.output, identity, request.run.steps) and not request.restart:
            log({"note": f"{request.output.path} is finished already"})
            return True
        students = request.method.students(target, request.run.resolution_px, request.start)
        if processes.is_first:
            place.take_up(identity, restart=request.restart)
        processes.wait()
        target.to(processes.device)
        students.whole.to(processes.device)
        schedule = target.schedule()
        samples = samples_of(request, target, data, schedule.timesteps, processes, log)
        distiller = _distiller(request.run, target, students)
        state = _state(request, students, identity, log)
        finished = run_course(
            distiller, samples, state, request.run, processes, log=log,
            stop_after_seconds=stop_after_seconds,
        )  # fmt: skip
        if finished and processes.is_first:
            about = {**identity, "steps": state.step}
            request.method.publish(students, request.output, _about(request.method, about))
        processes.wait()
    return finished


def _distiller(run: DistillRun, target: Target, students: Students) -> Distiller:
    if run.gradient_checkpointing:
        target.denoiser.enable_gradient_checkpointing()
    call = target.call(run.resolution_px)
    return Distiller(call, students.modules, target.schedule(), run.weights)


def _state(request: Request, students: Students, identity: Mapping[str, Any], log: Log) -> State:
    run = request.run
    path = Place(request.output.path).state
    state = State(path, students.whole, identity, run.learning_rate, run.optimizer)
    if state.step:
        log({"note": f"going on from step {state.step}"})
    return state


def _about(method: Method, said: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter says of how it was made."""
    versions = {name: version(name) for name in ("torch", "diffusers")}
    return {"method": method.name, **said, **versions}


def _check_run(request: Request, processes: Processes) -> None:
    run, found = request.run, request.found
    if (request.data is None) == (request.prompts is None):
        raise RequestError(
            "a distillation learns from pictures or from prompts; give one of --data and --prompts"
        )
    if request.sampling_steps is not None and request.prompts is None:
        raise RequestError("--sampling-steps has no effect without --prompts; leave it out")
    if run.resolution_px < found.multiple_px or run.resolution_px % found.multiple_px:
        raise RequestError(
            f"--resolution {run.resolution_px} is no multiple of {found.multiple_px} px; give "
            f"{max(1, round(run.resolution_px / found.multiple_px)) * found.multiple_px}"
        )
    request.method.check(found, run.resolution_px)
    check_optimizer(run.optimizer, run.learning_rate)
    if run.batch % processes.count:
        raise RequestError(
            f"a batch of {run.batch} cannot be shared by {processes.count} processes; give a "
            "multiple of that with --batch"
        )


def _identity(request: Request, target: Target, data: Data) -> dict[str, Any]:
    said = {
        "model": target.family, "revision": target.revision, "start": request.start,
        "samples": data.digest, **request.method.settings(), **request.run.identity(),
    }  # fmt: skip
    return dict(json.loads(json.dumps(said)))  # tuples become lists, as they are read back


def _is_finished(output: Output, identity: Mapping[str, Any], steps: int) -> bool:
    about = output.about() or {}
    same = all(about.get(key) == value for key, value in identity.items() if key != "steps")
    return bool(about) and same and about.get("steps") == steps
