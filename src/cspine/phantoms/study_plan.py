"""Which vertebrae of a patient are fractured, and how, together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import UsageError
from cspine.phantoms.fracture_draft import Side
from cspine.phantoms.fracture_types import FractureType, draw_severity, frequencies
from cspine.phantoms.fractures import Fracture, plan_fracture

# Fractured studies per level, C1..C7, of the 2019 in RSNA 2022's train.csv; 961 have any, 338 more than one level.
RSNA_2022_STUDIES = 2019
RSNA_2022_PREVALENCE = tuple(n / RSNA_2022_STUDIES for n in (146, 285, 73, 108, 162, 277, 393))
RSNA_2022_ANY = 961 / RSNA_2022_STUDIES
# Chance that a patient carries an old fracture somewhere, and of an acute one in T1 beside neck fractures.
CHRONIC_RATE = 0.08
_THORACIC_RATE = 0.06
# A fractured vertebra often has a second fracture, rarely a third (facet and lamina, pillar and transverse process).
_SECOND = 0.32
# With a neighbour fractured the same way possible, this often it is the same (multiple transverse processes …).
_SAME_AS_NEIGHBOUR = 0.55
_RUNS = frozenset(
    {
        FractureType.TRANSVERSE_PROCESS,
        FractureType.LAMINA,
        FractureType.SPINOUS_PROCESS,
        FractureType.FACET,
        FractureType.PILLAR,
        FractureType.WEDGE,
    }
)
_OLD_TYPES = (
    FractureType.WEDGE,
    FractureType.SPINOUS_PROCESS,
    FractureType.TRANSVERSE_PROCESS,
    FractureType.DENS_II,
    FractureType.LAMINA,
    FractureType.JEFFERSON,
    FractureType.TEARDROP,
)
# What comes with what in one vertebra.
_COMPANIONS: Mapping[FractureType, tuple[FractureType, ...]] = {
    FractureType.BURST: (FractureType.LAMINA, FractureType.SPINOUS_PROCESS),
    FractureType.TEARDROP: (FractureType.LAMINA, FractureType.SPINOUS_PROCESS, FractureType.FACET),
    FractureType.WEDGE: (FractureType.SPINOUS_PROCESS, FractureType.TRANSVERSE_PROCESS),
    FractureType.FACET: (FractureType.LAMINA, FractureType.TRANSVERSE_PROCESS, FractureType.PILLAR),
    FractureType.PILLAR: (FractureType.LAMINA, FractureType.TRANSVERSE_PROCESS),
    FractureType.LAMINA: (FractureType.SPINOUS_PROCESS, FractureType.FACET, FractureType.TRANSVERSE_PROCESS),
    FractureType.TRANSVERSE_PROCESS: (FractureType.TRANSVERSE_PROCESS, FractureType.PILLAR),
    FractureType.SPINOUS_PROCESS: (FractureType.LAMINA,),
    FractureType.JEFFERSON: (FractureType.PILLAR, FractureType.TRANSVERSE_PROCESS),
    FractureType.DENS_III: (FractureType.PILLAR, FractureType.TRANSVERSE_PROCESS),
    FractureType.HANGMAN: (FractureType.TEARDROP, FractureType.TRANSVERSE_PROCESS),
}


def plan_study(
    rng: np.random.Generator,
    landmarks: Mapping[int, Mapping[str, Any]],
    *,
    prevalence: Sequence[float] = RSNA_2022_PREVALENCE,
    multiplier: float = 1.0,
    chronic_rate: float = CHRONIC_RATE,
) -> tuple[Fracture, ...]:
    """All fractures of one patient.

    Levels are drawn together: neighbours, and C1 with C2, fracture in the same patient more often than chance
    would have it, so that 35 % of fractured patients have more than one level.

    Args:
        rng: source of all chance.
        landmarks: of each vertebra (``Spine.landmarks``); levels that are absent stay whole.
        prevalence: chance of an acute fracture at C1..C7.
        multiplier: factor on the odds that the patient has any acute fracture (0: none ever; 1: as given).
        chronic_rate: chance of one old fracture in the patient, of a vertebra without an acute one.

    Raises:
        UsageError: prevalence is not seven chances, or multiplier is negative.
    """
    rates = tuple(float(p) for p in prevalence)
    if len(rates) != 7 or not all(0 <= p < 1 for p in rates):
        raise UsageError("prevalence must be seven chances from 0 to below 1, C1 to C7")
    if multiplier < 0:
        raise UsageError(f"multiplier must not be negative, got {multiplier}")
    fractured = [level for level in draw_levels(rng, rates, multiplier) if level in landmarks]
    fractures: list[Fracture] = []
    for level in fractured:
        fractures.extend(plan_vertebra(rng, level, landmarks[level], fractures))
    if 7 in fractured and 8 in landmarks and rng.uniform() < _THORACIC_RATE:
        fractures.append(plan_fracture(rng, 8, landmarks[8]))
    if rng.uniform() < chronic_rate:
        whole = [level for level in landmarks if level <= 8 and level not in {f.level for f in fractures}]
        fractures.extend(_plan_old(rng, whole, landmarks))
    return tuple(fractures)


def plan_vertebra(
    rng: np.random.Generator, level: int, landmarks: Mapping[str, Any], above: Sequence[Fracture]
) -> list[Fracture]:
    """One or two acute fractures of one vertebra, alike to those of the level above where that is common.

    Args:
        rng: source of all chance.
        level: label value, 1..12.
        landmarks: its named points, local mm.
        above: fractures of the patient planned so far.
    """
    weights = dict(frequencies(level))
    neighbour = next((f for f in above if f.level == level - 1 and f.type in _RUNS and f.type in weights), None)
    if neighbour is not None and rng.uniform() < _SAME_AS_NEIGHBOUR:
        severity = float(np.clip(neighbour.severity + rng.normal(0, 0.15), 0, 1))
        side: Side | None = neighbour.side if rng.uniform() < 0.8 else None
        first = plan_fracture(rng, level, landmarks, type=neighbour.type, severity=severity, side=side)
    else:
        first = plan_fracture(rng, level, landmarks)
    planned = [first]
    others = [kind for kind in _COMPANIONS.get(first.type, ()) if kind in weights]
    if others and rng.uniform() < _SECOND:
        kind = others[int(rng.integers(len(others)))]
        severity = float(np.clip(first.severity * rng.uniform(0.3, 1.1), 0, 1))
        opposite: Side = "right" if first.side == "left" else "left"
        planned.append(plan_fracture(rng, level, landmarks, type=kind, severity=severity, side=opposite))
    return planned


def _plan_old(
    rng: np.random.Generator, levels: Sequence[int], landmarks: Mapping[int, Mapping[str, Any]]
) -> list[Fracture]:
    """One old fracture at one of ``levels``, lower ones more often; none when there is no level."""
    if not levels:
        return []
    chances = np.array([1.0 + 0.3 * level for level in levels])
    level = int(rng.choice(levels, p=chances / chances.sum()))
    kinds = [kind for kind in _OLD_TYPES if kind in frequencies(level)]
    kind = kinds[int(rng.integers(len(kinds)))]
    severity = max(draw_severity(rng), 0.2)
    return [plan_fracture(rng, level, landmarks[level], type=kind, severity=severity, chronic=True)]


def draw_levels(rng: np.random.Generator, prevalence: tuple[float, ...], multiplier: float = 1.0) -> tuple[int, ...]:
    """Which of C1..C7 have an acute fracture, ascending label values; possibly none.

    Args:
        rng: source of chance.
        prevalence: chance of each level, seven values.
        multiplier: factor on the odds of any fracture; which levels go together does not change.
    """
    chances = _pattern_chances(prevalence).copy()
    chances[1:] *= multiplier
    pattern = int(rng.choice(len(chances), p=chances / chances.sum()))
    return tuple(level for level in range(1, 8) if pattern >> (level - 1) & 1)


# Log odds that two levels gain from being fractured in the same patient: neighbours from C1-C2 down, then by distance
# 2 to 6. Chosen so that with RSNA 2022's prevalence 47.6 % of patients have any fracture, 35 % of them at more than
# one level, and the pairs are about as frequent as there.
_NEIGHBOURS = (1.35, 1.1, 2.2, 2.0, 1.8, 1.45)
_FARTHER = (0.35, -0.1, -0.3, -0.4, -0.35)


@lru_cache(maxsize=32)
def _pattern_chances(prevalence: tuple[float, ...]) -> NDArray[np.float64]:
    """Chance of each of the 128 sets of levels (bit k: level k + 1) under a pairwise model with these marginals.

    The model is exp(sum a_i x_i + sum b_ij x_i x_j) (Ising); b is fixed, a is fitted.
    """
    patterns = (np.arange(128)[:, None] >> np.arange(7)) & 1
    distance = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    attraction = np.array((0.0, 0.0, *_FARTHER))[distance]
    attraction += np.diag(_NEIGHBOURS, 1) + np.diag(_NEIGHBOURS, -1)
    energy = 0.5 * np.einsum("ni,ij,nj->n", patterns, attraction, patterns)
    wanted = np.clip(np.asarray(prevalence), 1e-9, 1 - 1e-9)
    fields = np.log(wanted / (1 - wanted))
    chances = np.ones(128) / 128
    for _ in range(500):
        weights = np.exp(patterns @ fields + energy)
        chances = weights / weights.sum()
        have = chances @ patterns
        step = np.log(wanted / (1 - wanted)) - np.log(have / (1 - have))
        fields = fields + 0.7 * step
        if np.abs(step).max() < 1e-10:
            break
    return np.asarray(chances)
