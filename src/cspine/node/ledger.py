"""What became of every study: one row a study, one row a result on its way, in SQLite or PostgreSQL.

DBOS decides what runs; the ledger says what is known, for the status page, the metrics and the shelf, and holds the
time of the next try. Every change is one transaction that names the try it belongs to, so a step that DBOS repeats
after a kill changes nothing the second time. Rows of studies stay for ever: that a study was done is known from them
alone, also when DBOS's history of it has been deleted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from cspine.node.database import Database
from cspine.node.figures import Tally, count_up
from cspine.node.tables import DELIVERIES, JOBS

# waiting: for its time or a free worker; busy: DBOS has it; sending: judged, results under way; the rest are ends.
JobState = Literal["waiting", "busy", "sending", "done", "skipped", "shelved"]
DeliveryState = Literal["waiting", "busy", "delivered", "shelved"]
OPEN: tuple[JobState, ...] = ("waiting", "busy", "sending")
ENDED: tuple[JobState, ...] = ("done", "skipped", "shelved")


@dataclass(frozen=True, slots=True)
class Job:
    """One study: what came, and what became of it. Times are seconds since the epoch; no patient data.

    Attributes:
        key: unique a study and content.
        folder: where its files lie.
        round: how often it was taken from the shelf.
        tries: judgements that failed in this round.
        due: not tried before.
        reason: stable, kebab-case, of the last failure or of the end; empty when there is none.
        message: one sentence for a person, without patient data.
        positive: a fracture is stated; None when nothing was judged.
        kept: its files are still here.
        seconds: by step.
        facts: for input drift, see ``cspine.node.drift``.
    """

    key: str
    folder: Path
    instances: int
    digest: str
    received: float
    state: JobState = "waiting"
    round: int = 0
    tries: int = 0
    due: float = 0.0
    reason: str = ""
    message: str = ""
    positive: bool | None = None
    judged: float | None = None
    ended: float | None = None
    kept: bool = True
    seconds: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One result on its way to one destination; fields as in ``Job``. ``seconds`` is the time of the last try."""

    key: str
    destination: str
    state: DeliveryState = "waiting"
    round: int = 0
    tries: int = 0
    due: float = 0.0
    reason: str = ""
    seconds: float = 0.0
    ended: float | None = None


class Ledger:
    """What is known of the studies of one node, or of several that share a PostgreSQL database.

    Args:
        url: see ``Database``.

    Raises:
        CspineError: see ``Database``.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)

    def close(self) -> None:
        """Give back all connections."""
        self.database.close()

    # Studies -------------------------------------------------------------------------------------------------------

    def add(self, job: Job) -> bool:
        """Enter a study; False when it is there already. Safe to repeat."""
        row = {name: getattr(job, name) for name in ("key", "instances", "digest", "received", "due")}
        entry = self.database.insert(JOBS).values(**row, folder=str(job.folder), state="waiting")
        with self.database.writing() as connection:
            return connection.execute(entry.on_conflict_do_nothing().returning(JOBS.c.key)).first() is not None

    def job(self, key: str) -> Job | None:
        """One study, or None."""
        return next(iter(self._jobs(JOBS.c.key == key)), None)

    def jobs(self, *states: JobState) -> list[Job]:
        """All studies, or those in some states, the oldest first."""
        return self._jobs(JOBS.c.state.in_(states) if states else sa.true())

    def due_jobs(self, now: float, longest: float = math.inf) -> list[Job]:
        """Studies whose time has come, the oldest first.

        Args:
            now: seconds since the epoch.
            longest: nobody is told to wait for longer; who seems to be was so by a clock that has gone back since.
        """
        return self._jobs((JOBS.c.state == "waiting") & _due(JOBS.c.due, now, longest))

    def latest(self, count: int) -> list[Job]:
        """The studies judged last, newest first."""
        query = sa.select(JOBS).where(JOBS.c.judged.is_not(None)).order_by(JOBS.c.judged.desc()).limit(count)
        return [_job(row) for row in self.database.rows(query)]

    def is_open(self, job: Job) -> bool:
        """Whether this try has not been written down yet: what says so is here, whatever DBOS remembers."""
        return bool(self._jobs(_same_try(job, "waiting", "busy")))

    def take_job(self, job: Job) -> None:
        """DBOS has this try now."""
        self.database.change(JOBS.update().where(_same_try(job, "waiting")).values(state="busy"))

    def settle_job(
        self, job: Job, *, deliveries: Sequence[str] = (), tally: Iterable[Tally] = (), **values: object
    ) -> bool:
        """Write down how one try ended.

        Args:
            job: the try, as it was taken; another try of the same study is left alone.
            deliveries: destinations that shall get the results; entered in the same transaction.
            tally: what to count: kind, label and seconds.
            values: columns to change, ``state`` among them.

        Returns:
            False when this try was written down before.
        """
        with self.database.writing() as connection:
            where = _same_try(job, "waiting", "busy")
            if not connection.execute(JOBS.update().where(where).values(**values)).rowcount:
                return False
            # A study that comes back from the shelf goes to its destinations again.
            connection.execute(DELIVERIES.delete().where(DELIVERIES.c.key == job.key))
            for name in deliveries:
                row = {"key": job.key, "destination": name, "state": "waiting", "round": job.round}
                connection.execute(DELIVERIES.insert().values(**row))
            count_up(self.database, connection, tally)
        return True

    def finish(self, now: float) -> list[str]:
        """End the studies all of whose results have arrived or are on the shelf; gives their keys."""
        open_ones = sa.select(DELIVERIES.c.key).where(DELIVERIES.c.state.in_(("waiting", "busy")))
        where = (JOBS.c.state == "sending") & JOBS.c.key.not_in(open_ones)
        with self.database.writing() as connection:
            keys = list(connection.execute(sa.select(JOBS.c.key).where(where)).scalars())
            if keys:
                connection.execute(JOBS.update().where(JOBS.c.key.in_(keys)).values(state="done", ended=now))
        return keys

    def stale(self, before: float) -> list[Job]:
        """Studies that ended well before a time and whose files are still here. The shelf keeps its files."""
        kept = (JOBS.c.state.in_(("done", "skipped"))) & (JOBS.c.ended < before) & JOBS.c.kept
        shelved = sa.select(DELIVERIES.c.key).where(DELIVERIES.c.state == "shelved")
        return self._jobs(kept & JOBS.c.key.not_in(shelved))

    def forget_files(self, key: str) -> None:
        """The files of a study are gone; its row stays for the figures."""
        self.database.change(JOBS.update().where(JOBS.c.key == key).values(kept=False))

    # Results on their way ------------------------------------------------------------------------------------------

    def deliveries(self, *states: DeliveryState, key: str | None = None) -> list[Delivery]:
        """Results on their way, of one study or all, in some states or all."""
        where = sa.true() if key is None else DELIVERIES.c.key == key
        return self._delivery_rows(where & DELIVERIES.c.state.in_(states) if states else where)

    def due_deliveries(self, now: float, longest: float = math.inf) -> list[Delivery]:
        """Results whose time has come; arguments as of ``due_jobs``."""
        return self._delivery_rows((DELIVERIES.c.state == "waiting") & _due(DELIVERIES.c.due, now, longest))

    def delivery(self, key: str, destination: str) -> Delivery | None:
        """One result on its way, or None."""
        where = (DELIVERIES.c.key == key) & (DELIVERIES.c.destination == destination)
        return next(iter(self._delivery_rows(where)), None)

    def is_under_way(self, delivery: Delivery) -> bool:
        """Whether this try to send has not been written down yet."""
        return bool(self._delivery_rows(_same_delivery(delivery, "waiting", "busy")))

    def take_delivery(self, delivery: Delivery) -> None:
        """DBOS has this try now."""
        self.database.change(DELIVERIES.update().where(_same_delivery(delivery, "waiting")).values(state="busy"))

    def settle_delivery(self, delivery: Delivery, *, tally: Iterable[Tally] = (), **values: object) -> bool:
        """Write down how one try ended; False when that was done before."""
        where = _same_delivery(delivery, "waiting", "busy")
        with self.database.writing() as connection:
            if not connection.execute(DELIVERIES.update().where(where).values(**values)).rowcount:
                return False
            count_up(self.database, connection, tally)
        return True

    # The shelf -----------------------------------------------------------------------------------------------------

    def unshelve(self, keys: Iterable[str] | None, now: float) -> list[str]:
        """Put studies and results from the shelf back into the queue with all their tries; gives the keys concerned.

        Args:
            keys: of studies; None for all.
            now: when they are due.
        """
        chosen = None if keys is None else list(keys)
        fresh = {"state": "waiting", "tries": 0, "due": now, "ended": None}
        moved: set[str] = set()
        with self.database.writing() as connection:
            for table in (JOBS, DELIVERIES):
                where = (table.c.state == "shelved") & (sa.true() if chosen is None else table.c.key.in_(chosen))
                moved |= set(connection.execute(sa.select(table.c.key).where(where)).scalars())
                connection.execute(table.update().where(where).values(**fresh, round=table.c.round + 1))
            # A study that is done is under way again when one of its results is.
            back = (JOBS.c.state == "done") & JOBS.c.key.in_(moved)
            connection.execute(JOBS.update().where(back).values(state="sending", ended=None))
        return sorted(moved)

    def _jobs(self, where: sa.ColumnElement[bool]) -> list[Job]:
        query = sa.select(JOBS).where(where).order_by(JOBS.c.received, JOBS.c.key)
        return [_job(row) for row in self.database.rows(query)]

    def _delivery_rows(self, where: sa.ColumnElement[bool]) -> list[Delivery]:
        query = sa.select(DELIVERIES).where(where).order_by(DELIVERIES.c.due, DELIVERIES.c.key)
        return [Delivery(**row) for row in self.database.rows(query)]


def _job(row: sa.RowMapping) -> Job:
    values: dict[str, Any] = dict(row)
    return Job(**{**values, "folder": Path(values["folder"])})


def _due(column: sa.Column[float], now: float, longest: float) -> sa.ColumnElement[bool]:
    come = column <= now
    return come if math.isinf(longest) else come | (column > now + longest)


def _same_try(job: Job, *states: JobState) -> sa.ColumnElement[bool]:
    same = (JOBS.c.key == job.key) & (JOBS.c.round == job.round) & (JOBS.c.tries == job.tries)
    return same & JOBS.c.state.in_(states)


def _same_delivery(delivery: Delivery, *states: DeliveryState) -> sa.ColumnElement[bool]:
    table = DELIVERIES
    same = (table.c.key == delivery.key) & (table.c.destination == delivery.destination)
    return same & (table.c.round == delivery.round) & (table.c.tries == delivery.tries) & table.c.state.in_(states)
