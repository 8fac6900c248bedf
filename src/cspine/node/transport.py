"""How the node reads the network, below pynetdicom's own reading of it.

pynetdicom 3.0.4 reads as many bytes as a PDU says it has, queues messages faster than they are served, looks at every
connection a thousand times a second, and does a TLS handshake while no one else can connect. The classes here take its
places of extension (server, request handler, socket, upper layer provider) and refuse before memory is spent:

- ``GuardedSocket``: a PDU above the cap is answered with A-ABORT before its first byte is read; each PDU has a time by
  which it must be whole; nothing is read while earlier messages wait.
- ``GuardedUpperLayer``: P-DATA PDUs become views, not copies (``messages`` puts them together).
- ``GuardedServer``: connections are counted and their addresses checked before a byte is read; TLS handshakes run
  beside each other and have a time limit.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from cspine.node.limits import ARTIM_SECONDS, Guard
from cspine.node.messages import Fragments, GuardedDimse

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

LOG = logging.getLogger(__name__)

# PS3.8 9.3.8: A-ABORT by the service provider, reason 6, invalid PDU parameter value.
_ABORT = bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 6))
# Messages of one association that may wait while one is served; we negotiate no asynchronous operations, so an
# obedient peer has none.
_WAITING = 1
# Connections beyond the associations that are served: they get a polite A-ASSOCIATE-RJ.
_SPARE_CONNECTIONS = 8
_POLL_SECONDS = 0.1
# What the node itself has to send (all but answers to C-STORE) waits at most so long for a peer that is silent.
_LISTEN_SECONDS = 0.005
# PS3.8 9.2: our last PDU is sent, the connection is to be closed. What a peer still sends is thrown away, up to 1 MiB.
_CLOSING = "Sta13"
_CHUNK_BYTES, _DRAINED_CHUNKS = 64 * 1024, 16
_P_DATA = 4
# A peer that gathers small segments (Nagle's algorithm, DCMTK's default) waits for our acknowledgment before it sends
# the end of a message, and TCP would delay that by 40 ms. Linux forgets the option, so it is set after each read.
_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)


class GuardedSocket(AssociationSocket):
    """A socket that reads no more, and waits no longer, than the limits say."""

    def __init__(self, assoc: Association, client_socket: socket.socket, guard: Guard) -> None:
        super().__init__(assoc, client_socket=client_socket)
        self._limits = guard.limits
        client_socket.settimeout(guard.limits.idle_seconds)  # for sending to a peer that does not read
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def ready(self) -> bool:
        """Whether to read now: not while messages wait, so that TCP makes the peer wait too."""
        if self.assoc.dul.state_machine.current_state == _CLOSING:
            # The library would take what still comes for PDUs, one by one; false makes it close instead.
            self._drain()
            return False
        if self.assoc.dimse.msg_queue.qsize() > _WAITING:
            return False
        connection, upper = self.socket, self.assoc.dul
        if connection is None:
            return False
        # Waiting here, what the peer sends is read at once, and an idle connection costs little.
        waits = upper.event_queue.empty() and upper.to_provider_queue.empty()
        try:
            if isinstance(connection, ssl.SSLSocket) and connection.pending():
                return True
            return bool(select.select([connection], [], [], _LISTEN_SECONDS if waits else 0)[0])
        except (OSError, ValueError):  # closed meanwhile
            upper.event_queue.put("Evt17")
            return False

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
                    if _QUICK_ACK is not None:
                        connection.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
        except TimeoutError:
            LOG.warning("PDU of %d bytes given up after %d seconds", len(buffer), self._limits.idle_seconds)
            self.send(_ABORT)
            raise
        connection.settimeout(self._limits.idle_seconds)
        return got


class GuardedUpperLayer(DULServiceProvider):
    """Decodes P-DATA without copying it."""

    def _decode_pdu(self, bytestream: bytearray) -> tuple[Any, str]:
        """One PDU and the event that it is to the state machine (PS3.8 table 9-10).

        Raises:
            ValueError: lengths in it do not fit; the association is aborted.
        """
        if bytestream[0] != _P_DATA:
            return super()._decode_pdu(bytestream)
        return Fragments(bytestream), "Evt10"


class GuardedHandler(RequestHandler):
    """Makes associations that read through the guarded classes."""

    server: GuardedServer

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        guard = self.server.guard
        assoc.dimse = dimse = GuardedDimse(assoc, guard)
        # In the place of the one made above, whose socket has announced the connection (Evt5); ours does it again.
        assoc.dul = GuardedUpperLayer(assoc)
        assoc.acse_timeout, assoc.network_timeout = self.ae.acse_timeout, self.ae.network_timeout  # its timers
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
