"""What a break does to the voxels of a scan: how much of each shows moved bone, a cleft, new bone, or what it showed.

The break is drawn on a grid finer than the scan, as sharp as the break is; its shares are then blurred by the scan's
own point spread and averaged over its slices. The image itself is never blurred: shares say which of its own voxels,
here or where a piece came from, a voxel shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.phantoms.breakage import BrokenBone, smoothstep
from cspine.phantoms.fractures import Fracture, break_all
from cspine.phantoms.grid import Box, Grid
from cspine.phantoms.planting_scan import Grain
from cspine.phantoms.planting_solid import Solid
from cspine.phantoms.planting_spread import PointSpread
from cspine.phantoms.shapes import Float

# Nothing farther from the unbroken bone than this can change, mm.
REACH_MM = 9.0
# Material that moved less is taken to be where it was, mm.
STILL_MM = 0.02
# What changes is first looked for on every second point of the solid's lattice, then worked out around there.
_STRIDE, _AROUND = 2, 2
# A break through less bone (the band along its faces) than this is none.
MIN_BROKEN_MM3 = 30.0


@dataclass(frozen=True, slots=True)
class Change:
    """The shares of the voxels in a box, 0..1, and what goes with them; float32 ``[z, y, x]``.

    Attributes:
        box: which voxels of the scan.
        moved: share that shows bone (and its edge) from elsewhere.
        shift: ``[z, y, x, 3]`` LPS mm from a voxel to where that lay, averaged over that share.
        void: share where bone is no more: blood, oedema, soft tissue.
        deep: part of ``void`` that lay inside bone, 0..1.
        made: share that shows new bone (splinters).
        density: HU to add (impacted, sclerotic bone).
        region: share that a reader would outline as acute fracture.
        before, after: signed distance, mm, of the vertebra at the voxel centres.
    """

    box: Box
    moved: Float
    shift: Float
    void: Float
    deep: Float
    made: Float
    density: Float
    region: Float
    before: Float
    after: Float


def change_of(solid: Solid, fractures: tuple[Fracture, ...], grid: Grid, grain: Grain) -> Change | None:
    """The change that ``fractures`` make to a vertebra on the scan's grid; None when nothing of it is in the field.

    Args:
        solid: the vertebra.
        fractures: of this vertebra.
        grid: of the scan.
        grain: its resolution.
    """
    where = _where(solid, fractures)
    box = None if where is None else grid.covering(where.low, where.high)
    if box is None or where is None:
        return None
    voxels = grid.sub(box)
    spread = PointSpread.of(voxels, grain)
    parts = _shares(solid, fractures, spread.fine(voxels), grain, where)
    mean = {
        name: spread.averaged(part, voxels.shape) for name, part in parts.items() if name not in ("before", "after")
    }
    middle = spread.centres(voxels.shape)
    shift = np.stack([mean[f"shift_{axis}"] for axis in "xyz"], axis=-1)
    return Change(
        box=box,
        moved=mean["moved"],
        shift=np.asarray(shift / np.maximum(mean["moved"], 1e-3)[..., None], dtype=np.float32),
        void=mean["void"],
        deep=np.asarray(mean["deep"] / np.maximum(mean["void"], 1e-3), dtype=np.float32),
        made=mean["made"],
        density=mean["density"],
        region=mean["region"],
        before=parts["before"][middle],
        after=parts["after"][middle],
    )


def breaks(solid: Solid, fracture: Fracture) -> bool:
    """Whether the fracture goes through bone that the solid has: a mask may lack the part that it was planned for."""
    world, before = _lattice(solid)
    index = np.flatnonzero(before < 1.0)
    bone = break_all((fracture,), solid.local(world[index]), solid.sample)
    through = bone.region & (before[index] < 0) if not fracture.chronic else np.abs(bone.sdf - before[index]) > 0.2
    return bool(through.sum() * (_STRIDE * solid.shape.spacing) ** 3 >= MIN_BROKEN_MM3)


def _lattice(solid: Solid) -> tuple[Float, Float]:
    """Every second point of the solid's lattice in LPS mm (N, 3), and its signed distance."""
    values = solid.shape.values[::_STRIDE, ::_STRIDE, ::_STRIDE]
    index = np.argwhere(np.ones(values.shape, dtype=np.bool_))[:, ::-1].astype(np.float32)
    world = index * np.float32(_STRIDE * solid.shape.spacing) + solid.shape.origin
    return world, values.reshape(-1)


@dataclass(frozen=True, slots=True)
class _Where:
    """A lattice in the world that says where anything changes: bool ``[z, y, x]``, first point and step in mm."""

    hit: NDArray[np.bool_]
    origin: Float
    step: float

    @property
    def low(self) -> Float:
        """Lower corner of what changes, LPS mm."""
        corner = np.argwhere(self.hit).min(axis=0)[::-1].astype(np.float32)
        return np.asarray(self.origin + corner * np.float32(self.step))

    @property
    def high(self) -> Float:
        """Upper corner, LPS mm."""
        corner = np.argwhere(self.hit).max(axis=0)[::-1].astype(np.float32)
        return np.asarray(self.origin + corner * np.float32(self.step))

    def near(self, world: Float) -> NDArray[np.intp]:
        """Which of the points (N, 3) lie where something changes."""
        at = np.rint((world - self.origin) / np.float32(self.step)).astype(np.int32)
        inside = ((at >= 0) & (at < np.array(self.hit.shape[::-1]))).all(axis=1)
        index = np.flatnonzero(inside)
        x, y, z = at[index].T
        return np.asarray(index[self.hit[z, y, x]])


def _where(solid: Solid, fractures: tuple[Fracture, ...]) -> _Where | None:
    """Where the vertebra changes, seen on its lattice; None when nowhere."""
    room = int(np.ceil(REACH_MM / solid.shape.spacing / _STRIDE))
    count = np.array(solid.shape.values.shape) // _STRIDE + 1 + 2 * room
    step = _STRIDE * solid.shape.spacing
    origin = np.asarray(solid.shape.origin - room * step, dtype=np.float32)
    world = (np.argwhere(np.ones(count, dtype=np.bool_))[:, ::-1] * step + origin).astype(np.float32)
    before = solid.shape.sample(world)
    index = np.flatnonzero(before < REACH_MM)
    local = solid.local(world[index])
    bone = break_all(fractures, local, solid.sample, trace=True)
    near = np.minimum(bone.sdf, before[index])
    hit = ((_travelled(bone, local) > STILL_MM) & (bone.sdf < 2.0)) | (np.abs(bone.sdf - before[index]) > 0.1)
    hit |= (bone.lucency > 0.02) | (np.abs(bone.density) > 5) | bone.region
    found = np.zeros(count, dtype=np.bool_)
    found.reshape(-1)[index[hit & (near < 2.5)]] = True
    if not found.any():
        return None
    return _Where(ndimage.binary_dilation(found, iterations=_AROUND), origin, step)


def _travelled(bone: BrokenBone, local: Float) -> Float:
    """How far, mm, the material at each point has come; 0 for new bone."""
    if bone.source is None:
        return np.zeros(len(local), dtype=np.float32)
    return np.asarray(np.nan_to_num(np.linalg.norm(bone.source - local, axis=1)), dtype=np.float32)


def _shares(solid: Solid, fractures: tuple[Fracture, ...], grid: Grid, grain: Grain, where: _Where) -> dict[str, Float]:
    """All shares on the fine grid, 0 or 1 but for soft edges of a few tenths of a millimetre."""
    world = grid.points().reshape(-1, 3)
    index = where.near(world)
    before = np.full(len(world), REACH_MM, dtype=np.float32)
    before[index] = solid.shape.sample(world[index])
    index = index[before[index] < REACH_MM]
    local = solid.local(world[index])
    bone = break_all(fractures, local, solid.sample, trace=True)
    if bone.source is None:
        raise ValueError("a traced break has sources")
    away = np.nan_to_num(bone.source - local)
    free = np.clip(0.5 + solid.others.sample(world[index]) / 0.5, 0, 1)
    far = np.linalg.norm(away, axis=1) > STILL_MM
    sharp = _sharp(bone, before[index], far, _own(solid, bone, far), grain.edge)
    shift = sharp["moved"][:, None] * (away @ solid.pose[:3, :3].T.astype(np.float32))
    sharp |= {f"shift_{axis}": shift[:, k] for k, axis in enumerate("xyz")}
    sharp = {name: value * free for name, value in sharp.items()}
    sharp["region"] = bone.region.astype(np.float32)
    out = {name: np.zeros(grid.shape, dtype=np.float32) for name in sharp}
    for name, value in sharp.items():
        out[name].reshape(-1)[index] = value
    after = before.copy()
    after[index] = bone.sdf
    return out | {"before": before.reshape(grid.shape), "after": after.reshape(grid.shape)}


def _own(solid: Solid, bone: BrokenBone, far: NDArray[np.bool_]) -> Float:
    """0 where what lay at the source belongs to a neighbour, which stays where it is; else 1."""
    out = np.ones(bone.sdf.shape, dtype=np.float32)
    index = np.flatnonzero(far & (bone.depth > -0.15) & (bone.sdf < 4.0))
    if bone.source is not None and index.size:
        source = np.nan_to_num(bone.source[index])
        others = solid.others.sample(solid.world(source))
        out[index] = smoothstep((others - np.maximum(bone.depth[index], 0.0) + 0.2) / 0.5)
    return out


def _sharp(bone: BrokenBone, before: Float, far: NDArray[np.bool_], own: Float, width: float) -> dict[str, Float]:
    """Shares at points, before any blur of the scan.

    Bone that moves brings the edge along that the scan gave it: up to ``width`` mm of what lay around it. What the
    edge of bone that went away left behind goes too.
    """
    new = np.isnan(bone.source[:, 0]) if bone.source is not None else np.zeros(before.shape, dtype=bool)
    # Beyond a cut the material lay inside bone, beyond an old surface it lay outside.
    outside = bone.depth > -0.15
    edge = 1.0 - smoothstep((bone.sdf - 0.5 * width) / (0.55 * width))
    # No edge at a cut: there what lies beyond the face is cleft.
    kept = np.where(outside, edge, 1.0 - smoothstep(bone.sdf / 0.25)).astype(np.float32)
    kept = np.where(bone.sdf > 0, kept * own, kept)
    brought = np.where(far & outside, edge * own, 0.0)
    left = (1.0 - smoothstep((before - 0.85 * width) / (0.45 * width))) * smoothstep((bone.sdf - before - 0.25) / 0.5)
    left = left * smoothstep((bone.sdf + 0.1) / 0.4)
    void = np.maximum(bone.lucency, left) * (1.0 - brought)
    made = np.where(new, np.clip(0.5 - bone.sdf / 0.3, 0, 1), 0.0)
    void = np.asarray(void * (1.0 - made), dtype=np.float32)
    moved = np.where(far & ~new, (1.0 - void) * kept, 0.0)
    deep = void * smoothstep(0.5 - before / 0.8)
    solid = np.clip(0.5 - bone.sdf / 0.4, 0, 1)
    shares = {"void": void, "moved": moved, "made": made, "deep": deep, "density": bone.density * solid}
    return {name: np.asarray(value, dtype=np.float32) for name, value in shares.items()}
