"""A backup is one folder that checks itself: the rows, the files, the keys, and the SHA-256 of each.

Rows are written as JSON lines, a file for each table, from one transaction; so a backup of SQLite can be restored into
PostgreSQL and the other way round. ``manifest.json`` lists every file with size and digest. Nothing is restored before
all of them were checked, and only into an application without accounts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cspine import __version__
from cspine.errors import CspineError, OutputError, UsageError
from cspine.web.database import engine, upgrade
from cspine.web.models import Base, UtcDateTime
from cspine.web.security import KEY_FILE
from cspine.web.settings import WebSettings
from cspine.web.store import STUDIES, UPLOADS, sha256_of

VERSION = 1
MANIFEST = "manifest.json"
_TABLES, _FILES = "tables", "files"
# What of the data folder belongs into a backup, beside the database.
_KEPT = (KEY_FILE, "pseudonyms.key", "audit", STUDIES, UPLOADS)
# Of no use elsewhere: who is logged in, and who guesses.
_LEFT_OUT = frozenset(("login_sessions", "throttles"))
_ROWS = 500


class BackupError(CspineError):
    """A backup is incomplete, was changed, or is of another version."""

    code = "backup"
    exit_code = 5


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup holds.

    Attributes:
        files: how many, without the manifest.
        bytes: of all of them.
        rows: of all tables.
        made: when.
    """

    files: int
    bytes: int
    rows: int
    made: str


def back_up(settings: WebSettings, target: Path) -> Summary:
    """Write a backup; the application may run meanwhile.

    Files are copied before the rows are read, and again after: a study that was finished in between has its files.

    Args:
        settings: of the application.
        target: folder that must not exist; it appears when it is complete and was read back.

    Raises:
        UsageError: ``target`` exists.
        OutputError: it cannot be written.
    """
    if target.exists():
        raise UsageError("the folder of the backup exists already", where=target.name, fix="Name another one")
    part = target.with_name(target.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True, mode=0o700)
        _copy(settings.data, part / _FILES)
        rows, revision = _write_rows(settings.database_url, part / _TABLES)
        _copy(settings.data, part / _FILES)
        summary = _write_manifest(part, rows, revision)
        _check(part)
        part.rename(target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OutputError(
            f"the backup cannot be written: {error.strerror or type(error).__name__}",
            where=target.name,
            fix="Free space",
        ) from error
    return summary


def check(source: Path) -> Summary:
    """Compare every file of a backup with its digest.

    Raises:
        BackupError: a file is missing, changed or too many; ``where`` names the first.
    """
    table = _check(source)
    files = table["files"]
    return Summary(len(files), sum(int(one["bytes"]) for one in files.values()), table["rows"], table["made"])


def restore(settings: WebSettings, source: Path) -> Summary:
    """Put a backup into an application that has no accounts yet; everybody logs in anew.

    Raises:
        BackupError: the backup is incomplete, was changed, or is of a later version.
        UsageError: the application is in use.
        OutputError: the data folder cannot be written.
    """
    summary = check(source)
    table = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    upgrade(settings.database_url)
    made = engine(settings.database_url)
    try:
        with made.begin() as connection:
            if connection.scalar(sa.select(sa.func.count()).select_from(Base.metadata.tables["users"])):
                raise UsageError(
                    "the application has accounts already; a backup is restored into an empty one",
                    where="data",
                    fix="Name a fresh data folder and an empty database in the settings",
                )
            taken = next((path for path in _files(settings.data) if path.name not in _KEPT), None)
            if taken is not None:
                where = taken.relative_to(settings.data).parts[0]
                raise UsageError("the data folder is not empty", where=where, fix="Name a fresh data folder")
            if table["revision"] != _revision(connection):
                raise BackupError("the backup is of another version of the tables", fix=f"Use cspine {table['cspine']}")
            _read_rows(connection, source / _TABLES)
            # Last, in the same transaction: if the files cannot be written, there are no rows either.
            shutil.copytree(source / _FILES, settings.data, dirs_exist_ok=True)
    except OSError as error:
        raise OutputError(f"the data folder cannot be written: {error.strerror}", where=settings.data.name) from error
    finally:
        made.dispose()
    return summary


def _copy(data: Path, target: Path) -> None:
    """Copy what is new or has changed since the last copy; what has gone in between is no fault."""
    for source in _files(data):
        copy = target / source.relative_to(data)
        try:
            found = source.stat()
            if copy.exists() and (copy.stat().st_size, copy.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns):
                continue
            copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copy2(source, copy)
        except FileNotFoundError:
            copy.unlink(missing_ok=True)
    if target.is_dir():
        for copy in [path for path in target.rglob("*") if path.is_file()]:
            if not (data / copy.relative_to(target)).exists():
                copy.unlink()


def _files(data: Path) -> Iterator[Path]:
    for name in _KEPT:
        path = data / name
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (one for one in found if one.is_file() and not one.is_symlink() and not one.name.startswith("."))


def _tables() -> list[sa.Table]:
    return [table for table in Base.metadata.sorted_tables if table.name not in _LEFT_OUT]


def _write_rows(url: str, folder: Path) -> tuple[int, str]:
    folder.mkdir(mode=0o700)
    made, count = engine(url), 0
    try:
        with made.connect() as connection:
            if made.dialect.name == "postgresql":
                connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            else:
                connection.exec_driver_sql("BEGIN")
            for table in _tables():
                with (folder / f"{table.name}.jsonl").open("w", encoding="utf-8") as stream:
                    for row in connection.execute(sa.select(table)).mappings():
                        line = {
                            name: value.isoformat() if isinstance(value, datetime) else value
                            for name, value in row.items()
                        }
                        stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                        count += 1
            return count, _revision(connection)
    finally:
        made.dispose()


def _read_rows(connection: sa.Connection, folder: Path) -> None:
    for table in _tables():
        moments = {column.name for column in table.columns if isinstance(column.type, UtcDateTime)}
        rows: list[dict[str, Any]] = []
        with (folder / f"{table.name}.jsonl").open(encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                for name in moments & row.keys():
                    row[name] = None if row[name] is None else datetime.fromisoformat(row[name])
                rows.append(row)
                if len(rows) == _ROWS:
                    connection.execute(sa.insert(table), rows)
                    rows = []
        if rows:
            connection.execute(sa.insert(table), rows)
    if connection.dialect.name == "postgresql":
        # Rows came with their numbers; the next one made here must get a fresh one.
        connection.execute(sa.text("SELECT setval(pg_get_serial_sequence('roles', 'id'), max(id)) FROM roles"))


def _revision(connection: sa.Connection) -> str:
    return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


def _write_manifest(part: Path, rows: int, revision: str) -> Summary:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(part.rglob("*")):
        if path.is_file():
            name = path.relative_to(part).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    table = {
        "version": VERSION,
        "cspine": __version__,
        "made": moment,
        "revision": revision,
        "rows": rows,
        "files": files,
    }
    text = json.dumps(table, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with (part / MANIFEST).open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    (part / f"{MANIFEST}.sha256").write_text(f"{digest}  {MANIFEST}\n", encoding="utf-8")
    return Summary(len(files), sum(int(one["bytes"]) for one in files.values()), rows, moment)


def _check(source: Path) -> dict[str, Any]:
    try:
        text = (source / MANIFEST).read_bytes()
        sealed = (source / f"{MANIFEST}.sha256").read_text(encoding="utf-8").split()[0]
        table: dict[str, Any] = json.loads(text)
        version, files = table["version"], table["files"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BackupError("this is no complete backup", where=source.name, fix="Take another one") from error
    if hashlib.sha256(text).hexdigest() != sealed:
        raise BackupError("the list of files was changed", where=MANIFEST, fix="Take another backup")
    if version != VERSION:
        raise BackupError(
            f"expected a backup of version {VERSION}, got {version}", fix=f"Use cspine {table.get('cspine')}"
        )
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    extra = there - files.keys() - {MANIFEST, f"{MANIFEST}.sha256"}
    if extra:
        raise BackupError("a file does not belong to the backup", where=min(extra), fix="Take another backup")
    for name, one in sorted(files.items()):
        if name not in there:
            raise BackupError("a file of the backup is missing", where=name, fix="Take another backup")
        if sha256_of(source / name) != one["sha256"]:
            raise BackupError("a file of the backup was changed", where=name, fix="Take another backup")
    return table
