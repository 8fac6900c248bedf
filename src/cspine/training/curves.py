"""Pictures of a training run: the loss and the figures of validation over the steps of every stage."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cspine.errors import UsageError
from cspine.inference.bundle import STAGES
from cspine.reports.atomic import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Float = NDArray[np.float64]
# Folders of a stage's logs: the first run, and those that went on from a step.
_LOG = re.compile(r"log(?:-from-(\d+))?")
TOTAL = "train/total"
# The log of a network that its own library trains, and the figures in it that are drawn.
_LIBRARY_LOG = "log/results.csv"
_LIBRARY_FIGURES = {"metrics/mAP50(B)": "val/mAP50", "metrics/mAP50-95(B)": "val/mAP50-95"}
# Figures that others sum up, or that sum up others; drawn only where there are none else.
_DETAILS = re.compile(r"val/(dice_(c[1-7]|thoracic|other)|score)")
MAX_FIGURES = 6
# The smooth line is a mean over this share of the rows, weighted towards the middle.
SMOOTHING = 0.06
FORMATS = (".png", ".svg", ".pdf")
_LOSS, _GRID, _TEXT = "#5b6b7b", "#e6e8eb", "#3a3f45"
# Told apart with the common colour-vision deficiencies (Okabe and Ito, 2008).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True, slots=True)
class Series:
    """One logged column: ``steps`` ascending and ``values``, both ``[n]``; rows without a number are left out."""

    steps: Float
    values: Float


@dataclass(frozen=True, slots=True)
class StageLog:
    """What was logged of one stage, all runs joined.

    Attributes:
        name: of the stage.
        series: by column name.
        resumed: steps at which a later run went on.
        unit: of ``steps``.
    """

    name: str
    series: Mapping[str, Series]
    resumed: tuple[int, ...] = ()
    unit: Literal["steps", "epochs"] = "steps"

    @property
    def loss(self) -> Series | None:
        """The total loss of training; None when it was not logged."""
        return self.series.get(TOTAL)

    @property
    def figures(self) -> dict[str, Series]:
        """The validation figures to draw."""
        found = sorted(name for name in self.series if name.startswith("val/"))
        telling = [name for name in found if not _DETAILS.fullmatch(name)]
        return {name: self.series[name] for name in (telling or found)[:MAX_FIGURES]}


def read_logs(run: Path) -> tuple[StageLog, ...]:
    """The logs of all stages of a run, in the order in which stages run in a method.

    What a run logged after its last checkpoint was done again by the run that went on from there; of such steps the
    later account counts.

    Raises:
        UsageError: there is no such folder, or nothing was logged in it yet.
    """
    if not run.is_dir():
        raise UsageError("there is no such run", where=str(run), fix="Give the folder that cspine train --out named")
    order: dict[str, int] = {name: number for number, name in enumerate(STAGES)}
    folders = sorted((path for path in run.iterdir() if path.is_dir()), key=lambda p: (order.get(p.name, 99), p.name))
    logs = tuple(log for folder in folders if (log := _stage_log(folder)) is not None)
    if not logs:
        raise UsageError(
            "the run has logged nothing yet",
            where=str(run),
            fix="Training logs every 20 steps: try again later, or give another run",
        )
    return logs


def _stage_log(folder: Path) -> StageLog | None:
    """The joined logs of one stage; None when there are none."""
    if (folder / _LIBRARY_LOG).is_file():
        return _library_log(folder)
    parts = sorted(
        (int(match[1] or 0), path)
        for path in folder.glob("*/metrics.csv")
        if (match := _LOG.fullmatch(path.parent.name)) is not None
    )
    columns: dict[str, list[tuple[float, float]]] = {}
    begun = []
    for number, (start, path) in enumerate(parts):
        end = parts[number + 1][0] if number + 1 < len(parts) else math.inf
        rows = [row for row in _rows(path) if row["step"] < end]
        if rows and start:
            begun.append(start)
        for row in rows:
            for name, value in row.items():
                columns.setdefault(name, []).append((row["step"], value))
    series = {name: _series(points) for name, points in columns.items() if name not in ("step", "epoch")}
    return StageLog(folder.name, series, tuple(begun)) if series else None


def _library_log(folder: Path) -> StageLog | None:
    """The log of ``training.yolo``: a row an epoch, with parts of the loss."""
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(folder / _LIBRARY_LOG, "epoch"):
        parts = [value for name, value in row.items() if name.startswith("train/") and name.endswith("_loss")]
        known = {TOTAL: sum(parts)} if parts else {}
        known |= {ours: row[name] for name, ours in _LIBRARY_FIGURES.items() if name in row}
        for name, value in known.items():
            columns.setdefault(name, []).append((row["epoch"], value))
    series = {name: _series(points) for name, points in columns.items()}
    return StageLog(folder.name, series, unit="epochs") if series else None


def _rows(path: Path, key: str = "step") -> list[dict[str, float]]:
    """The numbers of each row by column; a row that was cut off while it was written is left out."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            table = [
                {name.strip(): _number(text) for name, text in row.items() if name} for row in csv.DictReader(stream)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read the log: {error}", where=str(path), fix="Remove it or restore it") from error
    known = [{name: value for name, value in row.items() if value is not None} for row in table]
    return [row for row in known if key in row]


def _number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _series(points: Sequence[tuple[float, float]]) -> Series:
    ordered = np.array(sorted(points, key=lambda point: point[0]), dtype=np.float64)
    return Series(ordered[:, 0], ordered[:, 1])


def smoothed(values: Float, share: float = SMOOTHING) -> Float:
    """A running mean ``[n]`` of ``[n]`` with triangular weights over ``share`` of the rows; ends use what is there."""
    half = max(1, round(share * len(values) / 2))
    weights = np.bartlett(2 * half + 3)[1:-1]
    # Full, then cut: the window may be longer than the values.
    total = np.convolve(values, weights, "full")[half : half + len(values)]
    seen = np.convolve(np.ones(len(values)), weights, "full")[half : half + len(values)]
    return np.asarray(total / seen)


def draw_curves(run: Path, out: Path) -> Path:
    """Draw one panel a stage: the loss, raw and smooth, on the left axis, validation on the right one.

    Args:
        run: folder of a run.
        out: picture to write; PNG, SVG or PDF by its ending.

    Returns:
        ``out``.

    Raises:
        UsageError: no such run, nothing logged yet, or another ending.
        OutputError: the picture cannot be written.
    """
    if out.suffix.lower() not in FORMATS:
        raise UsageError(
            f"expected a picture that ends in {', '.join(FORMATS)}, got {out.name}", fix="Give such a name"
        )
    logs = read_logs(run)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.9 * len(logs)), layout="constrained")
    for log, axes in zip(logs, figure.subplots(len(logs), 1, squeeze=False)[:, 0], strict=True):
        _panel(axes, log)
    stream = BytesIO()
    figure.savefig(stream, format=out.suffix[1:].lower(), dpi=150)
    write_file(out, stream.getvalue())
    return out


def _panel(axes: Axes, log: StageLog) -> None:
    axes.set_title(log.name.capitalize(), loc="left", fontsize=11, color=_TEXT)
    axes.set_xlabel(log.unit, color=_TEXT, fontsize=9)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}"))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    _plain(axes)
    lines: list[Any] = []
    loss = log.loss
    if loss is not None:
        axes.plot(loss.steps, loss.values, color=_LOSS, linewidth=0.7, alpha=0.35)
        lines += axes.plot(loss.steps, smoothed(loss.values), color=_LOSS, linewidth=1.8, label="loss")
        axes.set_ylabel("loss", color=_LOSS, fontsize=9)
        # A few early rows may be many times what follows; the eye is for what follows.
        axes.set_ylim(0, 1.15 * float(np.quantile(loss.values, 0.98)) or 1.0)
    for step in log.resumed:
        mark = axes.axvline(step, color="#9aa3ad", linewidth=0.8, linestyle=(0, (2, 3)), zorder=0, label="resumed")
        lines += [mark] if step == log.resumed[0] else []
    figures = log.figures
    if figures:
        right = axes.twinx()
        _plain(right)
        for (name, series), colour in zip(figures.items(), _COLOURS, strict=False):
            label = f"{_words(name)} {series.values[-1]:.3f}"
            lines += right.plot(
                series.steps, series.values, color=colour, linewidth=1.5, marker="o", markersize=3, label=label
            )
        top = max(float(series.values.max()) for series in figures.values())
        right.set_ylim(0, 1.02 if top <= 1 else 1.1 * top)
        right.set_ylabel("validation", color=_COLOURS[0] if len(figures) == 1 else _TEXT, fontsize=9)
    axes.set_xlim(left=0)
    axes.legend(
        handles=lines, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=5, frameon=False, fontsize=8,
        labelcolor=_TEXT, borderaxespad=0.2, handlelength=1.6,
    )  # fmt: skip


def _words(name: str) -> str:
    """A column's name as people write it: ``val/dice_c1`` is "Dice C1"."""
    words = name.removeprefix("val/").split("_")
    short = {"auc": "AUC", "dice": "Dice", "iou": "IoU"} | {f"c{k}": f"C{k}" for k in range(1, 8)}
    return " ".join(short.get(word, word) for word in words)


def _plain(axes: Axes) -> None:
    """No box around the panel, quiet ticks."""
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=_TEXT)
