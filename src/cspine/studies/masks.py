"""Masks on the grid of a scan, and what they say of it: how much of a vertebra is in view, where a fracture lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, THORACIC, Level
from cspine.cases import Case
from cspine.errors import DamagedFileError, GeometryError, StudyError
from cspine.studies.files import StoredFile
from cspine.studies.nifti import open_mask
from cspine.volume import Volume

Labels = NDArray[np.uint8]

# T12 is the last label of masks that tell thoracic vertebrae apart.
LAST_LABEL = 19
# A vertebra whose mask touches the first or last slice is cut; when no whole one is there to compare, half is seen.
CUT_FRACTION = 0.5


def mask_on(path: Path, volume: Volume, last: int = LAST_LABEL) -> Labels:
    """A mask file of labels 0..``last`` on the grid of a volume, nearest voxel, through both affines.

    Raises:
        StudyError: it cannot be read, has other labels, or does not lie on the images.
    """
    mask = open_mask(StoredFile(path.name, path.stat().st_size, path))
    if int(mask.hu.max()) > last:
        raise DamagedFileError(f"expected labels 0 to {last}, got {int(mask.hu.max())}", where=path.name)
    if mask.shape == volume.shape and np.allclose(mask.affine, volume.affine, atol=1e-4):
        return np.asarray(mask.hu, dtype=np.uint8)
    on_images: Labels = mask.resampled_to(volume.affine, volume.shape, order=0, fill=0).hu
    if mask.hu.any() and not on_images.any():
        raise GeometryError("the segmentation does not lie on the images", where=path.name)
    return on_images


def visible_fractions(labels: Labels) -> dict[Level, float]:
    """Share of each vertebra that a mask ``[z, y, x]`` shows.

    1 when its mask is clear of the first and last slice, 0 when it has none. One that touches is cut: the share is
    its voxels over those of the nearest whole vertebra, which is good to a quarter or so.
    """
    counts = np.bincount(labels.ravel(), minlength=THORACIC + 1)
    ends = set(np.unique(labels[[0, -1]]).tolist())
    whole = [level for level in LEVELS if counts[level] and int(level) not in ends]
    shown = {}
    for level in LEVELS:
        if level in whole or not counts[level]:
            shown[level] = float(level in whole)
        elif whole:
            near = min(whole, key=lambda other: abs(other - level))
            shown[level] = float(min(0.99, counts[level] / counts[near]))
        else:
            shown[level] = CUT_FRACTION
    return shown


def with_known_places(case: Case) -> Case:
    """The case with what its mask says of where it is broken: from fracture voxels if there are any, else from boxes.

    Args:
        case: needs ``labels``.

    Raises:
        StudyError: the case has no labels.
    """
    return with_owned_boxes(case) if case.fracture is None else _with_owned_voxels(case, case.fracture)


def _with_owned_voxels(case: Case, fracture: NDArray[np.bool_]) -> Case:
    """A fractured vertebra has a known place when fracture voxels lie in it."""
    held = set(np.unique(_labels_of(case)[fracture]).tolist())
    levels = {
        level: replace(truth, place_known=not truth.fractured or int(level) in held)
        for level, truth in case.levels.items()
    }
    return replace(case, levels=levels)


def with_owned_boxes(case: Case) -> Case:
    """The case with every box given to the fractured vertebra it overlaps most, and its fracture voxels.

    Fracture voxels are those of the vertebra's mask inside its boxes: bone around the fracture rather than the
    fracture itself, since a box is all that is known. A fractured vertebra that owns no box has no known place; a box
    that holds no fractured vertebra stays without a level.

    Args:
        case: needs ``labels``.

    Raises:
        StudyError: the case has no labels.
    """
    labels = _labels_of(case)
    broken = [int(level) for level, truth in case.levels.items() if truth.fractured]
    fracture = np.zeros(case.volume.shape, bool)
    boxes = []
    for box in case.boxes:
        at = (box.slice_index, slice(box.y_min, box.y_max), slice(box.x_min, box.x_max))
        counts = np.bincount(labels[at].ravel(), minlength=THORACIC)
        owner = max(broken, key=lambda label: int(counts[label]), default=0)
        if owner and counts[owner]:
            fracture[at] |= labels[at] == owner
            box = replace(box, level=Level(owner))
        boxes.append(box)
    owners = {box.level for box in boxes}
    levels = {
        level: replace(truth, place_known=not truth.fractured or level in owners)
        for level, truth in case.levels.items()
    }
    return replace(case, fracture=fracture, levels=levels, boxes=tuple(boxes))


def _labels_of(case: Case) -> Labels:
    if case.labels is None:
        raise StudyError("places can only be given to vertebrae that are outlined", where=case.name)
    return case.labels
