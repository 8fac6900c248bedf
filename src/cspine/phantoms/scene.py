"""``Scene``: everything in the patient, drawn at any voxels.

The scene is a function of place: the same millimetre gets the same tissue on every grid, so a coarse volume and a
fine crop of one scene agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import OTHER_BONE, THORACIC
from cspine.phantoms.breakage import BrokenBone, Change
from cspine.phantoms.confounders import plan_confounders
from cspine.phantoms.fractures import Fracture, break_all
from cspine.phantoms.grid import Box, Grid
from cspine.phantoms.morphometry import FIRST_THORACIC
from cspine.phantoms.shapes import Float, Shape
from cspine.phantoms.spine import Anatomy, Spine, build_spine, sample_anatomy
from cspine.phantoms.study_plan import plan_study
from cspine.phantoms.textures import Texture
from cspine.phantoms.tissues import Surroundings, build_surroundings

if TYPE_CHECKING:
    from cspine.phantoms.blending import MeshLibrary

# Beyond this distance from the surface (mm) a voxel holds no bone and is left alone.
BONE_REACH = 2.5
# Fragments move, and outgrowths reach, at most this far from the unbroken surface (mm).
MOVED_MM = 9.0
OUTGROWTH_MM = 4.0
# HU of blood and oedema in a fresh fracture gap.
GAP_HU = 45.0


@dataclass(frozen=True, slots=True)
class BoneLook:
    """How bone appears: HU of cortex and trabeculae, thickness of the shell in mm, strength of the texture in HU."""

    cortex: float
    trabecular: float
    shell: float
    texture: float


@dataclass(frozen=True, slots=True)
class Ideal:
    """A scene on a grid before any scanner.

    Attributes:
        hu: float32 ``[z, y, x]``.
        labels: uint8, values of ``cspine.anatomy``.
        fracture: bool, acute fractures.
        metal: float32 0..1, share of the voxel that is metal.
    """

    hu: Float
    labels: NDArray[np.uint8]
    fracture: NDArray[np.bool_]
    metal: Float


@dataclass(frozen=True, slots=True)
class Scene:
    """A spine, what surrounds it, and what is broken."""

    spine: Spine
    surroundings: Surroundings
    fractures: tuple[Fracture, ...]
    confounders: Mapping[int, tuple[Change, ...]]
    look: BoneLook
    coarse_texture: Texture
    fine_texture: Texture

    def render(self, grid: Grid) -> Ideal:
        """Draw the scene at the voxels of ``grid``; edges are softened over one voxel (partial volume)."""
        painted = self.surroundings.paint(grid)
        hu = painted.soft_hu
        labels = np.zeros(grid.shape, dtype=np.uint8)
        fracture = np.zeros(grid.shape, dtype=np.bool_)
        soft = float(np.clip(np.cbrt(np.prod(grid.spacing)) * 0.33, 0.16, 0.8))
        self._paint_other_bone(grid, painted.bone_sdf, painted.bone_scale, hu, labels, soft)
        nearest = np.full(grid.shape, BONE_REACH, dtype=np.float32)
        for level in self.spine.poses:
            self._paint_vertebra(level, grid, hu, labels, fracture, nearest, soft)
        return Ideal(hu, labels, fracture, painted.metal)

    def vertebra_box(self, level: int) -> tuple[Float, Float]:
        """World corners (low, high) of the box around vertebra ``level``."""
        return world_box(self.spine.shapes[level], self.spine.poses[level])

    def _paint_other_bone(
        self, grid: Grid, sdf: Float, scale: Float | float, hu: Float, labels: NDArray[np.uint8], soft: float
    ) -> None:
        near = sdf < BONE_REACH
        if not near.any():
            return
        depth = sdf[near]
        factor = scale[near] if isinstance(scale, np.ndarray) and scale.ndim else scale
        world = _points_at(grid, near)
        hu[near] = self._bone(hu[near], depth, depth, world, soft, np.asarray(factor, dtype=np.float32))
        values = labels[near]
        values[depth < 0] = OTHER_BONE
        labels[near] = values

    def _paint_vertebra(
        self,
        level: int,
        grid: Grid,
        hu: Float,
        labels: NDArray[np.uint8],
        fracture: NDArray[np.bool_],
        nearest: Float,
        soft: float,
    ) -> None:
        pose, shape = self.spine.poses[level], self.spine.shapes[level]
        breaks = tuple(f for f in self.fractures if f.level == level)
        odd = self.confounders.get(level, ())
        beyond = MOVED_MM if breaks else OUTGROWTH_MM if odd else 0.0
        low, high = world_box(shape, pose)
        where = grid.covering(low - beyond, high + beyond)
        if where is None:
            return
        local = grid.sub(where).points(pose).reshape(-1, 3)
        intact = shape.sample(local)
        reach = BONE_REACH + beyond
        index = np.flatnonzero(intact < reach)
        bone = break_all(breaks, local[index], shape.sample, odd)
        flat = nearest[where].reshape(-1)
        wins = (bone.sdf < flat[index]) & (bone.sdf < BONE_REACH)
        keep = index[wins]
        if keep.size == 0:
            return
        world = _to_world(local[keep], pose)
        values = hu[where].reshape(-1)
        values[keep] = self._bone_of(bone, wins, values[keep], world, soft)
        hu[where] = values.reshape(hu[where].shape)
        flat[keep] = bone.sdf[wins]
        nearest[where] = flat.reshape(nearest[where].shape)
        self._mark(level, where, keep, bone, wins, labels, fracture)

    def _bone_of(self, bone: BrokenBone, wins: NDArray[np.bool_], under: Float, world: Float, soft: float) -> Float:
        drawn = self._bone(under, bone.sdf[wins], bone.depth[wins], world, soft, 1.0)
        drawn = drawn + bone.density[wins] / (1 + np.exp(np.clip(bone.sdf[wins] / soft, -30, 30)))
        gap = bone.lucency[wins]
        return np.asarray(drawn * (1 - gap) + GAP_HU * gap, dtype=np.float32)

    def _bone(self, under: Float, sdf: Float, depth: Float, world: Float, soft: float, scale: Float | float) -> Float:
        """Blend bone over what lies ``under``: occupancy from ``sdf``, cortical shell from ``depth``."""
        look = self.look
        fill = 1 / (1 + np.exp(np.clip(sdf / soft, -30, 30)))
        patchy = self.coarse_texture.near(world)
        shell = 1 / (1 + np.exp(np.clip(-(depth + look.shell * (1 + 0.3 * patchy)) / max(soft, 0.22), -30, 30)))
        inner = look.trabecular * (1 + 0.35 * patchy) + look.texture * self.fine_texture.near(world)
        bone = scale * (inner + (look.cortex * (1 + 0.12 * patchy) - inner) * shell)
        return np.asarray(under * (1 - fill) + bone * fill, dtype=np.float32)

    def _mark(
        self,
        level: int,
        where: Box,
        keep: NDArray[np.intp],
        bone: BrokenBone,
        wins: NDArray[np.bool_],
        labels: NDArray[np.uint8],
        fracture: NDArray[np.bool_],
    ) -> None:
        solid = bone.sdf[wins] < 0
        region = bone.region[wins]
        flat = labels[where].reshape(-1)
        value = min(level, THORACIC)
        flat[keep[solid | (region & (flat[keep] == 0))]] = value
        labels[where] = flat.reshape(labels[where].shape)
        marked = fracture[where].reshape(-1)
        if level < FIRST_THORACIC:
            marked[keep] = region
        fracture[where] = marked.reshape(fracture[where].shape)


def world_box(shape: Shape, pose: NDArray[np.float64]) -> tuple[Float, Float]:
    """World corners (low, high) of the axis-aligned box around a posed shape."""
    corners = np.array(np.meshgrid(*zip(shape.low, shape.high, strict=True), indexing="ij")).reshape(3, -1).T
    world = _to_world(corners, pose)
    return world.min(axis=0), world.max(axis=0)


def _to_world(local: Float, pose: NDArray[np.float64]) -> Float:
    return np.asarray(local @ pose[:3, :3].T.astype(np.float32) + pose[:3, 3].astype(np.float32), dtype=np.float32)


def _points_at(grid: Grid, mask: NDArray[np.bool_]) -> Float:
    index = np.argwhere(mask)[:, ::-1].astype(np.float32)
    return np.asarray(index @ grid.affine[:3, :3].T.astype(np.float32) + grid.affine[:3, 3].astype(np.float32))


def make_scene(
    seed: int,
    *,
    fractures: Literal["sample", "none"] | tuple[Fracture, ...] = "sample",
    multiplier: float = 1.0,
    anatomy: Anatomy | None = None,
    shape_spacing: float = 0.7,
    meshes: MeshLibrary | None = None,
) -> Scene:
    """A random patient.

    Args:
        seed: same seed, same scene.
        fractures: ``sample`` draws them with RSNA 2022's prevalence times ``multiplier``; or none; or these.
        multiplier: more than 1 enriches a training set.
        anatomy: the person, else drawn from ``seed``.
        shape_spacing: mm between the lattice points of the solids; larger is faster and smoother.
        meshes: sets of vertebra meshes from which some people get C1..C7; None draws everybody from sizes.
    """
    person, breaks, around, look = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    who = sample_anatomy(person) if anatomy is None else anatomy
    spine = build_spine(who, shape_spacing, meshes)
    if fractures == "sample":
        planned = plan_study(breaks, spine.landmarks, multiplier=multiplier)
    elif fractures == "none":
        planned = ()
    else:
        planned = fractures
    return Scene(
        spine=spine,
        surroundings=build_surroundings(spine, around),
        fractures=planned,
        confounders=plan_confounders(breaks, spine.landmarks, who),
        look=_sample_look(look, who),
        coarse_texture=Texture.random(look, 3.5),
        fine_texture=Texture.random(look, 0.7),
    )


def _sample_look(rng: np.random.Generator, who: Anatomy) -> BoneLook:
    return BoneLook(
        cortex=float(np.clip(rng.normal(1400, 220) * (0.5 + 0.5 * who.density), 700, 2100)),
        trabecular=float(np.clip(rng.normal(310, 65) * who.density, 100, 560)),
        shell=float(np.clip(rng.normal(0.95, 0.2) * (0.7 + 0.3 * who.density), 0.5, 1.8)),
        texture=float(rng.uniform(35, 120)),
    )
