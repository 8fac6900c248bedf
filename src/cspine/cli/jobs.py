"""Which studies a command was given, where the results of each go, and what its input was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cspine.errors import UsageError
from cspine.reports import FORMATS
from cspine.studies import study_name

FINDINGS_FILE = "findings.json"
RUN_FILE = "run.json"
SUMMARY_FILE = "summary.csv"
# There while a study is judged: where a process died, the next run finds it.
ATTEMPT_FILE = "attempt.json"
RESULT_FILES = (RUN_FILE, SUMMARY_FILE, ATTEMPT_FILE, *(form.file for form in FORMATS.values()))


@dataclass(frozen=True, slots=True)
class Job:
    """One study: what to read and the folder its results go to."""

    name: str
    source: Path
    folder: Path


def plan_jobs(studies: Sequence[Path], out: Path) -> tuple[Job, ...]:
    """Which folder each study's results go to.

    One study: ``out`` itself. Several: ``out/<name>``, where name is the file or folder name without its ending; a
    name that is taken gets ``-2``, ``-3``, in the order given.

    Raises:
        UsageError: a study does not exist, or there is none.
    """
    if not studies:
        raise UsageError("expected at least one study", fix="Give a folder, a zip, a DICOM or a NIfTI file")
    absent = [str(path) for path in studies if not path.exists()]
    if absent:
        raise UsageError("no such file or folder", where=", ".join(absent), fix="Check the path")
    if len(studies) == 1:
        return (Job(_name(studies[0]), studies[0], out),)
    # A study of this name must not take the place of the table.
    taken = {SUMMARY_FILE}
    jobs = []
    for path in studies:
        wanted = _name(path)
        name, number = wanted, 1
        while name.casefold() in taken:
            number += 1
            name = f"{wanted}-{number}"
        taken.add(name.casefold())
        jobs.append(Job(name, path, out / name))
    return tuple(jobs)


def _name(path: Path) -> str:
    """The study's name. ``.`` and ``..`` are called what they are; other links keep their own name."""
    return study_name(path.resolve() if path.name in ("", "..") else path).strip() or "study"


def input_digest(source: Path, *, outputs: Collection[Path] = ()) -> str:
    """SHA-256 over the names and bytes of all files of an input; changes when any file does.

    Args:
        source: file or folder.
        outputs: folders that results go to. Where one lies inside the input its files do not count; where it is the
            input itself, the files that cspine writes do not.
    """
    digest = hashlib.sha256()
    for path in _files(source, {output.resolve() for output in outputs}):
        name = path.relative_to(source).as_posix() if path != source else ""
        digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            # Opening the study will say so; here it only has to differ from the readable file.
            digest.update(f"unreadable {error.errno}".encode())
    return digest.hexdigest()


def _files(source: Path, outputs: Collection[Path]) -> Iterator[Path]:
    """Regular files below a folder in a fixed order, or the file itself."""
    if source.is_file():
        yield source
        return
    root = source.resolve()
    for folder, names, files in os.walk(source):
        inside = [name for name in names if (Path(folder) / name).resolve() not in outputs]
        names[:] = sorted(inside)
        own = RESULT_FILES if Path(folder).resolve() == root and root in outputs else ()
        for name in sorted(files):
            path = Path(folder) / name
            if name not in own and path.is_file():
                yield path
