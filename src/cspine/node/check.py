"""Whether a node with these settings can work here: each thing that it needs is tried, before it runs."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cspine.errors import CspineError, OutputError, UsageError
from cspine.node.deliver import CONNECT_SECONDS, DeliveryError
from cspine.node.ledger import Ledger
from cspine.node.settings import CStoreDestination, NodeSettings, Poll, StowDestination
from cspine.node.stow import headers, secret, session, web_client
from cspine.node.tls import client_context, server_context
from cspine.node.work import formats_of


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question: what was tried, whether it works, and what was found."""

    name: str
    good: bool
    detail: str = ""


def everything(settings: NodeSettings) -> Iterator[Check]:
    """All checks, in the order in which the node meets what they look at. A node that runs is not disturbed."""
    yield _try("data folder", lambda: _folder(settings.data))
    yield _try("database", lambda: _database(settings))
    yield _try("model bundle", lambda: _bundle(settings.worker.bundle))
    yield _try("formats", lambda: _formats(settings))
    if settings.tls is not None:
        tls = settings.tls
        yield _try("tls", lambda: str(server_context(tls).minimum_version.name))
    for destination in settings.destinations:
        yield _try(f"destination {destination.name} ({destination.kind})", partial(_reach, settings, destination))
    notify = settings.notify
    if notify.secret_file is not None:
        path = notify.secret_file
        yield _try("notify: key", lambda: f"{len(secret(path))} characters")
    if notify.hl7_host is not None and notify.hl7_port is not None:
        where = (notify.hl7_host, notify.hl7_port)
        yield _try("notify: hl7", lambda: _connect(*where))
    if settings.watch is not None:
        watched = settings.watch.folder
        yield _try("watched folder", lambda: _listed(watched))
    for poll in settings.poll:
        yield _try(f"poll {poll.name}", partial(_ask, poll))


def _try(name: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(name, True, attempt())
    except DeliveryError as error:
        return Check(name, False, error.reason)
    except CspineError as error:
        return Check(name, False, str(error))
    except OSError as error:
        return Check(name, False, error.strerror or type(error).__name__)


def _folder(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"it cannot be written: {error.strerror}") from error
    return f"{shutil.disk_usage(folder).free / 2**30:.0f} GiB free"


def _database(settings: NodeSettings) -> str:
    from cspine.node.node import Places

    ledger = Ledger(Places(settings).ledger_url)
    try:
        return f"{len(ledger.jobs('waiting', 'busy', 'sending'))} studies in the queue"
    finally:
        ledger.close()


def _bundle(folder: Path | None) -> str:
    from cspine.inference.bundle import Bundle

    manifest = (Bundle.default() if folder is None else Bundle.load(folder)).manifest
    return f"{manifest.name} {manifest.version}"


def _formats(settings: NodeSettings) -> str:
    from cspine.reports import FORMATS

    wanted = formats_of(settings)
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown:
        raise UsageError(
            f"unknown format '{unknown[0]}'", where="destinations", fix=f"Choose from: {', '.join(FORMATS)}"
        )
    for destination in settings.destinations:
        other = [name for name in destination.formats if not FORMATS[name].file.endswith(".dcm")]
        if other:
            raise UsageError(
                f"{destination.name} takes DICOM objects, and {other[0]} is none",
                where="destinations",
                fix=f"Choose from: {', '.join(name for name, form in FORMATS.items() if form.file.endswith('.dcm'))}",
            )
    return ", ".join(wanted)


def _reach(settings: NodeSettings, destination: CStoreDestination | StowDestination) -> str:
    return _ask(destination) if isinstance(destination, StowDestination) else _echo(settings, destination)


def _echo(settings: NodeSettings, there: CStoreDestination) -> str:
    """C-ECHO (PS3.4 annex A)."""
    from pynetdicom import AE
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    entity = AE(ae_title=settings.ae_title)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = CONNECT_SECONDS
    entity.add_requested_context(Verification)
    tls = (client_context(settings.tls), there.host) if there.tls and settings.tls is not None else None
    association = entity.associate(there.host, there.port, ae_title=there.ae_title, tls_args=tls)
    if not association.is_established:
        raise DeliveryError("association-rejected" if association.is_rejected else "unreachable")
    try:
        status = association.send_c_echo()
        if int(status.get("Status", 0xFFFF)):
            raise DeliveryError("echo-refused")
    finally:
        association.release()
    return "answers to C-ECHO"


def _ask(there: StowDestination | Poll) -> str:
    """One study at most is asked for (QIDO-RS); its content is not looked at."""
    import requests

    trusted = session(there.username, there.password_file, there.authorities)
    client = web_client(there.url, trusted, headers(there.token_file))
    try:
        client.search_for_studies(limit=1)
    except requests.HTTPError as error:
        raise DeliveryError(f"http-{0 if error.response is None else error.response.status_code}") from error
    except (requests.RequestException, ValueError) as error:
        raise DeliveryError("unreachable") from error
    return "answers to QIDO-RS"


def _connect(host: str, port: int) -> str:
    with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
        return "listens"


def _listed(folder: Path) -> str:
    return f"{sum(1 for _ in folder.iterdir())} entries"
