"""Who did what, when: the audit trail of the node, with the words of the application.

Actors are ids of accounts, studies are pseudonyms; the page for auditors says who an id is as long as the account
exists. More than one process may write, such as the server and a command: each takes its turn and goes on from the last
line on the disk.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from cspine.node.audit import AuditEvent, AuditTrail, Break, Outcome, verify
from cspine.node.privacy import Pseudonyms

__all__ = ["AuditLog", "Did", "Outcome", "WebEvent"]


class Did(StrEnum):
    """What was done."""

    STARTED = "started"
    STOPPED = "stopped"
    RESUMED = "resumed"
    SIGNED_UP = "signed-up"
    INVITED = "invited"
    LOGGED_IN = "logged-in"
    LOGGED_OUT = "logged-out"
    LOGGED_OUT_EVERYWHERE = "logged-out-everywhere"
    LOGIN_FAILED = "login-failed"
    LOCKED = "locked"
    PASSWORD_CHANGED = "password-changed"
    PASSWORD_RESET = "password-reset"
    RESET_ASKED = "reset-asked"
    TWO_FACTOR_ON = "two-factor-on"
    TWO_FACTOR_OFF = "two-factor-off"
    ACCOUNT_CHANGED = "account-changed"
    ACCOUNT_DELETED = "account-deleted"
    TOKEN_MADE = "token-made"
    TOKEN_REVOKED = "token-revoked"
    GROUP_CHANGED = "group-changed"
    UPLOADED = "uploaded"
    DISCARDED = "discarded"
    REFUSED = "refused"
    QUEUED = "queued"
    CANCELLED = "cancelled"
    JUDGED = "judged"
    FAILED = "failed"
    VIEWED = "viewed"
    ANSWERED = "answered"
    DOWNLOADED = "downloaded"
    SHARED = "shared"
    UNSHARED = "unshared"
    DELETED = "deleted"
    EXPORTED = "exported"
    BACKED_UP = "backed-up"
    RESTORED = "restored"
    READ_TRAIL = "read-trail"


@dataclass(frozen=True, slots=True)
class WebEvent:
    """One line of the trail; see ``cspine.node.audit.AuditEvent``, whose fields it has.

    Attributes:
        actor: id of an account, ``nobody``, ``system``, or a command.
        address: of the browser.
        study: pseudonym.
        detail: a short reason of our own words, or an id; never a patient.
    """

    action: Did
    outcome: Outcome = Outcome.SUCCESS
    actor: str = "system"
    address: str = ""
    study: str = ""
    study_uid: str = ""
    detail: str = ""
    count: int | None = None

    def fields(self) -> dict[str, Any]:
        """The fields that say something, by name."""
        table = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in table.items() if value not in ("", None)}


class AuditLog:
    """The trail of one data folder.

    Args:
        folder: made when missing, with access for its owner alone.
        pseudonyms: stand-ins of studies.
        rotate_bytes: size at which a file is closed.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, pseudonyms: Pseudonyms, *, rotate_bytes: int = 16 * 2**20) -> None:
        self.folder = folder
        self._pseudonyms, self._rotate_bytes = pseudonyms, rotate_bytes
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._turn():
            self._trail = AuditTrail(folder, rotate_bytes=rotate_bytes)
            self._mark = self._state()

    def write(
        self,
        action: Did,
        *,
        outcome: Outcome = Outcome.SUCCESS,
        actor: str | None = None,
        study: str | None = None,
        upload: str | None = None,
        detail: str = "",
        count: int | None = None,
    ) -> None:
        """Write one line; when this returns, it is on the disk.

        Args:
            action: what was done.
            outcome: how it went.
            actor: id of an account; None for the person of the request, ``system`` outside one.
            study: id of a study; the trail gets its pseudonym.
            upload: id of an upload; its pseudonym is the detail, since ids of studies follow from it.
            detail: a short reason of our own words, or an id; never a patient.
            count: of files, where that makes sense.

        Raises:
            OutputError: it could not be written; then what was to be done must not be.
        """
        who, address = _asker()
        stands_for = "" if study is None else str(self._pseudonyms.of("study", study))
        if upload is not None:
            detail = str(self._pseudonyms.of("upload", upload))
        self.append(WebEvent(action, outcome, actor or who, address, stands_for, "", detail, count))

    def append(self, event: WebEvent) -> None:
        """Write one line as it is. See ``write``."""
        with self._turn():
            if self._state() != self._mark:  # another process wrote since
                self._trail = AuditTrail(self.folder, rotate_bytes=self._rotate_bytes)
            # The trail asks an event for its ``fields`` alone.
            self._trail.append(cast(AuditEvent, event))
            self._mark = self._state()

    def verify(self) -> Break | None:
        """The first place where the chain does not hold; None when it holds."""
        with self._turn():
            return verify(self.folder)

    def _state(self) -> tuple[int, int]:
        try:
            found = self._trail.current.stat() if hasattr(self, "_trail") else (self.folder / "audit.jsonl").stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_size

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            descriptor = os.open(self.folder / ".turn", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def _asker() -> tuple[str, str]:
    """Who asks, and from where; ``system`` outside a request."""
    from flask import has_request_context, request

    from cspine.web.access import signed_in

    if not has_request_context():
        return "system", ""
    person = signed_in()
    return "nobody" if person is None else person.id, request.remote_addr or ""
