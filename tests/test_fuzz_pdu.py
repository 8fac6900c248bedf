"""Whatever a peer sends, the node goes on: spoiled conversations, and bombs inside messages that are in order."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz_pdu_target import (
    TIGHT,
    Watcher,
    answers_echo,
    association_request,
    check,
    commit,
    commitment_request,
    conversations,
    converse,
    fragment,
    pdu,
    save,
    spoiled,
    store,
    watched,
)
from fuzz_reader_target import CORPUS
from hostile_files import MIB, before_patient, nested, private, sized
from receiving_factory import Receiver, encoded, instance, receiver

FOUND = sorted(path.name for path in (CORPUS / "pdu").glob("*.bin"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Receiver, Watcher]]:
    with watched() as watcher, receiver(tmp_path_factory.mktemp("node"), limits=TIGHT) as running:
        yield running, watcher


def test_the_conversations_that_are_spoiled_are_served(node: tuple[Receiver, Watcher]) -> None:
    running, watcher = node
    for conversation in conversations():
        check(running, conversation, watcher)
    assert [row.sop for row in running.spool.index.rows()] == [str(instance(0).SOPInstanceUID)]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_spoiled_conversation_leaves_the_service_as_it_was(node: tuple[Receiver, Watcher], seed: int) -> None:
    check(*node[:1], spoiled(Random(seed)), node[1])


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_is_not_found_again(node: tuple[Receiver, Watcher], name: str) -> None:
    check(node[0], (CORPUS / "pdu" / name).read_bytes(), node[1])


def test_a_finding_has_the_name_of_its_content(tmp_path: Path) -> None:
    assert save(b"x", tmp_path) == save(b"x", tmp_path)
    assert save(b"x", tmp_path) != save(b"y", tmp_path)


# Bombs inside messages: a node in a process of its own, whose peak is the kernel's own (VmHWM), set back before each.

CHILD = """
import sys
from pathlib import Path
from cspine.node.settings import Limits
from receiving_factory import receiver
with receiver(Path(sys.argv[1]), limits=Limits(free_bytes=0)) as node:
    print(node.port, flush=True)
    sys.stdin.read()
"""
_LONG = 60 * MIB
DATA, SOP = encoded(instance(0)), str(instance(0).SOPInstanceUID)


def _deflated(body: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeezer.compress(body) + squeezer.flush()


def _rle() -> bytes:
    data = sized(DATA, 30_000, 30_000)
    at = data.rindex(b"\xe0\x7f\x10\x00")
    frame = struct.pack("<16I", 2, 64, 66, *([0] * 13)) + b"\x81\0" * 10
    item = b"\xfe\xff\x00\xe0"
    return (
        data[:at] + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + item + bytes(4) + item + struct.pack("<I", len(frame))
        + frame + b"\xfe\xff\xdd\xe0" + bytes(4)
    )  # fmt: skip


def _items() -> bytes:
    items = (b"\xfe\xff\x00\xe0" + bytes(4)) * 10**6
    return before_patient(DATA, b"\x00\x52\x29\x92SQ\0\0" + struct.pack("<I", len(items)) + items)


BOMBS: dict[str, Callable[[], bytes]] = {
    "a PDU of 4 GB": lambda: pdu(4, bytes(MIB), length=0xFFFFFFF0),
    "a deflated header": lambda: store(_deflated(before_patient(DATA, private(_LONG, bytes(_LONG)))), SOP, context=7),
    "deflated pixels": lambda: store(_deflated(DATA + bytes(_LONG)), SOP, context=7),
    "RLE of 30000 x 30000": lambda: store(_rle(), SOP, context=9),
    "10000 nested sequences": lambda: store(before_patient(DATA, nested(10_000)), SOP),
    "10000 nested sequences in a request": lambda: commit(nested(10_000) + commitment_request()),
    "a private element of 4 GB": lambda: store(before_patient(DATA, private(0xFFFFFFF0)), SOP),
    "a million items": lambda: store(_items(), SOP),
    "a command set that never ends": lambda: fragment(bytes(30_000), is_command=True, last=False) * 100,
}  # fmt: skip


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(found[1]) if found else 0


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Process and port of a node with the usual limits."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path_factory.mktemp("node"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as running:  # fmt: skip
        assert running.stdout is not None and running.stdin is not None
        port = int(running.stdout.readline())
        converse(port, association_request() + store(DATA, SOP))
        yield running.pid, port
        running.stdin.close()
        assert running.wait(timeout=30) == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures with /proc (Linux)")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_a_message_costs_the_node_little(child: tuple[int, int], name: str) -> None:
    pid, port = child
    conversation = association_request() + BOMBS[name]()
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = _peak(pid)
    converse(port, conversation)
    assert answers_echo(port)
    # What came is in memory twice, once as it is put together; a header is looked at in pieces.
    assert _peak(pid) - before < 32 * MIB + 4 * len(conversation)
