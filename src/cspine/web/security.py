"""Flask-Security under the accounts: password hashes (argon2), sessions, second factor; and CSRF on every request.

Keys come from one secret file of the data folder, each for one purpose, so that a leak of one says nothing of another.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from flask import Flask, abort, g, request
from flask_security import FSQLALiteUserDatastore, Security, hash_password
from flask_wtf.csrf import CSRFProtect

from cspine.node.privacy import Pseudonyms
from cspine.web import sessions
from cspine.web.access import signed_in
from cspine.web.database import db
from cspine.web.models import ApiToken, Role, User, now
from cspine.web.passwords import normal
from cspine.web.settings import LOOPBACK, WebSettings

csrf = CSRFProtect()
KEY_FILE = "secret.key"
# OWASP's second set of argon2id parameters: 19 MiB, two passes, one lane.
ARGON2 = {"argon2__memory_cost": 19_456, "argon2__rounds": 2, "argon2__parallelism": 1}
_CHANGING = frozenset(("POST", "PUT", "PATCH", "DELETE"))
_BEARER = "Bearer "


def set_up(app: Flask, settings: WebSettings) -> None:
    """Give an application its accounts."""
    keys = Pseudonyms.from_file(settings.data / KEY_FILE)
    app.config.update(_cookies(settings), SECRET_KEY=keys.digest("key", "cookies"))
    app.config.update(
        SECURITY_PASSWORD_HASH="argon2",
        SECURITY_PASSWORD_SCHEMES=["argon2"],
        SECURITY_PASSWORD_HASH_PASSLIB_OPTIONS=ARGON2,
        SECURITY_PASSWORD_SALT=keys.digest("key", "passwords"),
        SECURITY_TRACKABLE=True,
        SECURITY_DATETIME_FACTORY=now,
        CSPINE_TOTP_KEY=keys.digest("key", "totp"),
    )
    app.config["TRUSTED_HOSTS"] = _hosts(settings)
    app.before_request(_protect)
    csrf.init_app(app)
    Security(app, FSQLALiteUserDatastore(db, User, Role), register_blueprint=False)
    sessions.set_up(app, settings)


def hashed(password: str) -> str:
    """The argon2 hash of a password, as it is kept."""
    return hash_password(normal(password))


def right(person: User | None, password: str) -> bool:
    """Whether this is the person's password; takes as long when there is no such person."""
    if person is None or not person.password:
        hashed(password)
        return False
    return bool(person.verify_and_update_password(normal(password)))


def _cookies(settings: WebSettings) -> dict[str, Any]:
    return {
        # The prefix makes browsers refuse the cookie from anywhere but this host, over https.
        "SESSION_COOKIE_NAME": "__Host-cspine" if settings.secure else "cspine",
        "SESSION_COOKIE_SECURE": settings.secure,
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_PATH": "/",
        "SESSION_REFRESH_EACH_REQUEST": False,
        "PERMANENT_SESSION_LIFETIME": timedelta(hours=settings.session_hours),
        "WTF_CSRF_CHECK_DEFAULT": False,  # ``_protect`` checks every request, and knows scripts with keys
        "WTF_CSRF_TIME_LIMIT": None,  # as long as the session
        "WTF_CSRF_HEADERS": ["X-CSRFToken"],
    }


def _hosts(settings: WebSettings) -> list[str]:
    """Names under which a browser may call; others are refused, so that no link in a letter leads elsewhere."""
    named = urlsplit(settings.address).hostname or settings.host
    return [f"[{name}]" if ":" in name else name for name in sorted({named, *LOOPBACK})]


def _protect() -> None:
    """Scripts are known by their key; what a browser changes must come from a page of ours."""
    if request.path.startswith("/api/") and request.headers.get("Authorization", "").startswith(_BEARER):
        _take_key(request.headers["Authorization"].removeprefix(_BEARER))
        return
    if request.method not in _CHANGING:
        return
    if request.path.startswith("/api/") and signed_in() is None:
        abort(401)  # before the token of a session that has ended is called wrong
    csrf.protect()


def _take_key(secret: str) -> None:
    """Make the owner of a key the one who asks; no cookie is looked at.

    Raises:
        HTTPException: 401 when the key is unknown or too old, or its owner may not log in.
    """
    g.api_token = None
    digest = hashlib.sha256(secret.strip().encode()).hexdigest()
    query = sa.select(ApiToken, User).join(User, User.id == ApiToken.user_id)
    found = db.session.execute(query.where(ApiToken.digest == digest, ApiToken.expires > now(), User.active)).first()
    if found is None:
        abort(401)
    token, person = found
    if token.used is None or token.used < now() - timedelta(minutes=1):
        token.used = now()
        db.session.commit()
    g.api_token = token
    g._login_user = person  # noqa: SLF001  where Flask-Login keeps the one who asks
