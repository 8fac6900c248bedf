"""Deletion that is proven, what retention takes, and what a crash leaves."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask

from cspine.errors import OutputError
from cspine.web import deletion
from cspine.web.app import Context
from cspine.web.database import db
from cspine.web.models import Answer, Deletion, Study, StudyState, Upload, User, new_id, now
from web_factory import browser, person, web_app

ADA, BEN = "ada@example.org", "ben@example.org"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    made = web_app(tmp_path, retention_days=30)
    made.config["ada"], made.config["ben"] = person(made, ADA), person(made, BEN)
    return made


def context(app: Flask) -> Context:
    found = app.extensions["cspine"]
    assert isinstance(found, Context)
    return found


def study_with_files(app: Flask, owner: str, *, days: float = 0.0) -> str:
    with app.app_context():
        made = Study(owner_id=owner, created=now() - timedelta(days=days))
        db.session.add(made)
        db.session.commit()
    folder = context(app).store.study_folder(made.id)
    for name, text in (("files/a.dcm", "pixels"), ("results/r1/findings.json", "{}")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    return made.id


def proofs(app: Flask) -> list[Deletion]:
    with app.app_context():
        return list(db.session.scalars(sa.select(Deletion)))


def test_a_deleted_study_leaves_a_proof_and_nothing_else(app: Flask) -> None:
    study = study_with_files(app, app.config["ada"])
    folder = context(app).store.study_folder(study)
    listed = sorted(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in folder.rglob("*.*")
    )
    drawn = app.extensions["viewing-pictures"]
    drawn.put((study, "axial", 3), b"a slice")
    inside = browser(app, ADA)
    assert inside.send(f"/studies/{study}/delete").status_code == 302
    assert drawn.get((study, "axial", 3)) is None
    (proof,) = proofs(app)
    assert (proof.files, proof.digest) == (2, hashlib.sha256("".join(listed).encode()).hexdigest())
    assert proof.when is not None and proof.by == app.config["ada"] and study not in proof.what
    assert not folder.exists()
    with app.app_context():
        assert db.session.get(Study, study) is None
    trail = context(app).audit.folder.joinpath("audit.jsonl").read_text()
    assert proof.digest in trail and study not in trail


def test_retention_takes_old_studies_and_leaves_the_rest(app: Flask) -> None:
    old, young = (study_with_files(app, app.config["ada"], days=days) for days in (31, 29))
    with app.app_context():
        assert deletion.sweep() == 1
        assert db.session.get(Study, old) is None and db.session.get(Study, young) is not None
    assert [(proof.why, proof.by) for proof in proofs(app)] == [("retention", None)]


def test_a_deletion_that_a_crash_interrupted_is_finished_with_its_first_proof(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_with_files(app, app.config["ada"])
    store = context(app).store

    def die(_: object, name: str) -> None:
        (store.study_folder(name) / "files" / "a.dcm").unlink()
        raise OSError(5, "the power went")

    with app.app_context(), monkeypatch.context() as broken:
        broken.setattr(type(store), "delete_study", die)
        with pytest.raises(OSError, match="power"):
            deletion.delete_study(db.session.get_one(Study, study))
    with app.app_context():
        assert db.session.get_one(Study, study).state == StudyState.DELETED
    assert browser(app, ADA).get(f"/studies/{study}/sharing").status_code == 404
    with app.app_context():
        deletion.sweep()
    (proof,) = proofs(app)
    assert proof.files == 2 and proof.when is not None
    assert not store.study_folder(study).exists()


def test_a_proof_is_not_finished_while_files_are_there(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_with_files(app, app.config["ada"])
    with app.app_context():
        monkeypatch.setattr(type(context(app).store), "delete_study", lambda *_: [])
        with pytest.raises(OutputError, match="still there"):
            deletion.delete_study(db.session.get_one(Study, study))
    assert [proof.when for proof in proofs(app)] == [None]


def test_folders_that_no_row_knows_are_swept_after_a_while(app: Flask) -> None:
    orphan = context(app).store.study_folder(new_id())
    orphan.mkdir(parents=True)
    (orphan / "late.json").write_text("x")
    with app.app_context():
        deletion.sweep()
        assert orphan.exists(), "somebody may be writing it"
        os.utime(orphan, (0, 0))
        deletion.sweep()
    assert not orphan.exists() and [proof.why for proof in proofs(app)] == ["leftover"]


def test_uploads_that_nobody_goes_on_with_are_swept(app: Flask) -> None:
    with app.app_context():
        for days in (1, 4):
            db.session.add(Upload(owner_id=app.config["ada"], created=now() - timedelta(days=days)))
        db.session.commit()
        deletion.sweep()
        assert db.session.scalar(sa.select(sa.func.count()).select_from(Upload)) == 1


def test_an_account_goes_with_all_it_owns_and_what_it_said_elsewhere_stays_without_name(app: Flask) -> None:
    mine, other = study_with_files(app, app.config["ada"]), study_with_files(app, app.config["ben"])
    with app.app_context():
        db.session.add(Answer(study_id=other, level="C2", verdict="accept", user_id=app.config["ada"]))
        db.session.commit()
    inside = browser(app, ADA)
    assert inside.send("/account/delete", email="somebody@example.org").status_code == 400
    page = inside.send("/account/delete", email=ADA).get_data(as_text=True)
    (proof,) = proofs(app)
    assert proof.digest in page and proof.why == "account"
    assert inside.get("/account/").status_code == 302
    with app.app_context():
        assert db.session.get(User, app.config["ada"]) is None and db.session.get(Study, mine) is None
        assert db.session.get(Study, other) is not None
        assert db.session.scalars(sa.select(Answer.user_id)).all() == [None]


def test_nobody_deletes_the_study_of_another(app: Flask) -> None:
    study = study_with_files(app, app.config["ada"])
    assert browser(app, BEN).send(f"/studies/{study}/delete").status_code == 404
    assert proofs(app) == []
