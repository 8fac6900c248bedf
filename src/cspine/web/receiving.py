"""Uploads on their way in: announced, sent piece by piece, finished, and then run or discarded.

A piece is durable when it is acknowledged, and the database says how far each file has come: whatever dies meanwhile,
the sender asks for the offsets and goes on. Used by pages, by the browser's script and by scripts with a key.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cspine.errors import CspineError, UsageError
from cspine.web.audit_log import AuditLog, Did
from cspine.web.database import Sessions
from cspine.web.job_records import changed
from cspine.web.jobs import Jobs
from cspine.web.models import Job, Study, StudyState, Upload, UploadFile, UploadState
from cspine.web.settings import WebSettings
from cspine.web.store import DiskFullError, Store
from cspine.web.strings import many, t

# Names beyond this are cut: they only serve to tell files apart.
LONGEST_NAME = 500
OPEN = (UploadState.RECEIVING, UploadState.RECOGNISING)


class LimitError(UsageError):
    """More than this server takes."""

    code = "too-large"


class OffsetError(CspineError):
    """The piece does not begin where the file ends so far.

    Attributes:
        received: where it ends.
    """

    code = "offset"

    def __init__(self, received: int) -> None:
        self.received = received
        super().__init__(t("uploads.error.offset"), fix=t("uploads.error.offset-fix"))


class StateError(CspineError):
    """The upload is no longer at the point where this makes sense."""

    code = "state"


class ChecksumError(CspineError):
    """What arrived is not what was sent."""

    code = "checksum"


@dataclass(frozen=True, slots=True)
class Announced:
    """One file that is to come: its name among the owner's, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Receiver:
    """Takes uploads.

    Attributes:
        settings: of the application.
        sessions: makes database sessions.
        store: the files.
        audit: the trail.
        jobs: the queue.
    """

    settings: WebSettings
    sessions: Sessions
    store: Store
    audit: AuditLog
    jobs: Jobs

    def announce(
        self, owner_id: str, files: Sequence[Announced], *, deidentify: bool = False, key: str | None = None
    ) -> Upload:
        """Begin an upload; nothing of it is sent before the limits are known to hold.

        Args:
            owner_id: whose it is.
            files: what will come.
            deidentify: take out what names somebody, as far as the settings leave a choice.
            key: a UUID of the sender's; announced twice with the same one, it is one upload.

        Raises:
            LimitError: too many files, or too many bytes.
            DiskFullError: the server has no room.
            UsageError: no file, or a key that is none.
        """
        upload_id = _id_of(owner_id, key)
        with self.sessions() as session:
            known = session.get(Upload, upload_id)
        if known is not None:
            return known
        total = self._within_limits(owner_id, files)
        chosen = {"always": True, "on": deidentify, "off": deidentify}[self.settings.deidentify]
        self.store.begin(upload_id)
        upload = Upload(id=upload_id, owner_id=owner_id, bytes_expected=total, deidentify=chosen)
        upload.files = [UploadFile(name=_name(one.name), size=one.size) for one in files]
        try:
            with self.sessions.begin() as session:
                session.add(upload)
        except sa.exc.IntegrityError:
            # Two clicks at once: the other was first.
            with self.sessions() as session:
                return session.get_one(Upload, upload_id)
        return upload

    def _within_limits(self, owner_id: str, files: Sequence[Announced]) -> int:
        limits = self.settings.limits
        if not files or any(one.size < 0 for one in files):
            raise UsageError(t("uploads.error.no-file"))
        if len(files) > limits.files:
            raise LimitError(t("uploads.error.files", count=len(files), most=limits.files))
        total = sum(one.size for one in files)
        if total == 0:
            raise UsageError(t("uploads.error.all-empty"))
        largest = max(one.size for one in files)
        for size, most, key in (
            (largest, limits.file_bytes, "file-size"),
            (total, limits.upload_bytes, "upload-size"),
            (total + self.used_bytes(owner_id), limits.per_user_bytes, "user-size"),
        ):
            if size > most:
                raise LimitError(t(f"uploads.error.{key}", size=_gb(size), most=_gb(most)))
        if self.room() < total:
            raise DiskFullError(t("uploads.error.no-room"), fix=t("uploads.error.no-room-fix"))
        return total

    def room(self) -> int:
        """Bytes that may still come: what is free, but for the reserve and what is promised to other uploads."""
        promised = sa.select(sa.func.coalesce(sa.func.sum(UploadFile.size - UploadFile.received), 0)).join(Upload)
        with self.sessions() as session:
            waiting = int(session.scalar(promised.where(Upload.state == UploadState.RECEIVING)) or 0)
        return self.store.free_bytes() - self.settings.limits.free_bytes - waiting

    def used_bytes(self, owner_id: str) -> int:
        """What a person keeps here: studies, and uploads on their way."""
        studies = sa.select(Study.facts).where(Study.owner_id == owner_id, Study.state != StudyState.DELETED)
        uploads = sa.select(sa.func.coalesce(sa.func.sum(Upload.bytes_expected), 0)).where(
            Upload.owner_id == owner_id, Upload.state.in_(OPEN)
        )
        with self.sessions() as session:
            kept = sum(int(facts.get("bytes") or 0) for facts in session.scalars(studies))
            return kept + int(session.scalar(uploads) or 0)

    def write(self, upload: Upload, file_id: str, offset: int, data: bytes, sha256: str | None = None) -> int:
        """Take a piece of a file; gives how much of the file is here now. What is here already is not written again.

        Raises:
            StateError: the upload is finished, or was discarded.
            UsageError: there is no such file, or the piece is longer than the file.
            OffsetError: the piece begins elsewhere; ``received`` says where to go on.
            ChecksumError: it was changed on its way.
            OutputError: the disk is full or cannot be written.
        """
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256.lower():
            raise ChecksumError(t("uploads.error.checksum"))
        with self.sessions() as session:
            file = session.scalar(sa.select(UploadFile).where(UploadFile.id == file_id, _of(upload.id)))
            state = session.scalar(sa.select(Upload.state).where(Upload.id == upload.id))
        if state != UploadState.RECEIVING:
            raise StateError(t("uploads.error.state"))
        if file is None:
            raise UsageError(t("uploads.error.no-such-file"))
        if offset != file.received:
            raise OffsetError(file.received)
        end = offset + len(data)
        if end > file.size or len(data) > self.settings.limits.chunk_bytes:
            raise LimitError(t("uploads.error.piece"))
        if data:
            if self.store.free_bytes() - len(data) < self.settings.limits.free_bytes:
                raise DiskFullError(t("uploads.error.no-room"), fix=t("uploads.error.no-room-fix"))
            self.store.write_chunk(upload.id, file.id, offset, data)
        with self.sessions.begin() as session:
            this = sa.update(UploadFile).where(UploadFile.id == file_id, UploadFile.received == offset)
            if not changed(session, this.values(received=end)):
                raise OffsetError(session.get_one(UploadFile, file_id).received)
        return end

    def finish(self, upload: Upload) -> None:
        """Everything has been sent: look what it is. Asked twice, it is done once.

        Raises:
            StateError: files are missing; or the upload was discarded.
        """
        missing = sa.select(sa.func.count()).where(_of(upload.id), UploadFile.received < UploadFile.size)
        with self.sessions.begin() as session:
            count = int(session.scalar(missing) or 0)
            if count:
                raise StateError(many("uploads.error.incomplete", count))
            # A file without a byte was never sent a piece.
            empty = session.scalars(sa.select(UploadFile.id).where(_of(upload.id), UploadFile.size == 0)).all()
            this = sa.update(Upload).where(Upload.id == upload.id, Upload.state == UploadState.RECEIVING)
            news = changed(session, this.values(state=UploadState.RECOGNISING, message=""))
            state = session.scalar(sa.select(Upload.state).where(Upload.id == upload.id))
        if not news:
            if state == UploadState.DISCARDED:
                raise StateError(t("uploads.error.state"))
            return
        for file_id in empty:
            self.store.write_chunk(upload.id, file_id, 0, b"")
        self.jobs.recognise(upload.id)

    def discard(self, upload: Upload, *, by: str | None = None) -> None:
        """Throw an upload away: its files, and those of its studies that were never judged. Safe to repeat."""
        with self.sessions.begin() as session:
            this = sa.update(Upload).where(Upload.id == upload.id)
            changed(session, this.values(state=UploadState.DISCARDED, message=""))
            session.execute(sa.delete(UploadFile).where(_of(upload.id)))
            unused = session.scalars(
                sa.select(Study).where(Study.upload_id == upload.id, Study.state == StudyState.READY)
            ).all()
            for study in unused:
                session.delete(study)
        for study in unused:
            self.store.delete_study(study.id)
        self.store.delete_upload(upload.id)
        self.audit.write(Did.DISCARDED, actor=by, upload=upload.id)

    def run(self, upload: Upload, chosen: Mapping[str, str | None], user_id: str) -> list[Job]:
        """Queue studies of an upload.

        Args:
            upload: that was recognised.
            chosen: by id of a study, the series to take; None for the one that was chosen.
            user_id: who asks.

        Raises:
            UsageError: a study is not of this upload, or a series not of the study.
        """
        with self.sessions.begin() as session:
            studies = session.scalars(sa.select(Study).where(Study.upload_id == upload.id)).all()
            known = {study.id: study for study in studies}
            if not chosen or not chosen.keys() <= known.keys():
                raise UsageError(t("uploads.error.choose"))
            for study_id, series in chosen.items():
                if series is not None and series != known[study_id].series_uid:
                    _choose(session, known[study_id], series)
        return [self.jobs.submit(study_id, user_id) for study_id in chosen]


def _choose(session: Session, study: Study, series: str) -> None:
    """Take another series of a study.

    Raises:
        UsageError: it is none of the study's, or cannot be read.
    """
    listed: list[dict[str, Any]] = study.facts.get("series", [])
    found = next((one for one in listed if one["uid"] == series and one["readable"]), None)
    if found is None:
        raise UsageError(t("uploads.error.series"))
    study.series_uid = series
    study.facts = {**study.facts, "slices": found["slices"], "selection": t("uploads.selection.named")}
    session.flush()


def _id_of(owner_id: str, key: str | None) -> str:
    """The id of an upload; the same for the same key of the same person.

    Raises:
        UsageError: the key is no UUID.
    """
    if key is None:
        return str(uuid.uuid4())
    try:
        return str(uuid.uuid5(uuid.UUID(owner_id), str(uuid.UUID(key))))
    except ValueError as error:
        raise UsageError(t("uploads.error.key")) from error


def _name(name: str) -> str:
    """A name that a page can show: one line, not too long."""
    shown = "".join(char if char.isprintable() else "\ufffd" for char in name.replace("\\", "/")).strip("/")
    return shown[-LONGEST_NAME:] or "?"


def _of(upload_id: str) -> sa.ColumnElement[bool]:
    return UploadFile.upload_id == upload_id


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
