"""Scores of marked scans as one summary (JSON), tables (Markdown) and a reliability figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cspine.anatomy import LEVELS
from cspine.errors import OutputError
from cspine.evaluation.calibration import expected_calibration_error, reliability
from cspine.evaluation.landmarks import LandmarkRecord, LevelAnswer
from cspine.evaluation.metrics import bootstrap_interval, proportion
from cspine.inference.judge import SURE_CONFIDENCE

Row = tuple[str, LevelAnswer]
# Warnings that tell a reader to look at the names of levels.
DOUBT_CODES = frozenset(
    ("levels-uncertain", "levels-without-anchor", "levels-uneven", "levels-contradicted", "no-cervical-spine")
)
# Fewer scans than this are not resampled.
MIN_SCANS = 5


def summarise_landmarks(records: Sequence[LandmarkRecord]) -> dict[str, Any]:
    """All figures, ready for JSON: pooled, by variant and group, by level, reliability, and the scans that fail."""
    variants = list(dict.fromkeys(record.variant for record in records))
    groups = list(dict.fromkeys(record.group for record in records))
    return {
        "scans": len({record.scan for record in records}),
        "bundle": sorted({record.bundle for record in records}),
        "halves": sorted({record.half for record in records}),
        "pooled": _figures(records),
        "groups": {name: _figures([r for r in records if r.group == name]) for name in groups},
        "variants": {name: _figures([r for r in records if r.variant == name]) for name in variants},
        "levels": {level.name: _level(records, level.name) for level in LEVELS},
        "confidence": confidence_figures(records),
        "failures": [_failure(record) for record in records if record.wrong],
    }


def _rows(records: Iterable[LandmarkRecord]) -> list[Row]:
    return [(record.scan, row) for record in records for row in record.levels]


def _figures(records: Sequence[LandmarkRecord]) -> dict[str, Any]:
    """Figures of a set of records; intervals resample scans, whose levels fail together."""
    rows = _rows(records)
    visible = [(scan, row) for scan, row in rows if row.truth == "visible"]
    outside = [row for _, row in rows if row.truth == "outside"]
    errors = [row.error_mm for _, row in visible if row.error_mm is not None]
    silent = [record for record in records if record.wrong and not warned(record)]
    return {
        "records": len(records),
        "visible": len(visible),
        "right": _share([(scan, row.right) for scan, row in visible]),
        "missed": sum(not row.claimed for _, row in visible),
        "misnamed": sum(row.claimed and not row.right for _, row in visible),
        "whole_scans_right": sum(not record.wrong for record in records),
        "doubled": sum(len(record.doubled) for record in records),
        "skipped": sum(len(record.skipped) for record in records),
        "error_median_mm": round(float(np.median(errors)), 2) if errors else None,
        "error_p90_mm": round(float(np.percentile(errors, 90)), 2) if errors else None,
        "outside": len(outside),
        "outside_reported": sum(not row.claimed for row in outside),
        "wrong_without_warning": len(silent),
        "right_but_warned": sum(not record.wrong and warned(record) for record in records),
    }


def _share(hits: Sequence[tuple[str, bool]]) -> dict[str, float] | None:
    """A share and its 95 % interval, by resampling scans.

    Where that says nothing, since all are right, or all wrong, or scans are few, it is Wilson's, with scans counted
    and not levels.
    """
    if not hits:
        return None
    scans, right = [scan for scan, _ in hits], np.asarray([hit for _, hit in hits], dtype=float)
    value, count = float(right.mean()), len(set(scans))
    if count < MIN_SCANS or value in (0.0, 1.0):
        span = proportion(round(value * count), count)
        low, high = min(span.low, value), max(span.high, value)
    else:
        drawn = bootstrap_interval(lambda index: float(right[index].mean()), scans)
        low, high = drawn.low, drawn.high
    return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def _level(records: Sequence[LandmarkRecord], name: str) -> dict[str, Any]:
    rows = [row for _, row in _rows(records) if row.level == name]
    visible = [row for row in rows if row.truth == "visible"]
    errors = [row.error_mm for row in visible if row.error_mm is not None]
    return {
        "visible": len(visible),
        "right": sum(row.right for row in visible),
        "error_median_mm": round(float(np.median(errors)), 2) if errors else None,
        "outside": sum(row.truth == "outside" for row in rows),
        "outside_reported": sum(row.truth == "outside" and not row.claimed for row in rows),
    }


def warned(record: LandmarkRecord) -> bool:
    """A warning says that the names of levels may be wrong, or that nothing was found."""
    return any(warning.code in DOUBT_CODES for warning in record.warnings)


def confidence_figures(records: Sequence[LandmarkRecord]) -> dict[str, Any]:
    """Whether a stated confidence is the share of right names."""
    stated = [(row.confidence, row.stated_name_holds) for _, row in _rows(records) if row.stated_name_holds is not None]
    if not stated:
        return {"stated": 0}
    confidence, right = (np.asarray(column, dtype=float) for column in zip(*stated, strict=True))
    low = confidence < SURE_CONFIDENCE
    return {
        "stated": len(stated),
        "mean_confidence": round(float(confidence.mean()), 4),
        "right": round(float(right.mean()), 4),
        "calibration_error": round(expected_calibration_error(right, confidence), 4),
        "reliability": [
            {key: round(value, 4) for key, value in asdict(row).items()} for row in reliability(right, confidence)
        ],
        "wrong": int((right == 0).sum()),
        "wrong_and_unsure": int(((right == 0) & low).sum()),
        "right_but_unsure": int(((right == 1) & low).sum()),
    }


def _failure(record: LandmarkRecord) -> dict[str, Any]:
    return {
        "scan": record.scan,
        "variant": record.variant,
        "levels": [_said(row) for row in record.wrong],
        "doubled": list(record.doubled),
        "skipped": list(record.skipped),
        "least_confidence": min((row.confidence for row in record.levels if row.claimed), default=0.0),
        "warnings": [warning.code for warning in record.warnings],
    }


def _said(row: LevelAnswer) -> str:
    """A wrong level in words."""
    if not row.claimed:
        return f"{row.level} not found"
    if row.nearest is None:
        return f"{row.level} nowhere near a mark"
    place = "too far off" if row.nearest == row.level else f"at {row.nearest}"
    return f"{row.level} {place} ({row.confidence:.2f})"


_HEAD = (
    "| {0} | scans | visible levels | right (95 %) | missed | misnamed | doubled | skipped | error median, p90 mm |"
    " outside, reported so | wrong without warning | right but warned |"
)


def landmarks_to_markdown(summary: dict[str, Any], title: str) -> str:
    """The summary as Markdown tables."""
    lines = [f"# {title}", "", _intro(summary), "", _HEAD.format("group"), "|---" * 12 + "|"]
    lines += [_line(name, row) for name, row in {**summary["groups"], "all": summary["pooled"]}.items()]
    if len(summary["variants"]) > len(summary["groups"]):
        lines += ["", _HEAD.format("variant"), "|---" * 12 + "|"]
        lines += [_line(name, row) for name, row in summary["variants"].items()]
    lines += ["", "| level | visible | right | error median mm | outside | reported so |", "|---" * 6 + "|"]
    for name, row in summary["levels"].items():
        cells = (row["visible"], row["right"], _number(row["error_median_mm"]), row["outside"], row["outside_reported"])
        lines.append(f"| {name} | {' | '.join(str(cell) for cell in cells)} |")
    lines += ["", *_confidence_lines(summary["confidence"]), "", *_failure_lines(summary["failures"])]
    return "\n".join(lines).rstrip() + "\n"


def _intro(summary: dict[str, Any]) -> str:
    halves = " and ".join(summary["halves"])
    return (
        f"{summary['scans']} marked scans ({halves} half). Right: an answer of that name within 10 mm of the mark, "
        "with no other mark nearer. Intervals resample scans."
    )


def _line(name: str, row: dict[str, Any]) -> str:
    right = row["right"]
    share = "–" if right is None else f"{right['value']:.3f} ({right['low']:.3f} to {right['high']:.3f})"
    error = f"{_number(row['error_median_mm'])}, {_number(row['error_p90_mm'])}"
    cells = (
        row["records"], row["visible"], share, row["missed"], row["misnamed"], row["doubled"], row["skipped"], error,
        f"{row['outside']}, {row['outside_reported']}", row["wrong_without_warning"], row["right_but_warned"],
    )  # fmt: skip
    return f"| {name} | {' | '.join(str(cell) for cell in cells)} |"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _confidence_lines(figures: dict[str, Any]) -> list[str]:
    if not figures["stated"]:
        return []
    lines = [
        f"Confidence of {figures['stated']} stated levels: mean {figures['mean_confidence']:.3f}, right "
        f"{figures['right']:.3f}, calibration error {figures['calibration_error']:.3f}. Of {figures['wrong']} wrong "
        f"names {figures['wrong_and_unsure']} were below {SURE_CONFIDENCE:g}; so were "
        f"{figures['right_but_unsure']} right ones.",
        "",
        "| confidence | levels | mean | right |",
        "|---|---|---|---|",
    ]
    for row in figures["reliability"]:
        span = f"{row['low']:.1f} to {row['high']:.1f}"
        lines.append(f"| {span} | {row['count']} | {row['predicted']:.3f} | {row['observed']:.3f} |")
    return lines


def _failure_lines(failures: Sequence[dict[str, Any]]) -> list[str]:
    if not failures:
        return ["No scan fails."]
    lines = ["| scan | variant | what is wrong | least confidence | warnings |", "|---|---|---|---|---|"]
    for item in failures:
        said = ", ".join(item["levels"])
        codes = ", ".join(item["warnings"]) or "none"
        lines.append(f"| {item['scan']} | {item['variant']} | {said} | {item['least_confidence']:.2f} | {codes} |")
    return lines


def draw_confidence(records: Sequence[LandmarkRecord], path: Path) -> Path | None:
    """A reliability diagram of the levels' confidence, as PNG; None when nothing was stated.

    Raises:
        OutputError: it cannot be written.
    """
    from matplotlib.figure import Figure

    stated = [(row.confidence, row.stated_name_holds) for _, row in _rows(records) if row.stated_name_holds is not None]
    if not stated:
        return None
    confidence, right = (np.asarray(column, dtype=float) for column in zip(*stated, strict=True))
    table = reliability(right, confidence)
    spans = [proportion(round(row.observed * row.count), row.count) for row in table]
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    x, y = [row.predicted for row in table], [row.observed for row in table]
    reach = [[s.value - s.low for s in spans], [s.high - s.value for s in spans]]
    axes.errorbar(x, y, yerr=np.maximum(reach, 0), color="#0072b2", marker="o", capsize=2, linewidth=1)
    for row in table:
        axes.annotate(str(row.count), (row.predicted, row.observed), (5, -10), textcoords="offset points", fontsize=7)
    axes.set(xlabel="stated confidence", ylabel="share of right names", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title("Levels of marked scans (count a bin)")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OutputError(f"cannot write the figure: {error}", where=str(path)) from error
    return path
