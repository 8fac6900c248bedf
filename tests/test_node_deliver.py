"""Results go out: to a real Orthanc by C-STORE and STOW-RS, to whoever is told at once, and with patience."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, evt

from components import free_port, need
from cspine.node import notify
from cspine.node.child import JobOutcome
from cspine.node.deliver import CStore, DeliveryError, Parcel, backoff, verdict
from cspine.node.notify import Hl7, Webhook, acknowledgment, signature
from cspine.node.settings import CStoreDestination, Notify, Retry, StowDestination, Tls
from cspine.node.stow import Stow
from cspine.node.tls import server_context
from node_work_factory import SECONDARY_CAPTURE, write_result
from orthanc_server import Orthanc

POSITIVE = JobOutcome(
    ending="judged",
    positive=True,
    probability=0.91,
    levels=("C2", "C6"),
    study_uid="1.2.840.99.7",
    files={"seg": ("seg.dcm",), "sr": ("sr.dcm",), "json": ("findings.json",)},
)
UIDS = ["2.25.111", "2.25.222"]


def parcel(folder: Path, outcome: JobOutcome = POSITIVE) -> Parcel:
    for name, uid in zip(("seg.dcm", "sr.dcm"), UIDS, strict=True):
        write_result(folder / name, uid=uid)
    return Parcel("study-abc-0123", folder, outcome, "study-abc-0123")


def cstore(port: int, **values: object) -> CStore:
    table = {"kind": "cstore", "name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": port}
    return CStore(CStoreDestination.model_validate({**table, **values}), "CSPINE")


def stow(url: str, **values: object) -> Stow:
    return Stow(StowDestination.model_validate({"kind": "stow", "name": "web", "url": url, **values}))


def test_cstore_to_orthanc_and_again(tmp_path: Path, orthanc: Orthanc) -> None:
    """A result that is sent twice is the same object twice, and the archive holds it once."""
    for _ in range(2):
        cstore(orthanc.dicom_port).send(parcel(tmp_path))
        assert sorted(orthanc.instances()) == UIDS


def test_stow_to_orthanc_and_again(tmp_path: Path, orthanc: Orthanc) -> None:
    for _ in range(2):
        stow(orthanc.dicomweb).send(parcel(tmp_path))
        assert sorted(orthanc.instances()) == UIDS


def test_a_destination_gets_the_formats_it_wants(tmp_path: Path, orthanc: Orthanc) -> None:
    cstore(orthanc.dicom_port, formats=["sr", "json"]).send(parcel(tmp_path))
    assert orthanc.instances() == UIDS[1:]


def test_nobody_there_is_a_matter_of_time(tmp_path: Path) -> None:
    for sender in (cstore(free_port()), stow(f"http://127.0.0.1:{free_port()}/dicom-web")):
        with pytest.raises(DeliveryError, match="unreachable") as caught:
            sender.send(parcel(tmp_path))
        assert not caught.value.lasting


@dataclass
class Archive:
    """A DICOM service that takes some kinds of objects and answers with a status for each."""

    statuses: list[int] = field(default_factory=list)
    got: list[str] = field(default_factory=list)

    @contextmanager
    def listening(self, sop_class: str = SECONDARY_CAPTURE, syntax: str = ExplicitVRLittleEndian) -> Iterator[int]:
        def store(event: Any) -> int:
            assert event.dataset.PatientID == "SECRET-ID"  # it can be read as what was agreed on
            self.got.append(str(event.request.AffectedSOPInstanceUID))
            return self.statuses.pop(0) if self.statuses else 0

        entity = AE(ae_title="ORTHANC")
        entity.add_supported_context(sop_class, syntax)
        handlers = [(evt.EVT_C_STORE, store)]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        assert server is not None
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0xB123, 0x0111])
def test_an_object_that_was_stored_with_a_warning_is_there_and_the_warning_is_told(tmp_path: Path, status: int) -> None:
    """0111 says that the object was there before: its sending was cut off after it had arrived."""
    archive = Archive([0, status])
    with archive.listening() as port:
        assert cstore(port).send(parcel(tmp_path)) == f"warning-{status:04x}"
    assert archive.got == UIDS


def test_an_object_that_is_not_wanted_does_not_keep_the_others(tmp_path: Path) -> None:
    """An archive that knows no Segmentation gets the report nevertheless."""
    archive, both = Archive(), parcel(tmp_path)
    write_result(tmp_path / "seg.dcm", uid=UIDS[0], sop_class=SegmentationStorage)
    with archive.listening() as port, pytest.raises(DeliveryError, match="object-kind-not-accepted") as caught:
        cstore(port).send(both)
    assert archive.got == UIDS[1:] and caught.value.lasting


def test_an_archive_that_knows_none_of_the_kinds_is_a_matter_for_a_person(tmp_path: Path) -> None:
    with Archive().listening(sop_class=SegmentationStorage) as port, pytest.raises(DeliveryError) as caught:
        cstore(port).send(parcel(tmp_path))
    assert (caught.value.reason, caught.value.lasting) == ("object-kind-not-accepted", True)


def test_an_archive_that_takes_nothing_but_the_default_transfer_syntax_gets_that(tmp_path: Path) -> None:
    """PS3.5 10.1: Implicit VR Little Endian is offered by everybody."""
    archive = Archive()
    with archive.listening(syntax=ImplicitVRLittleEndian) as port:
        assert cstore(port).send(parcel(tmp_path)) == ""
    assert archive.got == UIDS


@pytest.mark.parametrize(
    ("statuses", "reason", "lasting"),
    [
        ([0, 0xA900], "status-a900", True),
        ([0xC000, 0xA700], "status-a700", False),
        ([0xB006, 0x0122], "object-kind-not-accepted", True),
    ],
)
def test_while_one_object_may_be_wanted_later_all_are_sent_again(
    statuses: list[int], reason: str, lasting: bool
) -> None:
    with pytest.raises(DeliveryError, match=reason) as caught:
        verdict(statuses)
    assert caught.value.lasting is lasting


def test_cstore_over_tls_shows_a_certificate_and_checks_the_other(tmp_path: Path) -> None:
    ours, theirs = (certificate(tmp_path, name) for name in ("ours", "theirs"))
    got: list[str] = []
    entity = AE(ae_title="ORTHANC")
    entity.add_supported_context(SECONDARY_CAPTURE)
    listening = server_context(Tls(certificate=theirs[0], key=theirs[1], authorities=ours[0]))
    keep = [(evt.EVT_C_STORE, lambda event: got.append(str(event.request.AffectedSOPInstanceUID)) or 0)]
    server = entity.start_server(("127.0.0.1", 0), block=False, ssl_context=listening, evt_handlers=keep)  # type: ignore[arg-type]
    assert server is not None
    try:
        there = cstore(server.server_address[1], tls=True)
        for authorities in (ours[0], theirs[0]):
            sender = replace(there, tls=Tls(certificate=ours[0], key=ours[1], authorities=authorities))
            if authorities == ours[0]:
                with pytest.raises(DeliveryError, match="unreachable"):
                    sender.send(parcel(tmp_path))
            else:
                sender.send(parcel(tmp_path))
    finally:
        server.shutdown()
        server.server_close()
    assert got == UIDS


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key."""
    made, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-days", "1", "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


@dataclass
class Answers:
    """A web server that answers with one status and body, and keeps what it got."""

    status: int = 200
    body: bytes = b""
    type: str = "application/dicom+json"
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def serving(self) -> Iterator[Answers]:
        mine = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                mine.got.append((dict(self.headers), data))
                self.send_response(mine.status)
                if 300 <= mine.status < 400:
                    self.send_header("Location", mine.url)
                self.send_header("Content-Type", mine.type)
                self.send_header("Content-Length", str(len(mine.body)))
                self.end_headers()
                self.wfile.write(mine.body)

            def log_message(self, *_: Any) -> None:
                return

        server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.mark.parametrize(
    ("status", "lasting"), [(400, True), (415, True), (401, False), (404, False), (429, False), (503, False)]
)
def test_what_a_web_server_says_decides_whether_to_try_again(tmp_path: Path, status: int, lasting: bool) -> None:
    with Answers(status).serving() as server, pytest.raises(DeliveryError, match=f"http-{status}") as caught:
        stow(server.url).send(parcel(tmp_path))
    assert caught.value.lasting is lasting and len(server.got) == 1, "the node tries again, not the library"


def stored(failed: dict[str, int | None], there: dict[str, int | None]) -> bytes:
    """The answer to a STOW-RS request (PS3.18 annex I), with the reason of each failure and warning."""

    def items(table: dict[str, int | None], tag: str) -> dict[str, Any]:
        reasons = [{} if code is None else {tag: {"vr": "US", "Value": [code]}} for code in table.values()]
        uids = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in table]
        return {"vr": "SQ", "Value": [uid | reason for uid, reason in zip(uids, reasons, strict=True)]}

    told = {"00081198": items(failed, "00081197"), "00081199": items(there, "00081196")}
    return json.dumps({tag: value for tag, value in told.items() if value["Value"]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "reason", "lasting"),
    [
        # 202: a success with a list of failures. 409: nothing was stored, and the list says why.
        (202, stored({UIDS[0]: 0xA900}, {UIDS[1]: None}), "status-a900", True),
        (202, stored({UIDS[0]: 0xA700}, {UIDS[1]: None}), "status-a700", False),
        (202, stored({UIDS[0]: None}, {UIDS[1]: None}), "status-0110", False),
        (409, stored({UIDS[0]: 0xC000, UIDS[1]: 0x0122}, {}), "status-c000", True),
        (409, stored({UIDS[0]: 0xC000, UIDS[1]: 0xA700}, {}), "status-a700", False),
        (409, b"", "http-409", False),
        (409, b"{}", "status-0110", False),
        (409, stored({UIDS[0]: 0x0111}, {}), "status-0110", False),
        # One of the objects is in neither list.
        (200, stored({}, {UIDS[1]: None}), "status-0110", False),
        (200, b"{", "answer-not-understood", False),
        (200, b"[]", "answer-not-understood", False),
    ],
)
@pytest.mark.parametrize("charset", ["", "; charset=utf-8"])
def test_single_objects_that_a_web_server_did_not_store(
    tmp_path: Path, status: int, body: bytes, reason: str, lasting: bool, charset: str
) -> None:
    answers = Answers(status, body, f"application/dicom+json{charset}")
    with answers.serving() as server, pytest.raises(DeliveryError) as caught:
        stow(server.url).send(parcel(tmp_path))
    assert (caught.value.reason, caught.value.lasting) == (reason, lasting)


@pytest.mark.parametrize(
    ("status", "body", "warning"),
    [
        (202, stored({}, {UIDS[0]: 0xB000, UIDS[1]: None}), "warning-b000"),
        (409, stored({UIDS[0]: 0x0111, UIDS[1]: 0x0111}, {}), "warning-0111"),
        (202, stored({UIDS[0]: 0x0111}, {UIDS[1]: None}), "warning-0111"),
        (200, stored({}, dict.fromkeys(UIDS)), ""),
        (200, b"", ""),
    ],
)
def test_objects_that_a_web_server_stored_and_what_it_had_to_say(
    tmp_path: Path, status: int, body: bytes, warning: str
) -> None:
    with Answers(status, body).serving() as server:
        assert stow(server.url).send(parcel(tmp_path)) == warning


def test_a_page_for_people_is_no_success(tmp_path: Path) -> None:
    """A proxy that wants somebody to log in says 200 too."""
    with Answers(body=b"<html>", type="text/html").serving() as server, pytest.raises(DeliveryError) as caught:
        stow(server.url).send(parcel(tmp_path))
    assert (caught.value.reason, caught.value.lasting) == ("answer-not-understood", False)


def test_results_go_where_the_settings_say_and_nowhere_else(tmp_path: Path) -> None:
    """A POST that followed a redirect would become a GET, and its success would say nothing."""
    with Answers(302).serving() as server, pytest.raises(DeliveryError, match="http-302"):
        stow(server.url).send(parcel(tmp_path))
    assert len(server.got) == 1


def test_passwords_and_tokens_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("opensesame\n")
    (tmp_path / "token").write_text("abc")
    with Answers(body=b"{}").serving() as server:
        stow(server.url, username="u", password_file=tmp_path / "password").send(parcel(tmp_path))
        stow(server.url, token_file=tmp_path / "token").send(parcel(tmp_path))
    assert server.got[0][0]["Authorization"].startswith("Basic ")
    assert server.got[1][0]["Authorization"] == "Bearer abc"
    with pytest.raises(DeliveryError, match="secret-unreadable"):
        stow(server.url, token_file=tmp_path / "gone").send(parcel(tmp_path))


@given(st.integers(1, 10_000), st.floats(0.1, 100), st.floats(100, 10_000), st.integers())
def test_waits_double_up_to_a_limit_and_are_never_shorter_than_half(
    tries: int, first: float, most: float, seed: int
) -> None:
    wait = backoff(Retry(first_seconds=first, most_seconds=most), tries, random.Random(seed))
    whole = min(most, first * 2.0 ** min(tries - 1, 63))
    assert whole / 2 <= wait <= whole


# Who is told of positive studies -------------------------------------------------------------------------------------


def test_a_webhook_is_signed_and_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    with Answers().serving() as server:
        hook = Webhook(Notify(webhook=server.url, secret_file=tmp_path / "key"), server.url)
        hook.send(parcel(tmp_path))
        hook.send(parcel(tmp_path))
    (headers, body), (_, again) = server.got
    told = json.loads(body)
    assert told["levels"] == ["C2", "C6"] and told["probability"] == 0.91 and told["study"] == "study-abc-0123"
    assert "1.2.840.99.7" not in body.decode()
    assert json.loads(again)["id"] == told["id"], "a receiver can drop the second of two"
    expected = hmac.new(b"secret", headers["X-Cspine-Time"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["X-Cspine-Signature"] == f"sha256={expected}" == signature("secret", headers["X-Cspine-Time"], body)


def test_a_webhook_names_the_study_where_the_settings_allow_it(tmp_path: Path) -> None:
    hook = Webhook(Notify(webhook="http://x", identifiers=True), "http://x")
    assert json.loads(hook.body(parcel(tmp_path)))["study_instance_uid"] == "1.2.840.99.7"


def test_a_webhook_that_is_sent_elsewhere_is_a_failure(tmp_path: Path) -> None:
    with Answers(status=302).serving() as server, pytest.raises(DeliveryError, match="http-302"):
        Webhook(Notify(webhook=server.url), server.url).send(parcel(tmp_path))


@pytest.mark.parametrize(("status", "lasting"), [(400, True), (404, False), (500, False)])
def test_what_a_receiver_of_web_hooks_says_decides_whether_to_try_again(
    tmp_path: Path, status: int, lasting: bool
) -> None:
    with Answers(status).serving() as server, pytest.raises(DeliveryError, match=f"http-{status}") as caught:
        Webhook(Notify(webhook=server.url), server.url).send(parcel(tmp_path))
    assert caught.value.lasting is lasting


@contextmanager
def slow(said: bytes) -> Iterator[int]:
    """A receiver that says something a byte at a time, and goes on saying the last one for ever."""
    listener, stop = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve() -> None:
        line, _ = listener.accept()
        with line, suppress(OSError):
            rest = list(said)
            while not stop.wait(0.02):
                line.sendall(bytes([rest.pop(0) if len(rest) > 1 else rest[0]]) if rest else b"")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        thread.join(10)
        listener.close()


@pytest.mark.parametrize("said", [b"", b"\x0bMSH|"])
def test_a_receiver_that_never_comes_to_an_end_is_not_waited_for(
    tmp_path: Path, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have the message; it comes again under the same identifier, so that the receiver can drop it."""
    monkeypatch.setattr(notify, "ANSWER_SECONDS", 0.2)
    with slow(said) as port, pytest.raises(DeliveryError) as caught:
        Hl7(Notify(hl7_host="127.0.0.1", hl7_port=port), "127.0.0.1", port, "CSPINE").send(parcel(tmp_path))
    assert (caught.value.reason, caught.value.lasting) == ("no-answer", False)


def test_a_webhook_that_times_out_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "ANSWER_SECONDS", 0.2)
    with slow(b"") as port, pytest.raises(DeliveryError) as caught:
        Webhook(Notify(webhook=f"http://127.0.0.1:{port}"), f"http://127.0.0.1:{port}").send(parcel(tmp_path))
    assert (caught.value.reason, caught.value.lasting) == ("no-answer", False)


def test_what_a_receiver_of_web_hooks_goes_on_to_say_is_not_read(tmp_path: Path) -> None:
    """Its status is enough: a body without end holds up nobody."""
    with slow(b"HTTP/1.1 200 OK\r\n\r\n.") as port:
        url = f"http://127.0.0.1:{port}"
        assert Webhook(Notify(webhook=url), url).send(parcel(tmp_path)) == ""


@contextmanager
def mllp(code: str, got: list[bytes]) -> Iterator[int]:
    """An HL7 receiver that acknowledges one message."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        line, _ = listener.accept()
        with line:
            got.append(line.recv(65536))
            if code:
                line.sendall(b"\x0bMSH|^~\\&|R|R|||1||ACK|1|P|2.5.1\rMSA|" + code.encode() + b"|1\r\x1c\r")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(10)
        listener.close()


def test_an_hl7_message_is_valid_acknowledged_and_names_nobody(tmp_path: Path) -> None:
    from hl7apy.parser import parse_message

    got: list[bytes] = []
    with mllp("AA", got) as port:
        Hl7(Notify(hl7_host="127.0.0.1", hl7_port=port), "127.0.0.1", port, "CS|PINE").send(parcel(tmp_path))
    (block,) = got
    assert block.startswith(b"\x0b") and block.endswith(b"\x1c\r")
    message = parse_message(block.strip(b"\x0b\x1c\r").decode() + "\r", find_groups=True)
    message.validate()
    text = block.decode()
    assert "C2 C6" in text and "0.910" in text and "study-abc-0123" in text and r"CS\F\PINE" in text
    assert "1.2.840.99.7" not in text


@pytest.mark.parametrize(("code", "lasting"), [("AE", False), ("AR", True), ("", False)])
def test_what_a_receiver_says_decides_whether_to_try_again(tmp_path: Path, code: str, lasting: bool) -> None:
    with mllp(code, []) as port, pytest.raises(DeliveryError) as caught:
        Hl7(Notify(hl7_host="127.0.0.1", hl7_port=port), "127.0.0.1", port, "CSPINE").send(parcel(tmp_path))
    assert caught.value.lasting is lasting


def test_only_positive_studies_are_told_of() -> None:
    hook = Webhook(Notify(webhook="http://x", at_least=0.5), "http://x")
    assert hook.wants(POSITIVE)
    assert not hook.wants(POSITIVE.model_copy(update={"probability": 0.49}))
    assert not hook.wants(JobOutcome(ending="skipped"))


@given(st.binary(max_size=200))
def test_any_bytes_may_come_as_an_acknowledgment(answer: bytes) -> None:
    assert len(acknowledgment(answer)) <= 2
