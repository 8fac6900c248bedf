"""``Store``: where uploads and studies lie on disk. Names are ours, writes last, and a deletion says what it deleted.

data/uploads/<upload>/parts/<file>       bytes as they came, one file each
data/uploads/<upload>/sorted/…           what recognising made of them; there at once or not at all
data/studies/<study>/files/…             what is judged
data/studies/<study>/results/<run>/…     what was said of it, one folder a run
data/trash/…                             on its way out
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cspine.errors import CspineError, OutputError, UsageError
from cspine.node.disk import sync_folder, write_all

UPLOADS, STUDIES, TRASH = "uploads", "studies", "trash"
PARTS, SORTED, FILES, RESULTS = "parts", "sorted", "files", "results"
# Bytes that are hashed at a time.
BLOCK = 2**20
# A result's folder is named by its run: letters, digits and dashes.
_RUN_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")

Deleted = list[tuple[str, str]]


class DiskFullError(OutputError):
    """There is no room for what is to be written; nothing that was there before is lost."""

    code = "disk-full"


@dataclass(frozen=True, slots=True)
class Store:
    """The data folder.

    Attributes:
        data: made when needed; nobody else writes below the folders that are named above.
    """

    data: Path

    def upload_folder(self, upload: str) -> Path:
        """Of one upload.

        Raises:
            UsageError: the name is no UUID.
        """
        return self.data / UPLOADS / checked(upload)

    def part(self, upload: str, file: str) -> Path:
        """The bytes of one file of an upload.

        Raises:
            UsageError: a name is no UUID.
        """
        return self.upload_folder(upload) / PARTS / checked(file)

    def sorted_folder(self, upload: str) -> Path:
        """What recognising made of an upload."""
        return self.upload_folder(upload) / SORTED

    def study_folder(self, study: str) -> Path:
        """Of one study.

        Raises:
            UsageError: the name is no UUID.
        """
        return self.data / STUDIES / checked(study)

    def files(self, study: str) -> Path:
        """The images of one study."""
        return self.study_folder(study) / FILES

    def run_folder(self, study: str, run: str) -> Path:
        """Where one run has its results.

        Raises:
            UsageError: the names are not ours.
        """
        if not run or not set(run) <= _RUN_CHARACTERS or len(run) > 64:
            raise UsageError("expected the name of a run, got something else")
        return self.study_folder(study) / RESULTS / run

    def results(self, study: object) -> Path | None:
        """The folder of a study's newest results; None when there are none.

        Args:
            study: anything with ``id`` and ``result``, the name of the run.
        """
        run = getattr(study, "result", None)
        if not run:
            return None
        folder = self.run_folder(str(getattr(study, "id", "")), str(run))
        return folder if folder.is_dir() else None

    def free_bytes(self) -> int:
        """Room on the disk of the data folder."""
        self.data.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.data).free

    def begin(self, upload: str) -> None:
        """Make the folder of an upload. Safe to repeat.

        Raises:
            OutputError: it cannot be made.
        """
        with writing():
            make_folder(self.upload_folder(upload) / PARTS)

    def write_chunk(self, upload: str, file: str, offset: int, data: bytes) -> None:
        """Put bytes of a file into place; they are durable when this returns.

        Raises:
            OutputError: the disk is full or cannot be written.
        """
        path = self.part(upload, file)
        with writing():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                write_all(descriptor, [data], offset)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if offset == 0:
                sync_folder(path.parent)

    def adopt(self, upload: str, number: int, study: str) -> None:
        """Make what recognising sorted out the files of a study. Safe to repeat, whatever was killed in between.

        Raises:
            OutputError: there is nothing to adopt, or the disk cannot be written.
        """
        source, target = self.sorted_folder(upload) / str(number), self.files(study)
        with writing():
            make_folder(target.parent)
            if not target.exists():
                source.rename(target)
            sync_folder(target.parent)

    def delete_study(self, study: str) -> Deleted:
        """Delete everything of a study; gives name and SHA-256 of each file that was there. Safe to repeat."""
        return self._delete(self.study_folder(study))

    def delete_upload(self, upload: str) -> Deleted:
        """Delete everything of an upload; gives name and SHA-256 of each file that was there. Safe to repeat."""
        return self._delete(self.upload_folder(upload))

    def forget_parts(self, upload: str) -> None:
        """Delete the bytes of an upload whose studies have been taken over."""
        shutil.rmtree(self.upload_folder(upload), ignore_errors=True)

    def forget_run(self, study: str, run: str) -> None:
        """Delete what a run left that was cancelled."""
        shutil.rmtree(self.run_folder(study, run), ignore_errors=True)

    def sweep(self) -> None:
        """Finish deletions that were interrupted."""
        shutil.rmtree(self.data / TRASH, ignore_errors=True)

    def _delete(self, folder: Path) -> Deleted:
        if not folder.exists():
            return []
        trash = self.data / TRASH
        with writing():
            make_folder(trash)
            # Gone from its place in one step: nobody meets half a study.
            moved = trash / f"{folder.name}-{uuid.uuid4().hex[:8]}"
            folder.rename(moved)
            sync_folder(folder.parent)
            listed = [(path.relative_to(moved).as_posix(), sha256_of(path)) for path in sorted(_files_below(moved))]
            shutil.rmtree(moved)
            sync_folder(trash)
        return listed


def checked(name: str) -> str:
    """A UUID as we write it.

    Raises:
        UsageError: it is something else, such as a path.
    """
    try:
        value = str(uuid.UUID(name))
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError("expected an identifier of ours, got something else") from error
    if value != name:
        raise UsageError("expected an identifier of ours, got something else")
    return value


def make_folder(folder: Path) -> None:
    """Make a folder that only we may read, and make it last.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    sync_folder(folder.parent)


def sha256_of(path: Path) -> str:
    """Digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn what a disk refuses into typed errors.

    Raises:
        DiskFullError: no room, or no room that this user may have.
        OutputError: anything else.
    """
    try:
        yield
    except CspineError:
        raise
    except OSError as error:
        raise output_error(error) from error


def output_error(error: OSError) -> OutputError:
    """The typed error for something that the disk refused; names no path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFullError(
            "the disk of the server is full",
            fix="Ask the administrator to free some space; what has arrived is kept, and the upload goes on then",
        )
    what = os.strerror(error.errno) if error.errno else type(error).__name__
    return OutputError(
        f"the server cannot write to its data folder: {what}",
        fix="Ask the administrator to look at the disk; what has arrived is kept",
    )


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path
