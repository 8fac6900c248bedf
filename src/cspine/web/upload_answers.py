"""How uploads, studies and jobs look in JSON: what the browser's script and scripts with a key are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cspine.web.jobs import Standing
from cspine.web.models import JobState, Study, Upload, UploadFile
from cspine.web.strings import t


def upload_answer(upload: Upload, files: Sequence[UploadFile], studies: Sequence[Study], chunk: int) -> dict[str, Any]:
    """One upload with how far each file has come."""
    return {
        "id": upload.id,
        "state": str(upload.state),
        "created": upload.created.isoformat(timespec="seconds"),
        "deidentify": upload.deidentify,
        "message": upload.message,
        "bytes": upload.bytes_expected,
        "received": sum(one.received for one in files),
        "chunk_bytes": chunk,
        "again": bool(upload.facts.get("again")),
        "problems": upload.facts.get("problems", []),
        "files": [{"id": f.id, "name": f.name, "size": f.size, "received": f.received} for f in files],
        "studies": [study_answer(one) for one in studies],
    }


def study_answer(study: Study) -> dict[str, Any]:
    """One study as it was recognised."""
    shown = ("slices", "rows", "columns", "spacing", "coverage", "thickness", "kernel", "maker", "orientation")
    return {
        "id": study.id,
        "kind": str(study.kind),
        "state": str(study.state),
        "title": study.title,
        "patient_label": study.patient_label,
        "series_uid": study.series_uid,
        "facts": {name: study.facts.get(name) for name in shown if study.facts.get(name) not in (None, "")},
        "selection": study.facts.get("selection", ""),
        "warnings": study.facts.get("warnings", []),
        "series": study.facts.get("series", []),
    }


def job_answer(standing: Standing) -> dict[str, Any]:
    """Where one job stands, with the words that a page shows."""
    job = standing.job
    return {
        "id": job.id,
        "study": job.study_id,
        "title": standing.study.title,
        "state": str(job.state),
        "progress": round(job.progress, 3),
        "step": job.step,
        "text": words(standing),
        "message": job.message,
        "ahead": standing.ahead,
        "seconds_left": None if standing.seconds_left is None else round(standing.seconds_left, 1),
        "headline": standing.study.headline if job.state in (JobState.DONE, JobState.REFUSED) else "",
    }


def words(standing: Standing) -> str:
    """Where a job stands, in one line."""
    job = standing.job
    if job.state == JobState.QUEUED:
        said = t("jobs.state.next") if standing.ahead == 0 else t("jobs.state.queued", count=standing.ahead)
    elif job.state == JobState.RUNNING:
        said = t(f"jobs.step.{job.step}") if job.step else t("jobs.step.start")
    else:
        said = t(f"jobs.state.{job.state}")
    left = standing.seconds_left
    return said if left is None else f"{said} · {duration(left)}"


def duration(seconds: float) -> str:
    """Time that is left, as roughly as it is known."""
    if seconds < 10:
        return t("jobs.left.moment")
    if seconds < 90:
        return t("jobs.left.seconds", count=int(round(seconds, -1)))
    return t("jobs.left.minutes", count=round(seconds / 60))
