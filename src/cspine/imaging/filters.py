"""Filters within each slice: denoising, blur and sharpening, and added noise. Slices are never mixed."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, field_validator
from scipy import ndimage

from cspine.errors import UsageError
from cspine.imaging.arrays import Array, Image, as_image, in_plane
from cspine.imaging.sample import ImageStep, PositiveSpan, Span, drawn


def gaussian(image: Array, sigma: float = 1.0) -> Image:
    """Gaussian smoothing of ``sigma`` pixels; 0 changes nothing."""
    if sigma < 0:
        raise UsageError(f"expected a sigma of at least 0 pixels, got {sigma}")
    image = as_image(image)
    out = ndimage.gaussian_filter(image, in_plane(sigma, image.ndim), mode="nearest")
    # Weights that sum to one but for rounding must not leave the range.
    return np.clip(np.asarray(out, dtype=np.float32), image.min(), image.max())


def median(image: Array, size: int = 3) -> Image:
    """The median of ``size`` x ``size`` pixels, ``size`` odd."""
    if size < 1 or size % 2 == 0:
        raise UsageError(f"expected an odd size in pixels, got {size}")
    image = as_image(image)
    return np.asarray(ndimage.median_filter(image, (1,) * (image.ndim - 2) + (size, size), mode="nearest"))


def motion_blur(image: Array, length: int = 7, degrees: float = 0.0) -> Image:
    """The mean along a line of ``length`` pixels, as a patient who moves leaves it; 0 degrees along x, 90 along y."""
    if length < 1:
        raise UsageError(f"expected a length of at least 1 pixel, got {length}")
    image = as_image(image)
    steps = np.linspace(-(length - 1) / 2, (length - 1) / 2, 4 * length)
    angle, middle = np.deg2rad(degrees), length // 2 + 1
    kernel = np.zeros((2 * middle + 1, 2 * middle + 1))
    rows, columns = middle + np.sin(angle) * steps, middle + np.cos(angle) * steps
    np.add.at(kernel, (np.rint(rows).astype(int), np.rint(columns).astype(int)), 1 / len(steps))
    kernel = kernel.reshape((1,) * (image.ndim - 2) + kernel.shape)
    out = ndimage.convolve(image, kernel, mode="nearest")
    return np.clip(np.asarray(out, dtype=np.float32), image.min(), image.max())


def sharpen(image: Array, sigma: float = 1.0, amount: float = 0.5) -> Image:
    """Unsharp mask: ``amount`` times what ``gaussian`` takes away is added; cut to the image's range."""
    image = as_image(image)
    return np.clip(image + np.float32(amount) * (image - gaussian(image, sigma)), image.min(), image.max())


def noise(image: Array, sigma: float, rng: np.random.Generator) -> Image:
    """Normal noise of deviation ``sigma`` (unit of the image) in every pixel; cut to the image's range."""
    if sigma < 0:
        raise UsageError(f"expected a sigma of at least 0, got {sigma}")
    image = as_image(image)
    grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    return np.clip(image + grain, image.min(), image.max())


class Gaussian(ImageStep):
    """Gaussian smoothing: denoises with a fixed `sigma`, blurs at random with two."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: PositiveSpan = Field(default=1.0, description="px")

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``gaussian``."""
        return gaussian(image, drawn(self.sigma, rng))


class Median(ImageStep):
    """Median of `size` x `size` pixels: takes out single wild pixels, keeps edges."""

    kind: Literal["median"] = "median"
    size: int = Field(default=3, ge=3, description="px, odd")

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError("size must be odd")
        return size

    def image(self, image: Image, _rng: np.random.Generator, /) -> Image:
        """See ``median``."""
        return median(image, self.size)


class MotionBlur(ImageStep):
    """Mean along a line, as a patient who moves leaves it."""

    kind: Literal["motion-blur"] = "motion-blur"
    length: int = Field(default=7, ge=2, description="px")
    degrees: Span = Field(default=(0.0, 180.0), description="degrees, 0 along x")

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``motion_blur``."""
        return motion_blur(image, self.length, drawn(self.degrees, rng))


class Sharpen(ImageStep):
    """Unsharp mask; cut to the image's range."""

    kind: Literal["sharpen"] = "sharpen"
    sigma: PositiveSpan = Field(default=1.0, description="px")
    amount: PositiveSpan = (0.2, 0.5)

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``sharpen``."""
        return sharpen(image, drawn(self.sigma, rng), drawn(self.amount, rng))


class Noise(ImageStep):
    """Normal noise in every pixel; cut to the image's range."""

    kind: Literal["noise"] = "noise"
    sigma: PositiveSpan = Field(default=(0.01, 0.05), description="unit of the image")

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``noise``."""
        return noise(image, drawn(self.sigma, rng), rng)
