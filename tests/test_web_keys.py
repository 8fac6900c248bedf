"""Keys for scripts: shown once, for what was ticked, until they end; and CSRF for everybody else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Blueprint, Flask
from flask.typing import ResponseReturnValue

from cspine.web.access import current_user, need_role
from cspine.web.database import db
from cspine.web.models import ApiToken, User
from web_factory import Browser, browser, person, web_app

ADA = "ada@example.org"
tried = Blueprint("tried", __name__, url_prefix="/api/tried")


@tried.route("/<what>", methods=["GET", "POST"])
def ask(what: str) -> ResponseReturnValue:
    scope = None if what == "none" else what

    @need_role("uploader", scope=scope)
    def view() -> ResponseReturnValue:
        return {"who": current_user().email}

    return view()


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    made = web_app(tmp_path)
    made.register_blueprint(tried)
    person(made, ADA)
    return made


def make_key(inside: Browser, *scopes: str) -> str:
    page = inside.send("/account/keys", name="nightly", scopes=list(scopes), days="30").get_data(as_text=True)
    found = re.search(r">(cspine_[\w-]{43})<", page)
    assert found is not None, page
    return found.group(1)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_does_what_was_ticked_without_session_and_token(app: Flask) -> None:
    key = make_key(browser(app, ADA), "read", "upload")
    script = app.test_client()
    for what, status in (("read", 200), ("upload", 200), ("answer", 403), ("none", 403)):
        assert script.post(f"/api/tried/{what}", headers=bearer(key)).status_code == status
    answer = script.get("/api/tried/read", headers=bearer(key))
    assert answer.json == {"who": ADA} and "Set-Cookie" not in answer.headers


def test_a_key_is_shown_once_and_only_its_digest_is_kept(app: Flask) -> None:
    inside = browser(app, ADA)
    key = make_key(inside, "read")
    assert key not in inside.get("/account/").get_data(as_text=True)
    with app.app_context():
        assert db.session.scalars(sa.select(ApiToken.digest)).one() not in key


def test_a_key_opens_no_page(app: Flask) -> None:
    key = make_key(browser(app, ADA), "read", "upload", "answer")
    assert app.test_client().get("/account/", headers=bearer(key)).status_code == 302


@pytest.mark.parametrize("how", ["revoked", "ended", "owner closed", "owner loses the role"])
def test_a_key_ends(app: Flask, how: str) -> None:
    inside = browser(app, ADA)
    key = make_key(inside, "read")
    with app.app_context():
        token = db.session.scalars(sa.select(ApiToken)).one().id
        if how == "ended":
            db.session.execute(sa.text("UPDATE api_tokens SET expires = '2020-01-01'"))
        elif how == "owner closed":
            db.session.execute(sa.update(User).values(active=False))
        elif how == "owner loses the role":
            db.session.execute(sa.text("DELETE FROM roles_users"))
        db.session.commit()
    if how == "revoked":
        inside.send(f"/account/keys/{token}/revoke")
    answer = app.test_client().get("/api/tried/read", headers=bearer(key))
    assert answer.status_code == (403 if "role" in how else 401)
    assert answer.json is not None and set(answer.json) == {"error", "message"}


def test_a_wrong_key_is_not_helped_by_a_session(app: Flask) -> None:
    inside = browser(app, ADA)
    assert inside.get("/api/tried/none").status_code == 200
    assert inside.get("/api/tried/none", headers=bearer("cspine_wrong")).status_code == 401


def test_a_key_needs_a_name_and_a_scope(app: Flask) -> None:
    inside = browser(app, ADA)
    forms = ({"name": "x"}, {"name": "", "scopes": "read"}, {"name": "x", "scopes": "all"})
    for form in forms:
        assert inside.send("/account/keys", days="30", **form).status_code == 400


def test_what_a_browser_changes_must_come_from_our_pages(app: Flask) -> None:
    inside = browser(app, ADA)
    assert inside.post("/account/name", data={"name": "x"}).status_code == 400
    assert inside.post("/api/tried/none").json == {
        "error": "csrf", "message": "This page was open for too long. Reload it and try again."
    }  # fmt: skip
    assert inside.send_json("/api/tried/none").status_code == 200
    fresh = inside.get("/api/session").json
    assert fresh is not None and fresh["user"] == ADA
    assert inside.post("/api/tried/none", headers={"X-CSRFToken": fresh["csrf"]}).status_code == 200


@pytest.mark.parametrize(("base", "secure"), [(None, False), ("https://cspine.example.org", True)])
def test_cookies_and_headers(tmp_path: Path, base: str | None, secure: bool) -> None:
    app = web_app(tmp_path, base_url=base)
    person(app, ADA)
    inside = browser(app)
    answer = inside.post("/login", data={"email": ADA, "password": "seven quiet herons"}, base_url=base)
    assert answer.status_code == 400, "logging in needs the token too"
    page = inside.get("/login", base_url=base)
    token = re.search(r'name="csrf-token" content="([^"]+)"', page.get_data(as_text=True))
    assert token is not None
    form = {"email": ADA, "password": "seven quiet herons", "csrf_token": token.group(1)}
    answer = inside.post("/login", data=form, base_url=base, headers={"Referer": f"{base}/login"})
    cookies = answer.headers.getlist("Set-Cookie")
    assert len(cookies) == 2
    for cookie in cookies:
        assert "HttpOnly" in cookie and "SameSite=" in cookie and "Path=/" in cookie and "Domain" not in cookie
        assert ("Secure" in cookie, cookie.startswith("__Host-")) == (secure, secure)
    assert ("Strict-Transport-Security" in answer.headers) == secure
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "http" not in policy
    assert page.headers["Cache-Control"] == "no-store"


def test_other_names_of_this_machine_are_not_answered(app: Flask) -> None:
    assert app.test_client().get("/login", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(("proxies", "address"), [(0, "10.0.0.9"), (1, "192.0.2.5"), (2, "198.51.100.1")])
def test_proxies_are_believed_as_far_as_the_settings_say(tmp_path: Path, proxies: int, address: str) -> None:
    app = web_app(tmp_path, proxies=proxies)
    person(app, ADA)
    inside = browser(app, REMOTE_ADDR="10.0.0.9")
    form = {"email": ADA, "password": "seven quiet herons", "csrf_token": inside.token()}
    assert inside.post("/login", data=form, headers={"X-Forwarded-For": "198.51.100.1, 192.0.2.5"}).status_code == 302
    with app.app_context():
        assert db.session.scalars(sa.select(User.current_login_ip)).one() == address
