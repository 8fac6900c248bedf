"""The second step of a log-in: codes of an app, codes on paper, and what does not get past it."""

from __future__ import annotations

import html
import re
import time
from pathlib import Path

import pytest
from flask import Flask
from passlib.totp import TOTP

from cspine.web.database import db
from cspine.web.models import User
from web_factory import PASSWORD, Browser, browser, person, web_app

ADA = "ada@example.org"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    app = web_app(tmp_path, lockout={"tries": 4})
    app.config["ada"] = person(app, ADA)
    return app


def turn_on(app: Flask) -> tuple[TOTP, list[str], Browser]:
    """Turn it on as a person does; gives the app on the telephone, the codes on paper, and the browser."""
    inside = browser(app, ADA)
    page = html.unescape(inside.get("/account/second-factor/").get_data(as_text=True))
    key = re.search(r'class="secret">([A-Z2-7-]+)<', page)
    assert key is not None
    telephone = TOTP(key.group(1).replace("-", ""), format="base32")
    # Each code counts once, so the first one is that of the half minute before.
    page = inside.send_code("/account/second-factor/", telephone.generate(time.time() - 30).token)
    codes = re.findall(r"<li>([a-z0-9]{4}-[a-z0-9]{4}-[a-z0-9]{4})</li>", page)
    assert len(codes) == 10
    return telephone, codes, inside


@pytest.fixture(autouse=True)
def send_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token comes from the page before: loading another one would begin with a new secret."""

    def send(self: Browser, address: str, code: str) -> str:
        return self.post(address, data={"code": code, "csrf_token": self.token()}).get_data(as_text=True)

    monkeypatch.setattr(Browser, "send_code", send, raising=False)


def test_a_code_of_the_app_is_asked_for_after_the_password(app: Flask) -> None:
    telephone, _, _ = turn_on(app)
    someone = browser(app)
    assert someone.log_in(ADA, next="/account/").headers["Location"] == "/login/code"
    assert someone.get("/account/").status_code == 302, "the password alone opens nothing"
    assert someone.send("/login/code", code="000000").status_code == 403
    code = telephone.generate().token
    assert someone.send("/login/code", code=f"{code[:3]} {code[3:]}").headers["Location"] == "/account/"
    assert someone.get("/account/").status_code == 200


def test_a_code_works_once(app: Flask) -> None:
    telephone, _, _ = turn_on(app)
    code = telephone.generate().token
    for status in (302, 403):
        someone = browser(app)
        someone.log_in(ADA)
        assert someone.send("/login/code", code=code).status_code == status


def test_codes_on_paper_work_once_each_and_are_not_kept_as_they_are(app: Flask) -> None:
    _, codes, inside = turn_on(app)
    for status in (302, 403):
        someone = browser(app)
        someone.log_in(ADA)
        assert someone.send("/login/code", code=codes[3].upper()).status_code == status
    assert "9 recovery codes are left" in inside.get("/account/").get_data(as_text=True)
    with app.app_context():
        kept = db.session.get_one(User, app.config["ada"])
        assert not any(code.replace("-", "") in "".join(kept.recovery_codes) for code in codes)
        assert "enckey" in (kept.totp_secret or ""), "the secret is encrypted"


def test_guessing_codes_has_to_wait(app: Flask) -> None:
    telephone, _, _ = turn_on(app)
    attacker = browser(app)
    attacker.log_in(ADA)
    assert [attacker.send("/login/code", code=f"{n:06}").status_code for n in range(5)] == [403] * 4 + [429]
    assert attacker.send("/login/code", code=telephone.generate().token).status_code == 429


def test_the_second_step_must_follow_the_first_soon(app: Flask) -> None:
    telephone, _, _ = turn_on(app)
    someone = browser(app)
    someone.log_in(ADA)
    with someone.session_transaction() as session:
        session["second"] = {**session["second"], "at": time.time() - 600}
    assert someone.send("/login/code", code=telephone.generate().token).headers["Location"] == "/login"


def test_it_is_turned_on_only_with_a_right_code_and_off_only_with_a_fresh_password(app: Flask) -> None:
    inside = browser(app, ADA)
    inside.get("/account/second-factor/")
    assert inside.send("/account/second-factor/", code="000000").status_code == 400
    assert browser(app).log_in(ADA).headers["Location"] == "/"
    _, _, inside = turn_on(app)
    with inside.session_transaction() as session:
        session["fs_paa"] = time.time() - 3600
    assert inside.send("/account/second-factor/off").headers["Location"].startswith("/login/again")
    assert inside.send("/login/again", password="wrong").status_code == 403
    assert inside.send("/login/again", password=PASSWORD, next="/account/").headers["Location"] == "/account/"
    inside.send("/account/second-factor/off")
    assert browser(app).log_in(ADA).headers["Location"] == "/"
