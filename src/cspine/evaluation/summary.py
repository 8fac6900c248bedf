"""From scored cases to one table of figures with their confidence intervals, as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.evaluation.calibration import expected_calibration_error, reliability
from cspine.evaluation.metrics import (
    Interval,
    area_under_curve,
    bootstrap_interval,
    competition_score,
    delong_interval,
    proportion,
    sensitivity,
    sensitivity_at_specificity,
    specificity,
)
from cspine.evaluation.records import ABSENT, CaseRecord, LevelRecord, patient_numbers

# A vertebra in view that was not judged scores below every judged one: silence is not a good answer.
UNJUDGED = -1.0
Row = tuple[int, LevelRecord]


def summarise(records: Sequence[CaseRecord]) -> dict[str, Any]:
    """All figures, ready for JSON. Intervals are 95 %; those of AUC and Dice resample patients."""
    rows: list[Row] = [
        (k, row)
        for k, record in zip(patient_numbers(records), records, strict=True)
        for row in record.levels
        if row.in_view
    ]
    out: dict[str, Any] = {
        "cases": len(records),
        "vertebrae_in_view": len(rows),
        "fractured_vertebrae": sum(row.fractured for _, row in rows),
        "bundle": sorted({record.bundle for record in records}),
        "locating": _locating(records, rows),
        "vertebra": _vertebrae(rows),
        "patient": _patients(records),
        "competition_score": _competition(records),
        "levels": {level.name: _level([row for row in rows if row[1].level == level.name]) for level in LEVELS},
        "types": _types(rows),
        "severity": _severity(rows),
        "seconds": round(float(np.median([record.seconds for record in records])), 2) if records else None,
    }
    return out


def _locating(records: Sequence[CaseRecord], rows: list[Row]) -> dict[str, Any]:
    overlaps = [(k, row.dice) for k, row in rows if row.dice is not None]
    values = np.asarray([value for _, value in overlaps])
    distances = [row.distance_mm for _, row in rows if row.distance_mm is not None and row.right_level]
    all_levels = [row for record in records for row in record.levels]
    absent = [row for row in all_levels if row.visible_fraction is not None and row.visible_fraction < ABSENT]
    spine = [record.spine_dice for record in records if record.spine_dice is not None]
    mean = bootstrap_interval(lambda index: float(values[index].mean()), [k for k, _ in overlaps]) if overlaps else None
    return {
        "vertebra_dice": dumped(mean),
        "cervical_spine_dice": round(float(np.mean(spine)), 4) if spine else None,
        "right_level": dumped(proportion(sum(row.right_level for _, row in rows), len(rows))),
        "claimed_in_view": dumped(proportion(sum(row.claimed for _, row in rows), len(rows))),
        "absent_but_claimed": dumped(proportion(sum(row.claimed for row in absent), len(absent))),
        "centre_error_mm": round(float(np.median(distances)), 2) if distances else None,
    }


def _scores(rows: list[Row]) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    truth = np.asarray([row.fractured for _, row in rows], dtype=bool)
    score = np.asarray([UNJUDGED if row.probability is None else row.probability for _, row in rows], dtype=np.float64)
    return truth, score, np.asarray([k for k, _ in rows], dtype=np.int64)


def _vertebrae(rows: list[Row]) -> dict[str, Any]:
    truth, score, group = _scores(rows)
    called = np.asarray([row.called for _, row in rows], dtype=bool)
    judged = score >= 0
    out: dict[str, Any] = {
        "judged": dumped(proportion(int(judged.sum()), len(rows))),
        "sensitivity": dumped(sensitivity(truth, called)),
        "specificity": dumped(specificity(truth, called)),
    }
    if 0 < truth.sum() < len(truth):
        out["auc"] = dumped(bootstrap_interval(lambda index: area_under_curve(truth[index], score[index]), group))
        out["auc_delong"] = dumped(delong_interval(truth, score))
        for wanted in (0.9, 0.95):
            best, _ = sensitivity_at_specificity(truth, score, wanted)
            out[f"sensitivity_at_specificity_{wanted:g}"] = round(best, 4)
    if judged.any():
        out["calibration_error"] = round(expected_calibration_error(truth[judged], score[judged]), 4)
        out["reliability"] = [
            {key: round(value, 4) for key, value in asdict(row).items()}
            for row in reliability(truth[judged], score[judged])
        ]
    return out


def _patients(records: Sequence[CaseRecord]) -> dict[str, Any]:
    kept = [record for record in records if any(row.in_view for row in record.levels)]
    truth = np.asarray([record.fractured for record in kept], dtype=bool)
    score = np.asarray([UNJUDGED if r.probability is None else r.probability for r in kept], dtype=np.float64)
    called = np.asarray([record.called for record in kept], dtype=bool)
    out: dict[str, Any] = {
        "patients": len(kept),
        "fractured": int(truth.sum()),
        "sensitivity": dumped(sensitivity(truth, called)),
        "specificity": dumped(specificity(truth, called)),
    }
    if 0 < truth.sum() < len(truth):
        out["auc"] = dumped(delong_interval(truth, score))
    return out


def _competition(records: Sequence[CaseRecord]) -> float | None:
    """RSNA 2022's score over cases with all seven levels judged."""
    truth, found = [], []
    for record in records:
        row = [p for p in (*(x.probability for x in record.levels), record.probability) if p is not None]
        if len(row) == len(LEVELS) + 1:
            found.append(row)
            truth.append([*(x.fractured for x in record.levels), record.fractured])
    return round(competition_score(truth, found), 4) if found else None


def _level(rows: list[Row]) -> dict[str, Any]:
    truth, score, _ = _scores(rows)
    overlaps = [row.dice for _, row in rows if row.dice is not None]
    out: dict[str, Any] = {
        "in_view": len(rows),
        "fractured": int(truth.sum()),
        "dice": round(float(np.mean(overlaps)), 4) if overlaps else None,
        "right_level": round(float(np.mean([row.right_level for _, row in rows])), 4) if rows else None,
        "auc": round(area_under_curve(truth, score), 4) if 0 < truth.sum() < len(truth) else None,
    }
    return out


def _types(rows: list[Row]) -> dict[str, Any]:
    """Share of each fracture type that was called, and named rightly when it was."""
    out: dict[str, Any] = {}
    for name in sorted({kind for _, row in rows for kind in row.types}):
        having = [row for _, row in rows if name in row.types]
        called = [row for row in having if row.called]
        named = [row for row in called if row.type == name]
        out[name] = {"count": len(having), "called": len(called), "named": len(named)}
    return out


def _severity(rows: list[Row]) -> dict[str, Any]:
    """Share called by severity: hairline, moderate, displaced."""
    bounds = {"hairline": (0.0, 0.25), "moderate": (0.25, 0.6), "displaced": (0.6, 1.01)}
    out = {}
    for name, (low, high) in bounds.items():
        having = [row for _, row in rows if row.fractured and low <= row.severity < high]
        out[name] = {"count": len(having), "called": sum(row.called for row in having)}
    return out


def dumped(value: Interval | None) -> dict[str, float] | None:
    """An interval for JSON, four digits; None when it is none or not a number."""
    # A share of nothing is not a number, and JSON has no word for that.
    if value is None or not np.isfinite(value.value):
        return None
    return {"value": round(value.value, 4), "low": round(value.low, 4), "high": round(value.high, 4)}


def shown(value: dict[str, float] | float | None) -> str:
    """A figure for a table: three digits, an interval in brackets, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    return f"{value:.3f}"


def to_markdown(summary: dict[str, Any], title: str = "Evaluation") -> str:
    """The figures as Markdown tables."""
    locating, vertebra, patient = summary["locating"], summary["vertebra"], summary["patient"]
    main = [
        ("Vertebra Dice, mean", locating["vertebra_dice"]),
        ("Cervical spine Dice (all seven as one)", locating["cervical_spine_dice"]),
        ("Right level", locating["right_level"]),
        ("Absent vertebra claimed in view", locating["absent_but_claimed"]),
        ("Centre error, median mm", locating["centre_error_mm"]),
        ("Fracture AUC a vertebra", vertebra.get("auc")),
        ("Sensitivity a vertebra", vertebra["sensitivity"]),
        ("Specificity a vertebra", vertebra["specificity"]),
        ("Sensitivity at specificity 0.90", vertebra.get("sensitivity_at_specificity_0.9")),
        ("Calibration error (ECE)", vertebra.get("calibration_error")),
        ("Fracture AUC a patient", patient.get("auc")),
        ("Sensitivity a patient", patient["sensitivity"]),
        ("Specificity a patient", patient["specificity"]),
        ("RSNA 2022 weighted log-loss", summary["competition_score"]),
    ]
    counts = (
        f"{summary['cases']} cases, {summary['vertebrae_in_view']} vertebrae in view, "
        f"{summary['fractured_vertebrae']} of them fractured. Intervals are 95 %."
    )
    lines = [f"# {title}", "", counts, "", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {shown(value)} |" for name, value in main]
    lines += ["", "| level | in view | fractured | Dice | right level | AUC |", "|---|---|---|---|---|---|"]
    for name, row in summary["levels"].items():
        cells = [shown(row[key]) for key in ("dice", "right_level", "auc")]
        lines.append(f"| {name} | {row['in_view']} | {row['fractured']} | {' | '.join(cells)} |")
    lines += ["", "| fracture | count | called | type named |", "|---|---|---|---|"]
    for name, row in summary["types"].items():
        lines.append(f"| {name} | {row['count']} | {row['called']} | {row['named']} |")
    lines += [f"| {name} | {row['count']} | {row['called']} | |" for name, row in summary["severity"].items()]
    return "\n".join(lines) + "\n"
