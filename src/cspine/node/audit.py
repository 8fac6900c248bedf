"""The audit trail: who sent, what was done, when; one JSON line each, and each line seals the one before it.

Every line carries the SHA-256 of the line before (zeros for the first), over rotated files too. Changing, adding or
removing a line anywhere but at the end breaks the chain at that place, which ``verify`` finds. That lines were cut off
at the end shows only against a copy: export the trail, or let a syslog server keep one (``syslog``).

Lines hold pseudonyms of studies, never patients; peers stand with their AE title and address, as an audit asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from cspine.errors import OutputError, UsageError

START = "0" * 64
_CURRENT = "audit.jsonl"
# A line longer than this was not written here.
_LONGEST = 64 * 1024


class Action(StrEnum):
    """What was done."""

    STARTED = "started"
    STOPPED = "stopped"
    RESUMED = "resumed"
    REFUSED = "refused"
    RECEIVED = "received"
    CONFLICT = "conflict"
    LOST = "lost"
    COMMITTED = "committed"
    JUDGED = "judged"
    SENT = "sent"
    SHELVED = "shelved"
    NOTIFIED = "notified"
    DELETED = "deleted"
    EXPORTED = "exported"


class Outcome(StrEnum):
    """How it went."""

    SUCCESS = "success"
    REFUSED = "refused"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One line of the trail.

    Attributes:
        action: what was done.
        outcome: how it went.
        actor: who asked for it: a peer's AE title, ``node``, or a command.
        address: where the actor calls from; empty when it is the node itself.
        study: pseudonym of the study; empty when none is meant.
        study_uid: the same as a UID for the DICOM form, also a pseudonym.
        detail: a short reason of our own words; never a patient.
        count: of instances, where that makes sense.
    """

    action: Action
    outcome: Outcome = Outcome.SUCCESS
    actor: str = "node"
    address: str = ""
    study: str = ""
    study_uid: str = ""
    detail: str = ""
    count: int | None = None

    def fields(self) -> dict[str, Any]:
        """The fields that say something, by name."""
        table = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in table.items() if value not in ("", None)}


@dataclass(frozen=True, slots=True)
class Break:
    """Where the chain breaks first: ``line`` (from 1) of ``file``, and why."""

    file: str
    line: int
    reason: str


class Sink(Protocol):
    """Takes a copy of every event, such as a syslog server; it must neither block for long nor raise."""

    def send(self, event: AuditEvent, moment: datetime) -> None:
        """Pass one event on."""


class AuditTrail:
    """The trail in one folder. Safe to share between threads; one process writes it.

    Args:
        folder: made when missing, with access for its owner alone.
        rotate_bytes: a file that passes this size is closed and named ``audit-<number of its last line>.jsonl``.
        sink: gets a copy of every event after it is on disk.
        now: the time, for tests.

    Raises:
        OutputError: the folder or file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rotate_bytes: int = 16 * 2**20,
        sink: Sink | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.folder = folder
        self._rotate_bytes, self._sink, self._now = rotate_bytes, sink, now
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            cut = self._mend()
            self._number, self._previous = self._last()
        except OSError as error:
            raise _unwritable(error, folder) from error
        if cut:
            self.append(AuditEvent(Action.RESUMED, detail=f"{cut} bytes of a line that was never finished taken away"))

    @property
    def current(self) -> Path:
        """The file that is written."""
        return self.folder / _CURRENT

    def append(self, event: AuditEvent) -> str:
        """Write one line and return its SHA-256; when this returns, the line is on the disk.

        Raises:
            OutputError: it could not be written.
        """
        moment = self._now()
        with self._lock:
            entry = {"n": self._number + 1, "time": moment.isoformat(timespec="milliseconds"), **event.fields()}
            line = json.dumps({**entry, "previous": self._previous}, ensure_ascii=True, separators=(",", ":")).encode()
            try:
                self._write(line + b"\n")
            except OSError as error:
                raise _unwritable(error, self.folder) from error
            self._number += 1
            self._previous = hashlib.sha256(line).hexdigest()
            digest = self._previous
            self._rotate()
        if self._sink is not None:
            self._sink.send(event, moment)
        return digest

    def verify(self) -> Break | None:
        """The first place where the chain does not hold; None when it holds."""
        return verify(self.folder)

    def export(self, target: Path) -> int:
        """Write the whole trail as one file, to be kept elsewhere; returns the number of lines.

        Raises:
            UsageError: ``target`` is there already.
            OutputError: it cannot be written.
        """
        self.append(AuditEvent(Action.EXPORTED))
        try:
            with self._lock, target.open("xb") as out:
                for path in files_of(self.folder):
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, out)
                out.flush()
                os.fsync(out.fileno())
                return self._number
        except FileExistsError as error:
            raise UsageError("the export is there already", where=target.name, fix="Choose another name") from error
        except OSError as error:
            raise _unwritable(error, target) from error

    def _write(self, data: bytes) -> None:
        """Append and sync; what a failed write left is taken away, so that the next line begins a line."""
        descriptor = os.open(self.current, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, data) < len(data):
                    raise OSError(28, "no space left on the disk")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _rotate(self) -> None:
        """Close the current file once it is large enough; a failure leaves it growing, which loses nothing."""
        try:
            if self.current.stat().st_size >= self._rotate_bytes:
                self.current.rename(self.folder / f"audit-{self._number:012d}.jsonl")
        except OSError:
            return

    def _mend(self) -> int:
        """Take away the part of a line that a crash left; it was never answered for. Returns its bytes."""
        if not self.current.exists():
            return 0
        data = self.current.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.current, whole)
        return len(data) - whole

    def _last(self) -> tuple[int, str]:
        """Number and digest of the last line of the trail; (0, zeros) when there is none."""
        last = b""
        for path in reversed(files_of(self.folder)):
            lines = path.read_bytes().splitlines()
            if lines:
                last = lines[-1]
                break
        if not last:
            return 0, START
        try:
            number = int(json.loads(last)["n"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                "the audit trail ends with a line that is none",
                where=self.folder.name,
                fix="Move the folder away and keep it; the node begins a new trail",
            ) from error
        return number, hashlib.sha256(last).hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The files of a trail, oldest first."""
    current = folder / _CURRENT
    return sorted(folder.glob("audit-*.jsonl")) + ([current] if current.exists() else [])


def verify(folder: Path) -> Break | None:
    """Check the whole trail of a folder; returns the first broken place, or None.

    Raises:
        UsageError: there is no trail.
    """
    files = files_of(folder)
    if not files:
        raise UsageError("there is no audit trail", where=folder.name, fix="Name the folder audit of the node's data")
    previous, number = START, 0
    for path in files:
        for at, line in enumerate(_lines(path), start=1):
            reason = _fault(line, previous, number + 1)
            if reason:
                return Break(path.name, at, reason)
            previous, number = hashlib.sha256(line).hexdigest(), number + 1
    return None


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while line := stream.readline(_LONGEST):
            if not line.endswith(b"\n") and len(line) < _LONGEST:
                return  # is being written this moment, or a crash cut it: either way nobody answered for it
            yield line.removesuffix(b"\n")


def _fault(line: bytes, previous: str, number: int) -> str:
    """What is wrong with one line; empty when nothing is."""
    try:
        entry = json.loads(line)
        found, sealed = entry["n"], entry["previous"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "this is no line of a trail"
    if found != number:
        return f"expected line number {number}, found {found}"
    return "" if sealed == previous else "the line before was changed, or this one does not belong here"


def _unwritable(error: OSError, path: Path) -> OutputError:
    return OutputError(
        f"the audit trail cannot be written: {error.strerror or type(error).__name__}",
        where=path.name,
        fix="Free space or correct the permissions; nothing is accepted without a trail",
    )
