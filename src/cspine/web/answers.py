"""Answers of readers: the page with its form, the same for scripts of our pages, and what is taken away from them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from typing import Any

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from cspine.reports.summary import text_cell
from cspine.web import answer_log
from cspine.web.access import current_user, has_role, need_role, study_of, visible_studies
from cspine.web.answer_log import SIGN, AnswerError, Proposal, Reading
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.found import PATIENT, SUBJECTS, Found, found_in
from cspine.web.models import Answer, RoleName, Study, Verdict
from cspine.web.strings import t

blueprint = Blueprint("answers", __name__)
REST = "all"
COLUMNS = (
    "study_id", "study", "level", "found_fracture", "found_probability", "found_type", "verdict", "fracture", "type",
    "comment", "reader", "time", "counts",
)  # fmt: skip
# What a form's choice stands for.
_CHOICES = {"yes": True, "no": False, "unsure": None}


@blueprint.get("/studies/<study_id>/answers")
@need_role(RoleName.READER, RoleName.UPLOADER)
def page(study_id: str) -> str:
    """What was found and what was answered, level by level, with a form for those who read."""
    study = study_of(study_id)
    results = context().store.results(study)
    found, rows = found_in(results), answer_log.history(db.session, study.id)
    return render_template(
        "answers/page.html", study=study, found=found, subjects=[name for name in SUBJECTS if name in found],
        reading=answer_log.reading_of(rows), history=rows[::-1], types=answer_log.TYPES, may_answer=may_answer(),
        longest=answer_log.LONGEST_COMMENT, sign=SIGN, patient=PATIENT,
        has_sr=results is not None and (results / "sr.dcm").is_file(),
    )  # fmt: skip


@blueprint.post("/studies/<study_id>/answers")
@need_role(RoleName.READER)
def submit(study_id: str) -> Response:
    """Take the form; a wrong one is said on the page."""
    study, form = study_of(study_id), request.form
    level = form.get("level", "")
    try:
        if form.get("act") == SIGN:
            sign(study)
        elif form.get("act") == REST:
            answer_rest(study)
        else:
            answer(study, _from_form(level))
    except (AnswerError, ValueError) as error:
        flash(error.message if isinstance(error, AnswerError) else t("answers.wrong.form"), "alert")
    return redirect(url_for(".page", study_id=study.id, _anchor=level if level in SUBJECTS else None), 303)


@blueprint.get("/studies/<study_id>/answers.json")
@need_role(RoleName.READER, RoleName.UPLOADER)
def state(study_id: str) -> ResponseReturnValue:
    """The same for scripts of our pages."""
    return state_of(study_of(study_id))


@blueprint.post("/studies/<study_id>/answers.json")
@need_role(RoleName.READER)
def submit_json(study_id: str) -> ResponseReturnValue:
    """Take one answer, ``{"level": "all", "verdict": "accept"}`` for all that are open, or ``"verdict": "sign"``."""
    study, body = study_of(study_id), request.get_json(silent=True)
    if not isinstance(body, dict):
        return _no(t("answers.wrong.form"), 400)
    try:
        if body.get("verdict") == SIGN:
            added = sign(study)
        elif body.get("level") == REST:
            added = bool(answer_rest(study))
        else:
            added = answer(study, proposal_of(body))
    except AnswerError as error:
        return _no(error.message)
    except ValueError:
        return _no(t("answers.wrong.form"))
    return state_of(study), 201 if added else 200


def _no(message: str, status: int = 422) -> ResponseReturnValue:
    """A refusal for scripts, whatever the request says it accepts."""
    return {"error": AnswerError.code, "message": message}, status


@blueprint.get("/answers.csv")
@need_role(RoleName.READER)
def table() -> Response:
    """All answers in all studies that the person may read."""
    chosen = visible_studies().where(Study.answers.any()).order_by(Study.created, Study.id)
    studies = list(db.session.scalars(chosen))
    context().audit.write(Did.DOWNLOADED, detail="answers.csv", count=len(studies))
    made = Response(table_bytes([row for study in studies for row in csv_rows(study)]), mimetype="text/csv")
    made.headers["Content-Disposition"] = 'attachment; filename="cspine-answers.csv"'
    return made


def may_answer() -> bool:
    """Whether the person who asks reads studies."""
    return has_role(RoleName.READER)


def answer(study: Study, proposal: Proposal) -> bool:
    """Say something of one level, with a line in the trail; False when it was said already.

    Raises:
        AnswerError: it makes no sense.
    """
    found = found_in(context().store.results(study))
    added = answer_log.add(db.session, study, found, current_user(), proposal)
    if added:
        _keep(study, f"{proposal.level} {proposal.verdict}")
    return added


def answer_rest(study: Study) -> list[str]:
    """Accept what is open; returns the levels.

    Raises:
        AnswerError: there are no results.
    """
    found = found_in(context().store.results(study))
    levels = answer_log.accept_rest(db.session, study, found, current_user())
    if levels:
        _keep(study, f"{' '.join(levels)} accept")
    return levels


def sign(study: Study) -> bool:
    """Answer for all of it; False when that was done already.

    Raises:
        AnswerError: the patient was not answered yet.
    """
    added = answer_log.sign(db.session, study, current_user())
    if added:
        _keep(study, SIGN)
    return added


def _keep(study: Study, detail: str) -> None:
    """The trail first: an answer that cannot be written down there is not given."""
    context().audit.write(Did.ANSWERED, study=study.id, detail=detail)
    db.session.commit()


def proposal_of(body: Mapping[str, Any]) -> Proposal:
    """An answer from JSON.

    Raises:
        ValueError: a value is of the wrong kind.
    """
    fracture, kind, comment = body.get("fracture"), body.get("type"), body.get("comment", "")
    if not (fracture is None or isinstance(fracture, bool)) or not (kind is None or isinstance(kind, str)):
        raise ValueError("expected fracture true, false or null, and type text or null")
    if not isinstance(comment, str):
        raise ValueError("expected text")
    return Proposal(str(body.get("level", "")), Verdict(body.get("verdict", "")), fracture, kind or None, comment)


def _from_form(level: str) -> Proposal:
    form = request.form
    verdict = Verdict(form.get("verdict", ""))
    fracture = _CHOICES.get(form.get("fracture", ""))
    if verdict == Verdict.CORRECT and form.get("fracture") not in _CHOICES:
        raise AnswerError(t("answers.wrong.choice"))
    # A type that stands in the form beside "no fracture" is left over from before.
    kind = form.get("type") or None
    return Proposal(level, verdict, fracture, kind if fracture else None, form.get("comment", ""))


def state_of(study: Study) -> dict[str, Any]:
    """What was found and answered, as JSON."""
    found = found_in(context().store.results(study))
    reading = answer_log.reading_of(answer_log.history(db.session, study.id))
    table = {name: _entry(found[name], reading, name) for name in SUBJECTS if name in found}
    signed = reading.signed
    return {
        "study": study.id,
        "version": reading.version,
        "signed": None if signed is None else {"by": signed.by, "at": signed.at.isoformat()},
        "may_answer": may_answer(),
        "types": list(answer_log.TYPES),
        "levels": {name: entry for name, entry in table.items() if name != PATIENT},
        "patient": table.get(PATIENT),
    }


def _entry(one: Found, reading: Reading, name: str) -> dict[str, Any]:
    said = reading.answers.get(name)
    return {
        "found": one.fracture,
        "probability": one.probability,
        "type": one.type,
        "not_judged": one.not_judged or None,
        "answer": None
        if said is None
        else {
            "verdict": said.verdict,
            "fracture": said.fracture,
            "type": said.type,
            "comment": said.comment,
            "by": said.by,
            "at": said.at.isoformat(),
        },
    }


def csv_rows(study: Study) -> list[dict[str, str]]:
    """One row for each answer and signature of a study, oldest first; ``counts`` says which hold."""
    found = found_in(context().store.results(study))
    rows = answer_log.history(db.session, study.id)
    newest = {row.level: row.id for row in rows if row.verdict != SIGN}
    last = rows[-1].id if rows else None
    return [_csv_row(study, row, found, row.id in (newest.get(row.level), last)) for row in rows]


def _csv_row(study: Study, row: Answer, found: Mapping[str, Found], counts: bool) -> dict[str, str]:
    one = found.get(row.level, Found()) if row.verdict != SIGN else Found()
    cells = {
        "study_id": study.id,
        "study": text_cell(study.title),
        "level": row.level,
        "found_fracture": _flag(one.fracture),
        "found_probability": "" if one.probability is None else f"{one.probability:.4f}",
        "found_type": one.type or "",
        "verdict": row.verdict,
        "fracture": _flag(row.fracture),
        "type": row.type or "",
        "comment": text_cell(row.comment),
        "reader": text_cell(t("answers.gone") if row.user is None else row.user.label),
        "time": row.created.isoformat(timespec="seconds"),
        "counts": _flag(counts),
    }
    return {name: cells[name] for name in COLUMNS}


def _flag(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def table_bytes(rows: list[dict[str, str]]) -> bytes:
    """A table as CSV, with the mark that makes spreadsheets read UTF-8."""
    stream = StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8-sig")
