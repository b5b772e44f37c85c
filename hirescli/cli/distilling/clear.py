"""`hires distill clear`: local attention for FLUX and Stable Diffusion 3."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hirescli.attention.clear_published import DEFAULT_WINDOW
from hirescli.cli.distilling import options
from hirescli.cli.distilling.running import run
from hirescli.cli.options.machine import check_words
from hirescli.cli.options.option import option

if TYPE_CHECKING:
    from hirescli.training.distill.request import Request

_OPTIMIZERS = ("adamw", "prodigy")
_CAPTION_DROPOUT = {"flux": 0.0, "sd3": 0.1}  # FLUX is never asked without a caption


def clear(
    output: Annotated[
        Path,
        option(
            "-o",
            "--output",
            metavar="FILE",
            text="Where the weights go, a .safetensors file. The folder that is worked in is "
            "FILE.run beside it.",
        ),
    ],
    model: Annotated[
        str,
        option(
            "-m",
            "--model",
            metavar="MODEL",
            text="As in `hires generate`: flux-dev, flux-schnell, sd35-medium, sd35-large, a "
            "folder of FLUX.1 or Stable Diffusion 3.5 in diffusers' layout, a hub id.",
        ),
    ],
    revision: options.Revision = None,
    prompts: options.Prompts = None,
    sampling_steps: options.SamplingSteps = None,
    data: Annotated[
        Path | None,
        option(
            "--data",
            metavar="FOLDER",
            text="In place of prompts: pictures with captions, in metadata.jsonl, captions.csv or "
            "NAME.txt beside each picture.",
        ),
    ] = None,
    window: Annotated[
        int,
        option(
            "--window",
            metavar="N",
            min=1,
            text="How far a token sees, in tokens of 16 px; published are 8, 16 and 32. "
            f"Default: {DEFAULT_WINDOW}.",
        ),
    ] = DEFAULT_WINDOW,
    down_factor: Annotated[
        int,
        option(
            "--down-factor",
            metavar="N",
            min=1,
            text="Side of the squares of tokens that are pooled to one, which every token sees; "
            "published are 1, which pools nothing, and 4. Default: 1.",
        ),
    ] = 1,
    steps: options.Steps = 10_000,
    batch: Annotated[int, options.samples_of_a_step("32, as published")] = 32,
    micro_batch: options.MicroBatch = None,
    gradient_checkpointing: options.GradientCheckpointing = False,
    optimizer: Annotated[
        str,
        option(
            "--optimizer",
            metavar="|".join(_OPTIMIZERS),
            text="prodigy, as published, finds its steps itself and needs the package prodigyopt; "
            "adamw takes less memory. Default: prodigy.",
        ),
    ] = "prodigy",
    learning_rate: Annotated[
        float | None,
        option(
            "--learning-rate",
            metavar="X",
            min=0,
            text="Default: 1 of Prodigy, as published; 1e-4 of AdamW.",
        ),
    ] = None,
    decay: options.Decay = False,
    resolution: options.Resolution = None,
    start: Annotated[
        str | None,
        option(
            "--start",
            metavar="WEIGHTS",
            text="Begin from these weights: a file, a published name such as clear-16, or a hub "
            "id. Default: from the model's own projections.",
        ),
    ] = None,
    noise_weight: options.NoiseWeight = 1.0,
    teacher_weight: options.TeacherWeight = 0.5,
    attention_weight: options.AttentionWeight = 0.5,
    caption_dropout: Annotated[
        float | None, options.share_without_caption("0.1, of FLUX 0")
    ] = None,
    seed: options.Seed = 0,
    dtype: Annotated[str, options.computed_in("bfloat16, as published")] = "bfloat16",
    device: options.Device = None,
    threads: options.Threads = None,
    save_every: options.SaveEvery = 500,
    minutes: options.Minutes = None,
    skip_broken: options.SkipBroken = False,
    restart: options.Restart = False,
    overwrite: Annotated[bool, options.replacing("file")] = False,
    json_: options.Json = False,
) -> None:
    """CLEAR: attention to a window in place of every attention of FLUX or Stable Diffusion 3.

    The loss is the published one: flow matching, against the teacher's prediction, and of every
    attention's output. Only the projections of queries, keys, values and outputs learn, and the
    weights of pooling. The file is in the published format, for --adapter and
    `hirescli.linearize`.

    Stopped or killed, the same command goes on. On several GPUs: `accelerate launch -m hirescli
    distill clear ...`
    """
    check_words(dtype=(dtype, options.DTYPES), optimizer=(optimizer, _OPTIMIZERS))

    def request() -> Request:
        from hirescli.attention.clear_published import Variant
        from hirescli.training.distill.clear import Clear
        from hirescli.training.distill.finding import find_transformer
        from hirescli.training.distill.optimizers import LEARNING_RATES
        from hirescli.training.distill.outputs import AdapterFile
        from hirescli.training.distill.request import Request
        from hirescli.training.distill.settings import DistillRun, LossWeights, Optimizer

        weights = LossWeights(
            noise=noise_weight, teacher=teacher_weight, attention=attention_weight
        )
        found = find_transformer(model, revision)
        by: Optimizer = "adamw" if optimizer == "adamw" else "prodigy"
        dropout = _CAPTION_DROPOUT[found.family] if caption_dropout is None else caption_dropout
        settings = DistillRun(
            steps=steps, batch=batch, micro_batch=micro_batch, optimizer=by,
            learning_rate=LEARNING_RATES[by] if learning_rate is None else learning_rate,
            decay=decay, weights=weights, caption_dropout=dropout, seed=seed,
            resolution_px=resolution or found.native_px,
            dtype="bfloat16" if dtype == "bfloat16" else "float32", save_every=save_every,
            gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip
        return Request(
            found=found, method=Clear(Variant(window, down_factor)), run=settings,
            output=AdapterFile(output), data=data, prompts=prompts, start=start,
            sampling_steps=sampling_steps,
            skip_broken=skip_broken, restart=restart, overwrite=overwrite,
        )  # fmt: skip

    run(request, device=device, threads=threads, minutes=minutes, in_json=json_)
