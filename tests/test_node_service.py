"""The DICOM service, driven by real clients (DCMTK) and by pynetdicom where DCMTK has no tool."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    MRImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from components import free_port, need
from cspine.errors import UsageError
from cspine.node.audit import verify
from cspine.node.privacy import PrivateFilter
from cspine.node.report_log import Judged
from cspine.node.service import Service
from cspine.node.settings import Limits, Peer, Retry, Tls
from cspine.studies import tags
from dicom_factory import ROOT, save
from receiving_factory import PSEUDONYMS, Receiver, instance, pixels_of, receiver, write_instances


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([need(program), *arguments], capture_output=True, text=True, check=False, timeout=120)


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def sent_events(node: Receiver, action: str) -> list[dict[str, Any]]:
    return [entry for entry in map(json.loads, node.lines()) if entry["action"] == action]


@contextmanager
def association(node: Receiver, *contexts: Any, **options: Any) -> Iterator[Any]:
    ae = AE(ae_title="CT1")
    for context in contexts or (CTImageStorage, Verification):
        ae.add_requested_context(context, [tags.EXPLICIT_LITTLE])
    assoc = ae.associate("127.0.0.1", node.port, ae_title=node.settings.ae_title, **options)
    assert assoc.is_established
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


# DCMTK ----------------------------------------------------------------------------------------------------------------


def test_echoscu_is_answered(tmp_path: Path) -> None:
    with receiver(tmp_path) as node:
        assert run("echoscu", *node.where).returncode == 0
    assert verify(tmp_path / "audit") is None


def test_storescu_delivers_a_study_that_then_goes_on(tmp_path: Path) -> None:
    write_instances(tmp_path / "in", 5)
    with receiver(tmp_path / "node", quiet_seconds=0.1) as node:
        sent = run("storescu", *node.where, "+sd", str(tmp_path / "in"))
        assert sent.returncode == 0, sent.stderr
        wait_for(lambda: bool(node.arrivals.ready()))
        (arrival,) = node.arrivals.ready()
        wait_for(lambda: bool(sent_events(node, "received")))
        (event,) = sent_events(node, "received")
    assert arrival.instances == event["count"] == 5
    assert event["actor"] == "STORESCU" and event["address"] == "127.0.0.1" and event["study"].startswith("study-")
    originals = {pixels_of(path) for path in (tmp_path / "in").iterdir()}
    assert {pixels_of(path) for path in arrival.folder.iterdir()} == originals


@pytest.mark.parametrize(
    ("option", "syntax"),
    [
        ("-xi", tags.IMPLICIT_LITTLE), ("-xe", tags.EXPLICIT_LITTLE), ("-xb", tags.EXPLICIT_BIG),
        ("-xd", tags.DEFLATED), ("-xr", tags.RLE), ("-xs", "1.2.840.10008.1.2.4.70"),
        ("-xt", "1.2.840.10008.1.2.4.80"), ("-xv", "1.2.840.10008.1.2.4.90"),
    ],
)  # fmt: skip
def test_storescu_may_propose_any_usual_transfer_syntax(tmp_path: Path, option: str, syntax: str) -> None:
    save(instance(), tmp_path / "one.dcm", syntax)
    with receiver(tmp_path / "node") as node:
        sent = run("storescu", option, *node.where, str(tmp_path / "one.dcm"))
        assert sent.returncode == 0, sent.stderr
        (row,) = node.spool.index.rows()
        assert row.syntax == syntax
        assert dcmread(node.spool.path(row)).pixel_array.any()


def test_three_dcmsend_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    count = 100
    for study in "123":
        write_instances(tmp_path / study, count, study=study)
    with receiver(tmp_path / "node") as node:
        command = [need("dcmsend"), *node.where, "+sd"]
        senders = [subprocess.Popen([*command, str(tmp_path / study)], stderr=subprocess.DEVNULL) for study in "123"]
        assert [sender.wait(timeout=120) for sender in senders] == [0, 0, 0]
        for study in "123":
            node.spool.finish(ROOT + study)
        wait_for(lambda: len(node.arrivals.ready()) == 3)
        for arrival in node.arrivals.ready():
            assert (
                len({str(dcmread(p, stop_before_pixels=True).StudyInstanceUID) for p in arrival.folder.iterdir()}) == 1
            )
            assert arrival.instances == count
        wait_for(lambda: sum(event["count"] for event in sent_events(node, "received")) == 3 * count)


def test_echoscu_over_tls_needs_a_certificate(tmp_path: Path) -> None:
    certificates(tmp_path)
    tls = Tls(certificate=tmp_path / "node.pem", key=tmp_path / "node.key", authorities=tmp_path / "ca.pem")
    with receiver(tmp_path / "node", tls=tls) as node:
        shown = ["+tls", str(tmp_path / "peer.key"), str(tmp_path / "peer.pem"), "+cf", str(tmp_path / "ca.pem")]
        good = run("echoscu", *shown, *node.where)
        assert good.returncode == 0, good.stderr
        assert run("echoscu", "+tla", "+cf", str(tmp_path / "ca.pem"), *node.where).returncode != 0
        assert run("echoscu", *node.where).returncode != 0
        assert sent_events(node, "refused")
        assert run("echoscu", *shown, *node.where).returncode == 0


def test_a_client_that_never_finishes_its_handshake_holds_up_nobody(tmp_path: Path) -> None:
    certificates(tmp_path)
    tls = Tls(certificate=tmp_path / "node.pem", key=tmp_path / "node.key", clients_need_one=False)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    context.check_hostname = False
    with (
        receiver(tmp_path / "node", tls=tls) as node,
        socket.create_connection(("127.0.0.1", node.port)),
        association(node, tls_args=(context, "localhost")) as assoc,
    ):
        assert assoc.send_c_echo().Status == 0


# Answers --------------------------------------------------------------------------------------------------------------


def test_every_verdict_has_its_status(tmp_path: Path) -> None:
    with receiver(tmp_path) as node, association(node) as assoc:
        assert assoc.send_c_store(instance(0, value=40)).Status == 0x0000
        assert assoc.send_c_store(instance(0, value=40)).Status == 0x0000
        assert assoc.send_c_store(instance(0, value=40, StudyDescription="x")).Status == 0xB000
        refused = assoc.send_c_store(instance(0, value=90))
        assert refused.Status == 0x0111 and "another content" in refused.ErrorComment
        without = instance(1)
        del without.StudyInstanceUID
        assert assoc.send_c_store(without).Status == 0xC000
        assert len(node.spool.index.rows()) == 1
    conflicts = sent_events(node, "refused")
    assert any("held " in event["detail"] and "came " in event["detail"] for event in conflicts)


def test_a_full_spool_answers_out_of_resources_and_goes_on_answering(tmp_path: Path) -> None:
    with receiver(tmp_path, limits=Limits(free_bytes=0, study_instances=2)) as node, association(node) as assoc:
        assert [assoc.send_c_store(instance(n)).Status for n in range(4)] == [0, 0, 0xA700, 0xA700]
        assert assoc.send_c_store(instance(0, study="2")).Status == 0
        assert assoc.send_c_echo().Status == 0


def test_what_is_no_ct_is_not_accepted(tmp_path: Path) -> None:
    with receiver(tmp_path) as node, association(node, Verification, MRImageStorage) as assoc:
        assert [str(context.abstract_syntax) for context in assoc.accepted_contexts] == [Verification]


def test_the_audit_trail_and_the_log_name_no_patient_and_no_uid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:

    caplog.handler.addFilter(PrivateFilter(PSEUDONYMS))
    with caplog.at_level("DEBUG"), receiver(tmp_path) as node, association(node) as assoc:
        assoc.send_c_store(instance(0, value=40))
        assoc.send_c_store(instance(0, value=90))
    text = "\n".join(node.lines()) + caplog.text
    for secret in ("Secret", "SECRET", ROOT):
        assert secret not in text


# Who may --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peers", "welcome"),
    [
        ((), True),
        ((Peer(name="a", ae_title="CT1"),), True),
        ((Peer(name="a", ae_title="CT1", address="127.0.0.0/8"),), True),
        ((Peer(name="a", ae_title="CT2"),), False),
        ((Peer(name="a", ae_title="CT1", address="10.0.0.1"), Peer(name="b", ae_title="CT2")), False),
        ((Peer(name="a", ae_title="CT1", address="10.0.0.1"),), False),  # dropped before a byte is read
    ],
)
def test_only_known_titles_from_their_addresses_are_welcome(
    tmp_path: Path, peers: tuple[Peer, ...], welcome: bool
) -> None:
    with receiver(tmp_path, peers=peers) as node:
        result = run("echoscu", "-aet", "CT1", *node.where)
        assert (result.returncode == 0) == welcome
        wait_for(lambda: bool(sent_events(node, "refused")) != welcome)


def test_another_called_title_is_refused_unless_that_is_allowed(tmp_path: Path) -> None:
    with receiver(tmp_path / "a") as node:
        assert run("echoscu", "-aec", "OTHER", "127.0.0.1", str(node.port)).returncode != 0
    with receiver(tmp_path / "b", check_called_ae_title=False) as node:
        assert run("echoscu", "-aec", "OTHER", "127.0.0.1", str(node.port)).returncode == 0


def test_it_listens_on_loopback_and_says_when_it_cannot(tmp_path: Path) -> None:
    with receiver(tmp_path / "a") as node:
        assert node.settings.host == "127.0.0.1"
        taken = node.settings.model_copy(update={"port": node.port})
        second = Service(taken, node.spool, node.trail, node.spool.pseudonyms)
        with pytest.raises(UsageError, match="cannot listen"):
            second.start()


# Complete -------------------------------------------------------------------------------------------------------------


def test_a_released_association_completes_its_study_where_the_settings_say_so(tmp_path: Path) -> None:
    with receiver(tmp_path, complete="release", quiet_seconds=10_000) as node:
        with association(node) as assoc:
            assoc.send_c_store(instance(0))
            assert node.arrivals.ready() == []
        wait_for(lambda: len(node.arrivals.ready()) == 1)


def test_an_aborted_association_completes_nothing(tmp_path: Path) -> None:
    with receiver(tmp_path, complete="release", quiet_seconds=10_000) as node:
        with association(node) as assoc:
            assoc.send_c_store(instance(0))
            assoc.abort()
        wait_for(lambda: bool(sent_events(node, "received")))
        assert node.arrivals.ready() == []


def test_a_study_that_two_associations_send_is_complete_when_both_are_released(tmp_path: Path) -> None:
    with receiver(tmp_path, complete="release", quiet_seconds=10_000) as node:
        with association(node) as late:
            late.send_c_store(instance(0))
            with association(node) as early:
                early.send_c_store(instance(1))
            wait_for(lambda: bool(sent_events(node, "received")))
            assert node.arrivals.ready() == []
        wait_for(lambda: len(node.arrivals.ready()) == 1)


# Storage commitment ---------------------------------------------------------------------------------------------------


class Reports:
    """What a peer hears of its requests."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, Dataset]] = []
        self.event = threading.Event()

    def __call__(self, event: Any) -> tuple[int, None]:
        self.heard.append((event.event_type, event.event_information))
        self.event.set()
        return 0, None

    @property
    def only(self) -> tuple[int, Dataset]:
        assert self.event.wait(15)
        (report,) = self.heard
        return report


def request(*pairs: tuple[str, str]) -> Dataset:
    content = Dataset()
    content.TransactionUID = generate_uid()
    content.ReferencedSOPSequence = []
    for sop_class, sop in pairs:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop
        content.ReferencedSOPSequence.append(item)
    return content


HELD = (tags.CT_STORAGE, str(instance(0).SOPInstanceUID))
MISSING = (tags.CT_STORAGE, str(instance(7).SOPInstanceUID))
OTHER_CLASS = (tags.ENHANCED_CT_STORAGE, str(instance(0).SOPInstanceUID))


def ask(assoc: Any, content: Dataset | None, action: int = 1) -> int:
    status, _ = assoc.send_n_action(content, action, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    return int(status.Status)


def test_commitment_is_reported_on_the_same_association(tmp_path: Path) -> None:
    reports = Reports()
    handlers = [(evt.EVT_N_EVENT_REPORT, reports)]
    contexts = (CTImageStorage, StorageCommitmentPushModel)
    with receiver(tmp_path) as node, association(node, *contexts, evt_handlers=handlers) as assoc:
        assoc.send_c_store(instance(0))
        asked = request(HELD, MISSING, OTHER_CLASS)
        assert ask(assoc, asked) == 0
        kind, said = reports.only
        wait_for(lambda: bool(sent_events(node, "committed")))
        assert sent_events(node, "committed")[0]["outcome"] == "success"
    assert kind == 2 and said.TransactionUID == asked.TransactionUID
    assert [item.ReferencedSOPInstanceUID for item in said.ReferencedSOPSequence] == [HELD[1]]
    assert [item.FailureReason for item in said.FailedSOPSequence] == [0x0112, 0x0119]


def test_commitment_is_reported_on_an_association_of_its_own_where_the_peer_listens(tmp_path: Path) -> None:
    reports = Reports()
    with listening(reports) as port:
        peer = Peer(name="ct1", ae_title="CT1", address="127.0.0.1", port=port)
        with receiver(tmp_path, peers=(peer,)) as node:
            with association(node, CTImageStorage, StorageCommitmentPushModel) as assoc:
                assoc.send_c_store(instance(0))
                assert ask(assoc, request(HELD)) == 0
            kind, said = reports.only
            wait_for(lambda: bool(sent_events(node, "committed")))
            assert sent_events(node, "committed")[0]["outcome"] == "success"
    assert kind == 1 and "FailedSOPSequence" not in said


@contextmanager
def listening(reports: Reports, port: int = 0) -> Iterator[int]:
    """A peer that takes reports on associations of their own; gives its port."""
    listener = AE(ae_title="CT1")
    listener.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = listener.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reports)])
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def test_a_report_that_could_not_be_sent_follows_when_the_peer_is_back(tmp_path: Path) -> None:
    reports, port = Reports(), free_port()
    peer = Peer(name="ct1", ae_title="CT1", address="127.0.0.1", port=port)
    soon = Retry(first_seconds=0.2, most_seconds=0.2)
    with receiver(tmp_path, peers=(peer,), retry=soon) as node:
        with association(node, CTImageStorage, StorageCommitmentPushModel) as assoc:
            assoc.send_c_store(instance(0))
            assert ask(assoc, request(HELD)) == 0
        time.sleep(0.3)
        with listening(reports, port):
            assert reports.only[0] == 1
            wait_for(lambda: bool(sent_events(node, "committed")))


def test_a_report_survives_a_restart_and_is_sent_once(tmp_path: Path) -> None:
    reports, port = Reports(), free_port()
    peer = Peer(name="ct1", ae_title="CT1", address="127.0.0.1", port=port)
    asked = request(HELD, MISSING)
    contexts = (CTImageStorage, StorageCommitmentPushModel)
    with receiver(tmp_path, peers=(peer,)) as node, association(node, *contexts) as assoc:
        assoc.send_c_store(instance(0))
        assert ask(assoc, asked) == 0
    with listening(reports, port):
        with receiver(tmp_path, peers=(peer,)) as node:
            kind, said = reports.only
            wait_for(lambda: bool(sent_events(node, "committed")))
        with receiver(tmp_path, peers=(peer,)) as node:
            time.sleep(0.3)
    assert len(reports.heard) == 1
    assert kind == 2 and said.TransactionUID == asked.TransactionUID
    assert [item.ReferencedSOPInstanceUID for item in said.ReferencedSOPSequence] == [HELD[1]]


def test_a_peer_that_listens_nowhere_gets_its_report_when_it_calls_again(tmp_path: Path) -> None:
    reports = Reports()
    contexts = (CTImageStorage, StorageCommitmentPushModel)
    with receiver(tmp_path) as node, association(node, *contexts) as assoc:
        assoc.send_c_store(instance(0))
        assoc.abort()
        wait_for(lambda: bool(sent_events(node, "received")))
        node.service._commitments._reports.add("CT1", "127.0.0.1", time.time(), "1.2.3", [Judged(*HELD, 0)])
    handlers = [(evt.EVT_N_EVENT_REPORT, reports)]
    with receiver(tmp_path) as node, association(node, *contexts, evt_handlers=handlers):
        assert reports.only[1].TransactionUID == "1.2.3"
        wait_for(lambda: bool(sent_events(node, "committed")))


def test_a_report_that_nobody_takes_for_days_is_given_up_and_the_trail_says_so(tmp_path: Path) -> None:
    with receiver(tmp_path / "a") as node:
        node.service._commitments._reports.add("CT9", "10.0.0.1", time.time() - 30 * 86400, "1.2.3", [Judged(*HELD, 0)])
        node.service._commitments.reachable(object(), "CT8", "10.0.0.2")  # type: ignore[arg-type]
        wait_for(lambda: bool(sent_events(node, "committed")))
        assert sent_events(node, "committed")[0]["outcome"] == "failure"
        assert node.service._commitments._reports.count() == 0


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize(
    ("pairs", "action", "status"),
    [((HELD,), 2, 0x0123), ((), 1, 0x0115), ((("x", "y"),), 1, 0x0115)],
)
def test_a_request_that_makes_no_sense_is_refused(
    tmp_path: Path, pairs: tuple[tuple[str, str], ...], action: int, status: int
) -> None:
    with receiver(tmp_path) as node, association(node, StorageCommitmentPushModel) as assoc:
        assert ask(assoc, request(*pairs), action) == status


# Kill -9 --------------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from receiving_factory import receiver
with receiver(Path(sys.argv[1])) as node:
    print(node.port, flush=True)
    sys.stdin.read()
"""


def send_until_it_dies(port: int, study: str, answered: list[str]) -> None:
    """Send instances one after another; those that were answered with success are written down."""
    ae = AE(ae_title="CT1")
    ae.add_requested_context(CTImageStorage, tags.EXPLICIT_LITTLE)
    ae.network_timeout = ae.dimse_timeout = 5
    assoc = ae.associate("127.0.0.1", port, ae_title="CSPINE")
    for number in range(2000):
        ds = instance(number, study=study)
        if not assoc.is_established or assoc.send_c_store(ds).get("Status") != 0:
            return
        answered.append(str(ds.SOPInstanceUID))


def test_what_was_answered_survives_the_death_of_the_process_at_any_moment(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    answered: list[str] = []
    for number, after in enumerate((0.2, 0.45, 0.7)):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert child.stdout is not None and child.stdin is not None
        port = int(child.stdout.readline())
        threading.Timer(after, child.kill).start()
        send_until_it_dies(port, str(number), answered)
        child.wait(timeout=30)
        child.stdout.close()
        child.stdin.close()
    assert answered
    with receiver(tmp_path) as node:
        for sop in answered:
            row = node.spool.index.find(sop)
            assert row is not None and pixels_of(node.spool.path(row))
        assert not list((node.spool.folder / "incoming").iterdir())
    assert verify(tmp_path / "audit") is None


# Certificates ---------------------------------------------------------------------------------------------------------


def certificates(folder: Path) -> None:
    """An authority, and certificates of a node and of a peer that it vouches for."""
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"]

    def make(name: str, *more: str) -> None:
        files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        made = run("openssl", "req", "-x509", *new, "-subj", f"/CN={name}", *files, *more)
        assert made.returncode == 0, made.stderr

    make("ca")
    for name in ("node", "peer"):
        vouch = ["-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key")]
        make(name, *vouch, "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:false")
