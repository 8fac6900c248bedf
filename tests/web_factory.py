"""The web application in tests: made in a scratch folder, people in it, and browsers that are logged in."""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from pydantic import SecretStr
from werkzeug.test import TestResponse

from cspine.web import security
from cspine.web.app import BLUEPRINTS, create_app
from cspine.web.database import db, upgrade
from cspine.web.models import User, now, roles_of
from cspine.web.settings import WebSettings

PASSWORD = "seven quiet herons"
_TABLES: list[tempfile.TemporaryDirectory[str]] = []


def web_app(
    folder: Path,
    *,
    database: str | None = None,
    blueprints: Sequence[str] = BLUEPRINTS,
    inline: bool = True,
    **settings: Any,
) -> Flask:
    """An application with its data in ``folder``; ``settings`` as in WebSettings. Jobs run at once unless told else."""
    security.ARGON2.update(argon2__memory_cost=64, argon2__rounds=1)  # nobody attacks the tests
    secret = None if database is None else SecretStr(database)
    if database is None and not (folder / "data").exists():
        _copy_tables(folder / "data")
    made = create_app(
        WebSettings.model_validate({"data": folder / "data", "database": secret, **settings}),
        blueprints=blueprints,
        inline=inline,
    )
    made.testing = True
    made.config["PROPAGATE_EXCEPTIONS"] = False
    return made


def _copy_tables(data: Path) -> None:
    """Begin with tables that were made once: making them takes longer than most tests."""
    if not _TABLES:
        _TABLES.append(tempfile.TemporaryDirectory(prefix="cspine-web-tables-"))
        upgrade(f"sqlite:///{_TABLES[0].name}/tables.db")
    data.mkdir(mode=0o700, parents=True)
    shutil.copy(Path(_TABLES[0].name) / "tables.db", data / "cspine-web.db")


def person(app: Flask, email: str, *roles: str, password: str | None = PASSWORD) -> str:
    """Make an account with roles (default: reader and uploader); returns its id."""
    with app.app_context():
        made = User(
            email=email,
            password=None if password is None else security.hashed(password),
            fs_uniquifier=secrets.token_hex(16),
            confirmed_at=now(),
            roles=roles_of(db.session, roles or ("reader", "uploader")),
        )
        db.session.add(made)
        db.session.commit()
        return made.id


class Browser(FlaskClient):
    """A client that puts the token of the application's pages into what it sends."""

    def token(self) -> str:
        """The token of a page that it loads now."""
        page = self.get("/forgot").get_data(as_text=True)
        found = re.search(r'name="csrf-token" content="([^"]+)"', page)
        assert found is not None, page[:2000]
        return found.group(1)

    def send(self, address: str, **data: Any) -> TestResponse:
        """Send a form with its token."""
        return self.post(address, data={**data, "csrf_token": self.token()})

    def send_json(self, address: str, body: Any = None, method: str = "POST") -> TestResponse:
        """Send JSON with the token in the header."""
        return self.open(address, method=method, json=body, headers={"X-CSRFToken": self.token()})

    def log_in(self, email: str, password: str = PASSWORD, **data: Any) -> TestResponse:
        """Log in; gives the answer."""
        return self.send("/login", email=email, password=password, **data)


def browser(app: Flask, email: str | None = None, **environment: Any) -> Browser:
    """A browser, logged in as ``email`` when given."""
    app.test_client_class = Browser
    made = app.test_client()
    assert isinstance(made, Browser)
    made.environ_base.update(environment)
    if email is not None:
        answer = made.log_in(email)
        assert answer.status_code == 302, answer.get_data(as_text=True)
    return made
