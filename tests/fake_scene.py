"""A scene of a few ellipsoids with the interface of ``cspine.phantoms.scene.Scene``: fast, with exact truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.grid import Grid

HALF = np.array([16.0, 14.0, 6.0])


@dataclass(frozen=True)
class FakeShape:
    """An ellipsoid with the half axes ``HALF``, as a lattice of rough signed distances."""

    spacing: float = 1.0
    origin: NDArray[np.float32] = field(default_factory=lambda: (-HALF - 2).astype(np.float32))

    @property
    def values(self) -> NDArray[np.float32]:
        count = (2 * (HALF + 2) / self.spacing).astype(int)
        z, y, x = np.mgrid[: count[2] + 1, : count[1] + 1, : count[0] + 1].astype(np.float32)
        return self.sample(np.stack([x, y, z], axis=-1) * self.spacing + self.origin)

    def sample(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray((np.linalg.norm(points / HALF, axis=-1) - 1) * HALF.min(), dtype=np.float32)


@dataclass(frozen=True)
class FakeFracture:
    level: int
    type: str = "wedge"
    severity: float = 0.6
    chronic: bool = False
    changes: tuple[Any, ...] = ()


class FakeScene:
    """Vertebrae 17 mm apart in a cylinder of tissue, perhaps a tooth filling; fractures are slabs in body centres."""

    def __init__(self, fractures: tuple[FakeFracture, ...] = (), *, metal: bool = False) -> None:
        self.fractures = fractures
        self.confounders: dict[int, tuple[Any, ...]] = {}
        poses = {}
        for label in range(1, 13):
            pose = np.eye(4)
            pose[:3, 3] = (0.5 * label, label, (4 - label) * 17.0)
            poses[label] = pose
        shapes = {label: FakeShape() for label in poses}
        self.spine: Any = SimpleNamespace(
            poses=poses,
            shapes=shapes,
            landmarks={},
            head=poses[1],
            anatomy=SimpleNamespace(dental_metal=metal, fused=()),
        )
        self.rendered: list[Grid] = []

    def render(self, grid: Grid) -> Any:
        self.rendered.append(grid)
        points = grid.points()
        # The shoulders widen below C7.
        half_width = np.where(points[..., 2] < -60, 210.0, 75.0)
        body = (points[..., 0] / half_width) ** 2 + ((points[..., 1] - 10) / 80) ** 2 < 1
        hu = np.where(body, 40.0, -1000.0).astype(np.float32)
        labels = np.zeros(grid.shape, dtype=np.uint8)
        fracture = np.zeros(grid.shape, dtype=np.bool_)
        for label, pose in self.spine.poses.items():
            near = np.flatnonzero((np.abs(points[..., 2] - pose[2, 3]) < HALF[2]).any(axis=(1, 2)))
            if not len(near):
                continue
            part = slice(near[0], near[-1] + 1)
            local = points[part] - pose[:3, 3].astype(np.float32)
            inside = self.spine.shapes[label].sample(local) < 0
            hu[part][inside] = 600.0
            labels[part][inside] = min(label, 8)
            if any(f.level == label and not f.chronic for f in self.fractures):
                crack = inside & (np.abs(local[..., 2]) < 1.5) & (local[..., 0] > 0)
                hu[part][crack] = 60.0
                fracture[part] |= crack
        filling = np.linalg.norm(points - np.array([20.0, -45.0, 30.0]), axis=-1) < 4
        metal = (filling & bool(self.spine.anatomy.dental_metal)).astype(np.float32)
        hu = np.where(metal > 0, np.float32(8000), hu)
        return SimpleNamespace(hu=hu, labels=labels, fracture=fracture, metal=metal)
