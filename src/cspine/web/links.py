"""Links that do one thing once: make the first administrator, join, reset a password, confirm an address.

A link holds 256 random bits; the database holds their SHA-256, so that whoever reads it can use none.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cspine.web.models import LinkKind, OneTimeLink, Role, RoleName, User, now, roles_of

LIVES = {
    LinkKind.FIRST: timedelta(hours=1),
    LinkKind.INVITATION: timedelta(days=7),
    LinkKind.RESET: timedelta(hours=1),
    LinkKind.CONFIRM: timedelta(days=2),
}
_PATHS = {
    LinkKind.FIRST: "/join/",
    LinkKind.INVITATION: "/join/",
    LinkKind.RESET: "/reset/",
    LinkKind.CONFIRM: "/confirm/",
}


def make(
    session: Session,
    kind: LinkKind,
    base: str,
    *,
    user: User | None = None,
    email: str | None = None,
    roles: tuple[str, ...] = (),
    by: str | None = None,
) -> str:
    """A new link; earlier ones of the same kind for the same account end. The caller commits.

    Args:
        session: of the database.
        kind: what it does.
        base: address of the application.
        user: whose password it resets or whose address it confirms.
        email: whom it invites.
        roles: that the account gets.
        by: id of the account that made it.

    Returns:
        The whole address, which is told nobody again.
    """
    if user is not None:
        same = (OneTimeLink.user_id == user.id, OneTimeLink.kind == kind, OneTimeLink.used.is_(None))
        session.execute(sa.delete(OneTimeLink).where(*same))
    secret = secrets.token_urlsafe(32)
    session.add(
        OneTimeLink(
            kind=kind,
            digest=_digest(secret),
            user_id=None if user is None else user.id,
            email=email,
            roles=list(roles),
            created_by=by,
            expires=now() + LIVES[kind],
        )
    )
    return f"{base}{_PATHS[kind]}{secret}"


def find(session: Session, secret: str, *kinds: LinkKind) -> OneTimeLink | None:
    """The link that ends with ``secret``, when it is of one of ``kinds``, unused and not too old."""
    query = sa.select(OneTimeLink).where(
        OneTimeLink.digest == _digest(secret),
        OneTimeLink.kind.in_(kinds),
        OneTimeLink.used.is_(None),
        OneTimeLink.expires > now(),
    )
    found = session.scalar(query)
    if found is not None and found.kind == LinkKind.FIRST and has_administrator(session):
        return None  # somebody was faster
    return found


def use(session: Session, link: OneTimeLink) -> bool:
    """Use a link up; the caller commits. False when another request did at the same moment."""
    query = sa.update(OneTimeLink).where(OneTimeLink.id == link.id, OneTimeLink.used.is_(None)).values(used=now())
    return bool(session.execute(query).rowcount)  # type: ignore[attr-defined]


def has_administrator(session: Session) -> bool:
    """Whether anybody looks after the accounts."""
    query = sa.select(sa.func.count()).select_from(User).join(User.roles).where(Role.name == RoleName.ADMINISTRATOR)
    return bool(session.scalar(query.where(User.active)))


def first_administrator(session: Session, base: str) -> str | None:
    """A fresh link that makes the first administrator, earlier ones end; None when there is one. Commits."""
    if has_administrator(session):
        return None
    session.execute(sa.delete(OneTimeLink).where(OneTimeLink.kind == LinkKind.FIRST))
    everything = (RoleName.ADMINISTRATOR, RoleName.AUDITOR, RoleName.READER, RoleName.UPLOADER)
    link = make(session, LinkKind.FIRST, base, roles=everything)
    session.commit()
    return link


def roles_for(session: Session, link: OneTimeLink) -> list[Role]:
    """The roles that a link gives."""
    return roles_of(session, tuple(link.roles))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def other_administrator(session: Session, person: User) -> bool:
    """Whether somebody else looks after the accounts too."""
    query = sa.select(User.id).join(User.roles).where(Role.name == RoleName.ADMINISTRATOR, User.active)
    return session.scalar(query.where(User.id != person.id).limit(1)) is not None
