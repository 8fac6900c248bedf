"""``create_app``: the application put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from flask import Flask, current_app

from cspine.node.privacy import Pseudonyms
from cspine.web.audit_log import AuditLog
from cspine.web.database import Sessions, connect, upgrade
from cspine.web.settings import WebSettings

if TYPE_CHECKING:
    from cspine.web.jobs import Jobs
    from cspine.web.store import Store

# Each is a module of this package with an object ``blueprint``.
BLUEPRINTS = (
    "worklist",
    "uploads",
    "viewing",
    "answers",
    "artefacts",
    "dashboard",
    "api",
    "login",
    "joining",
    "oidc",
    "accounts",
    "second_factor",
    "sharing",
    "admin",
    "trail",
    "health",
)


@dataclass(frozen=True, slots=True)
class Context:
    """What the views share; see ``context``.

    Attributes:
        settings: of the application.
        sessions: makes database sessions outside requests; in one use ``database.db.session``.
        store: the files.
        audit: the trail.
        pseudonyms: stand-ins for identifiers.
        jobs: the queue.
    """

    settings: WebSettings
    sessions: Sessions
    store: Store
    audit: AuditLog
    pseudonyms: Pseudonyms
    jobs: Jobs


def context() -> Context:
    """What the views of the running application share."""
    return cast(Context, current_app.extensions["cspine"])


def create_app(settings: WebSettings, *, blueprints: Sequence[str] = BLUEPRINTS, inline: bool = False) -> Flask:
    """The application; its data folder and tables are made when missing.

    Args:
        settings: all of them.
        blueprints: modules of ``cspine.web`` whose pages it has.
        inline: jobs run in the request that submits them, for tests; else ``context().jobs.start()`` starts the queue.

    Raises:
        CspineError: the folder or the database cannot be used.
    """
    from cspine.web import errors, headers, pages, security

    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.data.chmod(0o700)  # a folder that was there already may be open to others; the files in it rely on it
    upgrade(settings.database_url)
    app = Flask("cspine.web", static_url_path="/static")
    sessions = connect(app, settings.database_url)
    pseudonyms = Pseudonyms.from_file(settings.data / "pseudonyms.key")
    audit = AuditLog(settings.data / "audit", pseudonyms, rotate_bytes=settings.audit.rotate_bytes)
    store, jobs = _work(settings, sessions, audit, inline=inline)
    app.extensions["cspine"] = Context(settings, sessions, store, audit, pseudonyms, jobs)
    security.set_up(app, settings)
    pages.set_up(app, settings)
    errors.set_up(app)
    headers.protect(app, secure=settings.secure)
    for name in blueprints:
        app.register_blueprint(import_module(f"cspine.web.{name}").blueprint)
    return app


def _work(settings: WebSettings, sessions: Sessions, audit: AuditLog, *, inline: bool) -> tuple[Store, Jobs]:
    from cspine.web.jobs import Jobs
    from cspine.web.store import Store

    store = Store(settings.data)
    return store, Jobs(settings, sessions, store, audit, inline=inline)
