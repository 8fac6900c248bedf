"""The same site in PostgreSQL, and what two requests at one moment leave behind in either database."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from cspine.web import links
from cspine.web.database import db
from cspine.web.models import Answer, Job, LinkKind, OneTimeLink, Study, Upload, User
from web_factory import PASSWORD, browser, person, web_app
from web_site import ADA, AUDREY, BEA, EVE, ROOT, furnish
from web_studies import CLEAR, add_study, findings_of

AT_ONCE = 6


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str | None:
    """Address of an empty database; None for SQLite in the data folder."""
    return str(request.getfixturevalue("postgres")) if request.param == "postgresql" else None


def test_accounts_studies_jobs_and_answers_live_in_postgresql(tmp_path: Path, postgres: str) -> None:
    """Every page that can be looked at is there; and when the owner's account goes, so does all of it."""
    site = furnish(tmp_path, database=postgres)
    failed = []
    for rule, method in site.rules("GET"):
        email = ROOT if rule.endpoint.startswith(("admin.", "sharing.")) else ADA
        email = AUDREY if rule.endpoint.startswith("trail.") else email
        for address in site.addresses(rule):
            answer = site.browser(email).open(address, method=method)
            if answer.status_code >= 500 and rule.endpoint != "health.healthz":
                failed.append((address, answer.status))
    assert not failed
    page = site.browser(BEA).get("/?show=all").get_data(as_text=True)
    assert site.ids["study_id"] in page, "what is shared with her group is on her list"
    assert site.browser(EVE).get(f"/studies/{site.ids['study_id']}").status_code == 404
    ada = site.browser(ADA)
    assert ada.send("/account/delete", email=ADA).status_code == 200
    with site.context.sessions() as session:
        left = [session.scalar(sa.select(sa.func.count()).select_from(kind)) for kind in (Study, Upload, Job, Answer)]
    assert left == [0, 0, 0, 0]
    assert not [path for path in (site.context.store.data / "studies").rglob("*") if path.is_file()]


def at_once(app: Flask, act: Callable[[int], Any]) -> list[Any]:
    """What several threads get that do the same at one moment."""

    def run(number: int) -> Any:
        with app.app_context():
            return act(number)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(run, range(AT_ONCE)))


def test_a_study_that_is_run_many_times_at_once_has_one_job(tmp_path: Path, database: str | None) -> None:
    app = web_app(tmp_path, database=database, inline=False)
    ada = person(app, ADA)
    study = add_study(app, ada)
    jobs = app.extensions["cspine"].jobs
    assert len({jobs.submit(study, ada).id for _ in range(2)}) == 1
    other = add_study(app, ada)
    assert len({one.id for one in at_once(app, lambda _: jobs.submit(other, ada))}) == 1
    with app.app_context():
        assert db.session.scalar(sa.select(sa.func.count()).select_from(Job)) == 2


def test_a_link_that_is_used_many_times_at_once_makes_one_account(tmp_path: Path, database: str | None) -> None:
    app = web_app(tmp_path, database=database)
    with app.app_context():
        link = links.make(db.session, LinkKind.INVITATION, "", roles=("reader",))
        db.session.commit()
    people = [browser(app) for _ in range(AT_ONCE)]
    tokens = [one.token() for one in people]

    def join(number: int) -> int:
        form = {"email": f"p{number}@example.org", "password": PASSWORD, "csrf_token": tokens[number]}
        return people[number].post(link, data=form).status_code

    assert sorted(at_once(app, join)) == [302] + [410] * (AT_ONCE - 1)
    with app.app_context():
        assert db.session.scalar(sa.select(sa.func.count()).select_from(User)) == 1
        assert db.session.scalars(sa.select(OneTimeLink)).one().used is not None


def test_answers_that_cross_are_all_kept(tmp_path: Path, database: str | None) -> None:
    app = web_app(tmp_path, database=database)
    ada = person(app, ADA)
    study = add_study(app, ada, findings=findings_of(CLEAR))
    readers = [browser(app, ADA) for _ in range(AT_ONCE)]
    tokens = [one.token() for one in readers]

    def say(number: int) -> int:
        body = {"level": f"C{number + 1}", "verdict": "accept", "comment": f"seen {number}"}
        address = f"/studies/{study}/answers.json"
        return readers[number].post(address, json=body, headers={"X-CSRFToken": tokens[number]}).status_code

    assert at_once(app, say) == [201] * AT_ONCE
    assert app.extensions["cspine"].audit.verify() is None
    with app.app_context():
        assert db.session.scalar(sa.select(sa.func.count()).select_from(Answer)) == AT_ONCE
