"""The head around the upper neck: outline, brain, muscles of chewing, tongue, glands, air spaces.

Coordinates as in ``skull``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.column import Column
from cspine.phantoms.muscles import Groups
from cspine.phantoms.neck import Habitus
from cspine.phantoms.paint import FINE, Coat, Layer
from cspine.phantoms.parts import Part, Vector, frame_at
from cspine.phantoms.skeleton import BoneStep
from cspine.phantoms.skull import BRAIN_CASE, SIDES, Place, skull_bones, teeth
from cspine.phantoms.spine import Spine

AIR_HU = -1000.0


@dataclass(frozen=True)
class Head:
    """What the head adds to a scene.

    Attributes:
        outline: skin.
        bones: steps of ``skeleton.draw_bones``.
        layers: soft tissue.
        sinuses: air inside.
        openings: air that meets the outside.
        metal: fillings.
        muscles: parts for the three groups of ``muscles``.
    """

    outline: tuple[Part, ...]
    bones: tuple[BoneStep, ...]
    layers: tuple[Layer, ...]
    sinuses: tuple[Layer, ...]
    openings: tuple[Layer, ...]
    metal: tuple[Part, ...]
    muscles: Groups


def build_head(spine: Spine, column: Column, habitus: Habitus, rng: np.random.Generator) -> Head:
    """The head of one person; proportions vary independently of the spine."""
    size = spine.anatomy.scale**0.5 * (1.0 if spine.anatomy.sex == "male" else 0.97)
    scale = size * np.array([rng.normal(1, 0.035), rng.normal(1, 0.035), rng.normal(1, 0.04)])
    place = Place(spine.head, scale)
    gape = abs(float(rng.normal(0, 5))) + (10 if spine.anatomy.intubated else 0)
    jaw = Place(
        frame_at(spine.head, np.array([0, -20.0, 8.0]) * scale, (gape, 0, 0))
        @ _shift(np.array([0, 20.0, -8.0]) * scale),
        scale,
    )
    roots, fillings = teeth(place, jaw, spine, rng)
    bones = [*skull_bones(place, jaw, spine, column, rng), *roots]
    groups = _muscles(place, jaw)
    sinuses, openings = _air(place, rng)
    return Head(
        tuple(_outline(place, jaw, habitus)),
        tuple(bones),
        tuple(_layers(place, jaw, habitus, rng)),
        tuple(sinuses),
        tuple(openings),
        tuple(fillings),
        groups,
    )


def _shift(by: Vector) -> NDArray[np.float64]:
    out = np.eye(4)
    out[:3, 3] = by
    return out


def _outline(place: Place, jaw: Place, habitus: Habitus) -> list[Part]:
    fat = habitus.fat_mm
    cheek = 0.45 * fat
    parts: list[Part] = [
        place.ball((0, -8, 64), (79 + 0.15 * fat, 99, 84)),
        place.ball((0, -52, 2), (64 + cheek, 60 + 0.2 * cheek, 64)),
        place.ball((0, -78, -6), (42 + cheek, 36, 48)),
        jaw.ball((0, -60, -42), (42 + cheek, 42, 28 + cheek)),
        jaw.rod((0, -84, -46), (0, -94, -54), 15 + 0.3 * fat),
        place.rod((0, -106, 32), (0, -117, 8), 7, 10),
        place.rod((0, -108, 4), (0, -108, 2), 9),
    ]
    for side in SIDES:
        parts += [
            jaw.rod((side * 44, -38, -42), (side * 24, -80, -50), 13 + cheek, 13 + cheek),
            place.ball((side * 82, 4, 14), (3.0, 15, 27), (0, side * 8, side * -22)),
        ]
    return parts


def _muscles(place: Place, jaw: Place) -> Groups:
    """Muscles of chewing, tongue and floor of the mouth, in the seam groups of ``muscles``."""
    first: list[Part] = [place.ball((0, -62, -30), (23, 32, 20)), jaw.rod((0, -66, -40), (0, -84, -48), 13, 9)]
    second: list[Part] = []
    third: list[Part] = []
    for s in SIDES:
        first += [
            jaw.rod((s * 60, -54, 8), (s * 55, -40, -38), 10, 15, flat=2.0, normal=(1, 0.1, 0)),
            jaw.rod((s * 6, -86, -60), (s * 11, -50, -64), 5, 5, flat=1.3),
        ]
        third += [
            place.rod((s * 20, -44, 4), (s * 39, -38, -38), 8, 9, flat=1.3, normal=(1, 0, 0)),
            place.rod((s * 50, 6, -6), (s * 20, -46, -58), 4, 3.5),
        ]
        second += [
            place.ball((s * 68, -32, 36), (6, 27, 32), (0, s * 6, 0)),
            place.rod((s * 20, -46, 14), (s * 45, -22, 8), 9, 6),
            jaw.rod((s * 16, -80, -52), (s * 27, -50, -48), 9, 9, flat=3.0, normal=(0.8, 0.1, 0.5)),
        ]
    # Cheeks and lips, close around the teeth.
    cheek = [(36, -50), (34, -68), (26, -88), (12, -101), (0, -105), (-12, -101), (-26, -88), (-34, -68), (-36, -50)]
    second += place.band([(x, y, -20) for x, y in cheek], 13, 5.0)
    return tuple(first), tuple(second), tuple(third)


def _layers(place: Place, jaw: Place, habitus: Habitus, rng: np.random.Generator) -> list[Layer]:
    """Soft tissue and air of the head, in painting order."""
    brain = [place.ball(center, radii) for center, radii in BRAIN_CASE]
    gland = float(rng.uniform(-25, 30)) - 20 * habitus.streaks
    layers = [
        Layer(tuple(brain), (Coat(0.5, 14.0), Coat(-2.5, 33.0, grain=2.5, mottle=2.0)), ragged=0.8),
        Layer(
            (place.ball((0, 27, 12), (14, 14, 9)), place.ball((0, -12, 22), (10, 7, 14))), (Coat(0.0, 9.0, grain=2.0),)
        ),
        Layer(
            (place.rod((0, -52, -2), (0, -36, -17), 13, 9, flat=2.8, normal=(0, 0.7, 0.7)),),
            (Coat(0.0, habitus.muscle_hu - 8),),
            FINE,
        ),
        Layer(
            tuple(place.ball((s * 54, -17, -16), (10, 15, 24), (0, 0, s * 15)) for s in SIDES),
            (Coat(0.0, gland, grain=12.0, mottle=22.0),),
            ragged=0.8,
        ),
        Layer(
            tuple(jaw.ball((s * 29, -48, -60), (8, 15, 11)) for s in SIDES),
            (Coat(0.0, float(rng.uniform(30, 60)), grain=6.0, mottle=8.0),),
            ragged=0.5,
        ),
        *_orbits(place),
    ]
    return layers


def _orbits(place: Place) -> list[Layer]:
    globes = tuple(place.ball((s * 31, -86, 32), (12, 12, 12)) for s in SIDES)
    strings = []
    for s in SIDES:
        strings.append(place.rod((s * 30, -76, 32), (s * 14, -46, 36), 2.2))
        strings += [
            place.rod((s * (30 + a), -80, 32 + b), (s * 16, -50, 36), 2.4)
            for a, b in ((12, 0), (-12, 0), (0, 12), (0, -12))
        ]
    return [
        Layer(tuple(strings), (Coat(0.0, 40.0),), FINE),
        Layer(globes, (Coat(0.0, 55.0), Coat(-1.2, 10.0)), FINE),
    ]


def _air(place: Place, rng: np.random.Generator) -> tuple[list[Layer], list[Layer]]:
    """Sinuses, nose, ear canals, air over the tongue, with mucosa."""
    full = float(rng.random() < 0.12)  # an opacified maxillary sinus
    sinuses: list[Part] = [place.ball((0, -41, 29), (12.5, 11, 10)), place.block((0, -70, 38), (12, 21, 10), 3)]
    sinuses += [place.ball((s * 28, -64, 13), (14, 18, 17)) for s in (SIDES if not full else SIDES[:1])]
    canals: list[Part] = []
    nose: list[Part] = [place.block((0, -70, 13), (13, 28, 16), 10)]
    turbinates: list[Part] = [place.block((0, -70, 13), (1.6, 26, 17), 1)]
    for s in SIDES:
        canals += [place.rod((s * 46, -8, 15), (s * 86, -7, 15), 3.4), place.ball((s * 45, -9, 16), (4, 4, 6))]
        canals += [place.ball((s * 55, 10, 8), (8.5, 13, 17))]
        nose.append(place.rod((s * 5, -96, 4), (s * 6, -112, -2), 5, 4.5))
        turbinates += [
            place.rod((s * 8, -88, 4), (s * 8, -54, 4), 4.2, 3.4),
            place.rod((s * 8, -84, 16), (s * 8, -54, 17), 3.2, 2.8),
        ]
    sinus_layers = [
        Layer(
            (place.ball((float(rng.normal(0, 3)), -74, -8.8), (15, 16, float(rng.uniform(0.8, 3.0)))),),
            (Coat(0.0, AIR_HU),),
            FINE,
        ),
        Layer(tuple(sinuses), (Coat(0.8, 35.0), Coat(-float(rng.uniform(0, 2.0)), AIR_HU)), FINE),
    ]
    open_layers = [
        Layer(tuple(nose), (Coat(1.0, 35.0), Coat(0.0, AIR_HU)), FINE, ragged=0.5),
        Layer(tuple(turbinates), (Coat(0.0, 40.0, grain=8.0),), FINE, ragged=0.5),
        Layer(tuple(canals), (Coat(0.0, AIR_HU),), FINE),
    ]
    return sinus_layers, open_layers
