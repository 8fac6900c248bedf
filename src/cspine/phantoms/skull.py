"""Skull, jaw, teeth and hyoid, as steps of ``skeleton.draw_bones``.

Coordinates are mm of a mean man in the frame of ``Spine.head``: origin between the lowest points of the occipital
condyles, x left, y back, z up, the Frankfurt plane level. Proportions follow cephalometric means (Farkas,
"Anthropometry of the Head and Face", 1994) and axial CT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.phantoms.column import Column
from cspine.phantoms.parts import Ball, Block, Part, Rod, Vector, curve, frame_at
from cspine.phantoms.skeleton import BoneStep
from cspine.phantoms.spine import Spine
from cspine.phantoms.textures import Texture

Triple = tuple[float, float, float]
SIDES = (1, -1)
# The brain case: centres and half axes of the ellipsoids that make it up.
BRAIN_CASE: tuple[tuple[Triple, Triple], ...] = (
    ((0, 29, 38), (55, 46, 33)),
    ((0, 0, 72), (66, 78, 58)),
    ((0, -48, 80), (55, 48, 36)),
)

# An occipital condyle and the bone that carries it, from the middle of C1's cup: centre, half axes, turn (degrees) of
# the left one; the right one is its mirror image.
CONDYLE: tuple[tuple[Triple, Triple, Triple], ...] = (
    ((0, 0, 7.6), (6.2, 11.5, 7.2), (0, 18, -28)),
    ((0, 1, 12), (9, 15, 6), (0, 0, -28)),
)
# The last point of the clivus' axis, whose rounded end reaches some 10 mm farther; over bones from meshes, which are
# not made for this skull, it ends a few mm above the dens.
CLIVUS: Triple = (0, -11, 3)
CLIVUS_OVER_MESHES: Triple = (0, -17.5, 14)


@dataclass(frozen=True)
class Place:
    """Puts solids given in head coordinates into the world, with the person's own proportions."""

    pose: NDArray[np.float64]
    scale: Vector

    def point(self, at: ArrayLike) -> Vector:
        """World mm."""
        return np.asarray(self.pose[:3, :3] @ (np.asarray(at, dtype=np.float64) * self.scale) + self.pose[:3, 3])

    def ball(self, center: Triple, radii: Triple, turn: Triple = (0, 0, 0)) -> Ball:
        """An ellipsoid."""
        r = np.asarray(radii) * self.scale
        return Ball(frame_at(self.pose, np.asarray(center) * self.scale, turn), (float(r[0]), float(r[1]), float(r[2])))

    def block(self, center: Triple, half: Triple, rounding: float, turn: Triple = (0, 0, 0)) -> Block:
        """A rounded box."""
        h = np.asarray(half) * self.scale
        return Block(
            frame_at(self.pose, np.asarray(center) * self.scale, turn),
            (float(h[0]), float(h[1]), float(h[2])),
            rounding,
        )

    def rod(
        self, a: Triple, b: Triple, ra: float, rb: float | None = None, flat: float = 1.0, normal: Triple = (0, 0, 1)
    ) -> Rod:
        """A rod, squeezed along ``normal`` (head axes)."""
        n = self.pose[:3, :3] @ (np.asarray(normal, dtype=np.float64) / np.linalg.norm(normal))
        size = float(np.mean(self.scale))
        return Rod(
            self.point(a),
            self.point(b),
            ra * size,
            (ra if rb is None else rb) * size,
            flat,
            (float(n[0]), float(n[1]), float(n[2])),
        )

    def band(self, points: Sequence[Triple], radius: float, flat: float) -> list[Rod]:
        """A chain of rods standing on edge: squeezed across its run in the axial plane (jaw, zygomatic arch)."""
        p = curve(points, 3 * len(points))
        out = []
        for a, b in pairwise(p):
            run = b - a
            out.append(self.rod(tuple(a), tuple(b), radius, flat=flat, normal=(run[1], -run[0], 0.0)))
        return out


def skull_bones(place: Place, jaw: Place, spine: Spine, column: Column, rng: np.random.Generator) -> list[BoneStep]:
    """Every bone of the head but the teeth, and the hyoid.

    Args:
        place: the skull's coordinates.
        jaw: the mandible's, turned about its joints when the mouth is open.
        spine: whose C1 carries the condyles.
        column: for the hyoid.
        rng: source of thickness and place.
    """
    cells = Texture.random(rng, 3.2, 24)
    return [
        *_vault(place, rng, CLIVUS_OVER_MESHES if spine.from_meshes else CLIVUS),
        *_condyles(spine, place),
        *_temporal(place, cells),
        *_face(place, cells),
        *_mandible(jaw),
        *_hyoid(column, rng),
    ]


def _vault(place: Place, rng: np.random.Generator, clivus: Triple) -> list[BoneStep]:
    """Cranium: an inflated brain case minus the brain case, the foramen magnum cut, clivus and ridges added."""
    thick = float(rng.uniform(4.8, 7.5))
    steps = []
    for center, radii in BRAIN_CASE:
        grown = (radii[0] + thick, radii[1] + thick, radii[2] + thick)
        steps.append(BoneStep(place.ball(center, grown), blend=6))
    steps += [BoneStep(place.ball(c, r), carve=True, blend=3) for c, r in BRAIN_CASE]
    steps.append(BoneStep(place.rod((0, 10, -16), (0, 10, 18), 14.8, flat=0.83, normal=(0, 1, 0)), carve=True, blend=2))
    steps += [
        BoneStep(place.rod(clivus, (0, -27, 30), 12, 14, flat=2.6, normal=(0, 0.85, 0.5)), blend=3),
        BoneStep(place.ball((0, 78, 30), (9, 7, 12)), blend=6),
        BoneStep(place.rod((0, 44, 3), (0, 76, 26), 3.5, 5.0), blend=6),
    ]
    return steps


def _condyles(spine: Spine, place: Place) -> list[BoneStep]:
    """Ovals that sit in the cups of C1, toed in to the front, with the bone that carries them."""
    steps = []
    for side, sign in (("left", 1), ("right", -1)):
        cup = spine.poses[1] @ np.append(np.asarray(spine.landmarks[1][f"facet_superior_{side}"], dtype=np.float64), 1)
        local = spine.head[:3, :3].T @ (cup[:3] - spine.head[:3, 3])
        local = local / place.scale
        x, y = float(local[0]), float(local[1])
        for (center, radii, turn), blend in zip(CONDYLE, (1.5, 4), strict=True):
            at = (x + center[0], y + center[1], center[2])
            steps.append(BoneStep(place.ball(at, radii, (turn[0], sign * turn[1], sign * turn[2])), blend=blend))
    return steps


def _temporal(place: Place, cells: Texture) -> list[BoneStep]:
    """Petrous pyramids, mastoids with air cells, ear canals, styloid processes."""
    steps = []
    for s in SIDES:
        steps += [
            BoneStep(place.rod((s * 55, 1, 18), (s * 15, -23, 18), 12, 6), density=1.3, blend=4),
            BoneStep(place.ball((s * 54, 9, 2), (9.5, 13, 18), (0, s * 8, 0)), density=1.1, blend=5),
            BoneStep(place.ball((s * 57, 14, 16), (8, 17, 14)), density=1.1, blend=5),
            BoneStep(place.rod((s * 47, -9, 3), (s * 42, -24, -22), 2.4, 1.2), blend=1),
            BoneStep(place.ball((s * 54, 9, 4), (9.5, 12.5, 17), (0, s * 8, 0)), carve=True, blend=0.3, cells=cells),
            BoneStep(place.ball((s * 56, 12, 17), (9, 16, 13)), carve=True, blend=0.3, cells=cells),
            BoneStep(place.rod((s * 46, -8, 15), (s * 74, -8, 15), 3.4), carve=True, blend=0.5),
            BoneStep(place.ball((s * 45, -9, 16), (4, 4, 6)), carve=True, blend=0.5),
        ]
    return steps


def _face(place: Place, cells: Texture) -> list[BoneStep]:
    steps = [
        BoneStep(place.block((0, -38, 29), (15, 14, 13), 5), blend=3),
        BoneStep(place.ball((0, -41, 29), (12.5, 11, 10)), carve=True, blend=1),
        BoneStep(place.block((0, -70, 38), (13, 22, 11), 3), blend=1),
        BoneStep(place.block((0, -70, 38), (12.5, 21.5, 10.5), 3), carve=True, blend=0.2, cells=cells),
        BoneStep(place.block((0, -72, -3.5), (20, 21, 1.9), 1.5), blend=1),
        BoneStep(place.block((0, -72, 13), (0.9, 24, 17), 0.8), density=0.5, blend=0.3),
        BoneStep(place.rod((0, -104, 42), (0, -113, 24), 4, 2.5), blend=2),
        *(
            BoneStep(r, blend=2)
            for r in place.band(
                [
                    (25, -52, -9),
                    (24, -74, -9),
                    (13, -90, -9),
                    (0, -95, -9),
                    (-13, -90, -9),
                    (-24, -74, -9),
                    (-25, -52, -9),
                ],
                8.0,
                1.75,
            )
        ),
    ]
    for s in SIDES:
        steps += [
            BoneStep(place.ball((s * 28, -65, 12), (16, 20, 19)), blend=2),
            BoneStep(place.ball((s * 28, -64, 13), (14, 18, 17)), carve=True, blend=1),
            BoneStep(place.block((s * 14, -44, 2), (1.4, 6, 15), 1.2, (0, 0, s * 25)), blend=1),
            BoneStep(place.ball((s * 49, -72, 14), (8, 7, 9)), blend=3),
            *(
                BoneStep(r, blend=1.5)
                for r in place.band(
                    [(s * 52, -72, 13), (s * 64, -52, 11), (s * 67, -34, 12), (s * 62, -16, 15)], 4.2, 1.7
                )
            ),
            BoneStep(place.rod((s * 50, -72, 16), (s * 50, -72, 46), 4, 4), blend=3),
            BoneStep(place.ball((s * 31, -76, 34), (18, 25, 17)), carve=True, blend=1),
            BoneStep(
                place.rod((s * 50, -70, 28), (s * 42, -57, 28), 12, 12, flat=8, normal=(0.85, -s * 0.53, 0)), blend=1.5
            ),
        ]
    return steps


def _mandible(jaw: Place) -> list[BoneStep]:
    arch: list[Triple] = [
        (45, -40, -37),
        (41, -53, -41),
        (34, -71, -46),
        (20, -88, -51.5),
        (0, -95, -53),
        (-20, -88, -51.5),
        (-34, -71, -46),
        (-41, -53, -41),
        (-45, -40, -37),
    ]
    steps = [BoneStep(r, density=1.25, blend=2) for r in jaw.band(arch, 12.5, 2.4)]
    for s in SIDES:
        steps += [
            BoneStep(
                jaw.rod((s * 48.5, -31, -8), (s * 45.5, -39, -40), 14.5, 15, flat=3.4, normal=(1, 0, 0)),
                density=1.15,
                blend=2,
            ),
            BoneStep(jaw.rod((s * 48, -46, 8), (s * 47.5, -42, -12), 3, 7, flat=1.8, normal=(1, 0, 0)), blend=2),
            BoneStep(jaw.rod((s * 50, -20, 3), (s * 48, -26, -12), 4.5, 6.5, flat=1.3, normal=(1, 0, 0)), blend=3),
            BoneStep(jaw.ball((s * 51, -19, 7), (9.5, 4.6, 4.6), (0, 0, s * 15)), blend=2),
        ]
    return steps


def _hyoid(column: Column, rng: np.random.Generator) -> list[BoneStep]:
    level = float(rng.normal(3.55, 0.25))
    s = column.scale * float(rng.uniform(0.9, 1.1))
    points = [
        column.place(level, x * s / column.scale, y, z)
        for x, y, z in (
            (21, -24, 6),
            (18, -35, 3),
            (11, -44, 0),
            (0, -47, -1),
            (-11, -44, 0),
            (-18, -35, 3),
            (-21, -24, 6),
        )
    ]
    radii = (1.9, 2.0, 2.6, 3.6, 2.6, 2.0, 1.9)
    line = curve(points, 19)
    thick = np.interp(np.linspace(0, 6, 19), range(7), radii) * s
    return [
        BoneStep(Rod(line[i], line[i + 1], float(thick[i]), float(thick[i + 1]), 0.75), density=0.9, blend=0.5)
        for i in range(18)
    ]


def teeth(place: Place, jaw: Place, spine: Spine, rng: np.random.Generator) -> tuple[list[BoneStep], list[Part]]:
    """Roots of dentine and crowns of enamel along both arches, some missing with age; fillings as metal."""
    steps: list[BoneStep] = []
    metal: list[Part] = []
    lost = float(np.clip((spine.anatomy.age - 45) / 80 + rng.normal(0, 0.1), 0, 0.95))
    filled = float(rng.uniform(0.15, 0.5)) if spine.anatomy.dental_metal else 0.0
    for frame, arch, root, crown in (
        (place, [(25, -54), (24, -70), (16, -86), (0, -95)], -11.0, -20.5),
        (jaw, [(27, -54), (24, -70), (15, -84), (0, -91)], -37.0, -27.5),
    ):
        half = curve([(x, y, 0) for x, y in arch], 33)
        for s in SIDES:
            for i in range(8):
                x, y, _ = half[2 + 4 * i]
                molar = i < 3
                if rng.random() < lost * (1.4 if molar else 0.7):
                    continue
                wide = 4.4 if molar else 3.2
                steps.append(
                    BoneStep(frame.rod((s * x, y, root), (s * x, y, crown), 1.6, wide - 0.6), density=1.15, blend=0.3)
                )
                steps.append(BoneStep(frame.ball((s * x, y, crown), (wide, wide, 3.8)), density=1.9, blend=0.3))
                if molar and rng.random() < filled:
                    metal.append(frame.ball((s * x, y, crown), (2.6, 2.8, 2.6)))
    return steps, metal
