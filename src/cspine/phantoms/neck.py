"""The neck in front of the spine, its outline, and the build of the soft tissue.

Sizes are those of average men, read off axial CT; ranges of HU follow common radiological tables (fat -120 to -80,
muscle 40 to 65, thyroid gland 80 to 130, blood 40 to 50, enhanced arteries 200 to 400).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cspine.phantoms.column import Column
from cspine.phantoms.paint import FINE, Coat, Layer
from cspine.phantoms.parts import Part, Tube, curve, rods
from cspine.phantoms.spine import Anatomy

SKIN_MM = 1.9


@dataclass(frozen=True, slots=True)
class Habitus:
    """The build of the soft tissue.

    Attributes:
        bulk: factor on muscle sections, 1 = average man.
        fat_mm: subcutaneous fat at the neck.
        grow_mm: how far muscles fill the room between them.
        seam_mm: width of the fat planes between muscles.
        streaks: fatty infiltration of muscle, 0..1.
        shoulder_up: mm by which the shoulders are raised.
        muscle_hu: of lean muscle.
        fat_hu: of subcutaneous fat.
        arteries_hu, veins_hu: of the blood.
    """

    bulk: float
    fat_mm: float
    grow_mm: float
    seam_mm: float
    streaks: float
    shoulder_up: float
    muscle_hu: float
    fat_hu: float
    arteries_hu: float
    veins_hu: float


def sample_habitus(anatomy: Anatomy, rng: np.random.Generator) -> Habitus:
    """A build that fits the anatomy's sex, age and fat."""
    strong = 1.0 if anatomy.sex == "male" else 0.93
    blood = float(rng.uniform(36, 50))
    arteries = float(rng.uniform(190, 420)) if anatomy.contrast else blood
    return Habitus(
        bulk=float(np.clip(rng.normal(strong, 0.075), 0.8, 1.2)),
        fat_mm=1.5 + 20.0 * anatomy.fat**1.4 * float(rng.uniform(0.8, 1.25)),
        grow_mm=float(np.clip(rng.normal(4.2, 0.6) - 2.6 * anatomy.fat, 0.8, 5.0)),
        seam_mm=float(np.clip(0.5 + 1.5 * anatomy.fat + 0.012 * (anatomy.age - 40) + rng.normal(0, 0.3), 0.3, 3.0)),
        streaks=float(np.clip((anatomy.age - 35) / 60 + 0.3 * anatomy.fat + rng.normal(0, 0.15), 0, 1)),
        shoulder_up=float(np.clip(rng.normal(-3, 11), -28, 18)),
        muscle_hu=float(rng.uniform(48, 62)) - 0.12 * (anatomy.age - 40) + (8 if anatomy.contrast else 0),
        fat_hu=float(rng.uniform(-112, -92)),
        arteries_hu=arteries,
        veins_hu=arteries * float(rng.uniform(0.35, 0.9)) if anatomy.contrast else blood + float(rng.uniform(-3, 3)),
    )


# Level: how far the muscles' outline reaches in front of, behind and beside the line of the bodies, mm.
_OUTLINE = (
    (-2.0, -8, 58, 44),
    (-1.0, 4, 68, 54),
    (0.0, 16, 72, 58),
    (1.0, 30, 68, 58),
    (2.0, 46, 61, 55),
    (3.0, 51, 58, 53),
    (4.0, 53, 58, 52),
    (5.0, 51, 60, 52),
    (6.0, 49, 63, 55),
    (7.0, 48, 67, 66),
    (8.0, 50, 70, 84),
    (9.5, 58, 72, 98),
)


def neck_outline(column: Column, habitus: Habitus, loose: float = 0.0) -> Tube:
    """The skin of the neck, from the occiput into the shoulders, or what lies ``loose`` mm around it."""
    grow = habitus.fat_mm + SKIN_MM + 0.5 + loose
    bulk = habitus.bulk
    nodes = [
        (level, 0.0, (back - front) / 2, side * bulk, (back + front) / 2 * bulk**0.6)
        for level, front, back, side in _OUTLINE
    ]
    return column.tube(nodes, grow=grow, power=2.3)


def airway_nodes(rng: np.random.Generator) -> list[tuple[float, ...]]:
    """Pharynx, larynx and trachea as nodes of a tube."""
    wide = float(rng.uniform(0.75, 1.25))
    deep = float(rng.uniform(0.6, 1.25))
    larynx = float(rng.normal(0, 0.25))  # levels; women's and young people's lie higher
    trachea = float(rng.normal(1, 0.08))
    aside = float(rng.normal(0, 1.5))
    return [
        (-0.25, 0, -24, 12 * wide, 5),
        (0.3, 0, -25, 13 * wide, 7 * deep),
        (1.0, 0, -25, 13 * wide, 6 * deep),
        (2.0, 0, -24.5, 12 * wide, 6 * deep),
        (2.8, 0, -25, 14 * wide, 6.5 * deep),
        (3.4 + larynx, 0, -28, 14 * wide, 8.5 * deep),
        (4.0 + larynx, 0.3 * aside, -31, 10, 9),
        (4.6 + larynx, 0.3 * aside, -35, 6.5, 9.5),
        (5.1 + larynx, 0.4 * aside, -36.5, 2.6, 10.5),
        (5.3 + larynx, 0.4 * aside, -36.5, 3.0, 10.5),
        (5.9 + larynx, 0.5 * aside, -36, 7.5, 9),
        (6.6 + larynx, 0.7 * aside, -36, 8.6 * trachea, 8.6 * trachea),
        (8, aside, -36, 9.2 * trachea, 8.4 * trachea),
        (10, aside + 2, -35, 9.4 * trachea, 8.2 * trachea),
        (12, aside + 4, -36, 9.6 * trachea, 8.2 * trachea),
    ]


def airway_layers(
    column: Column, anatomy: Anatomy, habitus: Habitus, rng: np.random.Generator
) -> tuple[list[Layer], list[Layer]]:
    """Airway with its wall, oesophagus, cartilages and thyroid gland; and, if intubated, the tube."""
    nodes = airway_nodes(rng)
    lumen = column.tube(nodes)
    larynx = nodes[8][0] - 5.1
    wall_hu = habitus.muscle_hu - 6
    pharynx = column.tube(
        [
            (-0.2, 0, -19, 15, 9),
            (1.0, 0, -20, 17, 9),
            (2.0, 0, -21, 19, 11),
            (3.2, 0, -24, 19, 12),
            (4.2 + larynx, 0, -29, 16, 14),
            (5.2 + larynx, 0, -32, 14, 16),
            (6.0 + larynx, 0, -31, 13, 14),
            (6.8 + larynx, 0, -32, 10, 12),
        ]
    )
    aside = float(rng.normal(4, 1.5))
    gullet = column.tube(
        [(6.0 + larynx, 1, -19, 10, 3.5), (7, aside, -20.5, 8, 5), (9, aside, -21, 7.5, 5.5), (14, aside, -24, 8, 6)]
    )
    gas = column.tube([(7.5, aside, -20.5, 1, 1), (8, aside, -20.5, 3, 1.5), (8.6, aside, -20.5, 1, 1)])
    layers = [
        Layer((pharynx, gullet), (Coat(0.0, wall_hu, grain=5.0, mottle=6.0),), ragged=0.6),
        Layer((column.tube(_piriform(larynx, 1)), column.tube(_piriform(larynx, -1))), (Coat(0.0, -1000.0),), FINE),
        *_glands(column, anatomy, larynx, rng),
        *_cartilages(column, anatomy, larynx, rng),
        Layer((lumen,), (Coat(1.6, wall_hu, grain=5.0), Coat(0.0, -1000.0)), FINE, ragged=0.25),
    ]
    if rng.random() < 0.4:
        layers.insert(1, Layer((gas,), (Coat(0.0, -900.0),), FINE))
    layers.append(_epiglottis(column, larynx, wall_hu))
    return layers, [_endotracheal_tube(column, nodes)] if anatomy.intubated else []


def _piriform(larynx: float, side: int) -> list[tuple[float, ...]]:
    return [
        (3.8 + larynx, side * 12, -27, 3, 3),
        (4.3 + larynx, side * 12, -28, 3.6, 5.5, side * -20),
        (5.0 + larynx, side * 10, -27, 2, 4, side * -20),
        (5.2 + larynx, side * 10, -27, 0.6, 1),
    ]


def _epiglottis(column: Column, larynx: float, hu: float) -> Layer:
    plate = column.tube(
        [
            (3.0 + larynx, 0, -32, 9, 1.0, 0, 0.03),
            (3.6 + larynx, 0, -33, 11, 1.3, 0, 0.03),
            (4.2 + larynx, 0, -38, 7, 1.6, 0, 0.03),
        ]
    )
    return Layer((plate,), (Coat(0.0, hu),), FINE)


def _glands(column: Column, anatomy: Anatomy, larynx: float, rng: np.random.Generator) -> list[Layer]:
    size = float(rng.uniform(0.75, 1.35))
    parts: list[Part] = []
    for side in (1, -1):
        own = size * float(rng.uniform(0.85, 1.15))
        parts.append(
            column.tube(
                [
                    (4.9 + larynx, 17, -35, 2, 3),
                    (5.8 + larynx, 17, -35, 5.5 * own, 8 * own, -15),
                    (6.8 + larynx, 16, -35, 7.5 * own, 10 * own, -15),
                    (7.6 + larynx, 15, -35, 6 * own, 8 * own, -15),
                    (8.2 + larynx, 14, -35, 2, 3),
                ],
                side=side,
            )
        )
    parts.append(
        column.tube(
            [(6.2 + larynx, 0, -48, 8, 1), (6.6 + larynx, 0, -49, 13, 2.6, 0, 0.015), (7.1 + larynx, 0, -48, 8, 1)]
        )
    )
    thyroid = float(rng.uniform(75, 125)) + (70 if anatomy.contrast else 0)
    return [Layer(tuple(parts), (Coat(0.0, thyroid, grain=8.0, mottle=10.0),), FINE, ragged=0.5)]


def _cartilages(column: Column, anatomy: Anatomy, larynx: float, rng: np.random.Generator) -> list[Layer]:
    """Thyroid cartilage (two plates that meet in front) and cricoid ring, calcified with age from the rim inwards."""
    s = column.scale
    sharp = 1.0 if anatomy.sex == "male" else 0.85
    plates: list[Part] = []
    for level, out, back in ((4.0, 21, -31), (4.5, 21.5, -32), (5.0, 20, -33), (5.5, 17, -34)):
        front = -53 * sharp if level > 4.2 else -48 * sharp
        for side in (1, -1):
            points = [
                column.place(level + larynx, side * a, b)
                for a, b in ((0.5, front), (11, (front + back) / 2 - 2), (out, back), (out - 1, back + 3))
            ]
            plates += rods(points, 1.5 * s, flat=0.35)
    for side in (1, -1):
        plates += rods([column.place(k + larynx, side * 20.5, -28) for k in (3.5, 4.5, 5.6)], 1.5 * s)
    ring: list[Part] = []
    for level, radius, deep in ((5.6, 11.5, 13.5), (5.95, 11.5, 13), (6.2, 11.3, 12)):
        angles = np.radians(np.arange(0, 361, 24))
        high = 0.25 * np.cos(angles)  # the back of the ring is tall, its front low
        points = [
            column.place(level + larynx - h, radius * np.sin(t), -35.5 + deep * np.cos(t))
            for t, h in zip(angles, high, strict=True)
        ]
        ring += rods(points, 1.6 * s, flat=0.6)
    old = float(np.clip((anatomy.age - 25) / 45 + rng.normal(0, 0.2), 0, 1))
    shell = Coat(0.0, 110 + 330 * old, grain=60 + 120 * old, mottle=110 * old)
    core = Coat(-0.9, 80 + 60 * old, grain=25, mottle=60 * old)
    return [Layer((*plates, *ring), (shell, core), FINE, blend=1.0)]


def _endotracheal_tube(column: Column, nodes: list[tuple[float, ...]]) -> Layer:
    """A tube from the mouth through the glottis into the trachea: plastic wall, air inside."""
    places = ((1.9, 16, -160, 6), (1.7, 10, -120, 4), (1.55, 7, -98, 2), (1.35, 5, -72, 0), (1.5, 3, -42, 0))
    mouth = [column.place(*p) for p in places]
    inside = [column.place(n[0], n[1], n[2] + 1.0) for n in nodes if n[0] > 2.5 and n[0] < 10.5]
    line = curve([*mouth, *inside], 60)
    return Layer(tuple(rods(line, 5.0)), (Coat(0.0, 420.0), Coat(-1.6, -1000.0)), FINE)
