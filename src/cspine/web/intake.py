"""What an upload holds: sorted into studies, each in a folder of its own, before anything is judged.

Runs in the confined child (``python -m cspine.web.child``). Headers are read, pixels are not, unless pictures have to
be written again without what they say about people.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cspine.errors import CspineError, NoImagesError, TooLargeError
from cspine.node.child import JobOutcome
from cspine.node.disk import sync_disk
from cspine.node.privacy import Pseudonyms
from cspine.studies.dicom import read_header
from cspine.studies.files import StoredFile
from cspine.studies.header import NotDicomError
from cspine.studies.instances import Instance, read_instance
from cspine.studies.picture_table import GREY_ENDINGS
from cspine.studies.study import is_nifti
from cspine.web.orders import RECOGNISED_FILE, IntakeOrder, Note, Received, Recognised, StudyFound
from cspine.web.store import writing
from cspine.web.strings import t
from cspine.web.unpacking import Unpacker, note

RAW = "raw"
# Problems that are listed one by one; of more than these there is a count.
MOST_PROBLEMS = 50
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")


@dataclass(slots=True)
class Given:
    """The files of an upload by what they are.

    Attributes:
        instances: DICOM images.
        nifti: volumes.
        pictures: PNG, JPEG, TIFF.
        problems: files that are damaged.
        other: how many are something else.
    """

    instances: list[Instance] = field(default_factory=list)
    nifti: list[StoredFile] = field(default_factory=list)
    pictures: list[StoredFile] = field(default_factory=list)
    problems: list[Note] = field(default_factory=list)
    other: int = 0

    def take(self, file: StoredFile) -> None:
        """Look at the beginning of one file."""
        head = file.head(4)
        if is_nifti(file):
            self.nifti.append(file)
        elif head.startswith(_PICTURES):
            self.pictures.append(file)
        else:
            self._dicom(file)

    def _dicom(self, file: StoredFile) -> None:
        try:
            header = read_header(file)
            instance = read_instance(file, header)
        except NotDicomError:
            self._unknown(file)
        except CspineError as error:
            self.problems.append(note(error.code, file.name, error))
        else:
            end = header.pixel_offset + (header.pixel_length or 0)
            if instance is None:
                self.other += 1
            elif header.syntax != _DEFLATED and end > file.size:
                self.problems.append(note("cut-off", file.name))
            else:
                self.instances.append(instance)

    def _unknown(self, file: StoredFile) -> None:
        """A file of another kind; one whose name promises an image is damaged rather than foreign."""
        if file.name.lower().endswith((*GREY_ENDINGS, ".dcm", ".nii", ".nii.gz", ".zip")):
            self.problems.append(note("not-what-it-says", file.name))
        else:
            self.other += 1


_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True, slots=True)
class Desk:
    """Where sorted studies go, and how.

    Attributes:
        folder: a folder a study, numbered.
        deidentify: take out what names somebody.
        pseudonyms: make new names and UIDs.
    """

    folder: Path
    deidentify: bool
    pseudonyms: Pseudonyms

    def place(self, number: int) -> Path:
        """The folder of one study, made."""
        place = self.folder / str(number)
        place.mkdir(parents=True, exist_ok=True)
        return place

    def keep(self, file: StoredFile, target: Path) -> None:
        """The bytes of a file under a name of ours; without a copy where the disk can."""
        if file.path is None:
            raise NoImagesError("the file has no place", where=file.name)
        try:
            os.link(file.path, target)
        except OSError:
            shutil.copyfile(file.path, target)


def recognise(order: IntakeOrder, folder: Path) -> JobOutcome:
    """Sort an upload into ``folder``: ``recognised.json``, and a folder ``0``, ``1`` … for each study.

    Raises:
        OutputError: the disk is full or cannot be written.
        TooLargeError: more than one upload may hold.
    """
    with writing():
        found = _sorted(
            order.files, Desk(folder, order.deidentify, Pseudonyms.from_file(order.pseudonym_key)), order.most_bytes
        )
        (folder / RECOGNISED_FILE).write_text(found.model_dump_json(), encoding="utf-8")
        shutil.rmtree(folder / RAW, ignore_errors=True)
        sync_disk(folder)
    if found.studies:
        return JobOutcome(ending="judged")
    first = found.problems[0] if found.problems else None
    message = first.message if first else t("uploads.problem.nothing")
    return JobOutcome(ending="refused", reason=first.code if first else "nothing", message=message)


def _sorted(received: Sequence[Received], desk: Desk, most_bytes: int) -> Recognised:
    from cspine.web.intake_dicom import sort_dicom
    from cspine.web.intake_files import sort_nifti, sort_pictures

    unpacker = Unpacker(desk.folder / RAW, most_bytes)
    given = Given()
    try:
        for file in unpacker.all(received):
            given.take(file)
    except TooLargeError as error:
        return Recognised(problems=(*unpacker.problems, note(error.code, error.where or "", error)))
    problems = [*unpacker.problems, *given.problems]
    dicom = sort_dicom(given.instances, desk, damaged=len(given.problems))
    problems += dicom.problems
    studies: list[StudyFound] = list(dicom.studies)
    for sort, files in ((sort_nifti, given.nifti), (sort_pictures, given.pictures)):
        more, faults = sort(files, desk, len(studies))
        studies += more
        problems += faults
    return Recognised(
        studies=tuple(studies),
        problems=_shortened(problems),
        patients=dicom.patients,
        left_out=given.other + dicom.left,
    )


def _shortened(problems: Sequence[Note]) -> tuple[Note, ...]:
    if len(problems) <= MOST_PROBLEMS:
        return tuple(problems)
    more = len(problems) - MOST_PROBLEMS
    return (*problems[:MOST_PROBLEMS], Note(code="more", message=t("uploads.problem.more", count=more)))


def size_of(place: Path) -> tuple[int, int]:
    """How many files lie in a folder, and how many bytes they have."""
    sizes = [path.stat().st_size for path in place.iterdir()]
    return len(sizes), sum(sizes)
