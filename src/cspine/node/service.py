"""The DICOM service of the node: C-ECHO, C-STORE of CT, storage commitment.

The process that receives decodes no pixels: bytes go to the spool as they come. Everything a peer may use up is capped
(``limits``), everything it did is in the audit trail, and nothing that names a patient is logged (``privacy``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from cspine.errors import CspineError, OutputError, UsageError
from cspine.node.audit import Action, AuditEvent, AuditTrail, Outcome
from cspine.node.commitment import Commitments
from cspine.node.instances import IMPLEMENTATION_NAME, IMPLEMENTATION_UID, SYNTAXES
from cspine.node.limits import ARTIM_SECONDS, Guard, within
from cspine.node.messages import GuardedDimse, StoreRequest
from cspine.node.privacy import Pseudonyms, plain, quiet_libraries
from cspine.node.settings import NodeSettings, Peer
from cspine.node.spool import Spool, Stored, Verdict
from cspine.node.tls import server_context
from cspine.node.transport import GuardedServer
from cspine.studies import tags

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pynetdicom.association import Association
    from pynetdicom.dimse_primitives import N_ACTION
    from pynetdicom.events import Event
    from pynetdicom.pdu_primitives import A_ASSOCIATE

LOG = logging.getLogger(__name__)

SUCCESS = 0x0000
# PS3.4 table B.2-1 and PS3.7 annex C. Another content under a UID that is taken is a failure: the sender must learn
# that the node does not hold what it sent.
STATUSES = {
    Verdict.ACCEPTED: SUCCESS,
    Verdict.AGAIN: SUCCESS,
    Verdict.SAME_PIXELS: 0xB000,  # warning: coercion of data elements
    Verdict.CONFLICT: 0x0111,  # failure: duplicate SOP instance
    Verdict.FULL: 0xA700,  # failure: refused, out of resources
    Verdict.MISMATCH: 0xA900,  # failure: data set does not match SOP class
    Verdict.UNREADABLE: 0xC000,  # failure: cannot understand
}
NOT_AUTHORISED = 0x0124
# Commands and commitment requests are small data sets; only CT comes compressed.
_PLAIN_SYNTAXES = [tags.EXPLICIT_LITTLE, tags.IMPLICIT_LITTLE]
# The same refusal of the same address is told once a minute, so that a port scan does not fill the trail.
_REFUSAL_SECONDS = 60.0
_STOP_SECONDS = 10.0


@dataclass
class Session:
    """What one association did.

    Attributes:
        assoc: the association.
        dimse: puts its messages together.
        peer: calling AE title once it is known and allowed.
        address: where it comes from.
        studies: accepted instances by Study Instance UID.
    """

    assoc: Association
    dimse: GuardedDimse
    address: str
    peer: str = ""
    studies: Counter[str] = field(default_factory=Counter)

    @property
    def over(self) -> bool:
        """Whether both its threads have ended (or never began, which is not over)."""
        return self.assoc.ident is not None and not self.assoc.is_alive() and not self.assoc.dul.is_alive()

    def wake(self) -> None:
        """End an association whose connection went before it asked for anything: the library waits on for it."""
        dul = self.assoc.dul
        if dul.ident is not None and not dul.is_alive() and self.assoc.requestor.primitive is None:
            dul.to_user_queue.put(cast("A_ASSOCIATE", None))  # as if the time for asking were over


class Service:
    """Receives, until ``stop``.

    Args:
        settings: of the node.
        spool: takes the instances; call its ``recover`` first.
        trail: takes the audit events.
        pseudonyms: for logs and trail.
    """

    def __init__(self, settings: NodeSettings, spool: Spool, trail: AuditTrail, pseudonyms: Pseudonyms) -> None:
        self._settings, self._spool, self._trail, self._pseudonyms = settings, spool, trail, pseudonyms
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], float] = {}
        self._ae = self._entity()
        self._commitments = Commitments(settings, spool, self._ae, self._tell)
        self._server: GuardedServer | None = None
        self._quiet: AbstractContextManager[None] | None = None

    @property
    def port(self) -> int:
        """The port that is listened at.

        Raises:
            UsageError: the service is not running.
        """
        if self._server is None:
            raise UsageError("the service is not running")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen; returns at once.

        Raises:
            UsageError: address or port cannot be had, or TLS files are missing.
            OutputError: the audit trail cannot be written.
        """
        settings = self._settings
        tls = None if settings.tls is None else server_context(settings.tls)
        self._trail.append(AuditEvent(Action.STARTED))
        networks = tuple(peer.address for peer in settings.peers if peer.address is not None)
        everywhere = len(networks) < len(settings.peers) or not settings.peers
        guard = Guard(
            settings.limits, () if everywhere else networks, self._opened, self._store, self._turned_away, self._sweep
        )
        _config.LOG_HANDLER_LEVEL = "none"  # its standard handlers print identifiers
        self._quiet = quiet_libraries()
        self._quiet.__enter__()
        try:
            where, contexts = (settings.host, settings.port), self._ae.supported_contexts
            server = GuardedServer(
                self._ae, where, settings.ae_title, contexts, evt_handlers=self._handlers(), guard=guard, tls=tls
            )
        except OSError as error:
            self._loud()
            raise UsageError(
                f"cannot listen: {error.strerror}", where=f"{settings.host}:{settings.port}", fix="Set host and port"
            ) from error
        self._server = server
        server.start()
        self._commitments.start()
        LOG.info("receiving as %s at port %d", plain(settings.ae_title), self.port)

    def stop(self) -> None:
        """Take no more associations, abort those that are open, and tell the trail what came."""
        if self._server is None:
            return
        self._server.stop()
        self._server = None
        for assoc in self._ae.active_associations:
            assoc.abort(block=False)
        self._commitments.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        while self._sessions and time.monotonic() < deadline:
            self._sweep()
            time.sleep(0.01)
        self._loud()
        self._tell(AuditEvent(Action.STOPPED))

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _loud(self) -> None:
        if self._quiet is not None:
            self._quiet.__exit__(None, None, None)
            self._quiet = None

    def _entity(self) -> ApplicationEntity:
        settings, limits = self._settings, self._settings.limits
        ae = ApplicationEntity(settings.ae_title)
        ae.implementation_class_uid = IMPLEMENTATION_UID
        ae.implementation_version_name = IMPLEMENTATION_NAME
        ae.maximum_pdu_size = limits.pdu_bytes
        ae.maximum_associations = limits.associations
        ae.acse_timeout = min(ARTIM_SECONDS, limits.idle_seconds)
        ae.network_timeout = ae.dimse_timeout = limits.idle_seconds
        ae.connection_timeout = min(ARTIM_SECONDS, limits.idle_seconds)
        ae.require_called_aet = settings.check_called_ae_title
        for sop_class in sorted(tags.CT_CLASSES):
            ae.add_supported_context(sop_class, list(SYNTAXES))
        ae.add_supported_context(Verification, _PLAIN_SYNTAXES)
        # Both roles: as SCP for the request, as SCU for a report on the same association is the SCP's too (PS3.4 J.3).
        ae.add_supported_context(StorageCommitmentPushModel, _PLAIN_SYNTAXES)
        return ae

    def _handlers(self) -> list[Any]:
        return [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_ESTABLISHED, self._established),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_N_ACTION, self._action),
        ]

    def _opened(self, assoc: Association, dimse: GuardedDimse) -> None:
        with self._lock:
            self._sessions[id(assoc)] = Session(assoc, dimse, assoc.requestor.address)

    def _session(self, assoc: Association) -> Session:
        return self._sessions[id(assoc)]

    def _requested(self, event: Event) -> None:
        """Check who calls from where, before anything else of the request is looked at."""
        session = self._session(event.assoc)
        request = cast("A_ASSOCIATE", event.assoc.requestor.primitive)
        title = str(request.calling_ae_title).strip()
        session.peer = title
        if self._settings.peers and self._peer(title, session.address) is None:
            self._turned_away(session.address, "calling AE title or address not known", title)
            # PS3.8 9.3.4: rejected permanent, service user, calling AE title not recognised.
            event.assoc.acse.send_reject(0x01, 0x01, 0x03)
            event.assoc.kill()  # waits until the rejection is out
        elif self._settings.check_called_ae_title and str(request.called_ae_title).strip() != self._settings.ae_title:
            self._turned_away(session.address, "called AE title is not ours", title)

    def _established(self, event: Event) -> None:
        """Send what waits for a peer that has not said where it listens."""
        if any(context.abstract_syntax == StorageCommitmentPushModel for context in event.assoc.accepted_contexts):
            session = self._session(event.assoc)
            self._commitments.reachable(event.assoc, session.peer, session.address)

    def _peer(self, title: str, address: str) -> Peer | None:
        """The peer of the settings with this title that may call from this address."""
        for peer in self._settings.peers:
            if peer.ae_title == title and (peer.address is None or within(address, (peer.address,))):
                return peer
        return None

    def _store(self, assoc: Association, request: StoreRequest, data: memoryview) -> tuple[int, str]:
        """Put one instance into the spool; its status, and a comment for the answer."""
        session = self._session(assoc)
        try:
            stored = self._spool.store(
                data,
                sop_class=request.sop_class,
                sop=request.sop,
                syntax=request.syntax,
                sender=session.peer,
            )
        except OutputError:
            LOG.exception("the spool failed")
            stored = Stored(Verdict.FULL, reason="the spool failed")
        if stored.verdict is Verdict.ACCEPTED:
            session.studies[stored.study_uid] += 1
        elif not stored.verdict.held or stored.verdict is Verdict.SAME_PIXELS:
            self._unhappy(session, stored)
        return STATUSES[stored.verdict], stored.reason[:64]  # VR LO

    def _unhappy(self, session: Session, stored: Stored) -> None:
        LOG.warning("instance of %s answered with %s", plain(stored.study or "a study"), stored.verdict)
        detail = stored.reason
        if stored.held:
            detail = f"{detail}; held {stored.held[:16]}, came {stored.came[:16]}"
        self._tell(
            AuditEvent(
                Action.REFUSED if stored.verdict is not Verdict.SAME_PIXELS else Action.CONFLICT,
                Outcome.REFUSED,
                session.peer,
                session.address,
                stored.study,
                self._study_uid(stored.study_uid),
                detail,
            )
        )

    def _study_uid(self, study_uid: str) -> str:
        return self._pseudonyms.uid("study", study_uid) if study_uid else ""

    def _action(self, event: Event) -> tuple[int, None]:
        """Storage commitment: take the request, report on it later."""
        session = self._session(event.assoc)
        stream = cast("N_ACTION", event.request).ActionInformation
        size = 0 if stream is None else stream.getbuffer().nbytes
        try:
            return self._commitments.request(event, size, session.peer, session.address), None
        finally:
            session.dimse.settle(size)

    def _sweep(self) -> None:
        """Close the books on associations that ended."""
        with self._lock:
            for session in self._sessions.values():
                session.wake()
            over = [key for key, session in self._sessions.items() if session.over]
            sessions = [self._sessions.pop(key) for key in over]
        for session in sessions:
            session.dimse.settle()
            for study, count in session.studies.items():
                if self._settings.complete == "release" and session.assoc.is_released and not self._shared(study):
                    self._spool.finish(study)
                name = self._spool.name_of(study)
                LOG.info("%d instances of %s received", count, name)
                self._tell(
                    AuditEvent(
                        Action.RECEIVED,
                        actor=session.peer,
                        address=session.address,
                        study=name,
                        study_uid=self._study_uid(study),
                        count=count,
                    )
                )

    def _shared(self, study: str) -> bool:
        """Whether another open association has sent some of a study too."""
        with self._lock:
            return any(study in session.studies for session in self._sessions.values())

    def _turned_away(self, address: str, reason: str, title: str = "unknown") -> None:
        now = time.monotonic()
        with self._lock:
            last = self._told.get((address, reason))
            if last is not None and now - last < _REFUSAL_SECONDS:
                return
            if len(self._told) > 10_000:
                self._told.clear()
            self._told[address, reason] = now
        LOG.warning("%s turned away: %s", self._pseudonyms.of("peer", address), plain(reason))
        self._tell(AuditEvent(Action.REFUSED, Outcome.REFUSED, title, address, detail=reason))

    def _tell(self, event: AuditEvent) -> None:
        """Put an event into the trail; a trail that cannot be written is an error in the log, not in the network."""
        try:
            self._trail.append(event)
        except CspineError:
            LOG.exception("the audit trail cannot be written")
