"""From scores to probabilities that mean what they say, and how well they do.

Scores are logits. Platt's method (1999) fits ``sigmoid(slope * score + offset)``; a vertebra's own map is shrunk
towards the map of all levels together, since single levels have few fractures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.inference.combiner import FEATURES, PatientHead, Platt

Float = NDArray[np.float64]


def sigmoid(x: ArrayLike) -> Float:
    """Logistic function without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x, dtype=np.float64))))


def fit_platt(
    score: ArrayLike, truth: ArrayLike, *, prior: Platt | None = None, strength: float = 1.0, weight: ArrayLike = 1.0
) -> Platt:
    """Maximum a posteriori logistic fit.

    Args:
        score: logits ``[n]``.
        truth: 0/1 ``[n]``.
        prior: what to shrink to; slope 1 and offset 0 when None.
        strength: how many observations' worth of trust the prior has; 0 is plain maximum likelihood.
        weight: of each observation, for instance to move the prevalence.
    """
    from scipy.optimize import minimize

    x, y = np.asarray(score, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    w = np.broadcast_to(np.asarray(weight, dtype=np.float64), x.shape)
    start = prior or Platt()
    centre = np.array([start.slope, start.offset])
    # A unit of slope moves the logit by the scores' spread, a unit of offset by one.
    scale = np.array([max(float(x.std()) if len(x) else 1.0, 0.5), 1.0])

    def objective(free: Float) -> tuple[float, Float]:
        z = free[0] * x + free[1]
        away = (free - centre) * scale
        loss = float((w * (np.logaddexp(0, z) - y * z)).sum() + 0.25 * strength * (away**2).sum())
        residual = w * (sigmoid(z) - y)
        slope = np.array([(residual * x).sum(), residual.sum()]) + 0.5 * strength * away * scale
        return loss, slope

    bounds = [(1e-3, None), (None, None)]
    found = minimize(objective, centre, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Platt(slope=float(found[0]), offset=float(found[1]))


def fit_levels(
    score: ArrayLike, truth: ArrayLike, level: ArrayLike, *, strength: float = 20.0, weight: ArrayLike = 1.0
) -> tuple[Platt, ...]:
    """One map for each of the seven levels (index 0..6), each shrunk towards the map fitted on all of them."""
    x, y, k = np.asarray(score), np.asarray(truth), np.asarray(level)
    w = np.broadcast_to(np.asarray(weight, dtype=np.float64), x.shape)
    common = fit_platt(x, y, strength=2.0, weight=w)
    return tuple(
        fit_platt(x[k == index], y[k == index], prior=common, strength=strength, weight=w[k == index])
        for index in range(7)
    )


def apply_platt(curve: Platt, score: ArrayLike) -> Float:
    """Probabilities of scores, any shape."""
    return sigmoid(curve.slope * np.asarray(score, dtype=np.float64) + curve.offset)


def fit_patient_head(
    features: ArrayLike, truth: ArrayLike, noisy_or: ArrayLike, *, strength: float = 10.0
) -> PatientHead:
    """A ridge logistic head over ``combiner.patient_features``, blended half and half with noisy-or.

    Args:
        features: ``[patients, 5]``.
        truth: 0/1 ``[patients]``.
        noisy_or: probability ``[patients]`` that noisy-or of the calibrated levels gives.
        strength: of the ridge towards "the logit of noisy-or, as it is".

    Returns:
        The head whose blend, of 0, 0.5 and 1, has the least log-loss on these patients.
    """
    from scipy.optimize import minimize

    x = np.column_stack([np.asarray(features, dtype=np.float64), np.ones(len(np.asarray(truth)))])
    y = np.asarray(truth, dtype=np.float64)
    centre = np.zeros(FEATURES + 1)
    centre[FEATURES - 2] = 1.0

    def objective(weights: Float) -> tuple[float, Float]:
        z = x @ weights
        away = weights - centre
        loss = float((np.logaddexp(0, z) - y * z).sum() + 0.5 * strength * (away**2).sum())
        return loss, x.T @ (sigmoid(z) - y) + strength * away

    weights = minimize(objective, centre, jac=True, method="L-BFGS-B").x
    learned = sigmoid(x @ weights)
    plain = np.asarray(noisy_or, dtype=np.float64)
    blend = min((0.0, 0.5, 1.0), key=lambda share: log_loss(y, share * plain + (1 - share) * learned))
    return PatientHead(blend=blend, weights=tuple(float(w) for w in weights[:-1]), bias=float(weights[-1]))


def log_loss(truth: ArrayLike, probability: ArrayLike) -> float:
    """Mean binary cross-entropy, probabilities cut at 1e-6."""
    y = np.asarray(truth, dtype=np.float64)
    p = np.clip(np.asarray(probability, dtype=np.float64), 1e-6, 1 - 1e-6)
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())


def prevalence_weights(truth: ArrayLike, prevalence: float) -> Float:
    """Weights, mean 1, that make the weighted share of positives ``prevalence``; ones when only one kind is present."""
    y = np.asarray(truth, dtype=bool)
    share = float(y.mean()) if len(y) else 0.0
    if share in (0.0, 1.0):
        return np.ones(len(y))
    return np.where(y, prevalence / share, (1 - prevalence) / (1 - share))


def best_threshold(truth: ArrayLike, probability: ArrayLike) -> float:
    """Threshold with the largest sensitivity plus specificity (Youden, 1950), half-way to the next lower value."""
    y, p = np.asarray(truth, dtype=bool), np.asarray(probability, dtype=np.float64)
    if not y.any() or y.all():
        return 0.5
    values = np.unique(p)
    gains = [float((p[y] >= value).mean() - (p[~y] >= value).mean()) for value in values]
    index = int(np.argmax(gains))
    lower = values[index - 1] if index else 0.0
    return float((values[index] + lower) / 2)


@dataclass(frozen=True, slots=True)
class ReliabilityRow:
    """One bin of a reliability table."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


def reliability(truth: ArrayLike, probability: ArrayLike, bins: int = 10) -> tuple[ReliabilityRow, ...]:
    """Mean prediction against observed share in bins of equal width; empty bins are left out."""
    y, p = np.asarray(truth, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    index = np.minimum((p * bins).astype(int), bins - 1)
    rows = []
    for k in range(bins):
        inside = index == k
        if inside.any():
            count = int(inside.sum())
            rows.append(
                ReliabilityRow(k / bins, (k + 1) / bins, count, float(p[inside].mean()), float(y[inside].mean()))
            )
    return tuple(rows)


def expected_calibration_error(truth: ArrayLike, probability: ArrayLike, bins: int = 10) -> float:
    """Mean distance between predicted and observed, weighted by bin size (Naeini et al., 2015)."""
    rows = reliability(truth, probability, bins)
    total = sum(row.count for row in rows)
    return sum(row.count * abs(row.predicted - row.observed) for row in rows) / total if total else 0.0
