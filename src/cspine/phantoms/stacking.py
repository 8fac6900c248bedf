"""Vertebrae of any shape put on top of each other: discs as high as wanted, joints neither jammed nor gaping.

Sizes that were drawn together fit by construction; bones from meshes and mixtures do not, so neighbours are brought
together by the distances between their surfaces, and what still overlaps is taken off both, as joints do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.shapes import Float, Shape
from cspine.phantoms.template import Points, Pose, inverse, surface_of
from cspine.phantoms.vertebra import Landmarks

# Wanted width of joint spaces (mm): between facets, between C1 and C2 at the side, between C1's arch and the dens.
FACET_MM, LATERAL_MM, DENS_MM = 1.5, 2.2, 1.5
# Bones are never closer than this (mm): cartilage on both sides.
LEAST_GAP_MM = 1.0
# Bodies keep this distance at their rims (mm).
RIM_MM = 1.3
# How far a vertebra may be shifted from where posture puts it, forward or back and up or down (mm).
_SLIDE_MM, _LIFT_MM = 2.5, 1.6
# And how far it may lean to a side (radians) for joints as wide left as right.
_LEAN = 0.045
_ATLAS_SLIDE_MM, _ATLAS_LIFT_MM = 3.0, 4.0
_POINTS = 2500
_FACET_REACH_MM = 7.5


@dataclass(frozen=True)
class Solid:
    """A vertebra: solid, landmarks, and points on its surface, local mm."""

    shape: Shape
    marks: Landmarks
    surface: Points

    @classmethod
    def of(cls, shape: Shape, marks: Landmarks) -> Solid:
        """With its surface points."""
        return cls(shape, marks, surface_of(shape, _POINTS)[0])

    def near(self, name: str, reach: float) -> Points:
        """Surface points within ``reach`` mm of a landmark."""
        return np.asarray(self.surface[np.linalg.norm(self.surface - self.marks[name], axis=1) < reach])


def stacked(upper: Solid, lower: Solid, relative: Pose, disc: float) -> Pose:
    """Upper → lower frame with a disc ``disc`` mm high and open facet joints on both sides.

    The vertebra slides and rises until both fit, and leans a little to a side until left and right are alike.

    Args:
        upper: the vertebra above (C2..C7).
        lower: the one below.
        relative: upper → lower frame as posture has it, 4x4.
        disc: mm between the end plates, in the middle of the body.
    """
    pose = relative.copy()
    start, lean = pose[:3, 3].copy(), 0.0
    plate, rim = _plate_points(upper), _rim_points(upper)
    joints = [upper.near(f"facet_inferior_{side}", _FACET_REACH_MM) for side in ("left", "right")]
    apart = float(upper.marks["facet_inferior_left"][0] - upper.marks["facet_inferior_right"][0])
    for _ in range(3):
        pose[2, 3] += disc - _least(lower, pose, plate, 50)
    start[2] = pose[2, 3]
    for _ in range(5):
        left, right = (_least(lower, pose, joint) for joint in joints)
        step = float(np.clip(lean + 0.6 * (left - right) / apart, -_LEAN, _LEAN)) - lean
        lean += step
        pose[:3, :3] = pose[:3, :3] @ _leaning(step)
        facets = (left + right) / 2
        # Facets look up and back at about 45 degrees: a step back opens them by some 0.7 of its length.
        wanted = pose[1, 3] - start[1] + (FACET_MM - facets) / 0.9
        pose[1, 3] = start[1] + np.clip(wanted, -_SLIDE_MM, _SLIDE_MM)
        stuck = 0.4 * (FACET_MM - facets) if abs(wanted) > _SLIDE_MM else 0.0
        room = disc - _least(lower, pose, plate, 50)
        jammed = RIM_MM - _least(lower, pose, rim)
        wanted = pose[2, 3] - start[2] + max(jammed, 0.5 * room + stuck)
        pose[2, 3] = start[2] + np.clip(wanted, -_LIFT_MM / 2, _LIFT_MM)
    return pose


def _leaning(angle: float) -> NDArray[np.float64]:
    """Turn about y by ``angle`` radians: the left side goes down."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def atlas_placed(atlas: Solid, axis: Solid, relative: Pose) -> Pose:
    """C1 → C2 frame with open joints at the sides and round the dens; turns are kept."""
    pose = relative.copy()
    start = pose[:3, 3].copy()
    joints = [atlas.near(f"facet_inferior_{side}", 8.0) for side in ("left", "right")]
    arch = atlas.near("anterior_tubercle", 9.0)
    for _ in range(5):
        sides = float(np.mean([_least(axis, pose, joint) for joint in joints]))
        pose[2, 3] = start[2] + np.clip(
            pose[2, 3] - start[2] + 0.9 * (LATERAL_MM - sides), -_ATLAS_LIFT_MM, _ATLAS_LIFT_MM
        )
        front = _least(axis, pose, arch)
        pose[1, 3] = start[1] + np.clip(
            pose[1, 3] - start[1] - 0.9 * (DENS_MM - front), -_ATLAS_SLIDE_MM, _ATLAS_SLIDE_MM
        )
    return pose


def kept_apart(upper: Shape, lower: Shape, relative: Pose, gap: float = LEAST_GAP_MM) -> tuple[Shape, Shape]:
    """Both solids with bone taken off where they are closer than ``gap`` mm, half from each."""
    return _cut(upper, lower, relative, gap), _cut(lower, upper, inverse(relative), gap)


def _cut(shape: Shape, other: Shape, relative: Pose, gap: float) -> Shape:
    """``shape`` less what lies nearer than ``gap`` to ``other``, up to the surface midway between them."""
    index = np.argwhere(shape.values < gap + shape.spacing)
    points = index[:, ::-1] * np.float32(shape.spacing) + shape.origin
    there = (points @ relative[:3, :3].T.astype(np.float32) + relative[:3, 3].astype(np.float32)).astype(np.float32)
    inside = ((there > other.low - gap) & (there < other.high + gap)).all(axis=1)
    index, there = index[inside], there[inside]
    if not len(index):
        return shape
    where = tuple(index.T)
    own = shape.values[where]
    limit = (own - other.sample(there) + np.float32(gap)) / 2
    if not (limit > own).any():
        return shape
    values: Float = shape.values.copy()
    values[where] = np.maximum(own, limit)
    return Shape(values, shape.origin, shape.spacing)


def _plate_points(upper: Solid) -> Points:
    """Surface points of the lower end plate, away from its rim."""
    marks = upper.marks
    half = float(marks["body_left"][0] - marks["body_right"][0]) / 2
    y = (marks["body_anterior"][1] + marks["body_posterior"][1]) / 2
    deep = float(marks["body_posterior"][1] - marks["body_anterior"][1]) / 2
    off = upper.surface - np.array([0.0, y, float(marks["body_inferior"][2])])
    inner = (np.abs(off[:, 0]) < 0.6 * half) & (np.abs(off[:, 1]) < 0.6 * deep) & (off[:, 2] < 3.5)
    return np.asarray(upper.surface[inner])


def _rim_points(upper: Solid) -> Points:
    """Surface points of the lower half of the body, uncovertebral joints left out (those are kept apart later)."""
    marks = upper.marks
    half = abs(float(marks["body_left"][0])) * 0.75
    back = float(marks["body_posterior"][1])
    x, y, z = upper.surface.T
    return np.asarray(upper.surface[(np.abs(x) < half) & (y < back) & (z < 0)])


def _least(lower: Solid, pose: Pose, points: Points, percent: float = 5.0) -> float:
    """Distance (mm) of the upper vertebra's ``points`` to the lower solid: of the closest few, or a percentile."""
    if not len(points):
        return FACET_MM
    there = (points @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32)
    return float(np.percentile(lower.shape.sample(there), percent))
