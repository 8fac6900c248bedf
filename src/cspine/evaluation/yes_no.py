"""Figures of a yes/no question from truth, score and call: scikit-learn's where it has them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.evaluation.calibration import expected_calibration_error, log_loss, reliability
from cspine.evaluation.fracture_metrics import brier_score, predictive_value_of
from cspine.evaluation.metrics import (
    Interval,
    area_under_curve,
    bootstrap_interval,
    delong_interval,
    sensitivity_at_specificity,
)
from cspine.evaluation.scores import Bin, Confusion, Curve, Estimate, YesNo

Bools = NDArray[np.bool_]
Float = NDArray[np.float64]
SPECIFICITIES = (0.9, 0.95)
# Emergency departments find a fracture in 4 to 10 % of their neck CTs; RSNA 2022 has 47.6 %.
PREVALENCES = (0.04, 0.1, 0.476)
# Points of a curve that are kept: enough to draw it.
CURVE_POINTS = 120


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows of a yes/no question.

    Attributes:
        truth: bool ``[n]``.
        score: probability ``[n]``; below 0 when there was no answer.
        called: bool ``[n]``, the answer's own verdict.
        patient: number of the case ``[n]``.
    """

    truth: Bools
    score: Float
    called: Bools
    patient: NDArray[np.int64]

    def at(self, chosen: Bools) -> Asked:
        """Some of the rows."""
        return Asked(self.truth[chosen], self.score[chosen], self.called[chosen], self.patient[chosen])


def yes_no(asked: Asked, *, intervals: bool = True) -> YesNo:
    """All figures; those that need positives and negatives are missing without both.

    Args:
        asked: the rows.
        intervals: resample patients for the interval of the AUC, which takes a second or so.
    """
    truth, score = asked.truth, asked.score
    judged = score >= 0
    fields: dict[str, object] = {"count": len(truth), "positive": int(truth.sum()), "judged": int(judged.sum())}
    if len(truth):
        fields |= _of_calls(asked, intervals)
    if judged.any():
        fields |= _of_probabilities(truth[judged], score[judged])
    if truth.any() and not truth.all():
        fields |= _of_ranking(asked, intervals)
    return YesNo.model_validate(fields)


def share(flags: Bools, patient: NDArray[np.int64], intervals: bool) -> Estimate | None:
    """A share with an interval that resamples patients; None of nothing."""
    if not len(flags):
        return None
    if not intervals:
        return Estimate(value=float(flags.mean()))
    return Estimate.of(bootstrap_interval(lambda index: float(flags[index].mean()), patient))


def _of_calls(asked: Asked, intervals: bool) -> dict[str, object]:
    from sklearn import metrics

    y, called = asked.truth, asked.called
    (tn, fp), (fn, tp) = metrics.confusion_matrix(y, called, labels=[False, True])
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        y, called, labels=[False, True], pos_label=True, average="binary", zero_division=0.0
    )
    # Two raters who both say only one thing agree by chance alone: kappa does not exist.
    varied = len(np.unique(y)) > 1 or len(np.unique(called)) > 1
    return {
        "accuracy": metrics.accuracy_score(y, called),
        "sensitivity": share(called[y], asked.patient[y], intervals),
        "specificity": share(~called[~y], asked.patient[~y], intervals),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "kappa": metrics.cohen_kappa_score(y, called) if varied else None,
        "confusion": Confusion(
            true_negative=int(tn), false_positive=int(fp), false_negative=int(fn), true_positive=int(tp)
        ),
    }


def _of_probabilities(truth: Bools, probability: Float) -> dict[str, object]:
    return {
        "log_loss": log_loss(truth, probability),
        "brier": brier_score(truth, probability),
        "calibration_error": expected_calibration_error(truth, probability),
        "reliability": tuple(
            Bin(low=row.low, high=row.high, count=row.count, predicted=row.predicted, observed=row.observed)
            for row in reliability(truth, probability)
        ),
    }


def _of_ranking(asked: Asked, intervals: bool) -> dict[str, object]:
    from sklearn import metrics

    y, score = asked.truth, asked.score
    area = area_under_curve(y, score)
    auc = Interval(area, float("nan"), float("nan"))
    if intervals:
        auc = bootstrap_interval(lambda index: area_under_curve(y[index], score[index]), asked.patient)
    false, true, _ = metrics.roc_curve(y, score)
    precision, recall, _ = metrics.precision_recall_curve(y, score)
    best = {f"{wanted:g}": sensitivity_at_specificity(y, score, wanted) for wanted in SPECIFICITIES}
    strict = score >= best[f"{SPECIFICITIES[-1]:g}"][1]
    return {
        "auc": Estimate.of(auc),
        "auc_delong": Estimate.of(delong_interval(y, score)),
        "average_precision": metrics.average_precision_score(y, score),
        "sensitivity_at": {name: found for name, (found, _) in best.items()},
        "predictive_value": {f"{p:g}": predictive_value_of(y, asked.called, p) for p in PREVALENCES},
        "predictive_value_at": {f"{p:g}": predictive_value_of(y, strict, p) for p in PREVALENCES},
        "roc": _thinned(false, true),
        "precision_recall": _thinned(recall[::-1], precision[::-1]),
    }


def _thinned(x: Float, y: Float) -> Curve:
    """At most ``CURVE_POINTS`` points of a curve, both ends among them."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), CURVE_POINTS)).astype(int))
    return tuple((round(float(x[k]), 4), round(float(y[k]), 4)) for k in chosen)
