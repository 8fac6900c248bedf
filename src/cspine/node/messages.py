"""DIMSE messages as they are put together from the network: within limits, and C-STORE without a detour.

pynetdicom 3.0.4 decodes a P-DATA PDU into objects with four copies of its bytes, hands the whole message from the
thread that reads to another that looks a thousand times a second, and hands the answer back in the same way. A node
takes thousands of slices like that. Here fragments go from the PDU into one buffer, and a C-STORE is served and
answered by the thread that read it; while it does so it reads nothing more, so that TCP makes the peer wait. All other
messages go the library's way.
"""

from __future__ import annotations

import logging
import queue
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from cspine.node.privacy import plain

if TYPE_CHECKING:
    from pynetdicom.association import Association

    from cspine.node.limits import Guard

LOG = logging.getLogger(__name__)

# A command set has a dozen short elements (PS3.7 9.3); UIDs and titles are bounded at 64 bytes.
_COMMAND_BYTES = 8 * 1024
_STORE, _STORE_RESPONSE = 0x0001, 0x8001
# Requests that the service answers, and the answer to its own N-EVENT-REPORT (PS3.7 E.1).
_SERVED = {_STORE: "C-STORE-RQ", 0x0030: "C-ECHO-RQ", 0x0130: "N-ACTION-RQ", 0x0FFF: "C-CANCEL-RQ", 0x8100: "N-EVENT"}
_NO_DATA_SET = 0x0101
_PROCESSING_FAILURE, _OUT_OF_RESOURCES = 0x0110, 0xA700
# Message control header, PS3.8 E.2: bit 0 says command, bit 1 says last.
_COMMAND, _LAST = 1, 2
# The association's own thread looks this often whether it shall end; a message wakes it at once.
_LOOK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """One C-STORE (PS3.7 9.3.1.1) as announced by its command set.

    Attributes:
        sop_class: Affected SOP Class UID.
        sop: Affected SOP Instance UID.
        message: Message ID.
        context: presentation context ID.
        syntax: transfer syntax UID of the context.
    """

    sop_class: str
    sop: str
    message: int
    context: int
    syntax: str

    def answer(self, status: int, comment: str) -> bytes:
        """The command set of the response, PS3.7 table 9.3-2."""
        body = b"".join(
            (
                _element(0x0002, self.sop_class.encode("ascii", "replace")),
                _short(0x0100, _STORE_RESPONSE),
                _short(0x0120, self.message),
                _short(0x0800, _NO_DATA_SET),
                _short(0x0900, status),
                _element(0x0902, comment.encode("ascii", "replace"), b" ") if comment else b"",
                _element(0x1000, self.sop.encode("ascii", "replace")),
            )
        )
        return struct.pack("<HHII", 0, 0, 4, len(body)) + body


class Fragments:
    """The presentation data values of one P-DATA-TF PDU (PS3.8 9.3.5), as views into it.

    Args:
        pdu: the whole PDU.

    Raises:
        ValueError: lengths that do not fit.
    """

    __slots__ = ("presentation_data_value_list",)

    def __init__(self, pdu: bytearray) -> None:
        self.presentation_data_value_list = list(_values(memoryview(pdu)))

    def to_primitive(self) -> Fragments:
        """What the state machine of the library asks of a PDU."""
        return self


def _values(pdu: memoryview) -> Iterator[tuple[int, memoryview]]:
    position = 6
    while position < len(pdu):
        if position + 5 > len(pdu):
            raise ValueError("the PDU ends inside a value's header")
        length, context = struct.unpack_from(">IB", pdu, position)
        stop = position + 4 + length
        if length < 1 or stop > len(pdu):
            raise ValueError("a value does not fit into its PDU")
        yield context, pdu[position + 5 : stop]
        position = stop


class GuardedDimse(DIMSEServiceProvider):
    """Puts messages together as long as they stay within the limits, and serves C-STORE.

    Args:
        assoc: the association.
        guard: the limits, and who stores.
    """

    def __init__(self, assoc: Association, guard: Guard) -> None:
        super().__init__(assoc)
        self._guard = guard
        self._lock = threading.Lock()
        self._held = 0
        self._ended = False
        self._syntaxes: dict[int | None, str] = {}
        self._fresh()

    def _fresh(self) -> None:
        """Be ready for the next message."""
        self._command, self._body = bytearray(), bytearray()
        self._field: int | None = None
        self._request: StoreRequest | None = None
        self._size, self._began = 0, 0.0

    def get_msg(self, block: bool = False) -> Any:
        """The next message of those that go the library's way, waiting a moment where the library would sleep."""
        if block:
            return super().get_msg(block)
        try:
            return self.msg_queue.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            return None, None

    def receive_primitive(self, primitive: P_DATA | Fragments) -> None:
        """Take in the fragments of one P-DATA, or end the association."""
        if self._ended:
            return
        reason = ""
        try:
            for context, value in primitive.presentation_data_value_list:
                reason = reason or self._take(context, memoryview(value))
        except MemoryError:
            reason = "no memory left in the process"
        if reason:
            LOG.warning("association ended: %s", plain(reason))
            self._ended, self.message = True, None
            self._fresh()
            self.settle()
            # Evt19, an invalid PDU: the state machine sends A-ABORT and tells the association.
            self.dul.event_queue.put("Evt19")

    def settle(self, size: int | None = None) -> None:
        """Give the memory of a message back once it is served; of all messages when ``size`` is None."""
        with self._lock:
            given = self._held if size is None else min(size, self._held)
            self._held -= given
        self._guard.budget.give(given)

    def _take(self, context: int, value: memoryview) -> str:
        """Take in one fragment; why it ends the association, or empty."""
        if not value:
            return "an empty fragment"
        if not self._command:
            self._began = time.monotonic()
        elif time.monotonic() - self._began > self._guard.limits.message_seconds:
            return "a message took too long"
        last = bool(value[0] & _LAST)
        return self._take_command(context, value, last) if value[0] & _COMMAND else self._take_data(value, last)

    def _take_command(self, context: int, value: memoryview, last: bool) -> str:
        if self._field is not None:
            return "a command inside a data set"
        self._command += value[1:]
        if len(self._command) > _COMMAND_BYTES:
            return "a command set that is too long"
        if not last:
            return ""
        found = elements(bytes(self._command))
        self._field = None if found is None else _number(found.get(0x0100))
        if found is None or self._field not in _SERVED:
            return "a request that is not served"
        if self._field == _STORE:
            self._request = self._store_request(found, context)
            return "" if self._request is not None else "a C-STORE that lacks something"
        self._pass_on(context, b"\x03" + self._command)
        return ""

    def _take_data(self, value: memoryview, last: bool) -> str:
        size = len(value) - 1
        self._size += size
        if self._field is None:
            return "a data set without a command"
        if self._size > self._guard.limits.message_bytes:
            return "a message that is too long"
        if not self._guard.budget.take(size):
            return "no memory left for another message"
        with self._lock:
            self._held += size
        if self._request is None:
            self._pass_on(0, bytes(value))
            return ""
        self._body += value[1:]
        if last:
            self._serve(self._request)
        return ""

    def _pass_on(self, context: int, value: bytes) -> None:
        """Give a fragment to the library."""
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((context, value))
        super().receive_primitive(primitive)
        if self.message is None:
            self._fresh()

    def _store_request(self, found: dict[int, bytes], context: int) -> StoreRequest | None:
        message, kind = _number(found.get(0x0110)), _number(found.get(0x0800))
        if not self._syntaxes:
            accepted = self.assoc.accepted_contexts
            self._syntaxes = {c.context_id: str(c.transfer_syntax[0]) for c in accepted if c.transfer_syntax}
        syntax = self._syntaxes.get(context)
        sop_class, sop = (_text(found.get(number, b"")) for number in (0x0002, 0x1000))
        if message is None or kind in (None, _NO_DATA_SET) or syntax is None or not sop:
            return None
        return StoreRequest(sop_class, sop, message, context, syntax)

    def _serve(self, request: StoreRequest) -> None:
        """Store what came and answer, in the thread that reads."""
        body, size = self._body, self._size
        self._fresh()
        try:
            with memoryview(body) as data:
                status, comment = self._guard.store(self.assoc, request, data)
        except MemoryError:
            status, comment = _OUT_OF_RESOURCES, "out of memory"
        except Exception:  # whatever it was, the peer must learn that this instance is not held
            LOG.exception("an instance could not be taken in")
            status, comment = _PROCESSING_FAILURE, "unforeseen failure"
        finally:
            del body
            self.settle(size)
        connection = self.dul.socket
        if connection is None:
            return
        command = request.answer(status, comment)
        most = (self.maximum_pdu_size or len(command) + 6) - 6
        for start in range(0, len(command), most):
            part = command[start : start + most]
            control = _COMMAND | _LAST * (start + most >= len(command))
            head = struct.pack(">BBIIBB", 4, 0, len(part) + 6, len(part) + 2, request.context, control)
            connection.send(head + part)


def elements(command: bytes) -> dict[int, bytes] | None:
    """Values of a command set by element number (implicit little endian, PS3.7 6.3.1); None when it is malformed.

    Walking it also makes sure that pydicom will meet elements of group 0000 with lengths that fit, and no sequence.
    """
    position, found = 0, {}
    while position < len(command):
        try:
            group, element, length = struct.unpack_from("<HHI", command, position)
        except struct.error:
            return None
        position += 8
        if group != 0 or position + length > len(command):
            return None
        found[element] = command[position : position + length]
        position += length
    return found


def command_field(command: bytes) -> int | None:
    """Command Field (0000,0100) of a command set; None when that is malformed or without one."""
    found = elements(command)
    return None if found is None else _number(found.get(0x0100))


def _number(value: bytes | None) -> int | None:
    """A value of VR US."""
    return int.from_bytes(value, "little") if value is not None and len(value) == 2 else None


def _text(value: bytes) -> str:
    """A value of VR UI."""
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def _short(number: int, value: int) -> bytes:
    return struct.pack("<HHIH", 0, number, 2, value)


def _element(number: int, value: bytes, padding: bytes = b"\0") -> bytes:
    padded = value + padding * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(padded)) + padded
