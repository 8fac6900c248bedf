"""Audit messages for a hospital's audit repository: DICOM PS3.15 A.5 inside RFC 5424, over UDP, TCP or TLS.

Transport as IHE ITI-20 asks for: RFC 5426 (UDP), RFC 6587 and RFC 5425 octet counting (TCP, TLS). Sending is done by a
thread of its own from a short queue: a repository that is down neither stops nor slows the node, whose own trail has
every event anyway; what did not fit is counted in ``dropped``.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import ssl
import threading
from datetime import datetime
from typing import NamedTuple
from xml.etree import ElementTree as ET

from cspine.node.audit import Action, AuditEvent, Outcome
from cspine.node.settings import Syslog

# RFC 5424 6.2.1: facility 10 (security), severity 5 (notice), as RFC 3881 repositories expect; 4 for what went wrong.
_FACILITY = 10
_NOTICE, _WARNING = 5, 4
_QUEUE = 1000
_TIMEOUT_S = 10.0


class _Code(NamedTuple):
    value: str
    meaning: str


# PS3.16 CID 400 (audit event) with the code of PS3.15 A.5.2 (event action: C create, R read, E execute, D delete).
_TRANSFERRED = _Code("110104", "DICOM Instances Transferred")
_ACTIVITY = _Code("110100", "Application Activity")
_ALERT = _Code("110113", "Security Alert")
_EXPORT = _Code("110106", "Export")
_DELETED = _Code("110105", "DICOM Study Deleted")
_EVENTS: dict[Action, tuple[_Code, str]] = {
    Action.RECEIVED: (_TRANSFERRED, "C"),
    Action.CONFLICT: (_TRANSFERRED, "R"),
    Action.SENT: (_TRANSFERRED, "R"),
    Action.REFUSED: (_ALERT, "E"),
    Action.EXPORTED: (_EXPORT, "R"),
    Action.DELETED: (_DELETED, "D"),
}
# PS3.16 CID 401 type of an Application Activity and of a Security Alert.
_TYPES = {
    Action.STARTED: _Code("110120", "Application Start"),
    Action.STOPPED: _Code("110121", "Application Stop"),
    Action.REFUSED: _Code("110126", "Node Authentication"),
}
_SOURCE_ROLE, _DESTINATION_ROLE = _Code("110153", "Source Role ID"), _Code("110152", "Destination Role ID")
_APPLICATION_ROLE = _Code("110150", "Application")
# PS3.15 A.5.2: EventOutcomeIndicator.
_OUTCOMES = {Outcome.SUCCESS: "0", Outcome.REFUSED: "4", Outcome.FAILURE: "8"}


def audit_message(event: AuditEvent, moment: datetime, *, node: str) -> bytes:
    """The AuditMessage XML of PS3.15 A.5.1.

    Args:
        event: what happened.
        moment: when, with a zone.
        node: AE title of this node.
    """
    code, action = _EVENTS.get(event.action, (_ACTIVITY, "E"))
    root = ET.Element("AuditMessage")
    about = ET.SubElement(
        root,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=moment.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=_OUTCOMES[event.outcome],
    )
    _coded(about, "EventID", code)
    if event.action in _TYPES:
        _coded(about, "EventTypeCode", _TYPES[event.action])
    if event.detail:
        ET.SubElement(about, "EventOutcomeDescription").text = event.detail
    _participants(root, event, node)
    source = ET.SubElement(root, "AuditSourceIdentification", AuditSourceID=node)
    ET.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4", "originalText": "Application Server Process"})
    if event.study_uid:
        _study(root, event)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _participants(root: ET.Element, event: AuditEvent, node: str) -> None:
    """Who took part: sender and receiver of a transfer, else the application."""
    outside = event.actor != "node"
    transfer = event.action in (Action.RECEIVED, Action.CONFLICT, Action.SENT)
    if outside:
        inward = event.action is not Action.SENT
        role = _SOURCE_ROLE if inward else _DESTINATION_ROLE
        who = {"UserID": event.actor, "UserIsRequestor": str(inward).lower()}
        if event.address:  # type 2: an IP address
            who |= {"NetworkAccessPointID": event.address, "NetworkAccessPointTypeCode": "2"}
        peer = ET.SubElement(root, "ActiveParticipant", who)
        _coded(peer, "RoleIDCode", role if transfer else _APPLICATION_ROLE)
    role = _APPLICATION_ROLE
    if transfer:
        role = _SOURCE_ROLE if event.action is Action.SENT else _DESTINATION_ROLE
    requestor = not outside or event.action is Action.SENT
    here = ET.SubElement(root, "ActiveParticipant", UserID=node, UserIsRequestor=str(requestor).lower())
    _coded(here, "RoleIDCode", role)


def _study(root: ET.Element, event: AuditEvent) -> None:
    """The study (under its pseudonym) and the patient, whom this node names to nobody."""
    study = ET.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=event.study_uid,
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole="3",
    )
    _coded(study, "ParticipantObjectIDTypeCode", _Code("110180", "Study Instance UID"))
    ET.SubElement(study, "ParticipantObjectName").text = event.study
    described = ET.SubElement(study, "ParticipantObjectDescription")
    sop = ET.SubElement(described, "SOPClass", UID="1.2.840.10008.5.1.4.1.1.2")
    sop.set("NumberOfInstances", str(event.count or 0))
    patient = ET.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID="withheld",
        ParticipantObjectTypeCode="1",
        ParticipantObjectTypeCodeRole="1",
    )
    kind = {"csd-code": "2", "codeSystemName": "RFC-3881", "originalText": "Patient Number"}
    ET.SubElement(patient, "ParticipantObjectIDTypeCode", kind)
    ET.SubElement(patient, "ParticipantObjectName").text = "withheld"


def _coded(parent: ET.Element, name: str, code: _Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": "DCM", "originalText": code.meaning}
    ET.SubElement(parent, name, attributes)


def syslog_message(event: AuditEvent, moment: datetime, *, node: str, host: str) -> bytes:
    """One RFC 5424 message: header, message id ``IHE+DICOM``, no structured data, and the XML with its byte mark."""
    severity = _NOTICE if event.outcome is Outcome.SUCCESS else _WARNING
    stamp = moment.isoformat(timespec="milliseconds")
    header = f"<{8 * _FACILITY + severity}>1 {stamp} {host} cspine-node {os.getpid()} IHE+DICOM - "
    return header.encode("ascii", "replace") + b"\xef\xbb\xbf" + audit_message(event, moment, node=node)


class SyslogSink:
    """Sends events to a syslog server from a thread of its own; see ``audit.Sink``.

    Args:
        settings: where to.
        node: AE title of this node.
    """

    def __init__(self, settings: Syslog, *, node: str) -> None:
        self._settings, self._node = settings, node
        self._host = socket.gethostname() or "-"
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUE)
        self._socket: socket.socket | None = None
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="cspine-syslog", daemon=True)
        self._thread.start()

    def send(self, event: AuditEvent, moment: datetime) -> None:
        """Queue one event; never blocks."""
        try:
            self._queue.put_nowait(syslog_message(event, moment, node=self._node, host=self._host))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Send what is queued, for some seconds at most, and end."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=1.0)
        self._thread.join(_TIMEOUT_S)

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            for attempt in range(2):  # the second on a fresh connection: the server may have closed the old one
                try:
                    self._deliver(message)
                    break
                except OSError:
                    self._disconnect()
                    self.dropped += attempt
        self._disconnect()

    def _deliver(self, message: bytes) -> None:
        where = (self._settings.host, self._settings.port)
        if self._socket is None:
            self._socket = self._connect(where)
        if self._settings.transport == "udp":
            self._socket.send(message)
        else:
            self._socket.sendall(b"%d " % len(message) + message)

    def _connect(self, where: tuple[str, int]) -> socket.socket:
        if self._settings.transport == "udp":
            family, kind, protocol, _, address = socket.getaddrinfo(*where, type=socket.SOCK_DGRAM)[0]
            datagram = socket.socket(family, kind, protocol)
            datagram.connect(address)
            return datagram
        plain = socket.create_connection(where, timeout=_TIMEOUT_S)
        if self._settings.transport == "tcp":
            return plain
        context = ssl.create_default_context(cafile=self._settings.authorities)
        return context.wrap_socket(plain, server_hostname=self._settings.host)

    def _disconnect(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None
