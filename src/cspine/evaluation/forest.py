"""The figure of a comparison: AUC a vertebra with its interval, one method a line, as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence

from cspine.evaluation.comparison import REFERENCE, Entry, auc_of

# The accent of the pages, and what everything else is drawn in.
ACCENT, GREY, INK = "#0b6b6f", "#8a939b", "#1c2126"
CHANCE = 0.5


def forest_plot(entries: Sequence[Entry], *, reference: str = REFERENCE, note: str = "") -> dict[str, bytes]:
    """The figure's files by ending, ``png`` and ``svg``; none when no method judges fractures.

    Args:
        entries: in the order in which they are drawn, best first.
        reference: drawn in the accent colour.
        note: small print below.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [(entry, entry.figures.vertebra.auc) for entry in entries if auc_of(entry) is not None]
    if not rows:
        return {}
    # Same input, same bytes: identifiers of an SVG are salted with a fixed text, and no date goes in.
    with rc_context({"svg.hashsalt": "cspine", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.2, 1.2 + 0.26 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(CHANCE, color=GREY, linewidth=1, linestyle=":")
        for place, (entry, auc) in enumerate(rows):
            if auc is None or auc.value is None:
                continue
            colour = ACCENT if entry.name == reference else GREY
            if auc.low is not None and auc.high is not None:
                axes.plot([auc.low, auc.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot(auc.value, place, "o", color=colour, markersize=5)
            axes.annotate(
                f"{auc.value:.3f}",
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                color=INK,
                fontsize=8,
            )
        axes.set_yticks(range(len(rows)), [entry.name for entry, _ in rows], color=INK)
        for label, (entry, _) in zip(axes.get_yticklabels(), rows, strict=True):
            if entry.name == reference:
                label.set(color=ACCENT, fontweight="bold")
        axes.set_title("AUC a vertebra, 95 % interval by patient", loc="left", color=INK, fontsize=10)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(right=1.005)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        if note:
            axes.set_xlabel(note, color=GREY, fontsize=8)
        out = {}
        for ending, extra in (("png", {"Software": None}), ("svg", {"Date": None})):
            stream = io.BytesIO()
            figure.savefig(stream, format=ending, dpi=150, metadata=extra)
            out[ending] = stream.getvalue()
    return out
