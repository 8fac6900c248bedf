"""Coarse dropout: rectangles of a slice without an image, so that no single place decides.

T. DeVries and G. Taylor, Improved regularization of convolutional neural networks with cutout, 2017.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cspine.errors import UsageError
from cspine.imaging.arrays import Array, Image, as_image, fill_value
from cspine.imaging.sample import ImageStep, PositiveSpan, drawn


def drop(image: Array, holes: NDArray[Any], fill: float | None = None) -> Image:
    """The image with rectangles filled, the same in all slices. Mask, boxes and labels stay: the truth is as before.

    Args:
        image: ``[y, x]`` or ``[z, y, x]``.
        holes: ``(n, 4)`` whole pixel edges x0, y0, x1, y1; what lies outside the image is ignored.
        fill: value in them; the image's smallest unless told.
    """
    image = as_image(image)
    holes = np.asarray(holes)
    if holes.ndim != 2 or holes.shape[1] != 4 or holes.dtype.kind not in "iu":
        raise UsageError(f"expected holes (n, 4) of whole numbers, got {holes.dtype} of shape {holes.shape}")
    out = image.copy()
    for x0, y0, x1, y1 in np.maximum(holes, 0):
        out[..., y0:y1, x0:x1] = fill_value(image, fill)
    return out


class CoarseDropout(ImageStep):
    """Fills random rectangles of the slice; mask and boxes stay."""

    kind: Literal["coarse-dropout"] = "coarse-dropout"
    holes: int = Field(default=8, ge=1)
    size: PositiveSpan = Field(default=(0.03, 0.1), description="share of the side, height and width drawn apart")
    fill: float | None = Field(default=None, description="unit of the image; none: its smallest value")

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``drop``; a hole's middle lies anywhere in the slice."""
        rows, columns = image.shape[-2:]
        holes = []
        for _ in range(self.holes):
            height, width = max(round(drawn(self.size, rng) * rows), 1), max(round(drawn(self.size, rng) * columns), 1)
            y, x = int(rng.integers(rows)) - height // 2, int(rng.integers(columns)) - width // 2
            holes.append((x, y, x + width, y + height))
        return drop(image, np.asarray(holes), self.fill)
