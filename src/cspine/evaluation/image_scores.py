"""Figures of axial images: which vertebrae does this one show, and does it show a fracture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.evaluation.metrics import area_under_curve, bootstrap_interval
from cspine.evaluation.records import CaseRecord, patient_numbers
from cspine.evaluation.scores import Estimate, Images

Bools = NDArray[np.bool_]


def image_scores(records: Sequence[CaseRecord]) -> Images | None:
    """Of all axial images of all cases; None when no case has them."""
    numbered = zip(patient_numbers(records), records, strict=True)
    kept = [(k, record.images) for k, record in numbered if record.images is not None]
    if not kept:
        return None
    truth = np.array([[int(level) in shown for level in LEVELS] for _, item in kept for shown in item.visible])
    answer = np.array([row for _, item in kept for row in item.answers], dtype=np.float64)
    patient = np.concatenate([np.full(len(item.visible), k) for k, item in kept])
    return shown_scores(truth, answer, patient, fracture_auc=_fracture_auc(records))


def shown_scores(
    truth: Bools, answer: NDArray[np.float64], patient: NDArray[np.int64], *, fracture_auc: Estimate | None = None
) -> Images:
    """Figures of "which of C1 to C7 does this image show".

    Args:
        truth: bool ``[n, 7]``.
        answer: probabilities ``[n, 7]``.
        patient: number of each image's patient ``[n]``; intervals resample patients.
        fracture_auc: of "does it show a fracture".
    """
    called = answer >= 0.5
    some = np.asarray(truth.any(axis=1))
    levels = np.asarray(truth.any(axis=0))
    f1 = _f1(truth, called)
    return Images(
        count=len(truth),
        macro_f1=Estimate.of(bootstrap_interval(lambda i: _macro(truth[i], called[i], levels), patient, rounds=200)),
        exact_match=Estimate.of(
            bootstrap_interval(lambda i: float((truth[i] == called[i]).all(axis=1).mean()), patient, rounds=200)
        ),
        coverage_error=_coverage(truth[some], answer[some]),
        shown=float(truth[some].sum(axis=1).mean()) if some.any() else None,
        f1={level.name: float(f1[level.index]) for level in LEVELS if levels[level.index]},
        fracture_auc=fracture_auc,
    )


def _f1(truth: Bools, called: Bools) -> NDArray[np.float64]:
    """F1 of every level; 0 where nothing is right."""
    from sklearn.metrics import f1_score

    return np.asarray(f1_score(truth, called, average=None, zero_division=0.0))


def _macro(truth: Bools, called: Bools, levels: Bools) -> float:
    """Mean over the levels that any image shows, by counting: the bootstrap asks hundreds of times."""
    right = (truth & called).sum(axis=0)[levels]
    total = (truth.sum(axis=0) + called.sum(axis=0))[levels]
    return float(np.divide(2 * right, total, out=np.zeros(len(right)), where=total > 0).mean())


def _coverage(truth: Bools, answer: NDArray[np.float64]) -> float | None:
    from sklearn.metrics import coverage_error

    return float(coverage_error(truth, answer)) if len(truth) else None


def _fracture_auc(records: Sequence[CaseRecord]) -> Estimate | None:
    """Of methods that say which images show a fracture, on images where it is known."""
    rows = [
        (k, bool(broken), p)
        for k, record in zip(patient_numbers(records), records, strict=True)
        if record.images is not None and record.images.fracture is not None
        for broken, p in zip(record.images.broken, record.images.fracture, strict=True)
        if broken is not None
    ]
    truth = np.array([row[1] for row in rows], dtype=bool)
    if not truth.any() or truth.all():
        return None
    score = np.array([row[2] for row in rows])
    patient = [row[0] for row in rows]
    return Estimate.of(
        bootstrap_interval(lambda index: area_under_curve(truth[index], score[index]), patient, rounds=200)
    )
