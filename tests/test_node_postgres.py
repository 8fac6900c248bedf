"""The queue and the ledger in PostgreSQL, which several machines may share."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy

from components import free_port, missing
from cspine.node.durable import Durable
from cspine.node.ledger import Ledger
from cspine.node.work import Work
from node_work_factory import Collects, add_study, calls, make_work

# Debian keeps the programs of a server out of the path.
PLACES = os.pathsep.join(
    [os.environ.get("PATH", ""), *(str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Address of a server of this test's own."""
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
        url = f"postgresql://cspine@127.0.0.1:{port}/postgres"
        try:
            _wait(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(20)


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
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        else:
            return


def test_work_is_done_once_in_a_shared_database(tmp_path: Path, postgres: str) -> None:
    pacs = Collects()
    local = make_work(tmp_path, {"pacs": pacs}, clock=time.time, worker={"tries": 1})  # type: ignore[arg-type]
    work = replace(local, ledger=Ledger(postgres))
    keys = [f"study-{number}" for number in range(3)]
    for key in keys:
        add_study(work, key)
    add_study(work, "bad", "die")
    assert not work.accept("bad", tmp_path, 1, "digest", 0.0)
    _run(work, postgres, "machine-1", lambda: len(work.ledger.jobs("done", "shelved")) >= 2)
    _run(work, postgres, "machine-1", lambda: len(work.ledger.jobs("done", "shelved")) >= 4)
    assert sorted(calls(work)) == ["bad", *keys] and sorted(pacs.got) == keys
    assert work.ledger.tally("step")["send"][0] == 3
    assert [job.state for job in work.ledger.jobs("shelved")] == ["shelved"]
    work.ledger.close()


def test_connections_that_are_cut_again_and_again_cost_no_study(tmp_path: Path, postgres: str) -> None:
    import psycopg

    pacs = Collects()
    local = make_work(tmp_path, {"pacs": pacs}, clock=time.time)  # type: ignore[arg-type]
    work = replace(local, ledger=Ledger(postgres))
    keys = [f"cut-{number}" for number in range(4)]
    for key in keys:
        add_study(work, key, "slow 0.1")

    def cut() -> None:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    _run(work, postgres, "machine-1", lambda: all(_state(work, key) == "done" for key in keys), cut)
    assert sorted(set(pacs.got)) == keys
    assert sorted(calls(work)) == keys, "none was judged twice"
    work.ledger.close()


def _state(work: Work, key: str) -> str:
    job = work.ledger.job(key)
    return "" if job is None else job.state


def _run(work: Work, url: str, machine: str, ended: Callable[[], bool], cut: Callable[[], None] | None = None) -> None:
    """Until some studies have ended; connections are cut four times on the way when asked for."""
    runner = Durable(work, url, worker=machine, poll_seconds=0.05)
    runner.launch()
    cuts = [] if cut is None else [cut] * 4
    try:
        end = time.monotonic() + 60
        while True:
            assert time.monotonic() < end, [(job.key, job.state, job.reason) for job in work.ledger.jobs()]
            try:
                if not cuts and ended():
                    return
                work.tick(runner)
            except sqlalchemy.exc.OperationalError:
                continue  # as the loop of a node does
            if cuts:
                cuts.pop()()
            time.sleep(0.1)
    finally:
        runner.close()
