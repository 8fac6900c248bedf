"""Accounts: getting in and out, and what guessing brings."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import ClassVar

import pytest
import sqlalchemy as sa
from flask import Flask

from cspine.web import links
from cspine.web.database import db
from cspine.web.models import LinkKind, LoginSession, OneTimeLink, Throttle, User, now
from web_factory import PASSWORD, browser, person, web_app

ADA = "ada@example.org"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return web_app(tmp_path, registration="open", lockout={"tries": 3, "address_tries": 8})


def first_link(app: Flask) -> str | None:
    with app.app_context():
        link = links.first_administrator(db.session, "")
        return link


def reset_link(app: Flask, email: str = ADA) -> str:
    with app.app_context():
        person = db.session.scalars(sa.select(User).where(User.email == email)).one()
        link = links.make(db.session, LinkKind.RESET, "", user=person)
        db.session.commit()
        return link


def test_signing_up_and_logging_in(app: Flask) -> None:
    someone = browser(app)
    answer = someone.send("/sign-up", email="Bea@Example.org", name="Bea", password=PASSWORD)
    assert answer.headers["Location"] == "/login"
    assert someone.log_in("BEA@example.org", next="/account/").headers["Location"] == "/account/"
    page = someone.get("/account/").get_data(as_text=True)
    assert "bea@example.org" in page and "Upload" in page
    with app.app_context():
        kept = db.session.scalars(sa.select(User.password)).one()
    assert kept is not None and kept.startswith("$argon2id$")


def test_signing_up_twice_looks_like_signing_up_once(app: Flask) -> None:
    answers = [browser(app).send("/sign-up", email=ADA, password=PASSWORD) for _ in range(2)]
    pages = [re.sub(r'content="[^"]*"', "", one.get_data(as_text=True)) for one in answers]
    assert pages[0] == pages[1] and answers[0].status_code == answers[1].status_code
    with app.app_context():
        assert db.session.scalar(sa.select(sa.func.count()).select_from(User)) == 1


@pytest.mark.parametrize("registration", ["invitation", "closed"])
def test_nobody_signs_up_where_the_settings_say_so(tmp_path: Path, registration: str) -> None:
    someone = browser(web_app(tmp_path, registration=registration))
    assert someone.get("/sign-up").status_code == 404
    assert "/sign-up" not in someone.get("/login").get_data(as_text=True)


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("short", "12 characters"),
        ("password12345", "easy to guess"),
        ("x" * 200, "too long"),
        ("ada ada ada ada", "easy"),
    ],
)
def test_weak_passwords_are_refused_with_the_reason(app: Flask, password: str, says: str) -> None:
    answer = browser(app).send("/sign-up", email=ADA, password=password)
    assert answer.status_code == 400 and says in answer.get_data(as_text=True)


def test_wrong_passwords_and_unknown_people_are_answered_alike(app: Flask) -> None:
    person(app, ADA)
    answers = [browser(app).log_in(email, "wrong wrong wrong") for email in (ADA, "who@example.org")]
    strip = [re.sub(r'(content|value)="[^"]*"', "", one.get_data(as_text=True)) for one in answers]
    assert strip[0] == strip[1]
    assert [one.status_code for one in answers] == [403, 403]


@pytest.mark.parametrize("email", [ADA, "who@example.org"], ids=["known", "unknown"])
def test_guessing_has_to_wait_whether_the_account_exists_or_not(app: Flask, email: str) -> None:
    person(app, ADA)
    attacker = browser(app)
    assert [attacker.log_in(email, "wrong").status_code for _ in range(5)] == [403, 403, 403, 429, 429]
    # Not even the right password is looked at.
    assert attacker.log_in(email, PASSWORD).status_code == 429


def test_whoever_guesses_does_not_lock_out_the_owner_in_a_known_browser(app: Flask) -> None:
    person(app, ADA)
    owner = browser(app, ADA)
    owner.send("/logout")
    attacker = browser(app, REMOTE_ADDR="192.0.2.1")
    for _ in range(4):
        attacker.log_in(ADA, "wrong")
    assert attacker.log_in(ADA).status_code == 429
    assert owner.log_in(ADA).status_code == 302
    # The known browser has few tries of its own: a stolen one guesses no faster.
    owner.send("/logout")
    assert [owner.log_in(ADA, "wrong").status_code for _ in range(4)] == [403, 403, 403, 429]


def test_the_cookie_of_a_known_browser_cannot_be_made_up(app: Flask) -> None:
    person(app, ADA)
    attacker = browser(app)
    for n in range(4):
        attacker.set_cookie("cspine-device", f"device-{n}.{'0' * 64}")
        attacker.log_in(ADA, "wrong")
    assert attacker.log_in(ADA).status_code == 429


def test_trying_one_password_on_many_accounts_has_to_wait_too(app: Flask) -> None:
    attacker = browser(app, REMOTE_ADDR="192.0.2.7")
    codes = [attacker.log_in(f"p{n}@example.org", PASSWORD).status_code for n in range(9)]
    assert codes == [403] * 8 + [429]
    assert browser(app, REMOTE_ADDR="192.0.2.8").log_in("p0@example.org").status_code == 403


def test_waiting_ends(app: Flask) -> None:
    person(app, ADA)
    attacker = browser(app)
    for _ in range(4):
        attacker.log_in(ADA, "wrong")
    with app.app_context():
        minutes = app.extensions["cspine"].settings.lockout.minutes
        db.session.execute(sa.update(Throttle).values(since=now() - timedelta(minutes=minutes + 1)))
        db.session.commit()
    assert attacker.log_in(ADA).status_code == 302


def test_a_reset_link_ends_waiting_and_works_once(app: Flask) -> None:
    person(app, ADA)
    inside, attacker = browser(app, ADA), browser(app, REMOTE_ADDR="192.0.2.1")
    for _ in range(4):
        attacker.log_in(ADA, "wrong")
    link = reset_link(app)
    fresh = browser(app)
    assert ADA in fresh.get(link).get_data(as_text=True)
    assert fresh.send(link, password="other calm words").headers["Location"] == "/login"
    assert fresh.log_in(ADA, "other calm words").status_code == 302
    assert inside.get("/account/").status_code == 302, "a new password logs out everywhere"
    assert browser(app).get(link).status_code == 410
    assert browser(app).send(link, password="third set of words").status_code == 410


def test_a_link_that_two_requests_use_at_once_works_for_one(app: Flask) -> None:
    person(app, ADA)
    secret = reset_link(app).rpartition("/")[2]
    sessions = app.extensions["cspine"].sessions
    with sessions() as one, sessions() as two:
        found = [links.find(session, secret, LinkKind.RESET) for session in (one, two)]
        assert found[0] is not None and found[1] is not None
        assert links.use(one, found[0])
        one.commit()
        assert not links.use(two, found[1])


def test_asking_for_a_new_password_tells_nobody_who_has_an_account(app: Flask) -> None:
    person(app, ADA)
    pages = [
        re.sub(r'content="[^"]*"', "", browser(app).send("/forgot", email=email).get_data(as_text=True))
        for email in (ADA, "who@example.org")
    ]
    assert pages[0] == pages[1]
    person(app, "root@example.org", "administrator")
    assert "asks for a new password" in browser(app, "root@example.org").get("/admin/people").get_data(as_text=True)


def test_logging_out_ends_the_session_and_not_only_the_cookie(app: Flask) -> None:
    person(app, ADA)
    inside = browser(app, ADA)
    stolen = inside.get_cookie("cspine")
    assert stolen is not None
    inside.send("/logout")
    thief = browser(app)
    thief.set_cookie("cspine", stolen.value)
    assert thief.get("/account/").status_code == 302
    assert thief.get("/api/session").status_code == 401


def test_logging_out_everywhere_and_of_one_browser(app: Flask) -> None:
    person(app, ADA)
    one, two, three = (browser(app, ADA) for _ in range(3))
    with app.app_context():
        rows = db.session.scalars(sa.select(LoginSession.id).order_by(LoginSession.created)).all()
    assert three.send(f"/account/sessions/{rows[0]}/end").status_code == 302
    assert [each.get("/account/").status_code for each in (one, two, three)] == [302, 200, 200]
    three.send("/account/out-everywhere")
    assert [each.get("/account/").status_code for each in (one, two, three)] == [302, 302, 302]


def test_nobody_logs_another_person_out(app: Flask) -> None:
    person(app, ADA)
    person(app, "eve@example.org")
    browser(app, ADA)
    with app.app_context():
        row = db.session.scalars(sa.select(LoginSession.id)).one()
    assert browser(app, "eve@example.org").send(f"/account/sessions/{row}/end").status_code == 404


@pytest.mark.parametrize(("setting", "value"), [("session_minutes", 1), ("session_hours", 0.01)])
def test_sessions_end_by_themselves(tmp_path: Path, setting: str, value: float) -> None:
    app = web_app(tmp_path, **{setting: value})
    person(app, ADA)
    inside = browser(app, ADA)
    assert inside.get("/account/").status_code == 200
    with app.app_context():
        db.session.execute(sa.text("UPDATE login_sessions SET seen = :then, created = :then"), {"then": "2020-01-01"})
        db.session.commit()
    assert inside.get("/account/").headers["Location"] == "/login?next=/account/"
    # A script hears it before the token of its page is called wrong.
    answer = inside.post("/api/uploads", json={})
    assert (answer.status_code, answer.json and answer.json["error"]) == (401, "401")


def test_a_new_password_needs_the_old_one_and_logs_others_out(app: Flask) -> None:
    person(app, ADA)
    one, two = browser(app, ADA), browser(app, ADA)
    assert one.send("/account/password", current="wrong", password="other calm words").status_code == 403
    assert one.send("/account/password", current=PASSWORD, password="other calm words").status_code == 302
    assert [one.get("/account/").status_code, two.get("/account/").status_code] == [200, 302]


@pytest.mark.parametrize(
    "away", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "a"]
)
def test_logging_in_leads_to_no_other_site(app: Flask, away: str) -> None:
    person(app, ADA)
    assert browser(app).log_in(ADA, next=away).headers["Location"] == "/"


def test_the_first_administrator_comes_by_a_link_that_works_once(app: Flask) -> None:
    early, link = first_link(app), first_link(app)
    assert early is not None and link is not None and early != link
    with app.app_context():
        kept = db.session.scalars(sa.select(OneTimeLink)).all()
        assert len(kept) == 1 and kept[0].digest not in link
    root = browser(app)
    assert root.get(early).status_code == 410, "a second start ends the link of the first"
    assert "first administrator" in root.get(link).get_data(as_text=True)
    assert root.send(link, email="root@example.org", password=PASSWORD).status_code == 302
    assert root.get("/admin/people").status_code == 200
    assert browser(app).get(link).status_code == 410
    assert first_link(app) is None


def test_the_first_administrators_link_expires(app: Flask) -> None:
    link = first_link(app)
    assert link is not None
    with app.app_context():
        db.session.execute(sa.text("UPDATE one_time_links SET expires = '2020-01-01'"))
        db.session.commit()
    assert browser(app).get(link).status_code == 410


def test_an_account_that_is_closed_or_not_confirmed_does_not_log_in(app: Flask) -> None:
    person(app, ADA)
    with app.app_context():
        db.session.execute(sa.update(User).values(active=False))
        db.session.commit()
    assert browser(app).log_in(ADA).status_code == 403


def test_what_a_person_types_is_shown_as_text(app: Flask) -> None:
    person(app, ADA)
    inside = browser(app, ADA)
    inside.send("/account/name", name='<script>alert("x")</script>')
    page = inside.get("/account/").get_data(as_text=True)
    assert "<script>alert" not in page and "&lt;script&gt;" in page


def test_accounts_work_the_same_on_postgresql(tmp_path: Path, postgres: str) -> None:
    app = web_app(tmp_path, registration="open", lockout={"tries": 3}, database=postgres)
    someone = browser(app)
    someone.send("/sign-up", email=ADA, password=PASSWORD)
    assert [someone.log_in(ADA, "wrong").status_code for _ in range(4)] == [403, 403, 403, 429]
    fresh = browser(app, REMOTE_ADDR="192.0.2.3")
    assert fresh.send(reset_link(app), password="other calm words").status_code == 302
    assert fresh.log_in(ADA, "other calm words").status_code == 302
    assert fresh.get("/account/").status_code == 200
    fresh.send("/account/out-everywhere")
    assert fresh.get("/account/").status_code == 302


class _Letters:
    """A server that takes letters, as ``smtplib.SMTP`` would reach one."""

    sent: ClassVar[list[EmailMessage]] = []

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> _Letters:
        return self

    def __exit__(self, *_: object) -> None: ...

    def send_message(self, letter: EmailMessage) -> None:
        self.sent.append(letter)


def test_letters_confirm_addresses_and_carry_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtplib.SMTP", _Letters)
    monkeypatch.setattr(_Letters, "sent", [])
    mail = {"host": "127.0.0.1", "sender": "cspine@example.org", "security": "none"}
    app = web_app(tmp_path, registration="open", mail=mail, base_url="http://127.0.0.1:8000")
    someone = browser(app)

    def letter(number: int) -> str:
        end = time.monotonic() + 10
        while len(_Letters.sent) < number and time.monotonic() < end:
            time.sleep(0.01)
        assert _Letters.sent[number - 1]["To"] == ADA
        return str(_Letters.sent[number - 1].get_content())

    def link(text: str) -> str:
        found = re.search(r"http://127\.0\.0\.1:8000(/\S+)", text)
        assert found is not None
        return found.group(1)

    someone.send("/sign-up", email=ADA, password=PASSWORD)
    assert "We have sent a letter" in someone.get("/login").get_data(as_text=True)
    assert someone.log_in(ADA).status_code == 403, "not before the address is confirmed"
    confirm = link(letter(1))
    assert someone.get(confirm).status_code == 200
    assert someone.log_in(ADA).status_code == 403, "programs that open links confirm nothing"
    someone.send(confirm)
    assert someone.log_in(ADA).status_code == 302
    someone.send("/logout")
    browser(app).send("/sign-up", email=ADA, password=PASSWORD)
    assert "There is one already" in letter(2)
    someone.send("/forgot", email=ADA)
    someone.send("/forgot", email="who@example.org")
    assert someone.send(link(letter(3)), password="other calm words").status_code == 302
    assert "the password was changed" in letter(4)
    assert len(_Letters.sent) == 4
