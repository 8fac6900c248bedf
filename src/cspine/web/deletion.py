"""Deletion that is proven: what lay there is listed and hashed first, deleted, and looked for afterwards.

The proof (``models.Deletion``) holds a pseudonym, how many files there were, and the SHA-256 of the list of their names
and digests. Whoever has a copy of the files can show that they are those; nobody can read anything from it. A crash at
any moment is gone on with by ``sweep``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from cspine.errors import CspineError, OutputError
from cspine.web.app import Context, context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.models import (
    Deletion,
    Job,
    JobState,
    LoginSession,
    OneTimeLink,
    Study,
    StudyState,
    Upload,
    User,
    now,
)
from cspine.web.store import STUDIES, UPLOADS, sha256_of
from cspine.web.throttle import forget_old
from cspine.web.viewing import forget_pictures

_log = logging.getLogger(__name__)
_OPEN = (JobState.QUEUED, JobState.RUNNING)
# An upload that nobody went on with.
ABANDONED = timedelta(days=3)
# A folder of no study or upload is left alone for this long: somebody may be writing it this moment.
_LEFTOVER_SECONDS = 3600.0


def delete_study(study: Study, *, why: str = "asked", by: str | None = None) -> Deletion:
    """Delete a study with its images, results, answers and jobs. Commits.

    Args:
        study: of the session of this request.
        why: ``asked``, ``retention`` or ``account``.
        by: id of the account that asked.

    Raises:
        OutputError: a file could not be deleted; the study is hidden, and ``sweep`` tries again.
    """
    with_jobs = sa.select(Job.id).where(Job.study_id == study.id, Job.state.in_(_OPEN))
    for job in db.session.scalars(with_jobs).all():
        context().jobs.cancel(job)
    study.state = StudyState.DELETED
    folder = context().store.study_folder(study.id)
    proof = _begin("study", study.id, folder, why, by)
    context().store.delete_study(study.id)
    forget_pictures(study.id)
    if study.upload_id is not None:
        _forget_upload(study.upload_id, study.id)
    db.session.delete(study)
    _finish(proof, study.id, folder)
    return proof


def delete_upload(upload: Upload, *, why: str = "asked", by: str | None = None) -> Deletion:
    """Delete an upload with its files. Commits.

    Raises:
        OutputError: a file could not be deleted.
    """
    folder = context().store.upload_folder(upload.id)
    proof = _begin("upload", upload.id, folder, why, by)
    context().store.delete_upload(upload.id)
    db.session.delete(upload)
    _finish(proof, upload.id, folder)
    return proof


def delete_account(person: User, *, by: str | None = None) -> list[Deletion]:
    """Delete an account with everything that it owns; gives the proofs. Commits.

    What the person answered to studies of others stays with those, without the name.

    Raises:
        OutputError: a file could not be deleted; the account is still there then.
    """
    by = by or person.id
    person.active = False
    db.session.execute(sa.delete(LoginSession).where(LoginSession.user_id == person.id))
    db.session.commit()
    owned = db.session.scalars(sa.select(Study).where(Study.owner_id == person.id)).all()
    proofs = [delete_study(study, why="account", by=by) for study in owned]
    uploads = db.session.scalars(sa.select(Upload).where(Upload.owner_id == person.id)).all()
    proofs += [delete_upload(upload, why="account", by=by) for upload in uploads]
    context().audit.write(Did.ACCOUNT_DELETED, actor=by, detail=person.id, count=len(proofs))
    db.session.delete(person)
    db.session.commit()
    return [proof for proof in proofs if proof.files]


def sweep() -> int:
    """Everything that is due: retention, interrupted deletions, leftovers, old rows; gives how many studies went."""
    here = context()
    gone = 0
    for study in _due(here):
        with _goes_on():
            delete_study(study, why="retention" if study.state != StudyState.DELETED else "asked")
            gone += 1
    old = sa.select(Upload).where(Upload.created < now() - ABANDONED)
    for upload in db.session.scalars(old).all():
        with _goes_on():
            delete_upload(upload, why="leftover")
    for kind, identity, folder in _leftovers(here):
        with _goes_on():
            proof = _begin(kind, identity, folder, "leftover", None)
            (here.store.delete_study if kind == "study" else here.store.delete_upload)(identity)
            _finish(proof, identity, folder)
    settings = here.settings
    db.session.execute(sa.delete(OneTimeLink).where(OneTimeLink.expires < now() - timedelta(days=1)))
    db.session.execute(
        sa.delete(LoginSession).where(LoginSession.created < now() - timedelta(hours=settings.session_hours))
    )
    forget_old(settings.lockout.minutes)
    db.session.commit()
    return gone


def digest_of(listed: list[tuple[str, str]]) -> str:
    """SHA-256 of the sorted lines ``sha256  name`` of (name, SHA-256) pairs, as ``sha256sum`` writes them."""
    lines = sorted(f"{digest}  {name}\n" for name, digest in listed)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _due(here: Context) -> list[Study]:
    interrupted = Study.state == StudyState.DELETED
    if here.settings.retention_days is None:
        query = sa.select(Study).where(interrupted)
    else:
        old = Study.created < now() - timedelta(days=here.settings.retention_days)
        busy = sa.select(Job.study_id).where(Job.state.in_(_OPEN))
        query = sa.select(Study).where(sa.or_(interrupted, sa.and_(old, Study.id.not_in(busy))))
    return list(db.session.scalars(query))


def _begin(kind: str, identity: str, folder: Path, why: str, by: str | None) -> Deletion:
    """Write down what is there before the first file goes."""
    what = str(context().pseudonyms.of(kind, identity))
    open_one = db.session.scalar(sa.select(Deletion).where(Deletion.what == what, Deletion.when.is_(None)))
    if open_one is None:
        listed = [(path.relative_to(folder).as_posix(), sha256_of(path)) for path in files_below(folder)]
        open_one = Deletion(what=what, why=why, files=len(listed), digest=digest_of(listed), by=by)
        db.session.add(open_one)
    db.session.commit()
    return open_one


def _finish(proof: Deletion, identity: str, folder: Path) -> None:
    """Look whether it is gone, and write that down.

    Raises:
        OutputError: it is still there.
    """
    if folder.exists():
        db.session.rollback()
        raise OutputError("files that were to be deleted are still there", fix="Check the rights on the data folder")
    context().audit.write(
        Did.DELETED,
        actor=proof.by or "system",
        study=identity if proof.what.startswith("study") else None,
        detail=f"{proof.why}, sha256 {proof.digest}",
        count=proof.files,
    )
    proof.when = now()
    db.session.commit()


def _forget_upload(upload: str, study: str) -> None:
    """The row of an upload names files; it goes with its last study."""
    others = sa.select(Study.id).where(Study.upload_id == upload, Study.id != study).limit(1)
    if db.session.scalar(others) is None:
        context().store.delete_upload(upload)
        found = db.session.get(Upload, upload)
        if found is not None:
            db.session.delete(found)


def _leftovers(here: Context) -> Iterator[tuple[str, str, Path]]:
    """Folders of studies and uploads that the database does not know, such as of a worker that was killed late."""
    for kind, place, table in (("study", STUDIES, Study), ("upload", UPLOADS, Upload)):
        parent = here.settings.data / place
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            old = folder.stat().st_mtime < time.time() - _LEFTOVER_SECONDS
            if old and db.session.get(table, folder.name) is None:
                yield kind, folder.name, folder


def files_below(folder: Path) -> list[Path]:
    """All files of a folder, sorted; links are not followed."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@contextlib.contextmanager
def _goes_on() -> Iterator[None]:
    """One deletion that fails does not keep the others from being done."""
    try:
        yield
    except CspineError as error:
        db.session.rollback()
        _log.error("a deletion failed and is tried again: %s", error)
