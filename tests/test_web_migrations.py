"""The tables: migrations make exactly what the models say, on SQLite and on PostgreSQL, and lose nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from cspine.errors import CspineError, UsageError
from cspine.web.database import MIGRATIONS, address, engine, upgrade
from cspine.web.models import Base, LoginSession, Study, User


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'web.db'}"
    return str(request.getfixturevalue("postgres"))


def test_migrations_make_what_the_models_say(url: str) -> None:
    upgrade(url)
    upgrade(url)  # nothing to do is nothing wrong
    made = engine(url)
    with made.connect() as connection:
        drift = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata)
    made.dispose()
    assert drift == []


def test_there_is_one_way_through_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert len(ScriptDirectory.from_config(config).get_heads()) == 1


def test_moments_keep_their_place_in_time_and_studies_go_with_their_owner(url: str) -> None:
    upgrade(url)
    made = engine(url)
    moment = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    with sa.orm.Session(made) as session:
        ada = User(email="ada@example.org", fs_uniquifier="x", create_datetime=moment)
        session.add(ada)
        session.flush()
        session.add(Study(owner_id=ada.id, facts={"slices": 300}))
        session.add(LoginSession(user_id=ada.id, secret="s"))
        session.commit()
        session.expire_all()
        assert ada.create_datetime == moment and ada.create_datetime.tzinfo == UTC
        assert session.scalars(sa.select(Study.facts)).one() == {"slices": 300}
        session.execute(sa.delete(User))
        session.commit()
        assert session.scalars(sa.select(Study)).all() == session.scalars(sa.select(LoginSession)).all() == []
        without_zone = datetime(2026, 1, 1)  # noqa: DTZ001
        session.add(User(email="b@example.org", fs_uniquifier="y", create_datetime=without_zone))
        with pytest.raises(sa.exc.StatementError, match="zone"):
            session.flush()
    made.dispose()


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'web.db'}"
    upgrade(url)
    made = engine(url)
    with made.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    made.dispose()
    with pytest.raises(UsageError, match="later version"):
        upgrade(url)


def test_a_database_that_cannot_be_reached_says_so_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(CspineError, match="cannot be opened") as caught:
        upgrade("postgresql://me:hunter2@127.0.0.1:1/none")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError, match="SQLite or PostgreSQL"):
        address("mysql://me@host/x")
