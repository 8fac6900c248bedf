"""Plant named fractures in a labelled CT: a phantom's, or a real one's with the labels that the locator gave it.

``plant`` breaks the vertebrae it is told to. ``planted_case`` draws what to break and gives the case that training
and evaluation take. Only boxes around broken vertebrae are touched; everything else stays as it is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import BACKGROUND, LEVELS, Level
from cspine.cases import Case, LevelTruth, SliceBox
from cspine.errors import ShapeError, StudyError
from cspine.phantoms.displacement import displacement_mm
from cspine.phantoms.fractures import Fracture, plan_fracture
from cspine.phantoms.grid import Box, Grid
from cspine.phantoms.planting_change import Change, breaks, change_of
from cspine.phantoms.planting_compose import Canvas, composed, retouched
from cspine.phantoms.planting_scan import USUAL_MUSCLE_HU, grain_of
from cspine.phantoms.planting_solid import Solid, solid_of, touches_border
from cspine.phantoms.study_plan import plan_vertebra
from cspine.volume import Volume

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]

# A voxel is fracture when at least this much of it is.
_MARKED = 0.3
# A whole vertebra that stays whole is handled like a broken one this often.
RETOUCHED = 0.6
# Of the vertebrae that stay whole, so many carry an old fracture.
_OLD = 0.03
# Fractures are planned from landmarks; one that misses the bone is planned anew so often.
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Planted:
    """A scan with planted fractures; all on the grid of the scan it was made from.

    Attributes:
        volume: the scan.
        fracture: bool ``[z, y, x]``, acute fracture.
        labels: uint8, values of ``cspine.anatomy``.
        contrast: how much the fractures of a level changed the image, HU: mean over its fracture voxels. Thick
            slices hide a hairline: compare with ``noise``.
        noise: standard deviation of the scan's noise, HU.
    """

    volume: Volume
    fracture: Mask
    labels: Labels
    contrast: Mapping[int, float]
    noise: float


def plant(
    volume: Volume,
    labels: Volume,
    fractures: Mapping[int, tuple[Fracture, ...]],
    rng: np.random.Generator,
    *,
    retouch: Mapping[int, tuple[Fracture, ...]] | None = None,
    solids: Mapping[int, Solid] | None = None,
) -> Planted:
    """Break vertebrae of a scan.

    Args:
        volume: CT in HU with axes near left, back, head (``Volume.reoriented``).
        labels: values of ``cspine.anatomy`` on any grid.
        fractures: by label value 1..7. Empty: the scan as it is, on its own grid, with labels.
        rng: source of noise and of the blood's HU.
        retouch: fractures that are not made, but whose pieces are handled as if they were: an untouched twin shows
            the tool's traces, if any, and no fracture.
        solids: of those vertebrae when they are known; else they are found (``solid_of``).

    Raises:
        ShapeError: a level that is to be broken is not there or not whole.
    """
    hu = np.array(volume.hu)
    mask = np.zeros(volume.shape, dtype=np.bool_)
    marked = labels_on(volume, labels)
    grid = Grid(volume.affine, volume.shape)
    wanted = {level: (found, True) for level, found in fractures.items() if found}
    wanted |= {level: (found, False) for level, found in (retouch or {}).items() if found and level not in wanted}
    bones = {level: (solids or {}).get(level) or solid_of(volume, labels, level) for level in sorted(wanted)}
    muscle = float(np.median([bone.muscle for bone in bones.values()])) if bones else USUAL_MUSCLE_HU
    grain = grain_of(volume, _around(marked), muscle)
    contrast: dict[int, float] = {}
    for level, (planned, real) in sorted(wanted.items()):
        change = change_of(bones[level], planned, grid, grain)
        if change is None:
            continue
        now = replace(volume, hu=hu)
        canvas = Canvas.cut(now, change.box, float(np.abs(change.shift).max()))
        before = hu[change.box].astype(np.float32)
        if not real:
            hu[change.box] = _stored(retouched(canvas, change), hu.dtype)
            continue
        hu[change.box] = _stored(composed(canvas, change, bones[level], grain, rng), hu.dtype)
        region = change.region >= _MARKED
        mask[change.box] |= region
        _relabel(marked[change.box], level, change, region)
        difference = np.abs(hu[change.box].astype(np.float32) - before)
        contrast[level] = float(difference[region].mean()) if region.any() else 0.0
    return Planted(replace(volume, hu=hu), mask, marked, contrast, grain.noise)


def planted_case(
    volume: Volume,
    labels: Volume,
    *,
    seed: int,
    rate: float = 0.4,
    name: str,
    solids: Mapping[int, Solid] | None = None,
) -> Case:
    """A case with random fractures planted in a scan that has none. The same arguments give the same bytes.

    Args:
        volume: CT in HU with axes near left, back, head.
        labels: values of ``cspine.anatomy`` on any grid.
        seed: of what breaks, how, and of the noise.
        rate: chance of an acute fracture of each vertebra that is whole in the field.
        name: of the case.
        solids: ``whole_vertebrae(volume, labels)`` when known: many cases of one scan need it only once.

    Returns:
        Case whose levels hold the truth of every vertebra that is whole in the field. Vertebrae that are cut off or
        not recognised are left out: nothing is known of them.

    Raises:
        StudyError: no vertebra of the scan can be used.
    """
    plan, noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    solids = whole_vertebrae(volume, labels) if solids is None else solids
    if not solids:
        raise StudyError("no vertebra is whole and recognised in the labels", where=name, fix="Leave this scan out")
    broken: dict[int, tuple[Fracture, ...]] = {}
    retouch: dict[int, tuple[Fracture, ...]] = {}
    for level, solid in sorted(solids.items()):
        if plan.uniform() < rate:
            broken[level] = _planned(plan, solid, broken.get(level - 1, ()))
        elif plan.uniform() < _OLD:
            broken[level] = _planned(plan, solid, (), chronic=True)
        elif plan.uniform() < RETOUCHED:
            retouch[level] = _planned(plan, solid, ())
    planted = plant(volume, labels, broken, noise, retouch=retouch, solids=solids)
    return case_of(planted, solids, broken, name=name)


def _planned(
    rng: np.random.Generator, solid: Solid, above: Sequence[Fracture], *, chronic: bool = False
) -> tuple[Fracture, ...]:
    """Fractures of a vertebra that go through its bone; none when all tries miss it."""
    for _ in range(_TRIES):
        if chronic:
            planned = [plan_fracture(rng, solid.level, solid.marks, chronic=True)]
        else:
            planned = plan_vertebra(rng, solid.level, solid.marks, above)
        real = tuple(fracture for fracture in planned if breaks(solid, fracture))
        if real:
            return real
    return ()


def whole_vertebrae(volume: Volume, labels: Volume) -> dict[int, Solid]:
    """The labelled vertebrae C1..C7 that lie whole in the field and look like what their label says."""
    found: dict[int, Solid] = {}
    for level in LEVELS:
        if touches_border(labels, int(level), volume):
            continue
        try:
            found[int(level)] = solid_of(volume, labels, int(level))
        except ShapeError:
            continue
    return found


def case_of(
    planted: Planted, solids: Mapping[int, Solid], fractures: Mapping[int, tuple[Fracture, ...]], *, name: str
) -> Case:
    """The case of a planted scan."""
    levels = {}
    boxes: list[SliceBox] = []
    for label, solid in solids.items():
        acute = [f for f in fractures.get(label, ()) if not f.chronic]
        marked = planted.fracture & _near(solid, planted) if acute else None
        shown = marked is not None and bool(marked.any())
        x, y, z = (float(v) for v in solid.pose[:3, 3])
        levels[Level(label)] = LevelTruth(
            visible_fraction=1.0,
            fractured=shown,
            types=tuple(dict.fromkeys(str(f.type) for f in acute)) if shown else (),
            severity=max((f.severity for f in acute), default=0.0) if shown else 0.0,
            old_fracture=any(f.chronic for f in fractures.get(label, ())),
            body_center_mm=(x, y, z),
            displacement_mm=round(displacement_mm(c for f in acute for c in f.changes), 3) if shown else None,
        )
        if marked is not None:
            boxes += _boxes(marked, Level(label))
    volume = replace(planted.volume, source=replace(planted.volume.source, name=name))
    boxes.sort(key=lambda box: (box.slice_index, box.level or 0))
    return Case(name, volume, planted.labels, planted.fracture, levels, tuple(boxes))


def labels_on(volume: Volume, labels: Volume) -> Labels:
    """The labels on the grid of the scan (nearest voxel)."""
    if labels.shape == volume.shape and np.allclose(labels.affine, volume.affine, atol=1e-4):
        return np.array(labels.hu, dtype=np.uint8)
    placed = labels.resampled_to(volume.affine, volume.shape, order=0, fill=BACKGROUND)
    return np.array(placed.hu, dtype=np.uint8)


def _around(labels: Labels) -> Box | None:
    """The part of the scan around the cervical spine, where its noise is measured."""
    found = np.argwhere((labels >= Level.C1) & (labels <= Level.C7))
    if not len(found):
        return None
    size = np.array(labels.shape)
    room = np.maximum(size // 12, 2)
    first, last = np.maximum(found.min(axis=0) - room, 0), np.minimum(found.max(axis=0) + room + 1, size)
    return slice(int(first[0]), int(last[0])), slice(int(first[1]), int(last[1])), slice(int(first[2]), int(last[2]))


def _stored(values: NDArray[np.float32], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    limits = np.iinfo(dtype.name)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def _relabel(labels: Labels, level: int, change: Change, region: Mask) -> None:
    """Labels follow the bone, in place; cleft that belongs to nobody is the vertebra's."""
    was, now = change.before < 0, change.after < 0
    labels[was & ~now & ~region & (labels == level)] = BACKGROUND
    labels[((now & ~was) | region) & (labels == BACKGROUND)] = level


def _near(solid: Solid, planted: Planted) -> Mask:
    """Voxels of the scan in the box of a vertebra."""
    grid = Grid(planted.volume.affine, planted.volume.shape)
    out = np.zeros(grid.shape, dtype=np.bool_)
    box = grid.covering(solid.shape.low, solid.shape.high)
    if box is not None:
        out[box] = solid.shape.sample(grid.sub(box).points()) <= solid.others.sample(grid.sub(box).points()) + 3.0
    return out


def _boxes(marked: Mask, level: Level) -> Sequence[SliceBox]:
    out = []
    for z in np.flatnonzero(marked.any(axis=(1, 2))):
        rows, columns = np.flatnonzero(marked[z].any(axis=1)), np.flatnonzero(marked[z].any(axis=0))
        out.append(SliceBox(int(z), int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1, level))
    return out
