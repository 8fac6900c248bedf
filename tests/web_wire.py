"""The wire between a browser and the server, which a test can cut in the middle of whatever travels on it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

BLOCK = 64 * 1024
# Closing with this throws away what is under way and tells the other end so, as a network that goes does.
_HARD = struct.pack("ii", 1, 0)


class Wire:
    """Passes connections on to a port of this machine.

    Attributes:
        sent: bytes that came from browsers so far.
        cuts: how often it was cut.
    """

    def __init__(self, target: int) -> None:
        self.target, self.sent, self.cuts = target, 0, 0
        self._allowed: int | None = None
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where browsers find the server."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut_after(self, count: int) -> None:
        """Let so many more bytes through; then everything is cut, and nothing passes until ``mend``."""
        with self._lock:
            self._allowed = count

    def mend(self) -> None:
        """Let everything pass again."""
        with self._lock:
            self._allowed = None

    @property
    def is_cut(self) -> bool:
        """Whether nothing passes."""
        with self._lock:
            return self._allowed == 0

    def close(self) -> None:
        """End it."""
        self._listener.close()
        self._cut()

    def _accept(self) -> None:
        while True:
            try:
                browser, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                _hang_up(browser)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # the server is away
                _hang_up(browser)
                continue
            self._ends |= {browser, server}
            for source, sink, up in ((browser, server, True), (server, browser, False)):
                threading.Thread(target=self._pass, args=(source, sink, up), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(BLOCK):
                if up:
                    data, whole = self._through(data)
                    sink.sendall(data)
                    if not whole:
                        self._cut()
                        return
                else:
                    sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _through(self, data: bytes) -> tuple[bytes, bool]:
        with self._lock:
            if self._allowed is not None:
                data, whole = data[: self._allowed], len(data) < self._allowed
                self._allowed -= len(data)
            else:
                whole = True
            self.sent += len(data)
        return data, whole

    def _cut(self) -> None:
        self.cuts += 1
        for end in list(self._ends):
            _hang_up(end)
        self._ends.clear()


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HARD)
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextlib.contextmanager
def wired(target: int) -> Iterator[Wire]:
    """A wire to a port of this machine."""
    wire = Wire(target)
    try:
        yield wire
    finally:
        wire.close()
