"""Log-ins that can be taken back: a row for each browser, without which its cookie is worth nothing."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from datetime import timedelta

import sqlalchemy as sa
from flask import Flask, current_app, g, request, session
from flask_security import login_user, logout_user

from cspine.web.database import db
from cspine.web.models import LoginSession, User, now
from cspine.web.settings import WebSettings

_SECRET = "sid"
# How stale the moment of last use may become, so that not every picture of a page writes to the database.
_SEEN_EVERY = timedelta(minutes=1)
_BROWSERS = ("Edg", "OPR", "Firefox", "Chrome", "Safari")
_SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Mac OS X", "CrOS", "Linux")
_NAMES = {"Edg": "Edge", "OPR": "Opera", "Mac OS X": "macOS", "CrOS": "ChromeOS"}


def set_up(app: Flask, settings: WebSettings) -> None:
    """Check every session against its row, and nothing else: keys of Flask-Security's own are not taken."""
    manager = app.extensions["cspine-login-manager"] = app.login_manager  # type: ignore[attr-defined]
    known = manager._user_callback  # noqa: SLF001  Flask-Security's loader, which this one narrows
    idle, whole = timedelta(minutes=settings.session_minutes), timedelta(hours=settings.session_hours)

    def load(user_id: str) -> User | None:
        row = _row(idle, whole)
        person: User | None = None if row is None else known(user_id)
        if row is None or person is None or row.user_id != person.id:
            session.clear()  # an old token of forms goes with it
            return None
        g.login_session = row
        return person

    manager.user_loader(load)
    manager.request_loader(lambda _: None)
    manager.session_protection = None  # addresses change on the way; the row is the protection


def begin(person: User) -> None:
    """Log a person in, in a session of its own; commits."""
    session.clear()  # nothing that somebody put into it before the log-in stays
    secret = secrets.token_urlsafe(32)
    agent, address = describe(request.user_agent.string), request.remote_addr or ""
    db.session.add(LoginSession(user_id=person.id, secret=_digest(secret), agent=agent, address=address))
    session[_SECRET] = secret
    session.permanent = True
    login_user(person, remember=False)
    db.session.commit()


def end() -> None:
    """Log out here; commits."""
    secret = session.get(_SECRET, "")
    db.session.execute(sa.delete(LoginSession).where(LoginSession.secret == _digest(secret)))
    db.session.commit()
    logout_user()
    session.clear()


def end_all(person: User) -> None:
    """Log a person out everywhere: rows and the account's mark in cookies; the caller commits."""
    db.session.execute(sa.delete(LoginSession).where(LoginSession.user_id == person.id))
    person.fs_uniquifier = secrets.token_hex(16)


def end_one(person: User, row_id: str) -> bool:
    """Log one browser of a person out; the caller commits. Whether there was one."""
    query = sa.delete(LoginSession).where(LoginSession.user_id == person.id, LoginSession.id == row_id)
    return bool(db.session.execute(query).rowcount)  # type: ignore[attr-defined]


def of(person: User) -> list[LoginSession]:
    """Where a person is logged in, the last used first."""
    settings: WebSettings = current_app.extensions["cspine"].settings
    alive = LoginSession.seen > now() - timedelta(minutes=settings.session_minutes)
    query = sa.select(LoginSession).where(LoginSession.user_id == person.id, alive)
    return list(db.session.scalars(query.order_by(LoginSession.seen.desc())))


def fresh(minutes: float = 15.0) -> bool:
    """Whether the person gave the password a short while ago."""
    return time.time() - float(session.get("fs_paa", 0.0)) < 60 * minutes


def refresh() -> None:
    """The person has just given the password again."""
    session["fs_paa"] = time.time()


def describe(agent: str) -> str:
    """Browser and system in a few words; the whole text of a browser is not kept."""
    words = (next((name for name in names if re.search(name, agent)), "") for names in (_BROWSERS, _SYSTEMS))
    return ", ".join(_NAMES.get(word, word) for word in words if word)


def _row(idle: timedelta, whole: timedelta) -> LoginSession | None:
    secret = session.get(_SECRET)
    if not isinstance(secret, str):
        return None
    found = db.session.scalar(sa.select(LoginSession).where(LoginSession.secret == _digest(secret)))
    moment = now()
    if found is None or found.seen < moment - idle or found.created < moment - whole:
        return None
    if found.seen < moment - _SEEN_EVERY:
        found.seen = moment
        db.session.commit()
    return found


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
