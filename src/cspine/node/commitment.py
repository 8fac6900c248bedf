"""Storage commitment, push model (PS3.4 annex J): which of these instances does the node hold, on its disk?

The request is answered at once; the report is written down with it and follows until the peer has taken it, also over
restarts of the node: on an association of its own where the settings say where the peer listens, else on the
association that asked or a later one of the same peer. The node keeps instances for ``keep_days``: it is no archive,
and must never be the only one that a modality asks before it deletes. A report that cannot be sent for so long (a day
at least) is given up.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from cspine.node.audit import Action, AuditEvent, Outcome
from cspine.node.instances import is_uid
from cspine.node.report_log import Judged, Report, Reports
from cspine.node.settings import NodeSettings
from cspine.node.spool import Spool
from cspine.node.tls import client_context

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.association import Association
    from pynetdicom.events import Event

LOG = logging.getLogger(__name__)

SUCCESS, PROCESSING_FAILURE, INVALID_ARGUMENT, NO_SUCH_ACTION, RESOURCES = 0x0000, 0x0110, 0x0115, 0x0123, 0x0213
NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119  # PS3.3 C.14.1.1, Failure Reason
_REQUEST, _ALL_HELD, _SOME_NOT = 1, 1, 2  # PS3.4 J.3.2 and J.3.3: action type, event types
_MOST_BYTES = 4 * 2**20
_MOST_REFERENCES = 20_000
_WAITING = 100
_PAUSE_SECONDS, _IDLE_SECONDS, _DAY_SECONDS = 2.0, 3600.0, 86400.0
_MOST_DOUBLINGS = 60


class Commitments:
    """Takes requests and sends reports, one after another, from a thread of its own.

    Args:
        settings: of the node.
        spool: knows what is held, and keeps the reports.
        entity: associates with peers.
        tell: takes audit events.
        now: the time of day, seconds since the epoch.
    """

    def __init__(
        self,
        settings: NodeSettings,
        spool: Spool,
        entity: ApplicationEntity,
        tell: Callable[[AuditEvent], None],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._spool, self._entity, self._tell, self._now = settings, spool, entity, tell, now
        self._reports = Reports(spool.index)
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        # By title and address of the peer: the association it has open, when to try again, and how often that was done.
        self._open: dict[tuple[str, str], Association] = {}
        self._due: dict[tuple[str, str], float] = {}
        self._tries: Counter[tuple[str, str]] = Counter()
        self._news = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to send reports, first those that an earlier run could not."""
        self._thread = threading.Thread(target=self._run, name="cspine-commitment", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send no more; what is left is sent after the next start."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_PAUSE_SECONDS)

    def reachable(self, assoc: Association, title: str, address: str) -> None:
        """A peer has opened an association on which it takes reports."""
        with self._changed:
            self._open = {peer: one for peer, one in self._open.items() if not (one.is_released or one.is_aborted)}
            self._open[title, address] = assoc
            self._due.pop((title, address), None)
            self._news = True
            self._changed.notify_all()

    def request(self, event: Event, size: int, title: str, address: str) -> int:
        """Answer one N-ACTION; returns its status (PS3.4 J.3.2.1.4).

        Args:
            event: of pynetdicom.
            size: bytes of its Action Information.
            title: the peer's calling AE title.
            address: where it calls from.
        """
        if event.action_type != _REQUEST:
            return NO_SUCH_ACTION
        if not 0 < size <= _MOST_BYTES:
            return INVALID_ARGUMENT
        try:
            asked = event.action_information
            transaction = str(asked.TransactionUID)
            pairs = [(str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)) for item in _items(asked)]
        except (AttributeError, ValueError, TypeError, KeyError, NotImplementedError, RecursionError, EOFError):
            return INVALID_ARGUMENT
        if not is_uid(transaction) or not 0 < len(pairs) <= _MOST_REFERENCES or not all(map(_are_uids, pairs)):
            return INVALID_ARGUMENT
        if self._reports.count() >= _WAITING:
            return RESOURCES
        try:
            self._reports.add(title, address, self._now(), transaction, self._judge(pairs))
        except sqlite3.Error:
            LOG.exception("a storage commitment request cannot be written down")
            return RESOURCES
        self.reachable(event.assoc, title, address)
        return SUCCESS

    def _judge(self, pairs: list[tuple[str, str]]) -> list[Judged]:
        """Which instances are held; reasons as in PS3.3 C.14.1.1."""
        reasons = {True: 0, None: CLASS_CONFLICT, False: NO_SUCH_INSTANCE}
        return [Judged(*pair, reasons[self._spool.holds(*pair)]) for pair in pairs]

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._news = False
            try:
                wait = self._round()
            except Exception:  # a disk that fails, for instance; the reports stay
                LOG.exception("storage commitment reports cannot be sent")
                wait = _IDLE_SECONDS
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._stopped.is_set(), wait)

    def _round(self) -> float:
        """Send what is due; seconds until something is again."""
        for report in self._reports.waiting():
            if not self._stopped.is_set() and self._due.get((report.title, report.address), 0.0) <= time.monotonic():
                self._try(report)
        return max(0.0, min(self._due.values(), default=time.monotonic() + _IDLE_SECONDS) - time.monotonic())

    def _try(self, report: Report) -> None:
        """Try to send one report, and see to what follows."""
        sent, peer = False, (report.title, report.address)
        try:
            sent = self._send(report)
        except Exception:  # whatever a peer does must not end the thread that makes reports
            LOG.exception("a storage commitment report failed")
        retry, patience = self._settings.retry, max(self._settings.keep_days, 1.0) * _DAY_SECONDS
        with self._changed:
            if sent:
                self._due.pop(peer, None)
                self._tries.pop(peer, None)
            else:
                wait = min(retry.first_seconds * 2.0 ** min(self._tries[peer], _MOST_DOUBLINGS), retry.most_seconds)
                self._due[peer] = time.monotonic() + wait
                self._tries[peer] += 1
        if sent or self._now() - report.asked > patience:
            self._reports.remove(report.number)
            missing = sum(judged.reason != 0 for judged in report.judged)
            detail = f"{missing} not held" if sent else "the report could not be sent"
            outcome, held = Outcome.SUCCESS if sent else Outcome.FAILURE, len(report.judged) - missing
            self._tell(AuditEvent(Action.COMMITTED, outcome, report.title, report.address, detail=detail, count=held))

    def _send(self, report: Report) -> bool:
        for peer in self._settings.peers:
            if peer.ae_title == report.title and peer.port is not None and peer.host == report.address:
                return self._on_new(report, peer.host, peer.port)
        assoc = self._open.get((report.title, report.address))
        return assoc is not None and self._on(assoc, report)

    def _on_new(self, report: Report, host: str, port: int) -> bool:
        """Report on an association of our own, in the role of the SCP (PS3.4 J.3.3: role selection)."""
        tls = None
        if self._settings.tls is not None and self._settings.tls.authorities is not None:
            tls = (client_context(self._settings.tls), host)
        assoc = self._entity.associate(
            host,
            port,
            contexts=[build_context(StorageCommitmentPushModel)],
            ae_title=report.title,
            ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
            tls_args=tls,
        )
        if not assoc.is_established:
            return False
        try:
            return self._on(assoc, report)
        finally:
            assoc.release()

    def _on(self, assoc: Association, report: Report) -> bool:
        # On the association that asked, the answer to its N-ACTION goes out first.
        deadline = time.monotonic() + _PAUSE_SECONDS
        while not assoc.dul.to_provider_queue.empty() and time.monotonic() < deadline:
            time.sleep(0.005)
        if not assoc.is_established:
            return False
        content, event_type = self._content(report)
        status, _ = assoc.send_n_event_report(
            content, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        answer: int | None = status.get("Status")
        return answer == SUCCESS

    def _content(self, report: Report) -> tuple[Dataset, int]:
        """The Event Information of PS3.4 table J.3-2, and the event type."""
        held: list[Dataset] = []
        missing: list[Dataset] = []
        for judged in report.judged:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = judged.sop_class, judged.sop
            if judged.reason:
                item.FailureReason = judged.reason
            (missing if judged.reason else held).append(item)
        content = Dataset()
        content.TransactionUID = report.transaction
        content.RetrieveAETitle = self._settings.ae_title
        if held:
            content.ReferencedSOPSequence = Sequence(held)
        if missing:
            content.FailedSOPSequence = Sequence(missing)
        return content, _SOME_NOT if missing else _ALL_HELD


def _items(asked: Dataset) -> Sequence:
    items: Sequence = asked.ReferencedSOPSequence
    return items


def _are_uids(pair: tuple[str, str]) -> bool:
    return is_uid(pair[0]) and is_uid(pair[1])
