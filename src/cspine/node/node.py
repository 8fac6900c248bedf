"""One node: the service that receives, the spool, the work, what is pulled, and the page of figures, in one process."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cspine.errors import CspineError, OutputError, UsageError
from cspine.node import notify
from cspine.node.arrivals import Arrivals, ArrivalState
from cspine.node.audit import AuditEvent, AuditTrail
from cspine.node.deliver import CStore, DeliveryError, Sender
from cspine.node.durable import Durable
from cspine.node.ledger import ENDED, Job, Ledger
from cspine.node.metrics import MetricsServer, NodeCollector
from cspine.node.privacy import Pseudonym, Pseudonyms, plain
from cspine.node.pull import DicomwebPoll, FolderWatch
from cspine.node.service import Service
from cspine.node.settings import CStoreDestination, NodeSettings
from cspine.node.spool import Spool, Stored
from cspine.node.stow import Stow
from cspine.node.syslog import SyslogSink
from cspine.node.work import Work

_LOG = logging.getLogger(__name__)

# How often the loop looks for what is due, and for tries that were lost.
TICK_SECONDS, RECOVER_SECONDS = 1.0, 60.0
# These print addresses with UIDs in them, or values of messages.
_TALKATIVE = ("dicomweb_client", "urllib3", "dbos")


@dataclass(frozen=True, slots=True)
class Places:
    """Where a node keeps what; all in the data folder unless a database is set."""

    settings: NodeSettings

    @property
    def spool(self) -> Path:
        """What was accepted."""
        return self.settings.data / "spool"

    @property
    def audit(self) -> Path:
        """The audit trail."""
        return self.settings.data / "audit"

    @property
    def key(self) -> Path:
        """Key of the pseudonyms."""
        return self.settings.data / "pseudonym.key"

    @property
    def ledger_url(self) -> str:
        """Database of the ledger."""
        return self._url("ledger.sqlite")

    @property
    def queue_url(self) -> str:
        """Database of DBOS."""
        return self._url("queue.sqlite")

    def _url(self, name: str) -> str:
        given = self.settings.database
        return f"sqlite:///{self.settings.data / name}" if given is None else given.get_secret_value()


class Node:
    """Everything that runs; use it as ``with Node(settings) as node: node.run(stop)``.

    Args:
        settings: of the node.
        receives: whether it takes studies in; without, it only judges and sends what others that share its database
            and data folder have taken in.
        change: gives the work as it shall be run; tests replace the judge here.
        poll_seconds: how often queues are looked at.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        receives: bool = True,
        change: Callable[[Work], Work] = lambda work: work,
        poll_seconds: float = TICK_SECONDS,
    ) -> None:
        self.settings, self.receives, self.poll_seconds = settings, receives, poll_seconds
        self._change = change
        self._open = ExitStack()
        self._recover_at = float("-inf")

    def __enter__(self) -> Node:
        """Open everything, mend what a crash left, and begin to receive.

        Raises:
            CspineError: a port is taken, a folder or database cannot be used, another node has the spool.
        """
        try:
            self._start()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop receiving, then everything else. A judgement under way goes on at the next start."""
        self._open.close()

    @property
    def port(self) -> int:
        """Where the service listens."""
        return self.service.port

    def _start(self) -> None:
        settings, places, on = self.settings, Places(self.settings), self._open
        on.enter_context(_quiet(_TALKATIVE))
        _make_data(settings.data)
        self.pseudonyms = Pseudonyms.from_file(places.key)
        self.ledger = Ledger(places.ledger_url)
        on.callback(self.ledger.close)
        self.trail = self._trail(places)
        self.spool = Spool(places.spool, self.pseudonyms, limits=settings.limits)
        on.callback(self.spool.close)
        self.arrivals = Arrivals(self.spool, quiet_seconds=settings.quiet_seconds)
        if self.receives:
            found = self.spool.recover()
            self.arrivals.recover()
            _LOG.info("spool: %d mended, %d removed, %d lost", found.indexed, found.removed, found.lost)
        self.work = self._change(
            Work(settings, self.ledger, ways_out(settings), Pseudonym, tell=self._tell, forget=self._forget)
        )
        worker = _worker_name(settings, receives=self.receives)
        on.callback(os.close, _own(settings.data / f"{worker}.lock"))
        self.runner = Durable(self.work, places.queue_url, worker=worker, poll_seconds=self.poll_seconds)
        on.callback(self.runner.close)
        self.runner.launch()
        if settings.metrics.port is not None:
            on.callback(MetricsServer(settings.metrics, NodeCollector(self.ledger, settings.data)).close)
        if self.receives:
            self.service = on.enter_context(Service(settings, self.spool, self.trail, self.pseudonyms))
            self._pull()

    def _trail(self, places: Places) -> AuditTrail:
        # One process writes a trail, so one that only works has its own.
        folder = places.audit if self.receives else places.audit.with_name(f"audit-{socket.gethostname()}")
        syslog = self.settings.audit.syslog
        sink = None
        if syslog is not None:
            sink = SyslogSink(syslog, node=self.settings.ae_title)
            self._open.callback(sink.close)
        return AuditTrail(folder, rotate_bytes=self.settings.audit.rotate_bytes, sink=sink)

    def _pull(self) -> None:
        """Start a thread for each source that is asked for studies."""
        stop = threading.Event()
        pulls: list[tuple[FolderWatch | DicomwebPoll, float, str]] = []
        watch = self.settings.watch
        if watch is not None:
            pulls.append((FolderWatch(watch, self.ledger, self._take), watch.seconds, "watch"))
        for poll in self.settings.poll:
            scratch = self.settings.data / "scratch"
            pulls.append((DicomwebPoll(poll, self.ledger, self._take, scratch), poll.seconds, poll.name))
        for source, seconds, name in pulls:
            thread = threading.Thread(target=_pulling, args=(source, seconds, name, stop), daemon=True)
            thread.start()
            self._open.callback(thread.join, 10.0)
        self._open.callback(stop.set)

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop."""
        while not stop.is_set():
            try:
                self.tick()
            except (CspineError, OSError) as error:
                # A full disk or a database that is away: it mends, and nothing that was accepted is lost meanwhile.
                _LOG.error("the node cannot go on at the moment: %s", error)
            except Exception as error:  # noqa: BLE001 the drivers of databases raise errors of their own
                _LOG.error("unexpected fault in the loop: %s", error)
            stop.wait(self.poll_seconds)

    def tick(self) -> None:
        """One round: queue what is complete, hand over what is due, and tidy up."""
        if self.receives:
            self._queue()
            self.work.tick(self.runner)
        else:
            self.work.hand_over(self.runner)
        now = time.monotonic()  # a clock that is put back must not put this off
        if self.runner.heartbeat() or now >= self._recover_at:
            self._recover_at = now + RECOVER_SECONDS
            self.work.recover(self.runner)
            if self.receives:
                self.runner.forget(self.work.clock() - self.settings.history_days * 86400)
        if self.receives:
            self._settle()

    def _queue(self) -> None:
        """Enter complete studies into the ledger, which is durable, before the spool hears that they are claimed."""
        for row in self.spool.index.arrivals(state=ArrivalState.READY):
            # Entered before a kill, and not yet claimed: it must not be replaced when more of the study comes.
            if self.ledger.job(row.key) is not None:
                self.arrivals.claim(row.key)
        for arrival in self.arrivals.ready():
            received = arrival.received.timestamp()
            self.work.accept(arrival.key, arrival.folder, arrival.instances, arrival.digest, received)
            self.arrivals.claim(arrival.key)
            _LOG.info("%s is complete: %d instances", arrival.key, arrival.instances)

    def _settle(self) -> None:
        """Tell the spool which studies have ended, and which have come back from the shelf."""
        index = self.spool.index
        for state in (ArrivalState.CLAIMED, ArrivalState.SHELVED):
            for row in index.arrivals(state=state):
                job = self.ledger.job(row.key)
                now = _state_of(job)
                if now is not state:
                    self.arrivals.mark(row.key, now)

    def _take(self, path: Path, sender: str) -> Stored:
        return self.spool.store_file(path, sender=sender)

    def _forget(self, job: Job) -> None:
        if self.receives:
            self.arrivals.forget(job.key)

    def _tell(self, event: AuditEvent) -> None:
        try:
            self.trail.append(event)
        except CspineError as error:
            _LOG.error("the audit trail cannot be written: %s", error)


def ways_out(settings: NodeSettings) -> Mapping[str, Sender]:
    """Every destination, and whoever is told of positive studies, by name."""
    destinations = {
        there.name: CStore(there, settings.ae_title, settings.tls)
        if isinstance(there, CStoreDestination)
        else Stow(there)
        for there in settings.destinations
    }
    return {**destinations, **notify.senders_of(settings)}


def _state_of(job: Job | None) -> ArrivalState:
    if job is None or job.state not in ENDED:
        return ArrivalState.CLAIMED
    return ArrivalState.SHELVED if job.state == "shelved" else ArrivalState.DONE


def _pulling(source: FolderWatch | DicomwebPoll, seconds: float, name: str, stop: threading.Event) -> None:
    """Look again and again; what fails is tried at the next look."""
    while not stop.is_set():
        try:
            taken = source.look()
            if taken:
                _LOG.info("%s: %d instances taken", plain(name), taken)
        except DeliveryError as error:
            _LOG.warning("%s: %s", plain(name), plain(error.reason))
        except Exception as error:  # noqa: BLE001 one source must not end the node
            _LOG.error("%s cannot be read: %s", plain(name), error)
        stop.wait(seconds)


def _worker_name(settings: NodeSettings, *, receives: bool) -> str:
    """What this process is called in the queue: under this name it goes on with what it was at when it died."""
    if settings.database is None:
        return "local"
    return socket.gethostname() if receives else f"{socket.gethostname()}-worker"


def _own(path: Path) -> int:
    """Take the lock of a name; gives its descriptor. Two processes of one name would take each other's tries for dead.

    Raises:
        UsageError: another process has it.
        OutputError: the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise OutputError(f"the lock cannot be made: {error.strerror}", where=path.name, fix="Check data") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise UsageError("another node works here under this name", where=path.name, fix="Stop it first") from error
    return descriptor


def _make_data(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(
            f"the data folder cannot be made: {error.strerror}", where="data", fix="Check the path and its permissions"
        ) from error


@contextmanager
def _quiet(names: tuple[str, ...]) -> Iterator[None]:
    """Keep libraries from writing to the log, as long as it lasts."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
