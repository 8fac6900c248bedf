"""``/dashboard``: do readers agree, what is a statement worth here, has the input changed, how fast is the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from flask import Blueprint, render_template, request
from markupsafe import Markup

from cspine.evaluation.metrics import Interval
from cspine.evaluation.reader_agreement import Agreement, predictive_value_at
from cspine.node.drift import ALARM, FEWEST, NOTICE, Drift
from cspine.web import charts
from cspine.web.access import is_administrator, need_role, visible_studies
from cspine.web.app import context
from cspine.web.dashboard_figures import Chosen, Day, agreements, days, drifts, speed
from cspine.web.database import db
from cspine.web.models import RoleName, Study, StudyState
from cspine.web.strings import t
from cspine.web.worklist_query import since

blueprint = Blueprint("dashboard", __name__)
PERIODS = (30, 90, 365)
# Days that are drawn.
DRAWN = 30
# PSI at which the bar of a feature is full.
_FULL_PSI = 0.5


@dataclass(frozen=True, slots=True)
class Line:
    """A figure with its interval, ready for the page."""

    name: str
    hint: str
    text: str
    drawing: Markup


@blueprint.get("/dashboard")
@need_role(RoleName.READER, RoleName.ADMINISTRATOR)
def index() -> str:
    """The dashboard."""
    period = next((one for one in PERIODS if str(one) == request.args.get("days")), 90)
    chosen = _chosen().where(Study.created >= since(period))
    found = agreements(db.session, chosen, context().store)
    prevalence = _prevalence(found.patient)
    drift = drifts(db.session, _chosen())
    lately = days(db.session, _chosen(), DRAWN)
    return render_template(
        "dashboard/index.html", period=period, periods=PERIODS, found=found, everything=is_administrator(),
        patient=_lines(found.patient), levels=_lines(found.levels), by_level=_by_level(found.by_level),
        worth=_worth(found.patient, prevalence), prevalence=prevalence,
        stated=request.args.get("prevalence", ""), drift=[(one, _drift(one)) for one in drift], fewest=FEWEST,
        lately=lately, came=_came(lately), waited=_waited(lately), speed=speed(db.session, chosen, period),
        duration=duration, drawn=DRAWN,
    )  # fmt: skip


def _chosen() -> Chosen:
    """Studies that count: those one may read; for administrators, who see none of them, the sums of all."""
    if is_administrator():
        return sa.select(Study).where(Study.state != StudyState.DELETED)
    return visible_studies()


def _prevalence(patient: Agreement) -> float | None:
    """What the person stated, in percent; else the share of fractures in the readers' answers."""
    text = request.args.get("prevalence", "").replace(",", ".").removesuffix("%").strip()
    try:
        stated = float(text) / 100
    except ValueError:
        stated = 0.0
    if 0 < stated < 1:
        return stated
    counted = patient.prevalence
    return counted.value if counted is not None and 0 < counted.value < 1 else None


def _lines(figures: Agreement) -> list[Line]:
    broken, whole = figures.both + figures.read_only, figures.found_only + figures.neither
    table = (
        ("agreement", figures.agreement, figures.statements),
        ("kappa", figures.kappa, figures.statements),
        ("sensitivity", figures.sensitivity, broken),
        ("specificity", figures.specificity, whole),
        ("predictive-value", figures.predictive_value, figures.confirmed),
    )
    return [_line(key, value, count) for key, value, count in table if value is not None]


def _line(key: str, value: Interval, count: int) -> Line:
    name = t(f"dashboard.figure.{key}")
    text = range_of(value, share=key != "kappa")
    low, high = (max(0.0, bound) if bound == bound else bound for bound in (value.low, value.high))
    drawing = charts.interval(max(0.0, value.value), low, high, f"{name}: {text}")
    return Line(name, t(f"dashboard.hint.{key}", count=count), text, drawing)


def _by_level(rows: Mapping[str, Agreement]) -> list[tuple[str, Agreement, str, Markup]]:
    made = []
    for name, figures in rows.items():
        if figures.agreement is not None:
            text = range_of(figures.agreement)
            one = figures.agreement
            made.append((name, figures, text, charts.interval(one.value, one.low, one.high, f"{name}: {text}")))
    return made


def _worth(patient: Agreement, prevalence: float | None) -> Line | None:
    """The predictive value at the prevalence here."""
    value = None if prevalence is None else predictive_value_at(patient, prevalence)
    if value is None or value.value != value.value:
        return None
    return _line("predictive-value", value, patient.confirmed)


def range_of(value: Interval, *, share: bool = True) -> str:
    """``91 % (84 to 95)``; kappa as ``0.81 (0.70 to 0.92)``; without an interval the value alone."""
    if value.low != value.low:
        return f"{100 * value.value:.0f} %" if share else f"{value.value:.2f}"
    if share:
        return t(
            "dashboard.range",
            value=f"{100 * value.value:.0f} %",
            low=f"{100 * value.low:.0f}",
            high=f"{100 * value.high:.0f}",
        )
    return t("dashboard.range", value=f"{value.value:.2f}", low=f"{value.low:.2f}", high=f"{value.high:.2f}")


def _drift(one: Drift) -> Markup:
    text = t("dashboard.drift.bar", feature=t(f"dashboard.feature.{one.feature}"), psi=f"{one.psi:.2f}")
    return charts.scale(one.psi, (NOTICE, ALARM), _FULL_PSI, text, alert=one.state == "alarm")


def _tick(number: int, one: Day) -> str:
    return f"{one.day.day} {one.day:%b}" if number % 5 == 4 else ""


def _came(lately: Sequence[Day]) -> Markup:
    values = [
        charts.Bar(
            t("dashboard.day", day=one.day, came=one.came, done=one.done, bad=one.ended_badly),
            one.done, one.ended_badly, _tick(number, one),
        )
        for number, one in enumerate(lately)
    ]  # fmt: skip
    return charts.bars(values, t("dashboard.judged-label", count=sum(one.done for one in lately), days=DRAWN))


def _waited(lately: Sequence[Day]) -> Markup:
    values = [
        charts.Bar(
            t("dashboard.day-waited", day=one.day, waited=duration(one.waited), worked=duration(one.worked)),
            None if one.waited is None else one.waited / 60, (one.worked or 0.0) / 60, _tick(number, one),
        )
        for number, one in enumerate(lately)
    ]  # fmt: skip
    return charts.bars(values, t("dashboard.waited-label", days=DRAWN))


def duration(seconds: float | None) -> str:
    """``42 s``, ``3 min``, ``1.5 h``; a dash for none."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
