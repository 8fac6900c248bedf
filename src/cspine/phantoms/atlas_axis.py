"""C1 and C2, which look like no other vertebra. Frames and conventions as in ``vertebra.py``.

C1's origin is the midline point between anterior arch and dens; C2's is the centre of its body below the dens.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from cspine.phantoms.morphometry import AtlasDims, AxisDims, Dims
from cspine.phantoms.shapes import Float, Shape, ShapeBuilder, capsule, ellipsoid, rounded_box, slab, smooth_union
from cspine.phantoms.vertebra import (
    FACET_GAP,
    SEAM,
    Landmarks,
    Wear,
    add_body,
    add_lamina,
    add_pillar,
    add_spinous,
    carve_canal,
    landmarks_of,
    mirrored,
    roughen,
)

# The lateral atlanto-axial joints fall outwards by about this angle.
LATERAL_SLOPE = float(np.tan(np.radians(24)))
# The centre of the dens lies this far behind C1's origin (mm, mean man).
DENS_BEHIND_ORIGIN = 4.2


def atlas_landmarks(dims: AtlasDims, axis: AxisDims) -> Landmarks:
    """Where the parts of C1 lie."""
    mass_x = dims.mass_gap / 2 + dims.mass_width / 2
    marks: Landmarks = {
        "anterior_tubercle": np.array([0, -dims.front, 0]),
        "posterior_tubercle": np.array([0, dims.back, -1.0]),
        "anterior_arch_left": np.array([mass_x * 0.52, -dims.front * 0.62, 0]),
        "posterior_arch_left": np.array([mass_x * 0.82, dims.back * 0.68, 0]),
        "lateral_mass_left": np.array([mass_x, 5.5, -1.0]),
        "transverse_tip_left": np.array([dims.width / 2, 8.0, -2.0]),
        "foramen_left": np.array([mass_x + dims.mass_width / 2 + 1.2, 6.0, -1.0]),
        "facet_superior_left": np.array([mass_x - 1, 4.0, dims.mass_height * 0.38]),
        "facet_inferior_left": np.array([mass_x, 5.5, axis.shoulder_up - axis.arch_height + FACET_GAP]),
        "canal": np.array([0, dims.back * 0.52, 0]),
        "canal_radius": np.full(3, dims.mass_gap * 0.48),
    }
    return mirrored(marks)


def build_atlas(
    rng: np.random.Generator, dims: AtlasDims, axis: AxisDims, marks: Landmarks, *, spacing: float
) -> Shape:
    """The solid of C1: lateral masses, two arches, transverse processes with their foramina."""
    builder = ShapeBuilder(
        (-dims.width / 2 - 6, -dims.front - 5, -dims.mass_height), (dims.width / 2 + 6, dims.back + 6, 18), spacing
    )
    for side in (1.0, -1.0):
        _add_arch(builder, dims, side, front=True)
        _add_arch(builder, dims, side, front=False)
        _add_lateral_mass(builder, rng, dims, axis, marks, side)
        _add_atlas_transverse(builder, rng, marks, side)
    tubercle = marks["anterior_tubercle"] + np.array([0, 2.2, 0])
    where, points = builder.box(tubercle - 7, tubercle + 7)
    builder.unite(where, ellipsoid(points, tubercle, (4.0, 3.2, dims.anterior_height * 0.52)), 1.5)
    roughen(builder, rng, 0.3)
    return builder.shape()


def _arch_points(dims: AtlasDims, side: float, *, front: bool) -> list[Float]:
    mass_x = dims.mass_gap / 2 + dims.mass_width / 2
    middle_y, reach = (
        (6.0, dims.front - dims.anterior_thickness / 2) if front else (7.0, dims.back - dims.posterior_thickness / 2)
    )
    radius_y = middle_y + reach if front else reach - middle_y
    radius_x = mass_x * (1.0 if front else 1.16)
    turn = np.radians(np.linspace(0, 72, 6))
    direction = -1.0 if front else 1.0
    return [
        np.array([side * radius_x * np.sin(t), middle_y + direction * radius_y * np.cos(t), 0.0], dtype=np.float32)
        for t in turn
    ]


def _add_arch(builder: ShapeBuilder, dims: AtlasDims, side: float, *, front: bool) -> None:
    path = np.stack(_arch_points(dims, side, front=front))
    tall = (dims.anterior_height if front else dims.posterior_height) / 2
    thick = (dims.anterior_thickness if front else dims.posterior_thickness) / 2
    where, points = builder.box(path.min(axis=0) - tall, path.max(axis=0) + tall, margin=1)
    solid: Float | None = None
    for a, b in pairwise(path):
        piece = slab(points, a, b, (tall, thick), (tall, thick), (0, 0, 1))
        solid = piece if solid is None else smooth_union(solid, piece, 1.0)
    if solid is not None:
        builder.unite(where, solid, SEAM)


def _add_lateral_mass(
    builder: ShapeBuilder, rng: np.random.Generator, dims: AtlasDims, axis: AxisDims, marks: Landmarks, side: float
) -> None:
    name = "left" if side > 0 else "right"
    at = marks[f"lateral_mass_{name}"]
    half = np.array([dims.mass_width, dims.mass_depth, dims.mass_height * 1.5]) / 2 * rng.normal(1, 0.02, 3)
    where, points = builder.box(at - half, at + half)
    box = rounded_box(points, at, half, 4.5)
    out = side * points[..., 0]
    floor = (axis.shoulder_up - axis.arch_height + FACET_GAP) - LATERAL_SLOPE * (out - axis.shoulder_out)
    # The occipital condyle rests in a cup that opens upwards and inwards.
    top = marks[f"facet_superior_{name}"] + np.array([0, 0, 0.0])
    cup = ellipsoid(points, top + np.array([-side * 3.0, 0, 11.5]), (12.0, 15.0, 12.0))
    roof = top[2] + 3.5 + 0.28 * (out - abs(top[0])) - points[..., 2]
    solid = -box
    for limit in ((points[..., 2] - floor) * 0.91, cup, roof * 0.96):
        solid = smooth_union(solid, limit.astype(np.float32), 1.5)
    builder.unite(where, -solid, SEAM)


def _add_atlas_transverse(builder: ShapeBuilder, rng: np.random.Generator, marks: Landmarks, side: float) -> None:
    name = "left" if side > 0 else "right"
    hole, tip, mass = marks[f"foramen_{name}"], marks[f"transverse_tip_{name}"], marks[f"lateral_mass_{name}"]
    radius = 3.1 * rng.uniform(0.88, 1.1)
    ahead, behind = hole + (0, -radius - 1.8, -0.5), hole + (0, radius + 2.2, 0)
    where, points = builder.box(np.minimum(mass, tip) - 10, np.maximum(mass, tip) + 10, margin=0)
    solid = capsule(points, mass + (0, -4.5, 0), ahead + (side * 2, 0, 0), 3.2, 2.0)
    solid = smooth_union(solid, capsule(points, ahead + (side * 2, 0, 0), tip, 2.0, 3.0), 1.2)
    solid = smooth_union(solid, capsule(points, mass + (0, 4, 0), behind + (side, 0, 0), 3.4, 2.4), 1.2)
    solid = smooth_union(solid, capsule(points, behind + (side, 0, 0), tip, 2.4, 3.2), 1.2)
    builder.unite(where, solid, 1.8)
    builder.remove(where, capsule(points, hole + (0, 0, -9), hole + (0, 0, 9), radius), 0.8)


def axis_landmarks(dims: Dims, axis: AxisDims, pitch_down: float) -> Landmarks:
    """Where the parts of C2 lie."""
    marks = landmarks_of(2, dims, 0.0, pitch_down)
    shoulder = np.array([axis.shoulder_out, 3.0, axis.shoulder_up])
    pillar = marks["pillar_left"]
    marks |= {
        "dens_base": np.array([0, 0.4, axis.dens_waist]),
        "dens_tip": np.array([0, 1.2, axis.dens_height]),
        "pars_left": (shoulder + pillar) / 2 + np.array([0, 1.0, -3.0]),
        "pedicle_left": (shoulder + pillar) / 2 + np.array([-1.5, -1.0, -2.5]),
        "facet_superior_left": shoulder,
        "foramen_left": np.array([axis.shoulder_out + 2.0, 5.0, -1.0]),
        "transverse_tip_left": np.array([dims.transverse / 2, 9.0, -6.0]),
        "pillar_left": pillar + np.array([0, 1.5, -3.0]),
        "lamina_left": marks["lamina_left"] + np.array([0, 0, -3.5]),
        "spinous_base": marks["spinous_base"] + np.array([0, 0, -3.0]),
        "spinous_tip": marks["spinous_tip"],
    }
    return mirrored({name: at for name, at in marks.items() if not name.endswith("_right")})


def build_axis(
    rng: np.random.Generator,
    dims: Dims,
    axis: AxisDims,
    marks: Landmarks,
    *,
    pitch_down: float,
    wear: Wear,
    spacing: float,
) -> Shape:
    """The solid of C2: body, dens, sloping shoulders, pars, inferior facets, stout laminae, bifid spinous process."""
    tip = marks["spinous_tip"]
    reach = dims.transverse / 2 + 5
    builder = ShapeBuilder(
        (-reach, -15, min(tip[2] - 9, -dims.height / 2 - pitch_down * 0.55)),
        (reach, tip[1] + 8, axis.dens_height + 5),
        spacing,
    )
    add_body(builder, rng, dims, wear, waist=0.16)
    _add_dens(builder, axis, marks)
    for side in (1.0, -1.0):
        _add_shoulder(builder, axis, marks, side)
        add_pillar(builder, rng, dims, marks, side, wear, open_top=True)
        _add_axis_transverse(builder, rng, marks, side)
        add_lamina(builder, dims, marks, side)
    add_spinous(builder, rng, dims, marks, bifid=True, stout=1.35)
    carve_canal(builder, dims, marks)
    roughen(builder, rng, 0.3)
    return builder.shape()


def _add_dens(builder: ShapeBuilder, axis: AxisDims, marks: Landmarks) -> None:
    base, tip = marks["dens_base"], marks["dens_tip"]
    half_x, half_y = axis.dens_width / 2, axis.dens_depth / 2
    where, points = builder.box((-12, -10, 0), (12, 12, tip[2] + 2))
    neck = slab(points, (0, 0, 4), base, (half_y * 1.12, half_x * 1.35), (half_y * 0.92, half_x * 0.92), (0, 1, 0))
    middle = (base + tip) / 2 + np.array([0, 0, 0.5])
    head = ellipsoid(points, middle, (half_x, half_y, (tip[2] - base[2]) / 2 + 0.8))
    builder.unite(where, smooth_union(neck, head, 3.0), 3.0)


def _add_shoulder(builder: ShapeBuilder, axis: AxisDims, marks: Landmarks, side: float) -> None:
    name = "left" if side > 0 else "right"
    at = marks[f"facet_superior_{name}"]
    half = np.array([axis.shoulder_width, axis.shoulder_depth, 15.0]) / 2
    center = at - np.array([0, 0, 6.0])
    where, points = builder.box(center - half, center + half)
    box = rounded_box(points, center, half, 4.5)
    out = side * points[..., 0]
    roof = axis.shoulder_up - LATERAL_SLOPE * (out - axis.shoulder_out) - points[..., 2]
    solid = smooth_union(-box, (roof * 0.91).astype(np.float32), 1.2)
    builder.unite(where, -solid, 3.0)
    pars, pillar = marks[f"pars_{name}"], marks[f"pillar_{name}"]
    start = center + np.array([0, 2.0, 0])
    where, points = builder.box(np.minimum(start, pillar) - 8, np.maximum(start, pillar) + 8, margin=0)
    solid = smooth_union(capsule(points, start, pars, 5.2, 4.3), capsule(points, pars, pillar, 4.3, 4.8), 1.5)
    builder.unite(where, solid, SEAM)


def _add_axis_transverse(builder: ShapeBuilder, rng: np.random.Generator, marks: Landmarks, side: float) -> None:
    name = "left" if side > 0 else "right"
    tip, hole = marks[f"transverse_tip_{name}"], marks[f"foramen_{name}"]
    root = marks[f"pars_{name}"] + np.array([0, -1.0, -2.0])
    where, points = builder.box(np.minimum(root, tip) - 12, np.maximum(root, tip) + 12, margin=0)
    builder.unite(where, capsule(points, root, tip, 3.2, 2.3), 1.5)
    front = np.array([hole[0] + side * 1.0, hole[1] - 5.0, -3.0])
    builder.unite(where, capsule(points, front, tip, 2.0, 2.0), 1.5)
    radius = 2.7 * rng.uniform(0.85, 1.1)
    builder.remove(where, capsule(points, hole + (-side * 1.0, 0, -9), hole + (side * 3.0, 0, 7), radius), 0.8)
