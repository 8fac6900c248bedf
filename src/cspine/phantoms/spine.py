"""One person's cervical column: who they are, the shape of each vertebra, and where it lies.

World: LPS millimetres, the body of C4 near the origin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.atlas_axis import (
    DENS_BEHIND_ORIGIN,
    atlas_landmarks,
    axis_landmarks,
    build_atlas,
    build_axis,
)
from cspine.phantoms.morphometry import (
    FEMALE_SCALE,
    LAST_LEVEL,
    Dims,
    sample_atlas,
    sample_axis,
    sample_dims,
    sample_habitus,
)
from cspine.phantoms.shapes import Shape
from cspine.phantoms.vertebra import Landmarks, Wear, build_vertebra, landmarks_of

if TYPE_CHECKING:
    from cspine.phantoms.blending import MeshLibrary

Pose = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What varies from person to person.

    Attributes:
        sex: shifts size and neck build.
        age: years; drives degeneration and bone density.
        scale: linear size of bones, 1 = mean man.
        lordosis_deg: C2 to C7, negative for kyphosis.
        t1_slope_deg: forward tilt of the upper endplate of T1.
        scoliosis_deg: sideways bend, whole column.
        head_rotation_deg: to the left; most of it between C1 and C2.
        head_flexion_deg: of the skull on C1, chin down positive.
        head_tilt_deg: towards the left shoulder.
        body_rotation_deg: turn, tilt and nod of the whole patient on the table (z, y, x).
        degeneration: 0..1.
        density: factor on the bone's HU, 1 = 30 years.
        fat: build, 0 thin to 1 obese.
        contrast: iodine in the vessels.
        cervical_rib: ribs at C7.
        unfused_apophysis: levels with an ossicle at the tip of the spinous process.
        fused: upper level of each fused pair.
        intubated: an endotracheal tube.
        dental_metal: fillings or crowns.
        seed: for everything finer than these.
    """

    sex: Literal["female", "male"]
    age: float
    scale: float
    lordosis_deg: float
    t1_slope_deg: float
    scoliosis_deg: float
    head_rotation_deg: float
    head_flexion_deg: float
    head_tilt_deg: float
    body_rotation_deg: tuple[float, float, float]
    degeneration: float
    density: float
    fat: float
    contrast: bool
    cervical_rib: bool
    unfused_apophysis: tuple[int, ...]
    fused: tuple[int, ...]
    intubated: bool
    dental_metal: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Spine:
    """Vertebrae in place.

    Attributes:
        anatomy: the person.
        poses: local → world, 4x4, keyed by label 1..7 (C1..C7) and 8..12 (T1..T5).
        landmarks: named points in local mm, a vertebra.
        shapes: the solids, in local mm.
        head: local → world of the skull; origin midway between the occipital condyles' lowest points.
        from_meshes: whether C1..C7 come from meshes.
    """

    anatomy: Anatomy
    poses: dict[int, Pose]
    landmarks: dict[int, Landmarks]
    shapes: dict[int, Shape]
    head: Pose
    from_meshes: bool = False


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random adult: trauma patients are more often men, of every age."""
    male = rng.random() < 0.58
    age = float(np.clip(rng.normal(52, 21), 16, 95))
    wear = float(np.clip((age - 35) / 50 + rng.normal(0, 0.22), 0, 1))
    posture = rng.random()
    return Anatomy(
        sex="male" if male else "female",
        age=age,
        scale=float(np.clip(rng.normal(1.0, 0.055), 0.86, 1.16)) * (1.0 if male else FEMALE_SCALE),
        lordosis_deg=float(np.clip(rng.normal(14, 12), -18, 42)),
        t1_slope_deg=float(np.clip(rng.normal(22, 8), 4, 45)),
        scoliosis_deg=float(rng.normal(0, 4)),
        head_rotation_deg=float(rng.normal(0, 5 if posture < 0.8 else 18)),
        head_flexion_deg=float(rng.normal(0, 7)),
        head_tilt_deg=float(rng.normal(0, 4)),
        body_rotation_deg=(float(rng.normal(0, 4)), float(rng.normal(0, 3)), float(rng.normal(0, 5))),
        degeneration=wear,
        density=float(np.clip(1.12 - 0.0055 * (age - 25) + rng.normal(0, 0.12), 0.5, 1.3)),
        fat=float(np.clip(rng.beta(2, 3), 0, 1)),
        contrast=bool(rng.random() < 0.25),
        cervical_rib=bool(rng.random() < 0.02),
        unfused_apophysis=tuple(sorted({int(rng.integers(5, 9)) for _ in range(1)})) if rng.random() < 0.05 else (),
        fused=(int(rng.integers(3, 7)),) if rng.random() < 0.04 else (),
        intubated=bool(rng.random() < 0.1),
        dental_metal=bool(rng.random() < 0.45),
        seed=int(rng.integers(2**31)),
    )


def build_spine(anatomy: Anatomy, shape_spacing: float = 0.7, meshes: MeshLibrary | None = None) -> Spine:
    """Shape and place every vertebra of a person.

    Args:
        anatomy: the person; the same person gives the same spine.
        shape_spacing: solids are sampled every so many mm; landmarks do not depend on it.
        meshes: sets from which some people get C1..C7; None draws everybody from sizes.
    """
    seeds = np.random.SeedSequence(anatomy.seed).spawn(3)
    sizes, chain, surface = (np.random.default_rng(s) for s in seeds)
    habitus = sample_habitus(sizes)
    dims = {level: sample_dims(sizes, level, anatomy.scale, habitus=habitus) for level in range(2, LAST_LEVEL + 1)}
    dims = worn_discs(sizes, dims, anatomy)
    atlas, axis = sample_atlas(sizes, anatomy.scale), sample_axis(sizes, anatomy.scale)
    pitch = {k: dims[k].height / 2 + dims[k].disc + dims[min(k + 1, LAST_LEVEL)].height / 2 for k in dims}
    landmarks = {1: atlas_landmarks(atlas, axis), 2: axis_landmarks(dims[2], axis, pitch[2])}
    for level in range(3, LAST_LEVEL + 1):
        landmarks[level] = landmarks_of(level, dims[level], pitch[level - 1], pitch[level])
    if meshes is not None:
        from cspine.phantoms.mesh_spine import build_mesh_spine

        drawn = build_mesh_spine(meshes, anatomy, dims, landmarks, chain, surface, shape_spacing)
        if drawn is not None:
            return drawn
    poses = column_poses(chain, anatomy, pitch)
    poses[1] = poses[2] @ _upon_axis(chain, anatomy, axis.arch_height)
    head = poses[1] @ upon_atlas(anatomy, landmarks[1])
    world = on_the_table(anatomy, poses[4])
    poses = {level: world @ pose for level, pose in sorted(poses.items())}
    shapes: dict[int, Shape] = {1: build_atlas(surface, atlas, axis, landmarks[1], spacing=shape_spacing)}
    for level in range(2, LAST_LEVEL + 1):
        wear = wear_of(surface, level, anatomy)
        if level == 2:
            shapes[2] = build_axis(
                surface, dims[2], axis, landmarks[2], pitch_down=pitch[2], wear=wear, spacing=shape_spacing
            )
        else:
            shapes[level] = build_vertebra(
                surface, level, dims[level], landmarks[level], pitch_down=pitch[level], wear=wear, spacing=shape_spacing
            )
    return Spine(anatomy, poses, landmarks, shapes, world @ head)


def worn_discs(rng: np.random.Generator, dims: dict[int, Dims], anatomy: Anatomy) -> dict[int, Dims]:
    """Discs narrow with wear, most at C5/6 and C6/7."""
    out = dict(dims)
    for level, size in dims.items():
        weight = {4: 0.7, 5: 1.0, 6: 1.0, 3: 0.5, 7: 0.4}.get(level, 0.2)
        loss = anatomy.degeneration * weight * rng.uniform(0.0, 0.65)
        out[level] = replace(size, disc=max(1.3, size.disc * (1 - loss)))
    return out


def wear_of(rng: np.random.Generator, level: int, anatomy: Anatomy) -> Wear:
    """How one vertebra of a person has aged."""
    weight = {4: 0.8, 5: 1.0, 6: 1.0, 3: 0.6, 7: 0.5}.get(level, 0.3)
    return Wear(
        osteophytes=float(np.clip(anatomy.degeneration * weight * rng.uniform(0, 1.5), 0, 1.2)),
        facets=anatomy.degeneration * float(rng.uniform(0, 1)),
        fused_below=level in anatomy.fused,
    )


def rotation(x_deg: float, y_deg: float, z_deg: float) -> NDArray[np.float64]:
    """3x3 rotation: about x, then y, then z, degrees, right-handed in LPS."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", (x_deg, y_deg, z_deg), degrees=True).as_matrix())


def placed(turn: NDArray[np.float64], at: NDArray[np.float64]) -> Pose:
    """4x4 with the given rotation and translation."""
    pose = np.eye(4)
    pose[:3, :3] = turn
    pose[:3, 3] = at
    return pose


def column_poses(rng: np.random.Generator, anatomy: Anatomy, pitch: dict[int, float]) -> dict[int, Pose]:
    """Poses of C2..T5: nod follows T1 slope and lordosis, sway the scoliosis, turn a fifth of the head's rotation."""
    nod: dict[int, float] = {}
    share = np.array([0.9, 1.1, 1.15, 1.05, 0.8])  # of the lordosis, C2/3 to C6/7
    share = share * rng.normal(1, 0.25, 5)
    share = share / max(share.sum(), 1.0) if share.sum() > 0 else np.full(5, 0.2)
    nod[8] = anatomy.t1_slope_deg
    nod[7] = nod[8] - rng.normal(3, 1.5)
    for level in range(6, 1, -1):
        nod[level] = nod[level + 1] - anatomy.lordosis_deg * share[level - 2] + rng.normal(0, 0.8)
    for level in range(9, LAST_LEVEL + 1):
        nod[level] = nod[level - 1] + rng.normal(-1.0, 1.2)
    poses: dict[int, Pose] = {}
    at = np.zeros(3)
    previous: NDArray[np.float64] | None = None
    for level in range(LAST_LEVEL, 1, -1):
        along = (LAST_LEVEL - level) / (LAST_LEVEL - 2)
        sway = anatomy.scoliosis_deg * np.sin(np.pi * along) + rng.normal(0, 0.7)
        turn = 0.3 * anatomy.head_rotation_deg * max(0.0, (8 - level) / 6) + rng.normal(0, 0.8)
        matrix = rotation(nod[level], sway, turn)
        if previous is not None:
            axis = previous[:, 2] + matrix[:, 2]
            at = at + axis / np.linalg.norm(axis) * pitch[level] + rng.normal(0, 0.35, 3) * (1, 1, 0)
        poses[level] = placed(matrix, at)
        previous = matrix
    return poses


def atlas_turn(rng: np.random.Generator, anatomy: Anatomy) -> NDArray[np.float64]:
    """3x3 rotation of C1 on C2: most of the head's turn."""
    return rotation(
        rng.normal(0, 2.5), rng.normal(0, 1.2) + 0.2 * anatomy.head_tilt_deg, 0.65 * anatomy.head_rotation_deg
    )


def _upon_axis(rng: np.random.Generator, anatomy: Anatomy, arch_height: float) -> Pose:
    """C1 in C2's frame: turns about the dens."""
    dens = np.array([0.0, 1.0 * anatomy.scale, arch_height])
    turn = atlas_turn(rng, anatomy)
    return placed(turn, dens + turn @ np.array([0.0, -DENS_BEHIND_ORIGIN * anatomy.scale, 0.0]))


def upon_atlas(anatomy: Anatomy, marks: Landmarks) -> Pose:
    """The skull in C1's frame: the condyles sit in the cups of the lateral masses."""
    cups = (marks["facet_superior_left"] + marks["facet_superior_right"]) / 2
    turn = rotation(anatomy.head_flexion_deg, 0.5 * anatomy.head_tilt_deg, 0.05 * anatomy.head_rotation_deg)
    return placed(turn, cups + np.array([0.0, 0.0, 1.5]))


def on_the_table(anatomy: Anatomy, c4: Pose) -> Pose:
    """World placement: C4 at the origin, the patient turned as a whole."""
    turn, tilt, nod = anatomy.body_rotation_deg
    matrix = rotation(nod, tilt, turn)
    return placed(matrix, -matrix @ c4[:3, 3])
