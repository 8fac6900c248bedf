"""Landmarks of a vertebra known only as a solid: a mesh, or a mask drawn on a CT.

The mean parametric vertebra of the level is laid over the solid, first rigidly with one size, then with an affine
map, then with a smooth warp, each by iterated least squares on distances: from the template's surface to the solid
and from the solid's surface to the template (point to plane; Chen and Medioni, "Object modelling by registration of
multiple range images", 1992). Distances are weighted down as they grow (Welsch), so that parts which the solid
lacks do not pull. Landmarks are then carried over and the ones that a surface defines are moved onto it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import Level
from cspine.errors import ShapeError
from cspine.phantoms.overlay import Overlay, Warp
from cspine.phantoms.shapes import Shape
from cspine.phantoms.snapping import Distance, end_plate_tilt, snapped
from cspine.phantoms.template import LENGTHS, Points, Pose, Template, inverse, template_of
from cspine.phantoms.vertebra import Landmarks

# A fit whose typical distance (mm) is larger than this is refused.
WORST_FIT_MM = 2.2


@dataclass(frozen=True)
class Fit:
    """A template laid over a solid.

    Attributes:
        level: 1..7.
        marks: landmarks in the frame of the solid, mm (``canal_radius`` is a length).
        frame: 4x4, local frame of the phantoms → frame of the solid, without scaling: origin at the centre of the
            body (C1: midline point between anterior arch and dens; C2: body below the dens), x left, y back, z head.
        surface: ``(n, 3)`` template surface points in the frame of the solid, in the template's order.
        error_mm: typical distance between the two surfaces where both exist, mm.
        covered: share of the template's surface that lies on the solid (within 2 mm), 0..1.
        size: size against the mean man's.
    """

    level: int
    marks: Landmarks
    frame: Pose
    surface: Points
    error_mm: float
    covered: float
    size: float

    @property
    def local_marks(self) -> Landmarks:
        """Landmarks in the local frame, mm."""
        return moved(self.marks, inverse(self.frame))


def fit_landmarks(level: int, shape: Shape) -> Landmarks:
    """All landmarks of the parametric vertebra of ``level``, found on ``shape``, in the frame of ``shape`` (mm).

    Args:
        level: 1..7 = C1..C7.
        shape: signed distances of the vertebra, upright within about 40 degrees, x to the left, y to the back.

    Raises:
        ShapeError: nothing like that vertebra.
    """
    return fit_vertebra(level, shape).marks


def local_frame(level: int, shape: Shape) -> Pose:
    """Local frame → frame of ``shape`` (4x4): body centre and axes. See ``Fit.frame``.

    Raises:
        ShapeError: nothing like that vertebra.
    """
    return fit_vertebra(level, shape).frame


def fit_vertebra(level: int, shape: Shape, *, worst_mm: float = WORST_FIT_MM) -> Fit:
    """Lay the template of ``level`` over ``shape``. About 0.3 s.

    Args:
        level: 1..7 = C1..C7.
        shape: signed distances, upright within about 40 degrees, x to the left, y to the back, z to the head.
        worst_mm: a fit with a larger typical distance is refused.

    Raises:
        ShapeError: no surface, or nothing like that vertebra.
    """
    name = Level(level).name
    template = template_of(level)
    task = Overlay.of(shape, template)
    affine = task.affine(task.best_start())
    warp = task.warped(affine)
    surface = warp(template.surface)
    error, covered = task.agreement(surface)
    size = float(np.cbrt(max(np.linalg.det(affine.weights[1:4]), 1e-9)))
    if not np.isfinite(error) or error > worst_mm or not 0.55 < size < 1.6:
        raise ShapeError(
            f"the solid does not look like {name}: {error:.1f} mm from the mean vertebra at {size:.2f} times its size",
            fix="Check level, units (mm) and orientation (x left, y back, z to the head).",
        )
    carried = _carried(template, warp, size)
    if shape.sample(carried["canal"][None].astype(np.float32))[0] < 0:
        raise ShapeError(f"the solid has no canal where {name} has it", fix="Give one hollow vertebra.")
    frame = _levelled(level, _frame(template, warp), carried, shape)
    marks = moved(snapped(level, moved(carried, inverse(frame)), _within(shape, frame), size), frame)
    frame = _centred(level, frame, marks)
    return Fit(level, marks, frame, surface, error, covered, size)


def moved(marks: Landmarks, pose: Pose) -> Landmarks:
    """Landmarks in another frame: ``pose`` (4x4) maps the old one to the new."""
    return {
        name: at.copy() if name in LENGTHS else np.asarray(pose[:3, :3] @ at + pose[:3, 3])
        for name, at in marks.items()
    }


def _carried(template: Template, warp: Warp, size: float) -> Landmarks:
    places = [name for name in template.marks if name not in LENGTHS]
    at = warp(np.array([template.marks[name] for name in places]))
    lengths = {name: template.marks[name] * size for name in LENGTHS}
    return dict(zip(places, at, strict=True)) | lengths


def _frame(template: Template, warp: Warp) -> Pose:
    """The rigid frame that fits the body best, its origin where the template's origin goes."""
    body = template.surface[template.body]
    there = warp(body)
    a, b = body - body.mean(axis=0), there - there.mean(axis=0)
    u, _, vt = np.linalg.svd(b.T @ a)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    pose = np.eye(4)
    pose[:3, :3] = turn
    pose[:3, 3] = warp(np.zeros((1, 3)))[0]
    return pose


def _levelled(level: int, frame: Pose, marks: Landmarks, shape: Shape) -> Pose:
    """The frame of C3..C7 nodded until the end plates lie as level as the template's."""
    if level < 3:
        return frame
    for _ in range(2):
        local = moved(marks, inverse(frame))
        tilt = float(np.clip(end_plate_tilt(level, local, _within(shape, frame)), -0.35, 0.35))
        turn = np.eye(4)
        turn[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
        frame = frame @ turn
    return frame


def _centred(level: int, frame: Pose, marks: Landmarks) -> Pose:
    """The origin of C3..C7 put midway between the end plates and between the walls of the body."""
    if level < 3:
        return frame
    names = ("body_superior", "body_inferior"), ("body_anterior", "body_posterior"), ("body_left", "body_right")
    local = moved(marks, inverse(frame))
    z, y, x = ((local[a] + local[b]) / 2 for a, b in names)
    out = frame.copy()
    out[:3, 3] += frame[:3, :3] @ np.array([x[0], y[1], z[2]])
    return out


def _within(shape: Shape, frame: Pose) -> Distance:
    """Signed distance of ``shape`` at points of the local frame."""

    def distance(points: Points) -> NDArray[np.float64]:
        there = points @ frame[:3, :3].T + frame[:3, 3]
        return shape.sample(there.astype(np.float32)).astype(np.float64)

    return distance
