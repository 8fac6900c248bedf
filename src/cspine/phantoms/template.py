"""The mean parametric vertebra of a level, as what other solids are compared with: its surface and its landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.atlas_axis import atlas_landmarks, axis_landmarks, build_atlas, build_axis
from cspine.phantoms.morphometry import AtlasDims, AxisDims, mean_dims
from cspine.phantoms.shapes import Shape
from cspine.phantoms.vertebra import Landmarks, Wear, build_vertebra, landmarks_of

Points = NDArray[np.float64]
Pose = NDArray[np.float64]
TEMPLATE_SPACING_MM = 1.0
# Landmarks that hold a length instead of a place.
LENGTHS = frozenset({"canal_radius"})


@dataclass(frozen=True)
class Template:
    """One level of a mean man.

    Attributes:
        level: 1..7 = C1..C7.
        shape: the solid, local mm.
        marks: its landmarks, local mm.
        surface: ``(n, 3)`` points on its surface, mm.
        normals: ``(n, 3)`` unit normals there, outwards.
        body: ``(n,)`` bool, which of these belong to the body (C1: the lateral masses and the anterior arch).
    """

    level: int
    shape: Shape
    marks: Landmarks
    surface: Points
    normals: Points
    body: NDArray[np.bool_]


@lru_cache(maxsize=8)
def template_of(level: int) -> Template:
    """The template of ``level`` (1..7). Made once a process; the same in every process."""
    rng = np.random.default_rng(level)
    axis = AxisDims()
    if level == 1:
        marks = atlas_landmarks(AtlasDims(), axis)
        shape = build_atlas(rng, AtlasDims(), axis, marks, spacing=TEMPLATE_SPACING_MM)
    else:
        dims = mean_dims(level)
        up, down = _pitch(level - 1), _pitch(level)
        marks = axis_landmarks(dims, axis, down) if level == 2 else landmarks_of(level, dims, up, down)
        if level == 2:
            shape = build_axis(rng, dims, axis, marks, pitch_down=down, wear=Wear(), spacing=TEMPLATE_SPACING_MM)
        else:
            shape = build_vertebra(rng, level, dims, marks, pitch_down=down, wear=Wear(), spacing=TEMPLATE_SPACING_MM)
    surface, normals = surface_of(shape, 1600)
    return Template(level, shape, marks, surface, normals, _body_part(level, marks, surface))


def _pitch(level: int) -> float:
    upper, lower = mean_dims(max(level, 2)), mean_dims(level + 1)
    return upper.height / 2 + upper.disc + lower.height / 2


def _body_part(level: int, marks: Landmarks, surface: Points) -> NDArray[np.bool_]:
    if level == 1:
        return np.asarray(surface[:, 1] < 14.0)
    half_width = float(marks["body_left"][0]) + 0.5
    back = float(marks["body_posterior"][1]) + 0.5
    low = float(marks["body_inferior"][2]) - 3.0
    high = float(marks["body_superior"][2]) + 3.0 if level > 2 else float(marks["dens_tip"][2]) + 2.0
    x, y, z = surface.T
    return np.asarray((np.abs(x) < half_width) & (y < back) & (z > low) & (z < high))


def surface_of(shape: Shape, count: int) -> tuple[Points, Points]:
    """About ``count`` points evenly spread over the surface of ``shape``, and their outward unit normals.

    Args:
        shape: any solid.
        count: fewer come back where the lattice has fewer points near the surface.
    """
    away = np.abs(shape.values)
    # Distances of a mask that were not shifted by half a voxel never come near 0.
    near = np.argwhere(away < max(0.75 * shape.spacing, 1.01 * float(away.min())))
    # An even share of a random order: the same points for the same shape, no pattern of the lattice.
    order = np.random.default_rng(len(near)).permutation(len(near))[: 2 * count]
    points: Points = np.asarray(near[order][:, ::-1] * float(shape.spacing) + shape.origin, dtype=np.float64)
    for _ in range(2):
        value, normal = value_and_normal(shape, points)
        points = points - value[:, None] * normal
    value, normal = value_and_normal(shape, points)
    good = np.flatnonzero(np.abs(value) < 0.3 * shape.spacing)[:count]
    return points[good], normal[good]


def value_and_normal(shape: Shape, points: Points) -> tuple[NDArray[np.float64], Points]:
    """Signed distance ``(n,)`` mm of ``points`` ``(n, 3)``, and the unit direction ``(n, 3)`` away from the solid."""
    step = 0.7 * shape.spacing
    offsets = np.concatenate([np.zeros((1, 3)), step * np.eye(3), -step * np.eye(3)])
    at = (points[None] + offsets[:, None]).astype(np.float32)
    values = shape.sample(at.reshape(-1, 3)).reshape(7, -1).astype(np.float64)
    slope = (values[1:4] - values[4:7]).T
    length = np.linalg.norm(slope, axis=1, keepdims=True)
    return values[0], slope / np.maximum(length, 1e-9)


def inverse(pose: Pose) -> Pose:
    """The map back, 4x4."""
    return np.asarray(np.linalg.inv(pose), dtype=np.float64)
