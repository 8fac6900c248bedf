"""What fuzzing the network side means: conversations in order, spoiled ones, and what a service may do with them.

Whatever a peer sends, the service answers the next C-ECHO, no thread of it dies of an error, and no log line names a
patient. ``tools/fuzz_pdu.py`` tries for hours, the suite for a moment.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import fuzz_mutations as mutations
from cspine.node.settings import Limits
from cspine.studies import tags
from fuzz_mutations import Mutation
from fuzz_reader_target import CORPUS, PATIENT, FindingError, deflated
from receiving_factory import Receiver, encoded, instance

COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
VERIFICATION = "1.2.840.10008.1.1"
# Presentation contexts of every request here: number, abstract syntax, transfer syntax.
CONTEXTS = (
    (1, tags.CT_STORAGE, tags.EXPLICIT_LITTLE),
    (3, VERIFICATION, tags.IMPLICIT_LITTLE),
    (5, COMMITMENT, tags.EXPLICIT_LITTLE),
    (7, tags.CT_STORAGE, tags.DEFLATED),
    (9, tags.CT_STORAGE, tags.RLE),
    (11, tags.CT_STORAGE, tags.IMPLICIT_LITTLE),
)
TIGHT = Limits(
    free_bytes=0, pdu_bytes=64 * 1024, associations=64, message_bytes=2**20, memory_bytes=2**23, idle_seconds=2.0,
    message_seconds=4.0,
)  # fmt: skip
ACCEPT = 2
_PIECE = 30_000
_ANSWER_SECONDS, _ECHO_SECONDS = 0.3, 20.0


# Building (PS3.8 9.3, PS3.7 9.3) --------------------------------------------------------------------------------------


def pdu(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    """One PDU."""
    return struct.pack(">BBI", kind, 0, len(body) if length is None else length) + body


def item(kind: int, body: bytes) -> bytes:
    """One item of an association request."""
    return struct.pack(">BBH", kind, 0, len(body)) + body


def association_request(*, title: bytes = b"CT1") -> bytes:
    """An A-ASSOCIATE-RQ for all ``CONTEXTS``."""
    contexts = b"".join(
        item(0x20, bytes((number, 0, 0, 0)) + item(0x30, abstract.encode()) + item(0x40, transfer.encode()))
        for number, abstract, transfer in CONTEXTS
    )
    user = item(0x51, struct.pack(">I", 16_384)) + item(0x52, b"1.2.3.4") + item(0x55, b"FUZZ")
    fixed = struct.pack(">HH16s16s32s", 1, 0, b"CSPINE".ljust(16), title.ljust(16)[:16], b"")
    return pdu(1, fixed + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + item(0x50, user))


def fragment(body: bytes, *, context: int = 1, is_command: bool = False, last: bool = True) -> bytes:
    """One P-DATA-TF with one presentation data value."""
    return pdu(4, struct.pack(">IBB", len(body) + 2, context, is_command + 2 * last) + body)


def element(number: int, value: bytes | int | str) -> bytes:
    """An element of a command set."""
    if isinstance(value, int):
        value = struct.pack("<H", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def store(data: bytes, sop: str, *, context: int = 1) -> bytes:
    """A C-STORE of one data set."""
    command = (
        element(0x0002, tags.CT_STORAGE) + element(0x0100, 1) + element(0x0110, 1) + element(0x0700, 0)
        + element(0x0800, 1) + element(0x1000, sop)
    )  # fmt: skip
    return _message(command, data, context)


def commit(data: bytes) -> bytes:
    """An N-ACTION that asks for storage commitment."""
    command = (
        element(0x0003, COMMITMENT) + element(0x0100, 0x0130) + element(0x0110, 2) + element(0x0800, 1)
        + element(0x1001, COMMITMENT_INSTANCE) + element(0x1008, 1)
    )  # fmt: skip
    return _message(command, data, 5)


def echo() -> bytes:
    """A C-ECHO."""
    command = element(0x0002, VERIFICATION) + element(0x0100, 0x0030) + element(0x0110, 3) + element(0x0800, 0x0101)
    return fragment(command, context=3, is_command=True)


def _message(command: bytes, data: bytes, context: int) -> bytes:
    pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)] or [b""]
    sent = [fragment(piece, context=context, last=k == len(pieces) - 1) for k, piece in enumerate(pieces)]
    return fragment(command, context=context, is_command=True) + b"".join(sent)


def commitment_request() -> bytes:
    """The Action Information of a request for one instance, explicit little endian."""

    def text(group: int, number: int, uid: str) -> bytes:
        value = uid.encode() + b"\0" * (len(uid) % 2)
        return struct.pack("<HH2sH", group, number, b"UI", len(value)) + value

    inside = text(0x0008, 0x1150, tags.CT_STORAGE) + text(0x0008, 0x1155, "1.2.3.4.5")
    entry = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inside)) + inside
    sequence = b"\x08\x00\x99\x11SQ\0\0" + struct.pack("<I", len(entry)) + entry
    return text(0x0008, 0x1195, "1.2.3.4.5.6") + sequence


@cache
def conversations() -> tuple[bytes, ...]:
    """What obedient peers send: a request, messages, and a release."""
    ds = instance(0)
    sop = str(ds.SOPInstanceUID)
    preamble = bytes(128) + b"DICM"
    head = preamble + b"\x02\x00\x10\x00UI" + struct.pack("<H", 20) + tags.EXPLICIT_LITTLE.encode() + b"\0"
    packed = deflated(head + encoded(ds))
    packed = packed[packed.index(tags.DEFLATED.encode()) + len(tags.DEFLATED) :].lstrip(b"\0")
    bodies = (echo(), store(encoded(ds), sop), store(packed, sop, context=7), commit(commitment_request()), echo() * 3)
    return tuple(association_request() + body + pdu(5, bytes(4)) for body in bodies)


# Spoiling -------------------------------------------------------------------------------------------------------------


def split(data: bytes) -> list[bytes]:
    """The PDUs of a conversation, as far as their lengths make sense."""
    found = []
    while len(data) >= 6:
        length = 6 + struct.unpack_from(">I", data, 2)[0]
        found.append(data[:length])
        data = data[length:]
    return [*found, data] if data else found


def _inside(mutation: Mutation, random: Random, part: bytes) -> bytes:
    """A PDU with a body spoiled and, mostly, lengths that fit again."""
    body = mutation(part[6:], random)
    if part[:1] == b"\x04" and len(body) > 6 and random.random() < 0.8:
        body = struct.pack(">I", len(body) - 4) + body[4:]
    return pdu(part[0], body) if random.random() < 0.9 else part[:6] + body


def spoiled(random: Random) -> bytes:
    """One conversation, made from an obedient one."""
    parts = split(random.choice(conversations()))
    for _ in range(random.choice((1, 1, 2, 3))):
        k = random.randrange(len(parts))
        choice = random.randrange(8)
        if choice == 0:
            parts.insert(k, random.choice(parts))
        elif choice == 1:
            parts.pop(k)
        elif choice == 2:
            parts[k] = parts[k][:2] + struct.pack(">I", random.choice(mutations.LENGTHS)) + parts[k][6:]
        else:
            parts[k] = _inside(random.choice(mutations.ANY), random, parts[k])
        if not parts:
            break
    return b"".join(parts)


# Checking -------------------------------------------------------------------------------------------------------------


def save(data: bytes, folder: Path = CORPUS) -> Path:
    """Keep a conversation in the corpus."""
    path = folder / "pdu" / f"{hashlib.sha256(data).hexdigest()[:16]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@dataclass
class Watcher:
    """What went wrong inside the service meanwhile."""

    dead: list[str]
    lines: list[str]

    def verdict(self) -> str:
        """What must not be; empty when all is well."""
        # The service has a hook of its own meanwhile, which logs.
        dead = [*self.dead, *(line for line in self.lines if "a thread ended" in line)]
        if dead:
            return f"a thread ended: {dead[0]}"
        named = [line for line in self.lines if any(name in line for name in PATIENT)]
        return f"patient data in the log: {named[0]}" if named else ""


@contextmanager
def watched() -> Iterator[Watcher]:
    """Note errors that end threads, and all that cspine logs."""
    watcher = Watcher([], [])

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            watcher.lines.append(logging.Formatter().format(record))

    def died(args: threading.ExceptHookArgs) -> None:
        watcher.dead.append(f"{args.exc_type.__name__}: {args.exc_value}")

    handler, hook = Keep(), threading.excepthook
    logger = logging.getLogger("cspine")
    logger.addHandler(handler)
    threading.excepthook = died
    try:
        yield watcher
    finally:
        threading.excepthook = hook
        logger.removeHandler(handler)


def converse(port: int, data: bytes) -> None:
    """Send a conversation: the first PDU, then the rest when it was answered."""
    parts = split(data)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
            peer.settimeout(_ANSWER_SECONDS)
            for k, part in enumerate(parts):
                peer.sendall(part)
                if k == 0:
                    _read(peer)
            peer.shutdown(socket.SHUT_WR)
            while _read(peer):
                pass
    except OSError:
        pass  # it hung up on us, as it may


def _read(peer: socket.socket) -> bytes:
    try:
        return peer.recv(65_536)
    except TimeoutError:
        return b""


def answers_echo(port: int) -> bool:
    """Whether a C-ECHO of a new association is answered with success."""
    deadline = time.monotonic() + _ECHO_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
                peer.sendall(association_request())
                if peer.recv(65_536)[:1] == bytes((ACCEPT,)):
                    peer.sendall(echo())
                    if b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00" in peer.recv(65_536):  # Status (0000,0900) 0000
                        peer.sendall(pdu(5, bytes(4)))
                        return True
        except OSError:
            pass
        time.sleep(0.05)  # associations of earlier cases may still be closing
    return False


def check(node: Receiver, data: bytes, watcher: Watcher) -> None:
    """Send one conversation and see what it did.

    Raises:
        FindingError: the service did what it must not.
    """
    converse(node.port, data)
    if not answers_echo(node.port):
        raise FindingError("the service no longer answers")
    if reason := watcher.verdict():
        raise FindingError(reason)
