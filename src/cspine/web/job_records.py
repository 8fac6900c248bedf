"""What the database knows of jobs: each change is one transaction that asks first whether it still holds.

So a double click, a repeated step and a cancel that crosses an end each find that somebody was faster, and stop.

The order of the queue is fair among people (start-time fair queueing, P. Goyal, H. M. Vin and H. Cheng, IEEE/ACM
Trans. Networking 5(5), 1997, with every study of the same length): a job's place is one after the last of the same
person, but never before the newest that has begun. Twenty studies of one person take places 1 to 20; the first of
another takes the place of the one that runs, and is next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cspine.errors import UsageError
from cspine.web.database import Sessions
from cspine.web.models import Job, JobState, Study, StudyState, now
from cspine.web.strings import t

ACTIVE = (JobState.QUEUED, JobState.RUNNING)
# A study in these states may be queued; one that was judged may be judged again.
RUNNABLE = (StudyState.READY, StudyState.DONE, StudyState.REFUSED, StudyState.FAILED, StudyState.CANCELLED)
# How many judgements of late say how long the next one takes.
OF_LATE = 10
# Jobs in a person's list.
MOST_LISTED = 200
_FIRST_PLACE = 1.0


@dataclass(frozen=True, slots=True)
class Records:
    """Jobs in the database.

    Attributes:
        sessions: makes sessions.
    """

    sessions: Sessions

    def submit(self, study_id: str, user_id: str, *, most: int) -> tuple[Job, bool]:
        """Queue a study, and whether that was news: one that is queued already keeps its job.

        Raises:
            UsageError: there is no such study, or this person has ``most`` waiting.
        """
        with self.sessions.begin() as session:
            waiting = session.scalar(
                sa.select(sa.func.count()).where(Job.owner_id == user_id, Job.state == JobState.QUEUED)
            )
            if (waiting or 0) >= most:
                raise UsageError(t("jobs.too-many", count=most), fix=t("jobs.too-many-fix"))
            taken = changed(
                session,
                sa.update(Study).where(Study.id == study_id, Study.state.in_(RUNNABLE)).values(state=StudyState.QUEUED),
            )
            if not taken:
                return self._active(session, study_id), False
            job = Job(study_id=study_id, owner_id=user_id, place=_place(session, user_id))
            session.add(job)
            session.flush()
        return job, True

    def _active(self, session: Session, study_id: str) -> Job:
        job = session.scalar(sa.select(Job).where(Job.study_id == study_id, Job.state.in_(ACTIVE)))
        if job is None:
            raise UsageError("expected a study that can be judged, got none, or one that was deleted")
        return job

    def begin(self, job_id: str, tries: int) -> tuple[Job, Study] | None:
        """Take a try up; None when it is over, or was cancelled."""
        with self.sessions.begin() as session:
            begun = changed(
                session,
                _this_try(job_id, tries).values(state=JobState.RUNNING, started=sa.func.coalesce(Job.started, now())),
            )
            if not begun:
                return None
            job = session.get_one(Job, job_id)
            study = session.get_one(Study, job.study_id)
            if study.state not in (StudyState.QUEUED, StudyState.RUNNING):
                return None
            study.state = StudyState.RUNNING
        return job, study

    def advance(self, job_id: str, tries: int, **values: Any) -> bool:
        """Write down how far a try is; false when it is over or was cancelled."""
        with self.sessions.begin() as session:
            return changed(session, _this_try(job_id, tries).values(**values))

    def still_runs(self, job_id: str, tries: int) -> bool:
        """Whether a try has not been cancelled."""
        query = sa.select(Job.id).where(Job.id == job_id, Job.tries == tries, Job.state == JobState.RUNNING)
        with self.sessions() as session:
            return session.scalar(query) is not None

    def again(self, job_id: str, tries: int, message: str) -> bool:
        """End a try that failed and put the job back where it was in the queue."""
        with self.sessions.begin() as session:
            moved = changed(
                session,
                _this_try(job_id, tries).values(
                    state=JobState.QUEUED, tries=tries + 1, progress=0.0, step="", message=message
                ),
            )
            if moved:
                self._study(session, job_id, {"state": StudyState.QUEUED})
            return moved

    def end(self, job_id: str, tries: int, job: dict[str, Any], study: dict[str, Any]) -> bool:
        """End a job; false when it was over.

        Args:
            job_id: which.
            tries: the try that ended it.
            job: columns that follow from it.
            study: columns that follow for the study.
        """
        with self.sessions.begin() as session:
            ended = changed(session, _this_try(job_id, tries).values(ended=now(), **job))
            if ended:
                self._study(session, job_id, study)
            return ended

    def cancel(self, job_id: str) -> Job | None:
        """Cancel a job that waits or runs; None when it is over. A study that was judged before is as it was."""
        with self.sessions.begin() as session:
            stopped = changed(
                session,
                sa.update(Job)
                .where(Job.id == job_id, Job.state.in_(ACTIVE))
                .values(state=JobState.CANCELLED, ended=now(), step="", message=""),
            )
            if not stopped:
                return None
            job = session.get_one(Job, job_id)
            study = session.get_one(Study, job.study_id)
            if study.state in (StudyState.QUEUED, StudyState.RUNNING):
                study.state = StudyState.DONE if study.result else StudyState.CANCELLED
        return job

    def _study(self, session: Session, job_id: str, values: dict[str, Any]) -> None:
        owner = sa.select(Job.study_id).where(Job.id == job_id).scalar_subquery()
        alive = Study.state != StudyState.DELETED
        session.execute(sa.update(Study).where(Study.id == owner, alive).values(**values))

    def active(self) -> Sequence[Job]:
        """All jobs that wait or run, in the order of the queue."""
        query = sa.select(Job).where(Job.state.in_(ACTIVE)).order_by(Job.place, Job.created)
        with self.sessions() as session:
            return session.scalars(query).all()

    def of(self, user_id: str, since: datetime) -> Sequence[tuple[Job, Study]]:
        """The jobs of a person that wait or run, or ended since then, the newest last; ``MOST_LISTED`` at most."""
        query = (
            sa.select(Job, Study)
            .join(Study, Study.id == Job.study_id)
            .where(Job.owner_id == user_id, sa.or_(Job.state.in_(ACTIVE), Job.ended >= since))
            .order_by(sa.case((Job.state.in_(ACTIVE), 0), else_=1), Job.created.desc())
            .limit(MOST_LISTED)
        )
        with self.sessions() as session:
            found = [(row[0], row[1]) for row in session.execute(query)]
        return sorted(found, key=lambda pair: pair[0].created)

    def ahead(self) -> dict[str, int]:
        """How many jobs come before each of those that wait or run, by their ids."""
        running = sa.case((Job.state == JobState.RUNNING, 0), else_=1)
        query = sa.select(Job.id).where(Job.state.in_(ACTIVE)).order_by(running, Job.place, Job.created)
        with self.sessions() as session:
            return {job_id: number for number, job_id in enumerate(session.scalars(query))}

    def usual_seconds(self, kind: str) -> float | None:
        """How long judging took of late, the median; None when nothing has been judged."""
        query = (
            sa.select(Job.started, Job.ended)
            .join(Study, Study.id == Job.study_id)
            .where(Job.state == JobState.DONE, Study.kind == kind, Job.ended >= now() - timedelta(days=30))
            .order_by(Job.ended.desc())
            .limit(OF_LATE)
        )
        with self.sessions() as session:
            spans = sorted((row[1] - row[0]).total_seconds() for row in session.execute(query) if row[0] and row[1])
        return spans[len(spans) // 2] if spans else None


def _place(session: Session, user_id: str) -> float:
    """See the head of this module."""
    begun = session.scalar(sa.select(sa.func.max(Job.place)).where(Job.started.is_not(None)))
    last = session.scalar(sa.select(sa.func.max(Job.place)).where(Job.owner_id == user_id))
    return max(begun or _FIRST_PLACE, _FIRST_PLACE if last is None else last + 1)


def _this_try(job_id: str, tries: int) -> sa.Update:
    return sa.update(Job).where(Job.id == job_id, Job.tries == tries, Job.state.in_(ACTIVE))


def changed(session: Session, statement: sa.Update) -> bool:
    """Whether an update found what it was to change."""
    result = cast(sa.CursorResult[Any], session.execute(statement.execution_options(synchronize_session=False)))
    return bool(result.rowcount)
