"""Values of an image: windows, ranges, contrast and histograms. A stack is changed as one, so its slices stay alike."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from cspine.errors import UsageError
from cspine.imaging.arrays import Array, Image, as_image
from cspine.imaging.sample import ImageStep, PositiveSpan, Span, drawn


def rescale(image: Array, low: float = 0.0, high: float = 1.0) -> Image:
    """Min-max normalisation: the smallest value becomes ``low``, the largest ``high``; a constant becomes ``low``."""
    image = as_image(image)
    return _between(image, float(image.min()), float(image.max()), low, high)


def percentiles(image: Array, lower: float = 0.5, upper: float = 99.5, low: float = 0.0, high: float = 1.0) -> Image:
    """Like ``rescale`` between two percentiles (0 to 100), beyond which values are cut: metal and air do not count."""
    if not 0 <= lower < upper <= 100:
        raise UsageError(f"expected percentiles 0 <= lower < upper <= 100, got {lower} and {upper}")
    image = as_image(image)
    start, end = np.percentile(image, (lower, upper))
    return _between(image, float(start), float(end), low, high)


def window(image: Array, level: float = 500.0, width: float = 2000.0) -> Image:
    """An HU window (DICOM PS3.3 C.11.2, VOI LUT linear): ``level - width/2`` becomes 0, ``level + width/2`` 1, cut."""
    if width <= 0:
        raise UsageError(f"expected a window wider than 0 HU, got {width}")
    return _between(as_image(image), level - width / 2, level + width / 2, 0.0, 1.0)


def as_picture(
    image: Array, level: float, width: float, shown_level: float = 600.0, shown_width: float = 1800.0
) -> Image:
    """HU as what is left of them in a picture of 8 bits: 256 grey levels of one window.

    Args:
        image: HU.
        level: of the window that the picture is made with.
        width: of that window, HU.
        shown_level: of the window that a reader who does not know it takes instead.
        shown_width: of that window, HU.

    Returns:
        the HU that the second window shows so: black is ``shown_level - shown_width / 2``.
    """
    if shown_width <= 0:
        raise UsageError(f"expected a window wider than 0 HU, got {shown_width}")
    grey = np.rint(window(image, level, width) * np.float32(255))
    return np.asarray(shown_level - shown_width / 2 + grey * np.float32(shown_width / 255), dtype=np.float32)


def standardise(image: Array, mean: float | None = None, deviation: float | None = None) -> Image:
    """Z-score: ``(image - mean) / deviation``, with the image's own unless told; a constant image becomes 0."""
    image = as_image(image)
    if deviation is not None and deviation <= 0:
        raise UsageError(f"expected a deviation above 0, got {deviation}")
    centre = float(image.mean(dtype=np.float64)) if mean is None else mean
    spread = float(image.std(dtype=np.float64)) if deviation is None else deviation
    # A constant's deviation is rounding, not spread.
    if deviation is None and image.min() == image.max():
        spread = np.inf
    return np.asarray((image - np.float64(centre)) / spread, dtype=np.float32)


def contrast(image: Array, gain: float = 1.2, shift: float = 0.0) -> Image:
    """Linear: distances from the mean times ``gain``, plus ``shift`` (unit of the image); cut to the image's range."""
    image = as_image(image)
    mean = np.float32(image.mean(dtype=np.float64))
    out = (image - mean) * np.float32(gain) + mean + np.float32(shift)
    return np.asarray(np.clip(out, image.min(), image.max()), np.float32)


def gamma(image: Array, exponent: float = 1.0) -> Image:
    """Power law on the image's own range, which stays: below 1 dark parts become brighter."""
    if exponent <= 0:
        raise UsageError(f"expected an exponent above 0, got {exponent}")
    image = as_image(image)
    low, high = image.min(), image.max()
    return np.asarray(np.clip(low + (high - low) * rescale(image) ** np.float32(exponent), low, high), np.float32)


def equalise(image: Array, bins: int = 256) -> Image:
    """Histogram equalisation, 0 to 1: each value becomes the share of pixels that are not brighter; a constant is 0.

    Gonzalez and Woods, Digital Image Processing, section 3.3.
    """
    image = as_image(image)
    if image.min() == image.max():
        return np.zeros_like(image)
    counts, edges = np.histogram(image, bins)
    share = np.concatenate([[0.0], np.cumsum(counts)]) / image.size
    return np.asarray(np.interp(image, edges, share), dtype=np.float32)


def clahe(image: Array, clip: float = 0.01, tiles: int = 8) -> Image:
    """Contrast-limited adaptive histogram equalisation, 0 to 1, slice by slice; a constant slice becomes 0.

    Zuiderveld, Graphics Gems IV, 1994; by scikit-image.

    Args:
        image: ``[y, x]`` or ``[z, y, x]``.
        clip: share of a tile's pixels that one grey level may hold, 0 to 1; higher gives more contrast.
        tiles: a side.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    from cspine.imaging.extras import scikit_image

    exposure = scikit_image("exposure")
    image = as_image(image)
    planes = image.reshape(-1, *image.shape[-2:])
    out = np.zeros_like(planes)
    tile = tuple(max(n // tiles, 1) for n in image.shape[-2:])
    for number, plane in enumerate(planes):
        if plane.min() < plane.max():
            out[number] = exposure.equalize_adapthist(rescale(plane), kernel_size=tile, clip_limit=clip)
    return np.clip(out, 0, 1).reshape(image.shape)


def _between(image: Image, start: float, end: float, low: float, high: float) -> Image:
    """``start`` to ``end`` becomes ``low`` to ``high``, cut; where there is nothing between, ``low``."""
    if high <= low:
        raise UsageError(f"expected a range with low < high, got {low} and {high}")
    if end <= start:
        return np.full_like(image, low)
    share = np.clip((image - np.float64(start)) / (end - start), 0, 1)
    return np.clip(low + (high - low) * share, low, high).astype(np.float32)


class Rescale(ImageStep):
    """The smallest value becomes `low`, the largest `high` (min-max normalisation)."""

    kind: Literal["rescale"] = "rescale"
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def _range(self) -> Rescale:
        if self.high <= self.low:
            raise ValueError("high must be above low")
        return self

    def image(self, image: Image, _rng: np.random.Generator, /) -> Image:
        """See ``rescale``."""
        return rescale(image, self.low, self.high)


class Percentiles(ImageStep):
    """Values between two percentiles become 0 to 1, others are cut."""

    kind: Literal["percentiles"] = "percentiles"
    lower: float = Field(default=0.5, ge=0, lt=100, description="%")
    upper: float = Field(default=99.5, gt=0, le=100, description="%")

    @model_validator(mode="after")
    def _range(self) -> Percentiles:
        if self.upper <= self.lower:
            raise ValueError("upper must be above lower")
        return self

    def image(self, image: Image, _rng: np.random.Generator, /) -> Image:
        """See ``percentiles``."""
        return percentiles(image, self.lower, self.upper)


class Window(ImageStep):
    """An HU window becomes 0 to 1, values beyond it are cut."""

    kind: Literal["window"] = "window"
    level: Span = Field(default=500.0, description="HU")
    width: PositiveSpan = Field(default=2000.0, description="HU")

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``window``."""
        return window(image, drawn(self.level, rng), drawn(self.width, rng))


class AsPicture(ImageStep):
    """HU go through a window and 8 bits, and are read as if another window had made them: an unknown picture."""

    kind: Literal["as-picture"] = "as-picture"
    level: Span = Field(default=(200.0, 900.0), description="HU")
    width: PositiveSpan = Field(default=(900.0, 3500.0), description="HU")
    shown_level: float = Field(default=600.0, description="HU, of the window it is read with")
    shown_width: float = Field(default=1800.0, gt=0, description="HU, of the window it is read with")

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``as_picture``."""
        level, width = drawn(self.level, rng), drawn(self.width, rng)
        return as_picture(image, level, width, self.shown_level, self.shown_width)


class Standardise(ImageStep):
    """Minus the mean, over the standard deviation (z-score); the image's own unless given."""

    kind: Literal["standardise"] = "standardise"
    mean: float | None = Field(default=None, description="unit of the image")
    deviation: float | None = Field(default=None, gt=0, description="unit of the image")

    def image(self, image: Image, _rng: np.random.Generator, /) -> Image:
        """See ``standardise``."""
        return standardise(image, self.mean, self.deviation)


class Contrast(ImageStep):
    """Distances from the mean times `gain`, plus `shift` (brightness); cut to the image's range."""

    kind: Literal["contrast"] = "contrast"
    gain: PositiveSpan = 1.2
    shift: Span = Field(default=0.0, description="unit of the image")

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``contrast``."""
        return contrast(image, drawn(self.gain, rng), drawn(self.shift, rng))


class Gamma(ImageStep):
    """Power law on the image's range: below 1 dark parts become brighter."""

    kind: Literal["gamma"] = "gamma"
    exponent: PositiveSpan = 0.8

    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """See ``gamma``."""
        return gamma(image, drawn(self.exponent, rng))


class Equalise(ImageStep):
    """Histogram equalisation over the whole image or stack, 0 to 1."""

    kind: Literal["equalise"] = "equalise"
    bins: int = Field(default=256, ge=2)

    def image(self, image: Image, _rng: np.random.Generator, /) -> Image:
        """See ``equalise``."""
        return equalise(image, self.bins)


class Clahe(ImageStep):
    """Contrast-limited adaptive histogram equalisation, slice by slice, 0 to 1."""

    kind: Literal["clahe"] = "clahe"
    clip: float = Field(default=0.01, gt=0, le=1, description="share of a tile's pixels")
    tiles: int = Field(default=8, ge=1, description="a side")

    def image(self, image: Image, _rng: np.random.Generator, /) -> Image:
        """See ``clahe``."""
        return clahe(image, self.clip, self.tiles)
