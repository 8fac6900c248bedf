"""The audit trail for those who may read it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, Response, render_template, request, send_file

from cspine.node.audit import files_of
from cspine.web.access import need_role
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.models import RoleName, User

blueprint = Blueprint("trail", __name__, url_prefix="/audit")
PAGE = 100
# How far back a search looks on one page.
_MOST = 100_000


@blueprint.get("/")
@need_role(RoleName.AUDITOR)
def index() -> str:
    """The newest lines first; ``q`` narrows them, ``before`` pages."""
    wanted, before = request.args.get("q", "").strip(), request.args.get("before", type=int)
    found: list[dict[str, Any]] = []
    more = None
    for entry in _backwards(context().audit.folder, before):
        if wanted and wanted.casefold() not in json.dumps(entry).casefold():
            continue
        if len(found) == PAGE:
            more = found[-1]["n"]
            break
        found.append(entry)
    return render_template("admin/trail.html", lines=found, names=_names(found), wanted=wanted, more=more)


@blueprint.post("/check")
@need_role(RoleName.AUDITOR)
def check() -> str:
    """Whether the chain of the whole trail holds."""
    broken = context().audit.verify()
    context().audit.write(Did.READ_TRAIL, detail="checked")
    return render_template("admin/trail_check.html", broken=broken)


@blueprint.post("/export")
@need_role(RoleName.AUDITOR)
def export() -> Response:
    """The whole trail as one file."""
    context().audit.write(Did.EXPORTED)
    whole = tempfile.SpooledTemporaryFile(max_size=2**20)  # noqa: SIM115  closed when it has been sent
    for path in files_of(context().audit.folder):
        whole.write(path.read_bytes())
    whole.seek(0)
    return send_file(whole, mimetype="application/jsonl", as_attachment=True, download_name="cspine-audit.jsonl")


def _backwards(folder: Path, before: int | None) -> Iterator[dict[str, Any]]:
    looked = 0
    for path in reversed(files_of(folder)):
        for line in reversed(path.read_bytes().splitlines()):
            entry: dict[str, Any] = json.loads(line)
            if before is not None and entry["n"] >= before:
                continue
            looked += 1
            if looked > _MOST:
                return
            yield entry


def _names(lines: list[dict[str, Any]]) -> dict[str, str]:
    """Who the ids are, as long as the accounts exist."""
    ids = {line.get("actor", "") for line in lines}
    return {person.id: person.email for person in db.session.scalars(sa.select(User).where(User.id.in_(ids)))}
