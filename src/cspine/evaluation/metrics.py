"""How good an answer is: overlap, distance, levels, discrimination, the challenge's score.

Everything takes plain arrays, so that any method can be scored the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.anatomy import Level

Float = NDArray[np.float64]
Point = tuple[float, float, float]

# A level counts as right when its centre is this close to the truth and no other vertebra is closer (VerSe's rule
# uses 20 mm for whole spines; cervical bodies are 15 to 20 mm apart, so half of that).
CENTRE_TOLERANCE_MM = 10.0
# RSNA 2022: weights of (negative, positive) truth, for a vertebra and for patient_overall.
VERTEBRA_WEIGHTS = (1.0, 2.0)
PATIENT_WEIGHTS = (7.0, 14.0)
PROBABILITY_CLIP = 1e-15


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval (95 % unless said otherwise)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def dice(truth: NDArray[np.generic], found: NDArray[np.generic], labels: tuple[int, ...]) -> dict[int, float]:
    """Dice coefficient of each label present in ``truth`` (both arrays of one shape); others are left out."""
    out = {}
    for label in labels:
        a, b = truth == label, found == label
        if a.any():
            out[label] = float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
    return out


def surface_distance(
    truth: NDArray[np.bool_], found: NDArray[np.bool_], spacing_xyz: Point, percentile: float = 95.0
) -> tuple[float, float]:
    """Symmetric surface distance in mm: mean, and the given percentile (95 is the robust Hausdorff distance).

    Args:
        truth: mask ``[z, y, x]``.
        found: mask, same shape.
        spacing_xyz: voxel size.
        percentile: 0..100.

    Returns:
        ``(inf, inf)`` when exactly one mask is empty, ``(0, 0)`` when both are.
    """
    from scipy import ndimage

    if not truth.any() or not found.any():
        return (0.0, 0.0) if truth.any() == found.any() else (float("inf"), float("inf"))
    sampling = spacing_xyz[::-1]
    edges = [mask & ~ndimage.binary_erosion(mask, border_value=0) for mask in (truth, found)]
    fields = [ndimage.distance_transform_edt(~edge, sampling=sampling) for edge in edges]
    values = np.concatenate([fields[1][edges[0]], fields[0][edges[1]]])
    return float(values.mean()), float(np.percentile(values, percentile))


def level_hits(
    truth: Mapping[Level, Point], found: Mapping[Level, Point], tolerance_mm: float = CENTRE_TOLERANCE_MM
) -> dict[Level, bool]:
    """For each true level: is there an answer of that name, close enough, and closer to it than to any other level?"""
    hits = {}
    for level, centre in truth.items():
        answer = found.get(level)
        if answer is None:
            hits[level] = False
            continue
        distances = {other: float(np.linalg.norm(np.subtract(answer, point))) for other, point in truth.items()}
        nearest = min(distances, key=distances.__getitem__)
        hits[level] = nearest is level and float(np.linalg.norm(np.subtract(answer, centre))) <= tolerance_mm
    return hits


def area_under_curve(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counting half.

    Raises:
        ValueError: not both kinds are present.
    """
    return float(structural_components(truth, score)[0])


def delong_interval(truth: ArrayLike, score: ArrayLike, z: float = 1.959964) -> Interval:
    """Area under the ROC curve with DeLong's interval (DeLong et al., 1988; ranks as in Sun and Xu, 2014)."""
    area, of_positive, of_negative = structural_components(truth, score)
    variance = sum(float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.0 for part in (of_positive, of_negative))
    half = z * variance**0.5
    return Interval(float(area), max(0.0, float(area) - half), min(1.0, float(area) + half))


def structural_components(truth: ArrayLike, score: ArrayLike) -> tuple[float, Float, Float]:
    """AUC and its structural components (DeLong et al., 1988), from ranks as in Sun and Xu (2014).

    Args:
        truth: 0/1 ``[n]``.
        score: ``[n]``.

    Returns:
        the area; for each positive the share of negatives it is ahead of; for each negative the share of positives
        that are ahead of it.

    Raises:
        ValueError: not both kinds are present, or shapes differ.
    """
    from scipy.stats import rankdata

    positive = np.asarray(truth, dtype=bool)
    values = np.asarray(score, dtype=np.float64)
    if positive.shape != values.shape or positive.ndim != 1:
        raise ValueError(f"truth and score need one shape [n], got {positive.shape} and {values.shape}")
    ahead, behind = values[positive], values[~positive]
    if len(ahead) == 0 or len(behind) == 0:
        raise ValueError("an ROC curve needs positives and negatives")
    ranks = rankdata(values)
    of_positive = (ranks[positive] - rankdata(ahead)) / len(behind)
    of_negative = 1 - (ranks[~positive] - rankdata(behind)) / len(ahead)
    return float(of_positive.mean()), np.asarray(of_positive), np.asarray(of_negative)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float], groups: ArrayLike, *, seed: int = 0, rounds: int = 1000
) -> Interval:
    """Percentile bootstrap over whole groups (patients), so that levels of one patient stay together.

    Args:
        statistic: from row indices to a number; NaN or ``ValueError`` drops that round.
        groups: group of each row, ``[n]``.
        seed: of the resampling.
        rounds: resamples.
    """
    names = np.asarray(groups)
    rows = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(rounds):
        drawn = rng.integers(0, len(rows), len(rows))
        try:
            values.append(statistic(np.concatenate([rows[k] for k in drawn])))
        except ValueError:
            continue
    kept = np.asarray(values)[np.isfinite(values)]
    whole = statistic(np.arange(len(names)))
    if not len(kept):
        return Interval(whole, float("nan"), float("nan"))
    low, high = np.percentile(kept, [2.5, 97.5])
    return Interval(whole, float(low), float(high))


def proportion(successes: int, total: int, z: float = 1.959964) -> Interval:
    """A share with Wilson's interval (1927); NaN when ``total`` is 0."""
    if total == 0:
        return Interval(float("nan"), 0.0, 1.0)
    share = successes / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5 / scale
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def sensitivity(truth: ArrayLike, called: ArrayLike) -> Interval:
    """Share of the positives that were called."""
    positive, yes = np.asarray(truth, dtype=bool), np.asarray(called, dtype=bool)
    return proportion(int((positive & yes).sum()), int(positive.sum()))


def specificity(truth: ArrayLike, called: ArrayLike) -> Interval:
    """Share of the negatives that were not called."""
    positive, yes = np.asarray(truth, dtype=bool), np.asarray(called, dtype=bool)
    return proportion(int((~positive & ~yes).sum()), int((~positive).sum()))


def sensitivity_at_specificity(truth: ArrayLike, score: ArrayLike, wanted: float) -> tuple[float, float]:
    """Best sensitivity with a specificity of at least ``wanted``, and the threshold (``score >= threshold`` is yes)."""
    positive, values = np.asarray(truth, dtype=bool), np.asarray(score, dtype=np.float64)
    negatives = np.sort(values[~positive])[::-1]
    # Slack for what 1 - wanted loses to rounding; far less than one case.
    allowed = int(np.floor((1 - wanted) * len(negatives) + 1e-9))
    # Everything above the first negative that is not allowed.
    above = values[values > negatives[allowed]] if allowed < len(negatives) else values
    if not len(above):
        return 0.0, float("inf")
    threshold = float(above.min())
    return float((values[positive] >= threshold).mean()), threshold


def competition_score(truth: ArrayLike, probability: ArrayLike) -> float:
    """RSNA 2022's weighted log-loss, mean over studies of the weighted mean over rows (lower is better).

    Args:
        truth: ``[studies, 8]`` 0/1: C1..C7, then patient_overall.
        probability: same shape, 0..1, clipped at 1e-15.
    """
    label = np.asarray(truth, dtype=np.float64)
    p = np.clip(np.asarray(probability, dtype=np.float64), PROBABILITY_CLIP, 1 - PROBABILITY_CLIP)
    if label.shape != p.shape or label.ndim != 2 or label.shape[1] != 8:
        raise ValueError(f"expected two arrays [studies, 8], got {label.shape} and {p.shape}")
    low = np.array([VERTEBRA_WEIGHTS[0]] * 7 + [PATIENT_WEIGHTS[0]])
    high = np.array([VERTEBRA_WEIGHTS[1]] * 7 + [PATIENT_WEIGHTS[1]])
    weight = np.where(label > 0.5, high, low)
    entropy = -(label * np.log(p) + (1 - label) * np.log(1 - p))
    return float(((weight * entropy).sum(1) / weight.sum(1)).mean())
