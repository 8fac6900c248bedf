"""Whether the application works, figures for Prometheus, and who is logged in for scripts of a page."""

from __future__ import annotations

import hmac
import os
import shutil

import sqlalchemy as sa
from flask import Blueprint, Response, abort, request
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import generate_csrf

from cspine.web.access import current_user, need_role
from cspine.web.app import context
from cspine.web.database import db
from cspine.web.models import Answer, Job, LoginSession, Study, Upload, User
from cspine.web.strings import t

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> ResponseReturnValue:
    """200 when the database answers and the data folder can be written with room to spare, else 503 and what fails."""
    settings = context().settings
    checks = {
        "database": _answers(),
        "data": os.access(settings.data, os.W_OK),
        "disk": shutil.disk_usage(settings.data).free > settings.limits.free_bytes,
    }
    good = all(checks.values())
    failing = [name for name, fine in checks.items() if not fine]
    return {"status": "ok" if good else "failing", "failing": failing}, 200 if good else 503


@blueprint.get("/metrics")
def metrics() -> Response:
    """Figures for Prometheus, made from the database at each reading; needs the token of the settings."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

    file = context().settings.metrics.token_file
    if file is None:
        abort(404)
    wanted = f"Bearer {file.read_text(encoding='utf-8').strip()}"
    if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), wanted.encode()):
        return Response(t("errors.401"), 401, {"WWW-Authenticate": "Bearer"}, content_type="text/plain")
    registry = CollectorRegistry()
    for name, text, column in (
        ("studies", "Studies by state", Study.state),
        ("jobs", "Jobs by state", Job.state),
        ("uploads", "Uploads by state", Upload.state),
        ("answers", "Answers of readers by verdict", Answer.verdict),
    ):
        gauge = Gauge(f"cspine_web_{name}", text, ["state"], registry=registry)
        for state, count in db.session.execute(sa.select(column, sa.func.count()).group_by(column)):
            gauge.labels(state).set(count)
    oldest = db.session.scalar(sa.select(sa.func.min(Job.created)).where(Job.state == "queued"))
    Gauge("cspine_web_oldest_queued_timestamp", "When the oldest waiting job came", registry=registry).set(
        0 if oldest is None else oldest.timestamp()
    )
    for name, text, table in (("accounts", "Accounts", User), ("sessions", "Browsers logged in", LoginSession)):
        whole = db.session.scalar(sa.select(sa.func.count()).select_from(table))
        Gauge(f"cspine_web_{name}", text, registry=registry).set(whole or 0)
    free = shutil.disk_usage(context().settings.data).free
    Gauge("cspine_web_disk_free_bytes", "Free on the disk of the data", registry=registry).set(free)
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


@blueprint.get("/api/session")
@need_role()
def session() -> ResponseReturnValue:
    """Who is logged in, and a token for what scripts of a page send; for a page that outlived its session."""
    return {"user": current_user().label, "csrf": generate_csrf()}


def _answers() -> bool:
    try:
        return db.session.scalar(sa.select(1)) == 1
    except sa.exc.SQLAlchemyError:
        return False
