"""Who is still there: heartbeats in the shared database, judged by the looker's own clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cspine.node.database import Database
from cspine.node.workers import LOOKS, Heartbeats


@dataclass
class Monotonic:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield made
    made.close()


def hearts(database: Database, name: str, clock: Monotonic | None = None) -> Heartbeats:
    return Heartbeats(database, name, lost_seconds=120.0, clock=clock or Monotonic())


def test_a_machine_is_dead_when_it_was_silent_in_several_looks_in_a_row(database: Database) -> None:
    here, there = hearts(database, "here"), hearts(database, "there")
    there.beat()
    assert [here.lost({"there"}) for _ in range(LOOKS)] == [frozenset()] * LOOKS
    assert here.lost({"there"}) == {"there"}
    there.beat()
    assert here.lost({"there"}) == frozenset(), "it is back"


def test_a_machine_that_beats_lives_however_seldom_others_look(database: Database) -> None:
    here, there = hearts(database, "here"), hearts(database, "there")
    for _ in range(3 * LOOKS):
        there.beat()
        assert not here.lost({"there"})


def test_one_that_never_beat_is_given_the_same_time(database: Database) -> None:
    here = hearts(database, "here")
    assert [bool(here.lost({"unknown"})) for _ in range(LOOKS + 1)] == [False] * LOOKS + [True]


def test_nobody_takes_himself_for_dead(database: Database) -> None:
    here = hearts(database, "here")
    assert not any(here.lost({"here"}) for _ in range(2 * LOOKS))


def test_a_database_that_was_away_makes_nobody_seem_dead(database: Database) -> None:
    """Only looks count, not the time between them: during the outage there were none."""
    clock = Monotonic()
    here, there = hearts(database, "here", clock), hearts(database, "there")
    there.beat()
    assert here.due() and not here.lost({"there"})
    clock.now += 3600
    assert here.due() and not here.lost({"there"})
    there.beat()
    assert not here.lost({"there"})


def test_it_is_time_to_look_four_times_in_the_time_after_which_one_is_dead(database: Database) -> None:
    clock = Monotonic()
    here, looks = hearts(database, "here", clock), 0
    while clock.now < 120.0:
        looks += here.due()
        clock.now += 1.0
    assert looks == LOOKS
