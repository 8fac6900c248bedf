"""``/``: the list of studies, the most urgent first. It keeps itself up to date."""

from __future__ import annotations

from urllib.parse import urlencode

from flask import Blueprint, current_app, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from cspine.web.access import current_user, has_role, need_role
from cspine.web.database import db
from cspine.web.models import Job, RoleName
from cspine.web.strings import catalogue
from cspine.web.worklist_query import DAYS, MINE, ORDERS, SHOWS, Filters, groups, listing, owners

blueprint = Blueprint("worklist", __name__)
# A script that keeps the list up to date asks for its lines alone.
PART = "X-Part"
# Seconds between two looks: while something is in work, and otherwise.
BUSY_SECONDS, IDLE_SECONDS = 4, 30


@blueprint.route("/", methods=["GET", "POST"])
@need_role()
def index() -> ResponseReturnValue:
    """The list. A search comes as POST, so that no patient's name stands in an address or a log."""
    if not has_role(RoleName.READER, RoleName.UPLOADER):
        return _elsewhere()
    filters = Filters.of(request.values)
    if request.method == "POST" and not filters.search and PART not in request.headers:
        return redirect(address(filters), 303)
    person = current_user()
    found = listing(db.session, filters, person)
    values = {
        "filters": filters, "found": found, "may_upload": has_role(RoleName.UPLOADER), "step_of": step_of,
        "views": current_app.view_functions,
    }  # fmt: skip
    if PART in request.headers:
        # No table for the eye, no cookie, nothing but the lines: small enough to ask for every few seconds.
        made = make_response(render_template("worklist/_list.html", **values))
        made.add_etag()
        return made.make_conditional(request)
    return render_template(
        "worklist/index.html", **values, shows=SHOWS, orders=ORDERS, days=DAYS, mine=MINE, seconds=_pace(found.busy),
        owners=owners(db.session, person), groups=groups(db.session, person),
    )  # fmt: skip


def address(filters: Filters) -> str:
    """Of the list with these filters; the search is not in it."""
    query = filters.query()
    return url_for(".index") + (f"?{urlencode(query)}" if query else "")


def step_of(job: Job) -> str:
    """What is done now, in a few words; empty when the catalogue has none for it."""
    return catalogue().get(f"jobs.step.{job.step}", "")


def _pace(busy: int) -> int:
    return BUSY_SECONDS if busy else IDLE_SECONDS


def _elsewhere() -> ResponseReturnValue:
    """Administrators and auditors have no studies: their own first page, else the account."""
    from cspine.web.pages import places

    open_to_them = places()
    return redirect(open_to_them[0][0] if open_to_them else url_for("accounts.index"))
