"""What a detector says about one image: from many overlapping boxes to few, and how far two answers are apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import UsageError

Boxes = NDArray[np.float32]

# A detector's answers are compared by this many of its surest boxes.
COMPARED = 20


def box_overlap(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of each box with each other one, 0 to 1.

    Args:
        first: ``(n, 4)`` x_min, y_min, x_max, y_max.
        second: ``(m, 4)``.

    Returns:
        ``(n, m)``; 0 where both boxes are without extent.
    """
    a, b = (_checked(boxes).astype(np.float64) for boxes in (first, second))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=-1)
    either = _areas(a)[:, None] + _areas(b)[None, :] - both
    return np.asarray(np.divide(both, either, out=np.zeros_like(both), where=either > 0))


def suppressed(
    boxes: NDArray[Any], scores: NDArray[Any], *, floor: float = 0.05, overlap: float = 0.5, limit: int = 20
) -> Boxes:
    """The surest boxes that do not tell of the same vertebra twice: greedy non-maximum suppression, class by class.

    The order of the boxes plays no part: of equals the one further up and to the left comes first.

    Args:
        boxes: ``(N, 4)`` x_min, y_min, x_max, y_max, pixels. Those without extent or not finite are left out.
        scores: ``(N, K)`` probability of each of K classes.
        floor: boxes that are less likely are left out.
        overlap: two boxes of a class may have at most this intersection over union.
        limit: how many are kept, over all classes.

    Returns:
        ``(k, 6)`` float32, the surest first: label 1..K, score, box.

    Raises:
        UsageError: shapes that do not belong together.
    """
    boxes = _checked(boxes)
    scores = np.asarray(scores)
    if scores.ndim != 2 or len(scores) != len(boxes):
        raise UsageError(f"expected scores (N, K) of {len(boxes)} boxes, got {scores.shape}", where="scores")
    sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    index, label = np.nonzero((scores >= floor) & sound[:, None])
    rows = np.column_stack([label + 1, scores[index, label], boxes[index]]).astype(np.float32).reshape(-1, 6)
    rows = rows[_order(rows)]
    kept = [_greedy(rows[rows[:, 0] == one], overlap, limit) for one in np.unique(rows[:, 0])]
    out = np.concatenate(kept) if kept else rows
    return np.asarray(out[_order(out)][:limit], dtype=np.float32)


def boxes_distance(
    first: tuple[NDArray[Any], NDArray[Any]], second: tuple[NDArray[Any], NDArray[Any]], *, strongest: int = COMPARED
) -> float:
    """How far two answers about one image are apart, 0 to 1, whatever the order of their boxes.

    Runtimes round differently, so that boxes of like scores change places or the last of them drops out; numbers
    must therefore be compared box by box: each of the ``strongest`` of one answer with the box of the other that is
    most like it.

    Args:
        first: boxes ``(N, 4)`` and scores ``(N, K)``, before suppression.
        second: the same of the other.
        strongest: how many boxes are compared.

    Returns:
        the largest over these boxes of the least, over the other's boxes, of the larger of one minus the intersection
        over union, and the largest difference between scores.
    """
    return max(_one_way(first, second, strongest), _one_way(second, first, strongest))


def _one_way(
    these: tuple[NDArray[Any], NDArray[Any]], others: tuple[NDArray[Any], NDArray[Any]], strongest: int
) -> float:
    best = np.argsort(-these[1].max(axis=1), kind="stable")[:strongest]
    if not len(best) or not len(others[0]):
        return float(len(these[0]) != len(others[0]))
    boxes, scores = these[0][best], these[1][best]
    apart = 1 - box_overlap(boxes, others[0])
    # Boxes that were clipped to nothing overlap with nothing, not even with themselves.
    apart[(boxes[:, None] == others[0][None]).all(axis=-1)] = 0
    unlike = np.abs(scores[:, None].astype(np.float64) - others[1][None]).max(axis=-1)
    return float(np.maximum(apart, unlike).min(axis=1).max())


def _greedy(rows: Boxes, overlap: float, limit: int) -> Boxes:
    """Of rows of one class, the surest first, those that overlap with none before them."""
    kept: list[int] = []
    left = np.arange(len(rows))
    while len(left) and len(kept) < limit:
        kept.append(int(left[0]))
        left = left[1:][box_overlap(rows[left[:1], 2:], rows[left[1:], 2:])[0] <= overlap]
    return rows[kept]


def _order(rows: Boxes) -> NDArray[np.intp]:
    """Surest first, then by label, then from the top and the left."""
    return np.lexsort((rows[:, 5], rows[:, 4], rows[:, 2], rows[:, 3], rows[:, 0], -rows[:, 1]))


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1))


def _checked(boxes: NDArray[Any]) -> NDArray[Any]:
    boxes = np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UsageError(f"expected boxes (N, 4), got {boxes.shape}", where="boxes")
    return boxes
