"""The named fractures: which level can have which, how often, and what severity means in millimetres."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import numpy as np


class FractureType(StrEnum):
    """A cervical fracture by name. The order is the order of class outputs everywhere."""

    JEFFERSON = "jefferson"
    DENS_I = "dens-i"
    DENS_II = "dens-ii"
    DENS_III = "dens-iii"
    HANGMAN = "hangman"
    TEARDROP = "teardrop"
    BURST = "burst"
    WEDGE = "wedge"
    FACET = "facet"
    PILLAR = "pillar"
    LAMINA = "lamina"
    TRANSVERSE_PROCESS = "transverse-process"
    SPINOUS_PROCESS = "spinous-process"


_T = FractureType

# Relative frequencies by level, our estimates guided by Goldberg et al., Ann Emerg Med 2001: C1 half ring fractures,
# C2 over half dens (type II before III) and a sixth hangman; below, process fractures grow towards C7. How often each
# level is fractured at all is in `study_plan`.
_C1 = {_T.JEFFERSON: 0.5, _T.LAMINA: 0.2, _T.PILLAR: 0.13, _T.TRANSVERSE_PROCESS: 0.17}
_C2 = {
    _T.DENS_I: 0.03,
    _T.DENS_II: 0.36,
    _T.DENS_III: 0.2,
    _T.HANGMAN: 0.16,
    _T.TEARDROP: 0.07,
    _T.PILLAR: 0.05,
    _T.LAMINA: 0.05,
    _T.TRANSVERSE_PROCESS: 0.05,
    _T.SPINOUS_PROCESS: 0.03,
}
_SUBAXIAL = (_T.TEARDROP, _T.BURST, _T.WEDGE, _T.FACET, _T.PILLAR, _T.LAMINA, _T.TRANSVERSE_PROCESS, _T.SPINOUS_PROCESS)
_C3 = (0.13, 0.05, 0.10, 0.14, 0.12, 0.20, 0.14, 0.12)
_C4 = (0.13, 0.08, 0.10, 0.16, 0.13, 0.18, 0.13, 0.09)
_C5 = (0.14, 0.11, 0.11, 0.16, 0.12, 0.16, 0.12, 0.08)
_C6 = (0.09, 0.08, 0.09, 0.19, 0.13, 0.15, 0.14, 0.13)
_C7 = (0.03, 0.06, 0.08, 0.13, 0.06, 0.11, 0.28, 0.25)
_THORACIC = (0.02, 0.10, 0.45, 0.03, 0.02, 0.06, 0.15, 0.17)


def _by_type(weights: tuple[float, ...]) -> Mapping[FractureType, float]:
    return MappingProxyType(dict(zip(_SUBAXIAL, weights, strict=True)))


_FREQUENCY: Mapping[int, Mapping[FractureType, float]] = MappingProxyType(
    {
        1: MappingProxyType(_C1),
        2: MappingProxyType(_C2),
        3: _by_type(_C3),
        4: _by_type(_C4),
        5: _by_type(_C5),
        6: _by_type(_C6),
        7: _by_type(_C7),
    }
)


def frequencies(level: int) -> Mapping[FractureType, float]:
    """The types a vertebra can have, with weights that add up to about 1.

    Args:
        level: label value, 1 (C1) to 7 (C7); 8 and above are thoracic.
    """
    return _FREQUENCY.get(level, _by_type(_THORACIC))


def draw_type(rng: np.random.Generator, level: int) -> FractureType:
    """A random type of the level, at its frequency."""
    weights = frequencies(level)
    chances = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(chances), p=chances / chances.sum()))]


def draw_severity(rng: np.random.Generator) -> float:
    """0 (hairline) to 1 (displaced); most are slight, a fifth above 0.6."""
    return float(rng.beta(1.1, 1.9))


def gap_mm(rng: np.random.Generator, severity: float, most: float = 4.0) -> float:
    """Width of the cleft: 0.3 to 0.6 mm at severity 0, 1 mm to ``most`` at 1."""
    hairline = rng.uniform(0.35, 0.6)
    wide = rng.uniform(min(1.0, most), most)
    return float(hairline + severity**1.4 * max(wide - hairline, 0.0))


def displacement(rng: np.random.Generator, severity: float, most: float) -> float:
    """A shift in mm (or an angle in degrees): 0 up to severity 0.15, then growing towards ``most``."""
    return float(most * (max(severity - 0.15, 0.0) / 0.85) ** 1.3 * rng.uniform(0.5, 1.0))
