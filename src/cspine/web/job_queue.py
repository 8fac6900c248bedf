"""DBOS Transact under the jobs: two queues, in SQLite or in PostgreSQL, that forget nothing whatever is killed when.

A workflow runs one try in two steps, doing and writing down; DBOS runs an ID once and goes on with what a dead process
left. The ID names the upload, or the study's job and try, and counts the lives of that try: one that ended without
being written down is handed over again. See ``cspine.node.durable``, which this follows. DBOS is one to a process.
"""

from __future__ import annotations

import logging
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetEnqueueOptions, SetWorkflowID, StepOptions

from cspine.node.child import JobOutcome
from cspine.web.job_work import Work
from cspine.web.models import Job

# Stored with every workflow; it changes only when the steps change in a way that old tries cannot go on with.
STEPS_VERSION = "cspine-web-1"
SCHEMA = "cspine_web_jobs"
JOBS, INTAKE = "web-jobs", "web-intake"
# Uploads that are looked at the same time: that takes moments, and nobody should wait for another's large one.
INTAKE_AT_ONCE = 2
MOST_RECOVERIES = 20
JUDGE, RECOGNISE, RECORD = "judge", "recognise", "record"
_ALIVE = frozenset(("PENDING", "ENQUEUED", "DELAYED"))
_MOST_PRIORITY = 2**31 - 1


def _of_the_database(error: BaseException) -> bool:
    return isinstance(error, sa.exc.SQLAlchemyError)


# All steps are safe to repeat, so they outlast a database that is away for a quarter of an hour.
AGAIN: StepOptions = {"retries_allowed": True, "max_attempts": 12, "interval_seconds": 0.5, "backoff_rate": 2.0}


class Queue:
    """Runs tries as DBOS workflows.

    Args:
        work: what the tries do.
        url: of DBOS's own tables.
        processes: studies judged at once.
        poll_seconds: how often the queues are looked at.
    """

    def __init__(self, work: Work, url: str, *, processes: int = 1, poll_seconds: float = 0.5) -> None:
        self._work, self._url, self._processes, self._poll = work, url, processes, poll_seconds
        self._judge: Any = None
        self._recognise: Any = None

    def launch(self) -> None:
        """Start: tries that were under way when the process ended go on.

        Raises:
            Exception: of DBOS or SQLAlchemy, when the database cannot be used.
        """
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        config: DBOSConfig = {
            "name": "cspine-web",
            "system_database_url": self._url,
            "dbos_system_schema": SCHEMA,
            "application_version": STEPS_VERSION,
            "executor_id": "server",
            "log_level": "CRITICAL",
            "serializer": DBOSPortableJSONSerializer(),
            "notification_listener_polling_interval_sec": self._poll,
        }
        DBOS(config=config)
        self._register()
        DBOS.launch()
        DBOS.register_queue(JOBS, worker_concurrency=self._processes, polling_interval_sec=self._poll)
        DBOS.register_queue(INTAKE, worker_concurrency=INTAKE_AT_ONCE, polling_interval_sec=self._poll)

    def close(self) -> None:
        """Stop taking up tries. One that is under way goes on at the next launch."""
        DBOS.destroy(destroy_registry=True)

    def judge(self, job: Job) -> None:
        """Hand a try over; one that is in the queue, or runs, is left alone."""
        self._enqueue(JOBS, f"judge:{job.id}:{job.tries}", job.place, self._judge, job.id, job.tries)

    def recognise(self, upload_id: str, place: int) -> None:
        """Hand an upload over; one that is in the queue, or runs, is left alone."""
        self._enqueue(INTAKE, f"recognise:{upload_id}", place, self._recognise, upload_id)

    def _enqueue(self, queue: str, name: str, place: float, workflow: Any, *arguments: Any) -> None:
        lives = DBOS.list_workflows(workflow_id_prefix=f"{name}:", load_input=False, load_output=False)
        if any(life.status in _ALIVE for life in lives):
            return
        priority = min(max(int(place), 1), _MOST_PRIORITY)
        with SetWorkflowID(f"{name}:{len(lives)}"), SetEnqueueOptions(priority=priority):
            DBOS.enqueue_workflow(queue, workflow, *arguments)

    def _register(self) -> None:
        """Make the two workflows. Functions of this object, since DBOS marks a function and cannot mark a method."""

        @DBOS.workflow(name=JUDGE, max_recovery_attempts=MOST_RECOVERIES)
        def judge(job_id: str, tries: int) -> None:
            outcome = DBOS.run_step(
                {"name": JUDGE, "should_retry": _of_the_database, **AGAIN}, self._judge_step, job_id, tries
            )
            # From here on DBOS keeps the outcome; a kill before it is written down costs no second judgement.
            if outcome is not None:
                DBOS.run_step({"name": RECORD, **AGAIN}, self._record_step, job_id, tries, outcome)

        @DBOS.workflow(name=RECOGNISE, max_recovery_attempts=MOST_RECOVERIES)
        def recognise(upload_id: str) -> None:
            outcome = DBOS.run_step(
                {"name": RECOGNISE, "should_retry": _of_the_database, **AGAIN}, self._recognise_step, upload_id
            )
            if outcome is not None:
                DBOS.run_step({"name": RECORD, **AGAIN}, self._record_upload_step, upload_id, outcome)

        self._judge, self._recognise = judge, recognise

    def _judge_step(self, job_id: str, tries: int) -> dict[str, Any] | None:
        return _plain(self._work.judge_once(job_id, tries))

    def _record_step(self, job_id: str, tries: int, outcome: dict[str, Any]) -> None:
        self._work.record_judgement(job_id, tries, JobOutcome.model_validate(outcome))

    def _recognise_step(self, upload_id: str) -> dict[str, Any] | None:
        return _plain(self._work.recognise_once(upload_id))

    def _record_upload_step(self, upload_id: str, outcome: dict[str, Any]) -> None:
        self._work.record_recognition(upload_id, JobOutcome.model_validate(outcome))


def _plain(outcome: JobOutcome | None) -> dict[str, Any] | None:
    return None if outcome is None else outcome.model_dump(mode="json")
