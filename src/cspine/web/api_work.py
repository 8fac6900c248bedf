"""The API's operations on uploads and jobs: sending studies, having them judged."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from flask import request

from cspine.web import api_models as m
from cspine.web.access import current_user, job_of, study_of, upload_of
from cspine.web.api_spec import BINARY, EITHER, READ, UPLOAD, UPLOADER, Operation, api
from cspine.web.app import context
from cspine.web.database import db
from cspine.web.jobs import Standing
from cspine.web.models import Job, Study, Upload, UploadState
from cspine.web.receiving import Announced
from cspine.web.upload_answers import job_answer, upload_answer
from cspine.web.uploads import receiver

# Uploads that are listed at once.
_MOST = 50
_STUDY = "/studies/<uuid:study_id>"


@api.operation(Operation("GET", "/jobs", "jobs", "list_jobs", READ, EITHER, m.JobsOut))
def list_jobs() -> m.JobsOut:
    """The person's jobs that wait or run, or ended of late."""
    return m.JobsOut.model_validate({"jobs": [job_answer(one) for one in context().jobs.standing(current_user().id)]})


@api.operation(Operation("GET", "/jobs/<uuid:job_id>", "jobs", "get_job", READ, EITHER, m.JobOut))
def get_job(job_id: UUID) -> m.JobOut:
    """Where one job stands."""
    job = job_of(str(job_id))
    known = (one for one in context().jobs.standing(current_user().id) if one.job.id == job.id)
    return m.JobOut.model_validate(job_answer(next(known, Standing(job, job.study))))


@api.operation(Operation("POST", "/jobs/<uuid:job_id>/cancel", "jobs", "cancel_job", UPLOAD, UPLOADER, m.Cancelled))
def cancel_job(job_id: UUID) -> m.Cancelled:
    """Cancel a job."""
    return m.Cancelled(cancelled=context().jobs.cancel(job_of(str(job_id)).id))


@api.operation(
    Operation("POST", f"{_STUDY}/jobs", "jobs", "judge", UPLOAD, UPLOADER, m.Queued, 202, refusals=(409, 422))
)
def judge(study_id: UUID) -> m.Queued:
    """Judge a study of one's own; asked twice, the same job comes back."""
    job = context().jobs.submit(study_of(str(study_id), write=True).id, current_user().id)
    return _queued(job)


def _queued(job: Job) -> m.Queued:
    return m.Queued(id=UUID(job.id), study=UUID(job.study_id), state=str(job.state))


# Uploads -------------------------------------------------------------------------------------------------------------

_UPLOAD = "/uploads/<uuid:upload_id>"


@api.operation(Operation("GET", "/uploads", "uploads", "list_uploads", UPLOAD, UPLOADER, m.Uploads))
def list_uploads() -> m.Uploads:
    """The newest uploads of the person."""
    query = sa.select(Upload).where(Upload.owner_id == current_user().id, Upload.state != UploadState.DISCARDED)
    found = db.session.scalars(query.order_by(Upload.created.desc()).limit(_MOST)).all()
    return m.Uploads(uploads=[_upload(one) for one in found])


@api.operation(
    Operation(
        "POST", "/uploads", "uploads", "begin_upload", UPLOAD, UPLOADER, m.UploadOut, 201,
        body=m.UploadIn, refusals=(507,),
    )
)  # fmt: skip
def begin_upload(body: m.UploadIn) -> m.UploadOut:
    """Announce the files of an upload."""
    files = [Announced(one.name, one.size) for one in body.files]
    made = receiver().announce(current_user().id, files, deidentify=body.deidentify, key=body.key)
    return _upload(db.session.get_one(Upload, made.id))


@api.operation(Operation("GET", _UPLOAD, "uploads", "get_upload", UPLOAD, UPLOADER, m.UploadOut))
def get_upload(upload_id: UUID) -> m.UploadOut:
    """An upload, with the offset at which each file goes on."""
    return _upload(upload_of(str(upload_id)))


@api.operation(
    Operation(
        "PUT", f"{_UPLOAD}/files/<uuid:file_id>", "uploads", "send_piece", UPLOAD, UPLOADER, m.Received,
        query=m.PieceQuery, body=BINARY, refusals=(409, 507), headers={"X-Chunk-SHA256": "api.digest"},
    )
)  # fmt: skip
def send_piece(upload_id: UUID, file_id: UUID, query: m.PieceQuery) -> m.Received:
    """A piece of a file; pieces of one file come one after the other."""
    upload = upload_of(str(upload_id))
    digest, data = request.headers.get("X-Chunk-SHA256"), request.get_data(cache=False)
    return m.Received(received=receiver().write(upload, str(file_id), query.offset, data, digest))


@api.operation(
    Operation(
        "POST", f"{_UPLOAD}/finish", "uploads", "finish_upload", UPLOAD, UPLOADER, m.UploadOut, 202, refusals=(409,)
    )
)
def finish_upload(upload_id: UUID) -> m.UploadOut:
    """Everything is sent: look what it is. Ask for the upload until its state is ``recognised`` or ``refused``."""
    upload = upload_of(str(upload_id))
    receiver().finish(upload)
    db.session.expire_all()
    return _upload(upload_of(str(upload_id)))


@api.operation(
    Operation(
        "POST", f"{_UPLOAD}/run", "uploads", "run_upload", UPLOAD, UPLOADER, m.QueuedOut, 202,
        body=m.RunIn, refusals=(409,),
    )
)  # fmt: skip
def run_upload(upload_id: UUID, body: m.RunIn) -> m.QueuedOut:
    """Judge studies of an upload."""
    jobs = receiver().run(upload_of(str(upload_id)), body.studies, current_user().id)
    return m.QueuedOut(jobs=[_queued(job) for job in jobs])


@api.operation(Operation("DELETE", _UPLOAD, "uploads", "discard_upload", UPLOAD, UPLOADER, None, 204, refusals=(409,)))
def discard_upload(upload_id: UUID) -> None:
    """Throw an upload away, with those of its studies that were never judged."""
    receiver().discard(upload_of(str(upload_id)))


def _upload(upload: Upload) -> m.UploadOut:
    studies = list(db.session.scalars(sa.select(Study).where(Study.upload_id == upload.id).order_by(Study.created)))
    chunk = context().settings.limits.chunk_bytes
    return m.UploadOut.model_validate(upload_answer(upload, upload.files, studies, chunk))
