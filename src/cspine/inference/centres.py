"""Body centres from a true mask, for scans whose vertebrae were outlined but not measured.

In the midline a vertebra is in two pieces, with the canal between: the body in front, lamina and spinous process
behind. The centre is that of the front piece, which for C3 and below is the body. C1 has no body, and the body of C2
carries the dens: their points are put where the convention of ``findings.json`` has them (C1 between its anterior
arch and the dens, C2 in the body below the dens) by mean distances of adults, so they are good to a few millimetres.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.volume import Volume

Float = NDArray[np.float64]
Point = tuple[float, float, float]

# Half the width of what counts as the midline, mm: inside the canal, so that pedicles do not join the pieces.
MIDLINE_MM = 5.0
# A mask smaller than this is no vertebra, and a front piece that is a smaller share of the midline is a crumb.
MIN_MASK_MM3 = 800.0
MIN_PIECE_SHARE = 0.12
# From the middle of the anterior arch of C1 back to the point between it and the dens.
ARCH_TO_POINT_MM = 6.0
# Looks at the midline: with this many, one that is turned by 25 degrees is still 2 mm off, an upright one none.
LOOKS = 6
# Height of the body of C2 below its dens.
AXIS_BODY_MM = 17.0


def body_centres(labels: Volume, wanted: Iterable[int]) -> dict[int, Point]:
    """Body centres of outlined vertebrae.

    Args:
        labels: mask of whole numbers, axes closest to left, posterior, superior.
        wanted: labels to look for; 1..7 cervical, 8 T1 and so on, where the mask tells them apart.

    Returns:
        LPS mm by label; vertebrae that are absent or too small are left out.
    """
    boxes = ndimage.find_objects(labels.hu)
    found: dict[int, Point] = {}
    for label in sorted(wanted):
        box = boxes[label - 1] if label <= len(boxes) else None
        if box is None:
            continue
        part = labels.crop(*box)
        centre = _centre(part.hu == label, part, label)
        if centre is not None:
            found[label] = (float(centre[0]), float(centre[1]), float(centre[2]))
    return found


def _centre(mask: NDArray[np.bool_], place: Volume, label: int) -> Float | None:
    """The centre of one vertebra, or None when there is too little of it."""
    index = np.argwhere(mask)
    if len(index) * place.voxel_volume < MIN_MASK_MM3:
        return None
    points = place.to_world(index[:, ::-1])
    middle = points.mean(axis=0)
    back = np.array([0.0, 1.0])
    # The first look takes the patient's back for the vertebra's; each other one comes closer to its own.
    for _ in range(LOOKS):
        front = _front_piece(index, points, mask.shape, middle, back)
        offset = middle[:2] - front.mean(axis=0)[:2]
        length = float(np.linalg.norm(offset))
        if length > 1.0 and offset[1] > 0.5 * length:
            back = offset / length
    if label == 1:
        return np.asarray(front.mean(axis=0) + np.append(back * ARCH_TO_POINT_MM, 0.0))
    if label == 2:
        front = front[front[:, 2] < np.quantile(front[:, 2], 0.01) + AXIS_BODY_MM]
    return np.asarray(front.mean(axis=0))


def _front_piece(
    index: NDArray[np.intp], points: Float, shape: tuple[int, ...], middle: Float, back: NDArray[np.float64]
) -> Float:
    """World points of the foremost piece of the midline; all points when the midline is empty."""
    side = (points[:, :2] - middle[:2]) @ np.array([back[1], -back[0]])
    near = np.abs(side) <= MIDLINE_MM
    if not near.any():
        return points
    slab = np.zeros(shape, bool)
    slab[tuple(index[near].T)] = True
    piece = ndimage.label(slab, structure=np.ones((3, 3, 3)))[0][tuple(index[near].T)]
    depth = points[near][:, :2] @ back
    large = [k for k in np.unique(piece) if np.mean(piece == k) >= MIN_PIECE_SHARE]
    foremost = min(large or np.unique(piece), key=lambda k: float(depth[piece == k].mean()))
    return np.asarray(points[near][piece == foremost])
