"""Plans of the fractures that only C1 and C2 have: Jefferson, dens I to III, hangman."""

from __future__ import annotations

import numpy as np

from cspine.phantoms.breakage import Change, Extent, Motion, Piece, Surface
from cspine.phantoms.fracture_draft import BACK, UP, Draft, Side, Xyz, between, normalised, vector

_SIDES: tuple[Side, Side] = ("left", "right")


def plan_jefferson(draft: Draft) -> tuple[Change, ...]:
    """C1's ring burst at two to four places; the lateral masses are driven apart."""
    rng = draft.rng
    centre = between(draft.at("anterior_tubercle"), draft.at("posterior_tubercle"), 0.42)
    front: list[Side] = [*_SIDES] if rng.uniform() < 0.4 else [draft.side]
    single: Side = draft.side if rng.uniform() < 0.5 else _other(draft.side)
    rear: list[Side] = [*_SIDES] if rng.uniform() < 0.55 else [single]
    gap = draft.gap(2.0)
    fronts = {side: _ring_cut(draft, centre, side, gap, front=True) for side in front}
    rears = {side: _ring_cut(draft, centre, side, gap, front=False) for side in rear}
    broken = [side for side in _SIDES if side in fronts or side in rears]
    pieces = tuple(_lateral_piece(draft, centre, side, fronts, rears) for side in broken)
    splinters = draft.chips(next(iter(fronts.values())).origin, 4.0, most=3)
    return (draft.broken(pieces), *splinters)


def _other(side: Side) -> Side:
    return "right" if side == "left" else "left"


def _ring_cut(draft: Draft, centre: Xyz, side: Side, gap: float, *, front: bool) -> Surface:
    """A cut across the ring of C1; its normal points along the ring to the lateral mass of ``side``."""
    rng, sign = draft.rng, 1.0 if side == "left" else -1.0
    middle = draft.at("anterior_tubercle" if front else "posterior_tubercle")
    arch = draft.at("anterior_arch" if front else "posterior_arch", side)
    place = between(middle, arch, rng.uniform(0.25, 1.05) if front else rng.uniform(0.55, 1.1))
    radial = normalised((place - centre) * np.array([1.0, 1.0, 0.0]))
    # Perpendicular to the radius, towards the side.
    tangent = np.cross(UP, radial) * (1.0 if front else -1.0) * sign
    return draft.surface(place, tangent, gap=gap, tilt=18, rough=0.9)


def _lateral_piece(
    draft: Draft, centre: Xyz, side: Side, fronts: dict[Side, Surface], rears: dict[Side, Surface]
) -> Piece:
    """The lateral mass of one side with what of the arches stays on it."""
    sign = 1.0 if side == "left" else -1.0
    mass = draft.at("lateral_mass", side)
    outwards = normalised(np.array([sign, draft.rng.normal(0, 0.25), 0.0]))
    spread = draft.shift(3.5)
    if side in fronts and side in rears:
        cuts = ((fronts[side], 1), (rears[side], 1))
        turn = np.array([0.0, 0.0, draft.rng.normal(0, 1) * draft.shift(7.0)])
        motion = Motion(vector(outwards * spread), vector(turn), vector(mass))
        extent = Extent((vector(mass - 3 * BACK), vector(mass + 8 * BACK)), radius=29.0)
        return Piece(cuts, extent, motion, "nearest")
    surface = fronts[side] if side in fronts else rears[side]
    # Held at its other end: the arch only springs open there.
    extent = Extent((surface.origin, vector(mass)), radius=9.0, fade=1.5, taper=True)
    way = normalised(np.asarray(surface.origin) - centre)
    return Piece(((surface, 1),), extent, Motion(shift=vector(way * 0.5 * spread)))


def plan_dens_i(draft: Draft) -> tuple[Change, ...]:
    """Avulsion of the tip of the dens, oblique."""
    tip, waist = draft.at("dens_tip"), draft.at("dens_base")
    point = between(tip, waist, draft.rng.uniform(0.15, 0.35))
    normal = normalised(UP + draft.lateral * draft.rng.uniform(0.3, 0.9) * np.array([1.0, 0, 0]))
    surface = draft.surface(point, normal, gap=draft.gap(1.5), tilt=15, rough=0.7)
    extent = Extent((vector(point), vector(tip + 6 * UP)), radius=9.0)
    motion = _moved(draft, normal * draft.shift(3.0), draft.tilted(UP, 90) * draft.shift(15), point)
    return (draft.parted(((surface, 1),), extent, motion),)


def plan_dens_ii(draft: Draft) -> tuple[Change, ...]:
    """Through the waist of the dens, which slips back (extension) or forward and tilts."""
    waist, tip = draft.at("dens_base"), draft.at("dens_tip")
    backwards = draft.rng.choice([1.0, 1.0, -1.0])
    point = waist + UP * draft.rng.uniform(-2.5, 2.0)
    normal = normalised(UP - backwards * draft.rng.uniform(0.0, 0.5) * BACK)
    hinge = None
    if draft.severity < 0.3 and draft.rng.uniform() < 0.4:
        hinge = (float(draft.rng.uniform(0, 2 * np.pi)), float(draft.rng.uniform(0.0, 3.0)))
    surface = draft.surface(point, normal, gap=draft.gap(2.0), tilt=8, rough=1.1, hinge=hinge)
    extent = Extent((vector(point), vector(tip + 5 * UP)), radius=10.5, fade=1.5)
    turn = np.array([-backwards * draft.shift(17.0), draft.rng.normal(0, 4) * draft.severity, 0.0])
    slip = backwards * BACK + draft.rng.normal(0, 0.25) * np.array([1.0, 0, 0])
    motion = _moved(draft, slip * draft.shift(6.0), turn, point)
    return (draft.parted(((surface, 1),), extent, motion), *draft.chips(point, 4.0, most=3))


def plan_dens_iii(draft: Draft) -> tuple[Change, ...]:
    """Into the cancellous body of C2: a bowl that comes out through the superior facets."""
    waist, tip = draft.at("dens_base"), draft.at("dens_tip")
    deep = draft.rng.uniform(4.5, 8.0)
    point = waist - deep * UP
    rise = 2 * deep * draft.rng.uniform(0.5, 1.0) / 12.0**2
    backwards = draft.rng.choice([1.0, -1.0, -1.0])
    surface = draft.surface(point, UP, gap=draft.gap(2.0), tilt=10, curvature=(rise, rise * 0.6), rough=1.4)
    extent = Extent((vector(point), vector(tip + 4 * UP)), radius=19.0, fade=2.0)
    turn = np.array([-backwards * draft.shift(11.0), draft.rng.normal(0, 3) * draft.severity, 0.0])
    motion = _moved(draft, backwards * BACK * draft.shift(4.5), turn, point)
    return (draft.parted(((surface, 1),), extent, motion), *draft.chips(point + 2 * UP, 7.0, most=4))


def plan_hangman(draft: Draft) -> tuple[Change, ...]:
    """Both partes interarticulares of C2; the arch stays behind while the body goes forward."""
    cuts = []
    gap = draft.gap(2.0)
    # Atypical: one of the two lines runs through the back of the body instead.
    atypical = draft.rng.uniform() < 0.3
    for side in _SIDES:
        point = draft.at("pars", side) + draft.jitter(1.6)
        if atypical and side == draft.side:
            point = between(draft.at("body_posterior"), draft.at("pars", side), 0.35) - 1.5 * BACK
        sign = 1.0 if side == "left" else -1.0
        normal = BACK + draft.rng.uniform(-0.1, 0.55) * np.array([sign, 0, 0]) - draft.rng.uniform(0, 0.5) * UP
        cuts.append((draft.surface(point, normal, gap=gap, tilt=12, rough=1.1), 1))
    base, tip = draft.at("spinous_base"), draft.at("spinous_tip")
    start = between(cuts[0][0].origin, cuts[1][0].origin, 0.5)
    end = vector(tip + 6 * normalised(tip - base))
    extent = Extent((cuts[0][0].origin, vector(base), end, vector(base), cuts[1][0].origin), radius=12.5)
    turn = np.array([draft.shift(8.0), 0.0, 0.0]) + draft.jitter(1.5) * draft.severity
    way = BACK + draft.rng.uniform(-0.3, 0.2) * UP
    motion = _moved(draft, way * draft.shift(3.5), turn, start)
    return (draft.parted(tuple(cuts), extent, motion, "nearest"), *draft.chips(cuts[0][0].origin, 4.0, most=3))


def _moved(draft: Draft, shift: Xyz, turn: Xyz, pivot: Xyz) -> Motion:
    """A movement, or none for a hairline (and so no resampling)."""
    if draft.severity <= 0.15:
        return Motion()
    return Motion(vector(shift), vector(turn), vector(pivot))
