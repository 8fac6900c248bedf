"""The spool's index: which instances lie where, and which studies went on, in SQLite beside the files.

What became of studies is on the disk when the call that wrote it returns (WAL, synchronous=FULL). Rows of instances
wait in memory, for at most ``_GATHERED`` others or the next question about a study, and are committed together and
unsynced: their files can make them again (``Spool.recover``).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from cspine.errors import OutputError
from cspine.node.instances import content_digest

_SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (
    sop TEXT PRIMARY KEY, sop_class TEXT NOT NULL, series TEXT NOT NULL, study TEXT NOT NULL, syntax TEXT NOT NULL,
    head TEXT NOT NULL, pixels TEXT NOT NULL, size INTEGER NOT NULL, sender TEXT NOT NULL, received REAL NOT NULL,
    folder TEXT NOT NULL, file TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS instances_study ON instances (study);
CREATE TABLE IF NOT EXISTS studies (study TEXT PRIMARY KEY, waiting INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS studies_waiting ON studies (waiting);
CREATE TABLE IF NOT EXISTS arrivals (
    key TEXT PRIMARY KEY, study TEXT NOT NULL, digest TEXT NOT NULL, instances INTEGER NOT NULL,
    received REAL NOT NULL, state TEXT NOT NULL, changed REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS arrivals_state ON arrivals (state);
PRAGMA user_version = 1;
"""
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One instance; ``folder`` and ``file`` are names below the spool, ``received`` seconds since the epoch."""

    sop: str
    sop_class: str
    series: str
    study: str
    syntax: str
    head: str
    pixels: str
    size: int
    sender: str
    received: float
    folder: str
    file: str

    @property
    def digest(self) -> str:
        """SHA-256 of the whole content, as of ``Instance``."""
        return content_digest(self.head, self.pixels)


@dataclass(frozen=True, slots=True)
class ArrivalRow:
    """One study that went on, with the content it had then; ``changed`` is when its state last did."""

    key: str
    study: str
    digest: str
    instances: int
    received: float
    state: str
    changed: float


_VALUES = attrgetter(*(column.name for column in fields(Row)))  # several times as fast as astuple


# Rows that share a commit at most; a commit costs as much as writing a small file.
_GATHERED = 64


class Index:
    """The tables. Safe to share between threads; other processes may open the same file.

    Args:
        path: of the database, made when missing.

    Raises:
        OutputError: it cannot be opened, or is of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._gathered: dict[str, Row] = {}
        self._synced = True
        try:
            self._base = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            version = self._base.execute("PRAGMA user_version").fetchone()[0]
            if version in (0, _VERSION):
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=FULL")
                self._base.executescript(_SCHEMA)
                path.chmod(0o600)
        except (sqlite3.Error, OSError) as error:
            raise OutputError(
                "the index of the spool cannot be opened", where=path.name, fix="Check folder, space and permissions"
            ) from error
        if version not in (0, _VERSION):
            raise OutputError(f"the index has version {version}, this cspine reads {_VERSION}", where=path.name)

    def close(self) -> None:
        """Commit what waits and let go of the file."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):  # the files make the rows again
                self._commit()
            self._base.close()

    @contextmanager
    def change(self, *, synced: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction: all or nothing; on the disk at its end, unless ``synced`` is false.

        Raises:
            sqlite3.Error: it could not be written, for instance on a full disk.
        """
        with self._lock:
            self._commit()
            with self._transaction(synced=synced) as base:
                yield base

    @contextmanager
    def _transaction(self, *, synced: bool) -> Iterator[sqlite3.Connection]:
        if synced != self._synced:
            self._base.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
            self._synced = synced
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield self._base
            self._base.execute("COMMIT")
        except BaseException:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise

    def add(self, row: Row) -> None:
        """Add one instance, whose file is there, and mark its study as waiting.

        Raises:
            sqlite3.Error: rows cannot be written; this one is not there.
        """
        with self._lock:
            if len(self._gathered) >= _GATHERED:
                self._commit()
            self._gathered[row.sop] = row

    def _commit(self) -> None:
        """Write the rows that wait; after an error they still do."""
        if not self._gathered:
            return
        rows = list(self._gathered.values())
        with self._transaction(synced=False) as base:
            base.executemany(f"INSERT INTO instances VALUES ({','.join('?' * 12)})", map(_VALUES, rows))
            base.executemany(_WAITS, [(study,) for study in {row.study for row in rows}])
        self._gathered.clear()

    def find(self, sop: str) -> Row | None:
        """The instance with this SOP Instance UID."""
        with self._lock:
            if sop in self._gathered:
                return self._gathered[sop]
            rows = self._base.execute("SELECT * FROM instances WHERE sop = ?", (sop,)).fetchall()
        return Row(*rows[0]) if rows else None

    def of_study(self, study: str) -> list[Row]:
        """All instances of a study, by SOP Instance UID."""
        return [Row(*row) for row in self._read("SELECT * FROM instances WHERE study = ? ORDER BY sop", study)]

    def rows(self) -> list[Row]:
        """All instances."""
        return [Row(*row) for row in self._read("SELECT * FROM instances")]

    def count(self, study: str) -> int:
        """How many instances a study has."""
        count: int = self._read("SELECT COUNT(*) FROM instances WHERE study = ?", study)[0][0]
        return count

    def size(self) -> int:
        """Bytes of all instances together."""
        size: int = self._read("SELECT COALESCE(SUM(size), 0) FROM instances")[0][0]
        return size

    def waiting(self) -> list[str]:
        """Studies that have instances which did not go on yet."""
        return [row[0] for row in self._read("SELECT study FROM studies WHERE waiting = 1 ORDER BY study")]

    def arrival(self, key: str) -> ArrivalRow | None:
        """One arrival."""
        rows = self._read("SELECT * FROM arrivals WHERE key = ?", key)
        return ArrivalRow(*rows[0]) if rows else None

    def arrivals(self, *, state: str | None = None, study: str | None = None) -> list[ArrivalRow]:
        """Arrivals, oldest first; of one state or study only when that is given."""
        query = "SELECT * FROM arrivals WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR study = ?2)"
        return [ArrivalRow(*row) for row in self._read(f"{query} ORDER BY received, key", state, study)]

    def settle(self, row: ArrivalRow | None, study: str, *, replaced: Iterable[str], moment: float) -> None:
        """A study went on as ``row`` (None: its content is known) and waits no more; ``replaced`` are superseded."""
        with self.change() as base:
            if row is not None:
                base.execute("INSERT INTO arrivals VALUES (?,?,?,?,?,?,?)", astuple(row))
            superseded = [("superseded", moment, key) for key in replaced]
            base.executemany("UPDATE arrivals SET state = ?, changed = ? WHERE key = ?", superseded)
            base.execute("UPDATE studies SET waiting = 0 WHERE study = ?", (study,))

    def mark(self, key: str, state: str, moment: float) -> bool:
        """Change the state of an arrival; false when there is no such key."""
        with self.change() as base:
            change = base.execute("UPDATE arrivals SET state = ?, changed = ? WHERE key = ?", (state, moment, key))
            return change.rowcount == 1

    def wait(self, study: str, *, forget: str | None = None) -> None:
        """Mark a study as waiting, and forget the arrival ``forget``, whose files were lost."""
        with self.change() as base:
            if forget is not None:
                base.execute("DELETE FROM arrivals WHERE key = ?", (forget,))
            base.execute(_WAITS, (study,))

    def drop(self, sops: Iterable[str]) -> None:
        """Forget instances."""
        with self.change() as base:
            base.executemany("DELETE FROM instances WHERE sop = ?", [(sop,) for sop in sops])

    def _read(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            self._commit()
            return self._base.execute(query, values).fetchall()


_WAITS = "INSERT INTO studies VALUES (?, 1) ON CONFLICT (study) DO UPDATE SET waiting = 1"
