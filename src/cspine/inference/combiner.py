"""From a logit a vertebra to calibrated probabilities of each level and of the patient.

Everything that was fitted is a plain number in bundle.json. Only levels that were judged count: a level outside the
scan neither raises nor lowers the patient's probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cspine.anatomy import LEVELS, Level
from cspine.findings import LevelName
from cspine.inference.certainty import LevelConfidence

Probability = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# Logits are cut here, so that no probability is exactly 0 or 1.
LOGIT_LIMIT = 12.0
TOP = 3
FEATURES = TOP + 2


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Platt(_Model):
    """``p = sigmoid(slope * logit + offset)`` (Platt, 1999); temperature scaling is the case ``offset = 0``."""

    kind: Literal["platt"] = "platt"
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    offset: Finite = 0.0

    def __call__(self, logit: float) -> float:
        """Probability of a logit."""
        return sigmoid(self.slope * logit + self.offset)


class Isotonic(_Model):
    """A non-decreasing curve through ``(logits, probabilities)``, linear between and constant beyond its points."""

    kind: Literal["isotonic"] = "isotonic"
    logits: tuple[Finite, ...] = Field(min_length=1)
    probabilities: tuple[Probability, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> Isotonic:
        if len(self.logits) != len(self.probabilities):
            raise ValueError("logits and probabilities need the same length")
        if any(b <= a for a, b in zip(self.logits, self.logits[1:], strict=False)):
            raise ValueError("logits must grow")
        if any(b < a for a, b in zip(self.probabilities, self.probabilities[1:], strict=False)):
            raise ValueError("probabilities must not fall")
        return self

    def __call__(self, logit: float) -> float:
        """Probability of a logit."""
        return float(np.interp(logit, self.logits, self.probabilities))


LevelCalibration = Annotated[Platt | Isotonic, Field(discriminator="kind")]


class PatientHead(_Model):
    """A logistic head over ``patient_features``, blended with noisy-or.

    ``p = blend * (1 - prod(1 - p_level)) + (1 - blend) * sigmoid(weights . features + bias)``. The default is pure
    noisy-or, which takes the levels as independent.
    """

    blend: Probability = 1.0
    weights: tuple[Finite, ...] = Field(default=(0.0,) * FEATURES, min_length=FEATURES, max_length=FEATURES)
    bias: Finite = 0.0
    absent: Finite = Field(default=-5.0, description="stands for a missing logit when fewer levels were judged")


class Calibration(_Model):
    """All that turns logits into probabilities; the ``calibration`` table of bundle.json."""

    level_temperature: Annotated[float, Field(gt=0, le=100)] = Field(
        default=3.0, description="divides scores of the level chain before its posterior; neighbours err together"
    )
    level_confidence: LevelConfidence = Field(
        default=LevelConfidence(), description="from the posterior of a level's name to its confidence"
    )
    levels: dict[LevelName, LevelCalibration] = Field(default_factory=dict, description="missing: sigmoid of the logit")
    patient: PatientHead = PatientHead()


class Thresholds(_Model):
    """Probability from which on a fracture is stated; the ``thresholds`` table of bundle.json."""

    levels: dict[LevelName, Probability] = Field(default_factory=dict)
    default: Probability = 0.5
    patient: Probability = 0.5

    def of(self, level: Level) -> float:
        """Threshold of a level."""
        return self.levels.get(level.name, self.default)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, slots=True)
class Combined:
    """Calibrated probabilities.

    Attributes:
        levels: probability of each judged level.
        patient: probability that any of them is fractured; None when none was judged.
    """

    levels: dict[Level, float]
    patient: float | None


def sigmoid(logit: float) -> float:
    """Logistic function of a logit cut to +-12."""
    return 1.0 / (1.0 + math.exp(-min(max(logit, -LOGIT_LIMIT), LOGIT_LIMIT)))


def logit(probability: float) -> float:
    """Inverse of ``sigmoid``, cut to +-12."""
    bounded = min(max(probability, 1e-9), 1 - 1e-9)
    return min(max(math.log(bounded / (1 - bounded)), -LOGIT_LIMIT), LOGIT_LIMIT)


def noisy_or(probabilities: list[float]) -> float:
    """``1 - prod(1 - p)``."""
    return 1.0 - math.prod(1.0 - p for p in probabilities)


def patient_features(probabilities: Mapping[Level, float], absent: float = -5.0) -> tuple[float, ...]:
    """What the patient head sees, from calibrated probabilities of the judged levels.

    Returns:
        The three highest logits in falling order (``absent`` where fewer were judged), the logit of their noisy-or,
        and the share of the seven levels that were judged. What a level is called does not matter, so a label that
        is off by one does not change the patient's probability.
    """
    logits = sorted((logit(p) for p in probabilities.values()), reverse=True)[:TOP]
    logits += [absent] * (TOP - len(logits))
    return (*logits, logit(noisy_or(list(probabilities.values()))), len(probabilities) / len(LEVELS))


def combine(logits: Mapping[Level, float], calibration: Calibration) -> Combined:
    """Calibrated probabilities of the judged levels and of the patient.

    Args:
        logits: raw vertebra logits of the levels that were judged.
        calibration: of the bundle.
    """
    levels = {}
    for level, value in logits.items():
        curve = calibration.levels.get(level.name)  # type: ignore[call-overload]
        levels[level] = sigmoid(value) if curve is None else curve(value)
    if not levels:
        return Combined({}, None)
    return Combined(levels, patient_probability(levels, calibration.patient))


def patient_probability(levels: Mapping[Level, float], head: PatientHead) -> float:
    """Probability of any fracture; see ``PatientHead``."""
    features = patient_features(levels, head.absent)
    learned = sigmoid(sum(w * f for w, f in zip(head.weights, features, strict=True)) + head.bias)
    return head.blend * noisy_or(list(levels.values())) + (1.0 - head.blend) * learned
