"""The spool: what was accepted, on the disk before the sender hears of it.

    <folder>/index.sqlite                  which instances lie where (``index``)
    <folder>/incoming/                     instances that are being written
    <folder>/studies/<study>/<sop>.dcm     what was accepted; the names are keyed digests, no identifiers
    <folder>/ready/<key>/                  one study as it went on: hard links, which later instances do not change

An instance is written under a temporary name, synced, renamed, its folder synced, and its row committed; only then is
the sender told. A crash in between leaves at most a whole file without a row, or a temporary one: ``recover``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from cspine.errors import OutputError, UsageError
from cspine.node import instances
from cspine.node.index import Index, Row
from cspine.node.instances import Instance, UnreadableError
from cspine.node.privacy import Pseudonym, Pseudonyms
from cspine.node.settings import Limits

LOG = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Verdict(StrEnum):
    """What became of an instance that came in."""

    ACCEPTED = "accepted"
    AGAIN = "again"  # the very same content is held; nothing changed
    SAME_PIXELS = "same-pixels"  # held with other attributes; the first ones stay
    CONFLICT = "conflict"  # held with other pixels, or in another study; the first stays, this is not kept
    FULL = "full"  # no room: disk, quota or instances of one study
    UNREADABLE = "unreadable"
    MISMATCH = "mismatch"  # the data set is not the instance that was announced

    @property
    def held(self) -> bool:
        """Whether the instance, as far as its pixels go, is on the disk now."""
        return self in (Verdict.ACCEPTED, Verdict.AGAIN, Verdict.SAME_PIXELS)


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer to one instance.

    Attributes:
        verdict: what became of it.
        study: pseudonym of its study; empty when that could not be read.
        study_uid: Study Instance UID; never to be logged.
        reason: one sentence of our own words, when it was not simply accepted.
        held: digest of the content that is held under its UID when this one was not taken.
        came: digest of the content that came.
    """

    verdict: Verdict
    study: str = ""
    study_uid: str = ""
    reason: str = ""
    held: str = ""
    came: str = ""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What ``recover`` found: files given their row again, half files removed, rows whose file is gone."""

    indexed: int = 0
    removed: int = 0
    lost: int = 0


class Spool:
    """Takes instances in. Safe to share between threads. One process at a time may receive (``recover`` takes a lock).

    Args:
        folder: made when missing, with access for its owner alone.
        pseudonyms: names the files.
        limits: ``disk_bytes``, ``free_bytes``, ``study_instances`` and ``message_bytes`` count here.
        clock: seconds that only go forward, for the quiet time.
        now: the time of day, for the record.
        free: free bytes of a folder's disk.

    Raises:
        OutputError: folder or index cannot be made or opened.
    """

    def __init__(
        self,
        folder: Path,
        pseudonyms: Pseudonyms,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self.folder, self.pseudonyms, self.limits = folder, pseudonyms, limits or Limits()
        self.clock, self.now = clock, now
        self._free = free
        try:
            for name in ("", "incoming", "studies", "ready"):
                (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OutputError(
                f"the spool cannot be made: {error.strerror}", where=folder.name, fix="Check its permissions"
            ) from error
        self.index = Index(folder / "index.sqlite")
        self.lock = threading.Condition()
        # By Study Instance UID: when its last instance came, on ``clock``; what is being written, by SOP Instance UID.
        self.last: dict[str, float] = {}
        self.finished: set[str] = set()
        self._writing: dict[str, str] = {}
        # Folders of studies whose names are on the disk.
        self._durable: set[Path] = set()
        self._used = self.index.size()
        self._owner: int | None = None

    def close(self) -> None:
        """Let go of index and lock."""
        self.index.close()
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None

    @property
    def used_bytes(self) -> int:
        """Bytes of everything held or being written."""
        return self._used

    def store(self, data: bytes | memoryview, *, sop_class: str, sop: str, syntax: str, sender: str) -> Stored:
        """Take in one instance as it came over the network.

        Args:
            data: the data set as received, in ``syntax``, without a Part 10 header.
            sop_class: SOP Class UID that was announced.
            sop: SOP Instance UID that was announced.
            syntax: transfer syntax UID that was negotiated.
            sender: pseudonym or name of who sent it.

        Returns:
            What became of it. When ``verdict.held`` is true, it is on the disk.

        Raises:
            OutputError: the disk fails in another way than being full.
        """
        if not (instances.is_uid(sop_class) and instances.is_uid(sop)):
            return Stored(Verdict.UNREADABLE, reason="a UID is malformed")
        view = memoryview(data)
        head = instances.file_header(sop_class, sop, syntax)
        try:
            found = instances.describe(head, view)
        except UnreadableError as error:
            return Stored(Verdict.UNREADABLE, reason=str(error))
        study = self.name_of(found.study)
        if (found.sop, found.sop_class) != (sop, sop_class):
            return Stored(Verdict.MISMATCH, study, found.study, "the data set is another instance than announced")
        size = len(head) + len(view)
        with self._room(found, size) as answer:
            if answer is not None:
                return answer
            return self._write(found, head, view, sender)

    def store_file(self, path: Path, *, sender: str) -> Stored:
        """Take in one Part 10 file, such as one that a watched folder or a DICOMweb server brought.

        Raises:
            OutputError: the spool's disk fails.
            UsageError: the file cannot be read.
        """
        try:
            if path.stat().st_size > self.limits.message_bytes:
                return Stored(Verdict.FULL, reason="the file is larger than message_bytes")
            data = memoryview(path.read_bytes())
        except OSError as error:
            raise UsageError(f"the file cannot be read: {error.strerror}", where="incoming file") from error
        try:
            start = instances.dataset_start(data)
            found = instances.describe(bytes(data[:start]), data[start:])
        except UnreadableError as error:
            return Stored(Verdict.UNREADABLE, reason=str(error))
        if found.syntax not in instances.SYNTAXES:
            return Stored(Verdict.UNREADABLE, self.name_of(found.study), found.study, "transfer syntax not taken")
        return self.store(data[start:], sop_class=found.sop_class, sop=found.sop, syntax=found.syntax, sender=sender)

    def holds(self, sop_class: str, sop: str) -> bool | None:
        """Whether an instance is on the disk; None when it is, but as another SOP class."""
        row = self.index.find(sop)
        if row is None or not self.path(row).is_file():
            return False
        return True if row.sop_class == sop_class else None

    def finish(self, study_uid: str) -> None:
        """The sender says that a study is complete: it need not be quiet for a time."""
        with self.lock:
            self.finished.add(study_uid)

    def name_of(self, study_uid: str) -> Pseudonym:
        """The pseudonym of a study."""
        return self.pseudonyms.of("study", study_uid)

    def path(self, row: Row) -> Path:
        """Where an instance lies."""
        return self.folder / "studies" / row.folder / row.file

    def busy(self, study_uid: str) -> bool:
        """Whether an instance of a study is being written; call it under ``lock``."""
        return study_uid in self._writing.values()

    @contextmanager
    def _room(self, found: Instance, size: int) -> Iterator[Stored | None]:
        """Make sure that an instance may be written, and that nobody else writes it; yields the answer if it may not.

        While the block runs the instance is under way; its bytes count as used unless the block raises.
        """
        with self.lock:
            while found.sop in self._writing:
                self.lock.wait()
            answer = self._known(found) or self._too_much(found, size)
            if answer is None:
                self._writing[found.sop] = found.study
                self._used += size
        if answer is not None:
            yield answer
            return
        taken = False
        try:
            yield None
            taken = self.index.find(found.sop) is not None
        finally:
            with self.lock:
                del self._writing[found.sop]
                if taken:
                    self.last[found.study] = self.clock()
                else:
                    self._used -= size
                self.lock.notify_all()

    def _known(self, found: Instance) -> Stored | None:
        """The answer when something is held under this UID already."""
        row = self.index.find(found.sop)
        if row is None:
            return None
        study = self.name_of(found.study)
        if row.study != found.study or row.pixels != found.pixels:
            reason = "another content is held under this SOP Instance UID"
            verdict = Verdict.CONFLICT
        elif row.head != found.head:
            reason = "held with other attributes, which stay"
            verdict = Verdict.SAME_PIXELS
        else:
            reason, verdict = "", Verdict.AGAIN
        return Stored(
            verdict, study, found.study, reason, row.head[:16] + row.pixels[:16], found.head[:16] + found.pixels[:16]
        )

    def _too_much(self, found: Instance, size: int) -> Stored | None:
        """The answer when there is no room."""
        limits = self.limits
        writing = sum(study == found.study for study in self._writing.values())
        if self.index.count(found.study) + writing >= limits.study_instances:
            reason = "the study has too many instances"
        elif self._used + size > limits.disk_bytes:
            reason = "the spool is full"
        elif self._free(self.folder) - size < limits.free_bytes:
            reason = "the disk is full"
        else:
            return None
        return Stored(Verdict.FULL, self.name_of(found.study), found.study, reason)

    def _write(self, found: Instance, head: bytes, data: memoryview, sender: str) -> Stored:
        study = self.name_of(found.study)
        folder, file = self._names(found)
        target = self.folder / "studies" / folder / file
        row = _row(found, len(head) + len(data), sender, self.now().timestamp(), target)
        try:
            self._put(target, head, data)
            self.index.add(row)
        except (OSError, sqlite3.Error) as error:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
            if getattr(error, "errno", None) in _FULL or "full" in str(error):
                return Stored(Verdict.FULL, study, found.study, "the disk is full")
            raise OutputError(
                f"an instance cannot be written: {type(error).__name__}", where="spool", fix="Check the disk"
            ) from error
        return Stored(Verdict.ACCEPTED, study, found.study)

    def _names(self, found: Instance) -> tuple[str, str]:
        digest = self.pseudonyms.digest
        return digest("study", found.study)[:40], f"{digest('sop', found.sop)[:40]}.dcm"

    def _folder(self, folder: Path) -> None:
        """Make a study's folder durable; one that another thread has only just made may not be so yet."""
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder not in self._durable:
            sync_folder(folder.parent)
            self._durable.add(folder)

    def _put(self, target: Path, head: bytes, data: memoryview) -> None:
        """Write one file so that it is whole and durable, or not there."""
        staged = self.folder / "incoming" / f"{secrets.token_hex(12)}.part"
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as stream:
                for part in (memoryview(head), data):
                    while part:
                        part = part[stream.write(part) :]
                os.fsync(stream.fileno())
            self._folder(target.parent)
            staged.rename(target)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)

    def forget(self, study_uid: str) -> bool:
        """Delete the instances of a study; false, and nothing deleted, while some of it comes in or waits."""
        with self.lock:
            rows = self.index.of_study(study_uid)
            if not rows or self.busy(study_uid) or study_uid in self.index.waiting():
                return False
            folder = self.folder / "studies" / rows[0].folder
            dying = folder.with_name(f".{folder.name}")  # recover() finishes what a crash interrupts here
            folder.rename(dying)
            self._durable.discard(folder)
            self.index.drop([row.sop for row in rows])
            self._used -= sum(row.size for row in rows)
            shutil.rmtree(dying)
            return True

    def recover(self) -> Recovered:
        """Bring files and index together after a crash; call it once, before receiving.

        Whole files without a row get one (their senders were not answered and will send again, which is then the same
        content); temporary files are removed; rows without a file are forgotten and counted as lost.

        Raises:
            UsageError: another process receives into this spool.
        """
        self._own()
        removed = 0
        for path in (self.folder / "incoming").iterdir():
            path.unlink()
            removed += 1
        for dying in (self.folder / "studies").glob(".*"):
            self.index.drop([row.sop for row in self.index.rows() if row.folder == dying.name[1:]])
            shutil.rmtree(dying)
        known = {(row.folder, row.file): row for row in self.index.rows()}
        indexed = 0
        for path in sorted((self.folder / "studies").glob("*/*")):
            if known.pop((path.parent.name, path.name), None) is None:
                kept = self._index_again(path)
                indexed, removed = indexed + kept, removed + (not kept)
        self.index.drop([row.sop for row in known.values()])
        self._used = self.index.size()
        if known:
            LOG.error("%d accepted instances are gone from the disk", len(known))
        return Recovered(indexed, removed, len(known))

    def _own(self) -> None:
        if self._owner is not None:
            return
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise UsageError(
                "another node receives into this spool",
                where=self.folder.name,
                fix="Stop it, or set another data folder",
            ) from error
        self._owner = descriptor

    def _index_again(self, path: Path) -> bool:
        """Give a file without a row its row; one that is no whole instance of this place is removed."""
        try:
            data = memoryview(path.read_bytes())
            start = instances.dataset_start(data)
            found = instances.describe(bytes(data[:start]), data[start:])
            if self._names(found) == (path.parent.name, path.name) and self.index.find(found.sop) is None:
                self.index.add(_row(found, len(data), "recovered", path.stat().st_mtime, path))
                return True
        except UnreadableError:
            LOG.warning("a file of the spool was no whole instance and is removed")
        path.unlink()
        return False


def _row(found: Instance, size: int, sender: str, received: float, path: Path) -> Row:
    said = (found.sop, found.sop_class, found.series, found.study, found.syntax, found.head, found.pixels)
    return Row(*said, size, sender, received, path.parent.name, path.name)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
