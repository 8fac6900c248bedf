"""Where instances lie: files below the spool, there for good when ``put`` has returned.

    <folder>/journal/                      what makes files durable without waiting for them (``journal``)
    <folder>/incoming/                     large instances that are being written
    <folder>/studies/<study>/<sop>.dcm     what was accepted; the names are keyed digests, no identifiers

An instance is written to the journal, which is synced, and then to its place. One that is too large for the journal is
written under a temporary name, synced, renamed, and its folder synced.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cspine.errors import UsageError
from cspine.node import instances
from cspine.node.disk import sync_disk, sync_folder, write_all
from cspine.node.instances import Instance, UnreadableError
from cspine.node.journal import SEGMENT_BYTES, Journal, Record, records

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Note:
    """What a record of the journal says: an instance with its digests, or, without a file, a folder that goes."""

    folder: str
    file: str = ""
    head_bytes: int = 0
    head: str = ""
    pixels: str = ""

    def packed(self) -> bytes:
        """As bytes of the journal."""
        return json.dumps((self.folder, self.file, self.head_bytes, self.head, self.pixels)).encode()


class Depot:
    """The files of one spool. Safe to share between threads.

    Args:
        folder: of the spool.
        durable: false leaves it to the system when files reach the disk. For measuring what durability costs; with it
            a power cut loses what was accepted.
        segment_bytes: of the journal's segments.

    Raises:
        OSError: folders cannot be made.
    """

    def __init__(self, folder: Path, *, durable: bool = True, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.incoming, self.studies = folder / "incoming", folder / "studies"
        self._folder, self._durable, self._segment_bytes = folder, durable, segment_bytes
        self._journal: Journal | None = None
        self._owner: int | None = None
        self._made: set[Path] = set()  # folders of studies
        self._kept: set[Path] = set()  # those of them whose names are on the disk
        for made in (folder, self.incoming, self.studies):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)

    def open(self) -> set[str]:
        """Mend what a crash left and open the journal; one process at a time may do so.

        Returns:
            Names of folders that were to be deleted; what is in them now came later.

        Raises:
            UsageError: another process has it open.
            OSError: something cannot be read or written.
        """
        self._own()
        for path in self.incoming.iterdir():
            path.unlink()
        gone = self._replay()
        if self._durable:
            self._journal = Journal(
                self._folder / "journal", partial(sync_disk, self._folder), segment_bytes=self._segment_bytes
            )
        return gone

    def close(self) -> None:
        """Let go of journal and lock."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None

    def _own(self) -> None:
        if self._owner is not None:
            return
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise UsageError(
                "another node receives into this spool",
                where=self._folder.name,
                fix="Stop it, or set another data folder",
            ) from error
        self._owner = descriptor

    def put(self, target: Path, found: Instance, head: bytes, data: memoryview) -> None:
        """Write one file; when this returns, its content survives a power cut.

        Args:
            target: where it shall lie, below ``studies``.
            found: what it is.
            head: its Part 10 header.
            data: the data set.

        Raises:
            OSError: it cannot be written; it is not there, or comes back after a crash.
        """
        note = _Note(target.parent.name, target.name, len(head), found.head, found.pixels)
        if not self._durable:
            self._write(target, head, data)
        elif self._journal is None:
            self._write_synced(target, head, data)
        elif len(head) + len(data) > self._journal.most:
            self._write_synced(target, head, data)
            with self._journal.keep(note.packed()):
                pass  # the record alone, so that an earlier one of its folder's end does not mean this file
        else:
            with self._journal.keep(note.packed(), head, data):
                self._write(target, head, data)

    def _write(self, target: Path, head: bytes, data: memoryview, *, synced: bool = False) -> None:
        """Write one file; nothing of it stays after an error."""
        if target.parent not in self._made and not synced:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            self._made.add(target.parent)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(descriptor, (head, data), 0)
            if synced:
                os.fsync(descriptor)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _write_synced(self, target: Path, head: bytes, data: memoryview) -> None:
        """Write one file so that it is whole and durable, or not there."""
        staged = self.incoming / f"{secrets.token_hex(12)}.part"
        self._write(staged, head, data, synced=True)
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            if target.parent not in self._kept:  # one that another thread has only just made may not be durable yet
                sync_folder(self.studies)
                self._kept.add(target.parent)
            staged.rename(target)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)

    def remove(self, folder: str) -> Path:
        """Take a study's folder away, under a name that ``open`` deletes after a crash; its path then."""
        path = self.studies / folder
        dying = path.with_name(f".{folder}")
        self._made.discard(path)
        self._kept.discard(path)
        if self._journal is None:
            path.rename(dying)
        else:  # else the journal would bring it back after a crash
            with self._journal.keep(_Note(folder).packed()):
                path.rename(dying)
        return dying

    def files(self) -> Iterator[Path]:
        """Everything that lies here, in order of the names."""
        yield from sorted(self.studies.glob("*/*"))

    def _replay(self) -> set[str]:
        """Do once more what the journal tells of; the folders that are gone for it."""
        pending: dict[tuple[str, str], tuple[_Note, Record]] = {}
        gone = {dying.name[1:] for dying in self.studies.glob(".*")}
        for record in records(self._folder / "journal"):
            note = _Note(*json.loads(record.note))
            if note.file:
                pending[note.folder, note.file] = note, record
            else:
                gone.add(note.folder)
                pending = {place: kept for place, kept in pending.items() if place[0] != note.folder}
        for name in gone:
            shutil.rmtree(self.studies / f".{name}", ignore_errors=True)
            for path in (self.studies / name).glob("*"):
                if (name, path.name) not in pending:
                    path.unlink()
        mended = sum(self._again(note, record) for note, record in pending.values())
        for folder in {place[0] for place in pending if (self.studies / place[0]).is_dir()}:
            sync_folder(self.studies / folder)
        sync_folder(self.studies)
        if mended:
            LOG.warning("%d instances were brought back from the journal", mended)
        return gone

    def _again(self, note: _Note, record: Record) -> bool:
        """Make sure that the file of a record is there, whole and durable; whether it had to be written."""
        path = self.studies / note.folder / note.file
        if not record.length:
            return False  # synced by itself
        if path.is_file() and path.stat().st_size == record.length and _is(note, path.read_bytes()):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            return False
        body = record.body()
        if not _is(note, body):
            return False  # never finished, so nobody was told of it
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # In place: what has gone on may be another name of the same file.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as stream:
            stream.write(body)
            os.fsync(stream.fileno())
        return True


def _is(note: _Note, content: bytes) -> bool:
    """Whether a file's content is the one that a record was made of."""
    try:
        found = instances.describe(content[: note.head_bytes], memoryview(content)[note.head_bytes :])
    except UnreadableError:
        return False
    return (found.head, found.pixels) == (note.head, note.pixels)
