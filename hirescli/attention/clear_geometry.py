"""Who sees whom in CLEAR's attention, in numbers. No torch.

A sequence is text tokens and the tokens of one image, which lie in rows and columns. An image
token sees every text token, the image tokens at a squared distance below window^2, and, with a
down factor, every pooled token. A text token sees every text token and every image token.

References:
    CLEAR: Conv-Like Linearization Revs Pre-Trained Diffusion Transformers Up,
    https://arxiv.org/abs/2412.16112
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hirescli.errors import RequestError


@dataclass(frozen=True)
class Geometry:
    """The sequence of one call.

    Attributes:
        rows, columns: Of the image, in tokens; neither is below the window.
        window: In tokens, at least 1; a token sees others at distances below it.
        down_factor: Side of the squares of image tokens that are pooled to one; divides rows
            and columns. 1: nothing is pooled.
        text_tokens: Number of text tokens, 0 for an image alone.
        text_first: Whether they lie before the image's tokens (FLUX) or after them (SD3).

    Raises:
        RequestError: If a number is out of its range.
    """

    rows: int
    columns: int
    window: int
    down_factor: int = 1
    text_tokens: int = 0
    text_first: bool = True

    def __post_init__(self) -> None:
        check_settings(self.window, self.down_factor)
        assert self.text_tokens >= 0
        side = min(self.rows, self.columns)
        if side < self.window:
            raise RequestError(
                f"CLEAR with window {self.window} needs at least {self.window} rows and columns "
                f"of tokens, and the image has {self.rows}x{self.columns} (rows x columns); "
                f"use a larger image, or a window of at most {max(side, 1)}"
            )
        if self.rows % self.down_factor or self.columns % self.down_factor:
            raise RequestError(
                f"CLEAR with down factor {self.down_factor} needs rows and columns of tokens that "
                f"it divides, and the image has {self.rows}x{self.columns}; down factors that "
                f"work: {_listed_divisors(self.rows, self.columns)}"
            )

    @property
    def image_tokens(self) -> int:
        """Tokens of the image."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Of the whole sequence, text and image."""
        return self.image_tokens + self.text_tokens

    @property
    def pooled_tokens(self) -> int:
        """Further keys, made of squares of image keys."""
        return 0 if self.down_factor == 1 else self.image_tokens // self.down_factor**2

    @property
    def halo(self) -> int:
        """How many rows, and columns, above and below its own a token sees at most."""
        return self.window - 1

    @property
    def image_span(self) -> slice:
        """Where the image's tokens lie in the sequence."""
        first = self.text_tokens if self.text_first else 0
        return slice(first, first + self.image_tokens)

    @property
    def text_span(self) -> slice:
        """Where the text's tokens lie in the sequence."""
        first = 0 if self.text_first else self.image_tokens
        return slice(first, first + self.text_tokens)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees, of one head."""
        beside = self.text_tokens + self.pooled_tokens
        return (
            _near_pairs(self.rows, self.columns, self.window)
            + self.image_tokens * beside
            + self.text_tokens * self.tokens
        )

    def flops(self, heads: int, channels: int) -> float:
        """Operations of the attention alone: a multiplication and an addition for each channel
        of a pair, once for its score and once for its value.

        Args:
            heads: H.
            channels: Of a head, d.
        """
        return 4.0 * heads * channels * self.pairs


def check_settings(window: int, down_factor: int) -> None:
    """Check what does not depend on an image.

    Raises:
        RequestError: If either is no whole number of at least 1.
    """
    check_whole(window, "window")
    check_whole(down_factor, "down factor")


def check_whole(value: int, name: str) -> None:
    """Check a window or a down factor.

    Raises:
        RequestError: If it is no whole number of at least 1.
    """
    if type(value) is not int or value < 1:
        raise RequestError(
            f"CLEAR's {name} is {value!r}; it is a whole number from 1 on, published are "
            "windows 8, 16 and 32 and down factors 1 and 4"
        )


def _near_pairs(rows: int, columns: int, window: int) -> int:
    """Pairs of image tokens at a squared distance below window^2, by their offsets."""
    total = 0
    for down in range(min(window, rows)):
        reach = min(math.isqrt(window**2 - 1 - down**2), columns - 1)
        # Offsets across, -reach to reach; each has columns - |offset| pairs in a row.
        beside = columns + 2 * sum(columns - across for across in range(1, reach + 1))
        total += (rows - down) * beside * (2 if down else 1)
    return total


def _listed_divisors(rows: int, columns: int) -> str:
    common = math.gcd(rows, columns)
    return ", ".join(str(f) for f in range(1, min(common, 16) + 1) if common % f == 0)
