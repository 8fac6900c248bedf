"""What looks like a fracture and is none: vessel canals, ossicles, clefts, spurs, cysts. Never in ``region``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.breakage import BrokenBone, Change, Extent, Motion, Piece, Points, SampleBone, Values, Vector
from cspine.phantoms.fracture_draft import BACK, UP, Draft, Side, Xyz, between, normalised, vector
from cspine.phantoms.shapes import capsule, ellipsoid, smooth_union
from cspine.phantoms.shatter import Shatter
from cspine.phantoms.spine import Anatomy

# Chances per vertebra (or of the one level that can have it), from anatomical series: congenital clefts of C1's
# posterior arch 4 % (Currarino, AJNR 1994; Senoglu, J Neurosurg Spine 2007), os odontoideum well below 1 %.
_CLEFT_OF_C1 = 0.04
_OS_ODONTOIDEUM = 0.003
_LIMBUS = 0.015
_SMALL_CANALS = 2.2


@dataclass(frozen=True)
class Canals:
    """Vessel canals: tapering tubes inside the bone.

    Attributes:
        tubes: (start, end, radius at the start, at the end) in mm each.
        rim: HU added to the bone lining them.
    """

    tubes: tuple[tuple[Vector, Vector, float, float], ...]
    rim: float = 120.0

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        result = bone(points)
        index = np.flatnonzero(result.sdf < 0.8)
        near = points[index]
        wall = np.full(index.shape, 99.0, dtype=np.float32)
        for start, end, wide, narrow in self.tubes:
            wall = np.minimum(wall, capsule(near, start, end, wide, narrow))
        changed = wall < 2.0
        index, wall = index[changed], wall[changed]
        now = result.take(index)
        now.sdf = np.maximum(now.sdf, -wall)
        now.density = now.density + (self.rim * np.exp(-np.square(wall / 0.7))).astype(np.float32)
        result.put(index, now)
        return result


@dataclass(frozen=True)
class Cavity:
    """A cyst or an endplate node: a round hole with a dense rim.

    Attributes:
        centre: mm.
        radii: half axes, mm.
        rim: HU of its wall.
    """

    centre: Vector
    radii: Vector
    rim: float = 250.0

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        result = bone(points)
        index, sdf = _ellipsoid(points, self.centre, self.radii)
        now = result.take(index)
        now.sdf = np.maximum(now.sdf, -sdf)
        now.density = now.density + (self.rim * np.exp(-np.square(sdf / 0.8))).astype(np.float32)
        result.put(index, now)
        return result


@dataclass(frozen=True)
class Growth:
    """Bone that was added: a spur, a bridge, an ossified ligament.

    Attributes:
        centre: mm.
        radii: half axes, mm.
        blend: mm over which it flows into the bone; 0 for a free ossicle.
    """

    centre: Vector
    radii: Vector
    blend: float = 2.0

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        result = bone(points)
        index, sdf = _ellipsoid(points, self.centre, self.radii)
        now = result.take(index)
        now.sdf = smooth_union(now.sdf, sdf, self.blend)
        now.depth = smooth_union(now.depth, sdf, self.blend)
        result.put(index, now)
        return result


def _ellipsoid(points: Points, centre: Vector, radii: Vector) -> tuple[NDArray[np.intp], Values]:
    """The points within 3 mm of an ellipsoid and about their signed distance to it."""
    middle, half = np.asarray(centre, dtype=np.float32), np.asarray(radii, dtype=np.float32)
    index = np.flatnonzero((np.abs(points - middle) < half + 3.0).all(axis=1))
    return index, ellipsoid(points[index], middle, half)


def plan_confounders(
    rng: np.random.Generator, landmarks: Mapping[int, Mapping[str, Any]], anatomy: Anatomy
) -> dict[int, tuple[Change, ...]]:
    """The peculiarities of every vertebra of a person, by label value.

    Args:
        rng: source of all chance.
        landmarks: of each vertebra (``Spine.landmarks``).
        anatomy: the person; its degeneration and unfused apophyses are followed.
    """
    return {
        level: vertebra_confounders(
            rng, level, marks, degeneration=anatomy.degeneration, unfused=level in anatomy.unfused_apophysis
        )
        for level, marks in sorted(landmarks.items())
    }


def vertebra_confounders(
    rng: np.random.Generator,
    level: int,
    landmarks: Mapping[str, Any],
    *,
    degeneration: float = 0.3,
    unfused: bool = False,
) -> tuple[Change, ...]:
    """What is peculiar about a vertebra without being a fracture.

    Args:
        rng: source of all chance.
        level: label value, 1..12.
        landmarks: its named points, local mm.
        degeneration: 0..1, drives spurs, nodes and cysts.
        unfused: the vertebra has an unfused apophysis.
    """
    side: Side = "left" if rng.uniform() < 0.5 else "right"
    draft = Draft(np.random.default_rng(int(rng.integers(2**63))), level, landmarks, side, 0.0, True)
    if level == 1:
        return _of_the_atlas(draft)
    changes = [_canals(draft)]
    if level == 2 and draft.rng.uniform() < _OS_ODONTOIDEUM:
        changes.append(_os_odontoideum(draft))
    if unfused:
        changes.append(_apophysis(draft))
    if level > 2:
        changes.extend(_worn(draft, degeneration))
    return tuple(changes)


def _canals(draft: Draft) -> Change:
    """The basivertebral canal in the back of the body, and a few thin ones anywhere."""
    rng = draft.rng
    front, back = draft.at("body_anterior"), draft.at("body_posterior")
    top, bottom = draft.at("body_superior")[2], draft.at("body_inferior")[2]
    mouth = back + np.array([rng.normal(0, 0.8), 1.0, rng.normal(0, 0.8)])
    heart = between(back, front, rng.uniform(0.35, 0.6)) + np.array([rng.normal(0, 0.8), 0, rng.normal(0, 0.6)])
    wide = rng.uniform(0.5, 1.5)
    tubes = [(vector(mouth), vector(heart), wide, wide * 0.4)]
    for sign in (-1.0, 1.0):
        if rng.uniform() < 0.6:
            branch = heart + np.array([sign * rng.uniform(2.5, 6.0), rng.uniform(-3, 1.5), rng.normal(0, 0.6)])
            tubes.append((vector(heart), vector(branch), wide * 0.42, 0.2))
    half_width = abs(draft.at("body")[0])
    for _ in range(int(rng.poisson(_SMALL_CANALS))):
        angle = rng.uniform(0, 2 * np.pi)
        wall = np.array([half_width * np.cos(angle), front[1] * np.sin(angle), rng.uniform(0.7 * bottom, 0.7 * top)])
        if rng.uniform() < 0.35:
            wall = draft.at("pillar" if rng.uniform() < 0.6 else "lamina", "left" if rng.uniform() < 0.5 else "right")
            wall = wall + rng.uniform(-3, 3, 3)
        inwards = draft.tilted(-wall, 55) * rng.uniform(3.0, 8.0)
        width = rng.uniform(0.25, 0.55)
        tubes.append((vector(wall - 0.5 * inwards), vector(wall + inwards), width, 0.6 * width))
    return Canals(tuple((a, b, float(c), float(d)) for a, b, c, d in tubes), rim=float(rng.uniform(40, 220)))


def _of_the_atlas(draft: Draft) -> tuple[Change, ...]:
    """C1: a nutrient canal in a lateral mass, rarely a congenital cleft of the posterior arch."""
    rng = draft.rng
    mass = draft.at("lateral_mass") + draft.jitter(3.0)
    end = mass + draft.tilted(UP, 90) * rng.uniform(4, 9)
    width = float(rng.uniform(0.3, 0.6))
    changes: list[Change] = [Canals(((vector(mass), vector(end), width, 0.5 * width),), rim=80.0)]
    if rng.uniform() < _CLEFT_OF_C1:
        at = draft.at("posterior_tubercle") - 2.5 * BACK
        surface = draft.surface(at, (1, 0, 0), gap=float(rng.uniform(1.0, 4.5)), tilt=15, rough=0.3)
        changes.append(_smooth(Piece(((surface, 1),), Extent((vector(at - 3 * BACK), vector(at)), radius=10.0))))
    return tuple(changes)


def _os_odontoideum(draft: Draft) -> Change:
    """The dens as a free, round ossicle."""
    waist, tip = draft.at("dens_base"), draft.at("dens_tip")
    surface = draft.surface(waist + 1.5 * UP, UP, gap=float(draft.rng.uniform(2.0, 4.0)), tilt=8, rough=0.2)
    return _smooth(Piece(((surface, 1),), Extent((vector(waist), vector(tip + 4 * UP)), radius=10.5)), rounding=2.5)


def _apophysis(draft: Draft) -> Change:
    """A smooth ossicle at the tip of the spinous or of a transverse process."""
    rng = draft.rng
    if rng.uniform() < 0.7:
        root, tip = draft.at("spinous_base"), draft.at("spinous_tip")
    else:
        root, tip = draft.at("foramen" if draft.has("foramen") else "pillar"), draft.at("transverse_tip")
    axis = normalised(tip - root)
    at = tip - axis * rng.uniform(0.5, 3.5)
    surface = draft.surface(at, axis, gap=float(rng.uniform(0.6, 1.6)), tilt=15, rough=0.25)
    shift = Motion(shift=vector(axis * rng.uniform(0, 0.8)))
    return _smooth(Piece(((surface, 1),), Extent((vector(at), vector(tip + 8 * axis)), radius=11.0), shift))


def _worn(draft: Draft, degeneration: float) -> list[Change]:
    """Spurs, endplate nodes, cysts, limbus corners and ossified ligament, with degeneration."""
    rng = draft.rng
    front, back = draft.at("body_anterior"), draft.at("body_posterior")
    top, bottom = draft.at("body_superior")[2], draft.at("body_inferior")[2]
    spurs = int(rng.poisson(1.6 * degeneration**2))
    changes: list[Change] = [_spur(draft, front, top if rng.uniform() < 0.5 else bottom) for _ in range(spurs)]
    if rng.uniform() < 0.25 * degeneration:
        end = top if rng.uniform() < 0.5 else bottom
        at = np.array([rng.normal(0, 3), rng.uniform(0.6 * front[1], 0.6 * back[1]), end])
        changes.append(Cavity(vector(at), vector(rng.uniform(1.2, 3.2, 3)), rim=float(rng.uniform(100, 450))))
    if rng.uniform() < 0.2 * degeneration:
        at = draft.at("pillar") + np.array([0, 0, rng.choice([-4.0, 4.0])]) + draft.jitter(2.0)
        changes.append(Cavity(vector(at), vector(rng.uniform(0.6, 1.6, 3)), rim=float(rng.uniform(80, 350))))
    if rng.uniform() < _LIMBUS:
        changes.append(_limbus(draft, front, top, bottom))
    if rng.uniform() < 0.2 * degeneration and 4 <= draft.level <= 7:
        behind = draft.at("spinous_tip") + np.array([rng.normal(0, 0.8), rng.uniform(4, 9), rng.uniform(-2, 6)])
        changes.append(Growth(vector(behind), vector(rng.uniform((1.0, 1.2, 2.0), (2.0, 2.5, 6.0))), blend=0.0))
    return changes


def _spur(draft: Draft, front: Xyz, end: float) -> Change:
    """An osteophyte on the front rim, hooked over the disc."""
    rng = draft.rng
    angle = rng.normal(0, 0.6)
    away = np.array([np.sin(angle), -np.cos(angle), 0.0])
    half_width = abs(draft.at("body")[0])
    rim = np.array([half_width * np.sin(angle), front[1] * np.cos(angle), end - np.sign(end) * 0.8])
    centre = rim + away * rng.uniform(0.3, 2.0) + UP * np.sign(end) * rng.uniform(-0.5, 1.2)
    return Growth(vector(centre), vector(rng.uniform((1.4, 1.2, 0.9), (4.0, 2.4, 1.8))), blend=2.0)


def _limbus(draft: Draft, front: Xyz, top: float, bottom: float) -> Change:
    """A corner of the body kept apart by herniated disc since youth: like a teardrop, but smooth and dense."""
    end = top if draft.rng.uniform() < 0.7 else bottom
    corner = np.array([draft.rng.normal(0, 1.5), front[1], end])
    inset = np.array([0.0, draft.rng.uniform(1.5, 3.5), -np.sign(end) * draft.rng.uniform(1.5, 3.5)])
    surface = draft.surface(corner + inset, -inset, gap=float(draft.rng.uniform(0.8, 2.2)), tilt=8, rough=0.3)
    shift = Motion(shift=vector(-0.3 * inset))
    aside = np.array([4.0, 0.0, 0.0])
    extent = Extent((vector(corner - aside), vector(corner + aside)), radius=9.0)
    return _smooth(Piece(((surface, 1),), extent, shift))


def _smooth(piece: Piece, rounding: float = 1.6) -> Shatter:
    """A piece that grew apart instead of breaking off."""
    return Shatter((piece,), rounding=rounding, sclerosis=90.0, corticated=True, marked=False)
