"""Storage commitment, push model (PS3.4 annex J): which of these instances does the node hold, on its disk?

The request is answered at once; the report follows on an association of its own where the settings say where the peer
listens, else on the association that asked. The node keeps instances for ``keep_days``: it is no archive, and must
never be the only one that a modality asks before it deletes.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from cspine.node.settings import NodeSettings, Peer
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
_TRIES, _PAUSE_SECONDS = 5, 2.0


@dataclass(frozen=True)
class _Report:
    """One report to be made: to whom, and what it says."""

    event_type: int
    content: Dataset
    peer: Peer | None
    title: str
    address: str
    assoc: Association


class Commitments:
    """Takes requests and sends reports, one after another, from a thread of its own.

    Args:
        settings: of the node, for TLS.
        spool: knows what is held.
        entity: associates with peers.
        tell: takes audit events.
    """

    def __init__(
        self, settings: NodeSettings, spool: Spool, entity: ApplicationEntity, tell: Callable[[AuditEvent], None]
    ) -> None:
        self._settings, self._spool, self._entity, self._tell = settings, spool, entity, tell
        self._reports: queue.Queue[_Report | None] = queue.Queue(_WAITING)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cspine-commitment", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Make no more reports."""
        self._stopped.set()
        with contextlib.suppress(queue.Full):
            self._reports.put_nowait(None)
        self._thread.join(_PAUSE_SECONDS)

    def request(self, event: Event, size: int, peer: Peer | None, title: str, address: str) -> int:
        """Answer one N-ACTION; returns its status (PS3.4 J.3.2.1.4).

        Args:
            event: of pynetdicom.
            size: bytes of its Action Information.
            peer: who asks, where the settings know.
            title: its calling AE title.
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
        content, event_type = self._judge(transaction, pairs)
        try:
            self._reports.put_nowait(_Report(event_type, content, peer, title, address, event.assoc))
        except queue.Full:
            return RESOURCES
        return SUCCESS

    def _judge(self, transaction: str, pairs: list[tuple[str, str]]) -> tuple[Dataset, int]:
        """The Event Information of PS3.4 table J.3-2."""
        held, missing = [], []
        for sop_class, sop in pairs:
            holds = self._spool.holds(sop_class, sop)
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop
            if holds:
                held.append(item)
            else:
                item.FailureReason = CLASS_CONFLICT if holds is None else NO_SUCH_INSTANCE
                missing.append(item)
        content = Dataset()
        content.TransactionUID = transaction
        content.RetrieveAETitle = self._settings.ae_title
        if held:
            content.ReferencedSOPSequence = Sequence(held)
        if missing:
            content.FailedSOPSequence = Sequence(missing)
        return content, _SOME_NOT if missing else _ALL_HELD

    def _run(self) -> None:
        while (report := self._reports.get()) is not None:
            try:
                sent = self._send(report)
            except Exception:  # one report that fails must not end the thread that makes them
                LOG.exception("a storage commitment report failed")
                sent = False
            failed = len(report.content.get("FailedSOPSequence", ()))
            held = len(report.content.get("ReferencedSOPSequence", ()))
            detail = f"{failed} not held" if sent else "the report could not be sent"
            outcome = Outcome.SUCCESS if sent else Outcome.FAILURE
            self._tell(AuditEvent(Action.COMMITTED, outcome, report.title, report.address, detail=detail, count=held))

    def _send(self, report: _Report) -> bool:
        if report.peer is None or report.peer.port is None:
            return self._on(report.assoc, report)
        for attempt in range(_TRIES):
            if attempt and self._stopped.wait(_PAUSE_SECONDS * 2**attempt):
                return False
            if self._on_new(report, str(report.peer.host), report.peer.port):
                return True
        return False

    def _on_new(self, report: _Report, host: str, port: int) -> bool:
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

    def _on(self, assoc: Association, report: _Report) -> bool:
        # On the association that asked, the answer to its N-ACTION goes out first.
        deadline = time.monotonic() + _PAUSE_SECONDS
        while not assoc.dul.to_provider_queue.empty() and time.monotonic() < deadline:
            time.sleep(0.005)
        if not assoc.is_established:
            return False
        status, _ = assoc.send_n_event_report(
            report.content, report.event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        answer: int | None = status.get("Status")
        return answer == SUCCESS


def _items(asked: Dataset) -> Sequence:
    items: Sequence = asked.ReferencedSOPSequence
    return items


def _are_uids(pair: tuple[str, str]) -> bool:
    return is_uid(pair[0]) and is_uid(pair[1])
