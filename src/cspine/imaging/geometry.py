"""Whole-grid geometry: flips, transpose, regions of interest, resize, and any turn that a matrix describes.

Each takes the mask, the boxes and the placement along. Coordinates are indices ``(x, y, z)``, pixel centres.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from scipy import ndimage

from cspine.errors import IntensityError, UsageError
from cspine.imaging.arrays import Array, Image, Mask, Matrix, fill_value, shape3
from cspine.imaging.artefacts import BODY_HU, body_mask
from cspine.imaging.sample import Fraction, Sample, Step

Axis = Literal["x", "y", "z"]
Region = Literal["body", "bone", "mask"]
BONE_HU = 250.0
# Bright parts of fewer pixels are noise, calcified vessels or text.
MIN_BONE_PIXELS = 25


def flip(sample: Sample, axis: Axis = "x") -> Sample:
    """Mirrored along one axis: ``x`` swaps left and right, ``y`` front and back, ``z`` the order of slices."""
    ndim = sample.image.ndim
    along = ndim - 1 - "xyz".index(axis)
    if along < 0:
        raise UsageError("an image [y, x] has no axis z to flip")
    matrix, column = np.eye(4), "xyz".index(axis)
    matrix[column, column], matrix[column, 3] = -1, sample.image.shape[along] - 1
    mask = None if sample.mask is None else np.flip(sample.mask, along)
    return sample.moved(np.flip(sample.image, along), mask, matrix)


def transpose(sample: Sample) -> Sample:
    """Rows become columns."""
    matrix = np.eye(4)[[1, 0, 2, 3]]
    mask = None if sample.mask is None else np.swapaxes(sample.mask, -1, -2)
    return sample.moved(np.swapaxes(sample.image, -1, -2), mask, matrix)


def crop(sample: Sample, part: tuple[slice, slice, slice]) -> Sample:
    """The part ``(z, y, x)`` of a sample, step 1; z of an image ``[y, x]`` is ignored.

    Raises:
        UsageError: nothing is left, or a range skips voxels.
    """
    shape = sample.image.shape
    ranges = [s.indices(n) for s, n in zip(part[-len(shape) :], shape, strict=True)]
    if any(step != 1 or stop <= start for start, stop, step in ranges):
        raise UsageError(f"expected non-empty ranges of step 1 inside {shape}, got {part}")
    matrix = np.eye(4)
    matrix[: len(ranges), 3] = [start for start, _, _ in ranges[::-1]]
    inside = tuple(slice(start, stop) for start, stop, _ in ranges)
    mask = None if sample.mask is None else sample.mask[inside]
    return sample.moved(sample.image[inside], mask, matrix)


def region(
    sample: Sample, of: Region = "body", threshold: float | None = None, margin: int = 0
) -> tuple[slice, slice, slice]:
    """The smallest part ``(z, y, x)`` that holds the body, the bone or the mask, with a margin.

    Args:
        sample: HU, unless a threshold is given in its unit.
        of: ``body`` is the largest part above -300 HU, ``bone`` what is above 250 HU in parts of 25 pixels or more,
            ``mask`` every value but 0.
        threshold: other than these.
        margin: pixels added at each side within a slice; slices are not added.

    Raises:
        IntensityError: nothing is above the threshold.
        UsageError: the mask is missing or empty.
    """
    if of == "mask":
        if sample.mask is None or not sample.mask.any():
            raise UsageError("expected a mask with something in it, got none", fix="Cut around body or bone instead")
        shown = sample.mask != 0
    elif of == "body":
        shown = body_mask(sample.image, BODY_HU if threshold is None else threshold)
    else:
        shown = _bone(sample.image, BONE_HU if threshold is None else threshold)
    z, y, x = ndimage.find_objects(shown.reshape(shape3(shown.shape)).astype(np.uint8))[0]
    rows, columns = shown.shape[-2:]
    return (
        z,
        slice(max(y.start - margin, 0), min(y.stop + margin, rows)),
        slice(max(x.start - margin, 0), min(x.stop + margin, columns)),
    )


def _bone(image: Image, threshold: float) -> Mask:
    labels, _ = ndimage.label(image > threshold)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    large = sizes >= min(MIN_BONE_PIXELS, max(int(sizes.max()), 1))
    if not large.any():
        raise IntensityError(
            f"expected bone above {threshold:g}, but the brightest pixel is {image.max():g}",
            fix="Give the threshold between soft tissue and bone in the unit of the image",
        )
    return np.asarray(large[labels])


def resize(sample: Sample, size: tuple[int, int], *, keep_aspect: bool = True, fill: float | None = None) -> Sample:
    """A sample whose slices have ``size`` ``(rows, columns)``.

    The image is averaged where it shrinks and linear where it grows (Pillow), the mask takes the nearest pixel.
    Edges of the picture fall on edges. With ``keep_aspect`` it is made as large as fits and centred; what is left
    is ``fill``, its smallest value unless told. ``Sample.to_original`` leads back.

    Raises:
        UsageError: a size below 1.
    """
    rows, columns = size
    if rows < 1 or columns < 1:
        raise UsageError(f"expected a size of at least 1 x 1 pixels, got {rows} x {columns}")
    height, width = sample.image.shape[-2:]
    new_height, new_width = rows, columns
    if keep_aspect:
        scale = min(rows / height, columns / width)
        new_height, new_width = max(round(height * scale), 1), max(round(width * scale), 1)
    top, left = (rows - new_height) // 2, (columns - new_width) // 2
    inside = (..., slice(top, top + new_height), slice(left, left + new_width))
    image = np.full((*sample.image.shape[:-2], rows, columns), fill_value(sample.image, fill), np.float32)
    image[inside] = _resized(sample.image, new_height, new_width)
    mask = None
    if sample.mask is not None:
        mask = np.zeros(image.shape, sample.mask.dtype)
        y = ((np.arange(new_height) + 0.5) * height / new_height).astype(int)
        x = ((np.arange(new_width) + 0.5) * width / new_width).astype(int)
        mask[inside] = sample.mask[..., y[:, None], x]
    matrix = np.eye(4)
    for axis, (new, old, offset) in enumerate(((new_width, width, left), (new_height, height, top))):
        matrix[axis, axis], matrix[axis, 3] = old / new, (0.5 - offset) * old / new - 0.5
    return sample.moved(image, mask, matrix)


def _resized(image: Image, rows: int, columns: int) -> Image:
    from PIL import Image as Pillow

    planes = np.ascontiguousarray(image.reshape(-1, *image.shape[-2:]))
    # Pillow's filter grows with the factor when it shrinks, so nothing aliases.
    small = [Pillow.fromarray(p).resize((columns, rows), Pillow.Resampling.BILINEAR) for p in planes]
    out = np.stack([np.asarray(plane, np.float32) for plane in small])
    return np.clip(out, image.min(), image.max()).reshape(*image.shape[:-2], rows, columns)


def turned(sample: Sample, matrix: Matrix, shape: tuple[int, ...] | None = None, fill: float | None = None) -> Sample:
    """A sample on another grid that a matrix leads to; linear, the mask nearest.

    Args:
        sample: image or stack.
        matrix: ``(4, 4)``, index ``(x, y, z, 1)`` of the new grid → index of the sample.
        shape: of the new grid, as many axes as the sample; its own unless told.
        fill: outside the image; its smallest value unless told.
    """
    shape = sample.image.shape if shape is None else shape
    ndim = len(shape)
    # ndimage counts z first.
    linear, offset = matrix[:ndim, :ndim][::-1, ::-1], matrix[:ndim, 3][::-1]

    def on_grid(array: Array, order: int, outside: float) -> Array:
        return np.asarray(
            ndimage.affine_transform(
                array, linear, offset, shape, order=order, mode="grid-constant", cval=outside, prefilter=False
            )
        )

    image = on_grid(sample.image, 1, fill_value(sample.image, fill))
    mask = None if sample.mask is None else on_grid(sample.mask, 0, 0)
    return sample.moved(image, mask, matrix)


class Flip(Step):
    """Mirrors along an axis: x left and right, y front and back, z the order of slices."""

    kind: Literal["flip"] = "flip"
    probability: Fraction = 0.5
    axis: Axis = "x"

    def changed(self, sample: Sample, _rng: np.random.Generator, /) -> Sample:
        """See ``flip``."""
        return flip(sample, self.axis)


class Transpose(Step):
    """Swaps rows and columns."""

    kind: Literal["transpose"] = "transpose"
    probability: Fraction = 0.5

    def changed(self, sample: Sample, _rng: np.random.Generator, /) -> Sample:
        """See ``transpose``."""
        return transpose(sample)


class Roi(Step):
    """Cuts out the smallest part that holds the body, the bone or the mask."""

    kind: Literal["roi"] = "roi"
    of: Region = "body"
    threshold: float | None = Field(default=None, description="unit of the image; none: -300 HU body, 250 HU bone")
    margin: int = Field(default=0, ge=0, description="px")

    def changed(self, sample: Sample, _rng: np.random.Generator, /) -> Sample:
        """See ``region``."""
        return crop(sample, region(sample, self.of, self.threshold, self.margin))


class Resize(Step):
    """Brings slices to `size`, keeping the aspect by padding; averages where it shrinks, linear where it grows."""

    kind: Literal["resize"] = "resize"
    size: tuple[int, int] = Field(default=(224, 224), description="rows, columns, px")
    keep_aspect: bool = True
    fill: float | None = Field(default=None, description="unit of the image; none: its smallest value")

    def changed(self, sample: Sample, _rng: np.random.Generator, /) -> Sample:
        """See ``resize``."""
        return resize(sample, self.size, keep_aspect=self.keep_aspect, fill=self.fill)
