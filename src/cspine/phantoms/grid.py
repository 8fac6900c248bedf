"""``Grid``: the voxels at which a phantom is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.errors import GeometryError

Float = NDArray[np.float32]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular lattice in the patient.

    Attributes:
        affine: 4x4, voxel index ``(x, y, z, 1)`` → LPS millimetres.
        shape: voxels along ``(z, y, x)``.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]

    @classmethod
    def axis_aligned(cls, center: Sequence[float], size: Sequence[float], spacing: Sequence[float] | float) -> Grid:
        """A grid along the patient's axes around ``center`` (x, y, z mm) with ``size`` and ``spacing`` (x, y, z mm)."""
        step = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
        count = np.maximum(1, np.round(np.asarray(size, dtype=np.float64) / step)).astype(int)
        affine = np.diag([*step, 1.0])
        affine[:3, 3] = np.asarray(center, dtype=np.float64) - step * (count - 1) / 2
        return cls(affine, (int(count[2]), int(count[1]), int(count[0])))

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Millimetres between voxel centres along ``(x, y, z)``."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def points(self, pose: NDArray[np.float64] | None = None) -> Float:
        """Coordinates of all voxel centres, float32 ``(z, y, x, 3)`` as ``(x, y, z)`` mm.

        In the world, or in the local frame of ``pose`` (4x4, local → world) when given.
        """
        affine = self.affine if pose is None else np.linalg.solve(pose, self.affine)
        axes = affine[:3, :3].astype(np.float32)
        z, y, x = (np.arange(n, dtype=np.float32) for n in self.shape)
        row = x[:, None] * axes[:, 0] + affine[:3, 3].astype(np.float32)
        plane = (y[:, None] * axes[:, 1])[:, None, :] + row
        return np.asarray((z[:, None] * axes[:, 2])[:, None, None, :] + plane)

    def covering(self, low: ArrayLike, high: ArrayLike) -> Box | None:
        """Index ranges ``(z, y, x)`` of the voxels that may lie in the world box ``low`` to ``high``; None if none."""
        ends = np.stack([np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)], axis=1)
        corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
        index = np.linalg.solve(self.affine[:3, :3], corners - self.affine[:3, 3:])
        first = np.maximum(np.floor(index.min(axis=1)), 0).astype(int)
        last = np.minimum(np.ceil(index.max(axis=1)) + 1, self.shape[::-1]).astype(int)
        if (first >= last).any():
            return None
        return tuple(slice(int(first[a]), int(last[a])) for a in (2, 1, 0))  # type: ignore[return-value]

    def sub(self, box: Box) -> Grid:
        """The grid of the voxels in ``box``."""
        affine = self.affine.copy()
        start = np.array([box[2].start, box[1].start, box[0].start])
        affine[:3, 3] += affine[:3, :3] @ start
        return Grid(affine, tuple(s.stop - s.start for s in box))

    def coarsened(self, spacing: float) -> Grid:
        """The same field and axes with about ``spacing`` mm between voxels, never finer than this grid.

        Its outermost voxel centres are those of this grid, so that interpolating back never extrapolates.
        """
        extent = self.spacing * (np.asarray(self.shape[::-1]) - 1)
        step = np.maximum(spacing, self.spacing)
        count = np.maximum(2, np.ceil(extent / step) + 1).astype(int)
        count = np.minimum(count, np.maximum(self.shape[::-1], 1))
        affine = self.affine.copy()
        ratio = (np.asarray(self.shape[::-1]) - 1) / np.maximum(count - 1, 1)
        affine[:3, :3] = affine[:3, :3] * np.where(count > 1, ratio, 1.0)
        return Grid(affine, (int(count[2]), int(count[1]), int(count[0])))


def upsample(values: NDArray[np.float32], coarse: Grid, grid: Grid) -> Float:
    """Trilinear interpolation of ``values`` on ``coarse`` at the voxels of ``grid``; both have parallel axes.

    Args:
        values: float32 ``[z, y, x]`` of ``coarse.shape``.
        coarse: where the values are.
        grid: where they are wanted; outside ``coarse`` the border value continues.

    Raises:
        GeometryError: the axes are not parallel.
    """
    mapping = np.linalg.solve(coarse.affine, grid.affine)
    scale = np.diag(mapping[:3, :3])
    if not np.allclose(mapping[:3, :3], np.diag(scale), atol=1e-5):
        raise GeometryError("upsample needs grids with parallel axes")
    out = np.asarray(values, dtype=np.float32)
    for axis in (0, 1, 2):
        world = 2 - axis
        place = np.arange(grid.shape[axis]) * scale[world] + mapping[world, 3]
        out = _interpolated(out, axis, place)
    return out


def _interpolated(values: Float, axis: int, place: NDArray[np.float64]) -> Float:
    """Linear interpolation along one axis at fractional indices, clamped to the ends."""
    count = values.shape[axis]
    place = np.clip(place, 0, count - 1)
    low = np.minimum(place.astype(int), max(count - 2, 0))
    high = np.minimum(low + 1, count - 1)
    weight = (place - low).astype(np.float32)
    shape = [1, 1, 1]
    shape[axis] = -1
    weight = weight.reshape(shape)
    first = np.take(values, low, axis=axis)
    second = np.take(values, high, axis=axis)
    second -= first
    second *= weight
    first += second
    return np.asarray(first)
