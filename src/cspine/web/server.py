"""The application as a service: waitress in front, the queue behind, and what has to be done every hour."""

from __future__ import annotations

import copy
import logging
import re
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, cast

from flask import Flask
from flask.sessions import SecureCookieSessionInterface
from itsdangerous import BadSignature
from sqlalchemy.exc import SQLAlchemyError

from cspine.errors import CspineError, UsageError
from cspine.node.privacy import guard_handlers
from cspine.web.app import Context, create_app
from cspine.web.audit_log import Did
from cspine.web.links import first_administrator
from cspine.web.settings import MIB, WebSettings

_log = logging.getLogger(__name__)
# Requests that are answered at once. Python does one thing at a time; more only help while databases are waited for.
THREADS = 8
CONNECTIONS = 500
SWEEP_SECONDS = 3600.0
# A browser that is silent for so long in the middle of a request is hung up on.
SILENCE_SECONDS = 60


class Server:
    """A running application; use it in a ``with`` block.

    Args:
        settings: of the application; with port 0 a free one is taken.

    Raises:
        UsageError: the port is taken, or the address is none of this machine's.
        CspineError: the data folder or the database cannot be used.
    """

    def __init__(self, settings: WebSettings) -> None:
        self._socket = _listen(settings)
        self.settings = settings.model_copy(update={"port": self._socket.getsockname()[1]})
        try:
            self.app: Flask = create_app(self.settings)
        except BaseException:
            self._socket.close()
            raise
        self.context: Context = self.app.extensions["cspine"]
        guard_handlers(self.context.pseudonyms)
        self._server: Any = None
        self._end = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="cspine-sweep", daemon=True)

    def __enter__(self) -> Server:
        from waitress import create_server

        self.context.jobs.start()
        self.context.audit.write(Did.STARTED)
        self._server = create_server(  # see ``_channel`` for the one request that may be larger
            self.app,
            sockets=[self._socket],
            threads=THREADS,
            connection_limit=CONNECTIONS,
            channel_timeout=SILENCE_SECONDS,
            max_request_body_size=self.app.config["MAX_CONTENT_LENGTH"] + 1,
            max_request_header_size=32 * 1024,
            url_scheme="https" if self.settings.secure else "http",
            # What proxies say is believed by the application alone, as far as the settings say so.
            clear_untrusted_proxy_headers=self.settings.proxies == 0,
            ident=None,
        )
        self._server.channel_class = _channel(self.app, self.settings)
        self._sweeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self.context.jobs.stop()
        self._server.close()
        self.context.audit.write(Did.STOPPED)

    def first_link(self) -> str | None:
        """A fresh one-time link for the first administrator; None when there is one."""
        with self.context.sessions() as session:
            return first_administrator(session, self.settings.address)

    def run(self) -> None:
        """Answer until SIGINT or SIGTERM."""
        stop = _Stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        try:
            self._server.run()
        except KeyboardInterrupt:
            return

    def serve_in_thread(self) -> Callable[[], None]:
        """Answer in a thread, for tests; gives what ends that."""
        thread = threading.Thread(target=self._server.run, name="cspine-web", daemon=True)
        thread.start()

        def end() -> None:
            self._server.close()
            thread.join(5)

        return end

    def _sweep(self) -> None:
        from cspine.web.deletion import sweep

        while not self._end.wait(SWEEP_SECONDS / 60):  # the first time soon, then every hour
            try:
                with self.app.app_context():
                    gone = sweep()
                if gone:
                    _log.info("%d studies were deleted because they are old enough", gone)
            except (CspineError, OSError, SQLAlchemyError) as error:  # a database that is away comes back
                _log.error("the hourly work failed: %s", error)
            if self._end.wait(SWEEP_SECONDS):
                return


def _channel(app: Flask, settings: WebSettings) -> type[Any]:
    """How waitress reads requests: large ones from logged-in people alone.

    A browser without scripts sends a whole upload in one form. Waitress writes a body to the disk before the
    application is asked; so that nobody else can fill it, the cookie's signature is looked at before.
    """
    from waitress.channel import HTTPChannel
    from waitress.parser import HTTPRequestParser

    form, cookie = "/uploads", re.compile(rf"(?:^|;\s*){app.config['SESSION_COOKIE_NAME']}=([^;]+)")
    large = settings.limits.upload_bytes + MIB
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)

    def is_logged_in(text: str) -> bool:
        found = cookie.search(text)
        if found is None or serializer is None:
            return False
        try:
            return "sid" in serializer.loads(found.group(1), max_age=int(settings.session_hours * 3600))
        except BadSignature:
            return False

    class Parser(HTTPRequestParser):  # type: ignore[misc]
        def parse_header(self, header_plus: bytes) -> None:
            super().parse_header(header_plus)
            if self.command == "POST" and self.path == form and is_logged_in(self.headers.get("COOKIE", "")):
                adjusted: Any = copy.copy(cast(Any, self).adj)
                adjusted.max_request_body_size = large
                self.adj = adjusted

    return type("Channel", (HTTPChannel,), {"parser_class": Parser})


class _Stop:
    def __call__(self, *_: object) -> None:
        raise KeyboardInterrupt


def _listen(settings: WebSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        raise UsageError(
            f"it cannot listen on port {settings.port}: {error.strerror or type(error).__name__}",
            where="port",
            fix="Choose a free port and an address of this machine",
        ) from error
