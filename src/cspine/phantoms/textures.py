"""Random textures fixed in the world: the same place has the same value on any grid.

A ``Texture`` is a periodic lattice of Gaussian numbers, interpolated by cubic B-splines (de Boor, "A Practical Guide
to Splines", 1978). Along the axes of a grid that is not rotated the interpolation is separable, and done as three
matrix products; a rotated grid is sampled point by point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.grid import Box, Grid

Float = NDArray[np.float32]
Coordinates = tuple[Float, Float, Float]
# Standard deviation of B-spline weighted unit noise, so that a texture has unit variance on average.
_SPREAD = 0.479**1.5
# The same for linear weights: their squares average 2/3 an axis.
_LINEAR_SPREAD = (2 / 3) ** 1.5


def coordinates(grid: Grid) -> Coordinates:
    """World ``x, y, z`` mm of the voxel centres, each float32 and broadcastable to ``[z, y, x]``.

    On a grid along the patient's axes each has one axis longer than 1, which makes distance formulas cheap.
    """
    nz, ny, nx = grid.shape
    index = (
        np.arange(nx, dtype=np.float64).reshape(1, 1, nx),
        np.arange(ny, dtype=np.float64).reshape(1, ny, 1),
        np.arange(nz, dtype=np.float64).reshape(nz, 1, 1),
    )
    out = []
    for row in range(3):
        value: NDArray[np.float64] = np.full((1, 1, 1), grid.affine[row, 3])
        for axis in range(3):
            step = grid.affine[row, axis]
            if abs(step) * max(1, index[axis].size - 1) > 1e-4:
                value = value + step * index[axis]
        out.append(value.astype(np.float32))
    return out[0], out[1], out[2]


def part_of(values: Coordinates, box: Box) -> Coordinates:
    """The coordinates of the voxels in ``box`` (index ranges ``z, y, x``)."""
    picked = [v[tuple(s if n > 1 else slice(None) for s, n in zip(box, v.shape, strict=True))] for v in values]
    return picked[0], picked[1], picked[2]


@dataclass(frozen=True, slots=True)
class Texture:
    """Smooth noise of zero mean and unit variance with a given feature size.

    Attributes:
        values: float32 ``(n, n, n)`` lattice, periodic.
        spacing: mm between lattice points; features are about twice as large.
    """

    values: Float
    spacing: float

    @classmethod
    def random(cls, rng: np.random.Generator, spacing: float, size: int = 48) -> Texture:
        """A new texture; it repeats after ``size * spacing`` mm."""
        return cls((rng.standard_normal((size, size, size)) / _SPREAD).astype(np.float32), spacing)

    def at(self, where: Coordinates) -> Float:
        """Values at the coordinates, float32 ``[z, y, x]``."""
        shapes = [v.shape for v in where]
        separable = all(s[a] == 1 for s, keep in zip(shapes, (2, 1, 0), strict=True) for a in range(3) if a != keep)
        if not separable:
            return self._scattered(where)
        n = self.values.shape[0]
        wx, wy, wz = (_weights(v.ravel() / np.float32(self.spacing), n) for v in where)
        along_x = self.values.reshape(n * n, n) @ wx.T
        along_y = np.matmul(wy, along_x.reshape(n, n, -1))
        out = wz @ along_y.reshape(n, -1)
        return np.asarray(out.reshape(wz.shape[0], wy.shape[0], wx.shape[0]))

    def near(self, points: Float) -> Float:
        """Values at world points ``(n, 3)``, interpolated linearly: cheaper than ``at``, for scattered points."""
        from scipy.ndimage import map_coordinates

        index = np.ascontiguousarray(points.T[::-1]) / np.float32(self.spacing)
        values = map_coordinates(self.values, index, order=1, mode="grid-wrap", output=np.float32)
        return np.asarray(values * np.float32(_SPREAD / _LINEAR_SPREAD))

    def _scattered(self, where: Coordinates) -> Float:
        from scipy.ndimage import map_coordinates

        x, y, z = np.broadcast_arrays(*where)
        index = np.stack([z, y, x]) / np.float32(self.spacing)
        return np.asarray(
            map_coordinates(self.values, index, order=3, mode="grid-wrap", prefilter=False, output=np.float32)
        )


def _weights(place: Float, n: int) -> Float:
    """Periodic cubic B-spline weights, float32 ``(len(place), n)``."""
    base = np.floor(place).astype(int)
    t = (place - base).astype(np.float32)
    taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    out = np.zeros((place.size, n), dtype=np.float32)
    rows = np.arange(place.size)
    for shift, tap in enumerate(taps):
        np.add.at(out, (rows, (base + shift - 1) % n), tap / 6)
    return out
