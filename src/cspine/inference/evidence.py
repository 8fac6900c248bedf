"""Where the evidence lies: the classifier's coarse map → boxes in slices of the scan, and millimetres.

The map lives in the vertebra's frame; each cell's place in the patient is exact (an affine), so boxes are drawn by
sampling the map at the scan's own voxels. Nothing depends on how the scan was stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.findings import Evidence
from cspine.volume import Volume

Float = NDArray[np.float64]

# Cells count when they reach this, and at least this share of the map's highest value.
FLOOR = 0.2
SHARE_OF_PEAK = 0.5
MAX_PIECES = 3
MAX_BOXES = 6
# A box never gets smaller than a cell of the map.
MIN_BOX_MM = 3.0


@dataclass(frozen=True, slots=True)
class EvidenceMap:
    """Evidence in a vertebra's frame.

    Attributes:
        values: float32 ``[z, y, x]`` cells over the stack, 0..1.
        affine: index ``(x, y, z)`` → LPS mm.
    """

    values: NDArray[np.float32]
    affine: Float


def boxes(evidence: EvidenceMap, volume: Volume) -> tuple[Evidence, ...]:
    """The few best boxes in slices of ``volume``, best first; each separate place has one.

    Args:
        evidence: map of one vertebra.
        volume: canonical axes; ``slice_index`` is its z index, pixels its x and y.
    """
    peak = float(evidence.values.max())
    cut = max(FLOOR, SHARE_OF_PEAK * peak)
    pieces, count = ndimage.label(evidence.values >= cut, structure=np.ones((3, 3, 3)))
    if count == 0:
        return ()
    tops = ndimage.maximum(evidence.values, pieces, np.arange(1, count + 1))
    order = np.argsort(-np.asarray(tops), kind="stable")[:MAX_PIECES]
    found = [_piece_boxes(evidence, pieces == k + 1, cut, volume) for k in order]
    firsts = [piece[0] for piece in found if piece]
    rest = sorted((box for piece in found for box in piece[1:]), key=_rank)
    return tuple(sorted((firsts + rest)[:MAX_BOXES], key=_rank))


def _rank(box: Evidence) -> tuple[float, int]:
    return (-box.score, box.slice_index)


def _piece_boxes(evidence: EvidenceMap, piece: NDArray[np.bool_], cut: float, volume: Volume) -> list[Evidence]:
    """Boxes of one connected place, one a slice of the volume, best first."""
    index = np.argwhere(piece)
    low, high = index.min(axis=0) - 0.75, index.max(axis=0) + 0.75
    corners = np.array([[x, y, z] for x in (low[2], high[2]) for y in (low[1], high[1]) for z in (low[0], high[0])])
    inside = volume.to_index(_apply(evidence.affine, corners))
    size = np.array(volume.shape[::-1])
    first = np.clip(np.floor(inside.min(axis=0)).astype(int), 0, size - 1)
    last = np.clip(np.ceil(inside.max(axis=0)).astype(int), 0, size - 1)
    shown = _sampled(np.where(piece, evidence.values, 0), evidence.affine, volume, first, last)
    if shown.max() < cut / 2:
        # Slices further apart than the place is thick: take the voxel nearest to its strongest cell.
        return _nearest_box(evidence, piece, volume)
    level = min(cut, float(shown.max()))
    out = []
    for offset, plane in enumerate(shown):
        hit = np.argwhere(plane >= level)
        if len(hit):
            y, x = hit.min(axis=0) + first[[1, 0]]
            y_end, x_end = hit.max(axis=0) + first[[1, 0]] + 1
            out.append(_box(volume, int(first[2]) + offset, (x, y, x_end, y_end), float(plane.max())))
    return sorted(out, key=_rank)


def _sampled(
    values: NDArray[np.float32], affine: Float, volume: Volume, first: NDArray[np.int_], last: NDArray[np.int_]
) -> NDArray[np.float32]:
    """The map at the volume's voxels of a box of indices (x, y, z, both ends included)."""
    ranges = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
    z, y, x = np.meshgrid(ranges[2], ranges[1], ranges[0], indexing="ij")
    world = volume.to_world(np.stack([x, y, z], axis=-1))
    place = _apply(np.asarray(np.linalg.inv(affine)), world)
    sampled = ndimage.map_coordinates(values, np.moveaxis(place[..., ::-1], -1, 0), order=1, cval=0.0)
    return np.asarray(sampled, dtype=np.float32)


def _nearest_box(evidence: EvidenceMap, piece: NDArray[np.bool_], volume: Volume) -> list[Evidence]:
    """A box around the strongest cell in the slice nearest to it; empty when that lies outside the volume."""
    z, y, x = np.unravel_index(int(np.where(piece, evidence.values, -1).argmax()), piece.shape)
    centre = volume.to_index(_apply(evidence.affine, np.array([[x, y, z]], dtype=np.float64)))[0]
    voxel = np.rint(centre).astype(int)
    if ((voxel < 0) | (voxel >= volume.shape[::-1])).any():
        return []
    px = (int(voxel[0]), int(voxel[1]), int(voxel[0]) + 1, int(voxel[1]) + 1)
    return [_box(volume, int(voxel[2]), px, float(evidence.values[z, y, x]))]


def _box(volume: Volume, slice_index: int, px: tuple[int, int, int, int], score: float) -> Evidence:
    """``Evidence`` of a pixel box (minimum included, maximum excluded) in one slice."""
    x0, x1 = _at_least(float(px[0]), float(px[2]), MIN_BOX_MM / volume.spacing[0], volume.shape[2])
    y0, y1 = _at_least(float(px[1]), float(px[3]), MIN_BOX_MM / volume.spacing[1], volume.shape[1])
    # Voxel k spans k - 0.5 .. k + 0.5 in index coordinates.
    edges = [
        [x, y, z]
        for x in (x0 - 0.5, x1 - 0.5)
        for y in (y0 - 0.5, y1 - 0.5)
        for z in (slice_index - 0.5, slice_index + 0.5)
    ]
    world = volume.to_world(np.array(edges))
    low_mm, high_mm = world.min(axis=0).tolist(), world.max(axis=0).tolist()
    uids = volume.source.sop_instance_uids
    return Evidence(
        slice_index=slice_index,
        sop_instance_uid=uids[slice_index] if len(uids) == volume.shape[0] else None,
        box_px=(round(x0, 2), round(y0, 2), round(x1, 2), round(y1, 2)),
        box_mm=tuple(round(value, 2) for value in (*low_mm, *high_mm)),
        score=min(max(round(score, 4), 0.0), 1.0),
    )


def _at_least(low: float, high: float, width: float, size: int) -> tuple[float, float]:
    """A range grown about its middle to ``width``, kept within 0 and ``size``."""
    grow = max(0.0, width - (high - low)) / 2
    return max(0.0, low - grow), min(float(size), high + grow)


def _apply(affine: Float, points: Float) -> Float:
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])
