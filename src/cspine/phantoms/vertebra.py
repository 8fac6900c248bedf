"""Vertebrae C3 to T5 as solids with landmarks, drawn from their sizes.

Local frame: millimetres, origin at the centre of the body, x to the left, y to the back, z to the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.morphometry import FIRST_THORACIC, Dims
from cspine.phantoms.shapes import Float, Shape, ShapeBuilder, capsule, ellipsoid, slab, smooth_union, sphere

Point = NDArray[np.float64]
Landmarks = dict[str, Point]

# Width of the joint space between articular facets, half of it on each side (mm).
FACET_GAP = 1.8
SEAM = 2.2


@dataclass(frozen=True, slots=True)
class Wear:
    """How one vertebra has aged: 0 none to 1 severe; ``fused_below`` adds a bony bridge to the next vertebra."""

    osteophytes: float = 0.0
    facets: float = 0.0
    fused_below: bool = False


def mirrored(landmarks: Landmarks) -> Landmarks:
    """Add a ``_right`` landmark for each ``_left`` one."""
    flip = np.array([-1.0, 1.0, 1.0])
    right = {name[:-5] + "_right": at * flip for name, at in landmarks.items() if name.endswith("_left")}
    return landmarks | right


def landmarks_of(level: int, dims: Dims, pitch_up: float, pitch_down: float) -> Landmarks:
    """Where the parts of vertebra ``level`` (2..12) lie.

    Args:
        level: 2..7 = C2..C7, 8..12 = T1..T5.
        dims: its sizes.
        pitch_up: mm from this body centre to the one above.
        pitch_down: mm to the one below.
    """
    half_depth = (dims.depth_top + dims.depth_bottom) / 4
    half_width = (dims.width_top + dims.width_bottom) / 4
    pillar_x = dims.canal_width / 2 + dims.pillar_width / 2 - 0.4
    pillar_y = half_depth + 0.38 * dims.canal_depth + 0.5
    thoracic = level >= FIRST_THORACIC
    tip_y = half_depth + dims.spinous
    marks: Landmarks = {
        "body_superior": np.array([0, 0, dims.height / 2]),
        "body_inferior": np.array([0, 0, -dims.height / 2]),
        "body_anterior": np.array([0, -half_depth, 0]),
        "body_posterior": np.array([0, half_depth, 0]),
        "body_left": np.array([half_width, 0, 0]),
        "canal": np.array([0, half_depth + dims.canal_depth / 2, 0]),
        "canal_radius": np.full(3, min(dims.canal_depth, dims.canal_width) / 2),
        "pedicle_left": np.array([(half_width + pillar_x) / 2 - 1, (half_depth + pillar_y) / 2 - 1, 1.0]),
        "pillar_left": np.array([pillar_x, pillar_y, -0.5]),
        "facet_superior_left": np.array([pillar_x, pillar_y, pitch_up / 2 - FACET_GAP * 0.7]),
        "facet_inferior_left": np.array([pillar_x, pillar_y, -pitch_down / 2 + FACET_GAP * 0.7]),
        "lamina_left": np.array([pillar_x * 0.52, half_depth + dims.canal_depth * 0.86, -2.0]),
        "spinous_base": np.array([0, half_depth + dims.canal_depth + dims.lamina_thickness * 0.5, -2.5]),
        "spinous_tip": np.array([0, tip_y, -dims.spinous_drop]),
        "uncinate_left": np.array([half_width * 0.88, half_depth * 0.2, dims.height / 2 + dims.uncus * 0.7]),
        "transverse_tip_left": np.array([dims.transverse / 2, half_depth - 0.5, -2.5]),
    }
    if thoracic:
        marks["transverse_tip_left"] = np.array([dims.transverse / 2, pillar_y + 9.0, 3.0])
        marks["costal_left"] = np.array([half_width * 0.98, half_depth * 0.7, dims.height * 0.3])
    else:
        marks["foramen_left"] = np.array([half_width + 3.7, half_depth - 3.4, 0.0])
    return mirrored(marks)


def build_vertebra(
    rng: np.random.Generator,
    level: int,
    dims: Dims,
    marks: Landmarks,
    *,
    pitch_down: float,
    wear: Wear,
    spacing: float,
) -> Shape:
    """The solid of vertebra ``level`` (3..12).

    Args:
        rng: left-right differences and surface irregularity.
        level: 3..7 = C3..C7, 8..12 = T1..T5.
        dims: its sizes.
        marks: its landmarks, from ``landmarks_of``.
        pitch_down: mm to the body centre below, for a bony bridge.
        wear: its age.
        spacing: mm between lattice points.
    """
    tip = marks["spinous_tip"]
    reach = dims.transverse / 2 + 6
    builder = ShapeBuilder(
        (-reach, -dims.depth_bottom / 2 - 6, min(tip[2] - 8, -dims.height / 2 - pitch_down * 0.55)),
        (reach, tip[1] + 7, dims.height / 2 + 14),
        spacing,
    )
    add_body(builder, rng, dims, wear)
    if wear.fused_below:
        _add_bridge(builder, dims, pitch_down)
    for side in (1.0, -1.0):
        add_pillar(builder, rng, dims, marks, side, wear)
        if level >= FIRST_THORACIC:
            _add_thoracic_transverse(builder, marks, side, rng)
        else:
            add_cervical_transverse(builder, rng, dims, marks, side, slender=level == 7)
        add_lamina(builder, dims, marks, side)
    add_spinous(builder, rng, dims, marks, bifid=3 <= level <= 6 and rng.random() < 0.85)
    carve_canal(builder, dims, marks)
    roughen(builder, rng, 0.35)
    return builder.shape()


def add_body(builder: ShapeBuilder, rng: np.random.Generator, dims: Dims, wear: Wear, *, waist: float = 0.07) -> None:
    """The vertebral body: kidney-shaped section, waist, saddle endplates, uncinate processes, worn rims."""
    reach = max(dims.width_top, dims.width_bottom) / 2 + 4
    high = dims.height / 2
    where, points = builder.box((-reach, -reach, -high - 2), (reach, reach, high + dims.uncus + 1))
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    t = np.clip(z / dims.height + 0.5, -0.1, 1.1)
    rim = np.exp(-(((high - np.abs(z)) / 1.8) ** 2))
    angle = np.arctan2(x, -y)
    spur = 1 + wear.osteophytes * 0.11 * rim * (1 + np.cos(angle * rng.integers(1, 4) + rng.uniform(0, 6.3)))
    pinch = (1 - waist * (1 - (2 * t - 1) ** 2)) * spur
    half_width = (dims.width_bottom + (dims.width_top - dims.width_bottom) * t) / 2 * pinch
    half_depth = (dims.depth_bottom + (dims.depth_top - dims.depth_bottom) * t) / 2 * pinch
    power = np.where(y > 0, 3.4, 2.4).astype(np.float32)
    u, v = np.abs(x) / half_width, np.abs(y) / half_depth
    section = ((u**power + v**power) ** (1 / power) - 1) * np.minimum(half_width, half_depth)
    # The back wall is slightly hollow in the middle.
    section = section + np.where(y > 0, 0.9 * np.exp(-((x / 5.0) ** 2)), 0) * np.clip(y / half_depth, 0, 1)
    lift = np.clip((u - 0.55) / 0.35, 0, 1) ** 1.5 * np.clip(0.75 + 0.5 * y / half_depth, 0.15, 1)
    top = high + dims.uncus * lift - 0.8 * (1 - np.clip(u, 0, 1) ** 2) + 0.7 * np.clip(y / half_depth, -1, 1)
    lip = np.clip(-y / half_depth - 0.55, 0, 1) * 2.4
    bottom = -high + 1.5 * (1 - np.clip(v, 0, 1) ** 2) - lip
    solid = -smooth_union(-section, smooth_union(top - z, z - bottom, 1.0), 1.6)
    builder.unite(where, solid.astype(np.float32), 0.0)


def _add_bridge(builder: ShapeBuilder, dims: Dims, pitch_down: float) -> None:
    """Bone across the disc below: a block vertebra or an old surgical fusion."""
    low, high = (0, 0, -pitch_down * 0.55), (0, 0, 0)
    where, points = builder.box((-14, -14, -pitch_down * 0.6), (14, 14, 2))
    rod = slab(points, low, high, (dims.depth_bottom * 0.42, dims.width_bottom * 0.42),
               (dims.depth_bottom * 0.42, dims.width_bottom * 0.42), (0, 1, 0))  # fmt: skip
    flat = np.maximum(rod, -pitch_down * 0.5 - points[..., 2])
    builder.unite(where, flat, 1.0)


def add_pillar(
    builder: ShapeBuilder,
    rng: np.random.Generator,
    dims: Dims,
    marks: Landmarks,
    side: float,
    wear: Wear,
    *,
    open_top: bool = False,
) -> None:
    """Pedicle and articular pillar of one side: a column cut by the two facet planes."""
    name = "left" if side > 0 else "right"
    up, down = marks[f"facet_superior_{name}"], marks[f"facet_inferior_{name}"]
    at = marks[f"pillar_{name}"]
    swell = 1 + 0.12 * wear.facets * rng.random()
    half_x, half_y = dims.pillar_width / 2 * swell, dims.pillar_width / 2 * 1.02 * swell
    angle = np.radians(dims.facet_angle * rng.normal(1, 0.03))
    normal = np.array([0, np.sin(angle), np.cos(angle)], dtype=np.float32)
    margin = half_y * np.tan(angle)
    where, points = builder.box(
        (at[0] - half_x, at[1] - half_y, down[2] - margin), (at[0] + half_x, at[1] + half_y, up[2] + margin)
    )
    q = points - at.astype(np.float32)
    u, v = q[..., 0] / half_x, q[..., 1] / half_y
    # The section is turned so that its back faces outwards, as on axial slices.
    u, v = u + side * 0.3 * v, v - side * 0.3 * u
    column = ((np.abs(u) ** 2.6 + np.abs(v) ** 2.6) ** (1 / 2.6) - 1) * min(half_x, half_y)
    above = (points - up.astype(np.float32)) @ normal
    below = (down.astype(np.float32) - points) @ normal
    # Steep facets would otherwise run far up and down: the tips of the articular processes are rounded off.
    tips = np.abs(q[..., 2] - (up[2] + down[2] - 2 * at[2]) / 2) - (up[2] - down[2]) / 2 - 5.5
    caps = [-below if open_top else -above, -below, -tips]
    solid = -column
    for cap in caps:
        solid = smooth_union(solid, cap.astype(np.float32), 1.6)
    builder.unite(where, (-solid).astype(np.float32), SEAM)
    body = np.array([side * dims.width_bottom * 0.40, dims.depth_bottom * 0.36, 1.0])
    root = at + np.array([-side * 2.0, -2.0, 1.2])
    where, points = builder.box(np.minimum(body, root) - 6, np.maximum(body, root) + 6, margin=1)
    height, width = dims.pedicle_height / 2, dims.pedicle_width / 2
    builder.unite(where, slab(points, body, root, (height, width), (height, width), (0, 0, 1)), SEAM)


def add_cervical_transverse(
    builder: ShapeBuilder, rng: np.random.Generator, dims: Dims, marks: Landmarks, side: float, *, slender: bool
) -> None:
    """Anterior and posterior root, tubercles, the bar between them, and the foramen."""
    name = "left" if side > 0 else "right"
    hole, tip = marks[f"foramen_{name}"], marks[f"transverse_tip_{name}"]
    radius = (1.7 if slender else 2.9) * rng.uniform(0.85, 1.12)
    front = np.array([side * (abs(hole[0]) + 4.2), hole[1] - 4.6, -1.5])
    rear = tip.copy()
    thin = 1.3 if slender else 1.9
    parts = [
        (np.array([side * dims.width_bottom * 0.46, hole[1] - 4.2, -0.5]), front, 2.1, thin),
        (np.array([side * abs(hole[0]), hole[1] + 5.2, 0.0]), rear, 2.8, 2.4 if not slender else 3.2),
        (front, rear, 2.1, 2.3),
    ]
    low = np.minimum.reduce([p for a, b, *_ in parts for p in (a, b)]) - 4
    high = np.maximum.reduce([p for a, b, *_ in parts for p in (a, b)]) + 4
    where, points = builder.box(low, high, margin=1)
    solid = capsule(points, parts[0][0], parts[0][1], *parts[0][2:])
    for a, b, ra, rb in parts[1:]:
        solid = smooth_union(solid, capsule(points, a, b, ra, rb), 1.5)
    solid = smooth_union(solid, ellipsoid(points, front, (2.2, 2.0, 2.8)), 1.2)
    if not slender:
        ring = radius + 2.1
        solid = smooth_union(solid, ellipsoid(points, hole, (ring, ring, 3.6)), 1.0)
    builder.unite(where, solid, 1.6)
    builder.remove(where, capsule(points, hole + [0, 0, -9], hole + [0, 0, 9], radius), 0.8)


def _add_thoracic_transverse(builder: ShapeBuilder, marks: Landmarks, side: float, rng: np.random.Generator) -> None:
    name = "left" if side > 0 else "right"
    root, tip = marks[f"pillar_{name}"] + np.array([0, 2.0, 1.0]), marks[f"transverse_tip_{name}"]
    where, points = builder.box(np.minimum(root, tip) - 7, np.maximum(root, tip) + 7, margin=1)
    solid = slab(points, root, tip, (5.5, 4.2), (4.6, 4.4), (0, 0, 1))
    builder.unite(where, smooth_union(solid, sphere(points, tip, rng.uniform(4.2, 5.4)), 1.5), SEAM)


def add_lamina(builder: ShapeBuilder, dims: Dims, marks: Landmarks, side: float) -> None:
    """One lamina: a plate from the pillar to the root of the spinous process, leaning back."""
    name = "left" if side > 0 else "right"
    pillar, base = marks[f"pillar_{name}"], marks["spinous_base"]
    start = np.array([pillar[0] - side * dims.pillar_width * 0.22, pillar[1] + dims.pillar_width * 0.28, -1.0])
    middle = marks[f"lamina_{name}"]
    tall, thick = dims.lamina_height / 2, dims.lamina_thickness / 2
    where, points = builder.box(np.minimum(start, base) - tall - 2, np.maximum(start, base) + tall + 2, margin=0)
    up = (0, -0.32, 1)
    solid = slab(points, start, middle, (tall * 0.9, thick * 1.15), (tall, thick), up)
    solid = smooth_union(solid, slab(points, middle, base, (tall, thick), (tall, thick * 1.1), up), 1.5)
    builder.unite(where, solid, SEAM)


def add_spinous(
    builder: ShapeBuilder, rng: np.random.Generator, dims: Dims, marks: Landmarks, *, bifid: bool, stout: float = 1.0
) -> None:
    """The spinous process; ``bifid`` ends in two unequal tubercles."""
    base, tip = marks["spinous_base"], marks["spinous_tip"]
    sway = np.array([rng.normal(0, 1.2), 0, 0])
    end = tip + sway
    where, points = builder.box(np.minimum(base, end) - 9, np.maximum(base, end) + 9, margin=1)
    # Laminae grow taller down the chest, spinous processes do not: they stay apart.
    tall, thin = min(dims.lamina_height * 0.5, 5.4 * stout), 2.3 * stout
    neck = base + (end - base) * 0.55
    solid = slab(points, base, neck, (tall, 2.9 * stout), (tall * 0.72, thin), (0, 0.2, 1))
    solid = smooth_union(
        solid, slab(points, neck, end, (tall * 0.72, thin), (tall * 0.62, thin * 1.15), (0, 0.2, 1)), 1.5
    )
    if bifid:
        for side in (-1.0, 1.0):
            spread = rng.uniform(3.0, 5.2) * stout
            knob = end + np.array([side * spread, rng.uniform(-0.5, 2.5), -rng.uniform(1, 3)])
            solid = smooth_union(solid, capsule(points, end - (0, 3.5, 0), knob, 2.6 * stout, 1.9 * stout), 1.5)
    else:
        solid = smooth_union(solid, ellipsoid(points, end, (3.6, 3.2, tall * 0.8)), 1.5)
    builder.unite(where, solid, SEAM)


def carve_canal(builder: ShapeBuilder, dims: Dims, marks: Landmarks) -> None:
    """Keep the vertebral canal free: rounded triangle of the published width and depth."""
    center = marks["canal"].astype(np.float32)
    half_x, half_y = dims.canal_width / 2, dims.canal_depth / 2
    where, points = builder.box((-half_x, center[1] - half_y, -60), (half_x, center[1] + half_y, 60), margin=3)
    q = points - center
    # Wider in front, narrower behind.
    width = half_x * (1 - 0.36 * np.clip(q[..., 1] / half_y, -0.4, 1))
    k = ((np.abs(q[..., 0]) / width) ** 2.1 + (np.abs(q[..., 1]) / half_y) ** 2.1) ** (1 / 2.1)
    builder.remove(where, ((k - 1) * half_y).astype(np.float32), 1.0)


def roughen(builder: ShapeBuilder, rng: np.random.Generator, amount: float) -> None:
    """Irregular surface: smooth noise of about ``amount`` mm at 4 to 10 mm wavelength."""
    from scipy.ndimage import zoom

    shape = builder.values.shape
    for wave, part in ((9.0, 1.0), (4.0, 0.5)):
        step = wave / builder.spacing
        coarse = rng.standard_normal([max(4, int(np.ceil(n / step)) + 1) for n in shape]).astype(np.float32)
        factors = [n / m for n, m in zip(shape, coarse.shape, strict=True)]
        fine: Float = zoom(coarse, factors, order=1, grid_mode=True, mode="nearest")
        builder.values += np.float32(amount * part) * fine[: shape[0], : shape[1], : shape[2]]
