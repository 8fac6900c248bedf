"""What readers say of a study: rows that are only added, and the state that they come to.

For each level and for the patient the newest row counts. A signature is a row too: it answers for everything before
it, and holds until somebody says something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cspine.errors import CspineError
from cspine.phantoms.fracture_types import FractureType
from cspine.reports.dicom_answers import Reader, ReaderAnswer, Signature, render
from cspine.reports.dicom_answers import Verdict as ReportVerdict
from cspine.web.found import PATIENT, SUBJECTS, Found
from cspine.web.models import Answer, Study, StudyState, User, Verdict, now
from cspine.web.strings import t

SIGN = "sign"
TYPES = tuple(kind.value for kind in FractureType)
LONGEST_COMMENT = 2000


class AnswerError(CspineError):
    """An answer that makes no sense; the message is for the person, in words of the catalogue."""

    code = "answer"
    exit_code = 2


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a reader wants to say.

    Attributes:
        level: of ``SUBJECTS``.
        verdict: on what was found.
        fracture: needed to correct; None then means that it cannot be said.
        type: of the fracture; None leaves it open.
        comment: free text.
    """

    level: str
    verdict: Verdict
    fracture: bool | None = None
    type: str | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """What one reader said of one level.

    Attributes:
        fracture: what the reader holds for true; None when it cannot be said.
        by: name of the reader.
        at: when.
    """

    verdict: str
    fracture: bool | None
    type: str | None
    comment: str
    user_id: str | None
    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of the answers of one study.

    Attributes:
        answers: newest by level.
        version: how many rows there are: counts the states.
        signed: by whom, when nothing was said since.
    """

    answers: Mapping[str, Said] = field(default_factory=dict)
    version: int = 0
    signed: Said | None = None

    @property
    def finished(self) -> bool:
        """The patient was answered."""
        return PATIENT in self.answers


def history(session: Session, study_id: str) -> list[Answer]:
    """All rows of a study, oldest first."""
    query = sa.select(Answer).where(Answer.study_id == study_id).options(sa.orm.joinedload(Answer.user))
    return list(session.scalars(query.order_by(Answer.created, Answer.id)))


def reading_of(rows: Iterable[Answer]) -> Reading:
    """The state that rows of one study come to, oldest first."""
    newest: dict[str, Said] = {}
    version, signed = 0, None
    for row in rows:
        version += 1
        said = _said(row)
        signed = said if row.verdict == SIGN else None
        if row.verdict != SIGN:
            newest[row.level] = said
    ordered = {level: newest[level] for level in SUBJECTS if level in newest}
    return Reading(ordered, version, signed)


def _said(row: Answer) -> Said:
    by = t("answers.gone") if row.user is None else row.user.label
    return Said(row.verdict, row.fracture, row.type, row.comment, row.user_id, by, row.created)


def add(session: Session, study: Study, found: Mapping[str, Found], person: User, proposal: Proposal) -> bool:
    """Say something of one level; the caller commits.

    Returns:
        False when the person's newest word on it is the very same: somebody clicked twice.

    Raises:
        AnswerError: it makes no sense, or the study has no results.
    """
    fracture, kind = stated(found, proposal, ready=study.state == StudyState.DONE)
    comment = proposal.comment.strip()
    row = Answer(
        study_id=study.id, level=proposal.level, verdict=str(proposal.verdict), fracture=fracture, type=kind,
        comment=comment, user_id=person.id,
    )  # fmt: skip
    before = reading_of(history(session, study.id)).answers.get(proposal.level)
    if before is not None and _same(before, row):
        return False
    _append(session, row)
    return True


def accept_rest(session: Session, study: Study, found: Mapping[str, Found], person: User) -> list[str]:
    """Accept everything that was judged and that nobody answered yet; the caller commits. Returns the levels.

    Raises:
        AnswerError: the study has no results.
    """
    answered = reading_of(history(session, study.id)).answers
    open_ones = [level for level, one in found.items() if one.fracture is not None and level not in answered]
    for level in open_ones:
        add(session, study, found, person, Proposal(level, Verdict.ACCEPT))
    return open_ones


def sign(session: Session, study: Study, person: User) -> bool:
    """Answer for everything that was said so far; the caller commits. False when it is signed already.

    Raises:
        AnswerError: the patient was not answered yet.
    """
    reading = reading_of(history(session, study.id))
    if not reading.finished:
        raise AnswerError(t("answers.wrong.sign"))
    if reading.signed is not None:
        return False
    _append(session, Answer(study_id=study.id, level=PATIENT, verdict=SIGN, fracture=None, user_id=person.id))
    return True


def _append(session: Session, row: Answer) -> None:
    """Rows of one study are told apart by their time, so no two have the same, whatever the clock does."""
    last = session.scalar(sa.select(sa.func.max(Answer.created)).where(Answer.study_id == row.study_id))
    moment = now()
    row.created = moment if last is None else max(moment, last + timedelta(microseconds=1))
    session.add(row)
    session.flush()


def stated(
    found: Mapping[str, Found], proposal: Proposal, *, ready: bool = True
) -> tuple[bool | None, str | None]:  # fmt: skip
    """What a proposal says: whether there is a fracture, and its type.

    Raises:
        AnswerError: it makes no sense.
    """
    if not ready or not found:
        raise AnswerError(t("answers.wrong.state"))
    one = found.get(proposal.level)
    if one is None:
        raise AnswerError(t("answers.wrong.level"))
    if len(proposal.comment) > LONGEST_COMMENT:
        raise AnswerError(t("answers.wrong.comment", most=LONGEST_COMMENT))
    if proposal.verdict == Verdict.CORRECT:
        fracture, kind = proposal.fracture, proposal.type
    elif one.fracture is None:
        raise AnswerError(t("answers.wrong.nothing"))
    elif proposal.verdict == Verdict.ACCEPT:
        fracture, kind = one.fracture, proposal.type or (one.type if one.fracture else None)
    else:
        fracture, kind = not one.fracture, proposal.type
    if kind is not None and (fracture is not True or kind not in {*TYPES, one.type}):
        raise AnswerError(t("answers.wrong.type"))
    return fracture, kind


def _same(before: Said, row: Answer) -> bool:
    told = (before.verdict, before.fracture, before.type, before.comment, before.user_id)
    return told == (row.verdict, row.fracture, row.type, row.comment, row.user_id)


def structured_report(computed: bytes, reading: Reading) -> bytes:
    """The computed structured report with the answers, as a new version of it.

    Raises:
        UsageError: nothing was answered, or ``computed`` is no structured report of cspine.
    """
    answers = [
        ReaderAnswer(
            level, ReportVerdict(said.verdict), said.fracture, said.type, said.comment, Reader(said.by), said.at
        )
        for level, said in reading.answers.items()
    ]
    signed = reading.signed
    signature = None if signed is None else Signature(Reader(signed.by), signed.at)
    return render(computed, answers, version=max(1, reading.version), signature=signature)
