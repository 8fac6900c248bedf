"""New accounts: signing up, joining with an invitation, the first administrator; confirming an address."""

from __future__ import annotations

import secrets

from email_validator import EmailNotValidError, validate_email
from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import IntegrityError

from cspine.web import links, login, mail, passwords, security, throttle
from cspine.web.access import signed_in
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.models import LinkKind, OneTimeLink, User, now, roles_of
from cspine.web.strings import t

blueprint = Blueprint("joining", __name__)


@blueprint.route("/sign-up", methods=["GET", "POST"])
def sign_up() -> ResponseReturnValue:
    """A new account for whoever asks, where the settings say so."""
    if context().settings.registration != "open":
        abort(404)
    if signed_in() is not None:
        return redirect("/")
    if request.method == "GET":
        return _form(None)
    if throttle.too_often("sign-up"):
        abort(429)
    email, faults = _checked(None)
    if any(faults.values()):
        return _form(None, faults)
    return _new_or_known(email)


@blueprint.route("/join/<secret>", methods=["GET", "POST"])
def join(secret: str) -> ResponseReturnValue:
    """A new account with an invitation, or the first administrator's."""
    link = links.find(db.session, secret, LinkKind.INVITATION, LinkKind.FIRST)
    if link is None:
        abort(410, t("account.join.gone"))
    if request.method == "GET":
        return _form(link)
    email, faults = _checked(link)
    if not any(faults.values()) and login.by_email(email) is not None:
        faults["email"] = [t("account.join.taken")]  # whoever holds an invitation may know
    if any(faults.values()):
        return _form(link, faults)
    if not links.use(db.session, link):
        abort(410, t("account.join.gone"))
    person = _add(email, tuple(link.roles), confirmed=True)
    context().audit.write(Did.SIGNED_UP, actor=person.id, detail=f"with a link, kind {link.kind}")
    return login.finish(person, "/")


@blueprint.route("/confirm/<secret>", methods=["GET", "POST"])
def confirm(secret: str) -> ResponseReturnValue:
    """Show that a letter to the address arrived. A press of a button: programs that open every link confirm nothing."""
    link = links.find(db.session, secret, LinkKind.CONFIRM)
    person = None if link is None else db.session.get(User, link.user_id)
    if link is None or person is None:
        abort(410, t("account.confirm.gone"))
    if request.method == "GET":
        return render_template("account/confirm.html", email=person.email)
    if links.use(db.session, link):
        person.confirmed_at = now()
        db.session.commit()
    flash(t("account.confirm.done"), "good")
    return redirect(url_for("login.page"))


def _new_or_known(email: str) -> ResponseReturnValue:
    """Make the account, or say nothing of the one that is there: the answer is the same."""
    settings = context().settings
    known = login.by_email(email)
    if known is None:
        person = _add(email, settings.roles, confirmed=settings.mail is None)
        context().audit.write(Did.SIGNED_UP, actor=person.id)
        if settings.mail is not None:
            link = links.make(db.session, LinkKind.CONFIRM, settings.address, user=person)
            text = t("account.letter.confirm.text", link=link)
            mail.send(settings.mail, email, t("account.letter.confirm.subject"), text)
            db.session.commit()
    else:
        security.hashed(request.form.get("password", ""))  # takes as long as making one
        if settings.mail is not None:
            text = t("account.letter.known.text", address=settings.address)
            mail.send(settings.mail, known.email, t("account.letter.known.subject"), text)
    flash(t("account.sign_up.letter" if settings.mail is not None else "account.sign_up.done"), "good")
    return redirect(url_for("login.page"))


def _add(email: str, roles: tuple[str, ...], *, confirmed: bool) -> User:
    """Write a new account down.

    Raises:
        HTTPException: 409 when another request made the same one at this moment.
    """
    person = User(
        email=email,
        name=request.form.get("name", "").strip()[:120],
        password=security.hashed(request.form.get("password", "")),
        fs_uniquifier=secrets.token_hex(16),
        confirmed_at=now() if confirmed else None,
        roles=roles_of(db.session, roles),
    )
    db.session.add(person)
    try:
        db.session.commit()
    except IntegrityError:
        db.session.rollback()
        abort(409)
    return person


def _checked(link: OneTimeLink | None) -> tuple[str, dict[str, list[str]]]:
    """The address and what is wrong with the form, by field."""
    typed = request.form.get("email", "").strip()
    faults: dict[str, list[str]] = {}
    email = link.email if link is not None and link.email is not None else typed
    try:
        email = validate_email(email, check_deliverability=False).normalized.lower()
    except EmailNotValidError:
        faults["email"] = [t("account.join.email_wrong")]
    settings, name = context().settings, request.form.get("name", "")
    faults["password"] = passwords.faults(request.form.get("password", ""), settings.password, email=email, name=name)
    return email, faults


def _form(link: OneTimeLink | None, faults: dict[str, list[str]] | None = None) -> ResponseReturnValue:
    page = render_template(
        "account/join.html",
        first=link is not None and link.kind == LinkKind.FIRST,
        fixed=None if link is None else link.email,
        email=request.form.get("email", ""),
        name=request.form.get("name", ""),
        faults=faults or {},
        shortest=context().settings.password.min_length,
    )
    return page, 400 if faults else 200
