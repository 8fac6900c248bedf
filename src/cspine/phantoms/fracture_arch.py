"""Plans of fractures of the arch and its processes: lamina, spinous, transverse, facet, pillar."""

from __future__ import annotations

import numpy as np

from cspine.phantoms.breakage import Change, Extent, Motion, Piece, Surface
from cspine.phantoms.fracture_draft import BACK, UP, Draft, Side, Xyz, between, normalised, vector

_SIDES: tuple[Side, Side] = ("left", "right")
# Breaks slighter than this are often incomplete.
_INCOMPLETE_BELOW = 0.35


def plan_lamina(draft: Draft) -> tuple[Change, ...]:
    """One lamina broken, or both with the spinous process driven in; C1: its posterior arch, on one or both sides."""
    if draft.level == 1:
        return _plan_posterior_arch(draft)
    both = draft.severity > 0.45 and draft.rng.uniform() < 0.5
    if both:
        return _plan_both_laminae(draft)
    start, along = _lamina_cut(draft, draft.side)
    surface = draft.surface(start, along, gap=draft.gap(2.0), tilt=28, hinge=_hinge(draft, 3.0))
    reach = between(start, draft.at("spinous_base"), 1.0) + 6.0 * normalised(along)
    extent = Extent((vector(start), vector(reach)), radius=9.0, fade=1.5, taper=True)
    inwards = -draft.shift(2.4) * BACK + draft.shift(0.8) * UP * draft.rng.choice([-1.0, 1.0])
    cut = draft.parted(((surface, 1),), extent, Motion(shift=vector(inwards)))
    return (cut, *draft.chips(start, 4.0, most=3))


def _lamina_cut(draft: Draft, side: Side) -> tuple[Xyz, Xyz]:
    """A point on the lamina and the direction along it towards the spinous process."""
    outer, middle, base = draft.at("pillar", side), draft.at("lamina", side), draft.at("spinous_base")
    place = draft.rng.uniform(-0.45, 0.55)
    point = between(middle, base, place) if place > 0 else between(middle, outer, -place)
    along = normalised((base - middle) if place > 0 else (base - outer))
    return point, along


def _plan_both_laminae(draft: Draft) -> tuple[Change, ...]:
    """The spinous process with both laminae as one free piece."""
    gap = draft.gap(2.5)
    cuts = []
    for side in _SIDES:
        point, along = _lamina_cut(draft, side)
        cuts.append((draft.surface(point, along, gap=gap, tilt=20), 1))
    start, tip = between(cuts[0][0].origin, cuts[1][0].origin, 0.5), draft.at("spinous_tip")
    base, end = draft.at("spinous_base"), tip + 6 * normalised(tip - start)
    extent = Extent((cuts[0][0].origin, vector(base), vector(end), vector(base), cuts[1][0].origin), radius=9.5)
    way = draft.shift(3.5) * draft.tilted(-BACK * draft.rng.choice([1.0, -0.6]) - 0.4 * UP, 25)
    motion = Motion(vector(way), vector(draft.tilted((1, 0, 0), 30) * draft.shift(9.0)), vector(start))
    return (draft.parted(tuple(cuts), extent, motion, "nearest"), *draft.chips(start, 9.0))


def _plan_posterior_arch(draft: Draft) -> tuple[Change, ...]:
    """C1's posterior arch behind the vertebral artery groove, its weakest place."""
    sides: list[Side] = ["left", "right"] if draft.rng.uniform() < 0.55 else [draft.side]
    gap = draft.gap(2.0)
    tubercle = draft.at("posterior_tubercle")
    cuts: list[tuple[Surface, int]] = []
    for side in sides:
        arch, mass = draft.at("posterior_arch", side), draft.at("lateral_mass", side)
        place = between(arch, mass, draft.rng.uniform(-0.15, 0.3))
        cuts.append((draft.surface(place, tubercle - mass, gap=gap, tilt=22), 1))
    if len(cuts) == 1:
        point = np.asarray(cuts[0][0].origin)
        extent = Extent((vector(point), vector(tubercle)), radius=9.0, fade=1.5, taper=True)
        motion = Motion(shift=vector(draft.tilted(BACK, 60) * draft.shift(1.8)))
        return (draft.parted(tuple(cuts), extent, motion), *draft.chips(point, 4.0, most=2))
    extent = Extent((vector(tubercle - 12 * BACK), vector(tubercle)), radius=26.0)
    way = draft.tilted(BACK + 0.3 * UP, 30) * draft.shift(3.0)
    motion = Motion(vector(way), vector(draft.tilted((1, 0, 0), 40) * draft.shift(9.0)), vector(tubercle))
    return (draft.parted(tuple(cuts), extent, motion, "nearest"),)


def plan_spinous_process(draft: Draft) -> tuple[Change, ...]:
    """Clay-shoveler's fracture: the process breaks off and muscles draw it down and back."""
    base, tip = draft.at("spinous_base"), draft.at("spinous_tip")
    axis = normalised(tip - base)
    point = between(base, tip, draft.rng.uniform(0.12, 0.78))
    lean = normalised(axis + draft.rng.normal(0, 0.25) * UP)
    surface = draft.surface(point, lean, gap=draft.gap(2.2), tilt=22, rough=1.2, hinge=_hinge(draft, 3.0))
    extent = Extent((vector(point), vector(tip + 9 * axis)), radius=12.5)
    way = normalised(-UP * draft.rng.uniform(0.4, 1.2) + BACK * draft.rng.uniform(0.1, 0.8) + draft.jitter(0.2))
    turn = np.array([draft.shift(18.0) * draft.rng.choice([-1, 1, 1]), 0.0, 0.0]) + draft.jitter(2) * draft.severity
    motion = _moved(draft, way * draft.shift(6.0), turn, point)
    return (draft.parted(((surface, 1),), extent, motion), *draft.chips(point, 4.0, most=4))


def plan_transverse_process(draft: Draft) -> tuple[Change, ...]:
    """The transverse process, more often than not through its foramen."""
    tip = draft.at("transverse_tip")
    hole = draft.at("foramen") if draft.has("foramen") else between(draft.at("pedicle"), tip, 0.3)
    tip = tip if draft.level == 1 else np.array([tip[0], 0.6 * hole[1] + 0.4 * tip[1], tip[2]])
    through = draft.rng.uniform() < 0.6
    point = between(hole, tip, draft.rng.uniform(0.0, 0.28) if through else draft.rng.uniform(0.35, 0.65))
    outwards = np.array([draft.lateral, 0.0, -0.1])
    axis = normalised(normalised(tip - hole) + 0.8 * outwards)
    hinge = _hinge(draft, 2.0)
    surface = draft.surface(point, axis, gap=draft.gap(2.0), tilt=24, rough=0.8, hinge=hinge)
    extent = Extent((vector(point), vector(tip + 8 * outwards)), radius=9.5, fade=1.5)
    way = normalised(outwards * 0.8 - UP * draft.rng.uniform(0.2, 0.9) + draft.jitter(0.4))
    motion = _moved(draft, way * draft.shift(3.0), draft.tilted(UP, 90) * draft.shift(14.0), point)
    return (draft.parted(((surface, 1),), extent, motion), *draft.chips(point, 3.0, most=2))


def plan_facet(draft: Draft) -> tuple[Change, ...]:
    """The tip of a superior (more often) or inferior articular process."""
    superior = draft.rng.uniform() < 0.65
    pillar = draft.at("lateral_mass") if draft.level == 1 else draft.at("pillar")
    facet = draft.at("facet_superior" if superior else "facet_inferior")
    way = normalised(facet - pillar)
    # The process leans: superior tips lie in front of the joint, inferior ones behind it.
    lean = normalised(way + (-0.45 if superior else 0.45) * BACK)
    point = between(pillar, facet, draft.rng.uniform(0.4, 0.95)) + draft.jitter(0.8)
    surface = draft.surface(point, lean, gap=draft.gap(2.5), tilt=24, hinge=_hinge(draft, 3.0))
    extent = Extent((vector(point), vector(facet + 8 * lean)), radius=9.5, fade=1.5)
    slip = (-BACK if superior else BACK) * draft.rng.uniform(0.3, 1.0) + lean * 0.6 + draft.jitter(0.5)
    turn = draft.tilted((draft.lateral, 0, 0), 50) * draft.shift(22.0)
    motion = _moved(draft, normalised(slip) * draft.shift(4.0), turn, point)
    return (draft.parted(((surface, 1),), extent, motion), *draft.chips(point, 4.0, most=3))


def plan_pillar(draft: Draft) -> tuple[Change, ...]:
    """The articular mass: split, or broken free of pedicle and lamina (floating lateral mass)."""
    if draft.level > 2 and draft.severity > 0.4 and draft.rng.uniform() < 0.5:
        return _plan_floating_pillar(draft)
    pillar = draft.at("lateral_mass") if draft.level == 1 else draft.at("pillar")
    point = pillar + draft.jitter(1.5)
    angle = draft.rng.uniform(-40, 75) if draft.level > 1 else draft.rng.uniform(-30, 40)
    normal = np.array([draft.lateral * np.cos(np.radians(angle)), np.sin(np.radians(angle)), draft.rng.normal(0, 0.3)])
    surface = draft.surface(point, normal, gap=draft.gap(2.0), tilt=12, hinge=_hinge(draft, 3.5))
    reach = 9.0 if draft.level > 1 else 11.0
    low, high = pillar - reach * 0.6 * UP, pillar + reach * 0.6 * UP
    motion = Motion(shift=vector(normalised(normal + draft.jitter(0.6)) * draft.shift(2.0)))
    extent = Extent((vector(low), vector(high)), radius=reach, fade=2.0)
    return (draft.parted(((surface, 1),), extent, motion), *draft.chips(point, 4.0, most=4))


def _plan_floating_pillar(draft: Draft) -> tuple[Change, ...]:
    pillar, pedicle, lamina = draft.at("pillar"), draft.at("pedicle"), draft.at("lamina")
    gap = draft.gap(2.0)
    front = draft.surface(pedicle + draft.jitter(0.6), pillar - draft.at("body"), gap=gap, tilt=15)
    rear_at = between(pillar, lamina, draft.rng.uniform(0.6, 0.95))
    rear = draft.surface(rear_at, pillar - lamina, gap=gap, tilt=15)
    extent = Extent((vector(pillar - 6 * UP), vector(pillar + 6 * UP)), radius=15.0, fade=1.5)
    turn = np.array([draft.shift(16.0) * draft.rng.choice([-1, 1]), 0.0, 0.0]) + draft.jitter(2.0)
    motion = Motion(vector(draft.tilted(-BACK, 60) * draft.shift(2.5)), vector(turn), vector(pillar))
    piece = Piece(((front, 1), (rear, 1)), extent, motion, "nearest")
    return (draft.broken((piece,)), *draft.chips(pillar, 5.0))


def _hinge(draft: Draft, middle: float) -> tuple[float, float] | None:
    """Slight breaks are often incomplete: one cortex holds. ``middle`` is the half thickness there, mm."""
    if draft.severity > _INCOMPLETE_BELOW or draft.rng.uniform() < 0.45:
        return None
    return (float(draft.rng.uniform(0, 2 * np.pi)), float(draft.rng.uniform(-0.2, 0.9) * middle))


def _moved(draft: Draft, shift: Xyz, turn: Xyz, pivot: Xyz) -> Motion:
    """A movement, or none for a hairline (and so no resampling)."""
    if draft.severity <= 0.15:
        return Motion()
    return Motion(vector(shift), vector(turn), vector(pivot))
