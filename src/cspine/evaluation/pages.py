"""``evaluation.html`` and ``comparison.html``: one file each, without scripts, that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cspine.evaluation.comparison import HEADS, READING, REFERENCE, Comparison, auc_of, cells_of, headline, shown
from cspine.evaluation.scores import Estimate, Figures, Images, PictureFigures, YesNo

# The forest plot begins here unless a method is worse.
FOREST_FROM = 0.4


def evaluation_page(figures: Figures) -> bytes:
    """All figures of one method as UTF-8. Same input, same bytes."""
    curve = figures.froc.curve if figures.froc else ()
    most = max([1.0, *(x for x, _ in curve)])
    return _render(
        "evaluation.html",
        figures=figures,
        rows=_fracture_rows(figures),
        bins=[(row.predicted, row.observed) for row in figures.vertebra.reliability],
        froc_points=[(x / most, y) for x, y in curve],
        froc_right=f"{most:.3g}",
        found=_found(figures),
        time=f"{shown(figures.seconds, 2)} s a study (median), "
        + (f"{figures.threads} processor threads." if figures.threads else "all processor threads."),
    )


def pictures_page(figures: PictureFigures) -> bytes:
    """All figures of one method on single pictures as UTF-8. Same input, same bytes."""
    return _render(
        "pictures.html",
        figures=figures,
        rows=_judging_rows((figures.fracture,)),
        bins=[(row.predicted, row.observed) for row in figures.fracture.reliability],
        found=_images_rows(figures.levels) if figures.levels else [],
    )


def comparison_page(comparison: Comparison, reference: str = REFERENCE) -> bytes:
    """The table of all methods as UTF-8. Same input, same bytes."""
    plot = [
        {"name": entry.name, "value": auc.value, "low": auc.low, "high": auc.high, "own": entry.name == reference}
        for entry in comparison.entries
        if auc_of(entry) is not None and (auc := entry.figures.vertebra.auc) is not None and auc.low is not None
    ]
    return _render(
        "comparison.html",
        comparison=comparison,
        headline=headline(comparison),
        notice=comparison.notice,
        reading=READING,
        reference=reference,
        heads=HEADS,
        forest=plot,
        low=min([FOREST_FROM, *(row["low"] for row in plot if isinstance(row["low"], float))]),
        rows=[{"own": entry.name == reference, "cells": cells_of(entry)} for entry in comparison.entries],
        how=list(comparison.settings.items()),
    )


def _fracture_rows(figures: Figures) -> list[tuple[str, str, str]]:
    """The table of figures of fractures: name, a vertebra, a patient."""
    rows = [(name, a, b) for name, a, b in _judging_rows((figures.vertebra, figures.patient))]
    rows.append(("false alarms a study", shown(figures.false_alarms, 2), "–"))
    rows.append(("RSNA 2022 competition score", "–", shown(figures.competition_score, 4)))
    return rows


def _judging_rows(asked: Sequence[YesNo]) -> list[tuple[str, ...]]:
    """Figures of yes/no questions: name, then the text for each question."""
    names = {
        "AUC": "auc", "AUC with DeLong's interval": "auc_delong", "area of precision and recall": "average_precision",
        "accuracy": "accuracy", "sensitivity (recall)": "sensitivity", "specificity": "specificity",
        "precision": "precision", "F1": "f1", "Cohen's kappa": "kappa",
    }  # fmt: skip
    rows: list[tuple[str, ...]] = []
    rows += [(name, *(shown(getattr(one, field)) for one in asked)) for name, field in names.items()]
    rows.append(("confusion: true and false alarms, misses, true silence", *(_confusion(one) for one in asked)))
    for key in ("0.9", "0.95"):
        name = f"sensitivity at {float(key):.0%} specificity"
        rows.append((name, *(shown(one.sensitivity_at.get(key)) for one in asked)))
    for key in ("0.04", "0.1", "0.476"):
        name = f"predictive value at {float(key) * 100:g} % prevalence: own threshold, and at 95 % specificity"
        rows.append((name, *(_values(one, key) for one in asked)))
    scores = {"log loss": "log_loss", "Brier score": "brier", "calibration error (ECE)": "calibration_error"}
    rows += [(name, *(shown(getattr(one, field)) for one in asked)) for name, field in scores.items()]
    return rows


def _values(one: YesNo, key: str) -> str:
    return f"{shown(one.predictive_value.get(key))}, {shown(one.predictive_value_at.get(key))}"


def _confusion(one: YesNo) -> str:
    c = one.confusion
    return "–" if c is None else f"{c.true_positive}, {c.false_positive}, {c.false_negative}, {c.true_negative}"


def _found(figures: Figures) -> list[tuple[str, str]]:
    """What is said beside fractures, as name and text."""
    where = figures.locating
    rows = [
        ("named rightly", shown(where.identified)),
        ("error of centres, mean mm", shown(where.distance_mm, 2)),
        ("error of rightly named centres, median mm", shown(where.median_mm, 2)),
        ("Dice a vertebra", shown(where.dice)),
        ("IoU a vertebra", shown(where.iou)),
        ("Dice of the cervical spine as one", shown(where.spine_dice)),
    ]
    if figures.images:
        rows += [*_images_rows(figures.images), ("AUC of images with a fracture", shown(figures.images.fracture_auc))]
    if figures.boxes:
        boxes = figures.boxes
        rows += [
            (f"mAP50 of {boxes.count} boxes", shown(boxes.map50)),
            ("mAP50-95", shown(boxes.map50_95)),
            ("IoU of boxes", shown(boxes.iou)),
            ("boxes are", boxes.source),
        ]
    if figures.froc:
        at = "; ".join(f"{value:.3f} at {rate}" for rate, value in figures.froc.at.items() if value is not None)
        rows += [
            (f"fractures marked, of {figures.froc.fractures}, at false marks a study", at),
            ("mean of these", shown(figures.froc.score)),
            ("IoU of marks that hit, in 3D", shown(figures.froc.iou)),
        ]
    return rows


def _images_rows(images: Images) -> list[tuple[str, str]]:
    return [
        (f"macro-F1 of {images.count} axial images", shown(images.macro_f1)),
        ("exact match ratio", shown(images.exact_match)),
        ("coverage error", f"{shown(images.coverage_error)}; {shown(images.shown)} would be perfect"),
    ]


def _value(value: Estimate | float | None, digits: int = 3) -> str:
    """Without its interval."""
    return shown(value.value if isinstance(value, Estimate) else value, digits)


def _render(template: str, **values: Any) -> bytes:
    css = _css()
    style = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    page = _environment().get_template(template).render(css=css, policy=policy, **values)
    return page.encode("utf-8", "replace")


@cache
def _css() -> Markup:
    return Markup(_environment().get_template("page.css").render())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cspine.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(estimate=shown, value=_value)
    return environment
