"""Several methods on the same cases, in one table: as JSON, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cspine.evaluation.differences import Difference, vertebra_difference
from cspine.evaluation.records import CaseRecord
from cspine.evaluation.scores import Estimate, Figures

REFERENCE = "base"
PHANTOM_NOTICE = (
    "The cases are phantoms. Phantoms rank methods; they predict nothing about patients, and no number here may be "
    "set beside one that was measured on people."
)
NOTICE = (
    "Every method was trained on the same cases, with the same number of examples for all networks of a kind, and "
    "scored on the same others."
)
BUDGET_NOTICE = (
    "All networks were trained far shorter than their documents ask for, so the table says how far a method gets "
    "with this little, and nothing about how far it gets."
)
# What each column of the table is, in the order of ``HEADS`` where it is not plain.
READING = (
    "Beside a figure is its 95 % interval. The difference is that of the AUC a vertebra to the reference on the same "
    "vertebrae, with the interval of a bootstrap by patient. AUC on base's outlines is that of the method's classifier "
    "behind base's locator: a method that names no vertebra has 0.5, however good its classifier is. Sensitivity and "
    "specificity take the method's own threshold, 0.5 where none was fitted. The competition score is better the lower "
    "it is. The last column is what the method's own document claims, on other data and by another measure."
)
HEADS = (
    "recipe", "parameters", "AUC a vertebra", "difference", "AUC on base's outlines", "AUC a patient",
    "competition score", "sensitivity", "specificity", "sensitivity at 90 % specificity", "named rightly",
    "error, mm", "Dice", "mAP50", "image macro-F1", "seconds a study", "source; what it claims",
)  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AucDifference(_Model):
    """AUC a vertebra minus that of the reference, on the same vertebrae; see ``differences``."""

    value: float
    low: float
    high: float
    method: Literal["bootstrap", "delong"]
    rows: int

    @classmethod
    def of(cls, found: Difference) -> AucDifference:
        """From a difference."""
        return cls(value=found.value, low=found.low, high=found.high, method=found.method, rows=found.rows)


class Entry(_Model):
    """One method in a comparison.

    Attributes:
        name: of the recipe.
        title: what it is, in one line.
        source: who described it.
        claim: what its document claims, and on what.
        note: what a reader must know of this row.
        alike: trained here like the others, so that it may be ranked among them.
        figures: all of them.
        apart: those of its classifier behind the reference's locator; None where it has none of its own.
        difference: to the reference; None for the reference itself and for methods that only locate.
        delong: the same with DeLong's interval, which takes vertebrae for independent.
        minutes: that training its networks took, those it shares with other recipes among them.
        steps: of training, a stage.
    """

    name: str
    title: str = ""
    source: str = ""
    claim: str = ""
    note: str = ""
    alike: bool = True
    figures: Figures
    apart: Figures | None = None
    difference: AucDifference | None = None
    delong: AucDifference | None = None
    minutes: float | None = None
    steps: dict[str, int] = {}


class Comparison(_Model):
    """A finished comparison.

    Attributes:
        data: the cases, in words.
        phantoms: they are phantoms.
        settings: how it was done, in words by name.
        entries: the methods, best AUC a vertebra first; those that only locate come last.
        failed: recipes that could not be compared, and why.
    """

    data: str
    phantoms: bool
    settings: dict[str, str] = {}
    entries: tuple[Entry, ...] = ()
    failed: dict[str, str] = {}

    @property
    def notice(self) -> str:
        """What must be said before any number."""
        return f"{PHANTOM_NOTICE} {NOTICE} {BUDGET_NOTICE}" if self.phantoms else NOTICE


def compared(
    entries: Sequence[Entry], records: Mapping[str, Sequence[CaseRecord]], *, reference: str = REFERENCE
) -> tuple[Entry, ...]:
    """The entries in order, with their differences to the reference.

    Args:
        entries: of the methods.
        records: the scored cases of each, by its name.
        reference: the method that others are set against; without it there are no differences.
    """
    out = []
    for entry in entries:
        if entry.name != reference and reference in records and entry.figures.judges:
            ours, theirs = records[entry.name], records[reference]
            found = vertebra_difference(ours, theirs)
            sure = vertebra_difference(ours, theirs, method="delong")
            entry = entry.model_copy(
                update={
                    "difference": None if found is None else AucDifference.of(found),
                    "delong": None if sure is None else AucDifference.of(sure),
                }
            )
        out.append(entry)
    return tuple(sorted(out, key=_rank))


def _rank(entry: Entry) -> tuple[bool, float, float, str]:
    area, apart = auc_of(entry), None if entry.apart is None else entry.apart.vertebra.auc
    return area is None, -(area or 0.0), -((apart and apart.value) or 0.0), entry.name


def auc_of(entry: Entry) -> float | None:
    """AUC a vertebra; None of a method that only locates."""
    auc = entry.figures.vertebra.auc
    return auc.value if auc is not None and entry.figures.judges else None


def cells_of(entry: Entry) -> tuple[str, ...]:
    """A row of the table, as ``HEADS``."""
    figures = entry.figures
    judged = figures.judges
    about = "; ".join(part for part in (entry.source, entry.claim and f"claims: {entry.claim}", entry.note) if part)
    return (
        entry.name,
        "–" if figures.parameters is None else f"{figures.parameters / 1e6:.1f} M",
        shown(figures.vertebra.auc if judged else None),
        "–" if entry.difference is None else _signed(entry.difference),
        shown(entry.apart.vertebra.auc if entry.apart else None),
        shown(figures.patient.auc if judged else None),
        shown(figures.competition_score),
        shown(figures.vertebra.sensitivity if judged else None),
        shown(figures.vertebra.specificity if judged else None),
        shown(figures.vertebra.sensitivity_at.get("0.9") if judged else None),
        shown(figures.locating.identified),
        shown(figures.locating.distance_mm, 1),
        shown(figures.locating.dice),
        shown(figures.boxes.map50 if figures.boxes else None),
        shown(figures.images.macro_f1 if figures.images else None),
        shown(figures.seconds, 1),
        about or "–",
    )


def shown(value: Estimate | float | None, digits: int = 3) -> str:
    """A figure for a table, its interval in brackets; a dash for nothing."""
    if value is None or (isinstance(value, Estimate) and value.value is None):
        return "–"
    if not isinstance(value, Estimate):
        return f"{value:.{digits}f}"
    if value.low is None or value.high is None:
        return f"{value.value:.{digits}f}"
    return f"{value.value:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def _signed(value: AucDifference) -> str:
    return f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


def headline(comparison: Comparison) -> str:
    """The table in one sentence; a row that was trained otherwise is not ranked."""
    alike = [entry for entry in comparison.entries if entry.alike]
    judged = [entry for entry in alike if auc_of(entry) is not None]
    count = len(alike)
    if not judged:
        return f"{count} methods compared"
    best = judged[0]
    return f"{count} methods compared; {best.name} has the largest AUC a vertebra, {auc_of(best):.3f}"


def to_markdown(comparison: Comparison) -> str:
    """The table for a document."""
    lines = [f"# {headline(comparison)}", "", comparison.notice, "", comparison.data + ".", ""]
    lines += [READING, "", f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    lines += [f"| {' | '.join(_plain(cell) for cell in cells_of(entry))} |" for entry in comparison.entries]
    if comparison.failed:
        lines += ["", "Not compared:", ""]
        lines += [f"- `{name}`: {_plain(reason)}" for name, reason in comparison.failed.items()]
    lines += ["", "How:", "", *(f"- {name}: {text}" for name, text in comparison.settings.items())]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A cell's text without what ends a cell."""
    return " ".join(text.replace("|", "/").split())
