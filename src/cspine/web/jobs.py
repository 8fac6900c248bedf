"""``Jobs``: the queue of the application. Nothing that was accepted is lost or done twice, whoever is killed when."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from cspine.errors import UsageError
from cspine.web.audit_log import AuditLog, Did
from cspine.web.database import Sessions
from cspine.web.job_queue import Queue
from cspine.web.job_records import ACTIVE, Records
from cspine.web.job_work import STOPPING, Work
from cspine.web.models import Job, JobState, Study, Upload, UploadState, now
from cspine.web.progress import seconds_left
from cspine.web.settings import WebSettings
from cspine.web.store import Store

# How often what is not in the queue yet is handed over, and how often all of it is compared with the queue.
TICK_SECONDS, COMPARE_SECONDS = 0.5, 30.0
# Jobs that ended so recently are still among a person's list.
SHOWN_AFTER = timedelta(hours=12)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one job stands, for the one who waits for it.

    Attributes:
        job: as in the database.
        study: that it judges.
        ahead: jobs that come before it, while it waits.
        seconds_left: until it ends, as far as can be said.
    """

    job: Job
    study: Study
    ahead: int = 0
    seconds_left: float | None = None


class Jobs:
    """Queues studies and uploads and, once started, works on them.

    Args:
        settings: of the application.
        sessions: makes database sessions.
        store: the files.
        audit: the trail.
        inline: everything is done in the call that asks for it, for tests.
        judge, recognise: commands of the children instead of the real ones, for tests.
    """

    def __init__(
        self,
        settings: WebSettings,
        sessions: Sessions,
        store: Store,
        audit: AuditLog,
        *,
        inline: bool = False,
        judge: Sequence[str] | None = None,
        recognise: Sequence[str] | None = None,
    ) -> None:
        self.records = Records(sessions)
        self.work = Work(settings, self.records, store, audit)
        if judge is not None:
            self.work.judge = judge
        if recognise is not None:
            self.work.recognise = recognise
        self._settings, self._audit, self._inline = settings, audit, inline
        self._queue: Queue | None = None
        self._ticker: threading.Thread | None = None
        # What is in the queue: tries of jobs, and uploads.
        self._handed: set[tuple[str, int]] = set()
        self._uploads: set[str] = set()
        self._wake, self._end = threading.Event(), threading.Event()
        self._lock: int | None = None

    # Life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work, with what was under way when the last life ended. Does nothing inline.

        Raises:
            UsageError: another server works in this data folder.
            Exception: of DBOS or SQLAlchemy, when the database cannot be used.
        """
        if self._inline or self._queue is not None:
            return
        self._settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _own(self._settings)
        self.work.store.sweep()
        self.work.stopped.discard(STOPPING)
        self._end.clear()
        queue = Queue(self.work, self._url(), processes=self._settings.worker.processes)
        queue.launch()
        self._queue = queue
        self._ticker = threading.Thread(target=self._run, name="cspine-jobs", daemon=True)
        self._ticker.start()

    def stop(self) -> None:
        """Stop at once: children are killed, and the next start goes on with their work."""
        if self._queue is None:
            return
        self.work.stopped.add(STOPPING)
        self._end.set()
        self._wake.set()
        if self._ticker is not None:
            self._ticker.join(10)
        self._queue.close()
        self._queue, self._ticker = None, None
        self._handed.clear()
        self._uploads.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _url(self) -> str:
        if self._settings.database is None:
            return f"sqlite:///{self._settings.data.resolve() / 'jobs.db'}"
        return self._settings.database.get_secret_value()

    # What people ask for -------------------------------------------------------------------------------------------

    def submit(self, study_id: str, user_id: str) -> Job:
        """Queue a study; asked twice, the same job comes back.

        Raises:
            UsageError: the study cannot be judged, or this person has too many waiting.
        """
        job, news = self.records.submit(study_id, user_id, most=self._settings.limits.waiting)
        if news:
            self._audit.write(Did.QUEUED, actor=user_id, study=study_id)
        if self._inline:
            self._judge_here(job)
        self._wake.set()
        return job

    def cancel(self, job_id: str) -> bool:
        """Cancel a job: one that waits never starts, the child of one that runs is killed. False when it was over."""
        job = self.records.cancel(job_id)
        if job is None:
            return False
        self.work.stopped.add(job_id)
        self._audit.write(Did.CANCELLED, study=job.study_id, detail=job_id)
        return True

    def cancel_study(self, study_id: str) -> None:
        """Cancel whatever waits or runs for a study, such as before it is deleted."""
        for job in self.records.active():
            if job.study_id == study_id:
                self.cancel(job.id)

    def recognise(self, upload_id: str) -> None:
        """Have an upload looked at that has been marked as ``recognising``; asked twice, it is done once."""
        if self._inline:
            outcome = self.work.recognise_once(upload_id)
            if outcome is not None:
                self.work.record_recognition(upload_id, outcome)
        self._uploads.discard(upload_id)
        self._wake.set()

    def standing(self, user_id: str) -> list[Standing]:
        """The jobs of a person that wait or run, or ended of late, in the order they were asked for."""
        listed = self.records.of(user_id, now() - SHOWN_AFTER)
        busy = {study.kind for job, study in listed if job.state in ACTIVE}
        order = self.records.ahead() if busy else {}
        usual = {kind: self.records.usual_seconds(kind) for kind in busy}
        return [self._standing(job, study, order.get(job.id, 0), usual.get(study.kind)) for job, study in listed]

    def _standing(self, job: Job, study: Study, ahead: int, usual: float | None) -> Standing:
        if job.state == JobState.QUEUED:
            left = None if usual is None else (ahead / self._settings.worker.processes + 1) * usual
            return Standing(job, study, ahead, left)
        if job.state == JobState.RUNNING and job.started is not None:
            return Standing(job, study, 0, seconds_left(job.progress, (now() - job.started).total_seconds(), usual))
        return Standing(job, study)

    # The loop ------------------------------------------------------------------------------------------------------

    def _judge_here(self, job: Job) -> None:
        tries = job.tries
        while (outcome := self.work.judge_once(job.id, tries)) is not None:
            if not self.work.record_judgement(job.id, tries, outcome):
                return
            tries += 1

    def _run(self) -> None:
        since = 0.0
        while not self._end.is_set():
            try:
                self._hand_over()
            except Exception as error:  # noqa: BLE001 a database that is away for a while must not end the loop
                _log.error("the queue cannot be reached: %s", error)
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
            since += TICK_SECONDS
            if since >= COMPARE_SECONDS:
                since = 0.0
                self._handed.clear()
                self._uploads.clear()

    def _hand_over(self) -> None:
        """Hand over what waits. What was handed over in this life is not asked about again for a while."""
        queue = self._queue
        if queue is None or self._end.is_set():
            return
        for job in self.records.active():
            if (job.id, job.tries) not in self._handed:
                queue.judge(job)
                self._handed.add((job.id, job.tries))
        waiting = self._waiting_uploads()
        self._uploads &= waiting.keys()  # one that is looked at no more may come again
        for upload_id, place in waiting.items():
            if upload_id not in self._uploads:
                queue.recognise(upload_id, place)
                self._uploads.add(upload_id)

    def _waiting_uploads(self) -> dict[str, int]:
        """Uploads to be looked at, each with its number among those of the same person."""
        query = (
            sa.select(Upload.id, Upload.owner_id)
            .where(Upload.state == UploadState.RECOGNISING)
            .order_by(Upload.created)
        )
        with self.records.sessions() as session:
            rows = session.execute(query).all()
        counts: Counter[str] = Counter()
        found: dict[str, int] = {}
        for upload_id, owner in rows:
            counts[owner] += 1
            found[upload_id] = counts[owner]
        return found


def _own(settings: WebSettings) -> int:
    """Take the data folder for this process; the lock ends with it.

    Raises:
        UsageError: another server has it.
    """
    descriptor = os.open(settings.data / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(
            "another server works in this data folder", where="data", fix="Stop it first, or take another folder"
        ) from error
    return descriptor
