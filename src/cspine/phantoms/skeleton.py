"""Bones other than vertebrae: added and hollowed step by step into one signed distance field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cspine.phantoms.paint import FAR, Field, Lattice
from cspine.phantoms.parts import Part, smooth_min
from cspine.phantoms.textures import Coordinates, Float, Texture, part_of


@dataclass(frozen=True, slots=True)
class BoneStep:
    """One step of building bone.

    Attributes:
        part: the solid that is added or carved away.
        carve: whether it is carved.
        density: factor on the bone's HU where this part is the outermost.
        blend: mm of fillet with what is there.
        cells: carve only air cells of about this texture's size out of the part (mastoid, ethmoid).
    """

    part: Part
    carve: bool = False
    density: float = 1.0
    blend: float = 2.0
    cells: Texture | None = None


def draw_bones(steps: Sequence[BoneStep], lattice: Lattice) -> tuple[Field, Field] | None:
    """Signed distance and density of the bone built by ``steps`` on a lattice; None if none of it lies there."""
    found = []
    for step in steps:
        low, high = step.part.box
        box = lattice.grid.covering(low - FAR, high + FAR)
        if box is not None:
            found.append((step, box))
    if not found:
        return None
    hull = tuple(slice(min(b[a].start for _, b in found), max(b[a].stop for _, b in found)) for a in range(3))
    shape = tuple(s.stop - s.start for s in hull)
    bone = np.full(shape, FAR, dtype=np.float32)
    density = np.ones(shape, dtype=np.float32)
    for step, box in found:
        inner = tuple(slice(s.start - h.start, s.stop - h.start) for s, h in zip(box, hull, strict=True))
        target = bone[inner]
        distance = cells_of(step, part_of(lattice.where, box))
        if step.carve:
            target[...] = -smooth_min(-target, distance, step.blend)
        else:
            np.copyto(density[inner], np.float32(step.density), where=distance < target)
            target[...] = smooth_min(target, distance, step.blend)
    np.minimum(bone, FAR, out=bone)
    where = (hull[0], hull[1], hull[2])
    return Field(bone, where, lattice, FAR), Field(density, where, lattice, 1.0)


def cells_of(step: BoneStep, where: Coordinates) -> Float:
    """Signed distance to what a step adds or carves: its part, or the air cells within it."""
    distance = step.part.distance(where)
    if step.cells is None:
        return distance
    noise = step.cells.at(where)
    # Zero crossings of the noise are the walls of the cells; its slope is about one unit a lattice step.
    hollow = (np.float32(0.35) - np.abs(noise)) * np.float32(step.cells.spacing)
    return np.asarray(np.maximum(distance + np.float32(1.2), hollow), dtype=np.float32)
