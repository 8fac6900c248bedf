"""Pictures of an evaluation: ROC and reliability, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine.errors import OutputError
from cspine.evaluation.calibration import reliability
from cspine.evaluation.metrics import area_under_curve
from cspine.evaluation.records import CaseRecord


def roc_points(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False-positive and true-positive rates from (0, 0) to (1, 1), one point a distinct score."""
    values = np.unique(score)[::-1]
    false = [float((score[~truth] >= value).mean()) for value in values]
    true = [float((score[truth] >= value).mean()) for value in values]
    return np.array([0.0, *false]), np.array([0.0, *true])


def draw_figures(records: Sequence[CaseRecord], folder: Path) -> list[Path]:
    """Write ``roc.png`` and ``reliability.png``; those that have nothing to show are left out.

    Raises:
        OutputError: the folder cannot be written.
    """
    rows = [row for record in records for row in record.levels if row.in_view and row.probability is not None]
    truth = np.asarray([row.fractured for row in rows], dtype=bool)
    score = np.asarray([row.probability for row in rows], dtype=np.float64)
    if not 0 < truth.sum() < len(truth):
        return []
    try:
        return [_roc(truth, score, folder / "roc.png"), _reliability(truth, score, folder / "reliability.png")]
    except OSError as error:
        raise OutputError(f"cannot write the figures: {error}", where=str(folder)) from error


def _roc(truth: NDArray[np.bool_], score: NDArray[np.float64], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    axes.plot(*roc_points(truth, score), color="#0072b2", label=f"AUC {area_under_curve(truth, score):.3f}")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="Fracture a vertebra", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)
    return path


def _reliability(truth: NDArray[np.bool_], score: NDArray[np.float64], path: Path) -> Path:
    from matplotlib.figure import Figure

    table = reliability(truth, score)
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    axes.plot([row.predicted for row in table], [row.observed for row in table], color="#0072b2", marker="o")
    for row in table:
        axes.annotate(str(row.count), (row.predicted, row.observed), (4, -10), textcoords="offset points", fontsize=7)
    axes.set(xlabel="predicted", ylabel="observed", title="Reliability (count a bin)", xlim=(0, 1), ylim=(0, 1.01))
    figure.savefig(path, dpi=150)
    return path
