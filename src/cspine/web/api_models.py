"""What the API takes and gives, as pydantic models: they check requests, and the description is made from them."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from cspine.web.answer_log import LONGEST_COMMENT, TYPES

Probability = Annotated[float, Field(ge=0, le=1)]
LevelName = Literal["C1", "C2", "C3", "C4", "C5", "C6", "C7", "patient"]
FractureName = Literal[TYPES]  # type: ignore[valid-type]
StateName = Literal["ready", "queued", "running", "done", "refused", "failed", "cancelled"]
PER_PAGE = 200


class Out(BaseModel):
    """Given. Every key is always there."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class In(BaseModel):
    """Taken. Nothing is guessed: JSON numbers are numbers, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Query(BaseModel):
    """What stands behind the question mark."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Problem(Out):
    """Why a request was not answered (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str = Field(description="stable, for programs")
    received: int | None = Field(default=None, description="of a piece at the wrong offset: where the file goes on")


class Me(Out):
    """Who asks."""

    id: UUID
    name: str
    roles: list[str]
    scopes: list[str]


class GroupOut(Out):
    """People who share studies."""

    id: UUID
    name: str


class Groups(Out):
    """Groups."""

    groups: list[GroupOut]


class StudyOut(Out):
    """One study."""

    id: UUID
    kind: Literal["volume", "pictures"]
    state: StateName
    title: str
    patient_label: str
    mine: bool = Field(description="it is the person's own, not shared by somebody else")
    created: datetime
    opened: datetime | None = Field(description="when a reader first opened it")
    answered: bool = Field(description="a reader answered the patient")
    headline: str
    probability: Probability | None = Field(description="of a fracture in the patient")
    positive: bool | None = Field(description="a fracture is suspected in the patient or at a level")
    study_uid: str | None
    series_uid: str | None
    facts: dict[str, Any] = Field(description="slices, spacing, thickness, kernel, maker …")


class Studies(Out):
    """One page of studies."""

    studies: list[StudyOut]
    total: int
    page: int
    pages: int


class StudyQuery(Query):
    """Which studies, in which order."""

    state: StateName | None = None
    since: date | None = Field(default=None, description="came in on this day or later, UTC")
    until: date | None = Field(default=None, description="came in on this day or before, UTC")
    owner: Literal["me"] | UUID | None = None
    group: UUID | None = None
    answered: bool | None = None
    order: Literal["priority", "newest"] = "newest"
    page: int = Field(default=1, ge=1, le=100_000)
    per_page: int = Field(default=50, ge=1, le=PER_PAGE)


class ResultOut(Out):
    """One result that can be fetched."""

    name: str
    type: str = Field(description="Content-Type")
    bytes: int | None = Field(description="null for what is made when it is asked for")
    about: str


class Results(Out):
    """Results of a study."""

    results: list[ResultOut]


class AnswerOut(Out):
    """What a reader said."""

    verdict: Literal["accept", "reject", "correct"]
    fracture: bool | None = Field(description="what the reader holds for true; null when it cannot be said")
    type: str | None
    comment: str
    by: str
    at: datetime


class LevelOut(Out):
    """One level, or the patient: what was found, and what was answered."""

    found: bool | None
    probability: Probability | None
    type: str | None
    not_judged: str | None
    answer: AnswerOut | None


class SignedOut(Out):
    """Who answers for all of it."""

    by: str
    at: datetime


class AnswersOut(Out):
    """The state of the answers to a study."""

    study: UUID
    version: int = Field(description="grows with every answer and signature")
    signed: SignedOut | None
    may_answer: bool
    types: list[str]
    levels: dict[str, LevelOut]
    patient: LevelOut | None


class AnswerIn(In):
    """An answer to one level or to the patient. ``correct`` says what is there; null: it cannot be said."""

    level: LevelName
    verdict: Literal["accept", "reject", "correct"]
    fracture: bool | None = None
    type: FractureName | None = None
    comment: str = Field(default="", max_length=LONGEST_COMMENT)


class JobOut(Out):
    """Where a job stands."""

    id: UUID
    study: UUID
    title: str
    state: Literal["queued", "running", "done", "refused", "failed", "cancelled"]
    progress: Probability
    step: str
    text: str
    message: str
    ahead: int
    seconds_left: float | None
    headline: str


class JobsOut(Out):
    """The person's jobs that wait or run, or ended of late."""

    jobs: list[JobOut]


class Cancelled(Out):
    """``cancelled`` is false when it was over already."""

    cancelled: bool


class FileIn(In):
    """A file that will be sent."""

    name: str = Field(min_length=1, max_length=500)
    size: int = Field(ge=0, le=2**50)


class UploadIn(In):
    """An upload. With the same ``key`` it is the same upload, however often it is asked for."""

    files: list[FileIn] = Field(min_length=1)
    deidentify: bool = False
    key: str | None = Field(default=None, pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", description="a UUID")


class FileOut(Out):
    """A file and how much of it has arrived."""

    id: UUID
    name: str
    size: int
    received: int


class RecognisedOut(Out):
    """A study that was recognised in an upload."""

    id: UUID
    kind: Literal["volume", "pictures"]
    state: StateName
    title: str
    patient_label: str
    series_uid: str | None
    facts: dict[str, Any]
    selection: str
    warnings: list[Any]
    series: list[Any]


class UploadOut(Out):
    """An upload: how far it is, and what was recognised."""

    id: UUID
    state: Literal["receiving", "recognising", "recognised", "refused", "discarded"]
    created: datetime
    deidentify: bool
    message: str
    bytes: int
    received: int
    chunk_bytes: int = Field(description="the most that one piece may have")
    again: bool
    problems: list[Any]
    files: list[FileOut]
    studies: list[RecognisedOut]


class Uploads(Out):
    """Uploads that wait for their owner."""

    uploads: list[UploadOut]


class PieceQuery(Query):
    """Where a piece of a file belongs."""

    offset: int = Field(ge=0, le=2**50)


class Received(Out):
    """How much of a file has arrived."""

    received: int


class RunIn(In):
    """Studies to judge, each with the series to take; null for the one that was chosen."""

    studies: dict[Annotated[str, Field(max_length=36)], Annotated[str, Field(max_length=64)] | None] = Field(
        min_length=1
    )


class Queued(Out):
    """A job that was queued."""

    id: UUID
    study: UUID
    state: str


class QueuedOut(Out):
    """Jobs that were queued."""

    jobs: list[Queued]
