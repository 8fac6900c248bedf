"""A PostgreSQL server of the suite's own: started once, on loopback, with a fresh database for each test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from components import free_port, missing

# Debian keeps the programs of a server out of the path.
PLACES = os.pathsep.join(
    [os.environ.get("PATH", ""), *(str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
)
_NUMBERS = count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Address of the server, without a database."""
    initdb, server = (shutil.which(name, path=PLACES) for name in ("initdb", "postgres"))
    if initdb is None or server is None:
        missing("PostgreSQL is not installed (Debian: apt install postgresql)")
    # Not below pytest's own folder, into which another user may not look.
    with tempfile.TemporaryDirectory(prefix="cspine-postgres-", ignore_cleanup_errors=True) as name:
        as_user = _as_user(Path(name))
        data, port = Path(name) / "data", free_port()
        options = ["-A", "trust", "-U", "cspine", "--no-sync", "-E", "UTF8", "--locale=C"]
        made = subprocess.run([*as_user, initdb, "-D", str(data), *options], capture_output=True, cwd="/", check=False)
        assert made.returncode == 0, made.stderr.decode()
        listening = ["-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
        process = subprocess.Popen([*as_user, server, "-D", str(data), *listening], stderr=subprocess.DEVNULL, cwd="/")
        url = f"postgresql://cspine@127.0.0.1:{port}"
        try:
            _wait(url, process)
            yield url
        finally:
            # At once: what it holds is not needed, and clients that were killed are not waited for.
            os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
            process.wait(20)


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """Address of a database of this test's own."""
    import psycopg

    name = f"test{next(_NUMBERS)}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres_server}/{name}"


def cut_connections(url: str) -> int:
    """End every other connection to a database, whatever it is at; gives how many there were."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        found = connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}").fetchall()
    return sum(bool(row[0]) for row in found)


def _as_user(folder: Path) -> list[str]:
    """How to become a user as whom PostgreSQL runs: never as root."""
    if os.geteuid() != 0:
        return []
    known = subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode == 0
    if shutil.which("runuser") is None or not known:
        missing("PostgreSQL does not run as root, and there is no user postgres")
    shutil.chown(folder, "postgres")
    return ["runuser", "-u", "postgres", "--"]


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    end = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(f"{url}/postgres").close()
        except psycopg.OperationalError:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        else:
            return
