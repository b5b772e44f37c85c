"""The predicted peak is what the system measures: resident memory above the loaded baseline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hirescli.evaluation.peak import can_reset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_reset(), reason="needs a peak that can be reset"),
]
ROOT = Path(__file__).parents[2]
PROCESS = """
import json, sys
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
import hirescli
from hirescli.evaluation.components import randomised
from hirescli.evaluation.peak import peak_memory

component, height, width, work_bytes, spill = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
torch.set_num_threads(1)
if component == "decoder":
    module = randomised(AutoencoderKL(
        block_out_channels=(64, 128, 256, 256), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
    ))
    call = lambda z: module.decode(z, return_dict=False)[0]
else:
    module = randomised(UNet2DConditionModel(
        block_out_channels=(64, 128, 128), cross_attention_dim=64, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ))
    text = torch.randn(1, 16, 64)
    call = lambda x: module(x, 500, text, return_dict=False)[0]
sample = torch.randn(1, 4, height, width)

@torch.no_grad()
def run(x, memory):
    with hirescli.stream(module, memory=memory, spill=spill) as report:
        return call(x), report

run(sample[:, :, :8, :8], None)  # libraries set themselves up at the first call
with peak_memory() as peak:
    memory = peak.baseline_bytes + work_bytes if work_bytes else None
    made, report = run(sample, memory)
print(json.dumps({
    "measured": peak.above_bytes,
    # The whole result is the caller's, not the engine's.
    "predicted": report.peak_host_bytes + made.numel() * made.element_size(),
    "disk": report.peak_disk_bytes,
}))
"""


def measure(
    component: str, latents: tuple[int, int], work_bytes: int, spill: Path
) -> dict[str, int]:
    """What one call in a process of its own took, and what the schedule said."""
    words = [component, *map(str, latents), str(work_bytes), str(spill)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESS, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    made: dict[str, int] = json.loads(done.stdout)
    return made


# Heights and widths; the decoded picture is 8 times that.
@pytest.mark.parametrize(
    ("latents", "share"), [((64, 64), 0.0), ((40, 72), 0.7)], ids=["memory", "disk"]
)
def test_a_decoder_takes_what_is_predicted(
    latents: tuple[int, int], share: float, tmp_path: Path
) -> None:
    """With room for everything, and with less, so that values are spilled."""
    work_bytes = int(share * 62_000 * latents[0] * latents[1])
    made = measure("decoder", latents, work_bytes, tmp_path)
    assert (made["disk"] > 0) == (share > 0)
    assert made["predicted"] == pytest.approx(made["measured"], rel=0.15), made


@pytest.mark.parametrize(
    ("latents", "share"), [((192, 128), 0.0), ((128, 192), 0.5)], ids=["memory", "disk"]
)
def test_a_denoiser_takes_what_is_predicted(
    latents: tuple[int, int], share: float, tmp_path: Path
) -> None:
    """With softmax attention, whose keys are gathered."""
    work_bytes = int(share * 2_400 * latents[0] * latents[1])
    made = measure("denoiser", latents, work_bytes, tmp_path)
    assert (made["disk"] > 0) == (share > 0)
    assert made["predicted"] == pytest.approx(made["measured"], rel=0.15), made
