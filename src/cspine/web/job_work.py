"""What the tries do: recognise an upload, judge a study, and what follows from how that ends. Knows nothing of DBOS."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from cspine.errors import CspineError
from cspine.node.child import JobOutcome
from cspine.node.privacy import plain
from cspine.web import progress
from cspine.web.antivirus import InfectedError, scan
from cspine.web.audit_log import AuditLog, Did, Outcome
from cspine.web.child import JUDGE, RECOGNISE
from cspine.web.job_records import Records
from cspine.web.models import Job, JobState, Study, StudyState, Upload, UploadFile, UploadState
from cspine.web.orders import RECOGNISED_FILE, IntakeOrder, JudgeOrder, Received, Recognised
from cspine.web.settings import WebSettings
from cspine.web.store import Store
from cspine.web.strings import many, t
from cspine.web.supervising import CANCELLED, CHILD, leftovers, supervise
from cspine.web.unpacking import sentence
from cspine.web.upload_records import settle, study_id_of

# A full disk is no fault of a study: it is tried again this often, for this long.
HINDERED_PAUSE, HINDERED_SECONDS = 15.0, 3600.0
_WAITS_FOR = ("output", "disk-full")
# How often the database is told how far a job is, and asked whether it was cancelled.
TELL_SECONDS = 1.0
# What an upload may unpack to, times the largest upload.
UNPACKED = 4

_log = logging.getLogger(__name__)


class StoppingError(CspineError):
    """The server stops; what was under way is not over."""

    code = "stopping"


@dataclass(slots=True)
class Work:
    """Runs tries.

    Attributes:
        settings: of the application.
        records: jobs in the database.
        store: the files.
        audit: the trail.
        judge, recognise: commands of the children; tests put stand-ins here.
        pause: waits that many seconds between looks at a full disk.
    """

    settings: WebSettings
    records: Records
    store: Store
    audit: AuditLog
    judge: Sequence[str] = (*CHILD, JUDGE)
    recognise: Sequence[str] = (*CHILD, RECOGNISE)
    pause: Callable[[float], object] = time.sleep
    stopped: set[str] = field(default_factory=set)

    # Judging -------------------------------------------------------------------------------------------------------

    def judge_once(self, job_id: str, tries: int) -> JobOutcome | None:
        """One try; None when it is over or was cancelled. Repeated after a kill, it goes on or begins again."""
        begun = self.records.begin(job_id, tries)
        if begun is None:
            return None
        job, study = begun
        order = self._order(job, study)
        go_on = _Watch(self, job_id, tries, order.progress)
        until = time.monotonic() + HINDERED_SECONDS
        while True:
            outcome = self._try(order, go_on)
            if outcome.reason not in _WAITS_FOR or time.monotonic() >= until:
                break
            if not self.records.advance(job_id, tries, message=t("jobs.waits-for-disk")):
                return JobOutcome(ending="failed", reason=CANCELLED)
            self.pause(HINDERED_PAUSE)
        leftovers(order.out)
        self._unless_stopping(outcome, job_id)
        return outcome

    def _unless_stopping(self, outcome: JobOutcome, name: str) -> None:
        if outcome.reason == CANCELLED and STOPPING in self.stopped and name not in self.stopped:
            raise StoppingError("the server stops; its next life goes on with this")

    def _try(self, order: JudgeOrder, go_on: Callable[[], bool]) -> JobOutcome:
        if order.progress is not None:
            progress.stamp(order.progress)
        try:
            return supervise(order, self.settings.worker.seconds, self.judge, go_on=go_on)
        except OSError as error:
            _log.error("a study cannot be worked on: %s", error)
            return JobOutcome(ending="hindered", reason="output")

    def _order(self, job: Job, study: Study) -> JudgeOrder:
        worker, out = self.settings.worker, self.store.run_folder(study.id, run_of(job))
        return JudgeOrder(
            key=study.id,
            study=self.store.files(study.id).resolve(),
            out=out.resolve(),
            formats=(),
            bundle=self.settings.bundle,
            threads=worker.threads,
            memory_bytes=worker.memory_bytes,
            kind="pictures" if study.kind == "pictures" else "volume",
            series=study.series_uid if study.kind == "volume" else None,
            title=study.title,
            progress=out.with_name(f"{out.name}.progress.json").resolve(),
        )

    def record_judgement(self, job_id: str, tries: int, outcome: JobOutcome) -> bool:
        """Write down how a try ended; true when the job goes on with another. Safe to repeat."""
        with self.records.sessions() as session:
            job = session.get(Job, job_id)
        if job is None:
            return False
        run = run_of(job, tries)
        if outcome.reason == CANCELLED:
            self.store.forget_run(job.study_id, run)
            return False
        if outcome.ending == "failed" and tries + 1 < self.settings.worker.tries:
            return self.records.again(job_id, tries, t("jobs.again", why=_told(outcome)))
        state, values = self._consequence(job.study_id, run, outcome)
        ended = self.records.end(
            job_id, tries, {"state": state, "progress": 1.0, "step": "", "message": _told(outcome)}, values
        )
        if not ended:
            self._forget_cancelled(job_id, run)
            return False
        fine = outcome.ending in ("judged", "skipped")
        detail = outcome.reason or ("positive" if outcome.positive else "negative")
        self.audit.write(
            Did.JUDGED if fine else Did.FAILED,
            outcome=Outcome.SUCCESS if fine else Outcome.FAILURE,
            study=job.study_id,
            detail=detail,
        )
        return False

    def _forget_cancelled(self, job_id: str, run: str) -> None:
        with self.records.sessions() as session:
            job = session.get(Job, job_id)
        if job is not None and job.state == JobState.CANCELLED:
            self.store.forget_run(job.study_id, run)

    def _consequence(self, study_id: str, run: str, outcome: JobOutcome) -> tuple[str, dict[str, Any]]:
        """The state of the job, and the columns of the study."""
        written = {"result": run} if outcome.files else {}
        if outcome.ending == "judged":
            with self.records.sessions() as session:
                facts = dict(session.get_one(Study, study_id).facts)
            facts["judged"] = outcome.model_dump(mode="json", include={"seconds", "levels", "files"})
            if outcome.facts is not None:
                facts["drift"] = outcome.facts.model_dump(mode="json")
            return JobState.DONE, {
                "state": StudyState.DONE,
                "probability": outcome.probability,
                "positive": outcome.positive,
                "headline": headline(outcome),
                "facts": facts,
                "read_at": None,
                **written,
            }
        told = {"headline": _told(outcome)[:300], **written}
        if outcome.ending in ("refused", "skipped"):
            return JobState.REFUSED, {"state": StudyState.REFUSED, **told}
        return JobState.FAILED, {"state": StudyState.FAILED, **told}

    # Recognising ---------------------------------------------------------------------------------------------------

    def recognise_once(self, upload_id: str) -> JobOutcome | None:
        """Look what an upload holds; None when it was discarded or is done."""
        with self.records.sessions() as session:
            upload = session.get(Upload, upload_id)
            if upload is None or upload.state != UploadState.RECOGNISING:
                return None
            rows = session.scalars(
                sa.select(UploadFile).where(UploadFile.upload_id == upload_id).order_by(UploadFile.name)
            ).all()
            files = [(self.store.part(upload_id, row.id).resolve(), row.name) for row in rows]
        try:
            scan(self.settings.antivirus, files)
            outcome = supervise(
                self._intake_order(upload, files),
                self.settings.worker.seconds,
                self.recognise,
                go_on=lambda: STOPPING not in self.stopped and self._recognises(upload_id),
            )
        except CspineError as error:
            ending = "refused" if isinstance(error, InfectedError) else "hindered"
            where = f" ({error.where})" if error.where and not upload.deidentify else ""
            message = f"{sentence(error.message)[:-1]}{where}. {error.fix or ''}".strip()
            return JobOutcome(
                ending="refused" if ending == "refused" else "hindered", reason=error.code, message=message
            )
        except OSError as error:
            _log.error("an upload cannot be looked at: %s", error)
            return JobOutcome(ending="hindered", reason="output")
        self._unless_stopping(outcome, upload_id)
        return outcome

    def _intake_order(self, upload: Upload, files: Sequence[tuple[Path, str]]) -> IntakeOrder:
        room = max(0, self.store.free_bytes() - self.settings.limits.free_bytes)
        shown = [_without_name(number, name) for number, (_, name) in enumerate(files, 1)]
        return IntakeOrder(
            key=upload.id,
            study=self.store.upload_folder(upload.id).resolve(),
            out=self.store.sorted_folder(upload.id).resolve(),
            formats=(),
            memory_bytes=self.settings.worker.memory_bytes,
            files=tuple(
                Received(path=path, name=shown[k] if upload.deidentify else name)
                for k, (path, name) in enumerate(files)
            ),
            deidentify=upload.deidentify,
            pseudonym_key=(self.settings.data / "pseudonyms.key").resolve(),
            most_bytes=min(room, UNPACKED * self.settings.limits.upload_bytes),
        )

    def _recognises(self, upload_id: str) -> bool:
        with self.records.sessions() as session:
            return session.scalar(sa.select(Upload.state).where(Upload.id == upload_id)) == UploadState.RECOGNISING

    def record_recognition(self, upload_id: str, outcome: JobOutcome) -> None:
        """Write down what an upload holds, and take its studies over. Safe to repeat."""
        if outcome.reason == CANCELLED:
            return
        if outcome.ending in ("failed", "hindered"):
            # Nothing is lost: the page offers to look again.
            if outcome.ending == "failed":
                _log.error("an upload could not be looked at: %s", plain(outcome.message))
            said = outcome.message if outcome.ending == "hindered" else ""
            message = said or t("uploads.problem.crashed")
            settle(self.records.sessions, upload_id, UploadState.RECEIVING, sentence(message), {"again": True}, ())
            leftovers(self.store.sorted_folder(upload_id))
            return
        if not self._recognises(upload_id):
            self.store.forget_parts(upload_id)
            return
        found = self._recognised(upload_id)
        for number in range(len(found.studies)):
            self.store.adopt(upload_id, number, study_id_of(upload_id, number))
        taken = bool(found.studies)
        message = "" if taken else sentence(outcome.message or t("uploads.problem.nothing"))
        facts = {
            "problems": [one.model_dump() for one in found.problems],
            "patients": found.patients,
            "left_out": found.left_out,
            "studies": [study_id_of(upload_id, number) for number in range(len(found.studies))],
        }
        state = UploadState.RECOGNISED if taken else UploadState.REFUSED
        settled = settle(self.records.sessions, upload_id, state, message, facts, found.studies)
        if settled:
            self.store.forget_parts(upload_id)
            self.audit.write(
                Did.UPLOADED if taken else Did.REFUSED,
                outcome=Outcome.SUCCESS if taken else Outcome.FAILURE,
                upload=upload_id,
                count=len(found.studies),
            )

    def _recognised(self, upload_id: str) -> Recognised:
        path = self.store.sorted_folder(upload_id) / RECOGNISED_FILE
        try:
            return Recognised.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return Recognised()


@dataclass(slots=True)
class _Watch:
    """Asked while a child runs: tells the database how far it is, and learns whether it was cancelled."""

    work: Work
    job_id: str
    tries: int
    file: Path | None
    told: progress.Mark | None = None
    last: float = float("-inf")

    def __call__(self) -> bool:
        """Whether the child goes on."""
        if self.job_id in self.work.stopped or STOPPING in self.work.stopped:
            return False
        mark = None if self.file is None else progress.read(self.file)
        news = mark is not None and (self.told is None or mark.step != self.told.step)
        if not news and time.monotonic() < self.last + TELL_SECONDS:
            return True
        same, self.last, self.told = mark == self.told, time.monotonic(), mark
        try:
            if mark is None or same:
                return self.work.records.still_runs(self.job_id, self.tries)
            return self.work.records.advance(self.job_id, self.tries, progress=mark.share, step=mark.step, message="")
        except sa.exc.SQLAlchemyError:
            return True  # a database that is away for a moment must not end a judgement


# In ``Work.stopped``: every child is killed, since the server stops; their jobs go on at the next start.
STOPPING = "*"


def run_of(job: Job, tries: int | None = None) -> str:
    """Name of the folder that a try has its results in."""
    return f"{job.id}-{job.tries if tries is None else tries}"


def headline(outcome: JobOutcome) -> str:
    """The finding in one line."""
    if outcome.positive is None:
        return t("jobs.headline.nothing")
    if not outcome.positive:
        return t("jobs.headline.negative")
    if not outcome.levels:
        return t("jobs.headline.positive")
    return many("jobs.headline.levels", len(outcome.levels), levels=", ".join(outcome.levels))


def _told(outcome: JobOutcome) -> str:
    """Why it ended, for the person; places in our code are for logs."""
    if outcome.ending == "judged":
        return ""
    known = {"timeout", "memory", "crashed", "killed", "bundle", "missing-extra", "output"}
    if outcome.reason in known:
        # The message names places in our code, and no value: see ``supervise.scrub``.
        _log.warning("a judgement ended: %s", plain(outcome.message))
        return t(f"jobs.reason.{outcome.reason}")
    return sentence(outcome.message) if outcome.message else t("jobs.reason.crashed")


def _without_name(number: int, name: str) -> str:
    """What a file is called when its own name may say who it is about."""
    ending = Path(name.replace("\\", "/")).suffix.lower()
    known = ending if ending in (".dcm", ".zip", ".nii", ".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff") else ""
    return t("uploads.file-number", number=number, ending=known)
