"""What the dashboard says, gathered from the tables: agreement with readers, drift, and how fast the work goes.

Figures are of the studies that the person who asks may read; an administrator gets those of all studies. They are sums
over studies, and name nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from cspine.anatomy import LEVELS
from cspine.evaluation.reader_agreement import Agreement, agreement
from cspine.node.drift import REFERENCE, WINDOW, Drift, measure
from cspine.web.answer_log import SIGN
from cspine.web.found import PATIENT, Found, found_in
from cspine.web.models import Answer, Job, JobState, Study, StudyState, now
from cspine.web.store import Store

# Where ``Study.facts`` keeps what drift is measured from (``cspine.node.drift.StudyFacts``).
DRIFT_KEY = "drift"
_ENDED = (JobState.DONE, JobState.REFUSED, JobState.FAILED)

Chosen = sa.Select[Study]


@dataclass(frozen=True, slots=True)
class Agreements:
    """Findings against readers.

    Attributes:
        patient: one statement a study.
        levels: all levels together.
        by_level: each level by itself.
        unsure: answers "cannot be said", and answers to what was not judged: not counted anywhere.
    """

    patient: Agreement
    levels: Agreement
    by_level: Mapping[str, Agreement]
    unsure: int


@dataclass(frozen=True, slots=True)
class Day:
    """One day of this server's zone.

    Attributes:
        came: studies that came in.
        done, ended_badly: jobs that ended.
        waited, worked: median seconds in the queue and at work of jobs that were done; None without any.
    """

    day: date
    came: int = 0
    done: int = 0
    ended_badly: int = 0
    waited: float | None = None
    worked: float | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    """How long jobs of a period took, seconds; None without any.

    Attributes:
        jobs: that were done.
        waited, waited_most: median and 95th percentile in the queue.
        worked, worked_most: the same at work.
    """

    jobs: int = 0
    waited: float | None = None
    waited_most: float | None = None
    worked: float | None = None
    worked_most: float | None = None


def agreements(session: Session, chosen: Chosen, store: Store) -> Agreements:
    """Compare the newest answer to each level with what was found there.

    Args:
        session: of the database.
        chosen: the studies.
        store: holds the results.
    """
    rows: dict[str, list[tuple[bool, bool, str]]] = defaultdict(list)
    unsure = 0
    for study, answers in _answered(session, chosen):
        found = _found(study, store)
        for level, read in answers.items():
            stated = found.get(level, Found()).fracture
            if read is None or stated is None:
                unsure += 1
            else:
                rows[level].append((stated, read, study.id))
    levels = [name for name in (level.name for level in LEVELS) if rows[name]]
    by_level = {name: _compare(rows[name]) for name in levels}
    together = _compare([row for name in levels for row in rows[name]])
    return Agreements(_compare(rows[PATIENT]), together, by_level, unsure)


def _found(study: Study, store: Store) -> Mapping[str, Found]:
    found = found_in(store.results(study))
    # Without files the row still knows what was said of the patient.
    return found or {PATIENT: Found(study.positive, study.probability)}


def _compare(rows: Sequence[tuple[bool, bool, str]]) -> Agreement:
    return agreement([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def _answered(session: Session, chosen: Chosen) -> Iterable[tuple[Study, Mapping[str, bool | None]]]:
    """Studies with answers, and what the newest one says of each level."""
    studies = {one.id: one for one in session.scalars(chosen.where(Study.answers.any()))}
    ids = chosen.with_only_columns(Study.id)
    query = sa.select(Answer.study_id, Answer.level, Answer.fracture)
    query = query.where(Answer.study_id.in_(ids), Answer.verdict != SIGN).order_by(Answer.created, Answer.id)
    newest: dict[str, dict[str, bool | None]] = defaultdict(dict)
    for study_id, level, fracture in session.execute(query):
        newest[study_id][level] = fracture
    return [(studies[name], answers) for name, answers in newest.items() if name in studies]


def drifts(session: Session, chosen: Chosen) -> list[Drift]:
    """Are the studies of late like the first ones? Empty while there are too few for a statement.

    The two windows never overlap: while there are few studies, the newer half is measured against the older one.
    """
    judged = chosen.where(Study.state == StudyState.DONE)
    count = session.scalar(sa.select(sa.func.count()).select_from(judged.subquery())) or 0
    new = min(WINDOW, count // 2)
    facts = judged.with_only_columns(Study.facts)
    late = session.scalars(facts.order_by(Study.created.desc(), Study.id.desc()).limit(new))
    first = session.scalars(facts.order_by(Study.created, Study.id).limit(min(REFERENCE, count - new)))
    return measure(_facts(late), _facts(first))


def _facts(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    kept = (row.get(DRIFT_KEY) for row in rows)
    return [facts for facts in kept if isinstance(facts, Mapping)]


def days(session: Session, chosen: Chosen, count: int) -> list[Day]:
    """What was done on each of the last ``count`` days, the oldest first."""
    last = now().astimezone().date()
    shown = [last - timedelta(days=back) for back in range(count - 1, -1, -1)]
    start = now() - timedelta(days=count + 1)
    came: dict[date, int] = defaultdict(int)
    for (moment,) in session.execute(chosen.where(Study.created >= start).with_only_columns(Study.created)):
        came[moment.astimezone().date()] += 1
    ended: dict[date, list[Job]] = defaultdict(list)
    for job in _jobs(session, chosen, count + 1):
        if job.ended is not None:
            ended[job.ended.astimezone().date()].append(job)
    return [_day(one, came[one], ended[one]) for one in shown]


def _day(day: date, came: int, jobs: Sequence[Job]) -> Day:
    done = [job for job in jobs if job.state == JobState.DONE]
    fast = speed_of(done)
    return Day(day, came, len(done), len(jobs) - len(done), fast.waited, fast.worked)


def speed(session: Session, chosen: Chosen, count: int) -> Speed:
    """How long the jobs took that were done during the last ``count`` days."""
    return speed_of([job for job in _jobs(session, chosen, count) if job.state == JobState.DONE])


def speed_of(jobs: Iterable[Job]) -> Speed:
    """Medians and 95th percentiles of jobs."""
    times = [(job.created, job.started, job.ended) for job in jobs]
    waited = [(started - created).total_seconds() for created, started, _ in times if started is not None]
    worked = [(ended - started).total_seconds() for _, started, ended in times if started and ended]
    if not waited:
        return Speed()
    middle, most = np.percentile(waited, [50, 95])
    if not worked:
        return Speed(len(waited), float(middle), float(most))
    usual, longest = np.percentile(worked, [50, 95])
    return Speed(len(waited), float(middle), float(most), float(usual), float(longest))


def _jobs(session: Session, chosen: Chosen, count: int) -> list[Job]:
    ids = chosen.with_only_columns(Study.id)
    since = now() - timedelta(days=count)
    query = sa.select(Job).where(Job.study_id.in_(ids), Job.ended >= since, Job.state.in_(_ENDED))
    return list(session.scalars(query.order_by(Job.ended)))
