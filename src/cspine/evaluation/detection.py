"""Figures of boxes: average precision as COCO measures it, overlap, and the free-response curve of evidence.

Library versions (torchmetrics, MONAI) need torch, which scoring does without; a label has at most one true box an
image here, so matching needs no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.evaluation.records import CaseRecord

Float = NDArray[np.float64]
# COCO: overlaps that count as found, and the 101 recalls at which precision is read (Lin et al., 2014).
OVERLAPS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
RECALLS = np.linspace(0, 1, 101)
# False marks a study at which sensitivity is read; their mean is the score of LUNA16 (Setio et al., 2017).
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class BoxScores:
    """How well vertebra boxes fit.

    Attributes:
        map50: mean over levels of average precision at an overlap of 0.5.
        map50_95: its mean over overlaps of 0.5, 0.55 … 0.95.
        ap50: average precision at 0.5 a level, of levels with true boxes.
        iou: mean overlap of true boxes with the surest answered one of their label in the image; 0 where there is none.
        boxes: number of true boxes.
    """

    map50: float
    map50_95: float
    ap50: dict[str, float]
    iou: float
    boxes: int


@dataclass(frozen=True, slots=True)
class Froc:
    """Free-response curve of evidence marks.

    Attributes:
        false_marks: a study, rising.
        sensitivity: share of fractures with a mark on them, at each.
        at: sensitivity at each of ``FROC_RATES``.
        score: mean of these.
        fractures: how many, of known place.
        studies: how many.
        iou: mean overlap in 3D of marks that hit with the box around their fracture; NaN when none hits.
    """

    false_marks: Float
    sensitivity: Float
    at: dict[str, float]
    score: float
    fractures: int
    studies: int
    iou: float


def box_scores(records: Sequence[CaseRecord]) -> BoxScores | None:
    """Boxes of C1..C7 over all images of all cases; None when no image shows a vertebra or nothing is known."""
    images = [record.images for record in records if record.images is not None]
    counts = {int(level): sum(int(level) in shown for item in images for shown in item.visible) for level in LEVELS}
    total = sum(counts.values())
    if not total:
        return None
    rows = np.array([(case, *row) for case, item in enumerate(images) for row in item.found], dtype=np.float64).reshape(
        -1, 5
    )
    table = {}
    for level in LEVELS:
        mine = rows[rows[:, 2] == int(level)]
        if counts[int(level)]:
            table[level.name] = [_average_precision(mine, counts[int(level)], least) for least in OVERLAPS]
    values = np.array(list(table.values()))
    return BoxScores(
        map50=float(values[:, 0].mean()),
        map50_95=float(values.mean()),
        ap50={name: row[0] for name, row in table.items()},
        iou=_surest_overlaps(rows) / total,
        boxes=total,
    )


def _average_precision(rows: Float, truths: int, least: float) -> float:
    """Average precision of one label; rows are case, image, label, score, overlap."""
    order = np.argsort(-rows[:, 3], kind="stable")
    rows = rows[order]
    good = rows[:, 4] >= least
    # Of several boxes on one true box the surest counts, the others are wrong.
    first = np.zeros(len(rows), dtype=bool)
    first[_first_of_each(rows[good, :2], np.flatnonzero(good))] = True
    hits = np.cumsum(first)
    recall, precision = hits / truths, hits / np.arange(1, len(rows) + 1)
    best_after = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(best_after, 0.0)[place].mean())


def _first_of_each(keys: Float, index: NDArray[np.intp]) -> NDArray[np.intp]:
    """Of rows with equal keys the first, as indices."""
    if not len(index):
        return index
    _, first = np.unique(keys, axis=0, return_index=True)
    return np.asarray(index[first])


def _surest_overlaps(rows: Float) -> float:
    """Sum over images and labels of the overlap of the surest box."""
    order = np.argsort(-rows[:, 3], kind="stable")
    keep = _first_of_each(rows[order][:, :3], order)
    return float(rows[keep, 4].sum())


def froc(records: Sequence[CaseRecord]) -> Froc | None:
    """Free-response curve over cases whose fractures' places are all known; None without any fracture."""
    known = [record for record in records if record.lesions is not None]
    fractures = sum(len(record.lesions or ()) for record in known)
    if not fractures:
        return None
    rows = sorted(
        ((mark.score, case, mark.hit) for case, record in enumerate(known) for mark in record.marks),
        key=lambda row: -row[0],
    )
    found: set[tuple[int, str]] = set()
    wrong = 0
    points = [(0.0, 0.0)]
    for k, (score, case, hit) in enumerate(rows):
        if hit is None:
            wrong += 1
        else:
            found.add((case, hit))
        # A threshold keeps all marks of one score or none.
        if k + 1 == len(rows) or rows[k + 1][0] < score:
            points.append((wrong / len(known), len(found) / fractures))
    curve = np.array(points)
    at = {f"{rate:g}": float(curve[curve[:, 0] <= rate, 1].max()) for rate in FROC_RATES}
    overlaps = [mark.iou for record in known for mark in record.marks if mark.hit is not None]
    return Froc(
        false_marks=curve[:, 0],
        sensitivity=curve[:, 1],
        at=at,
        score=float(np.mean(list(at.values()))),
        fractures=fractures,
        studies=len(known),
        iou=float(np.mean(overlaps)) if overlaps else float("nan"),
    )
