"""What a classifier sample keeps of a scan: the cervical column with some tissue around it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cspine.inference.stacks import COLUMNS, PIXEL_MM, PLANE_MM, PLANES, ROWS, stack_middle
from cspine.training.samples import ClassifierSample, Vertebra
from cspine.volume import Volume

# Tissue kept around the outlined vertebrae. Stacks reach further at their corners; what they show there in training
# is what ``training.stacks`` shows beyond the end of any scan.
MARGIN_MM = 8.0

Points = NDArray[np.float64]


def column_only(sample: ClassifierSample) -> ClassifierSample:
    """The sample without what lies far from its vertebrae; a scan of a whole neck shrinks to a tenth or so."""
    if not sample.vertebrae:
        return sample
    mask = Volume(sample.labels, sample.labels_affine)
    index = np.argwhere(np.isin(sample.labels, [item.label for item in sample.vertebrae]))
    corners = np.concatenate([_stack_corners(item) for item in sample.vertebrae])
    # A vertebra that was judged has a mask; a crumb of one may lie anywhere, so stacks bound it.
    column = mask.to_world(index[:, ::-1]) if len(index) else corners
    labels = _cut_out(mask, column, corners)
    volume = _cut_out(sample.volume, column, corners)
    return replace(sample, volume=volume, labels=labels.hu, labels_affine=labels.affine)


def _stack_corners(item: Vertebra) -> Points:
    """Corners ``(8, 3)`` of a vertebra's stack, LPS mm."""
    half = np.array([COLUMNS * PIXEL_MM, ROWS * PIXEL_MM, PLANES * PLANE_MM]) / 2
    signs = np.array(list(itertools.product((-1, 1), repeat=3)))
    return item.frame.to_world(np.asarray(stack_middle(item.label)) + signs * half)


def _cut_out(volume: Volume, column: Points, limits: Points) -> Volume:
    """The voxels around LPS points with a margin, as far as these limits go with the same margin."""
    margin = MARGIN_MM / np.asarray(volume.spacing)
    size = np.asarray(volume.shape[::-1])
    inner, outer = volume.to_index(column), volume.to_index(limits)
    low = np.floor(np.maximum(inner.min(axis=0), outer.min(axis=0)) - margin).astype(int)
    high = np.ceil(np.minimum(inner.max(axis=0), outer.max(axis=0)) + margin).astype(int) + 1
    low = np.clip(low, 0, size - 1)
    high = np.clip(high, low + 1, size)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return volume.crop(z, y, x)
