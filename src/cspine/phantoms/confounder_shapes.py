"""Solids of confounders: vessel canals, cysts and spurs, as changes of a bone. Never in ``region``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.breakage import BrokenBone, Points, SampleBone, Values, Vector
from cspine.phantoms.shapes import capsule, ellipsoid, smooth_union


@dataclass(frozen=True)
class Canals:
    """Vessel canals: tapering tubes inside the bone.

    Attributes:
        tubes: (start, end, radius at the start, at the end) in mm each.
        rim: HU added to the bone lining them.
    """

    tubes: tuple[tuple[Vector, Vector, float, float], ...]
    rim: float = 120.0

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        result = bone(points)
        index = np.flatnonzero(result.sdf < 0.8)
        near = points[index]
        wall = np.full(index.shape, 99.0, dtype=np.float32)
        for start, end, wide, narrow in self.tubes:
            wall = np.minimum(wall, capsule(near, start, end, wide, narrow))
        changed = wall < 2.0
        index, wall = index[changed], wall[changed]
        now = result.take(index)
        now.sdf = np.maximum(now.sdf, -wall)
        now.density = now.density + (self.rim * np.exp(-np.square(wall / 0.7))).astype(np.float32)
        result.put(index, now)
        return result


@dataclass(frozen=True)
class Cavity:
    """A cyst or an endplate node: a round hole with a dense rim.

    Attributes:
        centre: mm.
        radii: half axes, mm.
        rim: HU of its wall.
    """

    centre: Vector
    radii: Vector
    rim: float = 250.0

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        result = bone(points)
        index, sdf = _ellipsoid(points, self.centre, self.radii)
        now = result.take(index)
        now.sdf = np.maximum(now.sdf, -sdf)
        now.density = now.density + (self.rim * np.exp(-np.square(sdf / 0.8))).astype(np.float32)
        result.put(index, now)
        return result


@dataclass(frozen=True)
class Growth:
    """Bone that was added: a spur, a bridge, an ossified ligament.

    Attributes:
        centre: mm.
        radii: half axes, mm.
        blend: mm over which it flows into the bone; 0 for a free ossicle.
    """

    centre: Vector
    radii: Vector
    blend: float = 2.0

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        result = bone(points)
        index, sdf = _ellipsoid(points, self.centre, self.radii)
        now = result.take(index)
        if now.source is not None:
            now.source[(sdf < now.sdf) & (sdf < 0)] = np.nan
        now.sdf = smooth_union(now.sdf, sdf, self.blend)
        now.depth = smooth_union(now.depth, sdf, self.blend)
        result.put(index, now)
        return result


def _ellipsoid(points: Points, centre: Vector, radii: Vector) -> tuple[NDArray[np.intp], Values]:
    """The points within 3 mm of an ellipsoid and about their signed distance to it."""
    middle, half = np.asarray(centre, dtype=np.float32), np.asarray(radii, dtype=np.float32)
    index = np.flatnonzero((np.abs(points - middle) < half + 3.0).all(axis=1))
    return index, ellipsoid(points[index], middle, half)
