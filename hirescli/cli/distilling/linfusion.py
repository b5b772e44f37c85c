"""`hires distill linfusion`: linear attention for a UNet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hirescli.cli.distilling import options
from hirescli.cli.distilling.running import run
from hirescli.cli.options.machine import check_words
from hirescli.cli.options.option import option

if TYPE_CHECKING:
    from hirescli.training.distill.request import Request


def linfusion(
    output: Annotated[
        Path,
        option(
            "-o",
            "--output",
            metavar="FOLDER",
            text="Where the adapter goes. The folder that is worked in is FOLDER.run beside it.",
        ),
    ],
    model: Annotated[
        str,
        option(
            "-m",
            "--model",
            metavar="MODEL",
            text="As in `hires generate`: builtin, a folder of Stable Diffusion 1.5, 2.1 or XL in "
            "diffusers' layout, a file, a hub id; or what `hires train export` wrote. "
            "Default: builtin.",
        ),
    ] = "builtin",
    revision: options.Revision = None,
    data: Annotated[
        Path | None,
        option(
            "--data",
            metavar="FOLDER",
            text="Pictures with captions, in metadata.jsonl, captions.csv or NAME.txt beside each "
            "picture; for the built-in model also shards of `hires train render`.",
        ),
    ] = None,
    prompts: options.Prompts = None,
    sampling_steps: options.SamplingSteps = None,
    steps: options.Steps = 10_000,
    batch: Annotated[int, options.samples_of_a_step("8")] = 8,
    micro_batch: options.MicroBatch = None,
    gradient_checkpointing: options.GradientCheckpointing = False,
    learning_rate: Annotated[
        float,
        option(
            "--learning-rate", metavar="X", min=0, text="Of AdamW. Default: 1e-4, as published."
        ),
    ] = 1e-4,
    decay: options.Decay = False,
    resolution: options.Resolution = None,
    mid_dim_scale: Annotated[
        int | None,
        option(
            "--mid-dim-scale",
            metavar="N",
            min=1,
            text="The learned shift of queries and keys is as wide as the tokens, divided by N. "
            "Default: that of --start; else as published, 1, for XL 16; for the built-in model "
            "4.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        option(
            "--start",
            metavar="ADAPTER",
            text="Begin from this adapter, a folder or a hub id. Default: from the model's own "
            "projections.",
        ),
    ] = None,
    noise_weight: options.NoiseWeight = 1.0,
    teacher_weight: options.TeacherWeight = 0.5,
    attention_weight: options.AttentionWeight = 0.5,
    caption_dropout: Annotated[float, options.share_without_caption("0.1")] = 0.1,
    seed: options.Seed = 0,
    dtype: Annotated[str, options.computed_in("float32")] = "float32",
    device: options.Device = None,
    threads: options.Threads = None,
    save_every: options.SaveEvery = 500,
    minutes: options.Minutes = None,
    skip_broken: options.SkipBroken = False,
    restart: options.Restart = False,
    overwrite: Annotated[bool, options.replacing("folder")] = False,
    json_: options.Json = False,
) -> None:
    """LinFusion: linear attention in place of every self-attention of a UNet.

    The loss is the published one: against the noise, against the teacher's prediction, and of
    every attention's output. Only the linear attentions learn. The adapter is written in the
    published format, for --adapter and `hirescli.linearize`.

    Stopped or killed, the same command goes on. On several GPUs: `accelerate launch -m hirescli
    distill linfusion ...`
    """
    check_words(dtype=(dtype, options.DTYPES))

    def request() -> Request:
        from hirescli.training.distill.finding import find_unet
        from hirescli.training.distill.linfusion import MID_DIM_SCALES, LinFusion
        from hirescli.training.distill.outputs import AdapterFolder
        from hirescli.training.distill.request import Request
        from hirescli.training.distill.settings import DistillRun, LossWeights

        weights = LossWeights(
            noise=noise_weight, teacher=teacher_weight, attention=attention_weight
        )
        found = find_unet(model, revision)
        scale = MID_DIM_SCALES[found.family] if start is None else None
        settings = DistillRun(
            steps=steps, batch=batch, micro_batch=micro_batch, learning_rate=learning_rate,
            decay=decay, weights=weights, caption_dropout=caption_dropout, seed=seed,
            resolution_px=resolution or found.native_px,
            dtype="bfloat16" if dtype == "bfloat16" else "float32", save_every=save_every,
            gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip
        return Request(
            found=found, method=LinFusion(mid_dim_scale or scale),
            run=settings, output=AdapterFolder(output), data=data, prompts=prompts, start=start,
            sampling_steps=sampling_steps,
            skip_broken=skip_broken, restart=restart, overwrite=overwrite,
        )  # fmt: skip

    run(request, device=device, threads=threads, minutes=minutes, in_json=json_)
