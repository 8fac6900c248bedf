"""What the database is told of an upload that was looked at: its state and its studies, in one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cspine.web.database import Sessions
from cspine.web.job_records import changed
from cspine.web.models import Study, StudyState, Upload, UploadFile, UploadState
from cspine.web.orders import StudyFound
from cspine.web.strings import t


def study_id_of(upload_id: str, number: int) -> str:
    """The id that a study of an upload gets: the same whenever it is asked for, so that nothing is taken twice."""
    return str(uuid.uuid5(uuid.UUID(upload_id), str(number)))


def settle(
    sessions: Sessions, upload_id: str, state: str, message: str, facts: dict[str, Any], studies: Sequence[StudyFound]
) -> bool:
    """Change an upload that is being recognised, with its studies; false when somebody was faster.

    Args:
        sessions: makes database sessions.
        upload_id: which.
        state: that follows.
        message: for its owner.
        facts: about the whole.
        studies: in the order of their numbers.
    """
    with sessions.begin() as session:
        rows = session.scalars(sa.select(UploadFile).where(UploadFile.upload_id == upload_id)).all()
        whole = {"files": len(rows), "bytes": sum(row.size for row in rows)}
        this = sa.update(Upload).where(Upload.id == upload_id, Upload.state == UploadState.RECOGNISING)
        if not changed(session, this.values(state=state, message=message, facts={**whole, **facts})):
            return False
        if state != UploadState.RECEIVING:  # names of files may say who it is
            session.execute(sa.delete(UploadFile).where(UploadFile.upload_id == upload_id))
        upload = session.get_one(Upload, upload_id)
        for number, found in enumerate(studies):
            _add_study(session, upload, number, found)
    return True


def _add_study(session: Session, upload: Upload, number: int, found: StudyFound) -> None:
    study_id = study_id_of(upload.id, number)
    if session.get(Study, study_id) is not None:
        return
    notes = [one.model_dump(exclude={"name"}) for one in found.notes]
    if found.series_uid and _is_there(session, upload.owner_id, found.series_uid):
        notes.append({"code": "twice", "message": t("uploads.warning.twice")})
    session.add(
        Study(
            id=study_id,
            owner_id=upload.owner_id,
            upload_id=upload.id,
            kind=found.kind,
            title=found.title[:200],
            patient_label=found.patient_label[:200],
            study_uid=found.study_uid,
            series_uid=found.series_uid,
            facts={**found.facts, "warnings": notes, "series": [one.model_dump() for one in found.series]},
        )
    )
    session.flush()


def _is_there(session: Session, owner_id: str, series_uid: str) -> bool:
    """Whether a person has a study of this series."""
    same = Study.series_uid == series_uid, Study.owner_id == owner_id, Study.state != StudyState.DELETED
    return session.scalar(sa.select(Study.id).where(*same).limit(1)) is not None
