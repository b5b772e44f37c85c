"""What is compared: operators, and losses with a term left out."""

from __future__ import annotations

from dataclasses import dataclass, field

from hirescli.training.distill.settings import LossWeights


@dataclass(frozen=True)
class Variant:
    """One way to stand in for softmax attention.

    Attributes:
        key: Its name in files.
        title: Its name for people.
        normalised, causal: Of the operator.
        weights: Of the loss.
        linear: False: the teacher itself, which learns nothing.
        own: Whether it is the adapter that came with the model, which learns nothing here.
    """

    key: str
    title: str
    normalised: bool = True
    causal: bool = False
    weights: LossWeights = field(default_factory=LossWeights)
    linear: bool = True
    own: bool = False


VARIANTS = (
    Variant("teacher", "softmax attention (teacher)", linear=False),
    Variant("own", "the model's own adapter (LinFusion)", own=True),
    Variant("linfusion", "linear, normalised, non-causal (LinFusion)"),
    Variant("unnormalised", "without normalisation", normalised=False),
    Variant("causal", "causal", causal=True),
    Variant("no-noise", "loss without noise", weights=LossWeights(noise=0.0)),
    Variant("no-teacher", "loss without teacher", weights=LossWeights(teacher=0.0)),
    Variant("no-attention", "loss without attention", weights=LossWeights(attention=0.0)),
)
SCALES = (1, 2, 4)
