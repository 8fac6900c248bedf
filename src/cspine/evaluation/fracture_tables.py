"""The figures of a test set as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cspine.evaluation.fracture_metrics import DISPLACEMENT_CLASSES, SPECIFICITY
from cspine.evaluation.summary import shown

# What is aimed at: AUC a vertebra by kind of set; evidence hits and calibration error on all.
AIMS: Mapping[str, float] = MappingProxyType({"parametric": 0.97, "mesh": 0.95, "planted": 0.90})
HIT_AIM, ECE_AIM = 0.85, 0.03
_AT = f"{SPECIFICITY:.0%} specificity"


def fractures_to_markdown(summary: dict[str, Any], title: str, family: str) -> str:
    """All tables of one set.

    Args:
        summary: of ``fracture_summary.summarise_fractures``.
        title: heading.
        family: ``parametric``, ``mesh`` or ``planted``: which aims are shown.
    """
    studies = ", ".join(f"{count} {kind}" for kind, count in summary["studies"].items())
    counts = (
        f"{summary['cases']} studies ({studies}), {summary['vertebrae_in_view']} vertebrae in view, "
        f"{summary['fractured_vertebrae']} of them fractured. Intervals are 95 %: of AUC, of sensitivity at {_AT}, of "
        "predictive values and of false alarms from 1000 resamples of patients, of shares Wilson's. A vertebra in view "
        "that was not judged scores below every judged one."
    )
    parts = [
        [f"# {title}", "", counts],
        _main(summary, family),
        _calibration(summary),
        _groups("displacement", summary["displacement"]),
        _groups("fracture", summary["types"]),
        _unseen(summary["types_by_displacement"]),
        _alarms(summary["false_alarms"]),
        _confounders(summary["confounders"]),
        _levels(summary["levels"], family),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]


def _main(summary: dict[str, Any], family: str) -> list[str]:
    vertebra, patient, evidence, masks = (summary[key] for key in ("vertebra", "patient", "evidence", "masks"))
    at = f"{summary['prevalence']:.0%} prevalence"
    aim = f"{AIMS[family]:.2f}" if family in AIMS else ""
    rows: list[tuple[str, object, str]] = [
        ("AUC a vertebra", vertebra.get("auc"), aim),
        (f"Sensitivity a vertebra at {_AT}", vertebra.get("sensitivity_at_specificity"), ""),
        ("Sensitivity a vertebra, bundle's threshold", vertebra["sensitivity"], ""),
        ("Specificity a vertebra, bundle's threshold", vertebra["specificity"], ""),
        (f"PPV a vertebra at {at}, bundle's threshold", vertebra.get("ppv"), ""),
        (f"PPV a vertebra at {at}, {_AT}", vertebra.get("ppv_at_specificity"), ""),
        (f"NPV a vertebra at {at}, bundle's threshold", vertebra.get("npv"), ""),
        ("AUC a patient", patient.get("auc"), ""),
        (f"Sensitivity a patient at {_AT}", patient.get("sensitivity_at_specificity"), ""),
        ("Sensitivity a patient, bundle's threshold", patient["sensitivity"], ""),
        ("Specificity a patient, bundle's threshold", patient["specificity"], ""),
        (f"PPV a patient at {at}, bundle's threshold", patient.get("ppv"), ""),
        (f"Evidence within {evidence['within_mm']:g} mm of the fracture", evidence["hit"], f"{HIT_AIM:.2f}"),
        ("The same, of fractures that were called", evidence["hit_when_called"], ""),
        ("Evidence to fracture, median mm", evidence["median_mm"], ""),
        ("Judged of those in view", vertebra["judged"], ""),
    ]
    if family != "planted":
        rows += [
            ("Right level", masks["right_level"], ""),
            ("Vertebra Dice, mean", masks["dice"], ""),
            ("Surface distance a vertebra, mean mm", masks["surface_mm"], ""),
        ]
    return _table(("figure", "value", "aim"), [(name, shown(value), goal) for name, value, goal in rows])  # type: ignore[arg-type]


def _calibration(summary: dict[str, Any]) -> list[str]:
    """Before and after calibration."""
    found, patient = summary["calibration"], summary["patient_calibration"]
    if not found:
        return []
    constant = found["constant_brier"]
    rows = [
        ("raw (sigmoid of the logit)", shown(found["raw"]["ece"]), f"{found['raw']['brier']:.4f}"),
        ("calibrated", shown(found["calibrated"]["ece"]), f"{found['calibrated']['brier']:.4f}"),
    ]
    if patient:
        rows.append(("calibrated, a patient", shown(patient["ece"]), f"{patient['brier']:.4f}"))
    note = (
        f"Weighted to a prevalence of {summary['prevalence']:.0%}; ECE over ten bins of equal mass, aim {ECE_AIM:.2f}; "
        f"the prevalence itself as everyone's probability has a Brier score of {constant:.4f}."
    )
    return [*_table(("probability a vertebra", "ECE", "Brier"), rows), "", note]


def _groups(what: str, groups: dict[str, Any]) -> list[str]:
    rows = [
        (
            name,
            row["count"],
            shown(row["auc"]),
            shown(row["sensitivity_at_specificity"]),
            shown(row["sensitivity"]),
            shown(row["evidence_hit"]),
        )
        for name, row in groups.items()
    ]
    head = (what, "count", "AUC", f"sensitivity at {_AT}", "sensitivity, bundle's threshold", "evidence hit")
    return _table(head, rows) if rows else []


def _unseen(groups: dict[str, Any]) -> list[str]:
    """Found of all at ``SPECIFICITY``, by type and displacement."""
    rows = [
        (kind, *(f"{row[name][0]} of {row[name][1]}" if row[name][1] else "–" for name in DISPLACEMENT_CLASSES))
        for kind, row in groups.items()
    ]
    return _table((f"found at {_AT}", *DISPLACEMENT_CLASSES), rows) if rows else []


def _alarms(kinds: dict[str, Any]) -> list[str]:
    rows = [(kind, row["studies"], shown(row["a_study"]), shown(row["with_any"])) for kind, row in kinds.items()]
    return _table(("kind of study", "studies", "false alarms a study", "studies with any"), rows)


def _confounders(groups: dict[str, Any]) -> list[str]:
    rows = [
        (name, row["count"], shown(row["specificity"]), shown(row["specificity_at_threshold"]))
        for name, row in groups.items()
    ]
    head = ("unbroken vertebra with", "count", "specificity, bundle's threshold", "specificity, threshold of the set")
    return _table(head, rows) if rows else []


def _levels(levels: dict[str, Any], family: str) -> list[str]:
    columns = {"auc": "AUC", "right_level": "right level", "dice": "Dice", "surface_mm": "surface distance, mm"}
    if family == "planted":
        # Names and masks of a real scan are a locator's own: agreeing with them says nothing.
        columns = {"auc": "AUC"}
    rows = [
        (name, row["in_view"], row["fractured"], *(shown(row[key]) for key in columns)) for name, row in levels.items()
    ]
    return _table(("level", "in view", "fractured", *columns.values()), rows)
