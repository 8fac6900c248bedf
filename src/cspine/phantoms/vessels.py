"""Vessels of the neck: carotid, jugular, subclavian and vertebral, with or without contrast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cspine.phantoms.canal import world
from cspine.phantoms.column import Column
from cspine.phantoms.neck import Habitus
from cspine.phantoms.paint import FINE, Coat, Layer
from cspine.phantoms.parts import Rod, Vector, curve, rods
from cspine.phantoms.spine import Spine

Place = tuple[float, float, float]  # level, left, back

_SUBCLAVIAN: tuple[Place, ...] = (
    (9.6, 10, -40),
    (8.5, 22, -30),
    (8.0, 36, -22),
    (8.4, 58, -27),
    (9.0, 92, -34),
    (9.8, 128, -18),
)
_JUGULAR: tuple[Place, ...] = (
    (-0.2, 25, -2),
    (1, 29, -3),
    (2, 33, -7),
    (3.5, 35, -15),
    (5, 34, -19),
    (6.5, 31, -26),
    (8, 25, -36),
    (9, 20, -46),
)
# The other veins, with their radius in mm: subclavian, external and anterior jugular.
_VEINS: tuple[tuple[float, tuple[Place, ...]], ...] = (
    (5.2, ((8.8, 20, -48), (8.9, 45, -50), (9.2, 75, -50), (9.8, 122, -34))),
    (2.2, ((2.2, 53, -8), (4, 51, -6), (6, 47, -14), (7.8, 42, -24), (8.6, 36, -34))),
    (1.3, ((3.2, 9, -62), (6, 11, -57), (8.5, 10, -60))),
)


def vessel_layers(spine: Spine, column: Column, habitus: Habitus, rng: np.random.Generator) -> list[Layer]:
    """All vessels in painting order; the right jugular is usually the larger, plaque comes with age."""
    s = column.scale
    arteries: list[Rod] = vertebral_arteries(spine)
    veins: list[Rod] = []
    plaque: list[Rod] = []
    sheath: list[Rod] = []
    split = float(rng.normal(3.7, 0.4))
    for side in (1, -1):
        wander = float(rng.normal(0, 1.2))
        jugular = float(rng.uniform(0.7, 1.15)) * (1.12 if side < 0 else 0.92)
        carotid, branches = _carotid(column, side, split, wander)
        arteries += [*carotid, *branches, *rods(_line(column, _SUBCLAVIAN, side), 4.2 * s)]
        line = _line(column, _JUGULAR, side)
        thick = np.interp(np.linspace(0, 1, len(line)), [0, 0.2, 0.5, 0.8, 1], [3.5, 4.2, 6.0, 6.8, 6.5]) * jugular * s
        vein = rods(line, thick.tolist())
        veins += vein
        sheath += [*vein, *carotid]
        for radius, places in _VEINS:
            veins += rods(_line(column, places, side), radius * s)
        if rng.random() < np.clip((spine.anatomy.age - 45) / 50, 0, 0.8):
            here = column.place(split, side * (26 + wander), -22)
            plaque += rods(here + rng.normal(0, 1.2, (3, 3)) + np.array([2.5 * side, 1, 0]), 1.1)
    veins += rods([column.place(9.2, 20, -46), column.place(9.8, -12, -44), column.place(12, -22, -44)], 6.5 * s)
    arteries += rods([column.place(10, 8, -42), column.place(11.2, 4, -50), column.place(12, -8, -56)], 10 * s)
    room = 0.3 + 0.09 * habitus.fat_mm
    layers = [
        Layer(tuple(sheath), (Coat(room, habitus.fat_hu + 12, mottle=12.0),), blend=6.0, ragged=0.9),
        Layer(tuple(veins), (Coat(0.0, habitus.veins_hu, grain=4.0),), FINE),
        Layer(tuple(arteries), (Coat(0.0, habitus.arteries_hu, grain=4.0),), FINE),
    ]
    if plaque:
        layers.append(Layer(tuple(plaque), (Coat(0.0, 700.0, mottle=150.0),), FINE))
    return layers


def _carotid(column: Column, side: int, split: float, wander: float) -> tuple[list[Rod], list[Rod]]:
    """Common and internal carotid, which share the jugular's sheath, and the external carotid."""
    s = column.scale
    fork = (split, 26 + wander, -22)
    common = [(10, 9, -46), (9, 15, -38), (8, 19, -33), (7, 22 + wander, -29), (5.5, 24 + wander, -26), fork]
    inner = [fork, (split - 0.6, 28, -19), (2, 27 + wander, -14), (1, 26, -12), (0.2, 25, -12), (-0.4, 20, -18)]
    outer = [fork, (split - 0.6, 25, -27), (2, 31, -27), (1, 38, -22), (0, 44, -16)]
    main = [*rods(_line(column, common, side), 3.6 * s), *rods(_line(column, inner, side), 2.6 * s)]
    line = _line(column, outer, side)
    return main, rods(line, (2.3 * s, *[1.8 * s] * (len(line) - 1)))


def _line(column: Column, places: Sequence[Place], side: int) -> Vector:
    return curve([column.place(level, side * left, back) for level, left, back in places], 4 * len(places))


def vertebral_arteries(spine: Spine) -> list[Rod]:
    """Left and right vertebral artery: up through the transverse foramina C6..C1, around C1, into the skull."""
    s = spine.anatomy.scale
    out: list[Rod] = []
    for side, sign in (("left", 1), ("right", -1)):
        points = [spine.poses[8][:3, :3] @ np.array([sign * 22 * s, -26 * s, -6]) + spine.poses[8][:3, 3]]
        points.append(spine.poses[7][:3, :3] @ np.array([sign * 24 * s, -10 * s, 0]) + spine.poses[7][:3, 3])
        points += [world(spine, k, f"foramen_{side}") for k in range(6, 0, -1)]
        arch = world(spine, 1, f"posterior_arch_{side}")
        top = world(spine, 1, f"foramen_{side}")
        out_of_atlas = (top + np.array([0, 3 * s, 6 * s]), arch + np.array([0, 0, 7 * s]))
        dura = spine.head[:3, :3] @ np.array([sign * 9 * s, 12 * s, 3 * s]) + spine.head[:3, 3]
        basilar = spine.head[:3, :3] @ np.array([sign * 1.5 * s, -6 * s, 20 * s]) + spine.head[:3, 3]
        line = curve([*points, *out_of_atlas, dura, basilar], 48)
        out += rods(line, 1.9 * s)
    return out
