"""Guessing is slowed down, without letting anybody lock others out.

Wrong passwords are counted for an account and for a network address. Past the limit, further tries wait; the wait does
not grow, and tries during it do not prolong it. A browser that has logged in to the account before holds a signed
cookie and is counted by itself: whoever guesses from elsewhere cannot keep the owner out (OWASP, "Slow Down Online
Guessing Attacks with Device Cookies"). Accounts that do not exist are counted like those that do, so that the answer
tells nobody which exist. Counts lie in the database, for all processes, under keyed digests that name nobody.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import timedelta

import sqlalchemy as sa
from flask import Response, current_app, request

from cspine.web.database import db
from cspine.web.models import Throttle, new_id, now
from cspine.web.settings import WebSettings

_DEVICE = "device"
_DEVICE_DAYS = 180
# Letters, sign-ups and the like from one address within the time of a lockout.
ASKS = 20


class Guard:
    """Counts the tries of one log-in.

    Args:
        email: what was typed, whether there is such an account or not.
    """

    def __init__(self, email: str) -> None:
        self._settings: WebSettings = current_app.extensions["cspine"].settings
        self._email = email.strip().casefold()
        account = f"device\0{self._email}\0{_device()}" if self.known_browser else f"account\0{self._email}"
        self._account, self._address = _key(account), _key(f"address\0{request.remote_addr}")

    @property
    def known_browser(self) -> bool:
        """Whether this browser has logged in to the account before."""
        return hmac.compare_digest(_mark(self._email, _device()), request.cookies.get(_cookie_name(), "").encode())

    def waits(self) -> bool:
        """Whether the try is not even looked at."""
        lockout = self._settings.lockout
        by_account = _count(self._account, lockout.minutes) >= lockout.tries
        by_address = not self.known_browser and _count(self._address, lockout.minutes) >= lockout.address_tries
        return by_account or by_address

    def failed(self) -> bool:
        """Count a wrong try; whether that was the last one for now."""
        minutes = self._settings.lockout.minutes
        _add(self._address, minutes)
        return _add(self._account, minutes) == self._settings.lockout.tries

    def succeeded(self, response: Response) -> None:
        """Forget the wrong tries of the account, and remember the browser."""
        db.session.execute(sa.delete(Throttle).where(Throttle.key == self._account))
        db.session.commit()
        device = _device() or new_id()
        response.set_cookie(
            _cookie_name(),
            _mark(self._email, device).decode(),
            max_age=_DEVICE_DAYS * 86400,
            secure=self._settings.secure,
            httponly=True,
            samesite="Strict",
        )


def unlock(email: str) -> None:
    """Forget the wrong tries at an account; the caller commits."""
    db.session.execute(sa.delete(Throttle).where(Throttle.key == _key(f"account\0{email.strip().casefold()}")))


def too_often(what: str, most: int = ASKS) -> bool:
    """Count something that one address asks for, such as letters; whether it was asked for too often."""
    minutes = current_app.extensions["cspine"].settings.lockout.minutes
    return _add(_key(f"{what}\0{request.remote_addr}"), minutes) > most


def forget_old(minutes: float) -> None:
    """Delete counts that no longer matter; the caller commits."""
    db.session.execute(sa.delete(Throttle).where(Throttle.since < now() - timedelta(minutes=minutes)))


def _key(text: str) -> str:
    secret = str(current_app.config["SECRET_KEY"]).encode()
    return hmac.new(secret, f"throttle\0{text}".encode(), hashlib.sha256).hexdigest()


def _count(key: str, minutes: float) -> int:
    found = db.session.get(Throttle, key, populate_existing=True)
    return 0 if found is None or found.since < now() - timedelta(minutes=minutes) else found.count


def _add(key: str, minutes: float) -> int:
    """One more, in one statement, so that tries at the same moment are all counted; gives the new count."""
    moment = now()
    kind = db.engine.dialect.name
    if kind == "sqlite":
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
    stale = Throttle.since < moment - timedelta(minutes=minutes)
    query = (
        insert(Throttle)
        .values(key=key, count=1, since=moment)
        .on_conflict_do_update(
            index_elements=[Throttle.key],
            set_={
                "count": sa.case((stale, 1), else_=Throttle.count + 1),
                "since": sa.case((stale, moment), else_=Throttle.since),
            },
        )
        .returning(Throttle.count)
    )
    count = int(db.session.execute(query).scalar_one())
    db.session.commit()
    return count


def _cookie_name() -> str:
    return "__Host-cspine-device" if current_app.extensions["cspine"].settings.secure else "cspine-device"


def _device() -> str:
    """The number of this browser; empty when it has none."""
    return request.cookies.get(_cookie_name(), "").partition(".")[0][:36]


def _mark(email: str, device: str) -> bytes:
    """What the cookie of a browser holds that has logged in to an account."""
    secret = str(current_app.config["SECRET_KEY"]).encode()
    text = f"{_DEVICE}\0{email}\0{device}".encode()
    return f"{device}.{hmac.new(secret, text, hashlib.sha256).hexdigest()}".encode()
