"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from cspine.errors import OutputError

_STAGED = ".part"
_REASONS = {
    errno.ENOSPC: ("no space left on the disk", "Free some space and run again"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space and run again"),
    errno.EROFS: ("the folder is on a read-only disk", "Choose another output folder"),
    errno.EACCES: ("writing is not permitted", "Choose another output folder or change its permissions"),
    errno.EPERM: ("writing is not permitted", "Choose another output folder or change its permissions"),
    errno.EISDIR: ("a folder is in the way of a file", "Move it, or choose another output folder"),
    errno.ENOTDIR: ("a file is in the way of a folder", "Move it, or choose another output folder"),
    errno.EEXIST: ("a file is in the way of a folder", "Move it, or choose another output folder"),
    errno.ENAMETOOLONG: ("the name is too long for this disk", "Choose a shorter output folder"),
}


def output_error(error: OSError, path: Path) -> OutputError:
    """The typed error for a failed write: what was expected, which file, what to do."""
    reason, fix = _REASONS.get(error.errno or 0, (error.strerror or type(error).__name__, "Check the output folder"))
    return OutputError(f"expected to write {path.name}, but {reason}", where=str(path.parent), fix=fix)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        OutputError: it cannot be created, or a file of that name is in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, folder) from error


def write_file(path: Path, data: bytes) -> None:
    """Replace one file atomically: readers see the old bytes or the new bytes, never a part.

    Raises:
        OutputError: the file cannot be written; what was there before is untouched.
    """
    make_folder(path.parent)
    staged: Path | None = None
    try:
        staged = _stage(path, data)
        staged.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise output_error(error, path) from error
    finally:
        _discard([staged] if staged else [])


def write_set(folder: Path, files: Mapping[str, bytes], *, retire: Iterable[str] = ()) -> dict[str, Path]:
    """Write several files of one result into ``folder``, all of them or none.

    Everything is staged under temporary names and synced before the first file gets its real one, so a full disk
    is met while nothing has changed place. The files take their names in the order given: put the one that marks
    the result as complete last. Whether this succeeds or fails, files of an earlier result do not survive it, so
    an old result can never be taken for the new one.

    Args:
        folder: created when missing.
        files: name to bytes, in the order in which they appear.
        retire: further names that an earlier result may have left in ``folder``.

    Raises:
        OutputError: not everything could be written; then none of the named files is there.
    """
    make_folder(folder)
    staged: dict[str, Path] = {}
    current = folder / next(iter(files), "result")
    finished = False
    _sweep(folder, files)
    try:
        for name, data in files.items():
            current = folder / name
            staged[name] = _stage(current, data)
        remove(folder, (*retire, *files))
        for name in files:
            current = folder / name
            staged[name].replace(current)
        _sync_folder(folder)
        finished = True
    except OSError as error:
        raise output_error(error, current) from error
    finally:
        _discard(staged.values())
        if not finished:
            _discard(folder / name for name in (*retire, *files))
    return {name: folder / name for name in files}


def remove(folder: Path, names: Iterable[str]) -> None:
    """Delete files of an earlier result, last one first, so that the completion mark goes before the rest.

    Raises:
        OutputError: one of them is a folder or cannot be deleted.
    """
    for name in reversed(tuple(names)):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            # Deleting a folder as if it were a file gives EPERM or EISDIR by platform; say what is the matter.
            code = errno.EISDIR if (folder / name).is_dir() else error.errno
            raise output_error(OSError(code, os.strerror(code or 0)), folder / name) from error


def _stage(path: Path, data: bytes) -> Path:
    """Write and sync ``data`` beside ``path`` under a temporary name; nothing is left when that fails."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}{_STAGED}")
    # Not tempfile: its files are private to the user, but a report has the permissions of any other file.
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        _discard([staged])
        raise
    return staged


def _sweep(folder: Path, names: Iterable[str]) -> None:
    """Delete temporary files that a killed run left behind."""
    for name in names:
        _discard(folder.glob(f".{glob.escape(name)}.*{_STAGED}"))


def _sync_folder(folder: Path) -> None:
    """Make the new names durable where the platform can sync a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _discard(paths: Iterable[Path]) -> None:
    """Delete what can be deleted; used while another error is on its way to the user."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
