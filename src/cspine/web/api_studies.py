"""The API's operations on studies: what was found, what is taken away, who may see it, what readers say."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from uuid import UUID

import sqlalchemy as sa
from flask import Response, abort, g

from cspine.web import answers, artefacts, deletion, worklist_query
from cspine.web import api_models as m
from cspine.web.access import SCOPES, current_user, study_of, visible_studies
from cspine.web.answer_log import Proposal
from cspine.web.api_spec import ANSWER, EITHER, READ, READER, UPLOAD, Operation, api
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.found import FINDINGS_FILE, PICTURES_FILE
from cspine.web.models import Group, Membership, Study, StudyShare, Verdict
from cspine.web.strings import t


@api.operation(Operation("GET", "/me", "account", "me", READ, answer=m.Me))
def me() -> m.Me:
    """Who asks."""
    person, token = current_user(), g.get("api_token")
    scopes = list(SCOPES) if token is None else sorted(token.scopes)
    return m.Me(id=UUID(person.id), name=person.label, roles=sorted(role.name for role in person.roles), scopes=scopes)


@api.operation(Operation("GET", "/studies", "studies", "list_studies", READ, EITHER, m.Studies, query=m.StudyQuery))
def list_studies(query: m.StudyQuery) -> m.Studies:
    """One page of the studies that the person may read."""
    chosen = _narrowed(query)
    total = db.session.scalar(sa.select(sa.func.count()).select_from(chosen.subquery())) or 0
    ordered = (
        worklist_query.ordered(chosen, query.order).limit(query.per_page).offset((query.page - 1) * query.per_page)
    )
    found = list(db.session.scalars(ordered))
    pages = max(1, -(-total // query.per_page))
    return m.Studies(studies=_studies(found), total=total, page=query.page, pages=pages)


def _narrowed(query: m.StudyQuery) -> sa.Select[Study]:
    chosen = visible_studies()
    if query.state is not None:
        chosen = chosen.where(Study.state == query.state)
    if query.since is not None:
        chosen = chosen.where(Study.created >= datetime.combine(query.since, time(), UTC))
    if query.until is not None:
        chosen = chosen.where(Study.created < datetime.combine(query.until, time(), UTC) + timedelta(days=1))
    if query.owner is not None:
        chosen = chosen.where(Study.owner_id == (current_user().id if query.owner == "me" else str(query.owner)))
    if query.group is not None:
        shared = sa.exists().where(StudyShare.study_id == Study.id, StudyShare.group_id == str(query.group))
        chosen = chosen.where(shared)
    if query.answered is not None:
        chosen = chosen.where(worklist_query.answered() == query.answered)
    return chosen


def _studies(found: list[Study]) -> list[m.StudyOut]:
    ids = [study.id for study in found]
    read = set(db.session.scalars(sa.select(Study.id).where(Study.id.in_(ids), worklist_query.answered())))
    mine = current_user().id
    return [_study(study, mine=study.owner_id == mine, answered=study.id in read) for study in found]


def _study(study: Study, *, mine: bool, answered: bool) -> m.StudyOut:
    shown = ("slices", "rows", "columns", "spacing", "coverage", "thickness", "kernel", "maker", "warnings")
    fields = ("kind", "state", "title", "patient_label", "created", "headline", "probability", "positive")
    return m.StudyOut(
        id=UUID(study.id), mine=mine, answered=answered, opened=study.read_at, study_uid=study.study_uid,
        series_uid=study.series_uid, facts={name: study.facts[name] for name in shown if name in study.facts},
        **{name: getattr(study, name) for name in fields},
    )  # fmt: skip


_STUDY = "/studies/<uuid:study_id>"


@api.operation(Operation("GET", _STUDY, "studies", "get_study", READ, EITHER, m.StudyOut))
def get_study(study_id: UUID) -> m.StudyOut:
    """One study."""
    return _studies([study_of(str(study_id))])[0]


@api.operation(Operation("DELETE", _STUDY, "studies", "delete_study", UPLOAD, EITHER, None, 204))
def delete_study(study_id: UUID) -> None:
    """Delete a study with its images, results and answers."""
    deletion.delete_study(study_of(str(study_id), write=True), by=current_user().id)


@api.operation(Operation("GET", f"{_STUDY}/findings", "studies", "get_findings", READ, EITHER, "application/json"))
def get_findings(study_id: UUID) -> Response:
    """What was found, in the published schema."""
    study = study_of(str(study_id))
    folder = context().store.results(study)
    name = next((one for one in (FINDINGS_FILE, PICTURES_FILE) if folder and (folder / one).is_file()), None)
    if name is None:
        abort(404, t("artefacts.none"))
    return artefacts.answer_with(study, name, inline=True)


@api.operation(Operation("GET", f"{_STUDY}/results", "studies", "list_results", READ, EITHER, m.Results))
def list_results(study_id: UUID) -> m.Results:
    """What can be fetched of a study."""
    return m.Results.model_validate({"results": artefacts.as_json(study_of(str(study_id)))})


@api.operation(Operation("GET", f"{_STUDY}/results/<name>", "studies", "get_result", READ, EITHER, "*/*"))
def get_result(study_id: UUID, name: str) -> Response:
    """One result."""
    return artefacts.answer_with(study_of(str(study_id)), name)


# Sharing -------------------------------------------------------------------------------------------------------------


@api.operation(Operation("GET", "/groups", "sharing", "list_groups", READ, answer=m.Groups))
def list_groups() -> m.Groups:
    """The person's groups."""
    return _groups(worklist_query.groups(db.session, current_user()))


@api.operation(Operation("GET", f"{_STUDY}/groups", "sharing", "list_shares", READ, EITHER, m.Groups))
def list_shares(study_id: UUID) -> m.Groups:
    """Groups that may read a study of one's own."""
    study = study_of(str(study_id), write=True)
    return _groups([row.group for row in study.shares])


def _groups(found: list[Group]) -> m.Groups:
    ordered = sorted(found, key=lambda one: one.name)
    return m.Groups(groups=[m.GroupOut(id=UUID(one.id), name=one.name) for one in ordered])


_SHARE = f"{_STUDY}/groups/<uuid:group_id>"


@api.operation(Operation("PUT", _SHARE, "sharing", "share_study", UPLOAD, EITHER, None, 204))
def share_study(study_id: UUID, group_id: UUID) -> None:
    """Let a group that one is in read a study of one's own."""
    study = study_of(str(study_id), write=True)
    if db.session.get(Membership, (str(group_id), current_user().id)) is None:
        abort(404)
    if db.session.get(StudyShare, (study.id, str(group_id))) is None:
        context().audit.write(Did.SHARED, study=study.id, detail=str(group_id))
        db.session.add(StudyShare(study_id=study.id, group_id=str(group_id)))
        db.session.commit()


@api.operation(Operation("DELETE", _SHARE, "sharing", "unshare_study", UPLOAD, EITHER, None, 204))
def unshare_study(study_id: UUID, group_id: UUID) -> None:
    """Take a study back from a group."""
    study = study_of(str(study_id), write=True)
    row = db.session.get(StudyShare, (study.id, str(group_id)))
    if row is None:
        abort(404)
    context().audit.write(Did.UNSHARED, study=study.id, detail=str(group_id))
    db.session.delete(row)
    db.session.commit()


# Answers -------------------------------------------------------------------------------------------------------------


@api.operation(Operation("GET", f"{_STUDY}/answers", "answers", "get_answers", READ, EITHER, m.AnswersOut))
def get_answers(study_id: UUID) -> m.AnswersOut:
    """What was found and answered, level by level."""
    return _answers(study_of(str(study_id)))


@api.operation(
    Operation("POST", f"{_STUDY}/answers", "answers", "answer", ANSWER, READER, m.AnswersOut, 201, 200, body=m.AnswerIn)
)
def answer(study_id: UUID, body: m.AnswerIn) -> tuple[m.AnswersOut, int]:
    """Answer one level or the patient; the same answer twice in a row is one."""
    study = study_of(str(study_id))
    proposal = Proposal(body.level, Verdict(body.verdict), body.fracture, body.type, body.comment)
    added = answers.answer(study, proposal)
    return _answers(study), 201 if added else 200


@api.operation(
    Operation(
        "POST", f"{_STUDY}/signature", "answers", "sign", ANSWER, READER, m.AnswersOut, 201, 200, refusals=(422,)
    )
)  # fmt: skip
def sign(study_id: UUID) -> tuple[m.AnswersOut, int]:
    """Answer for everything that was said so far."""
    study = study_of(str(study_id))
    added = answers.sign(study)
    return _answers(study), 201 if added else 200


def _answers(study: Study) -> m.AnswersOut:
    return m.AnswersOut.model_validate(answers.state_of(study))
