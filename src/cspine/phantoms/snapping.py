"""Landmarks that a surface defines, moved onto the surface: end plates and walls of the body, middle of the canal.

Distances are asked for in the local frame of the phantoms (mm; x left, y back, z head, origin near the body centre).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.phantoms.template import Points, Template, template_of
from cspine.phantoms.vertebra import Landmarks

Distance = Callable[[Points], NDArray[np.float64]]

# How far (mm) a landmark may be moved onto the surface; farther off, the surface is another one.
_REACH_MM = 5.0
_STEP_MM = 0.25
# Rays go out at these places (mm) across their direction, and the middle answer counts.
_SPREAD_MM = 1.5
# Landmark → direction in which the surface is looked for; x is mirrored for the right side.
_WALLS: dict[str, tuple[float, float, float]] = {
    "body_superior": (0, 0, 1),
    "body_inferior": (0, 0, -1),
    "body_anterior": (0, -1, 0),
    "body_posterior": (0, 1, 0),
    "body_left": (1, 0, 0),
    "body_right": (-1, 0, 0),
}
# C2 has no upper end plate: there the body goes on into the dens.
_WALLS_OF_C2 = ("body_inferior", "body_anterior", "body_posterior")


def snapped(level: int, marks: Landmarks, distance: Distance, size: float) -> Landmarks:
    """``marks`` with the body's walls and the canal moved to where the solid has them.

    Args:
        level: 1..7.
        marks: local mm.
        distance: signed distance ``(n,)`` of local points ``(n, 3)``.
        size: of the solid against the mean man's.
    """
    out = dict(marks)
    for name, offset in _offsets(level).items():
        along = np.asarray(_WALLS[name], dtype=np.float64)
        place = _crossing(distance, marks[name] - size * offset * along, along)
        if place is not None:
            out[name] = place + size * offset * along
    if level == 1:
        return out  # the dens stands in the middle of the ring: the cord does not run where C1 is widest
    centre, radius = _widest(distance, marks["canal"], float(marks["canal_radius"][0]))
    out["canal"], out["canal_radius"] = centre, np.full(3, radius)
    return out


def end_plate_tilt(level: int, marks: Landmarks, distance: Distance) -> float:
    """How much more the end plates rise to the back (radians, mean of both) than the template's; 0 when not seen.

    Args:
        level: 3..7.
        marks: local mm.
        distance: signed distance ``(n,)`` of local points ``(n, 3)``.
    """
    here = _tilt(marks, distance)
    return 0.0 if here is None else here - _tilt_of_template(level)


@lru_cache(maxsize=8)
def _tilt_of_template(level: int) -> float:
    template = template_of(level)
    return _tilt(template.marks, _distance_to(template)) or 0.0


def _tilt(marks: Landmarks, distance: Distance) -> float | None:
    half = float(marks["body_posterior"][1] - marks["body_anterior"][1]) / 2
    tilts = []
    for name in ("body_superior", "body_inferior"):
        along = np.asarray(_WALLS[name], dtype=np.float64)
        ends = [_crossing(distance, marks[name] + np.array([0, s * half, 0]), along) for s in (-0.5, 0.5)]
        if ends[0] is not None and ends[1] is not None:
            tilts.append(np.arctan2(ends[1][2] - ends[0][2], half))
    return float(np.mean(tilts)) if tilts else None


def _distance_to(template: Template) -> Distance:
    return lambda points: template.shape.sample(points.astype(np.float32)).astype(np.float64)


@lru_cache(maxsize=8)
def _offsets(level: int) -> dict[str, float]:
    """How far beyond the surface (mm) the template has each of these landmarks: end plates are hollow."""
    if level == 1:
        return {}
    template = template_of(level)
    distance = _distance_to(template)
    found = {}
    for name in _WALLS if level > 2 else _WALLS_OF_C2:
        along = np.asarray(_WALLS[name], dtype=np.float64)
        place = _crossing(distance, template.marks[name], along)
        if place is not None:
            found[name] = float((template.marks[name] - place) @ along)
    return found


def _crossing(distance: Distance, near: ArrayLike, along: Points) -> Points | None:
    """Where rays along ``along`` leave the solid closest to ``near``; None when they do not within reach."""
    start = np.asarray(near, dtype=np.float64)
    across = np.eye(3)[np.abs(along) < 0.5]
    starts = [start, *(start + s * _SPREAD_MM * a for a in across for s in (-1, 1))]
    steps = np.arange(-_REACH_MM, _REACH_MM + _STEP_MM, _STEP_MM)
    found = []
    for at in starts:
        value = distance(at + steps[:, None] * along)
        leaves = np.flatnonzero((value[:-1] < 0) & (value[1:] >= 0))
        if len(leaves):
            places = steps[leaves] + _STEP_MM * value[leaves] / (value[leaves] - value[leaves + 1])
            found.append(places[np.argmin(np.abs(places))])
    if len(found) < 3:
        return None
    return np.asarray(start + np.median(found) * along)


def _widest(distance: Distance, near: Points, expected: float) -> tuple[Points, float]:
    """The point of the axial plane within 4 mm of ``near`` that is farthest from bone, and how far that is."""
    offsets = np.arange(-4.0, 4.01, 0.5)
    x, y = np.meshgrid(offsets, offsets, indexing="ij")
    points = near + np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    # A ring that is open at the back must not draw the middle out of it: stay near where it was, within reason.
    value = np.minimum(distance(points), 1.2 * expected) - 0.02 * np.hypot(x, y).ravel()
    best = int(np.argmax(value))
    radius = float(distance(points[best : best + 1])[0])
    return points[best], float(np.clip(radius, 0.6 * expected, 1.2 * expected))
