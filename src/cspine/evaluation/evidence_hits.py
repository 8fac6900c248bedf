"""Does the evidence point at the fracture: distance in mm from a map's strongest cell to the nearest fracture voxel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import Level
from cspine.cases import Case
from cspine.inference.evidence import EvidenceMap

Float = NDArray[np.float64]
# A map points at a fracture when its strongest cell lies this close to a fracture voxel.
HIT_MM = 5.0
# Gaps between a vertebra and its fragments are looked for this many voxels around the fracture.
_MARGIN = 6


def peak_mm(evidence: EvidenceMap) -> Float:
    """LPS mm ``(3,)`` of the centre of a map's strongest cell; of several equal ones the first in memory."""
    z, y, x = np.unravel_index(int(np.argmax(evidence.values)), evidence.values.shape)
    return np.asarray(evidence.affine[:3, :3] @ np.array([x, y, z], dtype=np.float64) + evidence.affine[:3, 3])


def peak_distance(evidence: EvidenceMap, fracture: Float) -> float:
    """Distance in mm from a map's strongest cell to the nearest of the fracture voxels ``[n, 3]`` (LPS mm, n > 0)."""
    return float(np.linalg.norm(np.asarray(fracture) - peak_mm(evidence), axis=1).min())


def fracture_points(case: Case) -> dict[Level, Float]:
    """Centres (LPS mm, ``[n, 3]``) of the fracture voxels of every fractured vertebra of a case.

    A voxel belongs to the vertebra it is labelled as; one in a gap or on an unbroken neighbour, to the nearest
    fractured one. Empty when the case has no masks.
    """
    if case.fracture is None or case.labels is None or not case.fracture.any():
        return {}
    broken = [int(level) for level, truth in case.levels.items() if truth.fractured]
    index = np.argwhere(case.fracture)
    owner = _owners(index, case.labels, case.volume.spacing, broken)
    world = case.volume.to_world(index[:, ::-1])
    return {Level(label): world[owner == label] for label in broken if (owner == label).any()}


def _owners(
    index: NDArray[np.intp], labels: NDArray[np.uint8], spacing: tuple[float, float, float], broken: list[int]
) -> NDArray[np.uint8]:
    """Label of the fractured vertebra that each voxel ``[n, (z, y, x)]`` belongs to; 0 when there is none near."""
    from scipy import ndimage

    own = np.asarray(labels[tuple(index.T)])
    lost = ~np.isin(own, broken)
    if not lost.any():
        return own
    low = np.maximum(index.min(axis=0) - _MARGIN, 0)
    high = index.max(axis=0) + _MARGIN + 1
    part = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    known = np.isin(part, broken)
    if not known.any():
        return np.where(lost, 0, own).astype(np.uint8)
    nearest = ndimage.distance_transform_edt(
        ~known, sampling=spacing[::-1], return_distances=False, return_indices=True
    )
    at = tuple((index[lost] - low).T)
    owner = own.copy()
    owner[lost] = part[tuple(nearest[(axis, *at)] for axis in range(3))]
    return owner
