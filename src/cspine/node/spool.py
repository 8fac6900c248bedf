"""The spool: what was accepted, on the disk before the sender hears of it.

    <folder>/index.sqlite                  which instances lie where (``index``)
    <folder>/journal, incoming, studies    the instances (``depot``)
    <folder>/ready/<key>/                  one study as it went on: hard links, which later instances do not change

An instance is made durable, then its row is added; only then is the sender told. A crash in between leaves at most a
whole file without a row, which ``recover`` gives one.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cspine.errors import OutputError, UsageError
from cspine.node import instances
from cspine.node.depot import Depot
from cspine.node.index import Index, Row
from cspine.node.instances import Instance, UnreadableError
from cspine.node.privacy import Pseudonym, Pseudonyms
from cspine.node.settings import Limits
from cspine.node.verdicts import Recovered, Stored, Verdict

__all__ = ["Recovered", "Spool", "Stored", "Verdict"]

LOG = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Spool:
    """Takes instances in. Safe to share between threads. One process at a time may receive (``recover`` takes a lock).

    Args:
        folder: made when missing, with access for its owner alone.
        pseudonyms: names the files.
        limits: ``disk_bytes``, ``free_bytes``, ``study_instances`` and ``message_bytes`` count here.
        clock: seconds that only go forward, for the quiet time.
        now: the time of day, for the record.
        free: free bytes of a folder's disk.
        durable: as of ``Depot``; false only to measure.

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
        durable: bool = True,
    ) -> None:
        self.folder, self.pseudonyms, self.limits = folder, pseudonyms, limits or Limits()
        self.clock, self.now = clock, now
        self._free = free
        try:
            self.depot = Depot(folder, durable=durable)
            (folder / "ready").mkdir(exist_ok=True, mode=0o700)
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
        self._counts: dict[str, int] = {}  # instances of a study, as the index has them
        self._used = self.index.size()

    def close(self) -> None:
        """Let go of files, index and lock."""
        self.depot.close()
        self.index.close()

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
        try:
            answer = self._enter(found, size)
        except sqlite3.Error as error:
            return _failed(error, found, study)
        if answer is not None:
            return answer
        taken = False
        try:
            answer = self._write(found, study, head, view, sender)
            taken = answer.verdict is Verdict.ACCEPTED
        finally:
            self._leave(found, size, taken=taken)
        return answer

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
        return self.depot.studies / row.folder / row.file

    def busy(self, study_uid: str) -> bool:
        """Whether an instance of a study is being written; call it under ``lock``."""
        return study_uid in self._writing.values()

    def _enter(self, found: Instance, size: int) -> Stored | None:
        """Make sure that an instance may be written, and that nobody else writes it; the answer if it may not.

        Without an answer it is under way, and its bytes count as used, until ``_leave``.
        """
        with self.lock:
            while found.sop in self._writing:
                self.lock.wait()
            answer = self._known(found) or self._too_much(found, size)
            if answer is None:
                self._writing[found.sop] = found.study
                self._used += size
            return answer

    def _leave(self, found: Instance, size: int, *, taken: bool) -> None:
        """An instance is no longer under way."""
        with self.lock:
            del self._writing[found.sop]
            if taken:
                self.last[found.study] = self.clock()
                if found.study in self._counts:
                    self._counts[found.study] += 1
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
        if found.study not in self._counts:
            self._counts[found.study] = self.index.count(found.study)
        if self._counts[found.study] + writing >= limits.study_instances:
            reason = "the study has too many instances"
        elif self._used + size > limits.disk_bytes:
            reason = "the spool is full"
        elif self._free(self.folder) - size < limits.free_bytes:
            reason = "the disk is full"
        else:
            return None
        return Stored(Verdict.FULL, self.name_of(found.study), found.study, reason)

    def _write(self, found: Instance, study: Pseudonym, head: bytes, data: memoryview, sender: str) -> Stored:
        folder, file = self._names(found)
        target = self.depot.studies / folder / file
        row = _row(found, len(head) + len(data), sender, self.now().timestamp(), target)
        try:
            self.depot.put(target, found, head, data)
            self.index.add(row)
        except (OSError, sqlite3.Error) as error:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
            return _failed(error, found, study)
        return Stored(Verdict.ACCEPTED, study, found.study)

    def _names(self, found: Instance) -> tuple[str, str]:
        digest = self.pseudonyms.digest
        return digest("study", found.study)[:40], f"{digest('sop', found.sop)[:40]}.dcm"

    def forget(self, study_uid: str) -> bool:
        """Delete the instances of a study; false, and nothing deleted, while some of it comes in or waits."""
        with self.lock:
            rows = self.index.of_study(study_uid)
            if not rows or self.busy(study_uid) or study_uid in self.index.waiting():
                return False
            dying = self.depot.remove(rows[0].folder)  # recover() finishes what a crash interrupts here
            self.index.drop([row.sop for row in rows])
            self._used -= sum(row.size for row in rows)
            self._counts.pop(study_uid, None)
            shutil.rmtree(dying)
            return True

    def recover(self) -> Recovered:
        """Bring files and index together after a crash; call it once, before receiving.

        Files that a power cut took come back from the journal. Whole files without a row get one (their senders were
        not answered and will send again, which is then the same content); temporary files are removed; rows without a
        file are forgotten and counted as lost.

        Raises:
            UsageError: another process receives into this spool.
            OutputError: the disk fails.
        """
        removed = sum(1 for _ in self.depot.incoming.iterdir())
        try:
            gone = self.depot.open()
        except OSError as error:
            raise OutputError(
                f"the spool cannot be mended: {error.strerror}", where=self.folder.name, fix="Check the disk"
            ) from error
        self.index.drop([row.sop for row in self.index.rows() if row.folder in gone and not self.path(row).is_file()])
        known = {(row.folder, row.file): row for row in self.index.rows()}
        indexed = 0
        for path in self.depot.files():
            if known.pop((path.parent.name, path.name), None) is None:
                kept = self._index_again(path)
                indexed, removed = indexed + kept, removed + (not kept)
        self.index.drop([row.sop for row in known.values()])
        self._used = self.index.size()
        if known:
            LOG.error("%d accepted instances are gone from the disk", len(known))
        return Recovered(indexed, removed, len(known))

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


def _failed(error: OSError | sqlite3.Error, found: Instance, study: Pseudonym) -> Stored:
    """The answer when the disk is full.

    Raises:
        OutputError: it fails in another way.
    """
    if getattr(error, "errno", None) in _FULL or "full" in str(error):
        return Stored(Verdict.FULL, study, found.study, "the disk is full")
    raise OutputError(
        f"an instance cannot be written: {type(error).__name__}", where="spool", fix="Check the disk"
    ) from error


def _row(found: Instance, size: int, sender: str, received: float, path: Path) -> Row:
    said = (found.sop, found.sop_class, found.series, found.study, found.syntax, found.head, found.pixels)
    return Row(*said, size, sender, received, path.parent.name, path.name)
