"""The part of a CT that browsers are sent: cropped to the neck's spine, and no finer than they can take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.reports.images import ScalarField
from cspine.volume import AIR_HU, Volume

# Around the outlined vertebrae, mm: to the sides, to the front (airway, prevertebral tissue), to the back, and along
# the spine, so that the skull base and the upper thorax stay in view.
SIDE_MM, FRONT_MM, BACK_MM, ALONG_MM = 24.0, 36.0, 18.0, 60.0
# 20 million voxels of a noisy CT are about 27 MB on the wire.
MAX_VOXELS = 20_000_000
MAX_SLICES = 480
# Nothing finer than this in the plane of the slices: it would be noise.
FINEST_MM = 0.3
HIGHEST_HU = 3071
# A spine that was not located: everything, coarsely.
_CERVICAL = tuple(level.value for level in LEVELS)

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a CT.

    Attributes:
        volume: int16 HU ``[z, y, x]`` with axes closest to left, posterior, superior.
        first_slice: slice of the CT at which the first slice begins.
        slices: slices of the CT in one of these, whole.
    """

    volume: Volume
    first_slice: int
    slices: int


def shown_part(volume: Volume, labels: ScalarField, *, max_voxels: int = MAX_VOXELS) -> Shown:
    """Crop a CT to its cervical spine and make it as fine as ``max_voxels`` allow.

    Slices are kept as they are, or averaged by whole numbers: a slice of the CT lies in exactly one of the view.

    Args:
        volume: HU, as ``Volume.reoriented`` gives it.
        labels: mask with the values of ``cspine.anatomy``; without a cervical vertebra the whole CT is shown.
        max_voxels: at most so many, about.
    """
    z, y, x = _spine_box(volume, labels)
    slices = max(1, -(-(z.stop - z.start) // MAX_SLICES))
    # Whole groups of slices only; what is left over lies at the head's end.
    z = slice(z.start, z.start + max(1, (z.stop - z.start) // slices) * slices)
    part = volume.crop(z, y, x)
    across, along, step = part.spacing
    count = (z.stop - z.start) // slices
    area = part.shape[1] * along * part.shape[2] * across
    pixel = max(FINEST_MM, float(np.sqrt(area * count / max_voxels)))
    wanted = (max(across, pixel), max(along, pixel), step * slices)
    if wanted != part.spacing:
        part = part.resampled(wanted)
    hu = np.clip(np.rint(part.hu), AIR_HU, HIGHEST_HU).astype(np.int16)
    return Shown(Volume(hu, part.affine, part.source), z.start, slices)


def _spine_box(volume: Volume, labels: ScalarField) -> Box:
    """Index ranges around the cervical vertebrae with the margins, inside the volume."""
    found = np.argwhere(np.isin(labels.values, _CERVICAL))
    if not len(found):
        z, y, x = volume.shape
        return slice(0, z), slice(0, y), slice(0, x)
    low, high = found.min(axis=0) - 0.5, found.max(axis=0) + 0.5
    corners = np.array([[x, y, z] for x in (low[2], high[2]) for y in (low[1], high[1]) for z in (low[0], high[0])])
    index = volume.to_index(corners @ labels.affine[:3, :3].T + labels.affine[:3, 3])
    spacing = np.asarray(volume.spacing)
    start = np.floor(index.min(axis=0) - np.array([SIDE_MM, FRONT_MM, ALONG_MM]) / spacing).astype(int)
    stop = np.ceil(index.max(axis=0) + np.array([SIDE_MM, BACK_MM, ALONG_MM]) / spacing).astype(int) + 1
    size = np.asarray(volume.shape[::-1])
    start = np.clip(start, 0, size - 1)
    stop = np.clip(stop, start + 1, size)
    across, along, up = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return up, along, across


def painted(target: Volume, field: ScalarField, fill: float = 0.0) -> tuple[Box, NDArray[np.float32]] | None:
    """A field on the voxels of another grid, only where the field is.

    Args:
        target: whose voxels are asked.
        field: ``[z, y, x]`` in the patient.
        fill: outside the field.

    Returns:
        Index ranges ``(z, y, x)`` of the target and the values there, linear between those of the field; None when
        they do not meet.
    """
    z, y, x = field.values.shape
    corners = np.array([[i, j, k] for i in (-0.5, x - 0.5) for j in (-0.5, y - 0.5) for k in (-0.5, z - 0.5)])
    index = target.to_index(corners @ field.affine[:3, :3].T + field.affine[:3, 3])
    size = np.asarray(target.shape[::-1])
    start = np.maximum(np.ceil(index.min(axis=0)), 0).astype(int)
    stop = np.minimum(np.floor(index.max(axis=0)).astype(int) + 1, size)
    if (stop <= start).any():
        return None
    shape = (int(stop[2] - start[2]), int(stop[1] - start[1]), int(stop[0] - start[0]))
    affine = target.affine.copy()
    affine[:3, 3] = target.to_world(start)
    source = Volume(np.ascontiguousarray(field.values, dtype=np.float32), field.affine)
    values = source.resampled_to(affine, shape, fill=fill).hu
    box = tuple(slice(int(a), int(b)) for a, b in zip(start[::-1], stop[::-1], strict=True))
    return (box[0], box[1], box[2]), np.asarray(values, dtype=np.float32)


def labels_on(target: Volume, labels: ScalarField, *, smooth_mm: float = 0.6) -> NDArray[np.uint8]:
    """Outlines of C1 to C7 on a finer grid, without the staircase of the mask's own voxels.

    Args:
        target: grid to paint on.
        labels: mask, values of ``cspine.anatomy``.
        smooth_mm: standard deviation of the smoothing of each vertebra.

    Returns:
        uint8 ``[z, y, x]``, 0 and 1 to 7.
    """
    out = np.zeros(target.shape, dtype=np.uint8)
    best = np.full(target.shape, 0.5, dtype=np.float32)
    for value in _CERVICAL:
        piece = vertebra(labels, value, smooth_mm=smooth_mm)
        found = None if piece is None else painted(target, piece)
        if found is None:
            continue
        box, inside = found
        wins = inside >= best[box]
        out[box][wins] = value
        best[box][wins] = inside[wins]
    return out


def vertebra(labels: ScalarField, value: int, *, smooth_mm: float) -> ScalarField | None:
    """How much a label fills each voxel, smoothed, float32 0 to 1, in a box with room around it; None without it."""
    from scipy.ndimage import gaussian_filter

    found = np.argwhere(labels.values == value)
    if not len(found):
        return None
    spacing = np.linalg.norm(labels.affine[:3, :3], axis=0)[::-1]
    room = int(np.ceil(3 * smooth_mm / spacing.min())) + 2
    low, high = found.min(axis=0), found.max(axis=0) + 1
    ranges = tuple(slice(max(0, a - room), b + room) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    mask = (labels.values[ranges] == value).astype(np.float32)
    # A vertebra that touches the mask's border gets air beyond it, so that its surface is closed.
    missing = [
        (max(0, room - a), max(0, room - (n - b)))
        for a, b, n in zip(low.tolist(), high.tolist(), labels.values.shape, strict=True)
    ]
    filled = gaussian_filter(np.pad(mask, missing), smooth_mm / spacing)
    affine = labels.affine.copy()
    start = [r.start - m[0] for r, m in zip(ranges, missing, strict=True)]
    affine[:3, 3] += affine[:3, :3] @ np.array(start[::-1], dtype=np.float64)
    return ScalarField(filled, affine)


def evidence_on(target: Volume, maps: dict[str, ScalarField]) -> NDArray[np.uint8]:
    """The strongest evidence of all levels on a grid: uint8 ``[z, y, x]``, 255 for 1."""
    out = np.zeros(target.shape, dtype=np.uint8)
    for field in maps.values():
        found = painted(target, field)
        if found is not None:
            box, values = found
            scaled = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
            np.maximum(out[box], scaled, out=out[box])
    return out
