"""All tables of the web application (SQLAlchemy 2, declarative); here those of uploads, studies, jobs and answers.

What stands in a URL is a random UUID as text. All times are UTC and aware.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship

from cspine.web.account_models import (
    ApiToken,
    Group,
    LinkKind,
    LoginSession,
    Membership,
    OneTimeLink,
    Role,
    RoleName,
    Throttle,
    User,
    roles_of,
)
from cspine.web.model_base import CASCADE, Base, UtcDateTime, new_id, now

__all__ = [
    "Answer",
    "ApiToken",
    "Base",
    "Deletion",
    "Group",
    "Job",
    "JobState",
    "LinkKind",
    "LoginSession",
    "Membership",
    "OneTimeLink",
    "Role",
    "RoleName",
    "Study",
    "StudyKind",
    "StudyShare",
    "StudyState",
    "Throttle",
    "Upload",
    "UploadFile",
    "UploadState",
    "User",
    "UtcDateTime",
    "Verdict",
    "new_id",
    "now",
    "roles_of",
]


class UploadState(StrEnum):
    """Where an upload stands."""

    RECEIVING = "receiving"
    RECOGNISING = "recognising"
    RECOGNISED = "recognised"
    REFUSED = "refused"
    DISCARDED = "discarded"


class StudyKind(StrEnum):
    """What was uploaded."""

    VOLUME = "volume"
    PICTURES = "pictures"


class StudyState(StrEnum):
    """Where a study stands."""

    READY = "ready"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DELETED = "deleted"


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Verdict(StrEnum):
    """What a reader said of a finding."""

    ACCEPT = "accept"
    REJECT = "reject"
    CORRECT = "correct"


class Upload(Base):
    """Files on their way in.

    Attributes:
        message: why it was refused, for the person.
        facts: what was recognised: series, slices, warnings.
    """

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    owner_id: Mapped[str] = mapped_column(sa.ForeignKey("users.id", ondelete=CASCADE), index=True)
    state: Mapped[str] = mapped_column(sa.String(16), default=UploadState.RECEIVING, index=True)
    created: Mapped[datetime] = mapped_column(default=now)
    bytes_expected: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    deidentify: Mapped[bool] = mapped_column(default=False)
    message: Mapped[str] = mapped_column(sa.Text, default="")
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    files: Mapped[list[UploadFile]] = relationship(back_populates="upload", cascade="all, delete-orphan")


class UploadFile(Base):
    """One file of an upload; ``name`` is what its owner calls it, on disk it lies under its ``id``."""

    __tablename__ = "upload_files"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    upload_id: Mapped[str] = mapped_column(sa.ForeignKey("uploads.id", ondelete=CASCADE), index=True)
    name: Mapped[str] = mapped_column(sa.Text)
    size: Mapped[int] = mapped_column(sa.BigInteger)
    received: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    sha256: Mapped[str | None] = mapped_column(sa.String(64))
    upload: Mapped[Upload] = relationship(back_populates="files")


class Study(Base):
    """One study: what was uploaded, and what was found.

    Attributes:
        title: for lists; says nothing of the patient unless its owner wrote so.
        patient_label: what the files call the patient, shown to those who may read the study; empty when removed.
        facts: slices, spacing, thickness, kernel, maker, warnings.
        probability: of a fracture in the patient, 0 to 1.
        headline: the finding in one line.
        result: name of the folder of the newest results.
    """

    __tablename__ = "studies"
    __table_args__ = (sa.Index("ix_studies_owner_id_created", "owner_id", "created"),)

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    owner_id: Mapped[str] = mapped_column(sa.ForeignKey("users.id", ondelete=CASCADE))
    upload_id: Mapped[str | None] = mapped_column(sa.ForeignKey("uploads.id", ondelete="SET NULL"), index=True)
    kind: Mapped[str] = mapped_column(sa.String(16), default=StudyKind.VOLUME)
    state: Mapped[str] = mapped_column(sa.String(16), default=StudyState.READY, index=True)
    title: Mapped[str] = mapped_column(sa.String(200), default="")
    patient_label: Mapped[str] = mapped_column(sa.String(200), default="")
    study_uid: Mapped[str | None] = mapped_column(sa.String(64))
    series_uid: Mapped[str | None] = mapped_column(sa.String(64))
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    probability: Mapped[float | None]
    positive: Mapped[bool | None]
    headline: Mapped[str] = mapped_column(sa.String(300), default="")
    result: Mapped[str | None] = mapped_column(sa.String(64))
    created: Mapped[datetime] = mapped_column(default=now)
    read_at: Mapped[datetime | None]
    shares: Mapped[list[StudyShare]] = relationship(back_populates="study", cascade="all, delete-orphan")
    jobs: Mapped[list[Job]] = relationship(back_populates="study", cascade="all, delete-orphan")
    answers: Mapped[list[Answer]] = relationship(back_populates="study", cascade="all, delete-orphan")


class StudyShare(Base):
    """A study that the members of a group may read."""

    __tablename__ = "study_shares"

    study_id: Mapped[str] = mapped_column(sa.ForeignKey("studies.id", ondelete=CASCADE), primary_key=True)
    group_id: Mapped[str] = mapped_column(sa.ForeignKey("groups.id", ondelete=CASCADE), primary_key=True, index=True)
    study: Mapped[Study] = relationship(back_populates="shares")
    group: Mapped[Group] = relationship()


class Job(Base):
    """One try, or a row of tries, at judging a study.

    Attributes:
        progress: 0 to 1.
        step: what is done now, a word of the catalogue.
        message: why it ended as it did, for the person.
        place: order in the queue, fair among people.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    study_id: Mapped[str] = mapped_column(sa.ForeignKey("studies.id", ondelete=CASCADE), index=True)
    owner_id: Mapped[str] = mapped_column(sa.ForeignKey("users.id", ondelete=CASCADE), index=True)
    state: Mapped[str] = mapped_column(sa.String(16), default=JobState.QUEUED, index=True)
    progress: Mapped[float] = mapped_column(default=0.0)
    step: Mapped[str] = mapped_column(sa.String(64), default="")
    message: Mapped[str] = mapped_column(sa.Text, default="")
    place: Mapped[float] = mapped_column(default=0.0)
    created: Mapped[datetime] = mapped_column(default=now)
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]
    tries: Mapped[int] = mapped_column(default=0)
    study: Mapped[Study] = relationship(back_populates="jobs")


class Answer(Base):
    """What a reader says of one level, or of the patient. Rows are only added; the newest counts.

    Attributes:
        level: ``C1`` to ``C7``, or ``patient``.
        fracture: what the reader holds for true; None when the reader cannot say.
        type: of the fracture, a word of the findings.
        user_id: who; None after that account was deleted.
    """

    __tablename__ = "answers"
    __table_args__ = (sa.Index("ix_answers_study_id_created", "study_id", "created"),)

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    study_id: Mapped[str] = mapped_column(sa.ForeignKey("studies.id", ondelete=CASCADE))
    level: Mapped[str] = mapped_column(sa.String(8))
    verdict: Mapped[str] = mapped_column(sa.String(8))
    fracture: Mapped[bool | None]
    type: Mapped[str | None] = mapped_column(sa.String(64))
    comment: Mapped[str] = mapped_column(sa.Text, default="")
    user_id: Mapped[str | None] = mapped_column(sa.ForeignKey("users.id", ondelete="SET NULL"), index=True)
    created: Mapped[datetime] = mapped_column(default=now)
    study: Mapped[Study] = relationship(back_populates="answers")
    user: Mapped[User | None] = relationship()


class Deletion(Base):
    """Proof that something was deleted: what its files were, without saying what was in them.

    Attributes:
        what: pseudonym, such as ``study-k5jq…``.
        why: ``asked``, ``retention``, ``account`` or ``leftover``.
        files: how many there were.
        digest: SHA-256 of the sorted lines ``sha256  name``.
        begun: before the first file went; a deletion that a crash interrupted is gone on with.
        when: nothing is there any more, which was looked at; None until then.
        by: id of the account that asked; None when the application did by itself.
    """

    __tablename__ = "deletions"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id)
    what: Mapped[str] = mapped_column(sa.String(64), index=True)
    why: Mapped[str] = mapped_column(sa.String(16))
    files: Mapped[int]
    digest: Mapped[str] = mapped_column(sa.String(64))
    begun: Mapped[datetime] = mapped_column(default=now)
    when: Mapped[datetime | None]
    by: Mapped[str | None] = mapped_column(sa.String(36))
