"""What a peer may use up, enforced below pynetdicom's own reading of the network.

pynetdicom 3.0.4 reads as many bytes as a PDU says it has, keeps every fragment of a message in memory, queues messages
faster than they are served, and does a TLS handshake while no one else can connect. The classes here take its places
of extension (server, request handler, socket, DIMSE provider) and refuse before memory is spent:

- ``GuardedSocket``: a PDU above the cap is answered with A-ABORT before its first byte is read; each PDU has a time by
  which it must be whole; nothing is read while earlier messages wait.
- ``GuardedDimse``: a message above the cap, too slow, of a kind that nobody serves, or for which all associations
  together have no memory left, ends its association.
- ``GuardedServer``: connections are counted and their addresses checked before a byte is read; TLS handshakes run
  beside each other and have a time limit.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from cspine.node.privacy import plain
from cspine.node.settings import Limits, Network

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.association import Association
    from pynetdicom.pdu_primitives import P_DATA
    from pynetdicom.presentation import PresentationContext

LOG = logging.getLogger(__name__)

# PS3.8 9.3.8: A-ABORT by the service provider, reason 6, invalid PDU parameter value.
_ABORT = bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 6))
# A command set has a dozen short elements (PS3.7 9.3); UIDs and titles are bounded at 64 bytes.
_COMMAND_BYTES = 8 * 1024
# Requests that the service answers, and the answer to its own N-EVENT-REPORT (PS3.7 E.1).
_SERVED = {0x0001: "C-STORE-RQ", 0x0030: "C-ECHO-RQ", 0x0130: "N-ACTION-RQ", 0x0FFF: "C-CANCEL-RQ", 0x8100: "N-EVENT"}
# Messages of one association that may wait while one is served; we negotiate no asynchronous operations, so an
# obedient peer has none.
_WAITING = 1
# Connections beyond the associations that are served: they get a polite A-ASSOCIATE-RJ.
_SPARE_CONNECTIONS = 8
# A peer has this long to ask for an association, and to close when it was told to (ARTIM, PS3.8 9.1.5).
ARTIM_SECONDS = 30.0
_POLL_SECONDS = 0.1
# PS3.8 9.2: our last PDU is sent, the connection is to be closed. What a peer still sends is thrown away, up to 1 MiB.
_CLOSING = "Sta13"
_CHUNK_BYTES, _DRAINED_CHUNKS = 64 * 1024, 16


class Budget:
    """Bytes that all associations share."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Bytes that nobody has taken."""
        return self._left

    def take(self, size: int) -> bool:
        """Take ``size`` bytes; false, and nothing taken, when there are not so many."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._left += size


@dataclass
class Guard:
    """What the classes here share.

    Attributes:
        limits: the caps.
        networks: addresses that may connect; empty for all.
        opened: told of every new association and its message provider, before it reads.
        refused: told who was turned away before an association, and why.
        ticked: called ten times a second by the server's thread.
    """

    limits: Limits
    networks: tuple[Network, ...] = ()
    opened: Callable[[Association, GuardedDimse], None] = lambda _assoc, _dimse: None
    refused: Callable[[str, str], None] = lambda _address, _reason: None
    ticked: Callable[[], None] = lambda: None
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = Budget(self.limits.memory_bytes)

    def admits(self, address: str) -> bool:
        """Whether ``address`` may connect at all."""
        return not self.networks or within(address, self.networks)


def within(address: str, networks: Iterable[str]) -> bool:
    """Whether an IP address lies in one of ``networks``; IPv4 in IPv6 notation counts as IPv4."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return any((mapped or ip) in ipaddress.ip_network(network) for network in networks)


class GuardedSocket(AssociationSocket):
    """A socket that reads no more, and waits no longer, than the limits say."""

    def __init__(self, assoc: Association, client_socket: socket.socket, guard: Guard) -> None:
        super().__init__(assoc, client_socket=client_socket)
        self._limits = guard.limits
        client_socket.settimeout(guard.limits.idle_seconds)  # for sending to a peer that does not read

    @property
    def ready(self) -> bool:
        """Whether to read now: not while messages wait, so that TCP makes the peer wait too."""
        if self.assoc.dul.state_machine.current_state == _CLOSING:
            # The library would take what still comes for PDUs, one by one; false makes it close instead.
            self._drain()
            return False
        return self.assoc.dimse.msg_queue.qsize() <= _WAITING and super().ready

    def _drain(self) -> None:
        """Throw away what has come, or closing would destroy our last words on their way (RFC 1122 4.2.2.13)."""
        if self.socket is None:
            return
        with contextlib.suppress(OSError):  # nothing more, or closed
            self.socket.settimeout(0)
            for _ in range(_DRAINED_CHUNKS):
                if not self.socket.recv(_CHUNK_BYTES):
                    break

    def recv(self, nr_bytes: int) -> bytearray:
        """Read ``nr_bytes``, or what comes before the peer closes.

        Raises:
            OSError: more than one PDU may have, or not there in time; the association ends.
        """
        if self.socket is None:
            raise ConnectionError("closed")
        if nr_bytes > self._limits.pdu_bytes:
            LOG.warning("PDU of %d bytes refused, at most %d are taken", nr_bytes, self._limits.pdu_bytes)
            self.send(_ABORT)
            raise ConnectionAbortedError("the PDU is larger than allowed")
        buffer = bytearray(nr_bytes)
        got = self._fill(self.socket, buffer)
        return buffer if got == nr_bytes else buffer[:got]

    def _fill(self, connection: socket.socket, buffer: bytearray) -> int:
        deadline = time.monotonic() + self._limits.idle_seconds
        got = 0
        try:
            with memoryview(buffer) as view:
                while got < len(buffer):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise TimeoutError("the PDU did not come in time")
                    connection.settimeout(left)
                    count = connection.recv_into(view[got:])
                    if count == 0:
                        break
                    got += count
        except TimeoutError:
            LOG.warning("PDU of %d bytes given up after %d seconds", len(buffer), self._limits.idle_seconds)
            self.send(_ABORT)
            raise
        connection.settimeout(self._limits.idle_seconds)
        return got


class GuardedDimse(DIMSEServiceProvider):
    """Puts messages together as long as they stay within the limits."""

    def __init__(self, assoc: Association, guard: Guard) -> None:
        super().__init__(assoc)
        self._guard = guard
        self._command = bytearray()
        self._size = 0
        self._began = 0.0
        self._held = 0
        self._ended = False
        self._lock = threading.Lock()

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take in the fragments of one P-DATA, or end the association."""
        if self._ended:
            return
        reason = self._fault(primitive)
        if reason:
            LOG.warning("association ended: %s", plain(reason))
            self._ended, self.message = True, None
            self.settle()
            # Evt19, an invalid PDU: the state machine sends A-ABORT and tells the association.
            self.dul.event_queue.put("Evt19")
            return
        super().receive_primitive(primitive)
        if self.message is None:
            self._size = 0
            self._command.clear()

    def settle(self, size: int | None = None) -> None:
        """Give the memory of a message back once it is served; of all messages when ``size`` is None."""
        with self._lock:
            given = self._held if size is None else min(size, self._held)
            self._held -= given
        self._guard.budget.give(given)

    def _fault(self, primitive: P_DATA) -> str:
        """Why this P-DATA ends the association; empty when it does not."""
        limits = self._guard.limits
        if self.message is None:
            self._began = time.monotonic()
        elif time.monotonic() - self._began > limits.message_seconds:
            return "a message took too long"
        for _, data in primitive.presentation_data_value_list:
            if not data:
                return "an empty fragment"
            reason = self._fault_of_command(data) if data[0] & 1 else self._fault_of_data(len(data) - 1)
            if reason:
                return reason
        return ""

    def _fault_of_command(self, data: bytes) -> str:
        if self._size:
            return "a command inside a data set"
        self._command += data[1:]
        if len(self._command) > _COMMAND_BYTES:
            return "a command set that is too long"
        if data[0] & 2 and command_field(bytes(self._command)) not in _SERVED:
            return "a request that is not served"
        return ""

    def _fault_of_data(self, size: int) -> str:
        self._size += size
        if not self._command:
            return "a data set without a command"
        if self._size > self._guard.limits.message_bytes:
            return "a message that is too long"
        if not self._guard.budget.take(size):
            return "no memory left for another message"
        with self._lock:
            self._held += size
        return ""


def command_field(command: bytes) -> int | None:
    """Command Field (0000,0100) of a command set (implicit little endian, PS3.7 6.3.1); None when that is malformed.

    Walking it also makes sure that pydicom will meet elements of group 0000 with lengths that fit, and no sequence.
    """
    position, found = 0, None
    while position < len(command):
        try:
            group, element, length = struct.unpack_from("<HHI", command, position)
        except struct.error:
            return None
        position += 8
        if group != 0 or position + length > len(command):
            return None
        if element == 0x0100:
            found = int.from_bytes(command[position : position + 2], "little") if length == 2 else None
        position += length
    return found


class GuardedHandler(RequestHandler):
    """Makes associations that read through the guarded classes."""

    server: GuardedServer

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        guard = self.server.guard
        assoc.dimse = dimse = GuardedDimse(assoc, guard)
        # The socket made above has announced the connection (Evt5); the one that takes its place does it again.
        assoc.dul.socket, assoc.dul.event_queue = None, queue.Queue()
        assoc.set_socket(GuardedSocket(assoc, self.request, guard))
        guard.opened(assoc, dimse)
        return assoc


class GuardedServer(ThreadedAssociationServer):
    """Accepts connections, up to a number and from known networks, and runs handshakes beside each other."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        ae_title: str,
        contexts: list[PresentationContext],
        ssl_context: None = None,
        evt_handlers: Any = None,
        *,
        guard: Guard,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.guard, self._tls = guard, tls
        self._starting = 0
        self._count = threading.Lock()
        super().__init__(ae, address, ae_title, contexts, ssl_context, evt_handlers, GuardedHandler)
        self._gc = [0, int(60 / _POLL_SECONDS)]
        self._loop = threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), name="cspine-receiver", daemon=True
        )

    def start(self) -> None:
        """Serve in a thread of its own until ``stop``."""
        self._loop.start()

    def stop(self) -> None:
        """Take no more connections."""
        # BaseServer's: AssociationServer's own also signs off from a list of the AE in which this server is not.
        BaseServer.shutdown(self)
        self._loop.join()
        self.server_close()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 (the library's own signature)
        """Whether a connection may go on; nothing was read from it yet."""
        address = client_address[0]
        if not self.guard.admits(address):
            self.guard.refused(address, "address not known")
            return False
        with self._count:
            most = self.guard.limits.associations + _SPARE_CONNECTIONS
            full = len(self.active_associations) + self._starting >= most
            self._starting += not full
        if full:
            self.guard.refused(address, "too many connections")
        return not full

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own."""
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no more threads
            with self._count:
                self._starting -= 1
            raise

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Begin an association, after the handshake where TLS is on."""
        try:
            if self._tls is not None:
                request.settimeout(min(ARTIM_SECONDS, self.guard.limits.idle_seconds))
                try:
                    request = self._tls.wrap_socket(request, server_side=True)
                except OSError:
                    self.guard.refused(client_address[0], "TLS handshake failed")
                    self.shutdown_request(request)
                    return
            super().finish_request(request, client_address)
        finally:
            with self._count:
                self._starting -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log that a connection failed; the library would print it with all it holds."""
        LOG.exception("a connection could not be served")

    def service_actions(self) -> None:
        """Called ten times a second."""
        super().service_actions()
        self.guard.ticked()
