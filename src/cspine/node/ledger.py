"""What became of every study: one row a study, one row a result on its way, in SQLite or PostgreSQL.

DBOS decides what runs; the ledger says what is known, for the status page, the metrics and the shelf, and holds the
time of the next try. Every change is one transaction that names the try it belongs to, so a step that DBOS repeats
after a kill changes nothing the second time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.pool import ConnectionPoolEntry

from cspine.errors import CspineError, UsageError
from cspine.node.tables import DELIVERIES, JOBS, META, TAKEN, TALLY

# waiting: for its time or a free worker; busy: DBOS has it; sending: judged, results under way; the rest are ends.
JobState = Literal["waiting", "busy", "sending", "done", "skipped", "shelved"]
DeliveryState = Literal["waiting", "busy", "delivered", "shelved"]
OPEN: tuple[JobState, ...] = ("waiting", "busy", "sending")
ENDED: tuple[JobState, ...] = ("done", "skipped", "shelved")

Tally = tuple[Literal["step", "failure"], str, float]


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


def _pragmas(connection: Any, _: ConnectionPoolEntry) -> None:
    """Readers do not wait for the writer, writers wait for each other, and what is committed survives a power cut."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


class Ledger:
    """The tables behind one node, or behind several that share a PostgreSQL database.

    Args:
        url: ``sqlite:///…`` or ``postgresql://…``.

    Raises:
        UsageError: the address is malformed, or of another kind of database.
        CspineError: the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        try:
            address = make_url(url)
        except sa.exc.ArgumentError as error:
            raise UsageError(
                "expected a database address such as sqlite:///node.db or postgresql://host/name, got something else",
                where="database",  # never the text itself: it may hold a password
            ) from error
        if address.get_backend_name() not in ("sqlite", "postgresql"):
            raise UsageError(
                f"expected SQLite or PostgreSQL, got {address.get_backend_name()}",
                where="database",
                fix="Use an address that starts with sqlite:/// or postgresql://",
            )
        if address.get_backend_name() == "postgresql":
            address = address.set(drivername="postgresql+psycopg")
        self._engine = sa.create_engine(address, pool_pre_ping=True)
        if address.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _pragmas)
        try:
            META.create_all(self._engine)
        except sa.exc.OperationalError as error:
            raise CspineError(
                f"the database cannot be opened: {type(error.orig).__name__}",
                where="database",
                fix="Check that the server runs, that the folder can be written, and the user's rights",
            ) from error

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "sqlite":
                # pysqlite would take the write lock only at the first change; what was read before may be old then.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    # Studies -------------------------------------------------------------------------------------------------------

    def add(self, job: Job) -> bool:
        """Enter a study; False when it is there already. Safe to repeat."""
        row = {name: getattr(job, name) for name in ("key", "instances", "digest", "received", "due")}
        entry = self._insert(JOBS).values(**row, folder=str(job.folder), state="waiting")
        with self._write() as connection:
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
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def earliest(self, count: int) -> list[Job]:
        """The studies judged first, oldest first: what drift is measured against."""
        query = sa.select(JOBS).where(JOBS.c.judged.is_not(None)).order_by(JOBS.c.judged).limit(count)
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def take_job(self, job: Job) -> None:
        """DBOS has this try now."""
        self._change(JOBS, _same_try(JOBS, job, "waiting"), state="busy")

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
        with self._write() as connection:
            where = _same_try(JOBS, job, "waiting", "busy")
            if not connection.execute(JOBS.update().where(where).values(**values)).rowcount:
                return False
            # A study that comes back from the shelf goes to its destinations again.
            connection.execute(DELIVERIES.delete().where(DELIVERIES.c.key == job.key))
            for name in deliveries:
                row = {"key": job.key, "destination": name, "state": "waiting", "round": job.round}
                connection.execute(DELIVERIES.insert().values(**row))
            self._count_up(connection, tally)
        return True

    def finish(self, now: float) -> list[str]:
        """End the studies all of whose results have arrived or are on the shelf; gives their keys."""
        open_ones = sa.select(DELIVERIES.c.key).where(DELIVERIES.c.state.in_(("waiting", "busy")))
        where = (JOBS.c.state == "sending") & JOBS.c.key.not_in(open_ones)
        with self._write() as connection:
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
        self._change(JOBS, JOBS.c.key == key, kept=False)

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

    def take_delivery(self, delivery: Delivery) -> None:
        """DBOS has this try now."""
        self._change(DELIVERIES, _same_delivery(delivery, "waiting"), state="busy")

    def settle_delivery(self, delivery: Delivery, *, tally: Iterable[Tally] = (), **values: object) -> bool:
        """Write down how one try ended; False when that was done before."""
        where = _same_delivery(delivery, "waiting", "busy")
        with self._write() as connection:
            if not connection.execute(DELIVERIES.update().where(where).values(**values)).rowcount:
                return False
            self._count_up(connection, tally)
        return True

    # The shelf -----------------------------------------------------------------------------------------------------

    def unshelve(self, keys: Iterable[str] | None, now: float) -> list[str]:
        """Put studies and results from the shelf back into the queue with all their tries; gives the keys concerned.

        Args:
            keys: of studies; None for all.
            now: when they are due.
        """
        chosen = None if keys is None else list(keys)
        fresh = {"state": "waiting", "tries": 0, "due": now}
        moved: set[str] = set()
        with self._write() as connection:
            for table in (JOBS, DELIVERIES):
                where = (table.c.state == "shelved") & (sa.true() if chosen is None else table.c.key.in_(chosen))
                moved |= set(connection.execute(sa.select(table.c.key).where(where)).scalars())
                connection.execute(table.update().where(where).values(**fresh, round=table.c.round + 1))
            # A study that is done is under way again when one of its results is.
            back = (JOBS.c.state == "done") & JOBS.c.key.in_(moved)
            connection.execute(JOBS.update().where(back).values(state="sending", ended=None))
        return sorted(moved)

    # What was pulled -----------------------------------------------------------------------------------------------

    def taken(self, source: str) -> dict[str, str]:
        """Name and mark of everything pulled from a source before."""
        query = sa.select(TAKEN.c.name, TAKEN.c.mark).where(TAKEN.c.source == source)
        with self._engine.connect() as connection:
            return {str(row.name): str(row.mark) for row in connection.execute(query)}

    def take(self, source: str, name: str, mark: str) -> None:
        """Something was pulled."""
        entry = self._insert(TAKEN).values(source=source, name=name, mark=mark)
        with self._write() as connection:
            connection.execute(entry.on_conflict_do_update(index_elements=["source", "name"], set_={"mark": mark}))

    # Figures -------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[tuple[str, str], int]:
        """Studies by state and reason."""
        return self._count(JOBS.c.state, JOBS.c.reason)

    def delivery_counts(self) -> dict[tuple[str, str, str], int]:
        """Results by destination, state and reason."""
        return self._count(DELIVERIES.c.destination, DELIVERIES.c.state, DELIVERIES.c.reason)

    def oldest(self) -> float | None:
        """When the oldest study that has not ended was received; None when there is none."""
        query = sa.select(sa.func.min(JOBS.c.received)).where(JOBS.c.state.not_in(ENDED))
        with self._engine.connect() as connection:
            found: float | None = connection.execute(query).scalar()
        return found

    def tally(self, kind: Literal["step", "failure"]) -> dict[str, tuple[int, float]]:
        """Tries counted and their seconds together, by step or by reason of failure, since the node began."""
        query = sa.select(TALLY.c.label, TALLY.c.count, TALLY.c.total).where(TALLY.c.kind == kind)
        with self._engine.connect() as connection:
            return {str(label): (int(count), float(total)) for label, count, total in connection.execute(query)}

    def _count_up(self, connection: sa.Connection, tally: Iterable[Tally]) -> None:
        for kind, label, seconds in tally:
            entry = self._insert(TALLY).values(kind=kind, label=label[:64], count=1, total=seconds)
            more = {"count": TALLY.c.count + 1, "total": TALLY.c.total + seconds}
            connection.execute(entry.on_conflict_do_update(index_elements=["kind", "label"], set_=more))

    def _insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An insertion that may say what to do when the row is there: the same in both kinds of database."""
        return sqlite.insert(table) if self._engine.dialect.name == "sqlite" else postgresql.insert(table)

    def _count(self, *columns: sa.Column[str]) -> dict[Any, int]:
        query = sa.select(*columns, sa.func.count()).group_by(*columns)
        with self._engine.connect() as connection:
            return {tuple(row[:-1]): int(row[-1]) for row in connection.execute(query)}

    def _jobs(self, where: sa.ColumnElement[bool]) -> list[Job]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(JOBS).where(where).order_by(JOBS.c.received, JOBS.c.key))
            return [_job(row) for row in rows.mappings()]

    def _delivery_rows(self, where: sa.ColumnElement[bool]) -> list[Delivery]:
        query = sa.select(DELIVERIES).where(where).order_by(DELIVERIES.c.due, DELIVERIES.c.key)
        with self._engine.connect() as connection:
            return [Delivery(**row) for row in connection.execute(query).mappings()]

    def _change(self, table: sa.Table, where: sa.ColumnElement[bool], **values: object) -> int:
        with self._write() as connection:
            return int(connection.execute(table.update().where(where).values(**values)).rowcount)


def _job(row: sa.RowMapping) -> Job:
    values: dict[str, Any] = dict(row)
    return Job(**{**values, "folder": Path(values["folder"])})


def _due(column: sa.Column[float], now: float, longest: float) -> sa.ColumnElement[bool]:
    come = column <= now
    return come if math.isinf(longest) else come | (column > now + longest)


def _same_try(table: sa.Table, job: Job, *states: JobState) -> sa.ColumnElement[bool]:
    same = (table.c.key == job.key) & (table.c.round == job.round) & (table.c.tries == job.tries)
    return same & table.c.state.in_(states)


def _same_delivery(delivery: Delivery, *states: DeliveryState) -> sa.ColumnElement[bool]:
    table = DELIVERIES
    same = (table.c.key == delivery.key) & (table.c.destination == delivery.destination)
    return same & (table.c.round == delivery.round) & (table.c.tries == delivery.tries) & table.c.state.in_(states)
