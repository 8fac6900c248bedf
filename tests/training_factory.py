"""Small fake cases for the training tests: stacked blocks with arches in a cylinder of tissue, one of them split."""

from __future__ import annotations

import numpy as np

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case, LevelTruth
from cspine.volume import Volume

PITCH_MM = 17.0


def block_case(
    seed: int, *, spacing: tuple[float, float, float] = (1.5, 1.5, 2.0), fractured: bool | None = None
) -> Case:
    """C1..C7 as bright blocks, each with a spinous bar; a bright-free gap through some of them is the fracture."""
    rng = np.random.default_rng(seed)
    size_mm = np.array([110.0, 110.0, 150.0])
    shape = np.round(size_mm / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-55.0, -35.0, -140.0)
    z, y, x = np.indices(shape[::-1]).astype(np.float32)
    world = np.stack([x, y, z], -1) @ affine[:3, :3].T + affine[:3, 3]
    hu = np.full(shape[::-1], -1000, np.float32)
    hu[np.hypot(world[..., 0], world[..., 1] - 15) < 50] = 40
    labels = np.zeros(hu.shape, np.uint8)
    broken = np.zeros(hu.shape, bool)
    levels: dict[Level, LevelTruth] = {}
    for level in LEVELS:
        centre = np.array([rng.normal(0, 1.5), rng.normal(0, 1.5), -PITCH_MM * level.index - 18.0])
        local = world - centre
        body = (np.abs(local) < (9, 8, 6.5)).all(-1)
        arch = (np.abs(local[..., 0]) < 3) & (local[..., 1] > 8) & (local[..., 1] < 34) & (np.abs(local[..., 2]) < 5)
        bone = body | arch
        hu[bone] = 400 + 40 * level.value
        labels[bone] = level.value
        split = (rng.random() < 0.4) if fractured is None else fractured
        if split:
            gap = bone & (np.abs(local[..., 0] - rng.uniform(-4, 4)) < 1.2)
            hu[gap] = 60
            broken |= gap
        levels[level] = LevelTruth(
            visible_fraction=1.0,
            fractured=split,
            types=("burst",) if split else (),
            severity=0.5 if split else 0.0,
            body_center_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
        )
    hu += rng.normal(0, 15, hu.shape)
    volume = Volume(np.round(hu).astype(np.int16), affine)
    return Case(name=f"blocks-{seed}", volume=volume, labels=labels, fracture=broken, levels=levels)
