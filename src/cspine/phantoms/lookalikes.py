"""Unbroken vertebrae that a reader may call broken, on purpose: more confounders than chance gives, old fractures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cspine.phantoms.confounders import Confounder, plan_confounder, possible_confounders
from cspine.phantoms.fracture_types import draw_severity
from cspine.phantoms.fractures import Fracture, plan_fracture

# Least severity of an old fracture: a slight one that has healed is not seen.
_OLD_SEVERITY = 0.2


def any_confounder(rng: np.random.Generator, level: int, landmarks: Mapping[str, Any]) -> Confounder:
    """A confounder of any kind that the level can have, each kind alike.

    Args:
        rng: source of all chance.
        level: label value, 1..12.
        landmarks: the vertebra's named points, local mm.
    """
    kinds = possible_confounders(level)
    return plan_confounder(rng, level, landmarks, kinds[int(rng.integers(len(kinds)))])


def old_fracture(rng: np.random.Generator, level: int, landmarks: Mapping[str, Any]) -> Fracture:
    """A healed fracture that is still to be seen.

    Args:
        rng: source of all chance.
        level: label value, 1..12.
        landmarks: the vertebra's named points, local mm.
    """
    severity = max(draw_severity(rng), _OLD_SEVERITY)
    return plan_fracture(rng, level, landmarks, severity=severity, chronic=True)
