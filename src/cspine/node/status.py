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
from cspine.node.figures import Figures
from cspine.node.ledger import ENDED, Ledger
from cspine.node.shelf import Shelved, shelved
from cspine.node.supervise import finished
from cspine.node.work import result_folder


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


class StudyLink(_Model):
    """Where a viewer shows a study that was judged. The link names the study; ``study`` is its stand-in."""

    study: str
    state: str
    positive: bool | None
    link: str


class NodeStatus(_Model):
    """All of it.

    Attributes:
        studies: by state of the ledger.
        queued: studies that have not ended.
        oldest_seconds: age of the oldest of them; 0 when there is none.
        failing: studies and results that are in trouble now, by reason of the last failure.
        failures: failed tries since the node began, by reason.
        disk_free_bytes: of the disk that holds the data folder.
        links: to a viewer; None when they were not asked for.
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
    links: tuple[StudyLink, ...] | None = None


def gather(ledger: Ledger, data: Path, now: float) -> NodeStatus:
    """The status at a moment, seconds since the epoch."""
    figures = Figures(ledger.database)
    studies: Counter[str] = Counter()
    failing: Counter[str] = Counter()
    for (state, reason), count in figures.studies().items():
        studies[state] += count
        if reason and state in ("waiting", "busy", "shelved"):
            failing[reason] += count
    for (_, state, reason), count in figures.results().items():
        if reason and state != "delivered":
            failing[reason] += count
    oldest = figures.oldest()
    return NodeStatus(
        studies=dict(sorted(studies.items())),
        queued=sum(count for state, count in studies.items() if state not in ENDED),
        oldest_seconds=0.0 if oldest is None else max(0.0, now - oldest),
        failing=dict(sorted(failing.items())),
        failures={reason: count for reason, (count, _) in sorted(figures.tally("failure").items())},
        steps=tuple(
            StepTime(step=step, times=count, seconds=round(total / count, 3))
            for step, (count, total) in sorted(figures.tally("step").items())
        ),
        destinations=_destinations(figures),
        shelf=tuple(_item(one) for one in shelved(ledger)),
        drift=tuple(_drift(one) for one in drift_of(ledger)),
        disk_free_bytes=shutil.disk_usage(data).free,
    )


def links_of(ledger: Ledger, data: Path, most: int = 20) -> tuple[StudyLink, ...]:
    """Links to the studies judged last, newest first, as far as results with a link are still in the data folder."""
    found = ((job, finished(result_folder(data, job))) for job in ledger.latest(most))
    return tuple(
        StudyLink(study=job.key, state=job.state, positive=job.positive, link=outcome.link)
        for job, outcome in found
        if outcome is not None and outcome.link is not None
    )


def drift_of(ledger: Ledger) -> list[drift.Drift]:
    """Drift of the last studies against the first ones; the windows never overlap."""
    figures = Figures(ledger.database)
    reference = figures.facts(drift.REFERENCE, latest=False)
    late = {key: facts for key, facts in figures.facts(drift.WINDOW, latest=True).items() if key not in reference}
    return drift.measure([facts for facts in late.values() if facts], [facts for facts in reference.values() if facts])


def _destinations(figures: Figures) -> tuple[DestinationStatus, ...]:
    table: dict[str, Counter[str]] = {}
    for (name, state, _), count in figures.results().items():
        table.setdefault(name, Counter())["waiting" if state == "busy" else state] += count
    return tuple(
        DestinationStatus(name=name, delivered=row["delivered"], waiting=row["waiting"], shelved=row["shelved"])
        for name, row in sorted(table.items())
    )


def _item(one: Shelved) -> ShelfItem:
    return ShelfItem(study=one.key, what=one.what, reason=one.reason, tries=one.tries)


def _drift(one: drift.Drift) -> DriftItem:
    return DriftItem(feature=one.feature, psi=round(one.psi, 4), chance=round(one.chance, 4), state=one.state)
