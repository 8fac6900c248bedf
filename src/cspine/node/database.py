"""The database behind a node, or behind several: SQLite or PostgreSQL, so that nobody else has to know which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.pool import ConnectionPoolEntry

from cspine.errors import CspineError, UsageError
from cspine.node.tables import META


class Database:
    """The tables of a node.

    Args:
        url: ``sqlite:///…`` or ``postgresql://…``.

    Raises:
        UsageError: the address is malformed, or of another kind of database.
        CspineError: the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        address = _address(url)
        self._engine = sa.create_engine(address, pool_pre_ping=True)
        if self._is_sqlite:
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
        """Give back all connections."""
        self._engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that changes something."""
        with self._engine.begin() as connection:
            if self._is_sqlite:
                # pysqlite would take the write lock only at the first change; what was read before may be old then.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def change(self, statement: sa.Update | sa.Delete | sa.Insert) -> int:
        """Change rows in a transaction of its own; gives how many."""
        with self.writing() as connection:
            return int(connection.execute(statement).rowcount)

    def rows(self, query: sa.Executable) -> list[sa.RowMapping]:
        """What a query finds, by the names of its columns."""
        with self._engine.connect() as connection:
            return list(connection.execute(query).mappings())

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An insertion that may say what to do when the row is there: the same in both kinds of database."""
        return sqlite.insert(table) if self._is_sqlite else postgresql.insert(table)

    @property
    def _is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"


def _address(url: str) -> sa.URL:
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
    return address.set(drivername="postgresql+psycopg") if address.get_backend_name() == "postgresql" else address


def _pragmas(connection: Any, _: ConnectionPoolEntry) -> None:
    """Readers do not wait for the writer, writers wait for each other, and what is committed survives a power cut."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")
