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
LATENTS = ((40, 40), (33, 64), (56, 56))  # heights and widths; the decoded picture is 8 times that
PROCESS = """
import json, sys
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
import hirescli
from hirescli.evaluation.components import randomised
from hirescli.evaluation.peak import peak_memory

height, width, work_bytes, spill = *map(int, sys.argv[1:4]), sys.argv[4]
torch.set_num_threads(1)
decoder = randomised(AutoencoderKL(
    block_out_channels=(64, 128, 256, 256), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
))
latents = torch.randn(1, 4, height, width)

@torch.no_grad()
def decode(z, memory):
    with hirescli.stream(decoder, memory=memory, spill=spill) as report:
        return decoder.decode(z, return_dict=False)[0], report

decode(latents[:, :, :8, :8], None)  # libraries set themselves up at the first call
with peak_memory() as peak:
    memory = peak.baseline_bytes + work_bytes if work_bytes else None
    picture, report = decode(latents, memory)
print(json.dumps({
    "measured": peak.above_bytes,
    # The whole picture is the caller's, not the engine's.
    "predicted": report.peak_host_bytes + picture.numel() * picture.element_size(),
    "disk": report.peak_disk_bytes,
}))
"""


@pytest.mark.parametrize("share", [0.0, 0.7], ids=["memory", "disk"])
@pytest.mark.parametrize("latents", LATENTS, ids=str)
def test_predicted_peak_is_measured(
    latents: tuple[int, int], share: float, tmp_path: Path
) -> None:
    """With room for everything, and with less, so that values are spilled."""
    work_bytes = int(share * 62_000 * latents[0] * latents[1])
    words = [*map(str, latents), str(work_bytes), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESS, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    made = json.loads(done.stdout)
    assert (made["disk"] > 0) == (share > 0)
    assert made["predicted"] == pytest.approx(made["measured"], rel=0.15), made
