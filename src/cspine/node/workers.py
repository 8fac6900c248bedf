"""Who is still there, of the processes that share a database: each counts up a number, and all look at the others'.

Only changes of the number count, seen by the looker's own clock, so clocks of machines need not agree and may jump.
Looks that fail do not count either: a database that is away for an hour lets nobody seem dead when it is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import sqlalchemy as sa

from cspine.node.database import Database
from cspine.node.tables import WORKERS

# So many looks in a row must find a number unchanged.
LOOKS = 4


class Heartbeats:
    """The heartbeat of one process, and its view of the others.

    Args:
        database: that all share.
        name: of this process, its own among all.
        lost_seconds: after which one that is silent counts as dead; the last quarter may take longer.
        clock: seconds, never going back.
    """

    def __init__(
        self, database: Database, name: str, *, lost_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database, self._name, self._clock = database, name, clock
        self._pause = lost_seconds / LOOKS
        self._next = float("-inf")
        # Of each other process: the number at the last look, and how many looks in a row found it so.
        self._seen: dict[str, tuple[int | None, int]] = {}

    def due(self) -> bool:
        """Whether it is time to beat and to look again; says so once."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._pause
        return True

    def beat(self) -> None:
        """Say that this process is there."""
        entry = self._database.insert(WORKERS).values(name=self._name, beat=1)
        more = {"beat": WORKERS.c.beat + 1}
        with self._database.writing() as connection:
            connection.execute(entry.on_conflict_do_update(index_elements=["name"], set_=more))

    def lost(self, names: Iterable[str]) -> frozenset[str]:
        """Look once; gives those who have died.

        Args:
            names: of processes that hold work. One that has never beaten is given the same time as the others.
        """
        others = set(names) - {self._name}
        if not others:
            self._seen = {}
            return frozenset()
        query = sa.select(WORKERS.c.name, WORKERS.c.beat).where(WORKERS.c.name.in_(others))
        beats = {str(row["name"]): int(row["beat"]) for row in self._database.rows(query)}
        seen: dict[str, tuple[int | None, int]] = {}
        for name in others:
            beat = beats.get(name)
            before, times = self._seen.get(name, (beat, -1))
            seen[name] = (beat, times + 1 if beat == before else 0)
        self._seen = seen
        return frozenset(name for name, (_, times) in seen.items() if times >= LOOKS)
