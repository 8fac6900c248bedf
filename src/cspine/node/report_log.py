"""Storage commitment reports that peers have not taken yet, in the spool's database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cspine.node.index import Index

_SCHEMA = """CREATE TABLE IF NOT EXISTS reports (
    number INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, address TEXT NOT NULL, asked REAL NOT NULL,
    uid TEXT NOT NULL, judged TEXT NOT NULL)"""


class Judged(NamedTuple):
    """One instance that was asked for; ``reason`` is 0 when it is held, else a Failure Reason of PS3.3 C.14.1.1."""

    sop_class: str
    sop: str
    reason: int


@dataclass(frozen=True, slots=True)
class Report:
    """One report.

    Attributes:
        number: of this record.
        title: calling AE title of the peer that asked.
        address: it called from.
        asked: when, seconds since the epoch.
        transaction: Transaction UID.
        judged: the instances.
    """

    number: int
    title: str
    address: str
    asked: float
    transaction: str
    judged: tuple[Judged, ...]


class Reports:
    """The records; on the disk when a call has returned. Safe to share between threads.

    Args:
        index: of the spool.

    Raises:
        sqlite3.Error: as all methods do, when the database cannot be used.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        with index.change() as base:
            base.execute(_SCHEMA)

    def add(self, title: str, address: str, asked: float, transaction: str, judged: Sequence[Judged]) -> None:
        """Write one down."""
        values = (title, address, asked, transaction, json.dumps(judged))
        with self._index.change() as base:
            base.execute("INSERT INTO reports (title, address, asked, uid, judged) VALUES (?,?,?,?,?)", values)

    def waiting(self) -> list[Report]:
        """All of them, oldest first."""
        with self._index.change(synced=False) as base:
            rows = base.execute("SELECT number, title, address, asked, uid, judged FROM reports ORDER BY number")
            return [
                Report(number, title, address, asked, uid, tuple(Judged(*item) for item in json.loads(judged)))
                for number, title, address, asked, uid, judged in rows.fetchall()
            ]

    def count(self) -> int:
        """How many wait."""
        with self._index.change(synced=False) as base:
            count: int = base.execute("SELECT COUNT(*) FROM reports").fetchone()[0]
            return count

    def remove(self, number: int) -> None:
        """One has been taken, or was given up."""
        with self._index.change() as base:
            base.execute("DELETE FROM reports WHERE number = ?", (number,))
