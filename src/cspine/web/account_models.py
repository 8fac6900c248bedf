"""The tables of accounts: people, roles, groups, log-ins, links, keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from flask_security import RoleMixin, UserMixin
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from cspine.web.model_base import CASCADE, Base, new_id, now


class RoleName(StrEnum):
    """What a person may do. One may have several."""

    READER = "reader"
    UPLOADER = "uploader"
    ADMINISTRATOR = "administrator"
    AUDITOR = "auditor"


ROLES_USERS = sa.Table(
    "roles_users",
    Base.metadata,
    sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id", ondelete=CASCADE), primary_key=True),
    sa.Column("role_id", sa.Integer, sa.ForeignKey("roles.id", ondelete=CASCADE), primary_key=True),
)


class Role(Base, RoleMixin):
    """One of ``RoleName``."""

    __tablename__ = "roles"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(80), unique=True)
    description: Mapped[str | None] = mapped_column(sa.String(255))
    users: Mapped[list[User]] = relationship(secondary=ROLES_USERS, back_populates="roles")


class User(Base, UserMixin):
    """A person. The columns that Flask-Security asks for keep its names.

    Attributes:
        email: in small letters, so that no two accounts differ by those alone.
        name: how the person is called on pages.
        password: argon2 hash; None when one logs in through another service alone.
        fs_uniquifier: stands for the account in session cookies; a new one logs every browser out.
        confirmed_at: when the e-mail address was confirmed; nobody logs in before.
        totp_secret: of the second factor, encrypted; None when it is off.
        totp_counter: of the last code that was used, so that none is used twice.
        recovery_codes: keyed digests of those that are left.
        reset_asked: when the person asked for a new password, until an administrator gave a link.
        oidc_subject: ``issuer subject`` of the other service.
    """

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)  # type: ignore[assignment]
    email: Mapped[str] = mapped_column(sa.String(255), unique=True)
    name: Mapped[str] = mapped_column(sa.String(120), default="")
    password: Mapped[str | None] = mapped_column(sa.String(255))
    active: Mapped[bool] = mapped_column(default=True)
    fs_uniquifier: Mapped[str] = mapped_column(sa.String(64), unique=True)
    confirmed_at: Mapped[datetime | None]
    last_login_at: Mapped[datetime | None]  # type: ignore[assignment]
    current_login_at: Mapped[datetime | None]  # type: ignore[assignment]
    last_login_ip: Mapped[str | None] = mapped_column(sa.String(64))
    current_login_ip: Mapped[str | None] = mapped_column(sa.String(64))
    login_count: Mapped[int | None]  # type: ignore[assignment]
    totp_secret: Mapped[str | None] = mapped_column(sa.String(512))
    totp_counter: Mapped[int | None]
    recovery_codes: Mapped[list[str]] = mapped_column(sa.JSON, default=list)
    reset_asked: Mapped[datetime | None]
    oidc_subject: Mapped[str | None] = mapped_column(sa.String(512), unique=True)
    create_datetime: Mapped[datetime] = mapped_column(default=now)
    update_datetime: Mapped[datetime] = mapped_column(default=now, onupdate=now)
    roles: Mapped[list[Role]] = relationship(  # type: ignore[assignment]
        secondary=ROLES_USERS, back_populates="users", lazy="selectin", order_by=Role.name
    )
    groups: Mapped[list[Membership]] = relationship(back_populates="user", cascade="all, delete-orphan")

    @property
    def label(self) -> str:
        """Name on pages: the person's, or the e-mail address."""
        return self.name or self.email


class LoginSession(Base):
    """One browser that is logged in. The cookie holds ``id``'s secret; without this row it is worth nothing.

    Attributes:
        secret: SHA-256 of what the cookie holds.
        agent: which browser, in a few words, for the person's own list.
    """

    __tablename__ = "login_sessions"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(sa.ForeignKey("users.id", ondelete=CASCADE), index=True)
    secret: Mapped[str] = mapped_column(sa.String(64), unique=True)
    agent: Mapped[str] = mapped_column(sa.String(80), default="")
    address: Mapped[str] = mapped_column(sa.String(64), default="")
    created: Mapped[datetime] = mapped_column(default=now)
    seen: Mapped[datetime] = mapped_column(default=now)


class Throttle(Base):
    """How often something was tried of late; ``key`` is a keyed digest, so that the table names nobody."""

    __tablename__ = "throttles"

    key: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    count: Mapped[int] = mapped_column(default=0)
    since: Mapped[datetime] = mapped_column(default=now)


class Group(Base):
    """People who share studies, such as a department."""

    __tablename__ = "groups"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(sa.String(120), unique=True)
    created: Mapped[datetime] = mapped_column(default=now)
    members: Mapped[list[Membership]] = relationship(back_populates="group", cascade="all, delete-orphan")


class Membership(Base):
    """One person in one group."""

    __tablename__ = "memberships"

    group_id: Mapped[str] = mapped_column(sa.ForeignKey("groups.id", ondelete=CASCADE), primary_key=True)
    user_id: Mapped[str] = mapped_column(sa.ForeignKey("users.id", ondelete=CASCADE), primary_key=True, index=True)
    group: Mapped[Group] = relationship(back_populates="members")
    user: Mapped[User] = relationship(back_populates="groups")


class LinkKind(StrEnum):
    """What a one-time link does."""

    FIRST = "first"
    INVITATION = "invitation"
    RESET = "reset"
    CONFIRM = "confirm"


class OneTimeLink(Base):
    """A link that does one thing, once, and only for a while.

    Attributes:
        kind: of ``LinkKind``; ``first`` makes the first administrator, and comes from the command line alone.
        digest: SHA-256 of the secret in the link.
        user_id: whose password it resets, or whose address it confirms.
        email: whom it invites; None when the person says it.
        roles: that the account gets.
    """

    __tablename__ = "one_time_links"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(sa.String(16))
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    user_id: Mapped[str | None] = mapped_column(sa.ForeignKey("users.id", ondelete=CASCADE), index=True)
    email: Mapped[str | None] = mapped_column(sa.String(255))
    roles: Mapped[list[str]] = mapped_column(sa.JSON, default=list)
    created_by: Mapped[str | None] = mapped_column(sa.ForeignKey("users.id", ondelete="SET NULL"))
    created: Mapped[datetime] = mapped_column(default=now)
    expires: Mapped[datetime]
    used: Mapped[datetime | None]


class ApiToken(Base):
    """A key for scripts. It is shown once; only its SHA-256 is kept.

    Attributes:
        scopes: of ``access.SCOPES``.
    """

    __tablename__ = "api_tokens"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(sa.ForeignKey("users.id", ondelete=CASCADE), index=True)
    name: Mapped[str] = mapped_column(sa.String(80))
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(sa.JSON)
    created: Mapped[datetime] = mapped_column(default=now)
    expires: Mapped[datetime]
    used: Mapped[datetime | None]


def roles_of(session: Session, names: Sequence[str]) -> list[Role]:
    """The roles of these names, made when they are not there; the caller commits.

    Raises:
        ValueError: no such role.
    """
    wanted = sorted({RoleName(name).value for name in names})
    found = {role.name: role for role in session.scalars(sa.select(Role).where(Role.name.in_(wanted)))}
    for name in wanted:
        if name not in found:
            session.add(made := Role(name=name))
            found[name] = made
    return [found[name] for name in wanted]
