"""Shoulders and upper chest: outline, ribs, clavicles, scapulae, humeri, sternum, lungs.

Ribs start at the joints and transverse processes of the thoracic vertebrae and run round an oval that widens
downwards (dimensions from chest CT of average men).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cspine.phantoms.canal import world
from cspine.phantoms.column import Column
from cspine.phantoms.neck import SKIN_MM, Habitus
from cspine.phantoms.paint import Coat, Layer
from cspine.phantoms.parts import Ball, Block, Part, Rod, Vector, curve, frame_at, rods
from cspine.phantoms.skeleton import BoneStep
from cspine.phantoms.spine import Spine

SIDES = (1, -1)
# Of ribs 1 to 5, mm: half width, front, back (from the line of the bodies), descent, sternal end beside the midline.
_RIBS = (
    (60, -60, 34, 26, 24),
    (86, -72, 50, 40, 22),
    (106, -86, 58, 54, 24),
    (118, -96, 62, 66, 26),
    (126, -102, 64, 76, 28),
)


@dataclass(frozen=True)
class Thorax:
    """What lies below the neck."""

    outline: tuple[Part, ...]
    bones: tuple[BoneStep, ...]
    layers: tuple[Layer, ...]


def build_thorax(spine: Spine, column: Column, habitus: Habitus, rng: np.random.Generator) -> Thorax:
    """Shoulders and chest of one person."""
    raised = column.raised(habitus.shoulder_up)
    bones = [*_ribs(spine, column, rng), *_shoulder_girdle(column, raised)]
    layers = [_lungs(column, habitus), _rib_cartilage(column)]
    return Thorax(
        tuple(_outline(column, raised, habitus)),
        tuple(bones),
        tuple(layers),
    )


def _outline(column: Column, raised: Column, habitus: Habitus) -> list[Part]:
    grow = habitus.fat_mm + SKIN_MM
    trunk = column.tube(
        [
            (7.9, 0, 9, 70, 50),
            (8.6, 0, 7, 112, 60),
            (9.5, 0, 2, 142, 70),
            (11, 0, -7, 156, 83),
            (12.5, 0, -12, 160, 93),
            (16, 0, -14, 162, 100),
        ],
        grow=grow,
        power=2.6,
    )
    parts: list[Part] = [trunk]
    s = column.scale
    for side in SIDES:
        points = [
            column.place(6.8, side * 38, 28),
            (column.place(8.0, side * 85, 30) + raised.place(8.0, side * 85, 30)) / 2,
            raised.place(9.0, side * 150, 20),
            raised.place(9.9, side * 178, 8),
            raised.place(12, side * 190, 8),
            raised.place(20, side * 196, 12) - np.array([0, 0, 60.0]),
        ]
        radii = np.array([20, 25, 30, 40, 44, 42]) * s + grow * np.array([0.6, 0.7, 0.7, 0.6, 0.6, 0.6])
        parts += rods(points, radii.tolist())
        # However high the shoulders are pulled, flesh covers collar bone and shoulder blade.
        cover = float(16 * s + 0.6 * grow)
        parts += rods(_clavicle(column, raised, side)[::3], cover)
        parts += rods([raised.place(10.4, side * 62, 58), raised.place(9.0, side * 146, 42)], cover)
    return parts


def _ribs(spine: Spine, column: Column, rng: np.random.Generator) -> list[BoneStep]:
    steps: list[BoneStep] = []
    wide, low = float(rng.normal(1, 0.05)), float(rng.normal(1, 0.15))
    for number, (half, front, back, drop, sternal) in enumerate(_RIBS):
        level = 8 + number
        if level not in spine.poses:
            continue
        for side, sign in (("left", 1), ("right", -1)):
            path = _rib_path(spine, column, level, side, sign, (half * wide, front, back, drop * low, sternal))
            steps += _rib(path, first=number == 0, s=column.scale)
    if spine.anatomy.cervical_rib and 7 in spine.poses:
        for side, sign in (("left", 1), ("right", -1)):
            length = float(rng.uniform(0.15, 0.8))
            tip = world(spine, 7, f"transverse_tip_{side}")
            steps += _rib(
                curve(
                    [
                        tip - [sign * 8, 3, 0],
                        tip + [sign * 3, -2, -1],
                        tip + np.array([sign * 14, -14, -12]) * length,
                        tip + np.array([sign * 18, -30, -24]) * length,
                    ],
                    14,
                ),
                first=True,
                s=0.75 * column.scale,
            )
    return steps


def _rib_path(
    spine: Spine, column: Column, level: int, side: str, sign: int, oval: tuple[float, float, float, float, float]
) -> Vector:
    half, front, back, drop, sternal = oval
    s = column.scale
    joint, tip = world(spine, level, f"costal_{side}"), world(spine, level, f"transverse_tip_{side}")
    middle, deep = (front + back) / 2, (back - front) / 2
    center = column.place(level)
    start = np.degrees(np.arccos(np.clip((abs(tip[0] - center[0]) / s + 4) / half, 0.1, 0.9)))
    angles = np.radians(np.linspace(start - 4, -72, 12))
    points = []
    for i, a in enumerate(angles):
        t = (i + 1) / len(angles)
        height = float(tip[2]) - 2 - drop * s * t**1.15
        here = column.level_at(height)
        points.append(column.place(here, sign * half * np.cos(a), middle + deep * np.sin(a)))
    end = column.place(column.level_at(height - 4), sign * (sternal + 14), front + 4)
    return curve([joint, tip + np.array([0, -1.0, -2.0]), *points, end], 44)


def _rib(path: Vector, *, first: bool, s: float) -> list[BoneStep]:
    """The first rib is flat and lies level; the others stand on edge."""
    radius, flat = (7.0, 2.2) if first else (3.6, 0.62)
    n = len(path)
    radii = np.interp(np.arange(n), [0, 2, n // 2, n - 1], [0.7, 0.8, 1.0, 1.05]) * radius * s
    return [
        BoneStep(Rod(path[i], path[i + 1], float(radii[i]), float(radii[i + 1]), flat), density=0.85, blend=0.5)
        for i in range(n - 1)
    ]


def _shoulder_girdle(column: Column, raised: Column) -> list[BoneStep]:
    s = column.scale
    lean = column.lean_deg(9, 13)
    steps = [
        BoneStep(
            Block(frame_at(column.frame(11.1, 0, -84), (0, 0, 0), (lean - 40, 0, 0)), (27 * s, 6 * s, 24 * s), 5.0),
            density=0.7,
        )
    ]
    for side in SIDES:
        clavicle = _clavicle(column, raised, side)
        steps += [
            BoneStep(r, blend=1)
            for r in rods(clavicle, np.interp(np.arange(16), [0, 3, 10, 15], [8.5, 6.4, 5.2, 6.0]) * s)
        ]
        blade = frame_at(raised.frame(11.7, side * 98, 44), (0, 0, 0), (lean, 0, side * -32))
        lower = raised.place(15.0, side * 84, 66)
        steps += [
            BoneStep(Ball(blade, (44 * s, 3.4 * s, 60 * s)), density=0.9, blend=2),
            BoneStep(Rod(raised.place(10.6, side * 130, 22), lower, 5.5 * s, 4 * s), density=0.9, blend=3),
            BoneStep(Rod(raised.place(10.0, side * 70, 62), raised.place(9.0, side * 146, 44), 4 * s, 6 * s), blend=3),
            BoneStep(
                Rod(raised.place(9.0, side * 146, 44), raised.place(8.9, side * 166, 14), 7 * s, 8 * s, 1.7), blend=2
            ),
            BoneStep(
                Rod(raised.place(9.4, side * 132, 10), raised.place(9.6, side * 128, -22), 8 * s, 5.5 * s), blend=3
            ),
            BoneStep(Ball(raised.frame(10.0, side * 134, 18), (8 * s, 14 * s, 19 * s)), blend=3),
            BoneStep(Ball(raised.frame(9.9, side * 160, 10), (23 * s, 24 * s, 24 * s)), density=0.8, blend=1),
            BoneStep(Rod(raised.place(10.4, side * 168, 8), raised.place(20, side * 190, 12), 15 * s, 11 * s), blend=4),
        ]
    return steps


def _clavicle(column: Column, raised: Column, side: int) -> Vector:
    return curve(
        [
            column.place(10.2, side * 17, -74),
            (column.place(9.7, side * 45, -76) + raised.place(9.7, side * 45, -76)) / 2,
            raised.place(9.0, side * 88, -48),
            raised.place(8.7, side * 125, -18),
            raised.place(8.8, side * 155, 2),
        ],
        16,
    )


def _lungs(column: Column, habitus: Habitus) -> Layer:
    nodes = (
        (8.5, 34, 6, 4, 7),
        (8.95, 38, 1, 19, 26),
        (9.6, 44, -4, 29, 38),
        (10.4, 51, -10, 37, 50),
        (12, 59, -14, 45, 62),
        (16, 64, -16, 52, 72),
    )
    parts = tuple(column.tube(nodes, side=side, power=2.2) for side in SIDES)
    coats = (
        Coat(5.5, habitus.muscle_hu - 12, grain=6.0, mottle=9.0),
        Coat(1.4, -50.0, mottle=12.0),
        Coat(0.0, -865.0, grain=38.0, mottle=22.0),
    )
    return Layer(parts, coats)


def _rib_cartilage(column: Column) -> Layer:
    s = column.scale
    parts: list[Part] = []
    for level, left, back in ((10.3, 36, -60), (11.2, 36, -78), (12.4, 38, -92)):
        ends = [(column.place(level + 0.6, x * left, back), column.place(11.0, x * 24, -84)) for x in SIDES]
        parts += [Rod(a, b, 6 * s, 6 * s) for a, b in ends]
    return Layer(tuple(parts), (Coat(0.0, 105.0, grain=12.0),))
