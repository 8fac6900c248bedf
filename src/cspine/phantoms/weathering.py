"""Age on bones that were not drawn from sizes: worn rims of the bodies, thickened facets."""

from __future__ import annotations

import numpy as np

from cspine.phantoms.shapes import ShapeBuilder
from cspine.phantoms.vertebra import Landmarks, Wear

# Growth (mm) of a rim, and of a joint, with severe wear.
_RIM_MM, _JOINT_MM = 2.2, 0.9


def weather(builder: ShapeBuilder, rng: np.random.Generator, level: int, marks: Landmarks, wear: Wear) -> None:
    """Let the solid grow where age makes bone grow, in place.

    Args:
        builder: lattice with the solid, local mm.
        rng: which parts of the rims grow.
        level: 1..7; C1 has no disc and grows at its joints only.
        marks: landmarks, local mm.
        wear: how far.
    """
    lobes, phase = int(rng.integers(1, 4)), float(rng.uniform(0, 2 * np.pi))
    share = float(rng.random())
    if wear.osteophytes > 0 and level > 1:
        for name in ("body_superior", "body_inferior") if level > 2 else ("body_inferior",):
            _grow_rim(builder, marks, name, wear.osteophytes, lobes, phase)
    for side in ("left", "right"):
        for name in (f"facet_superior_{side}", f"facet_inferior_{side}"):
            at = marks[name].astype(np.float32)
            where, points = builder.box(at, at, margin=10.0)
            near = np.exp(-((points - at) ** 2).sum(axis=-1) / np.float32(2 * 4.5**2))
            builder.values[where] -= np.float32(_JOINT_MM * wear.facets * share) * near


def _grow_rim(builder: ShapeBuilder, marks: Landmarks, name: str, amount: float, lobes: int, phase: float) -> None:
    """A spur along part of one end plate's rim, outwards, as ``add_body`` draws them."""
    front, back = marks["body_anterior"], marks["body_posterior"]
    left, right = marks["body_left"], marks["body_right"]
    middle, half = (front + back) / 2, (float(left[0] - right[0]) / 2, float(back[1] - front[1]) / 2)
    height = float(marks[name][2])
    where, points = builder.box(
        (middle[0] - half[0], middle[1] - half[1], height), (middle[0] + half[0], middle[1] + half[1], height), 5.0
    )
    x, y = points[..., 0] - np.float32(middle[0]), points[..., 1] - np.float32(middle[1])
    angle = np.arctan2(x, -y)
    radius = np.sqrt((x / half[0]) ** 2 + (y / half[1]) ** 2)
    rim = np.exp(-(((points[..., 2] - height) / 2.0) ** 2) - ((radius - 1.0) / 0.25) ** 2)
    # Spurs into the canal stay small.
    room = np.where(y > 0.7 * half[1], 0.45, 1.0)
    grown = _RIM_MM / 2 * amount * rim * room * (1 + np.cos(angle * lobes + phase)) / 2
    builder.values[where] -= grown.astype(np.float32)
