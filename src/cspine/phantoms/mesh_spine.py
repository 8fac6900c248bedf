"""A column whose C1..C7 come from meshes: the person's posture, thorax and wear, with these bones."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from cspine.phantoms.blending import Bones, MeshLibrary
from cspine.phantoms.morphometry import LAST_LEVEL, Dims
from cspine.phantoms.parts import Ball, frame_at
from cspine.phantoms.shapes import Shape, ShapeBuilder, slab
from cspine.phantoms.skull import CONDYLE
from cspine.phantoms.spine import (
    Anatomy,
    Spine,
    atlas_turn,
    column_poses,
    on_the_table,
    placed,
    upon_atlas,
    wear_of,
)
from cspine.phantoms.stacking import Solid, atlas_placed, kept_apart, stacked
from cspine.phantoms.template import Pose, inverse
from cspine.phantoms.vertebra import Landmarks, build_vertebra, landmarks_of

# The thorax follows C7's size against the parametric one, within reason.
_THORAX_SIZE = (0.88, 1.14)
# Discs between the end plates of real bones are this share of the parametric ones, whose plates are more hollow, and
# at least and at most this high (mm).
_DISC_SHARE, _DISC_MM = 0.88, (2.4, 5.8)
# Between the occipital condyles and C1 (mm).
CONDYLE_GAP_MM = 1.3


def thorax_size(bones: Bones, parametric: Landmarks) -> float:
    """Factor on T1..T5 so that they carry on from the C7 drawn."""

    def width(marks: Landmarks) -> float:
        return float(marks["body_left"][0] - marks["body_right"][0])

    return float(np.clip(width(bones.landmarks[7]) / width(parametric), *_THORAX_SIZE))


def resized(dims: Dims, factor: float) -> Dims:
    """All lengths times ``factor``; angles stay."""
    lengths = [entry.name for entry in fields(Dims) if entry.name != "facet_angle"]
    return replace(dims, **{name: getattr(dims, name) * factor for name in lengths})


def disc_heights(dims: dict[int, Dims]) -> dict[int, float]:
    """Height of each disc (mm) in the middle, below C2..C7."""
    return {level: float(np.clip(_DISC_SHARE * dims[level].disc, *_DISC_MM)) for level in range(2, 8)}


def joined(
    poses: dict[int, Pose], shapes: dict[int, Shape], landmarks: dict[int, Landmarks], discs: dict[int, float]
) -> dict[int, Pose]:
    """C2..C7 moved along the column until discs and joints are as wide as they should be; turns are kept.

    Args:
        poses: local → world of C2..T5 as posture has them.
        shapes: solids, local mm.
        landmarks: local mm.
        discs: mm, by the level above.
    """
    solids = {level: Solid.of(shapes[level], landmarks[level]) for level in range(2, 9)}
    out = {level: pose for level, pose in poses.items() if level >= 8}
    for level in range(7, 1, -1):
        relative = inverse(poses[level + 1]) @ poses[level]
        out[level] = out[level + 1] @ stacked(solids[level], solids[level + 1], relative, discs[level])
    return dict(sorted(out.items()))


def atlas_pose(rng: np.random.Generator, anatomy: Anatomy, bones: Bones, shapes: dict[int, Shape]) -> Pose:
    """C1 in C2's frame: turned about the dens from where the sets have it, joints open."""
    neutral = bones.atlas_on_axis
    marks = bones.landmarks[2]
    base, tip = marks["dens_base"], marks["dens_tip"]
    height = float(neutral[2, 3])
    dens = base + (tip - base) * np.clip((height - base[2]) / max(tip[2] - base[2], 1.0), 0, 1)
    turn = atlas_turn(rng, anatomy)
    place = dens + turn @ (neutral[:3, 3] - dens)
    relative = placed(turn @ neutral[:3, :3], place)
    atlas, axis = (Solid.of(shapes[level], bones.landmarks[level]) for level in (1, 2))
    return atlas_placed(atlas, axis, relative)


def separated(poses: dict[int, Pose], shapes: dict[int, Shape]) -> dict[int, Shape]:
    """Solids of C1..T1 with joint spaces all round: neighbours never touch."""
    out = dict(shapes)
    for level in range(1, 8):
        relative = inverse(poses[level + 1]) @ poses[level]
        out[level], out[level + 1] = kept_apart(out[level], out[level + 1], relative)
    return out


def bridged(shape: Shape, marks: Landmarks, pitch: float) -> Shape:
    """The solid with bone across the disc below, for a block vertebra."""
    reach = np.array([14.0, 14.0, 0.0])
    low = np.minimum(shape.low, np.array([0, 0, -0.6 * pitch]) - reach)
    builder = ShapeBuilder(low, np.maximum(shape.high, reach), shape.spacing)
    where, points = builder.box(low, np.maximum(shape.high, reach), margin=0.0)
    builder.values[where] = shape.sample(points)
    depth = float(marks["body_posterior"][1] - marks["body_anterior"][1]) * 0.42
    width = float(marks["body_left"][0] - marks["body_right"][0]) * 0.42
    middle = (marks["body_posterior"] + marks["body_anterior"]) / 2 * np.array([0, 1, 0])
    rod = slab(points, middle - (0, 0, 0.55 * pitch), middle, (depth, width), (depth, width), (0, 1, 0))
    builder.unite(where, np.maximum(rod, -0.5 * pitch - points[..., 2]).astype(np.float32), 1.0)
    return builder.shape()


def cupped(shape: Shape, head: Pose, marks: Landmarks, scale: float) -> Shape:
    """C1 with room for the occipital condyles as ``skull`` draws them.

    Args:
        shape: C1, local mm.
        head: frame of the skull → C1's frame.
        marks: of C1.
        scale: the person's.
    """
    values = shape.values.copy()
    axes = [shape.origin[a] + np.arange(shape.values.shape[2 - a], dtype=np.float32) * shape.spacing for a in range(3)]
    where = (axes[0][None, None, :], axes[1][None, :, None], axes[2][:, None, None])
    for side, sign in (("left", 1), ("right", -1)):
        at = head[:3, :3].T @ (marks[f"facet_superior_{side}"] - head[:3, 3]) / scale
        for center, radii, turn in CONDYLE:
            place = np.array([at[0], at[1], 0.0]) + center
            pose = frame_at(head, place * scale, (turn[0], sign * turn[1], sign * turn[2]))
            wide, deep, tall = (float(r * scale) for r in radii)
            np.maximum(values, np.float32(CONDYLE_GAP_MM) - Ball(pose, (wide, deep, tall)).distance(where), out=values)
    return Shape(values, shape.origin, shape.spacing)


def build_mesh_spine(
    meshes: MeshLibrary,
    anatomy: Anatomy,
    dims: dict[int, Dims],
    parametric: dict[int, Landmarks],
    chain: np.random.Generator,
    surface: np.random.Generator,
    spacing: float,
) -> Spine | None:
    """The column of a person with bones from ``meshes``, or None for one that stays parametric.

    Args:
        meshes: sets to draw from.
        anatomy: the person, from whose seed all chance about the bones comes.
        dims: parametric sizes of C2..T5; T1..T5 are drawn from them at C7's size.
        parametric: landmarks of the parametric vertebrae.
        chain: chance of the posture (left alone when None comes back).
        surface: chance of T1..T5's surfaces (left alone when None comes back).
        spacing: mm between lattice points of the solids.
    """
    chance = np.random.default_rng([anatomy.seed, 3])
    wear = {level: wear_of(chance, level, anatomy) for level in range(1, 8)}
    bones = meshes.draw(chance, anatomy, parametric, wear, spacing)
    if bones is None:
        return None
    discs = disc_heights(dims)
    chest = {level: resized(dims[level], thorax_size(bones, parametric[7])) for level in range(8, LAST_LEVEL + 1)}
    landmarks, pitch = _with_thorax(bones, chest, discs)
    shapes = dict(bones.shapes)
    for level, size in chest.items():
        shapes[level] = build_vertebra(
            surface, level, size, landmarks[level], pitch_down=pitch[level],
            wear=wear_of(surface, level, anatomy), spacing=spacing,
        )  # fmt: skip
    poses = joined(column_poses(chain, anatomy, pitch), shapes, landmarks, discs)
    poses[1] = poses[2] @ atlas_pose(chain, anatomy, bones, shapes)
    shapes = separated(poses, shapes)
    for level in anatomy.fused:
        shapes[level] = bridged(shapes[level], landmarks[level], pitch[level])
    seat = upon_atlas(anatomy, landmarks[1])
    shapes[1] = cupped(shapes[1], seat, landmarks[1], anatomy.scale)
    world = on_the_table(anatomy, poses[4])
    head = world @ poses[1] @ seat
    poses = {level: world @ pose for level, pose in sorted(poses.items())}
    return Spine(anatomy, poses, landmarks, shapes, head, from_meshes=True)


def _with_thorax(
    bones: Bones, chest: dict[int, Dims], discs: dict[int, float]
) -> tuple[dict[int, Landmarks], dict[int, float]]:
    """Landmarks of C1..T5, and mm from each body centre of C2..T5 to the one below."""
    landmarks = dict(bones.landmarks)
    tops = {level: float(bones.landmarks[level]["body_superior"][2]) for level in range(3, 8)}
    tops |= {level: size.height / 2 for level, size in chest.items()}
    pitch = {
        level: float(-bones.landmarks[level]["body_inferior"][2]) + discs[level] + tops[level + 1]
        for level in range(2, 8)
    }
    for level, size in chest.items():
        pitch[level] = size.height / 2 + size.disc + chest[min(level + 1, LAST_LEVEL)].height / 2
        landmarks[level] = landmarks_of(level, size, pitch[level - 1], pitch[level])
    return landmarks, pitch
