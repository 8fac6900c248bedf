"""Studies that are complete and go on to be judged.

A study is complete when nothing of it came for the quiet time, or when its sender said so (``Spool.finish``). It goes
on under a key that names study and content, with a folder of its own, so that what comes later changes nothing under
a judgement: the same instances again are the same key, which was handled; more instances are a new key.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from cspine.errors import UsageError
from cspine.node.disk import sync_folder
from cspine.node.index import ArrivalRow, Row
from cspine.node.privacy import Pseudonym
from cspine.node.spool import Spool

LOG = logging.getLogger(__name__)


class ArrivalState(StrEnum):
    """How far an arrival is. ``READY`` until somebody has queued it durably; ``SUPERSEDED`` when more came before."""

    READY = "ready"
    CLAIMED = "claimed"
    DONE = "done"
    SHELVED = "shelved"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class StudyArrival:
    """One complete study.

    Attributes:
        key: unique a study and content; a pseudonym, safe to log and to name files with.
        folder: its instances, as Part 10 files.
        instances: how many.
        received: when the last of them came.
        digest: SHA-256 over UIDs and contents of the instances.
        state: how far it is.
    """

    key: Pseudonym
    folder: Path
    instances: int
    received: datetime
    digest: str
    state: ArrivalState = ArrivalState.READY


class Arrivals:
    """The studies of one spool that went on.

    Args:
        spool: takes the instances in.
        quiet_seconds: without a new instance after which a study is complete.
    """

    def __init__(self, spool: Spool, *, quiet_seconds: float) -> None:
        self._spool, self._quiet = spool, quiet_seconds

    def recover(self) -> None:
        """Mend what a crash left: half-made folders go, and arrivals that lost theirs, or a file of it, are made again.

        Call it after the spool's own ``recover``, which may have made files anew under which links still lie.
        """
        index, ready = self._spool.index, self._spool.folder / "ready"
        for path in ready.glob(".*"):
            shutil.rmtree(path)
        for row in index.arrivals():
            unfinished = row.state in (ArrivalState.READY, ArrivalState.CLAIMED)
            if unfinished and not self._whole(row):
                index.wait(row.study, forget=row.key)
        known = {row.key for row in index.arrivals()}
        for path in ready.iterdir():
            if path.name not in known:  # linked, but the crash came before the row: it is made again
                shutil.rmtree(path)

    def _whole(self, row: ArrivalRow) -> bool:
        """Whether the folder of an arrival holds its instances, as the spool has them."""
        paths = {spooled.file: self._spool.path(spooled) for spooled in self._spool.index.of_study(row.study)}
        links = (self._spool.folder / "ready" / row.key).glob("*")
        same = (link.name in paths and paths[link.name].is_file() and link.samefile(paths[link.name]) for link in links)
        return sum(same) == row.instances

    def ready(self, now: float | None = None) -> list[StudyArrival]:
        """Complete studies that nobody has claimed, oldest first; call it again and again.

        Args:
            now: seconds on the spool's clock, which only goes forward; None to ask it. Should it have gone back all
                the same, waiting begins anew. A study found after a restart waits the whole quiet time once more.
        """
        spool = self._spool
        now = spool.clock() if now is None else now
        for study in spool.index.waiting():
            with spool.lock:
                since = spool.last.setdefault(study, now)
                if now < since:
                    spool.last[study] = since = now
                complete = study in spool.finished or now - since >= self._quiet
                if complete and not spool.busy(study):
                    self._go_on(study)
                    spool.last.pop(study, None)
                    spool.finished.discard(study)
        return [self._arrival(row) for row in spool.index.arrivals(state=ArrivalState.READY)]

    def get(self, key: str) -> StudyArrival | None:
        """One arrival."""
        row = self._spool.index.arrival(key)
        return None if row is None else self._arrival(row)

    def claim(self, key: str) -> StudyArrival:
        """Take an arrival over, once it is queued durably; doing so again changes nothing.

        Raises:
            UsageError: no such arrival, or more of the study came before it was claimed.
        """
        row = self._spool.index.arrival(key)
        if row is None or row.state == ArrivalState.SUPERSEDED:
            raise UsageError("there is no such arrival, or a larger one took its place", where="spool")
        if row.state == ArrivalState.READY:
            self.mark(key, ArrivalState.CLAIMED)
        arrival = self.get(key)
        return arrival if arrival is not None else self._arrival(row)

    def mark(self, key: str, state: ArrivalState) -> None:
        """Say how far an arrival is.

        Raises:
            UsageError: no such arrival.
        """
        if not self._spool.index.mark(key, state, self._spool.now().timestamp()):
            raise UsageError("there is no such arrival", where="spool")

    def release(self, key: str) -> None:
        """Remove the folder of an arrival that is done; its instances stay until ``purge``."""
        folder = self._spool.folder / "ready" / key
        if self._spool.index.arrival(key) is not None and folder.is_dir():
            _remove(folder)

    def forget(self, key: str) -> bool:
        """Delete what belongs to an arrival that is over: its folder, and its study unless more of that goes on.

        What was handled is remembered: the same study with the same content, sent once more, is accepted and not
        judged again.

        Returns:
            Whether the study's instances were deleted.
        """
        row = self._spool.index.arrival(key)
        if row is None:
            return False
        self.mark(key, ArrivalState.DONE)
        self.release(key)
        over = (ArrivalState.DONE, ArrivalState.SUPERSEDED)
        return all(r.state in over for r in self._spool.index.arrivals(study=row.study)) and self._spool.forget(
            row.study
        )

    def _go_on(self, study: str) -> None:
        """Give a study the folder and the row of an arrival; both or, after a crash, neither."""
        spool = self._spool
        rows = spool.index.of_study(study)
        digest = _digest(rows)
        key = f"{spool.name_of(study)}-{digest[:16]}"
        replaced = [row.key for row in spool.index.arrivals(state=ArrivalState.READY, study=study) if row.key != key]
        moment = spool.now().timestamp()
        row = None
        if rows and spool.index.arrival(key) is None:
            self._link(key, rows)
            received = max(row.received for row in rows)
            row = ArrivalRow(key, study, digest, len(rows), received, ArrivalState.READY, moment)
        spool.index.settle(row, study, replaced=replaced, moment=moment)
        for old in replaced:
            self.release(old)

    def _link(self, key: str, rows: list[Row]) -> None:
        ready = self._spool.folder / "ready"
        staged, target = ready / f".{key}", ready / key
        for leftover in (staged, target):
            if leftover.exists():
                shutil.rmtree(leftover)
        staged.mkdir(mode=0o700)
        for row in rows:
            os.link(self._spool.path(row), staged / row.file)
        sync_folder(staged)
        staged.rename(target)
        sync_folder(ready)

    def _arrival(self, row: ArrivalRow) -> StudyArrival:
        return StudyArrival(
            Pseudonym(row.key),
            self._spool.folder / "ready" / row.key,
            row.instances,
            datetime.fromtimestamp(row.received, UTC),
            row.digest,
            ArrivalState(row.state),
        )


def _digest(rows: list[Row]) -> str:
    """SHA-256 over the instances of a study, in the order of their UIDs."""
    total = hashlib.sha256()
    for row in rows:
        total.update(f"{row.sop} {row.head} {row.pixels}\n".encode())
    return total.hexdigest()


def _remove(folder: Path) -> None:
    """Remove a folder so that a crash leaves nothing that looks like a whole one."""
    dying = folder.with_name(f".{folder.name}")
    if dying.exists():
        shutil.rmtree(dying)
    folder.rename(dying)
    shutil.rmtree(dying)
