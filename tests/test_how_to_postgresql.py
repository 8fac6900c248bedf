"""docs/how-to/postgresql.md, followed: its role has the least rights, and they are enough for the node."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from cspine.node.durable import Durable
from cspine.node.ledger import Ledger
from cspine.node.settings import NodeSettings, load_settings
from cspine.node.tables import META
from node_work_factory import Collects, add_study, make_work

DOCUMENT = (Path(__file__).parents[1] / "docs" / "how-to" / "postgresql.md").read_text(encoding="utf-8")
# The suite's own server has a role of the document's name already.
ROLE = "hospital"


def block(kind: str) -> str:
    found = re.search(rf"^```{kind}\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    assert found, kind
    return found[1]


@pytest.fixture
def database(postgres_server: str) -> Iterator[str]:
    """Address of the database that the document's commands make, for the role that they make."""
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as server:
        for command in block("sql").replace("cspine", ROLE).split(";\n"):
            if command.strip():
                server.execute(command)
        yield postgres_server.replace("cspine@", f"{ROLE}:change-me@") + f"/{ROLE}"
        server.execute(f"DROP DATABASE {ROLE} WITH (FORCE)")
        server.execute(f"DROP ROLE {ROLE}")


def test_the_role_of_the_document_is_enough_and_can_do_nothing_else(tmp_path: Path, database: str) -> None:
    pacs = Collects()
    work = replace(make_work(tmp_path, {"pacs": pacs}, clock=time.time), ledger=Ledger(database))  # type: ignore[arg-type]
    add_study(work, "study-1")
    runner = Durable(work, database, poll_seconds=0.05)
    runner.launch()
    try:
        end = time.monotonic() + 60
        while not work.ledger.jobs("done"):
            assert time.monotonic() < end
            work.tick(runner)
            time.sleep(0.05)
    finally:
        runner.close()
        work.ledger.close()
    assert pacs.got == ["study-1"]
    with psycopg.connect(database, autocommit=True) as role:
        tables = {str(name) for (name,) in role.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
        assert tables == set(META.tables) == set(re.findall(r"`(cspine_\w+)`", DOCUMENT))
        for command in ("CREATE DATABASE other", "CREATE ROLE other", "SELECT * FROM pg_authid"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                role.execute(command)


def test_the_setting_is_valid(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(block("toml"), encoding="utf-8")
    settings: NodeSettings = load_settings(tmp_path / "node.toml")
    assert settings.database is not None and "sslmode=verify-full" in settings.database.get_secret_value()
