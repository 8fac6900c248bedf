"""Edges, histograms and gradients: maps that replace the image, and vectors that describe it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from cspine.errors import UsageError
from cspine.imaging.arrays import Array, Image, as_image
from cspine.imaging.extras import scikit_image
from cspine.imaging.intensity import rescale
from cspine.imaging.sample import ImageStep, Named, PositiveSpan, Sample, drawn

Vector = NDArray[np.float32]
# Sobel's weights add up to this; divided by it, the map is in units of the image a pixel.
SOBEL_WEIGHT = 8.0


def sobel(image: Array) -> Image:
    """Length of the gradient within the slice, unit of the image a pixel (Sobel's kernels; Duda and Hart, 1973)."""
    image = as_image(image)
    # Slice by slice: ndimage would smooth along z too.
    planes = image.reshape(-1, *image.shape[-2:])
    lengths = [np.hypot(*(ndimage.sobel(plane, axis, mode="nearest") for axis in (0, 1))) for plane in planes]
    return np.asarray(np.stack(lengths) / SOBEL_WEIGHT, dtype=np.float32).reshape(image.shape)


def canny(image: Array, sigma: float = 1.0, low: float = 0.03, high: float = 0.08) -> Image:
    """Canny's edges, 1 on a one-pixel line and 0 elsewhere, slice by slice (J. Canny, 1986; by scikit-image).

    Args:
        image: ``[y, x]`` or ``[z, y, x]``, any unit.
        sigma: smoothing before, pixels.
        low: gradient above which an edge goes on, in shares of the image's range a pixel.
        high: gradient above which it starts.

    Raises:
        UsageError: thresholds that are not ``0 <= low <= high``.
        MissingExtraError: scikit-image is not installed.
    """
    if not 0 <= low <= high:
        raise UsageError(f"expected thresholds 0 <= low <= high, got {low} and {high}")
    feature = scikit_image("feature")
    planes = rescale(image).reshape(-1, *np.shape(image)[-2:])
    # scikit-image compares sums over Sobel's kernel.
    ends = low * SOBEL_WEIGHT, high * SOBEL_WEIGHT
    edges = [feature.canny(plane, sigma, *ends, mode="nearest") for plane in planes]
    return np.stack(edges).astype(np.float32).reshape(np.shape(image))


def histogram(image: Array, bins: int = 32, low: float | None = None, high: float | None = None) -> Vector:
    """Shares of pixels in equal steps of value from ``low`` to ``high``, the image's range unless told.

    Returns:
        ``(bins,)`` with sum 1; values beyond the ends count in the first and last bin.
    """
    image = as_image(image)
    start, end = float(image.min()) if low is None else low, float(image.max()) if high is None else high
    if bins < 1 or end < start:
        raise UsageError(f"expected at least one bin and low <= high, got {bins} bins, {start} and {end}")
    counts, _ = np.histogram(np.clip(image, start, end), bins, (start, end))
    return np.asarray(counts / image.size, dtype=np.float32)


def hog(image: Array, cell: int = 16, orientations: int = 9, block: int = 2) -> Vector:
    """Histograms of oriented gradients (N. Dalal and B. Triggs, CVPR 2005; by scikit-image); of a stack, their mean.

    Args:
        image: ``[y, x]`` or ``[z, y, x]``, any unit.
        cell: pixels a side.
        orientations: directions that are told apart.
        block: cells a side that are normalised together.

    Returns:
        as many numbers as blocks x ``block²`` x ``orientations``; images of one size give as many.

    Raises:
        UsageError: the image is smaller than one block.
        MissingExtraError: scikit-image is not installed.
    """
    image = as_image(image)
    if min(image.shape[-2:]) < cell * block:
        raise UsageError(
            f"expected an image of at least {cell * block} pixels a side, got {image.shape[-2:]}",
            fix="Resize it, or take smaller cells",
        )
    feature = scikit_image("feature")
    planes = [
        feature.hog(plane, orientations, (cell, cell), (block, block)) for plane in image.reshape(-1, *image.shape[-2:])
    ]
    return np.asarray(np.mean(planes, axis=0), dtype=np.float32)


class Sobel(ImageStep):
    """Length of the gradient within the slice, in place of the image."""

    kind: Literal["sobel"] = "sobel"

    def image(self, image: Image, _rng: np.random.Generator, /) -> Image:
        """See ``sobel``."""
        return sobel(image)


class Canny(ImageStep):
    """Thin edges, 1 on a line, in place of the image."""

    kind: Literal["canny"] = "canny"
    sigma: PositiveSpan = Field(default=1.0, description="px")
    low: float = Field(default=0.03, ge=0, description="share of the range a px")
    high: float = Field(default=0.08, ge=0, description="share of the range a px")

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``canny``."""
        return canny(image, drawn(self.sigma, rng), self.low, self.high)


class FeatureStep(Named, ABC):
    """One way to describe an image by numbers."""

    @abstractmethod
    def describe(self, sample: Sample) -> Vector:
        """The numbers."""


class Histogram(FeatureStep):
    """Shares of pixels in equal steps of value."""

    kind: Literal["histogram"] = "histogram"
    bins: int = Field(default=32, ge=1)
    low: float | None = Field(default=None, description="unit of the image; none: its smallest value")
    high: float | None = Field(default=None, description="unit of the image; none: its largest value")

    def describe(self, sample: Sample) -> Vector:
        """See ``histogram``."""
        return histogram(sample.image, self.bins, self.low, self.high)


class Hog(FeatureStep):
    """Histograms of oriented gradients; of a stack, their mean."""

    kind: Literal["hog"] = "hog"
    cell: int = Field(default=16, ge=2, description="px")
    orientations: int = Field(default=9, ge=2)
    block: int = Field(default=2, ge=1, description="cells")

    def describe(self, sample: Sample) -> Vector:
        """See ``hog``."""
        return hog(sample.image, self.cell, self.orientations, self.block)
