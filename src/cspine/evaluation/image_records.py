"""What each axial image of a case shows, truth and answer: the rows behind figures of images and of boxes.

Every method is asked on the same images, those of ``VIEW``: one that answers by image on its own grid is read at the
nearest of its images, and of one that answers with a mask it is said which vertebrae the mask shows there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case
from cspine.inference.planar import PlanarView
from cspine.inference.planar_images import PlaneGrid, plane_grid, sample_planes
from cspine.volume import Volume

if TYPE_CHECKING:
    from cspine.inference.planar_answers import ImageAnswers
    from cspine.inference.predictor import Prediction

# The images that figures are made on: all of the field, an image every 2 mm.
VIEW = PlanarView(size=256, step_mm=2.0)
# An image shows a vertebra when at least this much of it lies in it, and a fracture likewise; as in training.
MIN_SHOWN_MM2, MIN_BROKEN_MM2 = 30.0, 4.0
# Boxes that are less sure than this are not kept, nor more of an image than this.
BOX_FLOOR, BOXES_KEPT = 0.05, 10

Float = NDArray[np.float64]
Labels = NDArray[np.uint8]
# x_min, y_min, x_max, y_max in pixels of ``VIEW``, edges.
Box = tuple[float, float, float, float]
Found = tuple[int, int, float, float]


class ImageRecords(BaseModel):
    """Truth and answer of every axial image of a case, in order of the images.

    Attributes:
        visible: truth, the labels 1..7 that each image shows.
        answers: the answer's probability that each image shows C1..C7; of a mask 0.5 where it shows just enough.
        broken: truth, whether each image shows a fracture; None where that is unknown.
        fracture: the answer's probability of it; None from a method that does not judge images.
        found: answered boxes: image, label, score, and overlap (IoU) with the true box of that label, 0 without one.
            A true box belongs to every label in ``visible``; boxes on a sliver of their vertebra are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    visible: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[float, ...], ...]
    broken: tuple[int | None, ...]
    fracture: tuple[float, ...] | None = None
    found: tuple[Found, ...] = ()


def image_records(case: Case, prediction: Prediction) -> ImageRecords | None:
    """Compare an answer with the truth image by image; None for a case without a mask."""
    if case.labels is None:
        return None
    labels = Volume(case.labels, case.volume.affine).reoriented()
    grid = plane_grid(labels, VIEW)
    truth = _planes(labels, grid)
    areas = _areas(truth, grid)
    true_boxes = [_boxes(plane) for plane in truth]
    shown = areas >= MIN_SHOWN_MM2
    # A planar method says itself what its images show; of any other the mask does.
    own: ImageAnswers | None = getattr(prediction, "images", None)
    if own is None or own.boxes is None:
        masks = _planes(Volume(prediction.labels, prediction.labels_affine), grid)
        found_areas, found = _areas(masks, grid), _mask_boxes(masks, grid, prediction)
    else:
        found_areas, found = np.zeros_like(areas), _answered_boxes(own, grid)
    visible = found_areas / (found_areas + MIN_SHOWN_MM2) if own is None else _nearest(own.visible, own.grid, grid)
    fracture = None if own is None else _image_fracture(own, grid)
    return ImageRecords(
        visible=tuple(tuple(int(k) + 1 for k in np.flatnonzero(row)) for row in shown),
        answers=tuple(tuple(round(float(p), 3) for p in row) for row in visible),
        broken=_broken(case, grid, shown),
        fracture=None if fracture is None else tuple(round(float(p), 3) for p in fracture),
        found=tuple(_matched(found, true_boxes, shown)),
    )


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))


def _planes(labels: Volume, grid: PlaneGrid) -> Labels:
    """A mask on the images of a grid, ``[n, size, size]``."""
    return sample_planes(labels, grid, 0, grid.count, order=0, fill=0).astype(np.uint8)


def _areas(planes: Labels, grid: PlaneGrid) -> Float:
    """mm² of C1..C7 in every image, ``[n, 7]``."""
    pixel = float(np.linalg.norm(grid.affine[:3, 0]) * np.linalg.norm(grid.affine[:3, 1]))
    counts = np.stack([np.bincount(plane.ravel(), minlength=8)[1:8] for plane in planes])
    return np.asarray(counts * pixel, dtype=np.float64)


def _boxes(plane: Labels) -> dict[int, Box]:
    """The box of every cervical label in an image."""
    found = ndimage.find_objects(plane, max_label=int(Level.C7))
    return {
        label: (float(at[1].start), float(at[0].start), float(at[1].stop), float(at[0].stop))
        for label, at in enumerate(found, start=1)
        if at is not None
    }


def _mask_boxes(planes: Labels, grid: PlaneGrid, prediction: Prediction) -> list[list[tuple[int, float, Box]]]:
    """Boxes around the parts of an answered mask, as sure as the names of their levels."""
    sure = {int(Level[item.level]): item.confidence for item in prediction.findings.levels}
    areas = _areas(planes, grid)
    return [
        [(label, sure[label], box) for label, box in _boxes(plane).items() if areas[k, label - 1] >= MIN_SHOWN_MM2]
        for k, plane in enumerate(planes)
    ]


def _answered_boxes(own: ImageAnswers, grid: PlaneGrid) -> list[list[tuple[int, float, Box]]]:
    """The boxes of a detector in pixels of ``grid``."""
    to_grid = np.linalg.inv(grid.affine) @ own.grid.affine
    out = []
    for image in _numbers(own.grid, grid):
        rows = [] if image < 0 or own.boxes is None else [row for row in own.boxes[image] if row[1] >= BOX_FLOOR]
        rows = sorted(rows, key=lambda row: -row[1])[:BOXES_KEPT]
        moved = []
        for label, score, *corners in rows:
            # Edges lie half a pixel before the index.
            ends = np.array([[corners[k] - 0.5, corners[k + 1] - 0.5, image, 1.0] for k in (0, 2)])
            (x0, y0), (x1, y1) = (ends @ to_grid.T)[:, :2] + 0.5
            moved.append((int(label), float(score), (float(x0), float(y0), float(x1), float(y1))))
        out.append(moved)
    return out


def _numbers(source: PlaneGrid, grid: PlaneGrid) -> NDArray[np.intp]:
    """For every image of ``grid`` the nearest one of ``source``; -1 where that has none."""
    middle = (grid.size - 1) / 2
    points = np.array([[middle, middle, k, 1.0] for k in range(grid.count)]) @ grid.affine.T
    at = points @ np.linalg.inv(source.affine).T
    number = np.rint(at[:, 2]).astype(np.intp)
    # Half an image of slack: two grids of one field round its height differently.
    inside = (at[:, 2] > -1.0) & (at[:, 2] < source.count)
    return np.where(inside, np.clip(number, 0, source.count - 1), -1)


def _nearest(values: NDArray[np.float32], source: PlaneGrid, grid: PlaneGrid) -> Float:
    """Values of the images of ``source``, ``[n, ...]``, at those of ``grid``; 0 where there is none."""
    number = _numbers(source, grid)
    inside = (number >= 0).reshape(-1, *([1] * (values.ndim - 1)))
    return np.where(inside, np.asarray(values, dtype=np.float64)[np.maximum(number, 0)], 0.0)


def _image_fracture(own: ImageAnswers, grid: PlaneGrid) -> Float | None:
    if own.fracture is not None:
        return _nearest(own.fracture, own.grid, grid)
    return None if own.broken is None else _nearest(own.broken.max(axis=1), own.grid, grid)


def _broken(case: Case, grid: PlaneGrid, shown: NDArray[np.bool_]) -> tuple[int | None, ...]:
    """Whether each image shows a fracture: 1, 0, or None where a fracture of unknown place may be."""
    if case.fracture is None:
        return (None,) * grid.count
    fracture = Volume(case.fracture.astype(np.uint8), case.volume.affine).reoriented()
    x, y, _ = fracture.spacing
    area = np.count_nonzero(fracture.hu, axis=(1, 2)) * x * y
    middle = [(fracture.shape[2] - 1) / 2, (fracture.shape[1] - 1) / 2]
    centres = fracture.to_world(np.array([[*middle, k] for k in range(fracture.shape[0])], dtype=np.float64))
    at = np.rint((centres - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T)[:, 2].astype(int)
    most = np.zeros(grid.count)
    np.maximum.at(most, np.clip(at, 0, grid.count - 1), area)
    lost = [level.index for level, item in case.levels.items() if item.fractured and not item.place_known]
    unknown = [bool(row.any()) for row in shown[:, lost]]
    return tuple(
        1 if area >= MIN_BROKEN_MM2 else None if unsure else 0 for area, unsure in zip(most, unknown, strict=True)
    )


def _matched(
    found: list[list[tuple[int, float, Box]]], true_boxes: list[Mapping[int, Box]] | list[dict[int, Box]],
    shown: NDArray[np.bool_],
) -> list[Found]:  # fmt: skip
    """Rows of ``ImageRecords.found``."""
    rows: list[Found] = []
    for image, boxes in enumerate(found):
        for label, score, box in boxes:
            if not 1 <= label <= len(LEVELS):
                continue
            true = true_boxes[image].get(label)
            if true is not None and not shown[image, label - 1]:
                continue
            rows.append((image, label, round(score, 3), 0.0 if true is None else round(overlap(box, true), 3)))
    return rows
