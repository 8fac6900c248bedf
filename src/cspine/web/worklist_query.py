"""Which studies a list shows, and in which order: the most urgent that nobody has read first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cspine.web.access import visible_studies
from cspine.web.found import PATIENT
from cspine.web.models import Answer, Group, Job, JobState, Membership, Study, StudyShare, StudyState, User, now

Show = Literal["open", "read", "problems", "all"]
Order = Literal["priority", "newest"]
SHOWS: tuple[Show, ...] = get_args(Show)
ORDERS: tuple[Order, ...] = get_args(Order)
DAYS = (1, 7, 30, 365)
PAGE = 25
MINE = "me"
LONGEST_SEARCH = 80

IN_WORK = (StudyState.READY, StudyState.QUEUED, StudyState.RUNNING)
TROUBLE = (StudyState.REFUSED, StudyState.FAILED, StudyState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Filters:
    """What the person wants to see.

    Attributes:
        show: ``open``: judged and not read, or still in work; ``read``: the patient was answered; ``problems``.
        days: that came in during as many days; None for all.
        owner: id of a person, ``me``, or empty.
        group: id of a group it is shared with, or empty.
        order: ``priority``: suspected fractures first, the most probable before the others; or the newest first.
        page: from 1.
        search: part of title or patient. Stands in no address and no log: it may be a patient's name.
    """

    show: Show = "open"
    days: int | None = None
    owner: str = ""
    group: str = ""
    order: Order = "priority"
    page: int = 1
    search: str = ""

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Filters:
        """From the values of a form or an address; what makes no sense counts as not said."""
        show, order = values.get("show", ""), values.get("order", "")
        days, page = values.get("days", ""), values.get("page", "")
        return cls(
            show=next((one for one in SHOWS if one == show), "open"),
            days=int(days) if days in {str(one) for one in DAYS} else None,
            owner=values.get("owner", "")[:36],
            group=values.get("group", "")[:36],
            order=next((one for one in ORDERS if one == order), "priority"),
            page=int(page) if page.isdecimal() and 0 < int(page[:6]) < 100_000 else 1,
            search=" ".join(values.get("search", "").split())[:LONGEST_SEARCH],
        )

    def query(self, **changes: Any) -> dict[str, str]:
        """The address of these filters, some of them changed; what is as usual is left out, and so is the search."""
        wanted, usual = replace(self, **changes), Filters()
        names = ("show", "days", "owner", "group", "order", "page")
        return {name: str(getattr(wanted, name)) for name in names if getattr(wanted, name) != getattr(usual, name)}

    @property
    def narrowed(self) -> bool:
        """Whether more than the tab decides what is shown."""
        return bool(self.days or self.owner or self.group or self.search)


@dataclass(frozen=True, slots=True)
class Row:
    """One line.

    Attributes:
        owner: name, or empty when it is the person's own.
        answered: the patient was answered.
        job: the newest one, while the study is in work.
    """

    study: Study
    owner: str
    answered: bool
    job: Job | None

    @property
    def unread(self) -> bool:
        """Judged, and neither opened nor answered yet."""
        return self.study.state == StudyState.DONE and self.study.read_at is None and not self.answered

    @property
    def in_work(self) -> bool:
        """Waits, or is judged."""
        return self.study.state in (StudyState.QUEUED, StudyState.RUNNING)


@dataclass(frozen=True, slots=True)
class Listing:
    """One page.

    Attributes:
        total: studies on all pages.
        counts: studies by tab, whatever the other filters are.
        busy: studies that wait or are judged.
    """

    rows: tuple[Row, ...]
    total: int
    counts: Mapping[str, int]
    busy: int
    pages: int


def answered() -> sa.ColumnElement[bool]:
    """The patient of a study was answered."""
    return sa.exists().where(Answer.study_id == Study.id, Answer.level == PATIENT)


def _tab(show: Show) -> sa.ColumnElement[bool]:
    done = Study.state == StudyState.DONE
    if show == "open":
        return sa.or_(Study.state.in_(IN_WORK), sa.and_(done, ~answered()))
    if show == "read":
        return sa.and_(done, answered())
    return Study.state.in_(TROUBLE) if show == "problems" else sa.true()


def select(filters: Filters, person: User) -> sa.Select[Study]:
    """The studies that pass, in no order."""
    query = visible_studies().where(_tab(filters.show))
    if filters.days:
        query = query.where(Study.created >= since(filters.days))
    if filters.owner:
        query = query.where(Study.owner_id == (person.id if filters.owner == MINE else filters.owner))
    if filters.group:
        shared = sa.exists().where(StudyShare.study_id == Study.id, StudyShare.group_id == filters.group)
        query = query.where(shared)
    for word in filters.search.split():
        found = (column.icontains(word, autoescape=True) for column in (Study.title, Study.patient_label))
        query = query.where(sa.or_(*found))
    return query


def since(days: int) -> datetime:
    """The beginning of a day of this server, so many days back; 1 is today."""
    midnight = now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=days - 1)


def ordered(query: sa.Select[Study], order: Order) -> sa.Select[Study]:
    """In the order of the list; the newest first among equals."""
    newest = (Study.created.desc(), Study.id)
    if order == "newest":
        return query.order_by(*newest)
    done = Study.state == StudyState.DONE
    urgency = sa.case(
        (sa.and_(done, Study.positive.is_(True)), 0),
        (sa.and_(done, Study.probability.is_(None)), 1),  # nothing was excluded there
        (done, 2),
        (Study.state == StudyState.RUNNING, 3),
        (Study.state == StudyState.QUEUED, 4),
        (Study.state == StudyState.READY, 5),
        else_=6,
    )
    return query.order_by(urgency, sa.func.coalesce(Study.probability, -1.0).desc(), *newest)


def listing(session: Session, filters: Filters, person: User) -> Listing:
    """One page of the list."""
    query = select(filters, person)
    total = session.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0
    pages = max(1, -(-total // PAGE))
    page = min(filters.page, pages)
    chosen = ordered(query, filters.order).limit(PAGE).offset((page - 1) * PAGE)
    studies = list(session.scalars(chosen))
    counts = _counts(session)
    return Listing(tuple(_rows(session, studies, person)), total, counts, counts["busy"], pages)


def _counts(session: Session) -> dict[str, int]:
    """Studies by tab, and how many are in work."""
    wanted = {show: _tab(show) for show in SHOWS} | {"busy": Study.state.in_((StudyState.QUEUED, StudyState.RUNNING))}
    columns = [sa.func.sum(sa.case((rule, 1), else_=0)).label(name) for name, rule in wanted.items()]
    row = session.execute(visible_studies().with_only_columns(*columns)).one()
    return {name: int(value or 0) for name, value in zip(wanted, row, strict=True)}


def _rows(session: Session, studies: Sequence[Study], person: User) -> Iterable[Row]:
    ids = [study.id for study in studies]
    seen = set(session.scalars(sa.select(Answer.study_id).where(Answer.study_id.in_(ids), Answer.level == PATIENT)))
    jobs = {job.study_id: job for job in _jobs(session, ids)}
    others = {study.owner_id for study in studies} - {person.id}
    names = {one.id: one.label for one in session.scalars(sa.select(User).where(User.id.in_(others)))}
    for study in studies:
        yield Row(study, names.get(study.owner_id, ""), study.id in seen, jobs.get(study.id))


def _jobs(session: Session, studies: Sequence[str]) -> Iterable[Job]:
    """Jobs of studies, the newest last; those that wait or run, and those that ended badly."""
    wanted = [state for state in JobState if state is not JobState.DONE]
    query = sa.select(Job).where(Job.study_id.in_(studies), Job.state.in_(wanted))
    return session.scalars(query.order_by(Job.created))


def owners(session: Session, person: User) -> list[User]:
    """Other people whose studies the person may read."""
    ids = visible_studies().with_only_columns(Study.owner_id).where(Study.owner_id != person.id)
    return list(session.scalars(sa.select(User).where(User.id.in_(ids)).order_by(User.name, User.email)))


def groups(session: Session, person: User) -> list[Group]:
    """The person's groups."""
    query = sa.select(Group).join(Membership, Membership.group_id == Group.id).where(Membership.user_id == person.id)
    return list(session.scalars(query.order_by(Group.name)))
