"""Do findings and readers agree? Agreement, kappa, sensitivity, specificity and predictive value, with intervals.

A reader answers what was found, so the reader's answer is the reference here; it is not a gold standard, and only
studies that somebody answered are counted. Statements about several vertebrae of one study are not independent:
intervals use the number of statements that independent ones of the same variance would be (the design effect; L. Kish,
Survey Sampling, Wiley 1965, ch. 5; Wilson's interval on that number after E. Korn and B. Graubard, Survey Methodology
24(2), 1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.evaluation.metrics import Interval, proportion

Z = 1.959964
Bools = NDArray[np.bool_]
Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How what was found compares with what readers say.

    Attributes:
        statements: pairs of a finding and an answer.
        studies: that they are of.
        both, found_only, read_only, neither: fractures stated by both, by one side alone, by none.
        agreement: share of pairs that say the same.
        kappa: Cohen's (1960); None where it does not exist, because both sides say only one thing.
        sensitivity, specificity: of the findings, against the readers; None without fractures, without unbroken bone.
        predictive_value: share of stated fractures that readers confirm, in these studies; None when none was stated.
        prevalence: share of fractures among the readers' answers; None without answers.
    """

    statements: int = 0
    studies: int = 0
    both: int = 0
    found_only: int = 0
    read_only: int = 0
    neither: int = 0
    agreement: Interval | None = None
    kappa: Interval | None = None
    sensitivity: Interval | None = None
    specificity: Interval | None = None
    predictive_value: Interval | None = None
    prevalence: Interval | None = None

    @property
    def confirmed(self) -> int:
        """Stated fractures and answers that a reader gave to them, together: ``both`` and ``found_only``."""
        return self.both + self.found_only


def agreement(found: ArrayLike, read: ArrayLike, study: ArrayLike) -> Agreement:
    """Compare findings with answers.

    Args:
        found: whether a fracture was found, bool ``[n]``.
        read: whether the reader says there is one, bool ``[n]``.
        study: whose study each pair is of, any labels ``[n]``; pairs of one study are not independent.

    Raises:
        ValueError: the three have different lengths.
    """
    stated, said = np.asarray(found, dtype=bool), np.asarray(read, dtype=bool)
    names, cluster = np.unique(np.asarray(study), return_inverse=True)
    if not stated.shape == said.shape == cluster.shape or stated.ndim != 1:
        raise ValueError(f"expected three rows [n], got {stated.shape}, {said.shape} and {cluster.shape}")
    if not len(stated):
        return Agreement()
    cells = [stated & said, stated & ~said, ~stated & said, ~stated & ~said]
    both, found_only, read_only, neither = (int(cell.sum()) for cell in cells)
    return Agreement(
        statements=len(stated),
        studies=len(names),
        both=both,
        found_only=found_only,
        read_only=read_only,
        neither=neither,
        agreement=share(stated == said, cluster),
        kappa=_kappa(cells, cluster),
        sensitivity=share(stated[said], cluster[said]),
        specificity=share(~stated[~said], cluster[~said]),
        predictive_value=share(said[stated], cluster[stated]),
        prevalence=share(said, cluster),
    )


def share(flags: Bools, cluster: NDArray[np.intp]) -> Interval | None:
    """A share with Wilson's interval on the effective number of independent statements; None of nothing.

    Args:
        flags: bool ``[n]``.
        cluster: number of the study of each, ``[n]``.
    """
    count = len(flags)
    if count == 0:
        return None
    value = float(flags.mean())
    independent = count / _design_effect(flags, cluster, value)
    around = proportion_of(value, independent)
    return Interval(value, around.low, around.high)


def proportion_of(value: float, count: float) -> Interval:
    """Wilson's interval (1927) of a share among ``count`` statements, which need not be a whole number."""
    if float(count).is_integer():
        return proportion(round(value * count), int(count))
    scale = 1 + Z * Z / count
    middle = (value + Z * Z / (2 * count)) / scale
    half = Z * math.sqrt(value * (1 - value) / count + Z * Z / (4 * count * count)) / scale
    return Interval(value, max(0.0, middle - half), min(1.0, middle + half))


def _design_effect(flags: Bools, cluster: NDArray[np.intp], value: float) -> float:
    """Variance of a share over clusters by that of as many independent statements; 1 or more."""
    sizes = np.bincount(cluster).astype(np.float64)
    yes = np.bincount(cluster, weights=flags)[sizes > 0]
    sizes = sizes[sizes > 0]
    clusters, count = len(sizes), len(flags)
    simple = value * (1 - value) / count
    if clusters < 2 or clusters == count or simple == 0:
        return 1.0
    spread = clusters / (clusters - 1) * float(np.sum((yes - value * sizes) ** 2)) / count**2
    return max(1.0, spread / simple)


def cohen_kappa(table: ArrayLike) -> Float:
    """Cohen's kappa (Educ. Psychol. Meas. 20, 1960) of tables of counts; NaN where chance agreement is certain.

    Args:
        table: ``[..., 4]``: both, first alone, second alone, neither.
    """
    both, first, second, neither = np.moveaxis(np.asarray(table, dtype=np.float64), -1, 0)
    count = both + first + second + neither
    with np.errstate(divide="ignore", invalid="ignore"):
        agree = (both + neither) / count
        chance = ((both + first) * (both + second) + (neither + first) * (neither + second)) / count**2
        return np.asarray((agree - chance) / (1 - chance))


def _kappa(cells: list[Bools], cluster: NDArray[np.intp]) -> Interval | None:
    """Kappa; its interval from the jackknife over studies (R. Miller, Biometrika 61, 1974)."""
    by_study = np.stack([np.bincount(cluster, weights=cell) for cell in cells], axis=-1)
    total = by_study.sum(axis=0)
    value = float(cohen_kappa(total))
    if not math.isfinite(value):
        return None
    left = cohen_kappa(total - by_study)
    left = left[np.isfinite(left)]
    if len(left) < 2:
        return Interval(value, float("nan"), float("nan"))
    half = Z * math.sqrt((len(left) - 1) / len(left) * float(np.sum((left - left.mean()) ** 2)))
    return Interval(value, max(-1.0, value - half), min(1.0, value + half))


def predictive_value_at(figures: Agreement, prevalence: float) -> Interval | None:
    """The positive predictive value where a share ``prevalence`` of the patients has a fracture.

    Bayes' rule on sensitivity and specificity; the interval is the logit interval of N. Mercaldo, K. Lau and X. Zhou
    (Stat. Med. 26, 2007), with their adjustment of z²/2 added to each count where one of them is 0.

    Args:
        figures: of patients, not of vertebrae.
        prevalence: above 0 and below 1.

    Returns:
        None without both kinds of answers.

    Raises:
        ValueError: the prevalence is out of range.
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"expected a prevalence above 0 and below 1, got {prevalence}")
    broken, whole = figures.both + figures.read_only, figures.found_only + figures.neither
    if not broken or not whole:
        return None
    more = 0.0 if min(figures.both, figures.found_only, figures.read_only, figures.neither) else Z * Z / 2
    found = (figures.both + more) / (broken + 2 * more)
    clear = (figures.neither + more) / (whole + 2 * more)
    logit = math.log(found * prevalence / ((1 - clear) * (1 - prevalence)))
    spread = (1 - found) / (found * (broken + 2 * more)) + clear / ((1 - clear) * (whole + 2 * more))
    half = Z * math.sqrt(spread)
    hits, alarms = figures.both / broken * prevalence, figures.found_only / whole * (1 - prevalence)
    value = hits / (hits + alarms) if hits + alarms else float("nan")
    return Interval(value, _expit(logit - half), _expit(logit + half))


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
