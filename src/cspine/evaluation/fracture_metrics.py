"""Figures of a fracture detector at the prevalence it will meet: calibration, predictive value, displacement classes.

A test set holds far more fractures than a waiting room. Importance weights (``calibration.prevalence_weights``) turn
its figures into those at another prevalence, as long as fractures and unbroken bone look the same there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.evaluation.metrics import area_under_curve

Float = NDArray[np.float64]

# Share of fractures that figures are moved to: emergency departments find one in 4 to 10 % of their neck CTs.
PREVALENCE = 0.05
SPECIFICITY = 0.95
BINS = 10
# Upper ends (mm, not included) of the displacement classes; a reader calls the first a hairline.
DISPLACEMENT_CLASSES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"below 1 mm": (0.0, 1.0), "1 to 2 mm": (1.0, 2.0), "2 mm and more": (2.0, float("inf"))}
)


def displacement_class(displacement_mm: float) -> str:
    """The name in ``DISPLACEMENT_CLASSES`` of a displacement in mm (0 or more)."""
    for name, (low, high) in DISPLACEMENT_CLASSES.items():
        if low <= displacement_mm < high:
            return name
    raise ValueError(f"a displacement is 0 mm or more, got {displacement_mm}")


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a weighted reliability table.

    Attributes:
        count: cases in it.
        weight: share of all weight, 0..1.
        predicted: weighted mean probability.
        observed: weighted share of positives.
    """

    count: int
    weight: float
    predicted: float
    observed: float


def equal_mass_bins(
    truth: ArrayLike, probability: ArrayLike, weight: ArrayLike = 1.0, bins: int = BINS
) -> tuple[Bin, ...]:
    """Reliability in bins of about equal weight, by rising probability.

    Args:
        truth: 0/1 ``[n]``.
        probability: ``[n]``, 0..1.
        weight: of each case, ``[n]`` or one number; positive.
        bins: at most this many; equal probabilities stay together, so there may be fewer.
    """
    y, p = np.asarray(truth, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    w = np.broadcast_to(np.asarray(weight, dtype=np.float64), p.shape)
    values, place = np.unique(p, return_inverse=True)
    mass = np.bincount(place, weights=w, minlength=len(values))
    if not len(values) or mass.sum() <= 0:
        return ()
    # A value goes where the middle of its mass lies.
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    index = np.minimum((middle * bins).astype(int), bins - 1)[place]
    rows = []
    for k in np.unique(index):
        inside = index == k
        total = float(w[inside].sum())
        rows.append(
            Bin(
                count=int(inside.sum()),
                weight=total / float(w.sum()),
                predicted=float((w * p)[inside].sum() / total),
                observed=float((w * y)[inside].sum() / total),
            )
        )
    return tuple(rows)


def calibration_error(
    truth: ArrayLike, probability: ArrayLike, weight: ArrayLike = 1.0, bins: int = BINS
) -> float:  # fmt: skip
    """Expected calibration error over bins of equal mass (Nixon et al., 2019; weighted); NaN without cases."""
    rows = equal_mass_bins(truth, probability, weight, bins)
    return sum(row.weight * abs(row.predicted - row.observed) for row in rows) if rows else float("nan")


def brier_score(truth: ArrayLike, probability: ArrayLike, weight: ArrayLike = 1.0) -> float:
    """Weighted mean squared distance between probability and truth (Brier, 1950); NaN without cases."""
    y, p = np.asarray(truth, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    w = np.broadcast_to(np.asarray(weight, dtype=np.float64), p.shape)
    return float((w * (p - y) ** 2).sum() / w.sum()) if len(p) else float("nan")


def positive_predictive_value(sensitivity: float, specificity: float, prevalence: float = PREVALENCE) -> float:
    """Chance that what is called is fractured (Bayes); NaN when nothing is ever called."""
    hits, alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    return hits / (hits + alarms) if hits + alarms > 0 else float("nan")


def negative_predictive_value(sensitivity: float, specificity: float, prevalence: float = PREVALENCE) -> float:
    """Chance that what is not called is unbroken (Bayes); NaN when everything is called."""
    misses, silences = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    return silences / (misses + silences) if misses + silences > 0 else float("nan")


def predictive_value_of(truth: ArrayLike, called: ArrayLike, prevalence: float = PREVALENCE) -> float:
    """Positive predictive value, at another prevalence, of calls ``[n]`` on cases ``[n]``.

    Raises:
        ValueError: not both kinds of cases are present.
    """
    y, yes = np.asarray(truth, dtype=bool), np.asarray(called, dtype=bool)
    if not y.any() or y.all():
        raise ValueError("a predictive value needs positives and negatives")
    return positive_predictive_value(float(yes[y].mean()), float((~yes[~y]).mean()), prevalence)


def area_of(truth: ArrayLike, score: ArrayLike, chosen: ArrayLike) -> float | None:
    """AUC of the ``chosen`` positives against all negatives; None when either is missing.

    Args:
        truth: 0/1 ``[n]``.
        score: ``[n]``.
        chosen: which positives, bool ``[n]``; what it says of negatives does not matter.
    """
    y, s, wanted = np.asarray(truth, dtype=bool), np.asarray(score, dtype=np.float64), np.asarray(chosen, dtype=bool)
    kept = ~y | wanted
    if not (y & wanted).any() or y.all():
        return None
    return area_under_curve(y[kept], s[kept])
