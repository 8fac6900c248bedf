"""Groups, studies that their members may read, and the end of a study."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import IntegrityError

from cspine.web import deletion, login
from cspine.web.access import current_user, need_role, study_of
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.models import Group, Membership, RoleName, StudyShare
from cspine.web.strings import t

blueprint = Blueprint("sharing", __name__)


@blueprint.get("/groups")
@need_role(RoleName.ADMINISTRATOR)
def index() -> str:
    """All groups."""
    return _groups()


@blueprint.post("/groups")
@need_role(RoleName.ADMINISTRATOR)
def make_group() -> ResponseReturnValue:
    """A new group."""
    name = request.form.get("name", "").strip()[:120]
    if not name:
        return _groups(t("admin.groups.no_name")), 400
    made = Group(name=name)
    db.session.add(made)
    try:
        db.session.flush()
    except IntegrityError:
        db.session.rollback()
        return _groups(t("admin.groups.taken")), 409
    context().audit.write(Did.GROUP_CHANGED, detail=f"{made.id} made")
    db.session.commit()
    return redirect(url_for("sharing.group", group_id=made.id))


@blueprint.get("/groups/<group_id>")
@need_role(RoleName.ADMINISTRATOR)
def group(group_id: str) -> str:
    """Who is in a group."""
    return render_template("admin/group.html", group=_group(group_id), wrong="")


@blueprint.post("/groups/<group_id>/members")
@need_role(RoleName.ADMINISTRATOR)
def add_member(group_id: str) -> ResponseReturnValue:
    """Put somebody into a group."""
    found = _group(group_id)
    person = login.by_email(request.form.get("email", ""))
    if person is None:
        return render_template("admin/group.html", group=found, wrong=t("admin.groups.nobody")), 400
    if db.session.get(Membership, (found.id, person.id)) is None:
        context().audit.write(Did.GROUP_CHANGED, detail=f"{found.id}: {person.id} in")
        db.session.add(Membership(group_id=found.id, user_id=person.id))
        db.session.commit()
    return redirect(url_for("sharing.group", group_id=found.id))


@blueprint.post("/groups/<group_id>/members/<user_id>/remove")
@need_role(RoleName.ADMINISTRATOR)
def remove_member(group_id: str, user_id: str) -> ResponseReturnValue:
    """Take somebody out of a group; studies that were shared with it are gone for the person at once."""
    row = db.session.get(Membership, (group_id, user_id))
    if row is None:
        abort(404)
    context().audit.write(Did.GROUP_CHANGED, detail=f"{group_id}: {user_id} out")
    db.session.delete(row)
    db.session.commit()
    return redirect(url_for("sharing.group", group_id=group_id))


@blueprint.post("/groups/<group_id>/delete")
@need_role(RoleName.ADMINISTRATOR)
def delete_group(group_id: str) -> ResponseReturnValue:
    """Delete a group; studies stay with their owners."""
    found = _group(group_id)
    context().audit.write(Did.GROUP_CHANGED, detail=f"{found.id} deleted")
    db.session.execute(sa.delete(StudyShare).where(StudyShare.group_id == found.id))
    db.session.delete(found)
    db.session.commit()
    return redirect(url_for("sharing.index"))


@blueprint.get("/studies/<study_id>/sharing")
@need_role()
def study(study_id: str) -> str:
    """With whom a study is shared; and its end."""
    found = study_of(study_id, write=True)
    mine = sa.select(Group).join(Membership).where(Membership.user_id == current_user().id).order_by(Group.name)
    shared = {row.group_id: row.group for row in found.shares}
    groups = {one.id: one for one in db.session.scalars(mine)} | shared
    return render_template("admin/sharing.html", study=found, groups=list(groups.values()), shared=shared)


@blueprint.post("/studies/<study_id>/sharing")
@need_role()
def share(study_id: str) -> ResponseReturnValue:
    """Share a study with groups that one is in oneself, and with no others."""
    found = study_of(study_id, write=True)
    mine = set(db.session.scalars(sa.select(Membership.group_id).where(Membership.user_id == current_user().id)))
    held = {row.group_id for row in found.shares}
    wanted = set(request.form.getlist("groups")) & (mine | held)
    for gone in held - wanted:
        context().audit.write(Did.UNSHARED, study=found.id, detail=gone)
    for new in wanted - held:
        context().audit.write(Did.SHARED, study=found.id, detail=new)
    found.shares = [row for row in found.shares if row.group_id in wanted]
    found.shares += [StudyShare(group_id=new) for new in sorted(wanted - held)]
    db.session.commit()
    flash(t("account.saved"), "good")
    return redirect(url_for("sharing.study", study_id=found.id))


@blueprint.post("/studies/<study_id>/delete")
@need_role()
def delete_study(study_id: str) -> ResponseReturnValue:
    """Delete a study with its images, results and answers."""
    proof = deletion.delete_study(study_of(study_id, write=True), by=current_user().id)
    flash(t("admin.sharing.deleted", count=proof.files), "good")
    return redirect("/")


def _groups(wrong: str = "") -> str:
    members = sa.func.count(Membership.user_id)
    query = sa.select(Group, members).outerjoin(Membership).group_by(Group.id).order_by(Group.name)
    return render_template("admin/groups.html", rows=db.session.execute(query).all(), wrong=wrong)


def _group(group_id: str) -> Group:
    found = db.session.get(Group, group_id)
    if found is None:
        abort(404)
    return found
