"""Whose bone each voxel is, by whatever a planar network says of places: pixel classes, boxes, or only rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import OTHER_BONE, THORACIC, Level
from cspine.inference.locate import CLASSES, SPACING_MM, Located
from cspine.inference.planar_answers import PlaneAnswers
from cspine.inference.planar_grid import CommonGrid, counts, lines, nearest
from cspine.inference.planar_reading import Reading

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]

# Bone on the 2 mm grid, HU / 1000.
BONE = 0.2
# Where only rows are known: bone this far from the middle of the column is taken, mm to the side, in front, behind;
# and so far the column leans from one stretch to the next. ``COLUMN_SD_MM`` smooths bone into a column.
COLUMN_SIDE_MM, COLUMN_FRONT_MM, COLUMN_BACK_MM, COLUMN_LEAN_MM, COLUMN_SD_MM = 38.0, 22.0, 42.0, 14.0, 9.0
# A gap this long between images with a box of the same level is closed.
MISSED_MM = 12.0
# A voxel keeps its class up to this far from the rows of that level.
KEEP_MM = 10.0
# Loose pieces of a vertebra smaller than this share of it are dropped.
MIN_PIECE = 0.1


def painted_boxes(answers: Sequence[PlaneAnswers], grid: CommonGrid) -> Image | None:
    """float32 ``[7, Z, Y, X]``: the best score of a box of each level over each voxel; None without boxes.

    Images between two that have a box of a level show it too, though the detector missed it there.
    """
    if all(answer.boxes is None for answer in answers):
        return None
    found = [_painted(answer, grid) for answer in answers if answer.boxes is not None]
    return np.asarray(np.maximum.reduce(found))


def _painted(answer: PlaneAnswers, grid: CommonGrid) -> Image:
    """The same of one plane."""
    out = np.zeros((Level.C7, *grid.shape), np.float32)
    by_axis, given = lines(answer.grid, grid.affine), counts(answer.grid)
    places = [nearest(by_axis[axis], grid.shape[2 - axis], given[axis]) for axis in range(3)]
    flat = (1, 0) if answer.grid.plane == "axial" else (2, 1)
    image_axis = 3 - sum(flat)
    for number, rows in enumerate(answer.boxes or ()):
        at: list[NDArray[np.intp]] = [np.empty(0, np.intp)] * 3
        at[image_axis] = np.flatnonzero(places[image_axis] == number)
        for label, score, x0, y0, x1, y1 in rows:
            for axis, low, high in zip(flat, (y0, x0), (y1, x1), strict=True):
                at[axis] = np.flatnonzero((places[axis] >= low - 0.5) & (places[axis] <= high - 0.5))
            level, box = out[(int(label) - 1) % Level.C7], np.ix_(at[2], at[1], at[0])
            level[box] = np.maximum(level[box], score)
    along, size = 3 - image_axis, 2 * round(MISSED_MM / SPACING_MM / 2) + 1
    wide = ndimage.maximum_filter1d(out, size, axis=along, mode="constant")
    return np.asarray(ndimage.minimum_filter1d(wide, size, axis=along, mode="constant", cval=1.0))


def shared_bone(
    classes: Image | None, painted: Image | None, reading: Reading, grid: CommonGrid
) -> NDArray[np.float16]:
    """float16 ``[10, Z, Y, X]``: whose bone each voxel is, by pixel classes, boxes, or rows alone."""
    out = np.zeros((CLASSES, *grid.shape), np.float16)
    if classes is not None:
        out[: len(classes)] = classes
        return out
    bone = grid.image > BONE
    if painted is not None:
        total = painted.sum(axis=0)
        bone &= total > 0
        out[1:THORACIC, bone] = painted[:, bone] / total[bone]
    else:
        bone &= _column(bone, reading)
        z = np.nonzero(bone)[0]
        posterior = reading.posterior[::-1].T
        out[1:OTHER_BONE, bone] = posterior[1:, z]
        out[OTHER_BONE, bone] = posterior[0, z]
    out[0, ~bone] = 1.0
    return out


def _column(bone: NDArray[np.bool_], reading: Reading) -> NDArray[np.bool_]:
    """``[Z, Y, X]``: voxels near the spine, which is where bone stays in one place over the rows of the neck.

    The stretch in the middle is the surest, far from skull and shoulders; the others follow it up and down.
    """
    near = np.zeros(bone.shape, bool)
    if not reading.rows:
        return near
    labels = sorted(reading.rows)
    parts = {k: slice(bone.shape[0] - reading.rows[k][1], bone.shape[0] - reading.rows[k][0]) for k in labels}
    middle = labels[len(labels) // 2]
    y, x = np.indices(bone.shape[1:]) * SPACING_MM
    at: dict[int, tuple[float, float]] = {}
    for label in (*range(middle, labels[-1] + 1), *range(middle - 1, labels[0] - 1, -1)):
        # A stretch and its neighbours: one row may miss the arch, three vertebrae do not.
        part = slice(max(0, parts[label].start - 8), parts[label].stop + 8)
        density = ndimage.gaussian_filter(bone[part].mean(axis=0, dtype=np.float64), COLUMN_SD_MM / SPACING_MM)
        before = at.get(label - 1 if label > middle else label + 1)
        if before is not None:
            density[np.hypot(y - before[0], x - before[1]) > COLUMN_LEAN_MM] = -1.0
        row, column = np.unravel_index(int(density.argmax()), density.shape)
        at[label] = float(row) * SPACING_MM, float(column) * SPACING_MM
        behind, side = y - at[label][0], np.abs(x - at[label][1])
        near[parts[label]] = (behind > -COLUMN_FRONT_MM) & (behind < COLUMN_BACK_MM) & (side < COLUMN_SIDE_MM)
    return near


def first_mask(located: Located, reading: Reading) -> Labels:
    """The network's own mask, with names that are far from their rows changed to those of the rows."""
    labels: Labels = located.classes.argmax(axis=0).astype(np.uint8)
    count, keep = labels.shape[0], round(KEEP_MM / SPACING_MM)
    name = np.zeros(count, np.uint8)
    for label, (start, stop) in reading.rows.items():
        name[count - stop : count - start] = label
    for row in range(count):
        top = count - 1 - row
        plane = labels[row]
        for label in range(1, THORACIC):
            start, stop = reading.rows.get(label, (count + keep, -keep))
            if name[row] and not start - keep <= top < stop + keep:
                plane[plane == label] = name[row]
    return labels


def tidy(labels: Labels) -> Labels:
    """Without loose pieces of cervical vertebrae that are small against the whole; changed in place."""
    for label, box in enumerate(ndimage.find_objects(labels, max_label=int(Level.C7)), start=1):
        if box is None:
            continue
        part = labels[box]
        pieces, count = ndimage.label(part == label, structure=np.ones((3, 3, 3)))
        if count > 1:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            small = sizes < MIN_PIECE * sizes.sum()
            small[0] = False
            part[small[pieces]] = 0
    return labels
