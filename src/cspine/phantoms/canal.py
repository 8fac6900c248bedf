"""What lies in and between the vertebrae: cord, cerebrospinal fluid, epidural fat, discs, ligaments, roots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.column import Column
from cspine.phantoms.paint import FINE, Coat, Layer
from cspine.phantoms.parts import Block, Part, Rod, Vector, curve, rods
from cspine.phantoms.spine import Spine


def world(spine: Spine, level: int, name: str) -> Vector:
    """A landmark in world mm."""
    pose = spine.poses[level]
    return np.asarray(pose[:3, :3] @ np.asarray(spine.landmarks[level][name], dtype=np.float64) + pose[:3, 3])


def canal_line(spine: Spine) -> Vector:
    """Points along the middle of the canal from the medulla in the skull down past T5, world mm."""
    last = max(spine.poses)
    points = [world(spine, k, "canal") for k in range(1, last + 1)]
    s = spine.anatomy.scale
    top = [spine.head[:3, :3] @ np.array(p) * 1.0 + spine.head[:3, 3] for p in ((0, 2 * s, 28 * s), (0, 14 * s, 6 * s))]
    return np.array([*top, *points, 2 * points[-1] - points[-2], 5 * points[-1] - 4 * points[-2]])


def canal_layers(spine: Spine, rng: np.random.Generator) -> list[Layer]:
    """Epidural space, thecal sac and cord."""
    line = curve(canal_line(spine), 64)
    s = spine.anatomy.scale
    last = max(spine.poses)
    radius = float(np.mean([spine.landmarks[k]["canal_radius"][0] for k in range(3, last)]))
    half_depth = min(radius * 0.94, 8.2 * s)
    half_width = half_depth * float(rng.uniform(1.2, 1.38))
    # Rods are squeezed front to back: their radius is the half width.
    flat = half_width / half_depth
    front = (0.0, 1.0, 0.0)
    cord = np.interp(np.linspace(0, 1, 64), [0, 0.05, 0.14, 0.22, 0.5, 0.62, 1], [13, 9.5, 7.0, 6.6, 7.3, 6.0, 4.8]) * s
    cord = cord * float(rng.normal(1, 0.05))
    outside = line[6:]  # below the foramen magnum; above it the brain's own fluid surrounds the stem
    epidural = rods(outside, half_width + 3.0, flat=flat, normal=front)
    sac = rods(outside, half_width - 0.3, flat=flat, normal=front)
    inner = rods(line, cord.tolist(), flat=1.35, normal=front)
    fluid = float(rng.uniform(4, 18))
    return [
        Layer(tuple(epidural), (Coat(0.0, -35.0, grain=10.0, mottle=25.0),), FINE),
        Layer(tuple(sac), (Coat(0.0, fluid + 25, grain=2.0), Coat(-0.8, fluid, grain=2.0)), FINE),
        Layer(tuple(inner), (Coat(0.0, float(rng.uniform(34, 44)), grain=2.0),), FINE),
    ]


def disc_layer(spine: Spine, rng: np.random.Generator) -> Layer:
    """The discs C2/3 down to the lowest body, of 60 to 110 HU."""
    parts: list[Part] = []
    for level in range(2, max(spine.poses)):
        upper, lower = world(spine, level, "body_inferior"), world(spine, level + 1, "body_superior")
        marks = spine.landmarks[level]
        width = 2.0 * abs(float(marks["body_left"][0])) * 0.98 if "body_left" in marks else 18.0
        depth = abs(float(marks["body_posterior"][1] - marks["body_anterior"][1])) * 0.98
        pose = _between(spine, level, (upper + lower) / 2)
        half = float(np.linalg.norm(upper - lower)) / 2 + 1.8
        parts.append(Block(pose, (width / 2, depth / 2, half), rounding=min(half, depth / 2) * 0.98))
    return Layer(
        tuple(parts),
        (Coat(0.0, float(rng.uniform(85, 105)), grain=8.0), Coat(-3.0, float(rng.uniform(68, 88)), grain=6.0)),
        FINE,
        ragged=0.2,
    )


def _between(spine: Spine, level: int, at: Vector) -> NDArray[np.float64]:
    axes = spine.poses[level][:3, :3] + spine.poses[level + 1][:3, :3]
    u, _, vt = np.linalg.svd(axes)
    pose = np.eye(4)
    pose[:3, :3] = u @ vt
    pose[:3, 3] = at
    return pose


def ligament_layer(spine: Spine, rng: np.random.Generator) -> Layer:
    """Soft tissue that holds the column together: longitudinal and interspinous ligaments, flaval, nuchal septum."""
    last = max(spine.poses)
    s = spine.anatomy.scale
    parts: list[Part] = []
    front = [world(spine, k, "body_anterior") for k in range(2, last + 1)]
    front.insert(0, world(spine, 1, "anterior_tubercle"))
    parts += rods(front, 2.2 * s, flat=0.5, normal=(1.0, 0.0, 0.0))
    for level in range(2, last):
        # Interspinous: a plate between neighbouring spinous processes.
        base, tip = world(spine, level, "spinous_base"), world(spine, level, "spinous_tip")
        base2, tip2 = world(spine, level + 1, "spinous_base"), world(spine, level + 1, "spinous_tip")
        for t in (0.15, 0.5, 0.85):
            a, b = base + t * (tip - base), base2 + t * (tip2 - base2)
            parts.append(Rod(a, b, 2.6 * s, 2.6 * s))
        for side in ("left", "right"):
            parts.append(
                Rod(world(spine, level, f"lamina_{side}"), world(spine, level + 1, f"lamina_{side}"), 3.0 * s, 3.0 * s)
            )
            parts.append(
                Rod(world(spine, level, f"pillar_{side}"), world(spine, level + 1, f"pillar_{side}"), 6.5 * s, 6.5 * s)
            )
    # C1 and C2: capsules and the transverse and alar ligaments around the dens.
    parts.append(Rod(world(spine, 2, "dens_base"), world(spine, 2, "dens_tip"), 7.5 * s, 5.5 * s))
    for side in ("left", "right"):
        parts.append(
            Rod(world(spine, 1, f"facet_inferior_{side}"), world(spine, 1, f"facet_superior_{side}"), 7 * s, 7 * s)
        )
        parts.append(Rod(world(spine, 2, "dens_tip"), world(spine, 1, f"facet_superior_{side}"), 3 * s, 3 * s))
    return Layer(tuple(parts), (Coat(0.0, float(rng.uniform(45, 65)), grain=6.0, mottle=10.0),), FINE, ragged=0.4)


def nuchal_layer(spine: Spine, column: Column, rng: np.random.Generator) -> Layer:
    """The nuchal ligament: a thin midline septum behind the spinous processes, up to the occiput."""
    s = spine.anatomy.scale
    depth = float(rng.uniform(8, 12)) * s
    back = column.frame(3)[:3, 1]
    normal = (float(back[0]), float(back[1]), float(back[2]))
    head = [spine.head[:3, :3] @ np.array([0, y * s, 4 * s]) + spine.head[:3, 3] for y in (42, 52, 62)]
    tips = [world(spine, k, "spinous_tip") for k in range(2, 8)]
    atlas = world(spine, 1, "posterior_tubercle")
    parts: list[Part] = []
    for share in (0.0, 0.5, 1.0):
        chain = [head[round(2 * share)], *(tip + back * depth * share for tip in tips)]
        parts += rods(chain, 1.0, flat=0.28, normal=normal)
    parts += rods([head[0], atlas + back * 6 * s, tips[0]], 1.0, flat=0.15, normal=normal)
    return Layer(
        tuple(parts),
        (Coat(0.7, -75.0, mottle=15.0), Coat(-0.4, float(rng.uniform(10, 40)), mottle=15.0)),
        FINE,
        ragged=0.3,
    )


def root_layer(spine: Spine) -> Layer:
    """Nerve roots: they leave the canal between the pedicles and run forward, down and out."""
    s = spine.anatomy.scale
    parts: list[Part] = []
    for level in range(2, min(8, max(spine.poses))):
        for sign in (1, -1):
            pose = spine.poses[level]
            low = float(spine.landmarks[level]["body_inferior"][2])
            path = np.array(
                [(sign * 8, 13, low - 1), (sign * 17, 7, low - 3), (sign * 27, 1, low - 9), (sign * 36, -5, low - 22)]
            )
            path[:, :2] *= s
            parts += rods(path @ pose[:3, :3].T + pose[:3, 3], (1.8 * s, 2.4 * s, 2.2 * s, 2.0 * s))
    return Layer(tuple(parts), (Coat(0.0, 38.0, grain=3.0),), FINE)
