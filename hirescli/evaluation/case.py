"""One call of one component, measured in a process of its own: memory that nothing else used."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from hirescli.bands.stream import stream
from hirescli.errors import HiresError
from hirescli.evaluation.benchmark import measured
from hirescli.evaluation.components import Component, Latents, component, threads_set
from hirescli.evaluation.peak import peak_memory

# What runs before the measured call: libraries make ready, and the baseline holds them.
WARM_LATENTS: Latents = (8, 8)


@dataclass(frozen=True)
class Case:
    """What is called and how.

    Attributes:
        component: "unet" or "decoder".
        way: "plain", "banded", or, of a decoder, "tiled": diffusers' own tiling.
        latents: Height and width of the input.
        dtype: "float32" or "bfloat16".
        threads: That it computes with.
        memory_bytes: Budget of the banded way; None: the engine's default.
        rows: Band height in latent rows; None: as the engine chooses.
        folder: Of an AutoencoderKL; None: random weights.
    """

    component: str
    way: str
    latents: Latents
    dtype: str
    threads: int
    memory_bytes: int | None = None
    rows: int | None = None
    folder: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes:
        seconds: Of the call.
        peak_bytes: Resident memory at its most, less that just before the call.
        planned_peak_bytes: As the engine had scheduled it; None if it was not banded.
        rows, passes: Of the bands; 0 if it was not banded.
        tiles: That diffusers cut; 1 if it did not.
    """

    seconds: float
    peak_bytes: int
    planned_peak_bytes: int | None = None
    rows: int = 0
    passes: int = 0
    tiles: int = 1


def in_child(case: Case, result: Path) -> tuple[Outcome, Tensor]:
    """Run a case in a child process.

    Args:
        case: What to run.
        result: File to leave the tensor in, in the safetensors format.

    Raises:
        RequestError: If the budget is too small, or the folder is none.
        RunError: If the child fails otherwise.
    """
    run = measured([json.dumps(asdict(case)), str(result)], module="hirescli.evaluation.case")
    return Outcome(**json.loads(run.stdout)), load_file(result)["made"]


def run_case(case: Case) -> tuple[Outcome, Tensor]:
    """Run a case in this process."""
    folder = None if case.folder is None else Path(case.folder)
    with ExitStack() as stack:
        stack.enter_context(threads_set(case.threads))
        part = component(case.component, dtype=case.dtype, folder=folder)
        tiles = tile(part.module, case.latents) if case.way == "tiled" else 1
        report = None
        part.run(WARM_LATENTS)
        if case.way == "banded":
            report = stack.enter_context(
                stream(part.module, memory=case.memory_bytes, rows=case.rows)
            )
            part.run(WARM_LATENTS)
        warm = 0 if report is None else report.passes
        seconds, peak_bytes, made = timed(part, case.latents)
    if report is None:
        return Outcome(seconds, peak_bytes, tiles=tiles), made
    passes = report.passes - warm
    return Outcome(seconds, peak_bytes, report.peak_host_bytes, report.rows, passes), made


def timed(part: Component, latents: Latents) -> tuple[float, int, Tensor]:
    """Seconds, peak bytes above the baseline, and the result of one call."""
    with peak_memory() as peak:
        start = time.perf_counter()
        made = part.run(latents)
        seconds = time.perf_counter() - start
    return seconds, peak.above_bytes, made


def tile(autoencoder: Any, latents: Latents) -> int:
    """Switch diffusers' tiling on; returns how many tiles it cuts at this size."""
    autoencoder.enable_tiling()
    side = autoencoder.tile_latent_min_size
    return tile_count(latents, side, int(side * (1 - autoencoder.tile_overlap_factor)))


def tile_count(latents: Latents, side: int, stride: int) -> int:
    """Tiles of this side, a stride apart; one if the whole fits into a tile."""
    height, width = latents
    return 1 if max(latents) <= side else -(-height // stride) * -(-width // stride)


def main(words: list[str]) -> int:
    """The child: a case as JSON and a file in, the outcome as JSON out; returns its exit code."""
    said = json.loads(words[0])
    try:
        outcome, made = run_case(Case(**{**said, "latents": tuple(said["latents"])}))
    except HiresError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    save_file({"made": made.contiguous()}, words[1])
    sys.stdout.write(json.dumps(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
