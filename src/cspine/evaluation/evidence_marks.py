"""Evidence boxes as marks: pieces of evidence that belong together, and whether they lie on a fracture.

A finding lists evidence slice by slice. Boxes of one vertebra that touch are one mark, as a reader would count them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cspine.anatomy import Level
from cspine.evaluation.evidence_hits import HIT_MM
from cspine.findings import Findings

Float = NDArray[np.float64]
# Boxes of one vertebra no further apart than this are one mark: slices may be several millimetres thick.
TOUCH_MM = 3.0


class EvidenceMark(BaseModel):
    """One place that an answer points at.

    Attributes:
        level: the vertebra it was shown for.
        score: probability of that vertebra times the strongest score of the evidence, 0..1.
        hit: the vertebra whose fracture it lies on; None when it lies on none.
        iou: overlap (IoU) of its box with the box around that fracture, in 3D; 0 without a hit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: str
    score: float
    hit: str | None = None
    iou: float = 0.0


def evidence_marks(findings: Findings, broken: Mapping[Level, Float]) -> tuple[EvidenceMark, ...]:
    """The marks of an answer, strongest first.

    Args:
        findings: the answer.
        broken: fracture voxels (LPS mm, ``[n, 3]``) of every fractured vertebra whose place is known. A mark lies on
            a fracture when its centre is within ``HIT_MM`` of one of its voxels.
    """
    marks = []
    for item in findings.levels:
        if not item.evidence or item.probability is None:
            continue
        boxes = np.array([one.box_mm for one in item.evidence], dtype=np.float64)
        scores = np.array([one.score for one in item.evidence])
        for group in _touching(boxes):
            low, high = boxes[group, :3].min(axis=0), boxes[group, 3:].max(axis=0)
            hit, iou = _hit(low, high, broken)
            score = round(float(scores[group].max()) * item.probability, 4)
            marks.append(EvidenceMark(level=item.level, score=score, hit=hit, iou=round(iou, 3)))
    return tuple(sorted(marks, key=lambda mark: -mark.score))


def _touching(boxes: Float) -> list[NDArray[np.intp]]:
    """Groups of rows of ``[n, 6]`` (low, high) that touch, directly or through others."""
    from scipy.sparse.csgraph import connected_components

    low, high = boxes[:, None, :3], boxes[None, :, 3:]
    near = (low <= high + TOUCH_MM).all(axis=-1)
    count, group = connected_components(near & near.T, directed=False)
    return [np.flatnonzero(group == k) for k in range(count)]


def _hit(low: Float, high: Float, broken: Mapping[Level, Float]) -> tuple[str | None, float]:
    """The fracture that a mark lies on, the nearest one, and the overlap with its box."""
    centre = (low + high) / 2
    near = {level: float(np.linalg.norm(points - centre, axis=1).min()) for level, points in broken.items()}
    level = min(near, key=near.__getitem__, default=None)
    if level is None or near[level] > HIT_MM:
        return None, 0.0
    points = broken[level]
    a, b = points.min(axis=0), points.max(axis=0)
    both = np.clip(np.minimum(high, b) - np.maximum(low, a), 0, None).prod()
    union = (high - low).prod() + (b - a).prod() - both
    return level.name, float(both / union) if union > 0 else 0.0
