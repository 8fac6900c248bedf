"""Putting slices where they belong when they are missing, uneven, or shifted against each other."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import GeometryError
from cspine.volume import AIR_HU

Array = NDArray[Any]

# Rows and columns of a slice must be this close to perpendicular (cosine).
PERPENDICULAR_TOLERANCE = 5e-3
# A slice axis that drifts less than this over the whole stack, in pixels, is no shear.
SHEAR_TOLERANCE_PX = 0.5


def shifted(image: Array, shift_xy: Array, margin: tuple[int, int, int, int], out: Array) -> None:
    """Write ``image`` ``[y, x]`` moved by ``shift_xy`` pixels into the wider ``out``; outside it is air.

    Linear between pixels, so that a bone edge moves by the exact fraction.
    """
    left, top = margin[:2]
    x, y = shift_xy[0] + left, shift_xy[1] + top
    rows, columns = image.shape
    ix, iy = int(np.floor(x)), int(np.floor(y))
    fx, fy = x - ix, y - iy
    wide = np.full((rows + 2, columns + 2), AIR_HU, np.float32)
    wide[1:-1, 1:-1] = image
    wide = (1 - fy) * wide[1:] + fy * wide[:-1]
    wide = (1 - fx) * wide[:, 1:] + fx * wide[:, :-1]
    out[...] = AIR_HU
    height, width = min(rows + 1, out.shape[0] - iy), min(columns + 1, out.shape[1] - ix)
    part = wide[:height, :width]
    out[iy : iy + height, ix : ix + width] = np.rint(part) if out.dtype.kind == "i" else part


def fill_between(hu: Array, slots: tuple[int, ...]) -> None:
    """Fill the slices of ``hu`` ``[z, y, x]`` that no plane was written to, linearly between their neighbours."""
    for below, above in pairwise(slots):
        for k in range(below + 1, above):
            share = (k - below) / (above - below)
            mixed = (1 - share) * hu[below].astype(np.float32) + share * hu[above]
            hu[k] = np.rint(mixed) if hu.dtype.kind == "i" else mixed


def evened(hu: Array, depths: Array, step: float, count: int) -> Array:
    """Slices at uneven ``depths`` (mm, ascending, from 0) → ``count`` slices every ``step`` mm, linear."""
    out = np.empty((count, *hu.shape[1:]), hu.dtype)
    wanted = np.minimum(np.arange(count) * step, depths[-1])
    above = np.clip(np.searchsorted(depths, wanted, side="right"), 1, len(depths) - 1)
    for k in range(count):
        low, high = above[k] - 1, above[k]
        share = np.float32((wanted[k] - depths[low]) / (depths[high] - depths[low]))
        mixed = (1 - share) * hu[low].astype(np.float32) + share * hu[high]
        out[k] = np.rint(mixed) if hu.dtype.kind == "i" else mixed
    return out


def straightened(hu: Array, affine: NDArray[np.float64], *, where: str) -> tuple[Array, NDArray[np.float64], float]:
    """A sheared stack (slice axis not along the slice normal) on a rectangular grid.

    Returns:
        the array, its affine, and the angle that was taken out in degrees (0 when it was straight already).

    Raises:
        GeometryError: rows and columns are not perpendicular.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    if abs(axes[:, 0] @ axes[:, 1]) > PERPENDICULAR_TOLERANCE:
        raise GeometryError("rows and columns are not perpendicular", where=where, fix="Resample the image first")
    normal = np.cross(axes[:, 0], axes[:, 1])
    normal *= np.sign(normal @ axes[:, 2]) / np.linalg.norm(normal)
    drift = np.array([affine[:3, 2] @ axes[:, 0] / spacing[0], affine[:3, 2] @ axes[:, 1] / spacing[1]])
    if np.abs(drift).max() * (len(hu) - 1) <= SHEAR_TOLERANCE_PX:
        return hu, affine, 0.0
    shifts = np.arange(len(hu))[:, None] * drift
    low = np.floor(np.minimum(shifts.min(axis=0), 0)).astype(int)
    high = np.ceil(np.maximum(shifts.max(axis=0), 0)).astype(int)
    margin = (-int(low[0]), -int(low[1]), int(high[0]), int(high[1]))
    rows, columns = hu.shape[1:]
    out = np.empty((len(hu), rows + margin[1] + margin[3], columns + margin[0] + margin[2]), hu.dtype)
    for k in range(len(hu)):
        shifted(hu[k], shifts[k], margin, out[k])
    straight = affine.copy()
    straight[:3, 2] = normal * (affine[:3, 2] @ normal)
    straight[:3, 3] += affine[:3, 0] * low[0] + affine[:3, 1] * low[1]
    angle = float(np.degrees(np.arccos(np.clip(normal @ axes[:, 2], -1, 1))))
    return out, straight, angle
