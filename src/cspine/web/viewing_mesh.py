"""Surfaces of vertebrae for the 3D view: naive surface nets, written as MZ3.

Surface nets put one point into every cell that the surface crosses, at the mean of the crossings of its edges, and
join the four cells around each crossed edge (S. Gibson, "Constrained elastic surface nets", MICCAI 1998). The result
is even, closed where the field is, and needs no tables of cases.
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cspine.reports.images import ScalarField

# MZ3 (C. Rorden, Surfice): magic "MZ", what is inside, counts, bytes to skip; then faces and points, little-endian.
_MAGIC, _FACES, _POINTS = 23117, 1, 2
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Surface:
    """Triangles.

    Attributes:
        points: LPS millimetres, float64 ``[n, 3]``.
        faces: indices of points, int32 ``[m, 3]``; seen from outside they run counter-clockwise.
    """

    points: NDArray[np.float64]
    faces: NDArray[np.int32]

    @property
    def volume(self) -> float:
        """Cubic millimetres inside; negative when the faces point inwards."""
        a, b, c = (self.points[self.faces[:, k]] for k in range(3))
        return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def surface_net(field: ScalarField, level: float = 0.5) -> Surface | None:
    """The surface where a field passes a level; None when it does not.

    Args:
        field: ``[z, y, x]``, above ``level`` inside; closed where its border is below.
        level: of the surface.
    """
    values = np.asarray(field.values, dtype=np.float32) - np.float32(level)
    inside = values >= 0
    cells = tuple(n - 1 for n in values.shape)
    if min(cells) < 1:
        return None
    total = np.zeros((*cells, 3), dtype=np.float32)
    count = np.zeros(cells, dtype=np.float32)
    for axis in range(3):
        _add_crossings(values, inside, axis, total, count)
    used = count > 0
    if not used.any():
        return None
    number = np.full(cells, -1, dtype=np.int64)
    number[used] = np.arange(int(used.sum()))
    zyx = np.argwhere(used) + total[used] / count[used, None]
    points = zyx[:, ::-1] @ field.affine[:3, :3].T + field.affine[:3, 3]
    faces = np.concatenate([_quads(inside, number, axis) for axis in range(3)])
    surface = Surface(points, faces.astype(np.int32))
    return surface if surface.volume >= 0 else Surface(points, surface.faces[:, ::-1].copy())


def _add_crossings(
    values: NDArray[np.float32],
    inside: NDArray[np.bool_],
    axis: int,
    total: NDArray[np.float32],
    count: NDArray[np.float32],
) -> None:
    """Add, to each cell, where its four edges along ``axis`` are crossed: offsets within the cell."""
    low = tuple(slice(None, -1) if k == axis else slice(None) for k in range(3))
    high = tuple(slice(1, None) if k == axis else slice(None) for k in range(3))
    crossed = inside[low] != inside[high]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(crossed, values[low] / (values[low] - values[high]), 0).astype(np.float32)
    others = [k for k in range(3) if k != axis]
    for corner in product((0, 1), repeat=2):
        place = [slice(None)] * 3
        for k, at in zip(others, corner, strict=True):
            place[k] = slice(1, None) if at else slice(None, -1)
        here = crossed[tuple(place)]
        total[..., axis] += share[tuple(place)]
        for k, at in zip(others, corner, strict=True):
            total[..., k] += here * np.float32(at)
        count += here


def _quads(inside: NDArray[np.bool_], number: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
    """Two triangles for each crossed edge along ``axis`` that has four cells around it, ``[m, 3]``."""
    low = tuple(slice(None, -1) if k == axis else slice(1, -1) for k in range(3))
    high = tuple(slice(1, None) if k == axis else slice(1, -1) for k in range(3))
    begins, ends = inside[low], inside[high]
    edges = np.argwhere(begins != ends)
    leaving = begins[tuple(edges.T)]
    u, v = (axis + 1) % 3, (axis + 2) % 3
    corners = []
    for du, dv in ((0, 0), (1, 0), (1, 1), (0, 1)):
        cell = edges.copy()
        cell[:, u] += du
        cell[:, v] += dv
        corners.append(number[tuple(cell.T)])
    a, b, c, d = corners
    ring = np.stack([a, b, c, d], axis=1)
    ring[~leaving] = ring[~leaving][:, ::-1]
    return np.concatenate([ring[:, [0, 1, 2]], ring[:, [0, 2, 3]]])


def to_mz3(surface: Surface) -> bytes:
    """The surface as gzipped MZ3, points in RAS millimetres as NIfTI has them. Same input, same bytes."""
    # Mirrored twice (x and y): the triangles keep their side.
    points = (surface.points * _LPS_TO_RAS).astype("<f4")
    head = struct.pack("<HHIII", _MAGIC, _FACES | _POINTS, len(surface.faces), len(points), 0)
    return gzip.compress(head + surface.faces.astype("<i4").tobytes() + points.tobytes(), compresslevel=6, mtime=0)
