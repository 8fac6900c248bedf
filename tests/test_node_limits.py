"""What a peer may use up: every cap is met by a refusal or an abort, and the service goes on answering."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pynetdicom import AE
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from cspine.node.limits import Budget, within
from cspine.node.messages import StoreRequest, command_field, elements
from cspine.node.settings import Limits
from cspine.studies import tags
from dicom_factory import ROOT
from receiving_factory import Receiver, encoded, instance, receiver

MIB = 2**20
TIGHT = Limits(
    free_bytes=0,
    pdu_bytes=64 * 1024,
    associations=3,
    message_bytes=MIB,
    memory_bytes=2 * MIB,
    idle_seconds=1.0,
    message_seconds=2.0,
)
ABORT, REJECT, ACCEPT = 7, 3, 2


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiver(tmp_path_factory.mktemp("node"), limits=TIGHT) as node:
        yield node


def port_of(node: Receiver | int) -> int:
    return node if isinstance(node, int) else node.port


def answers_echo(node: Receiver | int) -> bool:
    ae = AE(ae_title="CT1")
    ae.add_requested_context(Verification)
    for _ in range(100):  # associations of the attack may still be closing
        assoc = ae.associate("127.0.0.1", port_of(node), ae_title="CSPINE")
        if assoc.is_established:
            status = assoc.send_c_echo()
            assoc.release()
            return bool(status and status.Status == 0)
        time.sleep(0.05)
    return False


@contextmanager
def connection(node: Receiver | int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port_of(node)), timeout=10) as peer:
        yield peer


def reply(peer: socket.socket) -> int | None:
    """Type of the next PDU; None when the connection is closed."""
    try:
        head = peer.recv(6, socket.MSG_WAITALL)
        if len(head) < 6:
            return None
        peer.recv(struct.unpack(">2xI", head)[0], socket.MSG_WAITALL)
        return head[0]
    except ConnectionError:
        return None


def pdu(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    return struct.pack(">BBI", kind, 0, len(body) if length is None else length) + body


def association_request() -> bytes:
    """An A-ASSOCIATE-RQ for CT (context 1) and verification (context 3)."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "CT1", "CSPINE"
    contexts = [build_context(CTImageStorage, tags.EXPLICIT_LITTLE), build_context(Verification, tags.IMPLICIT_LITTLE)]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = contexts
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.3.4"
    request.user_information = [longest, implementation]
    encoder = A_ASSOCIATE_RQ()
    encoder.from_primitive(request)
    return bytes(encoder.encode())


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def short(value: int) -> bytes:
    return struct.pack("<H", value)


def command(field: int, *, data_set: bool = True, sop_class: str = tags.CT_STORAGE) -> bytes:
    """A command set, implicit little endian."""
    return b"".join(
        (
            element(0x0002, sop_class.encode() + b"\0" * (len(sop_class) % 2)),
            element(0x0100, short(field)),
            element(0x0110, short(1)),
            element(0x0700, short(0)),
            element(0x0800, short(1 if data_set else 0x0101)),
            element(0x1000, (ROOT + "1.1.1").encode()),
        )
    )


def fragment(body: bytes, *, is_command: bool = False, last: bool = False, context: int = 1) -> bytes:
    """One P-DATA-TF with one presentation data value."""
    return pdu(4, struct.pack(">IBB", len(body) + 2, context, is_command + 2 * last) + body)


@contextmanager
def established(node: Receiver | int) -> Iterator[socket.socket]:
    for _ in range(100):
        with connection(node) as peer:
            peer.sendall(association_request())
            if reply(peer) == ACCEPT:
                yield peer
                return
        time.sleep(0.05)
    raise AssertionError("no association")


# PDUs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [1, 4])
def test_a_pdu_that_claims_four_gigabytes_is_aborted_before_it_is_read(tight: Receiver, kind: int) -> None:
    with connection(tight) as peer:
        peer.sendall(pdu(kind, b"", length=0xFFFFFFFF))
        assert reply(peer) == ABORT
        assert reply(peer) is None
    assert answers_echo(tight)


def test_a_peer_that_sends_a_byte_now_and_then_is_given_up(tight: Receiver) -> None:
    started = time.monotonic()
    with connection(tight) as peer:
        kind: int | None = -1
        peer.settimeout(0.3)
        for byte in association_request():
            try:
                peer.sendall(bytes((byte,)))
                kind = reply(peer)
                break
            except TimeoutError:
                continue
            except OSError:
                break
    assert kind in (ABORT, None, -1)
    assert time.monotonic() - started < 5 * TIGHT.idle_seconds
    assert answers_echo(tight)


def test_a_peer_that_says_nothing_is_given_up(tight: Receiver) -> None:
    with connection(tight) as silent, established(tight) as idle:
        assert reply(idle) == ABORT
        assert reply(silent) in (ABORT, None)


def test_a_message_that_trickles_in_many_pdus_is_given_up(tight: Receiver) -> None:
    with established(tight) as peer:
        peer.sendall(fragment(command(1), is_command=True, last=True))
        peer.settimeout(0.4)
        for _ in range(20):
            try:
                peer.sendall(fragment(b"\0\0"))
                kind = reply(peer)
                break
            except TimeoutError:
                continue
        assert kind == ABORT


# Messages -------------------------------------------------------------------------------------------------------------


def flood(peer: socket.socket, size: int) -> int | None:
    """Send a C-STORE of ``size`` bytes without an end; returns the PDU that comes back."""
    peer.sendall(fragment(command(1), is_command=True, last=True))
    try:
        for _ in range(size // 60_000 + 1):
            peer.sendall(fragment(bytes(60_000)))
    except OSError:
        pass
    return reply(peer)


def test_a_message_above_its_cap_is_aborted_and_its_memory_is_given_back(tight: Receiver) -> None:
    for _ in range(3):
        with established(tight) as peer:
            assert flood(peer, 2 * MIB) in (ABORT, None)
    assert answers_echo(tight)


def test_all_associations_together_stay_below_the_memory_cap(tight: Receiver) -> None:
    with established(tight) as one, established(tight) as two, established(tight) as three:
        for peer in (one, two):
            peer.sendall(fragment(command(1), is_command=True, last=True))
            for _ in range(16):  # each below its own cap, both together nearly all there is
                peer.sendall(fragment(bytes(60_000)))
        time.sleep(0.3)
        assert flood(three, 600_000) in (ABORT, None)
    assert answers_echo(tight)


@pytest.mark.parametrize(
    "body",
    [
        fragment(command(0x0020), is_command=True, last=True),  # C-FIND
        fragment(command(0x0100), is_command=True, last=True),  # N-EVENT-REPORT, which would start a thread each
        fragment(b"\x08\0\x05\0\xff\xff\xff\xff" + bytes(40), is_command=True, last=True),
        fragment(bytes(9000), is_command=True),
        fragment(bytes(10)),  # a data set without a command
        fragment(b"", is_command=True, last=True),
        pdu(4, struct.pack(">IB", 1, 1)),  # a value without a control header
        pdu(4, struct.pack(">I", 0xFFFFFFFF)),
    ],
)
def test_what_is_no_request_we_serve_ends_the_association(tight: Receiver, body: bytes) -> None:
    with established(tight) as peer:
        peer.sendall(body)
        assert reply(peer) in (ABORT, None)
    assert answers_echo(tight)


def test_a_peer_that_does_not_wait_for_answers_is_made_to_wait(tight: Receiver) -> None:
    """Messages beyond the one being served stay in the network, not in memory."""
    message = fragment(command(0x0030, data_set=False, sop_class=Verification), is_command=True, last=True, context=3)
    with established(tight) as peer:
        for _ in range(50):
            peer.sendall(message)
        answers = [reply(peer) for _ in range(50)]
    assert answers == [4] * 50


def test_more_associations_than_allowed_are_rejected_politely_then_dropped(tmp_path: Path) -> None:
    patient = TIGHT.model_copy(update={"idle_seconds": 30.0})
    with receiver(tmp_path, limits=patient) as node:
        with ExitStack() as open_ones:
            for _ in range(patient.associations):
                open_ones.enter_context(established(node))
            with connection(node) as one_more:
                one_more.sendall(association_request())
                assert reply(one_more) == REJECT
            crowd = [open_ones.enter_context(connection(node)) for _ in range(30)]
            assert reply(crowd[-1]) is None
        assert answers_echo(node)


# Fuzzing --------------------------------------------------------------------------------------------------------------

whole = st.builds(
    pdu, st.integers(0, 9), st.binary(max_size=300), length=st.one_of(st.none(), st.integers(0, 2**32 - 1))
)
fragments = st.builds(
    fragment, st.one_of(st.binary(max_size=200), st.just(command(1)), st.just(command(0x130))),
    is_command=st.booleans(), last=st.booleans(), context=st.integers(0, 255),
)  # fmt: skip
cut = st.tuples(st.just(association_request()), st.integers(0, 400)).map(lambda pair: pair[0][: pair[1]])
bent = st.tuples(st.integers(0, 200), st.integers(0, 255)).map(
    lambda spot: association_request()[: spot[0]] + bytes((spot[1],)) + association_request()[spot[0] + 1 :]
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiver(tmp_path_factory.mktemp("node"), limits=TIGHT.model_copy(update={"associations": 64})) as node:
        yield node


@given(greet=st.booleans(), parts=st.lists(st.one_of(whole, fragments, cut, bent, st.binary(max_size=100)), max_size=6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_is_sent_the_service_answers_the_next_echo(fuzzed: Receiver, greet: bool, parts: list[bytes]) -> None:
    with connection(fuzzed) as peer:
        try:
            if greet:
                peer.sendall(association_request())
            for part in parts:
                peer.sendall(part)
        except OSError:
            pass
    assert answers_echo(fuzzed)
    assert not fuzzed.spool.index.rows()


# Memory ---------------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from cspine.node.settings import Limits
from receiving_factory import receiver
with receiver(Path(sys.argv[1]), limits=Limits(free_bytes=0)) as node:
    print(node.port, flush=True)
    sys.stdin.read()
"""


def resident_peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_claims_of_four_gigabytes_leave_the_memory_of_the_process_as_it_was(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as child:  # fmt: skip
        assert child.stdout is not None and child.stdin is not None
        port = int(child.stdout.readline())
        before = resident_peak(child.pid)
        for kind in (1, 4, 1):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
                try:
                    peer.sendall(pdu(kind, b"", length=0xFFFFFFF0))
                    for _ in range(64):
                        peer.sendall(bytes(MIB))
                except OSError:
                    pass
        grown = resident_peak(child.pid) - before
        child.stdin.close()
        assert child.wait(timeout=30) == 0
    assert grown < 32 * MIB


CAPPED = """
import sys
from pathlib import Path
from cspine.node.limits import cap_memory
from cspine.node.settings import Limits
from receiving_factory import receiver
GIB = 2**30
# Caps of our own that let everything pass, so that the system's is what is met.
generous = Limits(free_bytes=0, message_bytes=8 * GIB, memory_bytes=8 * GIB, process_bytes=9 * GIB)
with receiver(Path(sys.argv[1]), limits=generous) as node:
    now = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData:"))
    cap_memory(now * 1024 + 96 * 2**20)
    print(node.port, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
def test_the_system_holds_the_process_below_its_cap_and_it_goes_on_receiving(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", CAPPED, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as child:  # fmt: skip
        assert child.stdout is not None and child.stdin is not None
        port = int(child.stdout.readline())
        before = resident_peak(child.pid)
        for _ in range(2):
            with established(port) as peer:
                assert flood(peer, 200 * MIB) in (ABORT, None)
        grown = resident_peak(child.pid) - before
        assert answers_echo(port)
        child.stdin.close()
        assert child.wait(timeout=30) == 0
    assert grown < 128 * MIB


# Parts ----------------------------------------------------------------------------------------------------------------


def test_a_budget_gives_no_more_than_it_has() -> None:
    budget = Budget(10)
    assert budget.take(7) and not budget.take(4) and budget.take(3)
    budget.give(5)
    assert budget.left == 5


@given(st.binary(max_size=80))
def test_any_bytes_have_a_command_field_or_none(data: bytes) -> None:
    assert command_field(data) is None or 0 <= command_field(data) <= 0xFFFF  # type: ignore[operator]


def test_the_command_field_is_found() -> None:
    assert command_field(command(0x0130)) == 0x0130
    assert command_field(command(1) + b"\0") is None


@pytest.mark.parametrize(
    ("address", "inside"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("10.2.0.1", False), ("::1", False), ("nonsense", False)],
)
def test_addresses_lie_in_networks(address: str, inside: bool) -> None:
    assert within(address, ["10.1.0.0/16"]) == inside


def test_a_sound_instance_passes_below_all_caps(tight: Receiver) -> None:
    ds = instance(5, study="9")
    ae = AE(ae_title="CT1")
    ae.add_requested_context(CTImageStorage, tags.EXPLICIT_LITTLE)
    assoc = ae.associate("127.0.0.1", tight.port, ae_title="CSPINE")
    assert assoc.send_c_store(ds).Status == 0
    assoc.release()
    assert len(encoded(ds)) < MIB


# C-STORE on its own way -----------------------------------------------------------------------------------------------


def stored(node: Receiver, *parts: bytes, message: bytes | None = None) -> int | None:
    """Send one C-STORE in these fragments; the kind of PDU that comes back."""
    with established(node) as peer:
        peer.sendall(fragment(message or command(1), is_command=True, last=True))
        for number, part in enumerate(parts):
            peer.sendall(fragment(part, last=number == len(parts) - 1))
        return reply(peer)


@given(cuts=st.lists(st.integers(0, 3000), max_size=6))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_however_a_data_set_is_cut_into_fragments_the_same_comes_out(tight: Receiver, cuts: list[int]) -> None:
    ds = instance(0, study="77")
    data = encoded(ds)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[start:stop] for start, stop in itertools.pairwise(edges)]
    assert stored(tight, *parts, message=store_command(str(ds.SOPInstanceUID))) == 4
    row = tight.spool.index.find(str(ds.SOPInstanceUID))
    assert row is not None and tight.spool.path(row).read_bytes().endswith(data)


def store_command(sop: str) -> bytes:
    """The command set of a C-STORE of CT."""
    found = {**(elements(command(1)) or {}), 0x1000: sop.encode() + b"\0" * (len(sop) % 2)}
    return b"".join(element(number, value) for number, value in found.items())


@pytest.mark.parametrize("missing", [0x0110, 0x0800, 0x1000])
def test_a_c_store_that_lacks_something_ends_the_association(tight: Receiver, missing: int) -> None:
    kept = b"".join(
        element(number, value) for number, value in (elements(command(1)) or {}).items() if number != missing
    )
    assert stored(tight, b"\0" * 8, message=kept) in (ABORT, None)
    assert answers_echo(tight)


def test_a_c_store_in_a_context_that_was_not_accepted_ends_the_association(tight: Receiver) -> None:
    with established(tight) as peer:
        peer.sendall(fragment(command(1), is_command=True, last=True, context=99))
        assert reply(peer) in (ABORT, None)


def test_an_answer_says_what_it_answers_and_how() -> None:
    request = StoreRequest(tags.CT_STORAGE, ROOT + "1", 7, 1, tags.EXPLICIT_LITTLE)
    found = elements(request.answer(0xC000, "odd"))
    assert found is not None
    assert (found[0x0100], found[0x0120], found[0x0900]) == (b"\x01\x80", b"\x07\x00", b"\x00\xc0")
    assert found[0x0902] == b"odd " and found[0x0002].rstrip(b"\0").decode() == tags.CT_STORAGE


def test_a_store_that_fails_in_an_unforeseen_way_is_answered_with_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    with receiver(tmp_path) as node:
        monkeypatch.setattr(node.spool, "store", surprise)
        ae = AE(ae_title="CT1")
        ae.add_requested_context(CTImageStorage, tags.EXPLICIT_LITTLE)
        assoc = ae.associate("127.0.0.1", node.port, ae_title="CSPINE")
        assert [assoc.send_c_store(instance(n)).Status for n in range(2)] == [0x0110, 0x0110]
        assoc.release()
