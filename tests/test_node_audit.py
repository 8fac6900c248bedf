"""The audit trail: a chain that shows where it was touched, and its form for a syslog server."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import OutputError, UsageError
from cspine.node import audit
from cspine.node.audit import Action, AuditEvent, AuditTrail, Outcome, verify
from cspine.node.settings import Syslog
from cspine.node.syslog import SyslogSink, audit_message, syslog_message

MOMENT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
RECEIVED = AuditEvent(
    Action.RECEIVED, actor="CT1", address="10.0.0.5", study="study-abc", study_uid="2.25.7", count=300
)


def parsed(message: bytes) -> ET.Element:
    return ET.fromstring(message)  # noqa: S314 (written a line above, by ourselves)


def trail_of(folder: Path, lines: int, **options: int) -> AuditTrail:
    trail = AuditTrail(folder, now=lambda: MOMENT, **options)
    for number in range(lines):
        trail.append(AuditEvent(Action.RECEIVED, actor="CT1", count=number))
    return trail


def test_a_line_says_who_what_and_when_and_seals_the_one_before(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path, now=lambda: MOMENT)
    trail.append(AuditEvent(Action.STARTED))
    trail.append(RECEIVED)
    first, second = trail.current.read_bytes().splitlines()
    entry = json.loads(second)
    assert entry["previous"] == hashlib.sha256(first).hexdigest()
    assert entry == {
        "n": 2, "time": "2026-03-04T05:06:07.000+00:00", "action": "received", "outcome": "success", "actor": "CT1",
        "address": "10.0.0.5", "study": "study-abc", "study_uid": "2.25.7", "count": 300,
        "previous": entry["previous"],
    }  # fmt: skip
    assert verify(tmp_path) is None


@given(data=st.data())
def test_any_change_before_the_last_line_is_found_at_its_place(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trail = trail_of(tmp_path_factory.mktemp("trail"), 6)
    lines = trail.current.read_bytes().splitlines(keepends=True)
    at = data.draw(st.integers(0, 4))
    kind = data.draw(st.sampled_from(("change", "remove", "double", "swap")))
    if kind == "change":
        spot = data.draw(st.integers(0, len(lines[at]) - 2))
        byte = data.draw(st.integers(0, 255).filter(lambda b: b not in (lines[at][spot], 10)))
        lines[at] = lines[at][:spot] + bytes((byte,)) + lines[at][spot + 1 :]
    elif kind == "remove":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    else:
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    trail.current.write_bytes(b"".join(lines))
    found = trail.verify()
    assert found is not None
    assert at + 1 <= found.line <= at + 2


def test_the_chain_goes_on_over_rotated_files_and_restarts(tmp_path: Path) -> None:
    trail_of(tmp_path, 60, rotate_bytes=4096)
    trail_of(tmp_path, 10, rotate_bytes=4096)
    files = audit.files_of(tmp_path)
    assert len(files) > 2 and verify(tmp_path) is None
    files[1].unlink()
    broken = verify(tmp_path)
    assert broken is not None and broken.file == files[2].name and broken.line == 1


def test_a_line_that_a_crash_cut_is_taken_away_and_that_is_told(tmp_path: Path) -> None:
    trail = trail_of(tmp_path, 3)
    with trail.current.open("ab") as stream:
        stream.write(b'{"n":4,"time":')
    again = AuditTrail(tmp_path)
    assert verify(tmp_path) is None
    assert json.loads(again.current.read_bytes().splitlines()[-1])["action"] == "resumed"


def test_lines_of_several_threads_form_one_chain(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path, rotate_bytes=4096)
    threads = [threading.Thread(target=lambda: [trail.append(RECEIVED) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(tmp_path) is None
    assert sum(len(path.read_bytes().splitlines()) for path in audit.files_of(tmp_path)) == 80


def test_an_export_is_the_whole_trail_in_one_file(tmp_path: Path) -> None:
    trail = trail_of(tmp_path / "audit", 60, rotate_bytes=4096)
    assert trail.export(tmp_path / "all.jsonl") == 61
    (tmp_path / "copy").mkdir()
    (tmp_path / "all.jsonl").rename(tmp_path / "copy" / "audit.jsonl")
    assert verify(tmp_path / "copy") is None
    (tmp_path / "there").touch()
    with pytest.raises(UsageError, match="already"):
        trail.export(tmp_path / "there")


def test_a_full_disk_is_an_error_and_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trail = trail_of(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(audit.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match="No space left"):
            trail.append(RECEIVED)
    trail.append(RECEIVED)
    assert verify(tmp_path) is None and len(trail.current.read_bytes().splitlines()) == 3


def test_verifying_where_no_trail_is_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no audit trail"):
        verify(tmp_path)


def test_the_dicom_form_of_a_transfer_has_what_the_standard_makes_mandatory() -> None:
    root = parsed(audit_message(RECEIVED, MOMENT, node="CSPINE"))
    event = root.find("EventIdentification")
    assert event is not None and event.attrib["EventActionCode"] == "C" and event.attrib["EventOutcomeIndicator"] == "0"
    assert root.find("EventIdentification/EventID").attrib["csd-code"] == "110104"  # type: ignore[union-attr]
    roles = {
        participant.attrib["UserID"]: participant.find("RoleIDCode").attrib["csd-code"]  # type: ignore[union-attr]
        for participant in root.iter("ActiveParticipant")
    }
    assert roles == {"CT1": "110153", "CSPINE": "110152"}
    study, patient = root.iter("ParticipantObjectIdentification")
    assert study.attrib["ParticipantObjectID"] == "2.25.7"
    assert patient.attrib["ParticipantObjectID"] == "withheld"


@pytest.mark.parametrize(
    ("event", "code", "outcome"),
    [
        (AuditEvent(Action.STARTED), "110100", "0"),
        (AuditEvent(Action.REFUSED, Outcome.REFUSED, actor="X"), "110113", "4"),
        (AuditEvent(Action.SHELVED, Outcome.FAILURE), "110100", "8"),
        (AuditEvent(Action.DELETED), "110105", "0"),
    ],
)
def test_other_events_have_their_code(event: AuditEvent, code: str, outcome: str) -> None:
    root = parsed(audit_message(event, MOMENT, node="CSPINE"))
    assert root.find("EventIdentification/EventID").attrib["csd-code"] == code  # type: ignore[union-attr]
    assert root.find("EventIdentification").attrib["EventOutcomeIndicator"] == outcome  # type: ignore[union-attr]


def test_the_syslog_header_is_rfc_5424() -> None:
    message = syslog_message(RECEIVED, MOMENT, node="CSPINE", host="node1")
    assert re.match(
        rb"<85>1 2026-03-04T05:06:07\.000\+00:00 node1 cspine-node \d+ IHE\+DICOM - \xef\xbb\xbf<\?xml", message
    )


def test_events_reach_a_tcp_server_counted_in_octets(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        sink = SyslogSink(Syslog(host="127.0.0.1", port=server.getsockname()[1], transport="tcp"), node="CSPINE")
        AuditTrail(tmp_path, sink=sink).append(RECEIVED)
        connection, _ = server.accept()
        sink.close()
        with connection:
            data = b"".join(iter(lambda: connection.recv(65536), b""))
    length, _, message = data.partition(b" ")
    assert int(length) == len(message) and b"110104" in message


def test_events_reach_a_udp_server(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        sink = SyslogSink(Syslog(host="127.0.0.1", port=server.getsockname()[1], transport="udp"), node="CSPINE")
        AuditTrail(tmp_path, sink=sink).append(RECEIVED)
        assert b"study-abc" in server.recv(65536)
        sink.close()


def test_a_server_that_is_down_costs_copies_not_the_trail(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    sink = SyslogSink(Syslog(host="127.0.0.1", port=port, transport="tcp"), node="CSPINE")
    AuditTrail(tmp_path, sink=sink).append(RECEIVED)
    sink.close()
    assert sink.dropped == 1 and verify(tmp_path) is None
