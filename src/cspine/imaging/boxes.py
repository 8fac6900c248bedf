"""``Boxes``: rectangles in slices, each with the vertebra it belongs to; made from masks, turned into labels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import LEVELS
from cspine.errors import UsageError
from cspine.imaging.arrays import Array, Matrix, as_mask, shape3

# A slice that a box reaches into by less than this was reached by rounding.
SLICE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Rectangles in an image ``[y, x]`` or stack ``[z, y, x]``.

    Attributes:
        corners: ``(n, 4)`` x0, y0, x1, y1 in pixel edges: pixel ``i`` covers ``i`` to ``i + 1``. A row ``x, y, width,
            height`` of the RSNA 2022 table is ``x, y, x + width, y + height``.
        slices: ``(n, 2)`` first slice and the one past the last; ``0, 1`` in an image.
        levels: ``(n,)`` what each box shows: 1 to 7 for C1 to C7, other mask values as in ``anatomy``, 0 unnamed.

    Raises:
        UsageError: the three do not belong together, or a box is not finite or has no extent.
    """

    corners: NDArray[np.float64]
    slices: NDArray[np.int64]
    levels: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.corners)
        if self.corners.shape != (n, 4) or self.slices.shape != (n, 2) or self.levels.shape != (n,):
            raise UsageError(
                f"expected boxes (n, 4) with slices (n, 2) and levels (n,), got {self.corners.shape}, "
                f"{self.slices.shape} and {self.levels.shape}"
            )
        low, high = self.corners[:, :2], self.corners[:, 2:]
        if not np.isfinite(self.corners).all() or (high <= low).any() or (self.slices[:, 1] <= self.slices[:, 0]).any():
            raise UsageError("expected boxes x0, y0, x1, y1 with x0 < x1 and y0 < y1 and at least one slice each")

    def __len__(self) -> int:
        return len(self.corners)

    @classmethod
    def of(cls, corners: Any, levels: Any = None, slices: Any = None) -> Boxes:
        """Boxes from anything like arrays; unnamed and in slice 0 unless told."""
        corners = np.asarray(corners, dtype=np.float64).reshape(-1, 4)
        n = len(corners)
        return cls(
            corners,
            np.tile([0, 1], (n, 1)).astype(np.int64) if slices is None else np.asarray(slices, np.int64).reshape(-1, 2),
            np.zeros(n, np.int64) if levels is None else np.asarray(levels, np.int64).reshape(-1),
        )

    def kept(self, which: Array) -> Boxes:
        """Those at ``which``: truth values or indices."""
        return Boxes(self.corners[which], self.slices[which], self.levels[which])

    def moved(self, matrix: Matrix) -> Boxes:
        """The boxes around these after ``matrix`` ``(4, 4)``: index ``(x, y, z, 1)`` here → index there."""
        if not len(self):
            return self
        columns = (self.corners[:, 0::2], self.corners[:, 1::2], self.slices.astype(np.float64))
        picks = list(product((0, 1), repeat=3))
        points = np.stack([np.stack([axis[:, k] for axis, k in zip(columns, pick, strict=True)], -1) for pick in picks])
        # Edges lie half a pixel before the index.
        points = (points - 0.5) @ matrix[:3, :3].T + matrix[:3, 3] + 0.5
        low, high = points.min(0), points.max(0)
        first, last = np.floor(low[:, 2] + SLICE_TOLERANCE), np.ceil(high[:, 2] - SLICE_TOLERANCE)
        slices = np.stack([first, np.maximum(last, first + 1)], -1).astype(np.int64)
        return Boxes(np.concatenate([low[:, :2], high[:, :2]], -1), slices, self.levels)

    def clipped(self, shape: tuple[int, ...]) -> Boxes:
        """What of the boxes lies in a grid of ``shape``; those outside are dropped with their level."""
        z, y, x = shape3(shape)
        corners = np.clip(self.corners, 0, [x, y, x, y])
        slices = np.clip(self.slices, 0, z)
        left = (corners[:, 2:] > corners[:, :2]).all(1) & (slices[:, 1] > slices[:, 0])
        return Boxes(corners[left], slices[left], self.levels[left])

    def drawn_on(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A mask of ``shape``, 1 in every pixel whose centre lies in a box."""
        out = np.zeros(shape3(shape), np.uint8)
        for (x0, y0, x1, y1), (first, last) in zip(np.ceil(self.corners - 0.5).astype(int), self.slices, strict=True):
            out[max(first, 0) : last, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
        return out.reshape(shape)


def boxes_from_mask(mask: Array, values: tuple[int, ...] = tuple(LEVELS)) -> Boxes:
    """One box a slice around each value of a mask, as the RSNA 2022 table has one a slice around a fracture.

    Args:
        mask: ``[y, x]`` or ``[z, y, x]`` of whole numbers.
        values: which of them get boxes; C1 to C7 unless told.

    Returns:
        boxes in order of slices, then of values; none where the mask is empty.
    """
    mask = as_mask(mask, np.shape(mask))
    corners, slices, levels = [], [], []
    for z, plane in enumerate(mask.reshape(shape3(mask.shape))):
        shown = np.where(np.isin(plane, values), plane, 0).astype(np.int64)
        for value, found in enumerate(ndimage.find_objects(shown), start=1):
            if found is not None:
                rows, columns = found
                corners.append((columns.start, rows.start, columns.stop, rows.stop))
                slices.append((z, z + 1))
                levels.append(value)
    return Boxes.of(corners, levels, slices)


def slices_with_boxes(boxes: Boxes, slices: int = 1) -> NDArray[np.float32]:
    """Which slices have any box, as the RSNA 2022 table marks those that show a fracture: ``(slices,)``, 1 or 0."""
    out = np.zeros(slices, np.float32)
    for first, last in boxes.slices:
        out[max(first, 0) : max(last, 0)] = 1
    return out


def levels_from_boxes(boxes: Boxes, slices: int = 1) -> NDArray[np.float32]:
    """Which vertebrae each slice shows, by the boxes in it.

    Args:
        boxes: with levels 1 to 7; others are not counted.
        slices: how many slices the stack has.

    Returns:
        ``(slices, 7)``, 1 where a box of that level lies in that slice.
    """
    out = np.zeros((slices, len(LEVELS)), np.float32)
    for (first, last), level in zip(boxes.slices, boxes.levels, strict=True):
        if 1 <= level <= len(LEVELS):
            out[max(first, 0) : max(last, 0), level - 1] = 1
    return out
