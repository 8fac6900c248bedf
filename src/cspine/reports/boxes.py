"""Evidence boxes on pictures: from slices and millimetres to the pixels of a plane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.reports.planes import Plane
from cspine.volume import Volume


@dataclass(frozen=True, slots=True)
class Box:
    """The outline of a piece of evidence, pixels of the picture."""

    x: float
    y: float
    width: float
    height: float


def slice_corners(volume: Volume, at: int, box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """LPS corners ``[4, 3]`` of a pixel box on a slice; pixel k spans k - 0.5 to k + 0.5."""
    x0, y0, x1, y1 = box
    return volume.to_world(np.array([[x, y, at] for x in (x0 - 0.5, x1 - 0.5) for y in (y0 - 0.5, y1 - 0.5)]))


def mm_corners(box: tuple[float, float, float, float, float, float]) -> NDArray[np.float64]:
    """LPS corners ``[8, 3]`` of a box in millimetres."""
    return np.array([[x, y, z] for x in (box[0], box[3]) for y in (box[1], box[4]) for z in (box[2], box[5])])


def on_plane(plane: Plane, corners: NDArray[np.float64]) -> Box:
    """The extent of LPS points on a picture."""
    pixels = np.array([plane.pixel_of(corner) for corner in corners])
    (x0, y0), (x1, y1) = pixels.min(axis=0), pixels.max(axis=0)
    return Box(float(x0), float(y0), float(x1 - x0), float(y1 - y0))


def clipped(boxes: Iterable[Box], plane: Plane) -> tuple[Box, ...]:
    """Boxes that can be seen, cut off at the picture's border."""
    rows, columns = plane.shape
    kept = []
    for box in boxes:
        x0, y0 = max(box.x, 1.0), max(box.y, 1.0)
        x1, y1 = min(box.x + box.width, columns - 1.0), min(box.y + box.height, rows - 1.0)
        if x1 > x0 and y1 > y0:
            kept.append(Box(x0, y0, x1 - x0, y1 - y0))
    return tuple(kept)


def merged(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Boxes that overlap or touch become one: seen from the side, slices of one place lie on top of each other."""
    rest = list(boxes)
    done: list[Box] = []
    while rest:
        one = rest.pop(0)
        touching = [index for index, other in enumerate(rest) if _touch(one, other)]
        if touching:
            joined = _joined([one, *(rest[index] for index in touching)])
            # What was done may touch the larger box: look again.
            rest = [joined, *done, *(other for index, other in enumerate(rest) if index not in touching)]
            done = []
        else:
            done.append(one)
    return tuple(done)


def _joined(boxes: Sequence[Box]) -> Box:
    """The smallest box around several."""
    x0, y0 = min(box.x for box in boxes), min(box.y for box in boxes)
    x1, y1 = max(box.x + box.width for box in boxes), max(box.y + box.height for box in boxes)
    return Box(x0, y0, x1 - x0, y1 - y0)


def _touch(a: Box, b: Box) -> bool:
    across = a.x <= b.x + b.width and b.x <= a.x + a.width
    along = a.y <= b.y + b.height and b.y <= a.y + a.height
    return across and along
