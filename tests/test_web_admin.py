"""Roles, invitations, groups and sharing: who may do what, and who sees which study."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_login import login_user
from werkzeug.exceptions import HTTPException

from cspine.web.access import study_of, visible_studies
from cspine.web.database import db
from cspine.web.models import Group, Study, User
from web_factory import PASSWORD, Browser, browser, person, web_app

ROOT, ADA, BEN = "root@example.org", "ada@example.org", "ben@example.org"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    made = web_app(tmp_path)
    person(made, ROOT, "administrator")
    made.config["ada"], made.config["ben"] = person(made, ADA), person(made, BEN, "reader")
    return made


def study_by(app: Flask, owner: str) -> str:
    with app.app_context():
        made = Study(owner_id=owner, title="a study")
        db.session.add(made)
        db.session.commit()
        return made.id


def new_group(app: Flask, root: Browser, name: str, *members: str) -> str:
    root.send("/groups", name=name)
    with app.app_context():
        group = db.session.scalars(sa.select(Group.id).where(Group.name == name)).one()
    for email in members:
        assert root.send(f"/groups/{group}/members", email=email).status_code == 302
    return group


PAGES = {
    "/admin/people": {"administrator"},
    "/groups": {"administrator"},
    "/audit/": {"auditor"},
    "/account/": {"administrator", "auditor", "reader", "uploader"},
}


@pytest.mark.parametrize("role", ["administrator", "auditor", "reader", "uploader"])
def test_each_role_opens_its_pages_and_no_others(tmp_path: Path, role: str) -> None:
    app = web_app(tmp_path)
    person(app, ADA, role)
    inside = browser(app, ADA)
    for page, roles in PAGES.items():
        assert inside.get(page).status_code == (200 if role in roles else 403), page
        assert browser(app).get(page).status_code == 302


def test_administrators_and_auditors_do_not_see_studies(app: Flask) -> None:
    study = study_by(app, app.config["ada"])
    person(app, "audit@example.org", "auditor")
    for email, status in ((ADA, 200), (BEN, 404), (ROOT, 404), ("audit@example.org", 404)):
        assert browser(app, email).get(f"/studies/{study}/sharing").status_code == status


def test_a_study_is_shared_with_a_group_and_taken_back(app: Flask) -> None:
    study, root = study_by(app, app.config["ada"]), browser(app, ROOT)
    group = new_group(app, root, "Emergency", ADA, BEN)
    ada = browser(app, ADA)

    def seen(email: str) -> tuple[bool, int]:
        with app.test_request_context():
            login_user(db.session.scalars(sa.select(User).where(User.email == email)).one())
            found = study in [one.id for one in db.session.scalars(visible_studies())]
            try:
                study_of(study, write=True)
            except HTTPException as error:
                return found, error.code or 0
            return found, 200

    assert (seen(ADA), seen(BEN)) == ((True, 200), (False, 404))
    ada.send(f"/studies/{study}/sharing", groups=group)
    assert (seen(ADA), seen(BEN)) == ((True, 200), (True, 403))
    root.send(f"/groups/{group}/members/{app.config['ben']}/remove")
    assert seen(BEN) == (False, 404)
    root.send(f"/groups/{group}/members", email=BEN)
    ada.send(f"/studies/{study}/sharing")
    assert seen(BEN) == (False, 404)


def test_a_study_is_shared_only_with_groups_that_one_is_in(app: Flask) -> None:
    study = study_by(app, app.config["ada"])
    group = new_group(app, browser(app, ROOT), "Elsewhere", BEN)
    ada = browser(app, ADA)
    ada.send(f"/studies/{study}/sharing", groups=group)
    with app.app_context():
        assert db.session.get_one(Study, study).shares == []


def test_an_invitation_makes_one_account_with_its_roles(app: Flask) -> None:
    root = browser(app, ROOT)
    page = root.send("/admin/invitations", email="new@example.org", roles=["reader", "auditor"]).get_data(as_text=True)
    link = re.search(r">http://127\.0\.0\.1:8000(/join/[\w-]+)<", page)
    assert link is not None
    someone = browser(app)
    assert "new@example.org" in someone.get(link.group(1)).get_data(as_text=True)
    # The address is the invitation's, whatever the form says.
    someone.send(link.group(1), email="other@example.org", password=PASSWORD)
    with app.app_context():
        made = db.session.scalars(sa.select(User).where(User.email == "new@example.org")).one()
        assert {role.name for role in made.roles} == {"reader", "auditor"}
    assert browser(app).get(link.group(1)).status_code == 410


def test_an_invitation_can_be_taken_back(app: Flask) -> None:
    root = browser(app, ROOT)
    page = root.send("/admin/invitations", roles="reader").get_data(as_text=True)
    link = re.search(r"(/join/[\w-]+)<", page)
    number = re.search(r"/admin/invitations/([\w-]+)/revoke", page)
    assert link is not None and number is not None
    root.send(f"/admin/invitations/{number.group(1)}/revoke")
    assert browser(app).get(link.group(1)).status_code == 410


def test_closing_an_account_and_taking_a_role_act_at_once(app: Flask) -> None:
    root, ben = browser(app, ROOT), browser(app, BEN)
    assert ben.get("/audit/").status_code == 403
    root.send(f"/admin/people/{app.config['ben']}", roles="auditor", active="yes")
    assert ben.get("/audit/").status_code == 200
    root.send(f"/admin/people/{app.config['ben']}", roles="auditor")
    assert ben.get("/audit/").status_code == 302
    assert ben.log_in(BEN).status_code == 403


def test_the_last_administrator_stays(app: Flask) -> None:
    root = browser(app, ROOT)
    with app.app_context():
        number = db.session.scalars(sa.select(User.id).where(User.email == ROOT)).one()
    assert root.send(f"/admin/people/{number}", roles="reader", active="yes").status_code == 409
    assert root.send("/account/delete", email=ROOT).status_code == 409
    assert root.get("/admin/people").status_code == 200


def test_what_matters_needs_a_fresh_password(app: Flask) -> None:
    root = browser(app, ROOT)
    with root.session_transaction() as session:
        session["fs_paa"] = 0.0
    for address in (
        "/admin/invitations",
        f"/admin/people/{app.config['ben']}",
        f"/admin/people/{app.config['ben']}/reset",
    ):
        assert root.send(address, roles="reader").headers["Location"].startswith("/login/again")


def test_people_are_found_and_paged(app: Flask) -> None:
    for number in range(60):
        person(app, f"p{number:02}@example.org", password=None)
    root = browser(app, ROOT)
    assert "Page 1 of 2" in root.get("/admin/people").get_data(as_text=True)
    page = root.get("/admin/people?q=P07").get_data(as_text=True)
    assert "p07@example.org" in page and "p08@example.org" not in page
