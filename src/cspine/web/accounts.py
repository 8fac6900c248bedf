"""A person's own account: name, password, browsers that are logged in, keys for scripts, the end of it."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

import sqlalchemy as sa
from flask import Blueprint, abort, flash, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from cspine.web import deletion, mail, passwords, security, sessions, throttle
from cspine.web.access import SCOPES, current_user, need_role
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.links import other_administrator
from cspine.web.models import ApiToken, RoleName, Study, StudyState, User, now
from cspine.web.strings import t

blueprint = Blueprint("accounts", __name__, url_prefix="/account")
KEY_DAYS = (7, 30, 90, 365)
MOST_KEYS = 20
# So that programs that look for lost secrets know one when they see it.
KEY_PREFIX = "cspine_"


@blueprint.get("/")
@need_role()
def index() -> str:
    """The account."""
    return _page()


@blueprint.post("/name")
@need_role()
def rename() -> ResponseReturnValue:
    """How the person is called."""
    current_user().name = request.form.get("name", "").strip()[:120]
    db.session.commit()
    flash(t("account.saved"), "good")
    return redirect(url_for("accounts.index"))


@blueprint.post("/password")
@need_role()
def password() -> ResponseReturnValue:
    """A new password; other browsers are logged out."""
    person = current_user()
    guard = throttle.Guard(person.email)
    if guard.waits():
        abort(429)
    if person.password is not None and not security.right(person, request.form.get("current", "")):
        guard.failed()
        return _page(current_wrong=[t("account.again.wrong")]), 403
    new = request.form.get("password", "")
    faults = passwords.faults(new, context().settings.password, email=person.email, name=person.name)
    if faults:
        return _page(password_wrong=faults), 400
    context().audit.write(Did.PASSWORD_CHANGED)
    person.password = security.hashed(new)
    sessions.end_all(person)
    sessions.begin(person)
    mail.tell(person, "password")
    flash(t("account.password.changed"), "good")
    return redirect(url_for("accounts.index"))


@blueprint.post("/out-everywhere")
@need_role()
def out_everywhere() -> ResponseReturnValue:
    """Log out in all browsers, this one too."""
    context().audit.write(Did.LOGGED_OUT_EVERYWHERE)
    sessions.end_all(current_user())
    sessions.end()
    flash(t("account.sessions.all_out"), "good")
    return redirect(url_for("login.page"))


@blueprint.post("/sessions/<row_id>/end")
@need_role()
def end_session(row_id: str) -> ResponseReturnValue:
    """Log one other browser out."""
    if not sessions.end_one(current_user(), row_id):
        abort(404)
    context().audit.write(Did.LOGGED_OUT, detail="from another browser")
    db.session.commit()
    return redirect(url_for("accounts.index", _anchor="sessions"))


@blueprint.post("/keys")
@need_role()
def make_key() -> ResponseReturnValue:
    """A new key for scripts, shown this once."""
    person = current_user()
    if not sessions.fresh():
        return redirect(url_for("login.again", next=url_for("accounts.index", _anchor="keys")))
    scopes = [scope for scope in SCOPES if scope in request.form.getlist("scopes")]
    name, days = request.form.get("name", "").strip()[:80], request.form.get("days", "30")
    if not name or not scopes or days not in {str(one) for one in KEY_DAYS}:
        return _page(key_wrong=[t("account.keys.incomplete")]), 400
    held = db.session.scalar(sa.select(sa.func.count()).select_from(ApiToken).where(ApiToken.user_id == person.id))
    if (held or 0) >= MOST_KEYS:
        return _page(key_wrong=[t("account.keys.too_many", count=MOST_KEYS)]), 400
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    digest, expires = hashlib.sha256(secret.encode()).hexdigest(), now() + timedelta(days=int(days))
    made = ApiToken(user_id=person.id, name=name, digest=digest, scopes=scopes, expires=expires)
    db.session.add(made)
    db.session.flush()
    context().audit.write(Did.TOKEN_MADE, detail=made.id)
    db.session.commit()
    mail.tell(person, "key")
    return _page(new_key=secret)


@blueprint.post("/keys/<key_id>/revoke")
@need_role()
def revoke_key(key_id: str) -> ResponseReturnValue:
    """End a key."""
    query = sa.delete(ApiToken).where(ApiToken.id == key_id, ApiToken.user_id == current_user().id)
    if not db.session.execute(query).rowcount:  # type: ignore[attr-defined]
        abort(404)
    context().audit.write(Did.TOKEN_REVOKED, detail=key_id)
    db.session.commit()
    return redirect(url_for("accounts.index", _anchor="keys"))


@blueprint.route("/delete", methods=["GET", "POST"])
@need_role()
def delete() -> ResponseReturnValue:
    """Delete the account and everything that it owns."""
    person = current_user()
    if not sessions.fresh():
        return redirect(url_for("login.again", next=url_for("accounts.delete")))
    alive = (Study.owner_id == person.id, Study.state != StudyState.DELETED)
    studies = db.session.scalar(sa.select(sa.func.count()).select_from(Study).where(*alive)) or 0
    last = _is_last(person)
    if request.method == "GET":
        return render_template("account/delete.html", studies=studies, last=last, error="")
    if last:
        return render_template("account/delete.html", studies=studies, last=last, error=""), 409
    if request.form.get("email", "").strip().lower() != person.email.lower():
        wrong = t("account.delete.mismatch")
        return render_template("account/delete.html", studies=studies, last=last, error=wrong), 400
    proofs = deletion.delete_account(person)
    sessions.end()
    return render_template("account/deleted.html", proofs=proofs)


def _is_last(person: User) -> bool:
    """Whether nobody would look after the accounts without this one."""
    looks_after = any(role.name == RoleName.ADMINISTRATOR for role in person.roles)
    return looks_after and not other_administrator(db.session, person)


def _page(**more: object) -> str:
    person = current_user()
    keys = sa.select(ApiToken).where(ApiToken.user_id == person.id).order_by(ApiToken.created.desc())
    return render_template(
        "account/index.html",
        person=person,
        sessions=sessions.of(person),
        here=g.get("login_session"),
        keys=list(db.session.scalars(keys)),
        now=now(),
        scopes=SCOPES,
        key_days=KEY_DAYS,
        shortest=context().settings.password.min_length,
        **more,
    )
