"""What administrators do with accounts, and what auditors read. Neither sees a study by that."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from email_validator import EmailNotValidError, validate_email
from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from cspine.web import deletion, links, mail, second_factor, sessions, throttle
from cspine.web.access import current_user, need_role
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.models import LinkKind, OneTimeLink, RoleName, User, now, roles_of
from cspine.web.strings import t

blueprint = Blueprint("admin", __name__, url_prefix="/admin")
PAGE = 50
ROLES = tuple(role.value for role in RoleName)


@blueprint.get("/people")
@need_role(RoleName.ADMINISTRATOR)
def people() -> str:
    """All accounts, and the invitations that are open."""
    return _people()


@blueprint.post("/invitations")
@need_role(RoleName.ADMINISTRATOR)
def invite() -> ResponseReturnValue:
    """A link that makes one account."""
    if not sessions.fresh():
        return _again("admin.people")
    settings = context().settings
    if settings.registration == "closed":
        abort(403, t("admin.invite.closed"))
    roles = tuple(role for role in ROLES if role in request.form.getlist("roles"))
    email = request.form.get("email", "").strip() or None
    try:
        email = None if email is None else validate_email(email, check_deliverability=False).normalized.lower()
    except EmailNotValidError:
        return _people(invite_wrong=t("account.join.email_wrong")), 400
    if not roles:
        return _people(invite_wrong=t("admin.invite.no_role")), 400
    link = links.make(db.session, LinkKind.INVITATION, settings.address, email=email, roles=roles, by=current_user().id)
    context().audit.write(Did.INVITED, detail=", ".join(roles))
    db.session.commit()
    if settings.mail is not None and email is not None:
        mail.send(settings.mail, email, t("account.letter.invite.subject"), t("account.letter.invite.text", link=link))
    return _people(new_link=link)


@blueprint.post("/invitations/<link_id>/revoke")
@need_role(RoleName.ADMINISTRATOR)
def revoke_invitation(link_id: str) -> ResponseReturnValue:
    """End an invitation."""
    query = sa.delete(OneTimeLink).where(OneTimeLink.id == link_id, OneTimeLink.kind == LinkKind.INVITATION)
    if not db.session.execute(query).rowcount:  # type: ignore[attr-defined]
        abort(404)
    context().audit.write(Did.INVITED, detail="taken back")
    db.session.commit()
    return redirect(url_for("admin.people"))


@blueprint.get("/people/<user_id>")
@need_role(RoleName.ADMINISTRATOR)
def account(user_id: str) -> str:
    """One account."""
    return _account(_person(user_id))


@blueprint.post("/people/<user_id>")
@need_role(RoleName.ADMINISTRATOR)
def change(user_id: str) -> ResponseReturnValue:
    """What an account may do, and whether it may log in. Takes effect at once, everywhere."""
    person = _person(user_id)
    if not sessions.fresh():
        return _again("admin.account", user_id=user_id)
    roles = [role for role in ROLES if role in request.form.getlist("roles")]
    active = request.form.get("active") == "yes"
    keeps = active and RoleName.ADMINISTRATOR in roles
    if not keeps and _is_administrator(person) and not links.other_administrator(db.session, person):
        return _account(person, wrong=t("admin.account.last")), 409
    if not roles:
        return _account(person, wrong=t("admin.invite.no_role")), 400
    change = f"{person.id}: {', '.join(roles)}, {'may' if active else 'may not'} log in"
    context().audit.write(Did.ACCOUNT_CHANGED, detail=change)
    person.roles, person.active = roles_of(db.session, roles), active
    if person.confirmed_at is None and request.form.get("confirmed") == "yes":
        person.confirmed_at = now()
    if not active:
        sessions.end_all(person)
    db.session.commit()
    flash(t("account.saved"), "good")
    return redirect(url_for("admin.account", user_id=user_id))


@blueprint.post("/people/<user_id>/<any(reset, unlock, out, second):what>")
@need_role(RoleName.ADMINISTRATOR)
def help_person(user_id: str, what: str) -> ResponseReturnValue:
    """Help somebody in: a link for a new password, an end of waiting, of log-ins, of the second factor."""
    person = _person(user_id)
    if not sessions.fresh():
        return _again("admin.account", user_id=user_id)
    link = None
    context().audit.write(Did.ACCOUNT_CHANGED, detail=f"{person.id}: {what}")
    if what == "reset":
        by = current_user().id
        link = links.make(db.session, LinkKind.RESET, context().settings.address, user=person, by=by)
        person.reset_asked = None
    elif what == "unlock":
        throttle.unlock(person.email)
    elif what == "out":
        sessions.end_all(person)
    else:
        second_factor.forget(person)
    db.session.commit()
    if link is None:
        flash(t(f"admin.account.done.{what}"), "good")
        return redirect(url_for("admin.account", user_id=user_id))
    return _account(person, new_link=link)


@blueprint.post("/people/<user_id>/delete")
@need_role(RoleName.ADMINISTRATOR)
def delete(user_id: str) -> ResponseReturnValue:
    """Delete an account with all that it owns."""
    person = _person(user_id)
    if not sessions.fresh():
        return _again("admin.account", user_id=user_id)
    if person.id == current_user().id:
        return redirect(url_for("accounts.delete"))
    if request.form.get("email", "").strip().lower() != person.email.lower():
        return _account(person, delete_wrong=t("account.delete.mismatch")), 400
    proofs = deletion.delete_account(person, by=current_user().id)
    return render_template("account/deleted.html", proofs=proofs)


def _people(**more: object) -> str:
    wanted = request.args.get("q", "").strip()
    at = max(request.args.get("page", 1, type=int), 1)
    query = sa.select(User)
    if wanted:
        like = f"%{wanted.replace('%', '')}%"
        query = query.where(sa.or_(User.email.ilike(like), User.name.ilike(like)))
    count = db.session.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0
    order = (User.reset_asked.is_(None), User.email)
    shown = db.session.scalars(query.order_by(*order).offset((at - 1) * PAGE).limit(PAGE)).all()
    still = (OneTimeLink.kind == LinkKind.INVITATION, OneTimeLink.used.is_(None), OneTimeLink.expires > now())
    invitations = db.session.scalars(sa.select(OneTimeLink).where(*still).order_by(OneTimeLink.created)).all()
    return render_template(
        "admin/people.html",
        people=shown,
        count=count,
        at=at,
        pages=-(-count // PAGE),
        wanted=wanted,
        invitations=invitations,
        roles=ROLES,
        settings=context().settings,
        **more,
    )


def _account(person: User, **more: object) -> str:
    return render_template(
        "admin/account.html", person=person, roles=ROLES, held={r.name for r in person.roles}, **more
    )


def _person(user_id: str) -> User:
    found = db.session.get(User, user_id)
    if found is None:
        abort(404)
    return found


def _is_administrator(person: User) -> bool:
    return any(role.name == RoleName.ADMINISTRATOR for role in person.roles)


def _again(endpoint: str, **values: Any) -> ResponseReturnValue:
    return redirect(url_for("login.again", next=url_for(endpoint, **values)))
