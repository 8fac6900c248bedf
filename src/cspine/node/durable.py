"""DBOS Transact under the work of a node: queues and workflows in SQLite, or in PostgreSQL for several machines.

What is stored in DBOS is JSON, never pickles: whoever can write to the database must not be able to run code here.
"""

from __future__ import annotations

import logging
from dataclasses import astuple, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID, StepOptions

from cspine.node.child import JobOutcome
from cspine.node.ledger import Delivery, Job
from cspine.node.work import SENDING_AT_ONCE, Attempt, Work
from cspine.node.workers import Heartbeats

# Stored with every workflow. It changes only when the steps change in a way that old tries cannot go on with; so an
# update of cspine goes on with the queue it finds.
STEPS_VERSION = "cspine-node-1"
JOBS = "jobs"
# A try whose process died this often is given up, and counted as a failed one.
MOST_RECOVERIES = 20
# Finished tries whose history is deleted in one go.
FORGOTTEN_AT_ONCE = 1000


def _of_the_database(error: BaseException) -> bool:
    return isinstance(error, sa.exc.SQLAlchemyError)


# All steps are safe to repeat, so they outlast a database that is away for a quarter of an hour, the last one a full
# disk too.
AGAIN: StepOptions = {"retries_allowed": True, "max_attempts": 12, "interval_seconds": 0.5, "backoff_rate": 2.0}
JUDGE, SEND, RECORD = "judge", "send", "record"
_LOST = frozenset(("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"))
_ENDED = ["SUCCESS", *sorted(_LOST)]


class Durable:
    """Runs tries as DBOS workflows: one queue for judging, one for each destination.

    DBOS is one to a process, so there is one of these at a time; close it before making another.

    Args:
        work: what the tries do.
        url: of DBOS's own database.
        worker: name of this machine among those that share the database. Tries that a machine was at when it died go
            on when a machine of that name starts; when none does, the others take them up, see ``heartbeat``.
        poll_seconds: how often queues are looked at.
    """

    def __init__(self, work: Work, url: str, *, worker: str = "local", poll_seconds: float = 1.0) -> None:
        self._work = work
        self._url, self._worker, self._poll = url, worker, poll_seconds
        self._judge: Any = None
        self._send: Any = None
        database, patience = work.ledger.database, work.settings.worker.lost_seconds
        self._hearts = Heartbeats(database, worker, lost_seconds=patience)

    def launch(self) -> None:
        """Start: tries that were under way when the process ended go on.

        Raises:
            Exception: of DBOS or SQLAlchemy, when the database cannot be used.
        """
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        config: DBOSConfig = {
            "name": "cspine-node",
            "system_database_url": self._url,
            "application_version": STEPS_VERSION,
            "executor_id": self._worker,
            "log_level": "CRITICAL",
            "serializer": DBOSPortableJSONSerializer(),
            "notification_listener_polling_interval_sec": self._poll,
        }
        self._hearts.beat()  # before the tries of this name's last life are taken up: they are in good hands again
        DBOS(config=config)
        self._register()
        DBOS.launch()
        processes = self._work.settings.worker.processes
        DBOS.register_queue(JOBS, worker_concurrency=processes, polling_interval_sec=self._poll)
        for name in self._work.senders:
            DBOS.register_queue(_queue(name), worker_concurrency=SENDING_AT_ONCE, polling_interval_sec=self._poll)

    def close(self) -> None:
        """Stop taking up tries. One that is under way goes on at the next launch."""
        DBOS.destroy(destroy_registry=True)

    def heartbeat(self) -> bool:
        """Say that this machine lives, and look whether others do; call it often, it acts when it is time.

        Returns:
            Whether a machine was found dead that was at something. Its tries are cancelled, so that it leaves them
            alone should it come back; ``Work.recover`` takes them up.
        """
        if not self._hearts.due():
            return False
        self._hearts.beat()
        under_way = DBOS.list_workflows(name=[JUDGE, SEND], status="PENDING", load_input=False, load_output=False)
        dead = self._hearts.lost({one.executor_id for one in under_way if one.executor_id})
        orphans = [one.workflow_id for one in under_way if one.executor_id in dead]
        if orphans:
            DBOS.cancel_workflows(orphans)
        return bool(orphans)

    def forget(self, before: float) -> int:
        """Delete DBOS's history of tries that ended before a time; gives how many, ``FORGOTTEN_AT_ONCE`` at most.

        Nothing is done twice for that: the ledger says which tries are over.

        Args:
            before: seconds since the epoch.
        """
        old = DBOS.list_workflows(
            name=[JUDGE, SEND],
            status=_ENDED,
            completed_before=datetime.fromtimestamp(before, UTC).isoformat(),
            limit=FORGOTTEN_AT_ONCE,
            load_input=False,
            load_output=False,
        )
        if old:
            DBOS.delete_workflows([one.workflow_id for one in old])
        return len(old)

    # The runner of ``Work`` ----------------------------------------------------------------------------------------

    def submit_judgement(self, job: Job) -> None:
        """See ``work.Runner``."""
        with SetWorkflowID(_judgement_id(job)):
            DBOS.enqueue_workflow(JOBS, self._judge, job.key, job.round, job.tries)

    def submit_delivery(self, job: Job, delivery: Delivery) -> None:
        """See ``work.Runner``. Results for a destination that is no longer in the settings go through the jobs."""
        known = delivery.destination in self._work.senders
        with SetWorkflowID(_delivery_id(job, delivery)):
            DBOS.enqueue_workflow(
                _queue(delivery.destination) if known else JOBS,
                self._send,
                [job.key, job.round, job.tries],
                [delivery.destination, delivery.round, delivery.tries],
            )

    def lost_judgement(self, job: Job) -> bool:
        """See ``work.Runner``."""
        return _lost(_judgement_id(job))

    def lost_delivery(self, job: Job, delivery: Delivery) -> bool:
        """See ``work.Runner``."""
        return _lost(_delivery_id(job, delivery))

    # The workflows -------------------------------------------------------------------------------------------------

    def _register(self) -> None:
        """Make the two workflows. Functions of this object, since DBOS marks a function and cannot mark a method."""

        @DBOS.workflow(name=JUDGE, max_recovery_attempts=MOST_RECOVERIES)
        def judge(key: str, number: int, tries: int) -> None:
            outcome = DBOS.run_step(
                {"name": JUDGE, "should_retry": _of_the_database, **AGAIN}, self._judge_step, key, number, tries
            )
            # From here on DBOS keeps the outcome; a kill before it is written down costs no second judgement.
            if outcome is not None:
                DBOS.run_step({"name": RECORD, **AGAIN}, self._record_step, key, number, tries, outcome)

        @DBOS.workflow(name=SEND, max_recovery_attempts=MOST_RECOVERIES)
        def send(study: list[Any], way: list[Any]) -> None:
            told = DBOS.run_step({"name": SEND, "should_retry": _of_the_database, **AGAIN}, self._send_step, study, way)
            if told is not None:
                DBOS.run_step({"name": RECORD, **AGAIN}, self._record_sending_step, study, way, told)

        self._judge, self._send = judge, send

    def _judge_step(self, key: str, number: int, tries: int) -> dict[str, Any] | None:
        outcome = self._work.judge_once(self._job(key, number, tries))
        return None if outcome is None else outcome.model_dump(mode="json")

    def _record_step(self, key: str, number: int, tries: int, outcome: dict[str, Any]) -> None:
        self._work.record_judgement(self._job(key, number, tries), JobOutcome.model_validate(outcome))

    def _send_step(self, study: list[Any], way: list[Any]) -> list[Any] | None:
        attempt = self._work.send_once(self._job(*study), _way(study, way))
        return None if attempt is None else list(astuple(attempt))

    def _record_sending_step(self, study: list[Any], way: list[Any], told: list[Any]) -> None:
        self._work.record_delivery(self._job(*study), _way(study, way), Attempt(*told))

    def _job(self, key: str, number: int, tries: int) -> Job:
        """The study as it was at this try.

        Raises:
            LookupError: the ledger does not know it.
        """
        job = self._work.ledger.job(key)
        if job is None:
            raise LookupError("a study that is queued is not in the ledger")
        return replace(job, round=number, tries=tries)


def _way(study: list[Any], way: list[Any]) -> Delivery:
    return Delivery(study[0], way[0], round=way[1], tries=way[2])


def _queue(destination: str) -> str:
    return f"send-{destination}"


def _judgement_id(job: Job) -> str:
    return f"judge:{job.key}:{job.round}:{job.tries}"


def _delivery_id(job: Job, delivery: Delivery) -> str:
    way = f"{delivery.destination}:{delivery.round}:{delivery.tries}"
    return f"send:{job.key}:{job.round}:{job.tries}:{way}"


def _lost(workflow: str) -> bool:
    status = DBOS.get_workflow_status(workflow)
    return status is None or status.status in _LOST
