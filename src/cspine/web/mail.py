"""Letters, sent in the background: how long the server takes must not tell who has an account."""

from __future__ import annotations

import contextlib
import logging
import smtplib
import ssl
import threading
from collections.abc import Iterator
from email.message import EmailMessage

from cspine.node.privacy import plain
from cspine.web.app import context
from cspine.web.models import User
from cspine.web.settings import Mail
from cspine.web.strings import t

_log = logging.getLogger(__name__)


def send(settings: Mail, to: str, subject: str, text: str) -> None:
    """Send one letter; returns at once. A failure is logged, without the address.

    Args:
        settings: the server.
        to: e-mail address.
        subject: one line.
        text: plain text.
    """
    letter = EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = settings.sender, to, subject
    letter["Auto-Submitted"] = "auto-generated"
    letter.set_content(text)
    threading.Thread(target=_send, args=(settings, letter), name="letter", daemon=True).start()


def tell(person: User, what: str) -> None:
    """Let a person know of a change at the account, where letters can be sent: whoever made it may be somebody else.

    Args:
        person: whose account it is.
        what: key below ``account.letter.changed``.
    """
    settings = context().settings
    if settings.mail is not None:
        text = t("account.letter.changed.text", what=t(f"account.letter.changed.{what}"), address=settings.address)
        send(settings.mail, person.email, t("account.letter.changed.subject"), text)


def _send(settings: Mail, letter: EmailMessage) -> None:
    try:
        deliver(settings, letter)
    except (OSError, smtplib.SMTPException) as error:
        _log.error("a letter was not sent: %s", plain(type(error).__name__))


def deliver(settings: Mail, letter: EmailMessage) -> None:
    """Hand one letter to the server.

    Raises:
        OSError: it cannot be reached, or its certificate is not vouched for.
        smtplib.SMTPException: it refuses.
    """
    with connected(settings) as server:
        server.send_message(letter)


@contextlib.contextmanager
def connected(settings: Mail) -> Iterator[smtplib.SMTP]:
    """A conversation with the server, encrypted and logged in as the settings say. Raises like ``deliver``."""
    trust = ssl.create_default_context()
    if settings.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(settings.host, settings.port, timeout=settings.seconds, context=trust)
    else:
        server = smtplib.SMTP(settings.host, settings.port, timeout=settings.seconds)
    with server:
        if settings.security == "starttls":
            server.starttls(context=trust)
        if settings.username is not None and settings.password_file is not None:
            server.login(settings.username, settings.password_file.read_text(encoding="utf-8").strip())
        yield server
