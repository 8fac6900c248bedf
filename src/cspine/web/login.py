"""Getting in: log in and out, the second step, a forgotten password."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from flask import Blueprint, Response, abort, flash, make_response, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from cspine.web import links, mail, passwords, second_factor, security, sessions, throttle
from cspine.web.access import current_user, need_role, signed_in
from cspine.web.app import context
from cspine.web.audit_log import Did, Outcome
from cspine.web.database import db
from cspine.web.models import LinkKind, RoleName, User, now
from cspine.web.strings import t

blueprint = Blueprint("login", __name__)
# The second step must follow the first within this.
_PATIENCE = 5 * 60
_SECOND = "second"


@blueprint.route("/login", methods=["GET", "POST"])
def page() -> ResponseReturnValue:
    """Log in with e-mail address and password."""
    if signed_in() is not None:
        return redirect(way_on())
    if request.method == "GET":
        return _form()
    email, password = request.form.get("email", "").strip(), request.form.get("password", "")
    guard = throttle.Guard(email)
    if guard.waits():
        return _form(t("account.login.wait", minutes=round(context().settings.lockout.minutes)), 429)
    person = by_email(email)
    if not security.right(person, password[: 4 * passwords.LONGEST]):
        return _wrong(guard, person)
    if person is None or not person.active or person.confirmed_at is None:
        return _form(t("account.login.closed"), 403)
    oidc = context().settings.oidc
    if oidc is not None and oidc.require and RoleName.ADMINISTRATOR not in {role.name for role in person.roles}:
        return _form(t("account.login.elsewhere", name=oidc.name), 403)
    db.session.commit()  # the hash may have been renewed
    return enter(person, way_on(), guard)


def enter(person: User, onward: str, guard: throttle.Guard | None = None) -> ResponseReturnValue:
    """Log a person in who has shown who it is; asks for the second factor first, where there is one."""
    if person.totp_secret is not None:
        session[_SECOND] = {"id": person.fs_uniquifier, "at": time.time(), "next": onward}
        return redirect(url_for("login.code"))
    return finish(person, onward, guard)


def finish(person: User, onward: str, guard: throttle.Guard | None = None) -> Response:
    """Begin the session, write it down, and lead on."""
    sessions.begin(person)
    context().audit.write(Did.LOGGED_IN, actor=person.id)
    response = make_response(redirect(home(person) if onward == "/" else onward))
    (guard or throttle.Guard(person.email)).succeeded(response)
    return response


@blueprint.route("/login/code", methods=["GET", "POST"])
def code() -> ResponseReturnValue:
    """The second step: a code of the app, or one for emergencies."""
    begun: Any = session.get(_SECOND)
    person = None
    if isinstance(begun, dict) and time.time() - begun["at"] < _PATIENCE:
        person = db.session.scalar(sa.select(User).where(User.fs_uniquifier == begun["id"], User.active))
    if person is None:
        session.pop(_SECOND, None)
        return redirect(url_for("login.page"))
    if request.method == "GET":
        return render_template("account/code.html", error="")
    guard = throttle.Guard(person.email)
    if guard.waits():
        wait = t("account.login.wait", minutes=round(context().settings.lockout.minutes))
        return render_template("account/code.html", error=wait), 429
    if not second_factor.accepts(person, request.form.get("code", "")):
        _count_failure(guard, person, "code")
        return render_template("account/code.html", error=t("account.code.wrong")), 403
    db.session.commit()
    session.pop(_SECOND, None)
    return finish(person, begun["next"], guard)


@blueprint.route("/login/again", methods=["GET", "POST"])
@need_role()
def again() -> ResponseReturnValue:
    """The password once more, before something that matters."""
    person = current_user()
    if person.password is None:
        return redirect(url_for("oidc.start", next=way_on()))
    if request.method == "GET":
        return render_template("account/again.html", error="", onward=way_on())
    guard = throttle.Guard(person.email)
    if guard.waits():
        wait = t("account.login.wait", minutes=round(context().settings.lockout.minutes))
        return render_template("account/again.html", error=wait, onward=way_on()), 429
    if not security.right(person, request.form.get("password", "")):
        _count_failure(guard, person, "password again")
        return render_template("account/again.html", error=t("account.again.wrong"), onward=way_on()), 403
    sessions.refresh()
    return redirect(way_on())


@blueprint.post("/logout")
def out() -> ResponseReturnValue:
    """Log out here."""
    if signed_in() is not None:
        context().audit.write(Did.LOGGED_OUT)
        sessions.end()
    response = make_response(redirect(url_for("login.page")))
    response.headers["Clear-Site-Data"] = '"storage"'
    return response


@blueprint.route("/forgot", methods=["GET", "POST"])
def forgot() -> ResponseReturnValue:
    """Ask for a new password. The answer is the same whether there is such an account or not."""
    by_mail = context().settings.mail is not None
    if request.method == "GET":
        return render_template("account/forgot.html", by_mail=by_mail, done=False)
    if throttle.too_often("forgot"):
        abort(429)
    person = by_email(request.form.get("email", ""))
    if person is not None and person.active:
        _tell_reset(person)
    return render_template("account/forgot.html", by_mail=by_mail, done=True)


@blueprint.route("/reset/<secret>", methods=["GET", "POST"])
def reset(secret: str) -> ResponseReturnValue:
    """Choose a new password with a link; logs out everywhere."""
    link = links.find(db.session, secret, LinkKind.RESET)
    person = None if link is None else db.session.get(User, link.user_id)
    if link is None or person is None:
        abort(410, t("account.reset.gone"))
    if request.method == "GET":
        return render_template("account/reset.html", faults=[], email=person.email)
    password = request.form.get("password", "")
    settings = context().settings
    faults = passwords.faults(password, settings.password, email=person.email, name=person.name)
    if faults:
        return render_template("account/reset.html", faults=faults, email=person.email), 400
    if not links.use(db.session, link):
        abort(410, t("account.reset.gone"))
    context().audit.write(Did.PASSWORD_RESET, actor=person.id)
    person.password, person.reset_asked = security.hashed(password), None
    sessions.end_all(person)
    throttle.unlock(person.email)
    db.session.commit()
    mail.tell(person, "password")
    flash(t("account.reset.done"), "good")
    return redirect(url_for("login.page"))


def home(person: User) -> str:
    """Where a person begins: the worklist, or what else the account is for."""
    roles = {role.name for role in person.roles}
    if roles & {RoleName.READER, RoleName.UPLOADER}:
        return "/"
    return url_for("admin.people" if RoleName.ADMINISTRATOR in roles else "trail.index")


def by_email(email: str) -> User | None:
    """The account of an address, however it is capitalised."""
    return db.session.scalar(sa.select(User).where(User.email == email.strip().lower()))


def way_on() -> str:
    """Where to go after this: ``next`` of the request when it is a place of ours, else the start."""
    wanted = request.values.get("next", "")
    parts = urlsplit(wanted)
    ours = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return wanted if ours and wanted.isprintable() and "\\" not in wanted else "/"


def _form(error: str = "", status: int = 200) -> ResponseReturnValue:
    settings = context().settings
    page = render_template(
        "account/login.html",
        error=error,
        email=request.form.get("email", ""),
        onward=way_on(),
        oidc=settings.oidc,
        sign_up=settings.registration == "open",
    )
    return page, status


def _wrong(guard: throttle.Guard, person: User | None) -> ResponseReturnValue:
    _count_failure(guard, person, "password")
    return _form(t("account.login.wrong"), 403)


def _count_failure(guard: throttle.Guard, person: User | None, what: str) -> None:
    actor = "nobody" if person is None else person.id
    last = guard.failed()
    context().audit.write(Did.LOGIN_FAILED, outcome=Outcome.REFUSED, actor=actor, detail=what)
    if last:
        context().audit.write(Did.LOCKED, outcome=Outcome.REFUSED, actor=actor)


def _tell_reset(person: User) -> None:
    """Send the link, or let administrators know that one is wanted."""
    settings = context().settings
    context().audit.write(Did.RESET_ASKED, actor=person.id)
    if settings.mail is None:
        person.reset_asked = now()
    else:
        link = links.make(db.session, LinkKind.RESET, settings.address, user=person)
        text = t("account.letter.reset.text", link=link)
        mail.send(settings.mail, person.email, t("account.letter.reset.subject"), text)
    db.session.commit()
