"""A triangle mesh as signed distances: exact beside the surface, within half a lattice step far from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cspine.errors import ShapeError
from cspine.phantoms.shapes import Shape

if TYPE_CHECKING:
    import trimesh

# Distances are exact up to here (mm); farther off they come from the lattice.
_EXACT_MM = 2.5
_MARGIN_MM = 4.0
# The mesh is cut into pieces of this size (mm) to find candidates for the nearest triangle.
_PIECE_MM = 0.9
# Rays along x, y and z may disagree at this share of the solid's lattice points before the mesh counts as open.
_OPEN_SHARE = 0.01


def shape_of_mesh(mesh: trimesh.Trimesh, spacing: float, *, where: str | None = None, exact: bool = True) -> Shape:
    """Signed distances of a closed mesh, on a lattice along its axes.

    What is inside is decided by the majority of rays along x, y and z (odd number of crossings), so that a few
    doubled or missing triangles do no harm.

    Args:
        mesh: triangles, mm.
        spacing: mm between lattice points.
        where: file name for errors.
        exact: distances to triangles beside the surface; else those of the lattice, which is faster.

    Raises:
        ShapeError: the mesh is empty, or open.
    """
    from scipy.ndimage import distance_transform_edt

    triangles = np.asarray(mesh.triangles, dtype=np.float64)
    if not len(triangles):
        raise ShapeError("the mesh has no triangles", where=where, fix="Export it as a closed triangle surface.")
    low = triangles.min(axis=(0, 1)) - _MARGIN_MM
    count = np.ceil((triangles.max(axis=(0, 1)) + _MARGIN_MM - low) / spacing).astype(int) + 1
    votes = np.zeros(tuple(count[::-1]), dtype=np.int8)
    for axis in range(3):
        votes += _inside(triangles, low, count, spacing, axis)
    solid = votes >= 2
    unsure = float(((votes == 1) | (votes == 2)).sum()) / max(int(solid.sum()), 1)
    if unsure > _OPEN_SHARE:
        raise ShapeError(
            f"the mesh is not closed: inside and outside differ by direction at {unsure:.0%} of it",
            where=where,
            fix="Close its holes (for example with a mesh editor) and export it again.",
        )
    distance = distance_transform_edt(~solid) - distance_transform_edt(solid)
    distance = ((distance - 0.5 * np.sign(distance)) * spacing).astype(np.float32)
    if exact:
        near = np.argwhere(np.abs(distance) < _EXACT_MM)
        points = near[:, ::-1] * spacing + low
        sign = np.where(solid[tuple(near.T)], -1.0, 1.0)
        distance[tuple(near.T)] = (sign * distance_to_surface(mesh, points)).astype(np.float32)
    return Shape(distance, low.astype(np.float32), float(spacing))


def distance_to_surface(mesh: trimesh.Trimesh, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance ``(n,)`` mm of ``points`` ``(n, 3)`` to the nearest of the triangles that are likely to be it."""
    from scipy.spatial import cKDTree
    from trimesh.remesh import subdivide_to_size
    from trimesh.triangles import closest_point

    vertices, faces, owner = subdivide_to_size(
        mesh.vertices, mesh.faces, max_edge=_PIECE_MM, max_iter=20, return_index=True
    )
    tree = cKDTree(vertices[faces].mean(axis=1))
    triangles = np.asarray(mesh.triangles)
    nearest = tree.query(points, k=3)[1]
    best = np.full(len(points), np.inf)
    for k in range(nearest.shape[1]):
        face = owner[nearest[:, k]]
        fresh = np.ones(len(points), dtype=bool) if k == 0 else face != owner[nearest[:, k - 1]]
        found = closest_point(triangles[face[fresh]], points[fresh])
        best[fresh] = np.minimum(best[fresh], np.linalg.norm(found - points[fresh], axis=1))
    return best


def _inside(
    triangles: NDArray[np.float64], low: NDArray[np.float64], count: NDArray[np.int_], spacing: float, axis: int
) -> NDArray[np.int8]:
    """0 or 1 ``[z, y, x]``: parity of crossings of the rays along ``axis`` (0 = x)."""
    u, v = [a for a in range(3) if a != axis]
    # Rays keep off the lattice by a hair, so that none meets an edge.
    at = (triangles - low) / spacing - np.array([1.3e-5, 2.9e-5, 0.7e-5])
    first = np.ceil(at[:, :, [u, v]].min(axis=1)).astype(int)
    last = np.floor(at[:, :, [u, v]].max(axis=1)).astype(int)
    wide, tall = (np.maximum(last - first + 1, 0)).T
    owner = np.repeat(np.arange(len(at)), wide * tall)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(wide * tall) - wide * tall, wide * tall)
    cell = first[owner] + np.stack([rank % np.maximum(wide[owner], 1), rank // np.maximum(wide[owner], 1)], axis=1)
    a, b, c = (at[owner, i] for i in range(3))
    ab, ac = (b - a)[:, [u, v]], (c - a)[:, [u, v]]
    q = cell - a[:, [u, v]]
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    area = np.where(np.abs(area) < 1e-12, np.inf, area)
    s = (q[:, 0] * ac[:, 1] - q[:, 1] * ac[:, 0]) / area
    t = (ab[:, 0] * q[:, 1] - ab[:, 1] * q[:, 0]) / area
    hit = (s >= 0) & (t >= 0) & (s + t <= 1) & np.isfinite(area)
    height = (a[:, axis] + s * (b - a)[:, axis] + t * (c - a)[:, axis])[hit]
    index = np.empty((int(hit.sum()), 3), dtype=int)
    index[:, u], index[:, v] = cell[hit].T
    index[:, axis] = np.clip(np.ceil(height), 0, count[axis] - 1)
    crossings = np.zeros(tuple(count[::-1]), dtype=np.int32)
    np.add.at(crossings, tuple(index[:, ::-1].T), 1)
    return np.asarray(np.cumsum(crossings, axis=2 - axis) % 2, dtype=np.int8)
