"""Figures of the work: how many studies and results are where, what was counted, and what the input was like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from cspine.node.database import Database
from cspine.node.tables import DELIVERIES, JOBS, TALLY

Tally = tuple[Literal["step", "failure"], str, float]


@dataclass(frozen=True, slots=True)
class Figures:
    """Reads what is counted, from the same tables as the ledger."""

    database: Database

    def studies(self) -> dict[tuple[str, str], int]:
        """Studies by state and reason."""
        return self._count(JOBS.c.state, JOBS.c.reason)

    def results(self) -> dict[tuple[str, str, str], int]:
        """Results by destination, state and reason."""
        return self._count(DELIVERIES.c.destination, DELIVERIES.c.state, DELIVERIES.c.reason)

    def oldest(self) -> float | None:
        """When the oldest study that has not ended was received, seconds since the epoch; None when there is none."""
        query = sa.select(sa.func.min(JOBS.c.received).label("oldest")).where(JOBS.c.ended.is_(None))
        found: float | None = self.database.rows(query)[0]["oldest"]
        return found

    def tally(self, kind: Literal["step", "failure"]) -> dict[str, tuple[int, float]]:
        """Tries counted and their seconds together, by step or by reason of failure, since the node began."""
        query = sa.select(TALLY.c.label, TALLY.c.count, TALLY.c.total).where(TALLY.c.kind == kind)
        return {str(row["label"]): (int(row["count"]), float(row["total"])) for row in self.database.rows(query)}

    def facts(self, count: int, *, latest: bool) -> dict[str, Mapping[str, Any] | None]:
        """For input drift: facts of the studies judged first or last, by key, beginning at that end."""
        order = JOBS.c.judged.desc() if latest else JOBS.c.judged
        query = sa.select(JOBS.c.key, JOBS.c.facts).where(JOBS.c.judged.is_not(None)).order_by(order).limit(count)
        return {str(row["key"]): row["facts"] for row in self.database.rows(query)}

    def _count(self, *columns: sa.Column[str]) -> dict[Any, int]:
        query = sa.select(*columns, sa.func.count().label("number of rows")).group_by(*columns)
        return {tuple(row.values())[:-1]: int(row["number of rows"]) for row in self.database.rows(query)}


def count_up(database: Database, connection: sa.Connection, tally: Iterable[Tally]) -> None:
    """Count steps or failures in a transaction under way: kind, label and seconds."""
    for kind, label, seconds in tally:
        entry = database.insert(TALLY).values(kind=kind, label=label[:64], count=1, total=seconds)
        more = {"count": TALLY.c.count + 1, "total": TALLY.c.total + seconds}
        connection.execute(entry.on_conflict_do_update(index_elements=["kind", "label"], set_=more))
