"""From scored cases of a test set to all figures of the classifier, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.evaluation.calibration import prevalence_weights, sigmoid
from cspine.evaluation.evidence_hits import HIT_MM
from cspine.evaluation.fracture_metrics import (
    DISPLACEMENT_CLASSES,
    PREVALENCE,
    SPECIFICITY,
    area_of,
    brier_score,
    calibration_error,
    displacement_class,
    equal_mass_bins,
    negative_predictive_value,
    predictive_value_of,
)
from cspine.evaluation.metrics import (
    Interval,
    area_under_curve,
    bootstrap_interval,
    proportion,
    sensitivity,
    sensitivity_at_specificity,
    specificity,
)
from cspine.evaluation.records import CaseRecord, LevelRecord, patient_numbers
from cspine.evaluation.summary import UNJUDGED, dumped

Bools = NDArray[np.bool_]
Float = NDArray[np.float64]
OLD_FRACTURE, NOTHING = "old-fracture", "none of these"


@dataclass(frozen=True, slots=True)
class Rows:
    """Vertebrae, or patients, of a set as columns.

    Attributes:
        truth: fractured.
        score: probability; ``summary.UNJUDGED`` when it was not judged.
        called: by the bundle's own threshold.
        patient: number of the case.
        threshold: score from which ``found`` holds.
    """

    truth: Bools
    score: Float
    called: Bools
    patient: NDArray[np.int64]
    threshold: float

    @property
    def both(self) -> bool:
        """There are positives and negatives."""
        return bool(self.truth.any() and not self.truth.all())

    @property
    def found(self) -> Bools:
        """Called at ``SPECIFICITY`` on this set."""
        return self.score >= self.threshold


def vertebrae_of(records: Sequence[CaseRecord]) -> tuple[list[LevelRecord], Rows]:
    """All vertebrae in view, as records and as columns in the same order."""
    pairs = [
        (k, row)
        for k, record in zip(patient_numbers(records), records, strict=True)
        for row in record.levels
        if row.in_view
    ]
    rows = [row for _, row in pairs]
    columns = _columns(
        [row.fractured for row in rows],
        [row.probability for row in rows],
        [row.called for row in rows],
        [k for k, _ in pairs],
    )
    return rows, columns


def patients_of(records: Sequence[CaseRecord]) -> Rows:
    """All patients with a vertebra in view; fractured means one in view."""
    kept = [
        (k, record)
        for k, record in zip(patient_numbers(records), records, strict=True)
        if any(row.in_view for row in record.levels)
    ]
    return _columns(
        [any(row.in_view and row.fractured for row in record.levels) for _, record in kept],
        [record.probability for _, record in kept],
        [record.called for _, record in kept],
        [k for k, _ in kept],
    )


def _columns(
    truth: Sequence[bool], score: Sequence[float | None], called: Sequence[bool], patient: Sequence[int]
) -> Rows:
    y = np.asarray(truth, dtype=bool)
    values = np.asarray([UNJUDGED if value is None else value for value in score], dtype=np.float64)
    threshold = sensitivity_at_specificity(y, values, SPECIFICITY)[1] if y.any() and not y.all() else float("inf")
    return Rows(y, values, np.asarray(called, dtype=bool), np.asarray(patient, dtype=np.int64), threshold)


def summarise_fractures(records: Sequence[CaseRecord], kinds: Mapping[str, str]) -> dict[str, Any]:
    """All figures of a test set. Intervals are 95 %; bootstrapped ones resample patients, shares have Wilson's.

    Args:
        records: scored cases.
        kinds: what each case, by its name, is there for (``fracture_sets.StudyKind``).
    """
    rows, columns = vertebrae_of(records)
    patients = patients_of(records)
    return {
        "cases": len(records),
        "bundle": sorted({record.bundle for record in records}),
        "studies": {kind: sum(kinds[r.name] == kind for r in records) for kind in dict.fromkeys(kinds.values())},
        "vertebrae_in_view": len(rows),
        "fractured_vertebrae": int(columns.truth.sum()),
        "prevalence": PREVALENCE,
        "vertebra": _discrimination(columns) | {"judged": dumped(proportion(_judged(columns), len(rows)))},
        "patient": _discrimination(patients) | {"fractured": int(patients.truth.sum()), "count": len(patients.truth)},
        "displacement": _groups(rows, columns, _by_displacement(rows)),
        "types": _groups(rows, columns, _by_type(rows)),
        "types_by_displacement": _types_by_displacement(rows, columns),
        "evidence": _evidence(rows),
        "false_alarms": _false_alarms(records, kinds),
        "confounders": _confounders(rows, columns),
        "calibration": _calibration(rows),
        "patient_calibration": _patient_calibration(patients),
        "levels": {level.name: _level(rows, columns, level.name) for level in LEVELS},
        "masks": _masks(rows, columns),
        "seconds": round(float(np.median([record.seconds for record in records])), 2) if records else None,
    }


def _judged(columns: Rows) -> int:
    return int((columns.score > UNJUDGED).sum())


def _discrimination(rows: Rows) -> dict[str, Any]:
    """AUC, sensitivity at ``SPECIFICITY``, the bundle's own threshold, and predictive values at ``PREVALENCE``."""
    truth, score, called = rows.truth, rows.score, rows.called
    out: dict[str, Any] = {
        "sensitivity": dumped(sensitivity(truth, called)),
        "specificity": dumped(specificity(truth, called)),
    }
    if not rows.both:
        return out

    def clustered(statistic: Callable[[NDArray[np.intp]], float]) -> dict[str, float] | None:
        return dumped(bootstrap_interval(statistic, rows.patient))

    def at_specificity(index: NDArray[np.intp]) -> float:
        # A resample without negatives has no specificity.
        if truth[index].all() or not truth[index].any():
            raise ValueError("one kind only")
        return sensitivity_at_specificity(truth[index], score[index], SPECIFICITY)[0]

    share, kept = float(called[truth].mean()), float((~called[~truth]).mean())
    return out | {
        "auc": clustered(lambda index: area_under_curve(truth[index], score[index])),
        "sensitivity_at_specificity": clustered(at_specificity),
        "ppv": clustered(lambda index: predictive_value_of(truth[index], called[index])),
        "ppv_at_specificity": clustered(lambda index: predictive_value_of(truth[index], rows.found[index])),
        "npv": _rounded(negative_predictive_value(share, kept)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 4)


def _by_displacement(rows: Sequence[LevelRecord]) -> dict[str, Bools]:
    """Fractured vertebrae of each class, as masks over ``rows``."""
    names = [displacement_class(r.displacement_mm) if _displaced(r) else "" for r in rows]  # type: ignore[arg-type]
    return {name: np.array([found == name for found in names], dtype=bool) for name in DISPLACEMENT_CLASSES}


def _displaced(row: LevelRecord) -> bool:
    return row.fractured and row.displacement_mm is not None


def _by_type(rows: Sequence[LevelRecord]) -> dict[str, Bools]:
    names = sorted({kind for row in rows if row.fractured for kind in row.types})
    return {name: np.array([row.fractured and name in row.types for row in rows], dtype=bool) for name in names}


def _groups(rows: Sequence[LevelRecord], columns: Rows, groups: Mapping[str, Bools]) -> dict[str, Any]:
    """Each group of fractured vertebrae against all unbroken ones."""
    out = {}
    for name, chosen in groups.items():
        count = int(chosen.sum())
        out[name] = {
            "count": count,
            "auc": _rounded(area_of(columns.truth, columns.score, chosen)) if count else None,
            "sensitivity_at_specificity": dumped(proportion(int((columns.found & chosen).sum()), count)),
            "sensitivity": dumped(proportion(int((columns.called & chosen).sum()), count)),
            "evidence_hit": dumped(_hits([row for row, inside in zip(rows, chosen, strict=True) if inside])),
        }
    return out


def _types_by_displacement(rows: Sequence[LevelRecord], columns: Rows) -> dict[str, dict[str, list[int]]]:
    """``[found, all]`` at ``SPECIFICITY``, by type and displacement class: what the method cannot see."""
    classes = _by_displacement(rows)
    return {
        kind: {
            name: [int((of & inside & columns.found).sum()), int((of & inside).sum())] for name, of in classes.items()
        }
        for kind, inside in _by_type(rows).items()
    }


def _hits(rows: Sequence[LevelRecord]) -> Interval:
    distances = [row.evidence_mm for row in rows if row.evidence_mm is not None]
    return proportion(sum(value <= HIT_MM for value in distances), len(distances))


def _evidence(rows: Sequence[LevelRecord]) -> dict[str, Any]:
    """Of fractured vertebrae that were judged: how often the strongest cell lies at the fracture."""
    fractured = [row for row in rows if row.fractured and row.evidence_mm is not None]
    distances = [row.evidence_mm for row in fractured if row.evidence_mm is not None]
    return {
        "within_mm": HIT_MM,
        "count": len(fractured),
        "hit": dumped(_hits(fractured)),
        "hit_when_called": dumped(_hits([row for row in fractured if row.called])),
        "median_mm": _rounded(float(np.median(distances))) if distances else None,
    }


def _false_alarms(records: Sequence[CaseRecord], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Called vertebrae without a fracture, a study, by what the study is there for."""
    out = {}
    for kind in dict.fromkeys(kinds[record.name] for record in records):
        alarms = np.array(
            [
                sum(row.called and not row.fractured for row in record.levels if row.in_view)
                for record in records
                if kinds[record.name] == kind
            ]
        )
        mean = bootstrap_interval(lambda index, of=alarms: float(of[index].mean()), np.arange(len(alarms)))  # type: ignore[misc]
        with_any = proportion(int((alarms > 0).sum()), len(alarms))
        out[kind] = {"studies": len(alarms), "a_study": dumped(mean), "with_any": dumped(with_any)}
    return out


def _confounders(rows: Sequence[LevelRecord], columns: Rows) -> dict[str, Any]:
    """Specificity of unbroken vertebrae by what they carry; those with none of it come last."""
    carried = [(*row.confounders, *((OLD_FRACTURE,) if row.old_fracture else ())) for row in rows]
    names = sorted({name for names in carried for name in names})
    groups = {name: np.array([name in names for names in carried], dtype=bool) for name in names}
    groups[NOTHING] = np.array([not names for names in carried], dtype=bool)
    out = {}
    for name, inside in groups.items():
        chosen = inside & ~columns.truth
        count = int(chosen.sum())
        if count:
            out[name] = {
                "count": count,
                "specificity": dumped(proportion(int((chosen & ~columns.called).sum()), count)),
                "specificity_at_threshold": dumped(proportion(int((chosen & ~columns.found).sum()), count)),
            }
    return out


def _calibration(rows: Sequence[LevelRecord]) -> dict[str, Any]:
    """Raw and calibrated probabilities of the judged vertebrae, weighted to ``PREVALENCE``."""
    judged = [(row.logit, row.probability, row.fractured) for row in rows]
    kept = [(logit, p, y) for logit, p, y in judged if logit is not None and p is not None]
    truth = np.array([y for _, _, y in kept], dtype=bool)
    if not truth.any() or truth.all():
        return {}
    weight = prevalence_weights(truth, PREVALENCE)
    raw = sigmoid([logit for logit, _, _ in kept])
    calibrated = np.array([p for _, p, _ in kept], dtype=np.float64)
    out: dict[str, Any] = {"constant_brier": _rounded(brier_score(truth, np.full(len(truth), PREVALENCE), weight))}
    for name, probability in (("raw", raw), ("calibrated", calibrated)):
        out[name] = {
            "ece": _rounded(calibration_error(truth, probability, weight)),
            "brier": _rounded(brier_score(truth, probability, weight)),
            "bins": [
                {key: round(value, 5) for key, value in asdict(row).items()}
                for row in equal_mass_bins(truth, probability, weight)
            ],
        }
    return out


def _patient_calibration(patients: Rows) -> dict[str, Any]:
    """Of the patient's probability, weighted to ``PREVALENCE`` of patients."""
    judged = patients.score > UNJUDGED
    truth, probability = patients.truth[judged], patients.score[judged]
    if not truth.any() or truth.all():
        return {}
    weight = prevalence_weights(truth, PREVALENCE)
    return {
        "ece": _rounded(calibration_error(truth, probability, weight)),
        "brier": _rounded(brier_score(truth, probability, weight)),
    }


def _level(rows: Sequence[LevelRecord], columns: Rows, name: str) -> dict[str, Any]:
    inside = np.array([row.level == name for row in rows], dtype=bool)
    mine = [row for row in rows if row.level == name]
    truth, score = columns.truth[inside], columns.score[inside]
    overlaps = [row.dice for row in mine if row.dice is not None]
    surfaces = [row.surface_mm for row in mine if row.surface_mm is not None]
    return {
        "in_view": len(mine),
        "fractured": int(truth.sum()),
        "auc": _rounded(area_under_curve(truth, score)) if truth.any() and not truth.all() else None,
        "right_level": dumped(proportion(sum(row.right_level for row in mine), len(mine))),
        "dice": _rounded(float(np.mean(overlaps))) if overlaps else None,
        "surface_mm": _rounded(float(np.mean(surfaces))) if surfaces else None,
    }


def _masks(rows: Sequence[LevelRecord], columns: Rows) -> dict[str, Any]:
    """Mean Dice and surface distance of the masks, whose intervals resample patients."""
    out: dict[str, Any] = {"right_level": dumped(proportion(sum(row.right_level for row in rows), len(rows)))}
    for name, found in (("dice", [row.dice for row in rows]), ("surface_mm", [row.surface_mm for row in rows])):
        kept = [(k, value) for k, value in zip(columns.patient, found, strict=True) if value is not None]
        values = np.array([value for _, value in kept])
        groups = [k for k, _ in kept]
        mean = bootstrap_interval(lambda i, of=values: float(of[i].mean()), groups) if kept else None  # type: ignore[misc]
        out[name] = dumped(mean)
    return out
