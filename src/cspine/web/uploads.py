"""The upload page, the addresses that its script calls, and the plain form for browsers without scripts."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import generate_csrf
from werkzeug.datastructures import FileStorage

from cspine.errors import CspineError
from cspine.web.access import current_user, has_role, job_of, need_role, signed_in, upload_of
from cspine.web.app import context
from cspine.web.database import db
from cspine.web.errors import refusal
from cspine.web.models import RoleName, Study, StudyState, Upload, UploadFile, UploadState
from cspine.web.receiving import Announced, ChecksumError, LimitError, OffsetError, Receiver, StateError
from cspine.web.store import DiskFullError
from cspine.web.strings import t
from cspine.web.upload_answers import job_answer, upload_answer, words

blueprint = Blueprint("uploads", __name__)

UPLOADER = RoleName.UPLOADER
# Uploads that the page lists: those that wait for their owner.
MOST_LISTED = 20
# Beside the pieces of a form: names and boundaries.
FORM_BYTES = 64 * 1024
_STATUS: tuple[tuple[type[CspineError], int], ...] = (
    (OffsetError, 409), (StateError, 409), (LimitError, 413), (DiskFullError, 507), (ChecksumError, 422),
)  # fmt: skip


def receiver() -> Receiver:
    """What takes uploads in the running application."""
    here = context()
    return Receiver(here.settings, here.sessions, here.store, here.audit, here.jobs)


@blueprint.url_value_preprocessor
def _large_forms(endpoint: str | None, _: dict[str, Any] | None) -> None:
    """A whole upload in one form is larger than other requests; it is read before anything else may look at it."""
    if endpoint == "uploads.send" and signed_in() is not None and has_role(UPLOADER):
        most = min(context().settings.limits.upload_bytes, receiver().room())
        request.max_content_length = max(most, 0) + FORM_BYTES


@blueprint.errorhandler(CspineError)
def _refused(error: CspineError) -> ResponseReturnValue:
    status = status_of(error)
    text = f"{error.message.rstrip('.')}. {error.fix or ''}".strip()
    if isinstance(error, OffsetError):
        return {"error": error.code, "message": text, "received": error.received}, status
    return refusal(status, error.code, text)


def status_of(error: CspineError) -> int:
    """The status that an error is answered with."""
    return next((code for kind, code in _STATUS if isinstance(error, kind)), 400)


# Pages ---------------------------------------------------------------------------------------------------------------


@blueprint.get("/uploads")
@need_role(UPLOADER)
def page() -> ResponseReturnValue:
    """Where files are dropped, and what of earlier uploads still waits for its owner."""
    settings = context().settings
    open_ones = [_shown(one) for one in _waiting()]
    return render_template(
        "uploads/page.html",
        limits=settings.limits,
        deidentify=settings.deidentify,
        uploads=open_ones,
        key=str(uuid.uuid4()),
        jobs=[(one, words(one)) for one in context().jobs.standing(current_user().id)],
    )


@blueprint.post("/uploads")
@need_role(UPLOADER)
def send() -> ResponseReturnValue:
    """A whole upload in one form, from a browser without scripts."""
    files = [one for one in request.files.getlist("files") if one.filename]
    if not files:
        flash(t("uploads.error.no-file"), "bad")
        return redirect(url_for("uploads.page"))
    taker, person = receiver(), current_user()
    sizes = [_size_of(one) for one in files]
    announced = [Announced(one.filename or "?", size) for one, size in zip(files, sizes, strict=True)]
    upload = taker.announce(
        person.id, announced, deidentify="deidentify" in request.form, key=request.form.get("key") or None
    )
    rows = _files(upload.id)
    if upload.state == UploadState.RECEIVING:
        _take(taker, upload, rows, files)
        taker.finish(upload)
    return redirect(url_for("uploads.show", upload_id=upload.id))


def _take(taker: Receiver, upload: Upload, rows: Sequence[UploadFile], files: Sequence[FileStorage]) -> None:
    """Write the files of a form as if they had come in pieces; what an earlier try brought is not written again."""
    left = list(rows)
    for file in files:
        size = _size_of(file)
        row = next((one for one in left if one.size == size and file.filename in (one.name, f"/{one.name}")), None)
        row = row or next((one for one in left if one.size == size), None)
        if row is None:
            continue
        left.remove(row)
        offset = row.received
        file.stream.seek(offset)
        while offset < size:
            offset = taker.write(upload, row.id, offset, file.stream.read(context().settings.limits.chunk_bytes))


def _size_of(file: FileStorage) -> int:
    size = file.stream.seek(0, 2)
    file.stream.seek(0)
    return int(size)


@blueprint.get("/uploads/<uuid:upload_id>")
@need_role(UPLOADER)
def show(upload_id: object) -> ResponseReturnValue:
    """One upload: how far it is, what it holds, and what is to be done with it."""
    upload = upload_of(str(upload_id))
    studies = _studies(upload.id)
    mine = {study.id for study in studies}
    standing = [one for one in context().jobs.standing(current_user().id) if one.study.id in mine]
    return render_template(
        "uploads/show.html",
        upload=upload,
        studies=studies,
        ready=[one for one in studies if one.state in (StudyState.READY, StudyState.CANCELLED)],
        problems=upload.facts.get("problems", []),
        complete=_complete(_files(upload.id)),
        jobs=[(one, words(one)) for one in standing],
    )


@blueprint.post("/uploads/<uuid:upload_id>/run")
@need_role(UPLOADER)
def run_form(upload_id: object) -> ResponseReturnValue:
    """Judge the studies that are ticked."""
    upload = upload_of(str(upload_id))
    ticked = request.form.getlist("study")
    if not ticked:
        flash(t("uploads.error.choose"), "bad")
    else:
        receiver().run(upload, {one: request.form.get(f"series-{one}") or None for one in ticked}, current_user().id)
    return redirect(url_for("uploads.show", upload_id=upload.id))


@blueprint.post("/uploads/<uuid:upload_id>/finish")
@need_role(UPLOADER)
def finish_form(upload_id: object) -> ResponseReturnValue:
    """Look again at an upload whose files are here."""
    upload = upload_of(str(upload_id))
    receiver().finish(upload)
    return redirect(url_for("uploads.show", upload_id=upload.id))


@blueprint.post("/uploads/<uuid:upload_id>/discard")
@need_role(UPLOADER)
def discard_form(upload_id: object) -> ResponseReturnValue:
    """Throw an upload away."""
    receiver().discard(upload_of(str(upload_id)))
    flash(t("uploads.discarded"), "good")
    return redirect(url_for("uploads.page"))


@blueprint.post("/jobs/<uuid:job_id>/cancel")
@need_role(UPLOADER)
def cancel_form(job_id: object) -> ResponseReturnValue:
    """Cancel a job."""
    job = job_of(str(job_id))
    flash(t("jobs.cancelled") if context().jobs.cancel(job.id) else t("jobs.was-over"), "good")
    study = db.session.get(Study, job.study_id)
    if study is None or study.upload_id is None:
        return redirect(url_for("uploads.page"))
    return redirect(url_for("uploads.show", upload_id=study.upload_id))


# JSON ----------------------------------------------------------------------------------------------------------------


@blueprint.get("/api/uploads")
@need_role(UPLOADER, scope="upload")
def list_uploads() -> ResponseReturnValue:
    """Uploads that wait for their owner; and a fresh token, for a page that outlived its session."""
    return {"uploads": [answer_of(one) for one in _waiting()], "csrf": generate_csrf()}


@blueprint.post("/api/uploads")
@need_role(UPLOADER, scope="upload")
def announce() -> ResponseReturnValue:
    """Begin an upload."""
    said = _json()
    listed = said.get("files")
    if not isinstance(listed, list):
        abort(400, t("uploads.error.json"))
    try:
        files = [Announced(str(one["name"]), int(one["size"])) for one in listed]
    except (KeyError, TypeError, ValueError, OverflowError):
        abort(400, t("uploads.error.json"))
    key = said.get("key")
    upload = receiver().announce(
        current_user().id,
        files,
        deidentify=said.get("deidentify") is True,
        key=key if isinstance(key, str) else None,
    )
    return answer_of(upload), 201


@blueprint.get("/api/uploads/<uuid:upload_id>")
@need_role(UPLOADER, scope="upload")
def describe(upload_id: object) -> ResponseReturnValue:
    """One upload, with the offset at which each file goes on."""
    return answer_of(upload_of(str(upload_id)))


@blueprint.put("/api/uploads/<uuid:upload_id>/files/<uuid:file_id>")
@need_role(UPLOADER, scope="upload")
def write(upload_id: object, file_id: object) -> ResponseReturnValue:
    """A piece of a file: ``?offset=``, the bytes as the body, their SHA-256 in ``X-Chunk-SHA256``."""
    upload = upload_of(str(upload_id))
    offset = request.args.get("offset", type=int)
    if offset is None or offset < 0:
        abort(400, t("uploads.error.json"))
    received = receiver().write(
        upload, str(file_id), offset, request.get_data(cache=False), request.headers.get("X-Chunk-SHA256")
    )
    return {"received": received}


@blueprint.post("/api/uploads/<uuid:upload_id>/finish")
@need_role(UPLOADER, scope="upload")
def finish(upload_id: object) -> ResponseReturnValue:
    """Everything is here: look what it is."""
    upload = upload_of(str(upload_id))
    receiver().finish(upload)
    db.session.refresh(upload)
    return answer_of(upload), 202


@blueprint.delete("/api/uploads/<uuid:upload_id>")
@need_role(UPLOADER, scope="upload")
def discard(upload_id: object) -> ResponseReturnValue:
    """Throw an upload away."""
    receiver().discard(upload_of(str(upload_id)))
    return "", 204


@blueprint.post("/api/uploads/<uuid:upload_id>/run")
@need_role(UPLOADER, scope="upload")
def run(upload_id: object) -> ResponseReturnValue:
    """Judge studies: ``{"studies": {id: series or null}}``."""
    upload = upload_of(str(upload_id))
    chosen = _json().get("studies")
    if not isinstance(chosen, dict) or not all(one is None or isinstance(one, str) for one in chosen.values()):
        abort(400, t("uploads.error.json"))
    jobs = receiver().run(upload, chosen, current_user().id)
    return {"jobs": [{"id": job.id, "study": job.study_id, "state": str(job.state)} for job in jobs]}, 202


@blueprint.get("/api/jobs")
@need_role(UPLOADER, scope="upload")
def list_jobs() -> ResponseReturnValue:
    """The person's jobs that wait or run, or ended of late."""
    return {"jobs": [job_answer(one) for one in context().jobs.standing(current_user().id)]}


@blueprint.post("/api/jobs/<uuid:job_id>/cancel")
@need_role(UPLOADER, scope="upload")
def cancel(job_id: object) -> ResponseReturnValue:
    """Cancel a job; ``cancelled`` is false when it was over."""
    return {"cancelled": context().jobs.cancel(job_of(str(job_id)).id)}


def _json() -> dict[str, Any]:
    said = request.get_json(silent=True)
    if not isinstance(said, dict):
        abort(400, t("uploads.error.json"))
    return said


def _waiting() -> Sequence[Upload]:
    """Uploads that wait for something: for bytes, for a look, or for the word to run."""
    ready = sa.select(Study.upload_id).where(Study.state == StudyState.READY, Study.owner_id == current_user().id)
    open_now = Upload.state.in_((UploadState.RECEIVING, UploadState.RECOGNISING))
    waits = sa.and_(Upload.state == UploadState.RECOGNISED, Upload.id.in_(ready))
    query = sa.select(Upload).where(Upload.owner_id == current_user().id, sa.or_(open_now, waits))
    return db.session.scalars(query.order_by(Upload.created.desc()).limit(MOST_LISTED)).all()


def _files(upload_id: str) -> Sequence[UploadFile]:
    query = sa.select(UploadFile).where(UploadFile.upload_id == upload_id).order_by(UploadFile.name)
    return db.session.scalars(query).all()


def _studies(upload_id: str) -> Sequence[Study]:
    query = sa.select(Study).where(Study.upload_id == upload_id, Study.state != StudyState.DELETED)
    return db.session.scalars(query.order_by(Study.created, Study.title)).all()


def _complete(files: Sequence[UploadFile]) -> bool:
    return bool(files) and all(one.received == one.size for one in files)


def answer_of(upload: Upload) -> dict[str, Any]:
    """One upload in JSON, as it is now."""
    chunk = context().settings.limits.chunk_bytes
    return upload_answer(upload, _files(upload.id), _studies(upload.id), chunk)


def _shown(upload: Upload) -> dict[str, Any]:
    files = _files(upload.id)
    received, total = sum(one.received for one in files), max(upload.bytes_expected, 1)
    return {"upload": upload, "files": len(files), "share": received / total}
