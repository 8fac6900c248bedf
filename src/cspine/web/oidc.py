"""Logging in through another service: OpenID Connect, authorisation code with PKCE, by Authlib."""

from __future__ import annotations

import logging
import secrets
from typing import Any

import sqlalchemy as sa
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.flask_client import OAuth
from flask import Blueprint, abort, current_app, flash, redirect, session, url_for
from flask.typing import ResponseReturnValue
from joserfc.errors import JoseError

from cspine.node.privacy import plain
from cspine.web import login, throttle
from cspine.web.access import signed_in
from cspine.web.app import context
from cspine.web.audit_log import Did, Outcome
from cspine.web.database import db
from cspine.web.models import User, now, roles_of
from cspine.web.settings import Oidc
from cspine.web.strings import t

blueprint = Blueprint("oidc", __name__, url_prefix="/login/oidc")
_NEXT = "oidc-next"
# What goes wrong with a service that is away, says something else than OpenID Connect asks for, or lies.
_TROUBLE = (OSError, AuthlibBaseError, JoseError, KeyError, ValueError, RuntimeError)
_log = logging.getLogger(__name__)


@blueprint.get("/")
def start() -> ResponseReturnValue:
    """Send the browser to the other service."""
    settings = _settings()
    if throttle.too_often("oidc", 100):
        abort(429)
    session[_NEXT] = login.way_on()
    # Somebody who is logged in comes to show once more who it is.
    again = {} if signed_in() is None else {"prompt": "login"}
    try:
        back = f"{context().settings.address}{url_for('oidc.back')}"
        return _client(settings).authorize_redirect(back, **again)  # type: ignore[no-any-return]
    except _TROUBLE as error:
        return _failed(error)


@blueprint.get("/back")
def back() -> ResponseReturnValue:
    """Where the other service sends the browser; what it says is checked against its keys, our state and our nonce."""
    settings = _settings()
    onward = session.pop(_NEXT, "/")
    try:
        claims = _client(settings).authorize_access_token().get("userinfo") or {}
    except _TROUBLE as error:
        return _failed(error)
    person = _person(settings, claims)
    if person is None or not person.active:
        context().audit.write(Did.LOGIN_FAILED, outcome=Outcome.REFUSED, detail="single sign-on, no account")
        flash(t("account.oidc.unknown"), "alert")
        return redirect(url_for("login.page"))
    before = signed_in()
    if before is not None and before.id != person.id:
        abort(403)
    return login.enter(person, onward)


def _person(settings: Oidc, claims: dict[str, Any]) -> User | None:
    """The account of what the service said: by its number, by a confirmed address, or a new one."""
    number, email = claims.get("sub"), str(claims.get("email") or "").strip().lower()[:255]
    if not number:
        return None
    subject = f"{settings.issuer} {number}"[:512]
    found = db.session.scalar(sa.select(User).where(User.oidc_subject == subject))
    if found is not None or not email or claims.get("email_verified") is not True:
        return found
    known = login.by_email(email)
    if known is not None and known.oidc_subject is None:
        known.oidc_subject = subject
        context().audit.write(Did.ACCOUNT_CHANGED, actor=known.id, detail="single sign-on")
    elif known is not None:
        return None
    elif settings.create:
        known = User(
            email=email,
            name=str(claims.get("name") or "")[:120],
            oidc_subject=subject,
            fs_uniquifier=secrets.token_hex(16),
            confirmed_at=now(),
            roles=roles_of(db.session, settings.roles),
        )
        db.session.add(known)
        db.session.flush()
        context().audit.write(Did.SIGNED_UP, actor=known.id, detail="single sign-on")
    db.session.commit()
    return known


def _settings() -> Oidc:
    found = context().settings.oidc
    if found is None:
        abort(404)
    return found


def _client(settings: Oidc) -> Any:
    made = current_app.extensions.get("cspine-oidc")
    if made is None:
        secret = None
        if settings.secret_file is not None:
            secret = settings.secret_file.read_text(encoding="utf-8").strip()
        options: dict[str, Any] = {"scope": "openid email profile", "code_challenge_method": "S256"}
        if settings.authorities is not None:
            options["verify"] = str(settings.authorities)
        made = OAuth(current_app).register(
            name="oidc",
            client_id=settings.client_id,
            client_secret=secret,
            server_metadata_url=f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs=options,
        )
        current_app.extensions["cspine-oidc"] = made
    return made


def _failed(error: BaseException) -> ResponseReturnValue:
    _log.error("single sign-on failed: %s", plain(type(error).__name__))
    context().audit.write(Did.LOGIN_FAILED, outcome=Outcome.FAILURE, detail="single sign-on")
    flash(t("account.oidc.failed"), "alert")
    return redirect(url_for("login.page"))
