"""Is one method better than another: differences of AUC on the very same vertebrae or patients.

The bootstrap resamples whole patients and is the default, since vertebrae of one patient are alike. DeLong's test
takes every row for a patient of its own; it is exact for patients and too sure of itself for vertebrae.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.evaluation.metrics import area_under_curve, bootstrap_interval, structural_components
from cspine.evaluation.records import CaseRecord, patient_numbers
from cspine.evaluation.summary import UNJUDGED

Method = Literal["bootstrap", "delong"]


@dataclass(frozen=True, slots=True)
class Difference:
    """AUC of a method minus that of another.

    Attributes:
        value: the difference.
        low: end of the 95 % interval.
        high: other end.
        method: how the interval was made.
        rows: vertebrae, or patients, that both were asked about.
    """

    value: float
    low: float
    high: float
    method: Method
    rows: int

    @property
    def clear(self) -> bool:
        """The interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def auc_difference(
    truth: ArrayLike, first: ArrayLike, second: ArrayLike, patient: ArrayLike, *, method: Method = "bootstrap",
    seed: int = 0,
) -> Difference:  # fmt: skip
    """AUC of ``first`` minus AUC of ``second``, paired.

    Args:
        truth: 0/1 ``[n]``.
        first: scores of one method ``[n]``.
        second: scores of the other, of the same rows.
        patient: of each row; what the bootstrap resamples.
        method: ``bootstrap`` by patient, or ``delong`` (DeLong, DeLong and Clarke-Pearson, 1988).
        seed: of the resampling.

    Raises:
        ValueError: not both kinds are present, or shapes differ.
    """
    y, a, b = np.asarray(truth, dtype=bool), np.asarray(first, np.float64), np.asarray(second, np.float64)
    if method == "delong":
        return _delong(y, a, b)

    def both(index: NDArray[np.intp]) -> float:
        return area_under_curve(y[index], a[index]) - area_under_curve(y[index], b[index])

    found = bootstrap_interval(both, patient, seed=seed)
    return Difference(found.value, found.low, found.high, "bootstrap", len(y))


def _delong(truth: NDArray[np.bool_], first: NDArray[np.float64], second: NDArray[np.float64]) -> Difference:
    """With the covariance of the structural components of two correlated curves."""
    areas, of_positive, of_negative = zip(
        *(structural_components(truth, score) for score in (first, second)), strict=True
    )
    variance = 0.0
    for parts in (of_positive, of_negative):
        if len(parts[0]) > 1:
            covariance = np.cov(np.stack(parts))
            variance += float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / len(parts[0])
    half = 1.959964 * max(variance, 0.0) ** 0.5
    value = float(areas[0] - areas[1])
    return Difference(value, value - half, value + half, "delong", len(truth))


def vertebra_difference(
    first: Sequence[CaseRecord], second: Sequence[CaseRecord], *, method: Method = "bootstrap"
) -> Difference | None:
    """Difference of AUC a vertebra over the vertebrae that both sets of records score; None without both kinds."""
    a, b = _vertebrae(first), _vertebrae(second)
    keys = sorted(a.keys() & b.keys())
    truth = [a[key][0] for key in keys]
    if not any(truth) or all(truth):
        return None
    whose = dict(zip((record.name for record in first), patient_numbers(first), strict=True))
    return auc_difference(
        truth, [a[key][1] for key in keys], [b[key][1] for key in keys], [whose[key[0]] for key in keys], method=method
    )


def _vertebrae(records: Sequence[CaseRecord]) -> dict[tuple[str, str], tuple[bool, float]]:
    """Truth and score by case and level."""
    return {
        (record.name, row.level): (row.fractured, UNJUDGED if row.probability is None else row.probability)
        for record in records
        for row in record.levels
        if row.scored
    }
