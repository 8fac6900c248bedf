"""The database of the application: SQLite or PostgreSQL, brought up to date by Alembic when the application starts."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from cspine.errors import CspineError, UsageError

MIGRATIONS = Path(__file__).parent / "migrations"

# ``db.session`` is the session of the request; it is closed, and what was not committed dropped, when that ends.
db = SQLAlchemy(session_options={"expire_on_commit": False})

Sessions = sessionmaker[Session]


def address(url: str) -> sa.URL:
    """A database address as SQLAlchemy takes it.

    Raises:
        UsageError: malformed, or of another kind of database. The text is not repeated: it may hold a password.
    """
    try:
        found = make_url(url)
    except sa.exc.ArgumentError as error:
        raise UsageError(
            "expected a database address such as postgresql://host/name, got something else", where="database"
        ) from error
    kind = found.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise UsageError(
            f"expected SQLite or PostgreSQL, got {kind}",
            where="database",
            fix="Use an address that starts with sqlite:/// or postgresql://",
        )
    return found.set(drivername="postgresql+psycopg") if kind == "postgresql" else found


def options(url: str) -> dict[str, Any]:
    """What ``create_engine`` is given: the address, and connections that are tried before they are used."""
    return {"url": address(url), "pool_pre_ping": True}


def engine(url: str) -> sa.Engine:
    """An engine outside the application: commands and tests."""
    made = sa.create_engine(**options(url))
    prepare(made)
    return made


def prepare(made: sa.Engine) -> None:
    """Make SQLite keep promises that PostgreSQL keeps by itself."""
    if made.dialect.name == "sqlite":
        sa.event.listen(made, "connect", _pragmas)


def connect(app: Flask, url: str) -> Sessions:
    """Give an application its database; returns what makes sessions outside requests."""
    app.config["SQLALCHEMY_ENGINES"] = {"default": options(url)}
    db.init_app(app)
    # Nothing here is asynchronous, and a teardown that is makes a new event loop at the end of every request.
    teardowns = app.teardown_appcontext_funcs
    teardowns[:] = [one for one in teardowns if not inspect.iscoroutinefunction(one)]
    with app.app_context():
        prepare(db.engine)
        return db.sessionmaker


def upgrade(url: str) -> None:
    """Bring the tables up to date; makes them in an empty database.

    Raises:
        UsageError: the address is malformed, or the database is of a later version.
        CspineError: the database cannot be reached.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    # Not ``engine``: SQLite changes a table by making it anew, which must not delete what refers to it.
    made = sa.create_engine(**options(url))
    try:
        with made.begin() as connection:
            # All steps or none, and two servers that start at once take turns.
            if made.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(726387411)"))
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise UsageError(
            "the database was made by a later version of cspine", where="database", fix="Install that version"
        ) from error
    except sa.exc.OperationalError as error:
        raise CspineError(
            f"the database cannot be opened: {type(error.orig).__name__}",
            where="database",
            fix="Check that the server runs, that the folder can be written, and the user's rights",
        ) from error
    finally:
        made.dispose()


def _pragmas(connection: Any, _: ConnectionPoolEntry) -> None:
    """Readers do not wait for the writer, writers wait for each other, what is committed survives a power cut."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
