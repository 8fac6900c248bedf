"""The durable work of a node, by DBOS Transact: judge every accepted study once, and bring its results out.

Each try is a workflow of its own whose ID names the study, the round and the try; DBOS runs an ID once, whatever is
killed when, and the ledger takes its end once. A try that fails leaves the time of the next one in the ledger, so
nothing sleeps in a worker, a destination that is down blocks nobody else, and a bad study goes to the back.

    received ── judge:KEY:0:0 ── judged ──┬─ send:KEY:pacs:…  ── delivered ──┬── done
                   │                      └─ send:KEY:archive:…  (again, later)┘
                   └── refused, or failed too often ── the shelf
"""

from __future__ import annotations

import logging
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cspine.errors import UsageError
from cspine.node.audit import Action, AuditEvent
from cspine.node.audit import Outcome as AuditOutcome
from cspine.node.child import JobOutcome, Order
from cspine.node.deliver import DeliveryError, Parcel, Sender, backoff
from cspine.node.figures import Tally
from cspine.node.ledger import Delivery, Job, Ledger
from cspine.node.privacy import Plain, Pseudonym, plain
from cspine.node.settings import NodeSettings
from cspine.node.shelf import Shelf
from cspine.node.supervise import finished, judge

# Seconds until a study is tried again that met a fault of the node itself.
HINDERED_SECONDS = 60.0
# Results that go to one destination at the same time: one that hangs does not hold up the next.
SENDING_AT_ONCE = 2
# Studies whose files are deleted in one round: the loop must not be held up for long.
DELETED_AT_ONCE = 10
# A key names folders and workflows.
_KEY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,159}$")

_LOG = logging.getLogger(__name__)


def _nothing(_: object) -> None:
    """The callback of somebody who does not want to know."""


class Runner(Protocol):
    """What runs tries durably: DBOS, see ``cspine.node.durable``."""

    def submit_judgement(self, job: Job) -> None:
        """Run ``Work.judge_once`` and ``Work.record_judgement``; a try that was submitted before is left alone."""

    def submit_delivery(self, job: Job, delivery: Delivery) -> None:
        """Run ``Work.send_once`` and ``Work.record_delivery``; a try that was submitted before is left alone."""

    def lost_judgement(self, job: Job) -> bool:
        """Whether this try ended without being written down, or died with its machine, and will not go on by itself."""

    def lost_delivery(self, job: Job, delivery: Delivery) -> bool:
        """The same of a delivery."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one try to send ended.

    Attributes:
        reason: of a failure, stable, kebab-case; empty when everything arrived.
        lasting: trying again will not help.
        seconds: that it took.
        warning: what the other side had to say about what it stored.
    """

    reason: str = ""
    lasting: bool = False
    seconds: float = 0.0
    warning: str = ""


@dataclass(frozen=True)
class Work:
    """What the tries do, and what follows from how they end. Knows nothing of DBOS.

    Attributes:
        settings: of the node.
        ledger: what is known of every study.
        senders: ways out, by name.
        pseudonym: stand-in for a study, for logs and the audit trail.
        judge: has an order done in a child; its arguments are those of ``supervise.judge``.
        tell: takes audit events.
        forget: called with the key and folder of a study whose time in the spool is over.
        clock: seconds since the epoch.
        chance: of the waits between tries.
    """

    settings: NodeSettings
    ledger: Ledger
    senders: Mapping[str, Sender]
    pseudonym: Callable[[str], Pseudonym]
    judge: Callable[[Order, float], JobOutcome] = judge
    tell: Callable[[AuditEvent], object] = _nothing
    forget: Callable[[Job], object] = _nothing
    clock: Callable[[], float] = time.time
    chance: random.Random = field(default_factory=random.Random)

    @property
    def shelf(self) -> Shelf:
        """What needs a person."""
        return Shelf(self.settings.data / "shelf")

    # Judging -------------------------------------------------------------------------------------------------------

    def accept(self, key: str, folder: Path, instances: int, digest: str, received: float) -> bool:
        """Enter a study that is complete; False when it is known. Durable when this returns.

        Raises:
            UsageError: the key cannot name a folder.
        """
        if not _KEY.match(key):
            raise UsageError("expected a key of letters, digits, dots and dashes, got another", where="study key")
        return self.ledger.add(Job(key, folder, instances, digest, received, due=self.clock()))

    def folder(self, job: Job) -> Path:
        """Where one try of a study has its results: each try has its own, so an old one cannot be taken for it."""
        return result_folder(self.settings.data, job)

    def judge_once(self, job: Job) -> JobOutcome | None:
        """One try. Repeated after a kill: what the child finished is kept, what it left half done is made again.

        None when the ledger says that this try is over: somebody else took the study from a machine that seemed dead,
        or a queue whose history was deleted runs the try once more.
        """
        if not self.ledger.is_open(job):
            return None
        worker = self.settings.worker
        order = Order(
            key=job.key,
            study=job.folder,
            out=self.folder(job),
            formats=formats_of(self.settings),
            bundle=worker.bundle,
            threads=worker.threads,
            memory_bytes=worker.memory_bytes,
            viewer_url=self.settings.viewer_url,
        )
        start = time.perf_counter()
        try:
            outcome = self.judge(order, worker.seconds)
        except OSError as error:
            _LOG.error("%s cannot be worked on: %s", self.pseudonym(job.key), error)
            return JobOutcome(ending="hindered", reason="output", message="the disk of the node cannot be written")
        return outcome.model_copy(update={"seconds": {**outcome.seconds, "whole": time.perf_counter() - start}})

    def record_judgement(self, job: Job, outcome: JobOutcome) -> None:
        """Write down how a try ended. Safe to repeat."""
        now = self.clock()
        values = self._consequence(job, outcome, now)
        judged = outcome.ending == "judged"
        goes_to = [name for name, sender in self.senders.items() if judged and sender.wants(outcome)]
        tally: list[Tally] = [("step", step, seconds) for step, seconds in outcome.seconds.items()]
        if outcome.ending not in ("judged", "skipped"):
            tally.append(("failure", outcome.reason, 0.0))
        settled = self.ledger.settle_job(job, deliveries=goes_to, tally=tally, **values)
        if values["state"] == "shelved" and (settled or self._is_shelved(job)):
            self.shelf.put(job.key, what="study", reason=outcome.reason, message=outcome.message, tries=job.tries + 1)
        if not settled:
            return
        study = self.pseudonym(job.key)
        _LOG.info("%s: %s %s", study, plain(str(values["state"])), _word(outcome.reason))
        if values["state"] == "shelved":
            self.tell(AuditEvent(Action.SHELVED, AuditOutcome.FAILURE, study=study, detail=outcome.reason))
        elif outcome.ending in ("judged", "skipped"):
            detail = outcome.reason or ("positive" if outcome.positive else "negative")
            self.tell(AuditEvent(Action.JUDGED, study=study, detail=detail, count=job.instances))

    def _consequence(self, job: Job, outcome: JobOutcome, now: float) -> dict[str, Any]:
        """The columns of the ledger that follow from an outcome."""
        told = {"reason": outcome.reason, "message": outcome.message}
        facts = None if outcome.facts is None else outcome.facts.model_dump()
        known = {"seconds": dict(outcome.seconds), "facts": facts, "positive": outcome.positive, "judged": now}
        if outcome.ending == "judged":
            return {"state": "sending", **told, **known}
        if outcome.ending == "skipped":
            return {"state": "skipped", "ended": now, **told, **known}
        if outcome.ending == "hindered":
            # A fault of the node is no try of the study's; the round only gives the next workflow its own name.
            return {"state": "waiting", "round": job.round + 1, "due": now + HINDERED_SECONDS, **told}
        tries = job.tries + 1
        if outcome.ending == "refused" or tries >= self.settings.worker.tries:
            return {"state": "shelved", "ended": now, "tries": tries, **told}
        return {"state": "waiting", "tries": tries, "due": now + self._wait(tries), **told}

    def _is_shelved(self, job: Job) -> bool:
        """Whether this try put the study on the shelf before, perhaps without time for a note."""
        now = self.ledger.job(job.key)
        return now is not None and (now.state, now.round, now.tries) == ("shelved", job.round, job.tries + 1)

    # Sending -------------------------------------------------------------------------------------------------------

    def send_once(self, job: Job, delivery: Delivery) -> Attempt | None:
        """One try to send; None when the ledger says that it is over, see ``judge_once``."""
        if not self.ledger.is_under_way(delivery):
            return None
        sender = self.senders.get(delivery.destination)
        folder = self.folder(job)
        outcome = finished(folder)
        if sender is None:
            return Attempt("no-such-destination", lasting=True)
        if outcome is None:
            return Attempt("results-missing", lasting=True)
        start = time.perf_counter()
        try:
            warning = sender.send(Parcel(job.key, folder, outcome, self.pseudonym(job.key)))
        except DeliveryError as error:
            return Attempt(error.reason, error.lasting, time.perf_counter() - start)
        except Exception as error:  # noqa: BLE001 a library may raise anything; one result must not end the queue
            _LOG.error("sending to %s failed: %s", plain(delivery.destination), error)
            return Attempt(f"fault-{type(error).__name__.lower()}", seconds=time.perf_counter() - start)
        return Attempt(seconds=time.perf_counter() - start, warning=warning)

    def record_delivery(self, job: Job, delivery: Delivery, attempt: Attempt) -> None:
        """Write down how a try to send ended. Safe to repeat."""
        now, reason = self.clock(), attempt.reason
        tries = delivery.tries + 1
        values: dict[str, Any] = {"reason": reason or attempt.warning, "seconds": attempt.seconds, "tries": tries}
        if not reason:
            values |= {"state": "delivered", "ended": now}
        elif attempt.lasting or tries >= self.settings.retry.tries:
            values |= {"state": "shelved", "ended": now}
        else:
            values |= {"state": "waiting", "due": now + self._wait(tries)}
        tally: Tally = ("failure", reason, attempt.seconds) if reason else ("step", "send", attempt.seconds)
        settled = self.ledger.settle_delivery(delivery, tally=(tally,), **values)
        if values["state"] == "shelved" and (settled or self._did_not_arrive(delivery)):
            message = f"not all results reached {delivery.destination}"
            self.shelf.put(job.key, what=delivery.destination, reason=reason, message=message, tries=tries)
        if settled:
            self._tell_of_delivery(job, delivery, str(values["state"]), str(values["reason"]))

    def _did_not_arrive(self, delivery: Delivery) -> bool:
        """Whether this try put the result on the shelf before."""
        now = self.ledger.delivery(delivery.key, delivery.destination)
        then = ("shelved", delivery.round, delivery.tries + 1)
        return now is not None and (now.state, now.round, now.tries) == then

    def _tell_of_delivery(self, job: Job, delivery: Delivery, state: str, reason: str) -> None:
        study, where = self.pseudonym(job.key), plain(delivery.destination)
        if state == "delivered" and reason:
            # With elements left out or changed: somebody should look at how the two systems get on.
            _LOG.warning("results of %s to %s: stored, %s", study, where, _word(reason))
        else:
            _LOG.info("results of %s to %s: %s %s", study, where, plain(state), _word(reason))
        detail = f"{delivery.destination}: {reason}" if reason else delivery.destination
        if state == "delivered":
            action = Action.NOTIFIED if delivery.destination.startswith("notify:") else Action.SENT
            self.tell(AuditEvent(action, study=study, detail=detail))
        elif state == "shelved":
            self.tell(AuditEvent(Action.SHELVED, AuditOutcome.FAILURE, study=study, detail=detail))

    # The loop ------------------------------------------------------------------------------------------------------

    def tick(self, runner: Runner) -> None:
        """One round of a node that also receives: hand over what is due, delete what has been kept long enough."""
        self.hand_over(runner)
        for job in self.ledger.stale(self.clock() - self.settings.keep_days * 86400)[:DELETED_AT_ONCE]:
            self._delete(job)

    def hand_over(self, runner: Runner) -> None:
        """Hand over whatever is due, and end the studies whose results have all arrived."""
        now = self.clock()
        longest = max(HINDERED_SECONDS, self.settings.retry.most_seconds)
        for job in self.ledger.due_jobs(now, longest):
            # Submitted first: a kill between the two repeats it, and the second submission changes nothing.
            runner.submit_judgement(job)
            self.ledger.take_job(job)
        for delivery in self.ledger.due_deliveries(now, longest):
            owner = self.ledger.job(delivery.key)
            if owner is not None:
                runner.submit_delivery(owner, delivery)
                self.ledger.take_delivery(delivery)
        self.ledger.finish(now)

    def recover(self, runner: Runner) -> None:
        """Take up tries that ended without being written down: a database that was away, a node killed too often.

        So are those of a machine that died and did not come back: they count as failed tries, and the next one runs
        wherever there is a free worker.
        """
        for job in self.ledger.jobs("busy"):
            if runner.lost_judgement(job):
                message = "the node died or lost its database while it judged this study"
                died = JobOutcome(ending="failed", reason="node-died", message=message)
                self.record_judgement(job, finished(self.folder(job)) or died)
        for delivery in self.ledger.deliveries("busy"):
            owner = self.ledger.job(delivery.key)
            if owner is not None and runner.lost_delivery(owner, delivery):
                self.record_delivery(owner, delivery, Attempt("node-died"))

    def _delete(self, job: Job) -> None:
        """Delete the files of a study: what came and what was made of it."""
        self.forget(job)
        shutil.rmtree(self.settings.data / "work" / job.key, ignore_errors=True)
        self.ledger.forget_files(job.key)
        self.tell(AuditEvent(Action.DELETED, study=self.pseudonym(job.key), count=job.instances))

    def _wait(self, tries: int) -> float:
        return backoff(self.settings.retry, tries, self.chance)


def result_folder(data: Path, job: Job) -> Path:
    """Where the try that the ledger names has its results, in the data folder of a node."""
    return data / "work" / job.key / f"{job.round}-{job.tries}" / "result"


def formats_of(settings: NodeSettings) -> tuple[str, ...]:
    """What has to be written for a study: what any destination wants, and JSON, which marks it as whole."""
    wanted = {form: None for destination in settings.destinations for form in destination.formats}
    if settings.notify.hl7_host is not None and settings.notify.identifiers:
        wanted["hl7"] = None
    return (*(form for form in wanted if form != "json"), "json")


def _word(reason: str) -> Plain:
    """A reason for a log: codes of ours, checked to be one."""
    return plain(reason if re.fullmatch(r"[a-z0-9-]{0,64}", reason) else "other")
