"""Who may do what. Every view of every blueprint asks here; nothing else decides.

A study belongs to the one who uploaded it. Members of groups it is shared with may read it. Administrators see accounts
and not studies; auditors see the trail alone. What one may not see is answered like what does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import sqlalchemy as sa
from flask import abort, g
from flask_login import current_user as _login_user

from cspine.web.database import db
from cspine.web.models import Job, Membership, RoleName, Study, StudyShare, StudyState, Upload, User

P = ParamSpec("P")
R = TypeVar("R")

# What a key for scripts may be allowed: read studies and results; upload and run; answer.
SCOPES = ("read", "upload", "answer")


def signed_in() -> User | None:
    """The person who asks, through a session or a key; None when nobody is logged in."""
    return cast(User, _login_user._get_current_object()) if _login_user.is_authenticated else None  # noqa: SLF001


def current_user() -> User:
    """The person who asks.

    Raises:
        HTTPException: 401 when nobody is logged in.
    """
    found = signed_in()
    if found is None:
        abort(401)
    return found


def has_role(*roles: str) -> bool:
    """Whether the person has one of these roles; false when nobody is logged in."""
    found = signed_in()
    return found is not None and any(role.name in roles for role in found.roles)


def need_role(*roles: str, scope: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A view for people with one of ``roles``; without roles, for whoever is logged in.

    Args:
        roles: of ``RoleName``.
        scope: of ``SCOPES``: also for scripts whose key has it. None: never for scripts.

    Returns:
        A decorator; put it below the route. The view answers 401 to nobody, and 403 to whoever may not.
    """

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            current_user()
            token = g.get("api_token")
            if token is not None and (scope is None or scope not in token.scopes):
                abort(403)
            if roles and not has_role(*roles):
                abort(403)
            return view(*args, **kwargs)

        return guarded

    return decorate


def visible_studies() -> sa.Select[Study]:
    """All studies that the person who asks may read, deleted ones left out; narrow it with ``where``."""
    person = current_user()
    shared = (
        sa.select(StudyShare.study_id)
        .join(Membership, Membership.group_id == StudyShare.group_id)
        .where(Membership.user_id == person.id)
    )
    mine_or_shared = sa.or_(Study.owner_id == person.id, Study.id.in_(shared))
    return sa.select(Study).where(mine_or_shared, Study.state != StudyState.DELETED)


def study_of(study_id: str, *, write: bool = False) -> Study:
    """A study that the person who asks may read.

    Args:
        study_id: as in the URL.
        write: whether it is to be run, shared, renamed or deleted; then it must be the person's own.

    Raises:
        HTTPException: 401 when nobody is logged in, 404 when there is no such study for this person, 403 when it is
            there but not the person's own.
    """
    found = db.session.scalar(visible_studies().where(Study.id == study_id))
    if found is None:
        abort(404)
    if write and found.owner_id != current_user().id:
        abort(403)
    return found


def upload_of(upload_id: str) -> Upload:
    """An upload of the person who asks.

    Raises:
        HTTPException: 401 when nobody is logged in, 404 when the person has no such upload.
    """
    query = sa.select(Upload).where(Upload.id == upload_id, Upload.owner_id == current_user().id)
    found = db.session.scalar(query)
    if found is None:
        abort(404)
    return found


def job_of(job_id: str) -> Job:
    """A job of the person who asks.

    Raises:
        HTTPException: 401 when nobody is logged in, 404 when the person has no such job.
    """
    found = db.session.scalar(sa.select(Job).where(Job.id == job_id, Job.owner_id == current_user().id))
    if found is None:
        abort(404)
    return found


def is_administrator() -> bool:
    """Whether the person who asks looks after accounts."""
    return has_role(RoleName.ADMINISTRATOR)
