"""Logging in through another service: who gets in, and what a service or a browser may not make us believe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from joserfc.jwk import RSAKey
from werkzeug.test import TestResponse

from cspine.web.database import db
from cspine.web.models import User
from oidc_provider import CLIENT, Provider, running
from web_factory import Browser, browser, person, web_app

ADA = "ada@example.org"


@pytest.fixture(scope="module")
def listening() -> Iterator[Provider]:
    with running() as provider:
        yield provider


@pytest.fixture
def provider(listening: Provider) -> Provider:
    listening.key = listening.published
    listening.claims = {"sub": "1234", "email": ADA, "email_verified": True, "name": "Ada L."}
    return listening


def with_oidc(folder: Path, provider: Provider, **settings: Any) -> Flask:
    (folder / "secret").write_text("a secret\n")
    oidc = {"issuer": provider.issuer, "client_id": CLIENT, "secret_file": folder / "secret", **settings}
    return web_app(folder, oidc=oidc, base_url="http://127.0.0.1:8000")


def comes_back(inside: Browser, onward: str = "/account/") -> TestResponse:
    """Go to the service and come back with what it says."""
    away = inside.get(f"/login/oidc/?next={onward}").headers["Location"]
    back = requests.get(away, allow_redirects=False, timeout=10).headers["Location"]
    parts = urlsplit(back)
    assert parts.path == "/login/oidc/back"
    return inside.get(f"{parts.path}?{parts.query}")


def test_an_account_is_known_by_its_confirmed_address_and_then_by_its_number(
    tmp_path: Path, provider: Provider
) -> None:
    app = with_oidc(tmp_path, provider, name="Hospital account")
    person(app, ADA)
    inside = browser(app)
    assert "Continue with Hospital account" in inside.get("/login").get_data(as_text=True)
    assert comes_back(inside).headers["Location"] == "/account/"
    assert ADA in inside.get("/account/").get_data(as_text=True)
    provider.claims["email"] = "new.name@example.org"
    again = browser(app)
    comes_back(again)
    assert ADA in again.get("/account/").get_data(as_text=True)
    with app.app_context():
        assert db.session.scalars(sa.select(User.oidc_subject)).one() == f"{provider.issuer} 1234"


@pytest.mark.parametrize("create", [False, True])
def test_strangers_get_an_account_where_the_settings_say_so(tmp_path: Path, provider: Provider, create: bool) -> None:
    app = with_oidc(tmp_path, provider, create=create, roles=["uploader"])
    inside = browser(app)
    assert comes_back(inside).headers["Location"] == ("/account/" if create else "/login")
    assert ("Ada L." in inside.get("/account/").get_data(as_text=True)) == create
    with app.app_context():
        roles = [[role.name for role in one.roles] for one in db.session.scalars(sa.select(User))]
    assert roles == ([["uploader"]] if create else [])


@pytest.mark.parametrize(
    "lie",
    [
        {"email_verified": False},
        {"email_verified": None},
        {"iss": "https://evil.example"},
        {"aud": "another application"},
        {"nonce": "another"},
        {"exp": 1},
        {"sub": ""},
    ],
    ids=str,
)
def test_what_the_service_does_not_vouch_for_opens_nothing(
    tmp_path: Path, provider: Provider, lie: dict[str, Any]
) -> None:
    app = with_oidc(tmp_path, provider)
    person(app, ADA)
    provider.claims |= lie
    inside = browser(app)
    assert comes_back(inside).headers["Location"] == "/login"
    assert inside.get("/account/").status_code == 302


def test_a_token_of_another_key_opens_nothing(tmp_path: Path, provider: Provider) -> None:
    app = with_oidc(tmp_path, provider)
    person(app, ADA)
    provider.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
    assert comes_back(browser(app)).headers["Location"] == "/login"


def test_an_answer_that_this_browser_did_not_ask_for_opens_nothing(tmp_path: Path, provider: Provider) -> None:
    app = with_oidc(tmp_path, provider)
    person(app, ADA)
    away = browser(app).get("/login/oidc/").headers["Location"]
    back = urlsplit(requests.get(away, allow_redirects=False, timeout=10).headers["Location"])
    victim = browser(app)
    assert victim.get(f"{back.path}?{back.query}").headers["Location"] == "/login"
    assert victim.get("/account/").status_code == 302


def test_a_service_that_does_not_answer_is_told_on_the_page(tmp_path: Path, provider: Provider) -> None:
    app = with_oidc(tmp_path, provider, issuer="http://127.0.0.1:9")
    answer = browser(app).get("/login/oidc/", follow_redirects=True)
    assert "could not be reached" in answer.get_data(as_text=True)


def test_passwords_can_be_left_to_administrators(tmp_path: Path, provider: Provider) -> None:
    app = with_oidc(tmp_path, provider, require=True)
    person(app, ADA)
    person(app, "root@example.org", "administrator")
    assert browser(app).log_in(ADA).status_code == 403
    assert browser(app).log_in("root@example.org").status_code == 302


def test_a_second_step_is_asked_for_here_too(tmp_path: Path, provider: Provider) -> None:
    app = with_oidc(tmp_path, provider)
    person(app, ADA)
    with app.app_context():
        db.session.execute(sa.update(User).values(totp_secret="on"))
        db.session.commit()
    assert comes_back(browser(app)).headers["Location"] == "/login/code"


def test_showing_once_more_who_one_is_goes_to_the_service(tmp_path: Path, provider: Provider) -> None:
    app = with_oidc(tmp_path, provider, create=True)
    inside = browser(app)
    comes_back(inside)
    with inside.session_transaction() as session:
        session["fs_paa"] = 0.0
    assert inside.get("/login/again?next=/account/delete").headers["Location"] == "/login/oidc/?next=/account/delete"
    assert comes_back(inside, "/account/delete").headers["Location"] == "/account/delete"
    assert provider.asked["prompt"] == "login"
    provider.claims = {"sub": "5678", "email": "eve@example.org", "email_verified": True}
    assert comes_back(inside).status_code == 403, "somebody else is not the one who was asked"
