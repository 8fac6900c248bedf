"""Backup and restore: everything comes back, and what was changed on the way is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask

from cspine.errors import UsageError
from cspine.web.app import Context
from cspine.web.audit_log import Did
from cspine.web.backup import BackupError, back_up, check, restore
from cspine.web.database import db
from cspine.web.models import ApiToken, Study, User
from web_factory import browser, person, web_app

ADA = "ada@example.org"


def context(app: Flask) -> Context:
    found = app.extensions["cspine"]
    assert isinstance(found, Context)
    return found


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    made = web_app(tmp_path / "old")
    ada = person(made, ADA)
    with made.app_context():
        study = Study(owner_id=ada, facts={"kernel": "bone — ß"}, probability=0.25)
        db.session.add(study)
        db.session.commit()
    folder = context(made).store.study_folder(study.id) / "files"
    folder.mkdir(parents=True)
    (folder / "a.dcm").write_bytes(b"\0pixels")
    browser(made, ADA).send("/account/keys", name="nightly", scopes="read", days="30")
    return made


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_everything_comes_back_in_either_database(
    app: Flask, tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    summary = back_up(context(app).settings, tmp_path / "backup")
    assert check(tmp_path / "backup") == summary
    url = request.getfixturevalue("postgres") if database == "postgresql" else None
    fresh = web_app(tmp_path / "new", database=url)
    settings = context(fresh).settings
    restore(settings, tmp_path / "backup")
    again = web_app(tmp_path / "new", database=url)
    inside = browser(again, ADA)
    assert inside.get("/account/").status_code == 200, "the password still fits: its key came along"
    with again.app_context():
        study = db.session.scalars(sa.select(Study)).one()
        assert (study.facts, study.probability) == ({"kernel": "bone — ß"}, 0.25)
        assert db.session.scalars(sa.select(ApiToken.name)).all() == ["nightly"]
        assert {role.name for role in db.session.scalars(sa.select(User)).one().roles} == {"reader", "uploader"}
    assert (context(again).store.study_folder(study.id) / "files" / "a.dcm").read_bytes() == b"\0pixels"
    assert context(again).audit.verify() is None
    person(again, "new@example.org", "auditor")  # rows that are made now get fresh numbers


def test_what_a_backup_leaves_out(app: Flask, tmp_path: Path) -> None:
    back_up(context(app).settings, tmp_path / "backup")
    names = {path.name for path in (tmp_path / "backup").rglob("*")}
    assert not names & {"login_sessions.jsonl", "throttles.jsonl", "jobs.db", ".turn"}


@pytest.mark.parametrize("harm", ["changed", "missing", "extra", "list"])
def test_a_backup_that_was_changed_is_not_restored(app: Flask, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "backup"
    back_up(context(app).settings, folder)
    victim = folder / "tables" / "users.jsonl"
    if harm == "changed":
        victim.write_text(victim.read_text().replace("ada@", "eve@"))
    elif harm == "missing":
        victim.unlink()
    elif harm == "extra":
        (folder / "tables" / "more.jsonl").write_text("{}")
    else:
        manifest = folder / "manifest.json"
        table = json.loads(manifest.read_text())
        table["rows"] += 1
        manifest.write_text(json.dumps(table))
    with pytest.raises(BackupError):
        restore(context(web_app(tmp_path / "new")).settings, folder)


def test_a_backup_goes_into_an_empty_application_only(app: Flask, tmp_path: Path) -> None:
    back_up(context(app).settings, tmp_path / "backup")
    with pytest.raises(UsageError, match="accounts already"):
        restore(context(app).settings, tmp_path / "backup")
    with pytest.raises(UsageError, match="exists already"):
        back_up(context(app).settings, tmp_path / "backup")


def test_the_trail_goes_on_after_a_restore(app: Flask, tmp_path: Path) -> None:
    back_up(context(app).settings, tmp_path / "backup")
    restore(context(web_app(tmp_path / "new", registration="closed")).settings.model_copy(
        update={"data": tmp_path / "third"}), tmp_path / "backup")  # fmt: skip
    again = web_app(tmp_path / "x", data=tmp_path / "third")
    context(again).audit.write(Did.RESTORED)
    assert context(again).audit.verify() is None
