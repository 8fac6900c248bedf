"""Plans of vertebral body fractures: teardrop, burst, wedge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cspine.phantoms.breakage import Change, Extent, Motion, Piece, Roughness
from cspine.phantoms.crush import Crush
from cspine.phantoms.fracture_draft import BACK, UP, Draft, normalised, vector


def plan_teardrop(draft: Draft) -> tuple[Change, ...]:
    """The anteroinferior corner; severe flexion ones split the body sagittally too."""
    front, bottom, top = draft.at("body_anterior"), draft.at("body_inferior"), draft.at("body_superior")
    height, depth = top[2] - bottom[2], draft.at("body_posterior")[1] - front[1]
    corner = np.array([0.0, front[1], bottom[2]])
    size = draft.rng.uniform(0.25, 0.55) if draft.level > 2 else draft.rng.uniform(0.15, 0.35)
    inset = np.array([draft.rng.uniform(-1, 1), 0.5 * size * depth, 0.5 * size * height])
    outwards = normalised(np.array([0.0, -height, -depth]) + draft.jitter(3.0))
    surface = draft.surface(corner + inset, outwards, gap=draft.gap(2.5), tilt=10, rough=1.1)
    extent = Extent((vector(corner), vector(corner - 2 * BACK)), radius=17.0)
    turn = np.array([draft.shift(14.0) * draft.rng.choice([-1.0, 1.0]), 0.0, 0.0])
    way = normalised(-BACK - draft.rng.uniform(0.0, 0.8) * UP + draft.jitter(0.15))
    motion = Motion(vector(way * draft.shift(3.5)), vector(turn), vector(corner + inset))
    changes = [draft.parted(((surface, 1),), extent, motion)]
    if draft.level > 2 and draft.severity > 0.5 and draft.rng.uniform() < 0.7:
        changes.insert(0, _sagittal_split(draft))
    return (*changes, *draft.chips(corner + inset, 4.0, most=3))


def _sagittal_split(draft: Draft) -> Change:
    """A vertical crack through the body, without displacement."""
    back = draft.at("body_posterior")
    point = np.array([draft.rng.uniform(-3, 3), 0.0, 0.0])
    surface = draft.surface(point, (1, 0, 0), gap=draft.gap(1.2), tilt=14)
    extent = Extent((vector(-0.6 * back), vector(0.6 * back)), radius=float(back[1] * 0.4 + 6.0), fade=1.5)
    return draft.parted(((surface, 1),), extent, Motion())


def plan_wedge(draft: Draft) -> tuple[Change, ...]:
    """The anterior part of the superior endplate driven in, a dense line below it, a step in the front wall."""
    top, front, back = draft.at("body_superior"), draft.at("body_anterior"), draft.at("body_posterior")
    height = top[2] - draft.at("body_inferior")[2]
    loss = height * (0.06 + 0.42 * draft.severity * draft.rng.uniform(0.6, 1.0))
    crush = Crush(
        endplate=float(top[2]),
        floor=float(top[2] - min(loss + 0.32 * height, 0.8 * height)),
        front=float(front[1]),
        back=float(back[1]),
        half_width=float(abs(draft.at("body")[0])),
        loss_front=float(loss),
        loss_back=float(loss * draft.rng.uniform(0.0, 0.12)),
        bulge=float(draft.rng.uniform(0.4, 0.8 + 1.2 * draft.severity)),
        density=float(draft.rng.uniform(160, 400)) * (0.5 if draft.chronic else 1.0),
        roughness=Roughness.draw(draft.rng, 0.7, longest=11.0, count=4),
        healed=draft.chronic,
    )
    if draft.chronic:
        return (crush,)
    return (crush, _cortical_step(draft, float(top[2] - loss), float(front[1]), float(back[1])))


def _cortical_step(draft: Draft, ledge: float, front: float, back: float) -> Change:
    """A crack in the front wall under the crushed endplate; the corner above overhangs."""
    point = np.array([draft.rng.uniform(-2, 2), front, ledge - draft.rng.uniform(2.0, 3.5)])
    # Tangent v of this plane runs front to back: the crack closes a few millimetres in.
    normal = normalised(UP - 0.25 * BACK)
    surface = draft.surface(point, normal, gap=min(draft.gap(1.2), 0.9), tilt=4, rough=0.8)
    _, along = surface.tangents()
    inwards = float(np.sign(along[1]))
    angle = 0.5 * np.pi * inwards
    depth = draft.rng.uniform(0.15, 0.5) * (back - front)
    surface = replace(surface, hinge=(float(angle), float(depth)))
    extent = Extent((vector(point), vector(point + 4 * UP)), radius=12.0, fade=2.0)
    return draft.parted(((surface, 1),), extent, Motion())


def plan_burst(draft: Draft) -> tuple[Change, ...]:
    """Both endplates' distance lost, the body in pieces, one of them driven into the canal."""
    top, bottom = draft.at("body_superior")[2], draft.at("body_inferior")[2]
    front, back = float(draft.at("body_anterior")[1]), float(draft.at("body_posterior")[1])
    height = top - bottom
    strength = 0.35 + 0.65 * draft.severity
    loss = height * strength * draft.rng.uniform(0.15, 0.38)
    crush = Crush(
        endplate=float(top),
        floor=float(top - min(loss + 0.35 * height, 0.8 * height)),
        front=front,
        back=back,
        half_width=float(abs(draft.at("body")[0])),
        loss_front=float(loss),
        loss_back=float(loss * draft.rng.uniform(0.35, 0.8)),
        bulge=float(draft.rng.uniform(0.5, 1.5)),
        density=float(draft.rng.uniform(80, 240)),
        roughness=Roughness.draw(draft.rng, 0.9, longest=9.0, count=4),
        healed=draft.chronic,
    )
    middle = 0.5 * (front + back)
    chips = draft.chips((0.0, middle, 0.0), 7.0, most=7)
    return (draft.broken(_burst_pieces(draft, front, back, top - 0.8 * loss, bottom)), crush, *chips)


def _burst_pieces(draft: Draft, front: float, back: float, top: float, bottom: float) -> tuple[Piece, ...]:
    """Two front pieces, left and right of a sagittal crack, and the fragment in front of the canal."""
    rng, gap = draft.rng, draft.gap(1.5)
    depth, height = back - front, top - bottom
    split = draft.surface((rng.uniform(-3, 3), front, 0), (1, 0, 0), gap=gap, tilt=16, rough=1.2)
    behind = front + depth * rng.uniform(0.45, 0.65)
    coronal = draft.surface((0, behind, 0), -BACK, gap=gap, tilt=14, curvature=(0.05, 0.0), rough=1.3)
    # As wide as the body, so that the roots of the transverse processes stay out of it.
    aside = max(abs(float(draft.at("body")[0])) - 0.5 * depth, 0.5)
    middle = 0.5 * (front + back)
    reach = Extent(((-aside, middle, 0.0), (aside, middle, 0.0)), radius=float(0.5 * depth + 3.0), fade=1.5)
    pieces = []
    for sign in (1, -1):
        way = np.array([0.8 * sign, -1.0, 0.0]) * rng.uniform(0.4, 1.0) + draft.jitter(0.2)
        turn = draft.tilted(UP, 60) * draft.shift(7.0)
        motion = Motion(vector(way * draft.shift(1.7)), vector(turn), vector((sign * 5.0, 0.5 * (front + behind), 0)))
        pieces.append(Piece(((coronal, 1), (split, sign)), reach, motion))
    # A bowl that opens backwards: the fragment leaves through the posterior wall between the pedicles.
    thick, wide = rng.uniform(3.0, 5.0), rng.uniform(5.5, 7.5)
    bowl = 2 * (thick + 1.0) / wide**2
    at = np.array([rng.uniform(-1.5, 1.5), back - thick, top - 0.3 * height])
    normal = normalised(BACK + 0.35 * UP)
    shell = draft.surface(at, normal, gap=gap, tilt=8, curvature=(bowl, bowl * 0.6), rough=0.7)
    turn = np.array([-draft.shift(14.0), 0.0, 0.0]) + draft.jitter(2.0)
    shift = BACK * max(draft.shift(5.5), 0.8) + draft.jitter(0.3)
    extent = Extent((vector(at), vector(at + 4 * normal)), radius=wide + 3.0)
    pieces.append(Piece(((shell, 1),), extent, Motion(vector(shift), vector(turn), vector(at))))
    return tuple(pieces)
