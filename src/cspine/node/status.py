"""How a node is doing: what waits and since when, what failed and why, where time goes, whether input drifts.

Everything is read from the ledger and the disk, so it can be asked of a node that runs, that stands, and of several
that share a PostgreSQL database.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cspine.node import drift
from cspine.node.ledger import ENDED, Ledger
from cspine.node.shelf import Shelved, shelved


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepTime(_Model):
    """How often a step was done since the node began, and its mean seconds."""

    step: str
    times: int
    seconds: float


class DestinationStatus(_Model):
    """Results for one destination: delivered, on their way, on the shelf."""

    name: str
    delivered: int
    waiting: int
    shelved: int


class ShelfItem(_Model):
    """See ``shelf.Shelved``."""

    study: str
    what: str
    reason: str
    tries: int


class DriftItem(_Model):
    """See ``drift.Drift``."""

    feature: str
    psi: float
    chance: float
    state: Literal["same", "notice", "alarm"]


class NodeStatus(_Model):
    """All of it.

    Attributes:
        studies: by state of the ledger.
        queued: studies that have not ended.
        oldest_seconds: age of the oldest of them; 0 when there is none.
        failing: studies and results that are in trouble now, by reason of the last failure.
        failures: failed tries since the node began, by reason.
        disk_free_bytes: of the disk that holds the data folder.
    """

    studies: dict[str, int]
    queued: int
    oldest_seconds: float
    failing: dict[str, int]
    failures: dict[str, int]
    steps: tuple[StepTime, ...]
    destinations: tuple[DestinationStatus, ...]
    shelf: tuple[ShelfItem, ...]
    drift: tuple[DriftItem, ...]
    disk_free_bytes: int


def gather(ledger: Ledger, data: Path, now: float) -> NodeStatus:
    """The status at a moment, seconds since the epoch."""
    studies: Counter[str] = Counter()
    failing: Counter[str] = Counter()
    for (state, reason), count in ledger.counts().items():
        studies[state] += count
        if reason and state in ("waiting", "busy", "shelved"):
            failing[reason] += count
    for (_, state, reason), count in ledger.delivery_counts().items():
        if reason and state != "delivered":
            failing[reason] += count
    oldest = ledger.oldest()
    return NodeStatus(
        studies=dict(sorted(studies.items())),
        queued=sum(count for state, count in studies.items() if state not in ENDED),
        oldest_seconds=0.0 if oldest is None else max(0.0, now - oldest),
        failing=dict(sorted(failing.items())),
        failures={reason: count for reason, (count, _) in sorted(ledger.tally("failure").items())},
        steps=tuple(
            StepTime(step=step, times=count, seconds=round(total / count, 3))
            for step, (count, total) in sorted(ledger.tally("step").items())
        ),
        destinations=_destinations(ledger),
        shelf=tuple(_item(one) for one in shelved(ledger)),
        drift=tuple(_drift(one) for one in drift_of(ledger)),
        disk_free_bytes=shutil.disk_usage(data).free,
    )


def drift_of(ledger: Ledger) -> list[drift.Drift]:
    """Drift of the last studies against the first ones; the windows never overlap."""
    reference = ledger.earliest(drift.REFERENCE)
    seen = {job.key for job in reference}
    late = [job for job in ledger.latest(drift.WINDOW) if job.key not in seen]
    return drift.measure([job.facts for job in late if job.facts], [job.facts for job in reference if job.facts])


def _destinations(ledger: Ledger) -> tuple[DestinationStatus, ...]:
    table: dict[str, Counter[str]] = {}
    for (name, state, _), count in ledger.delivery_counts().items():
        table.setdefault(name, Counter())["waiting" if state == "busy" else state] += count
    return tuple(
        DestinationStatus(name=name, delivered=row["delivered"], waiting=row["waiting"], shelved=row["shelved"])
        for name, row in sorted(table.items())
    )


def _item(one: Shelved) -> ShelfItem:
    return ShelfItem(study=one.key, what=one.what, reason=one.reason, tries=one.tries)


def _drift(one: drift.Drift) -> DriftItem:
    return DriftItem(feature=one.feature, psi=round(one.psi, 4), chance=round(one.chance, 4), state=one.state)
