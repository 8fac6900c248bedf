"""Pictures of a test set: ROC, calibration before and after, sensitivity by displacement and type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import OutputError
from cspine.evaluation.figures import roc_points
from cspine.evaluation.fracture_metrics import SPECIFICITY
from cspine.evaluation.fracture_summary import patients_of, vertebrae_of
from cspine.evaluation.records import CaseRecord

_TICKS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)
_BLUE, _ORANGE, _GREY, _DARK = "#0072b2", "#d55e00", "#bbbbbb", "#444444"


def draw_fracture_figures(records: Sequence[CaseRecord], summary: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``roc.png``, ``calibration.png`` and ``sensitivity.png``; those with nothing to show are left out.

    Args:
        records: scored cases.
        summary: of these, see ``fracture_summary.summarise_fractures``.
        folder: must exist.

    Raises:
        OutputError: the folder cannot be written.
    """
    drawn = []
    try:
        if "auc" in summary["vertebra"]:
            drawn.append(_roc(records, summary, folder / "roc.png"))
            drawn.append(_sensitivity(summary, folder / "sensitivity.png"))
        if summary["calibration"]:
            drawn.append(_calibration(summary, folder / "calibration.png"))
    except OSError as error:
        raise OutputError(f"cannot write the figures: {error}", where=str(folder)) from error
    return drawn


def _roc(records: Sequence[CaseRecord], summary: dict[str, Any], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    axes.axvline(1 - SPECIFICITY, color=_GREY, linewidth=1, linestyle=":")
    columns = (("vertebra", vertebrae_of(records)[1], _BLUE), ("patient", patients_of(records), _ORANGE))
    for name, rows, colour in columns:
        if rows.both:
            auc = summary[name]["auc"]
            label = f"a {name}: {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})"
            axes.plot(*roc_points(rows.truth, rows.score), color=colour, label=label)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="Fracture, AUC", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    return path


def _calibration(summary: dict[str, Any], path: Path) -> Path:
    """Reliability of raw and calibrated probabilities; axes go with the root, since most probabilities are small."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    for name, colour, marker in (("raw", _ORANGE, "s"), ("calibrated", _BLUE, "o")):
        found = summary["calibration"][name]
        label = f"{name}: ECE {found['ece']:.3f}, Brier {found['brier']:.4f}"
        predicted, observed = ([row[key] for row in found["bins"]] for key in ("predicted", "observed"))
        axes.plot(predicted, observed, color=colour, marker=marker, markersize=4, linewidth=1, label=label)
    title = f"Calibration a vertebra at {summary['prevalence']:.0%} prevalence"
    axes.set(xlabel="predicted (bins of equal mass)", ylabel="observed", title=title)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("function", functions=(_root, np.square))
    axes.set(xticks=_TICKS, yticks=_TICKS, xlim=(0, 1), ylim=(0, 1))
    axes.tick_params(labelsize=8)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    return path


def _root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root; 0 for the slightly negative values that an axis asks for."""
    return np.asarray(np.sqrt(np.maximum(values, 0)))


def _sensitivity(summary: dict[str, Any], path: Path) -> Path:
    from matplotlib.figure import Figure

    groups = [*summary["displacement"].items(), *summary["types"].items()]
    rows = [(name, row["sensitivity_at_specificity"], row["count"]) for name, row in groups if row["count"]]
    figure = Figure(figsize=(5, 0.9 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, share, _) in enumerate(rows):
        axes.plot([share["low"], share["high"]], [place, place], color=_GREY, linewidth=3, solid_capstyle="round")
        axes.plot(share["value"], place, "o", color=_BLUE, markersize=5)
    classes = sum(row["count"] > 0 for row in summary["displacement"].values())
    if classes:
        axes.axhline(classes - 0.5, color=_GREY, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{name} ({count})" for name, _, count in rows], color=_DARK, fontsize=8)
    axes.set(xlim=(-0.02, 1.02), title=f"Sensitivity at {SPECIFICITY:.0%} specificity")
    axes.invert_yaxis()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=150)
    return path
