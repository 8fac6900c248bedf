"""Studies for tests of the web application: rows with results that lie where a run would have put them."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from flask import Flask

from cspine.findings import Findings
from cspine.reports import words
from cspine.web.app import context
from cspine.web.database import db
from cspine.web.models import Answer, Group, Job, Membership, Study, StudyShare, User, now
from report_factory import make_findings
from web_factory import Browser, browser

RUN = "run-1"
# C5 fractured, C7 not judged.
USUAL = (0.02, 0.06, 0.1, 0.03, 0.86, 0.2, None)
CLEAR = (0.02, 0.03, 0.02, 0.03, 0.04, 0.02, 0.03)


def fresh(name: str = "ada") -> str:
    """An e-mail address that nobody has yet."""
    return f"{name}-{uuid.uuid4().hex[:8]}@example.org"


def visit(app: Flask, user: str) -> Browser:
    """A browser, logged in as a person."""
    with app.app_context():
        return browser(app, db.session.get_one(User, user).email)


def findings_of(probabilities: Sequence[float | None] = USUAL) -> Findings:
    """Findings with these probabilities of C1 to C7."""
    return make_findings(tuple(probabilities))


def add_study(
    app: Flask,
    owner: str,
    *,
    findings: Findings | None = None,
    files: Path | None = None,
    hours_ago: float = 1.0,
    groups: Sequence[str] = (),
    **fields: Any,
) -> str:
    """A study of a person; returns its id.

    Args:
        app: the application.
        owner: id of the person.
        findings: that it was judged with; ``state`` then is done.
        files: folder whose files become its results, beside ``findings.json``.
        hours_ago: when it came in.
        groups: ids of groups that it is shared with.
        fields: of ``Study``.
    """
    if findings is not None:
        said = {"state": "done", "probability": findings.patient.probability, "result": RUN}
        said |= {"positive": words.suspected(findings), "headline": words.headline(findings)}
        fields = said | fields
    with app.app_context():
        study = Study(owner_id=owner, created=now() - timedelta(hours=hours_ago), **{"title": "CT neck", **fields})
        study.shares = [StudyShare(group_id=group) for group in groups]
        db.session.add(study)
        db.session.commit()
        if findings is not None:
            folder = context().store.run_folder(study.id, RUN)
            folder.mkdir(parents=True)
            if files is not None:
                shutil.copytree(files, folder, dirs_exist_ok=True)
            (folder / "findings.json").write_text(findings.to_json())
        return study.id


def add_group(app: Flask, name: str, *members: str) -> str:
    """A group with members; returns its id."""
    with app.app_context():
        group = Group(name=name, members=[Membership(user_id=member) for member in members])
        db.session.add(group)
        db.session.commit()
        return group.id


def add_answers(app: Flask, study: str, reader: str, **levels: bool | None) -> None:
    """Answers of a reader: whether there is a fracture, by level."""
    with app.app_context():
        for level, fracture in levels.items():
            row = Answer(study_id=study, level=level, verdict="correct", fracture=fracture, user_id=reader)
            row.created = now()
            db.session.add(row)
            db.session.flush()
        db.session.commit()


def add_job(app: Flask, study: str, owner: str, state: str = "done", **fields: Any) -> str:
    """A job of a study; returns its id."""
    with app.app_context():
        job = Job(study_id=study, owner_id=owner, state=state, **fields)
        db.session.add(job)
        db.session.commit()
        return job.id
