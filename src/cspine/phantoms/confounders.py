"""What looks like a fracture and is none: vessel canals, ossicles, clefts, spurs, cysts. Never in ``region``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np

from cspine.errors import UsageError
from cspine.phantoms.breakage import BrokenBone, Change, Extent, Motion, Piece, Points, SampleBone
from cspine.phantoms.confounder_shapes import Canals, Cavity, Growth
from cspine.phantoms.fracture_draft import BACK, UP, Draft, Side, between, normalised, vector
from cspine.phantoms.shatter import Shatter
from cspine.phantoms.spine import Anatomy

# Chances per vertebra (or of the one level that can have it), from anatomical series: congenital clefts of C1's
# posterior arch 4 % (Currarino, AJNR 1994; Senoglu, J Neurosurg Spine 2007), os odontoideum well below 1 %.
_CLEFT_OF_C1 = 0.04
_OS_ODONTOIDEUM = 0.003
_LIMBUS = 0.015
_SMALL_CANALS = 2.2
# A basivertebral canal with a mouth wider than this (radius, mm) is named; nearly every body has a narrower one.
_WIDE_CANAL_MM = 1.2


class ConfounderKind(StrEnum):
    """What a reader may take for a fracture."""

    WIDE_CANAL = "wide-canal"
    CLEFT = "arch-cleft"
    OS_ODONTOIDEUM = "os-odontoideum"
    APOPHYSIS = "unfused-apophysis"
    SPUR = "spur"
    NODE = "endplate-node"
    CYST = "facet-cyst"
    LIMBUS = "limbus"
    OSSICLE = "nuchal-ossicle"


@dataclass(frozen=True)
class Confounder:
    """A change that has a name."""

    kind: ConfounderKind
    change: Change

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        return self.change.apply(points, bone)


def kinds_of(changes: Iterable[Change]) -> tuple[str, ...]:
    """Names of the confounders among the changes of a vertebra, each once, sorted."""
    return tuple(sorted({str(change.kind) for change in changes if isinstance(change, Confounder)}))


def possible_confounders(level: int) -> tuple[ConfounderKind, ...]:
    """The kinds that ``plan_confounder`` can give a vertebra.

    Args:
        level: label value, 1..12.
    """
    if level == 1:
        return (ConfounderKind.CLEFT,)
    kinds = (ConfounderKind.OS_ODONTOIDEUM,) if level == 2 else tuple(_WORN)
    nuchal = (ConfounderKind.OSSICLE,) if 4 <= level <= 7 else ()
    return (*kinds, ConfounderKind.APOPHYSIS, *nuchal)


def plan_confounder(
    rng: np.random.Generator, level: int, landmarks: Mapping[str, Any], kind: ConfounderKind
) -> Confounder:
    """One confounder of a chosen kind, for tests of specificity.

    Args:
        rng: source of all chance.
        level: label value, 1..12.
        landmarks: the vertebra's named points, local mm.
        kind: one of ``possible_confounders(level)``.

    Raises:
        UsageError: the level cannot have that kind.
    """
    if kind not in possible_confounders(level):
        possible = ", ".join(possible_confounders(level))
        raise UsageError(f"vertebra {level} cannot have a confounder {kind}", fix=f"Possible there: {possible}.")
    side: Side = "left" if rng.uniform() < 0.5 else "right"
    draft = Draft(np.random.default_rng(int(rng.integers(2**63))), level, landmarks, side, 0.0, True)
    return Confounder(kind, _PLANS[kind](draft))


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
        changes.append(Confounder(ConfounderKind.OS_ODONTOIDEUM, _os_odontoideum(draft)))
    if unfused:
        changes.append(Confounder(ConfounderKind.APOPHYSIS, _apophysis(draft)))
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
    canals = Canals(tuple((a, b, float(c), float(d)) for a, b, c, d in tubes), rim=float(rng.uniform(40, 220)))
    return Confounder(ConfounderKind.WIDE_CANAL, canals) if wide > _WIDE_CANAL_MM else canals


def _of_the_atlas(draft: Draft) -> tuple[Change, ...]:
    """C1: a nutrient canal in a lateral mass, rarely a congenital cleft of the posterior arch."""
    rng = draft.rng
    mass = draft.at("lateral_mass") + draft.jitter(3.0)
    end = mass + draft.tilted(UP, 90) * rng.uniform(4, 9)
    width = float(rng.uniform(0.3, 0.6))
    changes: list[Change] = [Canals(((vector(mass), vector(end), width, 0.5 * width),), rim=80.0)]
    if rng.uniform() < _CLEFT_OF_C1:
        changes.append(Confounder(ConfounderKind.CLEFT, _cleft(draft)))
    return tuple(changes)


def _cleft(draft: Draft) -> Change:
    """A congenital gap in the middle of C1's posterior arch."""
    at = draft.at("posterior_tubercle") - 2.5 * BACK
    surface = draft.surface(at, (1, 0, 0), gap=float(draft.rng.uniform(1.0, 4.5)), tilt=15, rough=0.3)
    return _smooth(Piece(((surface, 1),), Extent((vector(at - 3 * BACK), vector(at)), radius=10.0)))


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
    kinds = [ConfounderKind.SPUR] * int(rng.poisson(1.6 * degeneration**2))
    changes: list[Change] = [Confounder(kind, _WORN[kind](draft)) for kind in kinds]
    chances = (
        (ConfounderKind.NODE, 0.25 * degeneration),
        (ConfounderKind.CYST, 0.2 * degeneration),
        (ConfounderKind.LIMBUS, _LIMBUS),
        (ConfounderKind.OSSICLE, 0.2 * degeneration),
    )
    for kind, chance in chances:
        if rng.uniform() < chance and kind in possible_confounders(draft.level):
            changes.append(Confounder(kind, _PLANS[kind](draft)))
    return changes


def _spur(draft: Draft) -> Change:
    """An osteophyte on the front rim, hooked over the disc."""
    rng = draft.rng
    front = draft.at("body_anterior")
    end = float(draft.at("body_superior" if rng.uniform() < 0.5 else "body_inferior")[2])
    angle = rng.normal(0, 0.6)
    away = np.array([np.sin(angle), -np.cos(angle), 0.0])
    half_width = abs(draft.at("body")[0])
    rim = np.array([half_width * np.sin(angle), front[1] * np.cos(angle), end - np.sign(end) * 0.8])
    centre = rim + away * rng.uniform(0.3, 2.0) + UP * np.sign(end) * rng.uniform(-0.5, 1.2)
    return Growth(vector(centre), vector(rng.uniform((1.4, 1.2, 0.9), (4.0, 2.4, 1.8))), blend=2.0)


def _node(draft: Draft) -> Change:
    """An endplate node (Schmorl) with a dense rim."""
    rng = draft.rng
    front, back = draft.at("body_anterior"), draft.at("body_posterior")
    end = draft.at("body_superior" if rng.uniform() < 0.5 else "body_inferior")[2]
    at = np.array([rng.normal(0, 3), rng.uniform(0.6 * front[1], 0.6 * back[1]), end])
    return Cavity(vector(at), vector(rng.uniform(1.2, 3.2, 3)), rim=float(rng.uniform(100, 450)))


def _cyst(draft: Draft) -> Change:
    """A cyst beside a facet joint."""
    rng = draft.rng
    at = draft.at("pillar") + np.array([0, 0, rng.choice([-4.0, 4.0])]) + draft.jitter(2.0)
    return Cavity(vector(at), vector(rng.uniform(0.6, 1.6, 3)), rim=float(rng.uniform(80, 350)))


def _limbus(draft: Draft) -> Change:
    """A corner of the body kept apart by herniated disc since youth: like a teardrop, but smooth and dense."""
    rng = draft.rng
    front = draft.at("body_anterior")
    end = draft.at("body_superior" if rng.uniform() < 0.7 else "body_inferior")[2]
    corner = np.array([rng.normal(0, 1.5), front[1], end])
    inset = np.array([0.0, rng.uniform(1.5, 3.5), -np.sign(end) * rng.uniform(1.5, 3.5)])
    surface = draft.surface(corner + inset, -inset, gap=float(rng.uniform(0.8, 2.2)), tilt=8, rough=0.3)
    shift = Motion(shift=vector(-0.3 * inset))
    aside = np.array([4.0, 0.0, 0.0])
    extent = Extent((vector(corner - aside), vector(corner + aside)), radius=9.0)
    return _smooth(Piece(((surface, 1),), extent, shift))


def _ossicle(draft: Draft) -> Change:
    """Ossified nuchal ligament behind a spinous process."""
    rng = draft.rng
    behind = draft.at("spinous_tip") + np.array([rng.normal(0, 0.8), rng.uniform(4, 9), rng.uniform(-2, 6)])
    return Growth(vector(behind), vector(rng.uniform((1.0, 1.2, 2.0), (2.0, 2.5, 6.0))), blend=0.0)


def _smooth(piece: Piece, rounding: float = 1.6) -> Shatter:
    """A piece that grew apart instead of breaking off."""
    return Shatter((piece,), rounding=rounding, sclerosis=90.0, corticated=True, marked=False)


_Plan = Callable[[Draft], Change]
# What wear brings to a subaxial vertebra.
_WORN: Mapping[ConfounderKind, _Plan] = MappingProxyType(
    {
        ConfounderKind.SPUR: _spur,
        ConfounderKind.NODE: _node,
        ConfounderKind.CYST: _cyst,
        ConfounderKind.LIMBUS: _limbus,
    }
)
_PLANS: Mapping[ConfounderKind, _Plan] = MappingProxyType(
    {
        **_WORN,
        ConfounderKind.OSSICLE: _ossicle,
        ConfounderKind.APOPHYSIS: _apophysis,
        ConfounderKind.OS_ODONTOIDEUM: _os_odontoideum,
        ConfounderKind.CLEFT: _cleft,
    }
)
