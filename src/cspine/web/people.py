"""Accounts from the command line: whoever may run commands on the server may always help somebody in."""

from __future__ import annotations

import sqlalchemy as sa
from email_validator import validate_email
from sqlalchemy.orm import Session

from cspine.node.privacy import Pseudonyms
from cspine.web import links
from cspine.web.audit_log import AuditLog, Did
from cspine.web.database import engine, upgrade
from cspine.web.models import LinkKind, RoleName, User, now, roles_of
from cspine.web.settings import WebSettings

COMMAND = "cspine web user"


def link_for(settings: WebSettings, email: str, roles: tuple[str, ...]) -> tuple[str, bool]:
    """A one-time link for an address, and whether there is an account of it.

    Args:
        settings: of the application.
        email: of the account.
        roles: that it gets; for somebody new those of the settings when empty, for others no change then.

    Raises:
        ValueError: no address, or no such role.
        CspineError: the database or the data folder cannot be used.
    """
    address = validate_email(email, check_deliverability=False).normalized.lower()
    wanted = tuple(RoleName(role).value for role in roles)
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    upgrade(settings.database_url)
    keys = Pseudonyms.from_file(settings.data / "pseudonyms.key")
    audit = AuditLog(settings.data / "audit", keys, rotate_bytes=settings.audit.rotate_bytes)
    made = engine(settings.database_url)
    try:
        with Session(made) as session:
            person = session.scalar(sa.select(User).where(User.email == address))
            if person is None:
                given = wanted or settings.roles
                audit.write(Did.INVITED, actor=COMMAND, detail=", ".join(given))
                link = links.make(session, LinkKind.INVITATION, settings.address, email=address, roles=given)
            else:
                audit.write(Did.ACCOUNT_CHANGED, actor=COMMAND, detail=f"{person.id}: reset {', '.join(wanted)}")
                link = links.make(session, LinkKind.RESET, settings.address, user=person)
                if wanted:
                    person.roles, person.active = roles_of(session, wanted), True
                    person.confirmed_at = person.confirmed_at or now()
            session.commit()
            return link, person is not None
    finally:
        made.dispose()
