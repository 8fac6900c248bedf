"""Where the pixels of a report's pictures lie in the patient.

A plane is a grid of LPS points, one a pixel. Axial planes are the scanned slices themselves; sagittal and coronal
planes may be curved: they follow the spine sideways (or front to back), so that one picture shows every body.
Display is radiological: the patient's left on the right of axial and coronal pictures, front on the left of
sagittal ones, head up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from cspine.volume import Volume

Points = NDArray[np.float64]

AXIAL_MM_PER_PX = 0.25
REFORMAT_MM_PER_PX = 0.4
BEYOND_SCAN_MM = 8.0
SAME_HEIGHT_MM = 1.0
# Tissue above this is body, not air around it; used to find the middle of a scan without a located spine.
BODY_HU = -300


@dataclass(frozen=True, slots=True)
class Letters:
    """Directions in the patient at the four edges of a picture: L, R, A, P, H or F."""

    top: str
    right: str
    bottom: str
    left: str


AXIAL = Letters(top="A", right="L", bottom="P", left="R")
SAGITTAL = Letters(top="H", right="P", bottom="F", left="A")
CORONAL = Letters(top="H", right="L", bottom="F", left="R")


@dataclass(frozen=True, slots=True)
class Plane:
    """The pixels of one picture.

    Attributes:
        points: LPS millimetres of pixel centres, float64 ``[rows, columns, 3]``.
        right: unit vector along which columns grow.
        down: unit vector along which rows grow.
        mm_per_px: edge of the square pixels.
        letters: what lies at the edges.
    """

    points: Points
    right: Points
    down: Points
    mm_per_px: float
    letters: Letters

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels as ``(rows, columns)``."""
        return self.points.shape[0], self.points.shape[1]

    def pixel_of(self, world: Points | Sequence[float]) -> tuple[float, float]:
        """``(column, row)`` of an LPS point seen along the picture's normal; may lie outside the picture."""
        offset = np.asarray(world, dtype=np.float64) - self.points[0, 0]
        return float(offset @ self.right / self.mm_per_px), float(offset @ self.down / self.mm_per_px)


@dataclass(frozen=True, slots=True)
class SpinePath:
    """The line through the body centres, as functions of world z; beyond the ends it goes straight up and down.

    Attributes:
        centers: LPS millimetres, float64 ``[n, 3]``, feet to head, at least one.
    """

    centers: Points

    @classmethod
    def through(cls, centers: Sequence[Sequence[float]]) -> SpinePath:
        """The path through points in any order; points within a millimetre of height are averaged."""
        points = np.asarray(centers, dtype=np.float64).reshape(-1, 3)
        points = np.round(points[np.argsort(points[:, 2], kind="stable")], 3)
        groups = np.split(points, np.flatnonzero(np.diff(points[:, 2]) > SAME_HEIGHT_MM) + 1)
        return cls(np.stack([group.mean(axis=0) for group in groups]))

    def at(self, z: Points) -> tuple[Points, Points]:
        """World x and y of the path at heights ``z`` (millimetres, any shape)."""
        low, high = self.centers[0, 2], self.centers[-1, 2]
        clipped = np.clip(z, low, high)
        if len(self.centers) == 1:
            return np.full_like(clipped, self.centers[0, 0]), np.full_like(clipped, self.centers[0, 1])
        # Monotone cubic: no overshoot between levels, so the picture never leaves the bodies it follows.
        curve = PchipInterpolator(self.centers[:, 2], self.centers[:, :2], axis=0)(clipped)
        return curve[..., 0], curve[..., 1]


def world_box(volume: Volume) -> tuple[Points, Points]:
    """Lowest and highest LPS coordinates of voxel centres, two arrays of three."""
    z, y, x = volume.shape
    corners = np.array([[i, j, k] for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)])
    world = volume.to_world(corners)
    return world.min(axis=0), world.max(axis=0)


def axial_plane(volume: Volume, slice_index: int, center_mm: Sequence[float], *, size_mm: float = 84.0) -> Plane:
    """A square window on one scanned slice of a volume whose axes run closest to left, posterior, superior.

    Args:
        volume: as ``Volume.reoriented`` gives it.
        slice_index: along z.
        center_mm: LPS point; its projection on the slice is the middle of the picture.
        size_mm: edge of the window.
    """
    axes = volume.affine[:3, :3] / np.asarray(volume.spacing)
    right = axes[:, 0]
    down = axes[:, 1] - right * (axes[:, 1] @ right)
    down /= np.linalg.norm(down)
    index = volume.to_index(center_mm)
    middle = volume.to_world([index[0], index[1], slice_index])
    return _flat(middle, right, down, (size_mm, size_mm), AXIAL_MM_PER_PX, AXIAL)


def sagittal_detail(center_mm: Sequence[float], *, size_mm: float = 64.0) -> Plane:
    """A flat sagittal square around an LPS point."""
    right, down = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])
    return _flat(np.asarray(center_mm, float), right, down, (size_mm, size_mm), AXIAL_MM_PER_PX, SAGITTAL)


def spine_planes(volume: Volume, path: SpinePath) -> tuple[Plane, Plane]:
    """The curved sagittal and coronal planes along a spine, with the same rows: equal heights lie side by side.

    Rows reach from above the dens to below the lowest body; where the scan ends before, a strip beyond it stays, so
    that its end can be seen.
    """
    low, high = world_box(volume)
    top = min(high[2] + BEYOND_SCAN_MM, path.centers[-1, 2] + 34)
    bottom = max(low[2] - BEYOND_SCAN_MM, path.centers[0, 2] - 24)
    rows = _steps(top, min(bottom, top - REFORMAT_MM_PER_PX), -REFORMAT_MM_PER_PX)
    x, y = path.at(rows)
    front = max(low[1], path.centers[:, 1].min() - 58)
    back = min(high[1], max(path.centers[:, 1].max() + 70, front + 90))
    return _curved_sagittal(rows, x, front, back), _curved_coronal(rows, x, y)


def scan_planes(volume: Volume) -> tuple[Plane, Plane]:
    """Flat sagittal and coronal planes through the middle of the body, over the whole scan; for unlocated spines."""
    low, high = world_box(volume)
    thin = volume.hu[:: max(1, volume.shape[0] // 24), ::8, ::8]
    body = np.argwhere(thin > BODY_HU)
    middle = (body.mean(axis=0) if len(body) else np.asarray(thin.shape) / 2) / np.asarray(thin.shape)
    center = volume.to_world((middle * np.asarray(volume.shape))[::-1])
    mm = max(REFORMAT_MM_PER_PX, float((high - low).max()) / 450)
    height, depth, width = float(high[2] - low[2]), float(high[1] - low[1]), float(high[0] - low[0])
    up = np.array([center[0], center[1], (low[2] + high[2]) / 2])
    sagittal_at = np.array([up[0], (low[1] + high[1]) / 2, up[2]])
    coronal_at = np.array([(low[0] + high[0]) / 2, up[1], up[2]])
    down = np.array([0.0, 0.0, -1.0])
    return (
        _flat(sagittal_at, np.array([0.0, 1.0, 0.0]), down, (depth, height), mm, SAGITTAL),
        _flat(coronal_at, np.array([1.0, 0.0, 0.0]), down, (width, height), mm, CORONAL),
    )


def _curved_sagittal(z: Points, x: Points, front: float, back: float) -> Plane:
    """Rows at heights ``z``; each row runs front to back at its own ``x``."""
    y = _steps(front, back, REFORMAT_MM_PER_PX)
    points = np.stack(
        np.broadcast_arrays(x[:, None], y[None, :], z[:, None]),
        axis=-1,
    )
    return Plane(points, np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0]), REFORMAT_MM_PER_PX, SAGITTAL)


def _curved_coronal(z: Points, x: Points, y: Points) -> Plane:
    """Rows at heights ``z``; each row runs right to left at its own ``y``."""
    middle = (x.min() + x.max()) / 2
    across = _steps(middle - 44, middle + 44, REFORMAT_MM_PER_PX)
    points = np.stack(np.broadcast_arrays(across[None, :], y[:, None], z[:, None]), axis=-1)
    return Plane(points, np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, -1.0]), REFORMAT_MM_PER_PX, CORONAL)


def _flat(
    center: Points, right: Points, down: Points, size_mm: tuple[float, float], mm: float, letters: Letters
) -> Plane:
    """A flat picture of ``size_mm`` (width, height) around an LPS point."""
    columns, rows = (max(2, round(length / mm)) for length in size_mm)
    across = (np.arange(columns) - (columns - 1) / 2) * mm
    along = (np.arange(rows) - (rows - 1) / 2) * mm
    points = center + along[:, None, None] * down + across[None, :, None] * right
    return Plane(points, right, down, mm, letters)


def _steps(start: float, stop: float, step: float) -> Points:
    """Even steps from ``start`` towards ``stop``, both near ends included, at least two."""
    return start + step * np.arange(max(2, round((stop - start) / step) + 1), dtype=np.float64)
