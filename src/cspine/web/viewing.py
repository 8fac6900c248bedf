"""The reading room: ``/studies/<id>``, its pictures and its scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from flask import Blueprint, Response, abort, current_app, render_template, request, send_from_directory
from flask.blueprints import BlueprintSetupState
from flask.typing import ResponseReturnValue

from cspine.findings import Findings
from cspine.reports.picture_findings import PictureFindings
from cspine.web.access import has_role, need_role, study_of
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.models import RoleName, Study, StudyKind, now
from cspine.web.strings import t
from cspine.web.viewing_assets import built, send_asset
from cspine.web.viewing_facts import FACTS_FILE, PLANES, VIEW_FOLDER, Plane, ViewFacts
from cspine.web.viewing_page import room
from cspine.web.viewing_picture_page import pictures_room
from cspine.web.viewing_pictures import PictureViewFacts
from cspine.web.viewing_slices import WINDOWS, PictureCache, draw_overlay, draw_slice, draw_source, level_colours

blueprint = Blueprint("viewing", __name__)

FINDINGS_FILE, PICTURES_FILE = "findings.json", "pictures.json"
_KINDS = {".gz": "application/gzip", ".mz3": "application/octet-stream", ".jpg": "image/jpeg", ".png": "image/png"}
_CACHE = "viewing-pictures"
_readers = need_role(RoleName.READER, RoleName.UPLOADER)


@blueprint.record_once
def _set_up(state: BlueprintSetupState) -> None:
    state.app.jinja_env.globals["built"] = built
    state.app.extensions[_CACHE] = PictureCache()


@blueprint.get("/studies/<study_id>")
@_readers
def page(study_id: str) -> ResponseReturnValue:
    """The reading room of one study; of one that is not judged, what it waits for."""
    study = study_of(study_id)
    results = context().store.results(study)
    if results is None:
        job = max(study.jobs, key=lambda item: item.created, default=None)
        return render_template("reading/waiting.html", study=study, job=job)
    _note_reading(study)
    if study.kind == StudyKind.PICTURES:
        return _pictures(study, results)
    findings = Findings.load(results / FINDINGS_FILE)
    facts = ViewFacts.load(results / VIEW_FOLDER)
    if facts is None:
        return render_template("reading/waiting.html", study=study, job=None)
    return render_template("reading/room.html", **room(study, findings, facts, dict(request.args.items())))


def _pictures(study: Study, results: Path) -> ResponseReturnValue:
    findings = PictureFindings.model_validate_json((results / PICTURES_FILE).read_bytes())
    facts = PictureViewFacts.load(results / VIEW_FOLDER)
    shown = () if facts is None else facts.pictures
    return render_template("reading/pictures.html", **pictures_room(study, findings, shown, dict(request.args.items())))


def _note_reading(study: Study) -> None:
    """Write down who looked; the first reader's look makes the study read."""
    if study.read_at is None and has_role(RoleName.READER):
        study.read_at = now()
        db.session.commit()
    context().audit.write(Did.VIEWED, study=study.id)


@blueprint.get("/studies/<study_id>/view/<name>")
@_readers
def file(study_id: str, name: str) -> ResponseReturnValue:
    """One of the files that ``prepare_view`` wrote for browsers."""
    folder = _view(study_of(study_id))
    kind = _KINDS.get(Path(name).suffix)
    if kind is None:
        abort(404)
    # No encoding is named: the page unpacks these itself.
    response = send_from_directory(folder, name, mimetype=kind, conditional=True)
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.get("/studies/<study_id>/slices/<plane>/<int:index>.jpg")
@_readers
def slice_picture(study_id: str, plane: str, index: int) -> ResponseReturnValue:
    """A slice of the view; ``?window=`` one of ``WINDOWS``."""
    study, facts, folder = _facts(study_id)
    name = request.args.get("window", "bone")
    if name not in WINDOWS:
        abort(404, t("read.no-window"))
    return _drawn(
        "image/jpeg",
        (study.id, study.result, plane, index, name),
        lambda: draw_slice(folder, facts.grid, _plane(plane), index, WINDOWS[name]),
    )


@blueprint.get("/studies/<study_id>/overlays/<plane>/<int:index>.png")
@_readers
def overlay_picture(study_id: str, plane: str, index: int) -> ResponseReturnValue:
    """Outlines and evidence over a slice of the view."""
    study, facts, folder = _facts(study_id)
    findings = Findings.load(folder.parent / FINDINGS_FILE)
    return _drawn(
        "image/png",
        (study.id, study.result, plane, index, "overlay"),
        lambda: draw_overlay(folder, facts.grid, _plane(plane), index, level_colours(findings)),
    )


@blueprint.get("/studies/<study_id>/source/<int:index>.png")
@_readers
def source_picture(study_id: str, index: int) -> ResponseReturnValue:
    """A slice of the CT as it was scanned, every pixel of it; ``?window=`` one of ``WINDOWS``."""
    _, facts, folder = _facts(study_id)
    name = request.args.get("window", "bone")
    if name not in WINDOWS:
        abort(404, t("read.no-window"))
    try:
        return Response(draw_source(folder, facts, index, WINDOWS[name]), mimetype="image/png")
    except IndexError:
        abort(404)


@blueprint.get("/static/built/<name>")
def asset(name: str) -> ResponseReturnValue:
    """A built script."""
    return send_asset(name)


def _view(study: Study) -> Path:
    results = context().store.results(study)
    if results is None or not (results / VIEW_FOLDER / FACTS_FILE).is_file():
        abort(404)
    return results / VIEW_FOLDER


def _facts(study_id: str) -> tuple[Study, ViewFacts, Path]:
    study = study_of(study_id)
    folder = _view(study)
    facts = ViewFacts.load(folder) if study.kind == StudyKind.VOLUME else None
    if facts is None:
        abort(404)
    return study, facts, folder


def _plane(name: str) -> Plane:
    if name not in PLANES:
        abort(404)
    return name


def _drawn(kind: str, key: tuple[object, ...], draw: Callable[[], bytes]) -> Response:
    """A picture from the cache, or drawn now.

    Raises:
        HTTPException: 404, there is no such slice.
    """
    cache = _pictures_drawn()
    found = cache.get(key)
    if found is None:
        try:
            found = cache.put(key, draw())
        except IndexError:
            abort(404)
    return Response(found, mimetype=kind)


def forget_pictures(study_id: str) -> None:
    """Drop what was drawn of a study that is deleted; nobody could have asked for it any more."""
    if _CACHE in current_app.extensions:
        _pictures_drawn().forget(study_id)


def _pictures_drawn() -> PictureCache:
    """Those that were drawn lately by the running application."""
    return cast(PictureCache, current_app.extensions[_CACHE])
