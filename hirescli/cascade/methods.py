"""What a doubling may do to latents: the methods by name, and the colour anchor of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# What each method does at a doubling, in words for people. Both end with the colour anchor.
METHODS = {
    "sdedit": "adds noise to the enlarged picture and takes it out again in a few steps",
    "skip": (
        "the same, drawn back to the noised input after each step, with a second prediction by "
        "a dilated denoiser mixed in"
    ),
}


def anchor_colours(latents: Tensor, encoded: Tensor, *, deviation: bool) -> Tensor:
    """Set the mean per channel, and with `deviation` that too, back to the encoded input's.

    Without `deviation` for autoencoders that keep detail in channels of its own: there a
    doubling must raise the deviation, or it adds nothing.

    Args:
        latents: (1, C, h, w), what a doubling has made.
        encoded: (1, C, h, w), what it began from.
        deviation: Whether deviations are set back as well as means.
    """
    axes = (2, 3)
    centred = latents - latents.mean(axes, keepdim=True)
    if deviation:
        std = latents.std(axes, keepdim=True).clamp(min=1e-6)
        centred = centred * (encoded.std(axes, keepdim=True) / std)
    return centred + encoded.mean(axes, keepdim=True)
