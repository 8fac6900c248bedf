"""Warps within the slice: shift, scale and rotation; grid, optical and elastic distortion.

A warp says for every pixel of the new image where it comes from. All slices of a stack get the same one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage

from cspine.errors import UsageError
from cspine.imaging.arrays import Array, fill_value
from cspine.imaging.boxes import Boxes
from cspine.imaging.geometry import turned
from cspine.imaging.sample import PositiveSpan, Sample, Span, Step, drawn

Source = NDArray[np.float64]
# Noise of this deviation over the correlation length folds the image onto itself in a few pixels of a million.
MAX_STEEPNESS = 0.3


def shift_scale_rotate(
    sample: Sample,
    shift: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    degrees: float = 0.0,
    fill: float | None = None,
) -> Sample:
    """Turned and enlarged about the middle of the slice, then shifted; the grid stays.

    Args:
        sample: image or stack.
        shift: x, y in shares of the side; positive to the right and down.
        scale: above 1 enlarges.
        degrees: from x towards y, clockwise on a screen.
        fill: outside the image; its smallest value unless told.

    Raises:
        UsageError: a scale of 0 or below.
    """
    if scale <= 0:
        raise UsageError(f"expected a scale above 0, got {scale}")
    rows, columns = sample.image.shape[-2:]
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    middle = np.array([(columns - 1) / 2, (rows - 1) / 2])
    matrix = np.eye(4)
    matrix[:2, :2] = [[cos, sin], [-sin, cos]]
    matrix[:2, 3] = middle - matrix[:2, :2] @ (middle + np.multiply(shift, (columns, rows)))
    return turned(sample, matrix, fill=fill)


def warp(sample: Sample, source: Source, fill: float | None = None) -> Sample:
    """Every slice warped alike; boxes become those around the pixels that come from them.

    Args:
        sample: image or stack.
        source: ``(2, y, x)``, for each pixel the row and column it comes from, in indices.
        fill: outside the image; its smallest value unless told.

    Raises:
        UsageError: ``source`` is not of the sample's slices, or not finite.
    """
    plane = sample.image.shape[-2:]
    if source.shape != (2, *plane) or not np.isfinite(source).all():
        raise UsageError(f"expected finite rows and columns of shape {(2, *plane)}, got shape {source.shape}")

    def warped(array: Array, order: int, outside: float) -> Array:
        planes = [
            ndimage.map_coordinates(p, source, order=order, mode="grid-constant", cval=outside)
            for p in array.reshape(-1, *plane)
        ]
        return np.stack(planes).reshape(array.shape)

    image = warped(sample.image, 1, fill_value(sample.image, fill))
    mask = None if sample.mask is None else warped(sample.mask, 0, 0)
    return replace(sample, image=image, mask=mask, boxes=_warped_boxes(sample.boxes, source), placement=None)


def _warped_boxes(boxes: Boxes, source: Source) -> Boxes:
    corners, kept = [], []
    y, x = np.floor(source + 0.5)
    for number, (x0, y0, x1, y1) in enumerate(boxes.corners):
        # Whole pixels, as the mask moves: a thin box must not fall between pixel centres.
        shown = (x >= np.floor(x0)) & (x < np.ceil(x1)) & (y >= np.floor(y0)) & (y < np.ceil(y1))
        found = ndimage.find_objects(shown.astype(np.uint8))
        if found:
            rows, columns = found[0]
            corners.append((columns.start, rows.start, columns.stop, rows.stop))
            kept.append(number)
    return Boxes.of(corners, boxes.levels[kept], boxes.slices[kept])


def grid_source(shape: tuple[int, int], widths_y: Array, widths_x: Array) -> Source:
    """Grid distortion: equal cells of the new slice come from cells of the given relative widths.

    Args:
        shape: of a slice ``(y, x)``.
        widths_y: positive, one for each row of cells.
        widths_x: positive, one for each column of cells.

    Raises:
        UsageError: a width of 0 or below.
    """
    axes = []
    for count, widths in zip(shape, (widths_y, widths_x), strict=True):
        widths = np.asarray(widths, dtype=np.float64)
        if len(widths) < 1 or (widths <= 0).any():
            raise UsageError(f"expected positive widths of grid cells, got {widths.tolist()}")
        ends = np.concatenate([[0.0], np.cumsum(widths) / widths.sum()]) * count
        axes.append(np.interp(np.arange(count) + 0.5, np.linspace(0, count, len(ends)), ends) - 0.5)
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def optical_source(shape: tuple[int, int], strength: float) -> Source:
    """Radial distortion: a point at distance r from the middle comes from ``r (1 + strength r²)``.

    r is 1 at the middle of the longer side's end. Positive is a barrel, which shows more, negative a pincushion.
    First term of D. C. Brown, Close-range camera calibration, Photogrammetric Engineering 37, 1971.
    """
    middle = (np.asarray(shape, dtype=np.float64)[:, None, None] - 1) / 2
    offset = np.indices(shape) - middle
    radius = offset / (max(shape) / 2)
    return np.asarray(middle + offset * (1 + strength * (radius**2).sum(0)))


def elastic_source(shape: tuple[int, int], amplitude: float, smoothness: float, rng: np.random.Generator) -> Source:
    """A smooth random displacement of deviation ``amplitude`` pixels an axis, alike over ``smoothness`` pixels.

    P. Simard, D. Steinkraus and J. Platt, Best practices for convolutional neural networks, ICDAR 2003; the field is
    brought to its amplitude afterwards, so that both numbers keep their meaning on any size.
    """
    # So smooth a field needs no more than a few points a length; between them it is linear.
    step = max(1.0, smoothness / 4)
    sigma, reach = smoothness / step, 8
    rows, columns = (int(np.ceil(count / step)) + 2 * reach + 1 for count in shape)
    # The noise is larger than the slice, so that its edges are as the middle.
    coarse = ndimage.gaussian_filter(rng.standard_normal((2, rows, columns)), (0, sigma, sigma), mode="wrap")
    coarse *= amplitude / max(float(coarse.std()), 1e-12)
    here = np.indices(shape, dtype=np.float64)
    field = [ndimage.map_coordinates(part, here / step + reach, order=1) for part in coarse]
    return np.asarray(here + np.stack(field))


class ShiftScaleRotate(Step):
    """Turns and enlarges about the middle of the slice, then shifts."""

    kind: Literal["shift-scale-rotate"] = "shift-scale-rotate"
    shift: Span = Field(default=(-0.0625, 0.0625), description="share of the side, x and y drawn apart")
    scale: PositiveSpan = (0.9, 1.1)
    degrees: Span = (-15.0, 15.0)
    fill: float | None = Field(default=None, description="unit of the image; none: its smallest value")

    def changed(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """See ``shift_scale_rotate``."""
        shift = drawn(self.shift, rng), drawn(self.shift, rng)
        return shift_scale_rotate(sample, shift, drawn(self.scale, rng), drawn(self.degrees, rng), self.fill)


class GridDistortion(Step):
    """Stretches some columns and rows of a grid of cells and squeezes others."""

    kind: Literal["grid-distortion"] = "grid-distortion"
    cells: int = Field(default=5, ge=2, description="a side")
    limit: float = Field(default=0.3, gt=0, lt=1, description="share of a cell's width")

    def changed(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """See ``grid_source``."""
        widths = rng.uniform(1 - self.limit, 1 + self.limit, (2, self.cells))
        return warp(sample, grid_source(_plane(sample), *widths))


class OpticalDistortion(Step):
    """Bends the slice as a lens does: barrel where positive, pincushion where negative."""

    kind: Literal["optical-distortion"] = "optical-distortion"
    strength: Span = (-0.15, 0.15)

    def changed(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """See ``optical_source``."""
        return warp(sample, optical_source(_plane(sample), drawn(self.strength, rng)))


class Elastic(Step):
    """Smooth random displacement."""

    kind: Literal["elastic"] = "elastic"
    amplitude: PositiveSpan = Field(default=(1.0, 4.0), description="px, deviation")
    smoothness: float = Field(default=24.0, gt=0, description="px")

    @model_validator(mode="after")
    def _no_folds(self) -> Elastic:
        largest = max(np.atleast_1d(self.amplitude))
        if largest > MAX_STEEPNESS * self.smoothness:
            raise ValueError(f"amplitude must be at most {MAX_STEEPNESS} of smoothness, or the image folds")
        return self

    def changed(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """See ``elastic_source``."""
        return warp(sample, elastic_source(_plane(sample), drawn(self.amplitude, rng), self.smoothness, rng))


def _plane(sample: Sample) -> tuple[int, int]:
    shape: Any = sample.image.shape[-2:]
    return shape[0], shape[1]
