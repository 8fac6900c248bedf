"""Crushed bone: a vertebral body that lost height, and loose chips of severe breaks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cspine.phantoms.breakage import (
    REGION_MM,
    SOFT_MM,
    BrokenBone,
    Motion,
    Points,
    Roughness,
    SampleBone,
    Values,
    Vector,
    smoothstep,
)

_AT_BONE_MM = 0.6


@dataclass(frozen=True)
class Crush:
    """Height loss of a vertebral body: an endplate driven in, and the crushed layer below it.

    Material between ``floor`` and the endplate is compressed; what lies beyond the endplate follows it. The loss runs
    from ``loss_front`` at ``front`` to ``loss_back`` at ``back`` and dies away behind ``back`` (pedicles stay).

    Attributes:
        endplate: z of the unbroken endplate, mm.
        floor: z where compression starts, between the endplate and the body's middle.
        front, back: y of the anterior and posterior walls, mm.
        half_width: of the body, mm; nothing is crushed beyond it.
        loss_front, loss_back: height lost, mm.
        bulge: mm by which the front wall buckles outwards at the crushed layer.
        density: HU added where trabeculae are driven into each other.
        roughness: unevenness of the crushed layer, mm.
        healed: HU of an even sclerosis instead of a fresh line; nothing is marked.
    """

    endplate: float
    floor: float
    front: float
    back: float
    half_width: float
    loss_front: float
    loss_back: float
    bulge: float = 0.0
    density: float = 200.0
    roughness: Roughness = field(default_factory=Roughness)
    healed: bool = False

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2]
        up = 1.0 if self.endplate > self.floor else -1.0
        forward = np.clip((self.back - y) / (self.back - self.front), 0.0, 1.15)
        loss = self.loss_back + forward * (self.loss_front - self.loss_back)
        loss *= (1.0 - smoothstep((y - self.back) / 3.0)) * (1.0 - smoothstep((np.abs(x) - self.half_width) / 3.0))
        uneven = self.roughness.height(x, y)
        loss = np.maximum(loss * (1.0 + 0.22 * np.clip(uneven, -1.5, 1.5)), 0.0)
        above = up * (z - self.floor) - uneven
        span = np.maximum(up * (self.endplate - self.floor) - loss, 1.0)
        rise = smoothstep(above / span)
        source = points.copy()
        source[:, 2] += up * loss * rise
        # The layer that took the crush: where rise is steepest.
        layer = np.exp(-np.square((above - 0.5 * span) / np.maximum(0.22 * span, 0.7)))
        if self.bulge:
            wall = smoothstep((self.back - 0.35 * (self.back - self.front) - y) / (0.4 * (self.back - self.front)))
            source[:, 1] += self.bulge * wall * layer
        result = bone(source)
        self._stain(result, above - 0.5 * span, layer, loss)
        return result

    def _stain(self, bone: BrokenBone, from_layer: Values, layer: Values, loss: Values) -> None:
        """Adds the dense line and marks it."""
        strength = np.clip(loss / 1.5, 0.0, 1.0)
        bone.density += self.density * strength * layer * (bone.depth < 0)
        if not self.healed:
            band = np.abs(from_layer) < REGION_MM
            bone.region |= band & (loss > 0.4) & (bone.depth < _AT_BONE_MM)


@dataclass(frozen=True)
class Chips:
    """Loose splinters in and around a break.

    Attributes:
        centres: of each, mm.
        radii: the three half axes of each, mm.
        turns: rotation vector of each, degrees.
        cortical: whether each is dense cortex rather than cancellous bone.
    """

    centres: tuple[Vector, ...]
    radii: tuple[Vector, ...]
    turns: tuple[Vector, ...]
    cortical: tuple[bool, ...]

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        result = bone(points)
        for centre, radii, turn, cortical in zip(self.centres, self.radii, self.turns, self.cortical, strict=True):
            reach = max(radii) + REGION_MM
            index = np.flatnonzero((np.abs(points - np.asarray(centre, dtype=np.float32)) < reach).all(axis=1))
            if index.size == 0:
                continue
            local = Motion(turn=turn, shift=centre).back(points[index]) / np.asarray(radii, dtype=np.float32)
            # An octahedral norm mixed with the round one gives splinters edges.
            norm = 0.5 * np.linalg.norm(local, axis=1) + 0.32 * np.abs(local).sum(axis=1)
            sdf = ((norm - 1.0) * min(radii)).astype(np.float32)
            now = result.take(index)
            wins = sdf < now.sdf
            now.sdf = np.minimum(sdf, now.sdf)
            now.depth = np.where(wins, np.float32(-0.3 if cortical else -4.0), now.depth).astype(np.float32)
            now.lucency *= np.clip(0.5 + now.sdf / SOFT_MM, 0.0, 1.0).astype(np.float32)
            now.region = now.region | (sdf < 0.5 * REGION_MM)
            if now.source is not None:
                now.source[wins & (sdf < 0)] = np.nan
            result.put(index, now)
        return result
