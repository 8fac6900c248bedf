"""``make_case``: one synthetic study with everything that is true of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case, LevelTruth, SliceBox
from cspine.phantoms.acquisition import Acquired, acquire
from cspine.phantoms.confounders import kinds_of
from cspine.phantoms.displacement import displacement_mm
from cspine.phantoms.fractures import Fracture
from cspine.phantoms.scanner import WHOLE_FIELD, Preset, Scanner, sample_scanner
from cspine.phantoms.scene import Scene, make_scene
from cspine.volume import Volume

if TYPE_CHECKING:
    from cspine.phantoms.blending import MeshLibrary

# A fracture counts as shown when this much of it, in cubic millimetres, lies inside the field.
MIN_SHOWN_FRACTURE_MM3 = 4.0
# Distance of lattice points at which the share of a vertebra inside the field is counted, mm.
VISIBILITY_STEP_MM = 1.4


def make_case(
    seed: int,
    *,
    preset: Preset = "clinical",
    fractures: Literal["sample", "none"] | tuple[Fracture, ...] = "sample",
    multiplier: float = 1.0,
    scanner: Scanner | None = None,
    name: str | None = None,
    meshes: MeshLibrary | None = None,
) -> Case:
    """A synthetic study. The same arguments give the same bytes.

    Args:
        seed: of the patient, the scanner and the noise.
        preset: kind of scan, see ``sample_scanner``.
        fractures: ``sample`` draws them with RSNA 2022's prevalence times ``multiplier``; or none; or these.
        multiplier: factor on the prevalence.
        scanner: the protocol, else drawn from ``preset``.
        name: of the case; by default from preset and seed.
        meshes: sets of vertebra meshes from which some patients get C1..C7; None draws all from sizes.

    Raises:
        UsageError: no such preset, or a scanner whose field leaves no slices.
    """
    scene_seed, scanner_seed, noise_seed = np.random.SeedSequence(seed).spawn(3)
    protocol = sample_scanner(np.random.default_rng(scanner_seed), preset=preset) if scanner is None else scanner
    number = int(scene_seed.generate_state(1)[0])
    scene = make_scene(number, fractures=fractures, multiplier=multiplier, meshes=meshes)
    acquired = acquire(scene, protocol, np.random.default_rng(noise_seed))
    return case_of(scene, acquired, name=name or f"phantom-{preset}-{seed:06d}")


def case_of(scene: Scene | Any, acquired: Acquired, *, name: str) -> Case:
    """The case of a scan of ``scene``."""
    shown = _fracture_levels(scene, acquired)
    volume = acquired.volume
    source = replace(volume.source, name=name)
    return Case(
        name=name,
        volume=replace(volume, source=source),
        labels=acquired.labels,
        fracture=acquired.fracture,
        levels={level: _truth(scene, volume, level, shown) for level in LEVELS},
        boxes=_boxes(shown),
        thoracic_mm={label: _center(pose) for label, pose in scene.spine.poses.items() if label > Level.C7},
    )


Voxels = NDArray[np.intp]


def _fracture_levels(scene: Any, acquired: Acquired) -> dict[Level, Voxels]:
    """Fracture voxels ``[n, (z, y, x)]`` of each level: each voxel belongs to the nearest broken vertebra."""
    broken = sorted({int(f.level) for f in scene.fractures if not f.chronic and f.level <= Level.C7})
    voxels = np.argwhere(acquired.fracture)
    if not broken or not len(voxels):
        return {}
    world = acquired.volume.to_world(voxels[:, ::-1])
    distance = []
    for label in broken:
        pose = scene.spine.poses[label]
        local = (world - pose[:3, 3]) @ pose[:3, :3]
        distance.append(scene.spine.shapes[label].sample(local.astype(np.float32)))
    owner = np.argmin(distance, axis=0)
    found = {Level(label): voxels[owner == k] for k, label in enumerate(broken)}
    least = MIN_SHOWN_FRACTURE_MM3 / acquired.volume.voxel_volume
    return {level: v for level, v in found.items() if len(v) >= max(least, 1)}


def _truth(scene: Any, volume: Volume, level: Level, shown: dict[Level, Voxels]) -> LevelTruth:
    acute = [f for f in scene.fractures if f.level == level and not f.chronic]
    fractured = level in shown and bool(acute)
    return LevelTruth(
        visible_fraction=visible_fraction(scene, volume, level),
        fractured=fractured,
        types=tuple(dict.fromkeys(str(f.type) for f in acute)) if fractured else (),
        severity=max((float(f.severity) for f in acute), default=0.0) if fractured else 0.0,
        old_fracture=any(f.level == level and f.chronic for f in scene.fractures),
        body_center_mm=_center(scene.spine.poses[int(level)]),
        displacement_mm=round(displacement_mm(c for f in acute for c in f.changes), 3) if fractured else None,
        confounders=_confounders(scene, level),
    )


def _center(pose: NDArray[np.float64]) -> tuple[float, float, float]:
    """Body centre of a vertebra, LPS mm."""
    x, y, z = pose[:3, 3]
    return float(x), float(y), float(z)


def _confounders(scene: Any, level: Level) -> tuple[str, ...]:
    """What of this vertebra may be taken for a fracture: its own peculiarities, and fusion with a neighbour."""
    fused = scene.spine.anatomy.fused
    joined = ("fused",) if int(level) in fused or int(level) - 1 in fused else ()
    return (*kinds_of(scene.confounders.get(int(level), ())), *joined)


def visible_fraction(scene: Any, volume: Volume, level: Level) -> float:
    """Share of the whole (unbroken) vertebra that lies inside what ``volume`` shows, 0..1."""
    shape, pose = scene.spine.shapes[int(level)], scene.spine.poses[int(level)]
    stride = max(1, round(VISIBILITY_STEP_MM / float(np.mean(shape.spacing))))
    index = np.argwhere(shape.values[::stride, ::stride, ::stride] < 0)[:, ::-1] * stride
    local = index * shape.spacing + shape.origin
    at = volume.to_index(local @ pose[:3, :3].T + pose[:3, 3])
    count = np.asarray(volume.shape[::-1])
    inside = ((at >= -0.5) & (at <= count - 0.5)).all(axis=1)
    circle = float(volume.source.acquisition.get("circle", WHOLE_FIELD))
    radius = np.hypot(at[:, 0] - (count[0] - 1) / 2, at[:, 1] - (count[1] - 1) / 2)
    inside &= (radius <= circle * count[0] / 2) | (circle >= WHOLE_FIELD)
    return float(inside.mean()) if len(inside) else 0.0


def _boxes(shown: dict[Level, Voxels]) -> tuple[SliceBox, ...]:
    """One box a slice and level around the fracture voxels."""
    boxes = []
    for level, voxels in shown.items():
        for z in np.unique(voxels[:, 0]):
            part = voxels[voxels[:, 0] == z]
            (y_min, x_min), (y_max, x_max) = part[:, 1:].min(axis=0), part[:, 1:].max(axis=0) + 1
            boxes.append(SliceBox(int(z), int(x_min), int(y_min), int(x_max), int(y_max), level))
    return tuple(sorted(boxes, key=lambda box: (box.slice_index, box.level or 0)))
