"""Fit what turns logits into probabilities, on scored phantoms: maps a level, patient head, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import Level
from cspine.errors import UsageError
from cspine.evaluation.calibration import best_threshold, fit_levels, fit_patient_head, prevalence_weights
from cspine.evaluation.metrics import area_under_curve, sensitivity_at_specificity
from cspine.evaluation.records import CaseRecord
from cspine.findings import LevelName
from cspine.inference.combiner import Calibration, Thresholds, combine, noisy_or, patient_features

# Fracture a vertebra among patients scanned for it, to which probabilities refer; RSNA 2022 was enriched to 0.10.
PREVALENCE = 0.05
# A vertebra is called when the specificity reached on the calibration set is at least this.
SPECIFICITY = 0.90
MIN_OF_EACH = 8
_NAMES: tuple[LevelName, ...] = ("C1", "C2", "C3", "C4", "C5", "C6", "C7")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What goes into a bundle, and a sentence on how it came about."""

    calibration: Calibration
    thresholds: Thresholds
    note: str


@dataclass(frozen=True, slots=True)
class _Rows:
    """Judged vertebrae in view: logit, truth, level index, case index."""

    logit: NDArray[np.float64]
    truth: NDArray[np.bool_]
    level: NDArray[np.int64]
    case: NDArray[np.int64]


def fit_calibration(records: Sequence[CaseRecord], *, prevalence: float = PREVALENCE) -> Fitted:
    """Platt's map a level, shrunk to that of all levels; a patient head; thresholds.

    Args:
        records: scored cases that serve nothing else; raw logits in them.
        prevalence: of fracture a vertebra that probabilities refer to; cases are reweighted to it.

    Raises:
        UsageError: fewer than eight judged vertebrae with, or without, a fracture.
    """
    rows = _rows(records)
    positives = int(rows.truth.sum())
    if min(positives, len(rows.truth) - positives) < MIN_OF_EACH:
        raise UsageError(
            f"calibration needs {MIN_OF_EACH} judged vertebrae with and without fracture, "
            f"got {positives} and {len(rows.truth) - positives}",
            fix="Score more phantoms",
        )
    weight = prevalence_weights(rows.truth, prevalence)
    curves = fit_levels(rows.logit, rows.truth, rows.level, weight=weight)
    levels = Calibration(levels=dict(zip(_NAMES, curves, strict=True)))
    head_calibration = _with_patient_head(levels, records)
    thresholds = _thresholds(head_calibration, records, rows)
    area = area_under_curve(rows.truth, rows.logit)
    note = (
        f"Fitted on {len(records)} phantoms with {len(rows.truth)} judged vertebrae, {positives} of them fractured "
        f"(AUC {area:.3f} there), used for nothing else. Probabilities refer to a prevalence of {prevalence:.0%} a "
        f"vertebra. A vertebra is called from {thresholds.default:.3f} on (specificity {SPECIFICITY:.0%} there), "
        f"a patient from {thresholds.patient:.3f} on."
    )
    return Fitted(head_calibration, thresholds, note)


def _rows(records: Sequence[CaseRecord]) -> _Rows:
    found = [
        (row.logit, row.fractured, Level[row.level].index, number)
        for number, record in enumerate(records)
        for row in record.levels
        if row.in_view and row.logit is not None
    ]
    columns = list(zip(*found, strict=True)) if found else [(), (), (), ()]
    return _Rows(
        np.asarray(columns[0], dtype=np.float64),
        np.asarray(columns[1], dtype=bool),
        np.asarray(columns[2], dtype=np.int64),
        np.asarray(columns[3], dtype=np.int64),
    )


def _judged(records: Sequence[CaseRecord]) -> list[tuple[Mapping[Level, float], bool]]:
    """Logits a level, and whether any judged vertebra is fractured, of each case with a judged level."""
    out: list[tuple[Mapping[Level, float], bool]] = []
    for record in records:
        logits = {Level[row.level]: row.logit for row in record.levels if row.logit is not None}
        if logits:
            out.append((logits, any(row.fractured for row in record.levels if row.logit is not None)))
    return out


def _with_patient_head(calibration: Calibration, records: Sequence[CaseRecord]) -> Calibration:
    cases = _judged(records)
    truth = [fractured for _, fractured in cases]
    if min(sum(truth), len(truth) - sum(truth)) < MIN_OF_EACH:
        return calibration
    probabilities = [combine(logits, calibration).levels for logits, _ in cases]
    features = [patient_features(item, calibration.patient.absent) for item in probabilities]
    plain = [noisy_or(list(item.values())) for item in probabilities]
    return calibration.model_copy(update={"patient": fit_patient_head(features, truth, plain)})


def _thresholds(calibration: Calibration, records: Sequence[CaseRecord], rows: _Rows) -> Thresholds:
    """One for all levels, since their probabilities are calibrated; the patient's by Youden's index."""
    curves = [calibration.levels[name] for name in _NAMES]
    probability = np.asarray([curves[k](float(x)) for k, x in zip(rows.level, rows.logit, strict=True)])
    _, level = sensitivity_at_specificity(rows.truth, probability, SPECIFICITY)
    if not np.isfinite(level):
        level = best_threshold(rows.truth, probability)
    cases = _judged(records)
    patients = [combine(logits, calibration).patient or 0.0 for logits, _ in cases]
    patient = best_threshold([fractured for _, fractured in cases], patients)
    # Findings hold four digits; the threshold must not lie between a value and what is shown of it.
    return Thresholds(default=round(float(np.clip(level, 0.01, 0.99)), 4), patient=round(float(patient), 4))
