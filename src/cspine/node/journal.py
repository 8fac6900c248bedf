"""The spool's journal: what was accepted is on the disk after one short write, and its file need not be waited for.

To make a new file durable costs two commits of the file system, for the file and for its name; to write over blocks
that a file has already costs one flush of the disk. So an instance goes here first, and only then to its place,
unsynced; should the power fail, ``records`` gives everything back that may be missing or half there.

    <folder>/0.journal, 1.journal     segments, used in turn: records one behind the other, each with its number

A segment is written over only when all files that its records tell of are on the disk themselves (``settle``). Records
of several associations that come at once share one write and one flush. Record numbers grow without gaps, so that what
an earlier round left behind the newest record is never taken for its successor.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cspine.node.disk import flush, sync_folder, write_all

MIB = 2**20
LOG = logging.getLogger(__name__)
# Magic, number, length of the note, length of the body, SHA-256 of these and the note.
_HEAD = struct.Struct("<8sQIQ32s")
_MAGIC = b"CSPINEJ1"
SEGMENT_BYTES = 64 * MIB
# Blocks get their place on the disk in steps of this size, filled with zeros.
_STEP_BYTES = 8 * MIB
_NOTE_BYTES = 64 * 1024
_MOST_TICKETS = 200  # of one write, each four buffers or so; IOV_MAX is 1024

Part = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Record:
    """One record as found; its note is whole, its body may not be when nobody was told of it.

    Attributes:
        note: what the writer put down.
        path: of the segment.
        start: where the body begins there.
        length: of the body, in bytes.
    """

    note: bytes
    path: Path
    start: int
    length: int

    def body(self) -> bytes:
        """The body.

        Raises:
            OSError: it cannot be read.
        """
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            return stream.read(self.length)


@dataclass
class _Segment:
    path: Path
    descriptor: int
    size: int  # blocks that exist
    end: int = 0
    writing: int = 0  # records whose files are being written
    settled: bool = True


@dataclass(eq=False)
class _Ticket:
    note: bytes
    parts: tuple[Part, ...]
    done: bool = False
    segment: _Segment | None = None
    error: OSError | None = field(default=None)

    @property
    def length(self) -> int:
        return sum(map(len, self.parts))

    @property
    def size(self) -> int:
        return _HEAD.size + len(self.note) + self.length


class Journal:
    """The journal of one spool. Safe to share between threads; one process has it open.

    Args:
        folder: made when missing. What is in it is gone: call ``records`` first.
        settle: makes every file that was written so far durable, or raises OSError.
        segment_bytes: of each of the two segments.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path, settle: Callable[[], None], *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._settle, self._bytes = settle, segment_bytes
        self._state = threading.Condition()
        self._leading = False  # somebody writes for all that wait
        self._waiting: deque[_Ticket] = deque()
        # Where no earlier run began, whose records may lie behind ours.
        self._number = secrets.randbits(62)
        self._broken: OSError | None = None
        folder.mkdir(mode=0o700, exist_ok=True)
        self._segments = [_open(folder / f"{k}.journal") for k in (0, 1)]
        sync_folder(folder)

    @property
    def most(self) -> int:
        """Bytes of the largest record that is taken; what is larger pays for its own sync."""
        return self._bytes // 8

    def close(self) -> None:
        """Let go of the files. Their records stay, for files that are not on the disk yet."""
        with self._state:
            self._state.wait_for(lambda: not self._leading)
            self._broken = self._broken or OSError(errno.EBADF, "the journal is closed")
            for segment in self._segments:
                os.close(segment.descriptor)

    @contextmanager
    def keep(self, note: bytes, *parts: Part) -> Iterator[None]:
        """Write a record; it is on the disk when the block begins. The block does what the record tells of.

        Args:
            note: says what this is, for ``records``.
            parts: the body.

        Raises:
            OSError: it cannot be written; no record was made.
        """
        ticket = _Ticket(note, parts)
        self._waiting.append(ticket)
        while self._leads(ticket):
            try:
                self._write_waiting()
            except BaseException:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(ticket)
                raise
            finally:
                with self._state:
                    self._leading = False
                    self._state.notify_all()
        if ticket.segment is None:
            raise ticket.error or OSError(errno.EIO, "no record was made")
        try:
            yield
        finally:
            with self._state:
                ticket.segment.writing -= 1
                self._state.notify_all()

    def _leads(self, ticket: _Ticket) -> bool:
        """Wait until a ticket is done, which is false, or its owner shall write for all that wait."""
        with self._state:
            self._state.wait_for(lambda: ticket.done or not self._leading)
            if not ticket.done:
                self._leading = True
            return not ticket.done

    def _write_waiting(self) -> None:
        """Write what waits, as far as it fits into the segment; who is left over leads the next time."""
        tickets: list[_Ticket] = []
        try:
            segment = self._room(self._waiting[0].size)
            free = self._bytes - segment.end
            while self._waiting and len(tickets) < _MOST_TICKETS and self._waiting[0].size <= free:
                tickets.append(self._waiting.popleft())
                free -= tickets[-1].size
            self._write(segment, tickets)
        except BaseException as error:
            failure = error if isinstance(error, OSError) else OSError(errno.EIO, "the write was given up")
            for ticket in tickets or [self._waiting.popleft()]:
                ticket.done, ticket.error = True, failure
            if failure is not error:
                raise

    def _write(self, segment: _Segment, tickets: list[_Ticket]) -> None:
        parts: list[Part] = []
        for k, ticket in enumerate(tickets):
            parts += [_head(self._number + k, ticket), ticket.note, *ticket.parts]
        end = segment.end + sum(ticket.size for ticket in tickets)
        _grow(segment, end, self._bytes)
        write_all(segment.descriptor, parts, segment.end)
        flush(segment.descriptor)
        # Only now: after a failure the next record takes the same place and number, and the chain has no gap.
        segment.end, self._number = end, self._number + len(tickets)
        with self._state:
            segment.settled = False
            segment.writing += len(tickets)
            for ticket in tickets:
                ticket.done, ticket.segment = True, segment

    def _room(self, size: int) -> _Segment:
        """The segment that takes the next record."""
        if self._broken is not None:
            raise OSError(self._broken.errno, "the journal is of no use any more")
        if size > self._bytes:
            raise OSError(errno.EFBIG, "the record is larger than a segment")
        segment = self._segments[0]
        if segment.end + size <= self._bytes:
            return segment
        other = self._segments[1]
        with self._state:
            self._state.wait_for(lambda: other.settled or self._broken)
            if self._broken is not None:
                raise OSError(self._broken.errno, "files could not be made durable")
        other.end = 0
        self._segments.reverse()
        threading.Thread(target=self._make_settled, args=(segment,), name="cspine-journal", daemon=True).start()
        return other

    def _make_settled(self, segment: _Segment) -> None:
        """Free a segment that is full."""
        with self._state:
            self._state.wait_for(lambda: not segment.writing)
        error: OSError | None = None
        try:
            self._settle()
        except OSError as failure:
            # The system may have dropped what it could not write, and would not say so again. The records are still
            # here: nothing more is accepted, and the next start puts the files right.
            LOG.exception("what was accepted cannot be made durable; restart the node when the disk is mended")
            error = failure
        with self._state:
            segment.settled, self._broken = error is None, error or self._broken
            self._state.notify_all()


def records(folder: Path) -> list[Record]:
    """Everything that a journal holds, oldest first; empty when there is none.

    Raises:
        OSError: a segment cannot be read.
    """
    chains = [list(_chain(path)) for path in sorted(folder.glob("*.journal"))]
    chains.sort(key=lambda chain: chain[0][0] if chain else 0)
    return [record for chain in chains for _, record in chain]


def _chain(path: Path) -> Iterator[tuple[int, Record]]:
    """The records of one segment with their numbers, up to where the numbers break off."""
    size, position, expected = path.stat().st_size, 0, None
    with path.open("rb") as stream:
        while position + _HEAD.size <= size:
            stream.seek(position)
            head = stream.read(_HEAD.size)
            magic, number, note_length, length, seal = _HEAD.unpack(head)
            if magic != _MAGIC or note_length > _NOTE_BYTES or expected not in (None, number):
                return
            note = stream.read(note_length)
            start = position + _HEAD.size + note_length
            if hashlib.sha256(head[:-32] + note).digest() != seal or start + length > size:
                return
            yield number, Record(note, path, start, length)
            position, expected = start + length, number + 1


def _head(number: int, ticket: _Ticket) -> bytes:
    fields = _HEAD.pack(_MAGIC, number, len(ticket.note), ticket.length, b"")[:-32]
    return fields + hashlib.sha256(fields + ticket.note).digest()


def _open(path: Path) -> _Segment:
    """Open a segment and make sure that nothing in it counts any more."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        write_all(descriptor, [bytes(_HEAD.size)], 0)
        os.fsync(descriptor)
        return _Segment(path, descriptor, os.fstat(descriptor).st_size)
    except OSError:
        os.close(descriptor)
        raise


def _grow(segment: _Segment, end: int, most: int) -> None:
    """Give a segment blocks up to ``end`` at least, with zeros on the disk."""
    if end <= segment.size:
        return
    size = min(max(end, segment.size + min(max(segment.size, MIB), _STEP_BYTES)), most)
    for start in range(segment.size, size, MIB):
        write_all(segment.descriptor, [bytes(min(MIB, size - start))], start)
    os.fsync(segment.descriptor)
    segment.size = size
