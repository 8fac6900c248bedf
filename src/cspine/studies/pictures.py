"""Which of a user's inputs are single pictures rather than studies; nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cspine.errors import CspineError
from cspine.studies.dicom import read_header
from cspine.studies.files import StoredFile, in_folder
from cspine.studies.header import NotDicomError
from cspine.studies.instances import read_instance
from cspine.studies.picture_table import ASIDE, GREY_ENDINGS
from cspine.studies.study import is_nifti

_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file that is, or may be judged as, a single picture.

    Attributes:
        name: path below the folder that was given, or the file's name.
        path: where it lies.
    """

    name: str
    path: Path


def pictures_in(path: Path) -> tuple[PictureFile, ...]:
    """The pictures that an input is: the file itself, or those below a folder that holds no study; else none.

    PNG, JPEG and TIFF are pictures. A folder with DICOM slices or NIfTI is a study, whatever pictures lie beside them;
    masks in folders called so are no pictures to judge.
    """
    if path.is_file():
        return (PictureFile(path.name, path),) if _is_grey(_stored(path)) else ()
    if not path.is_dir():
        return ()
    found = []
    for file in in_folder(path):
        folders = [part.lower() for part in file.name.split("/")[:-1]]
        if file.name.lower().endswith(GREY_ENDINGS):
            hidden = any(part.startswith(".") for part in file.name.split("/"))
            if file.path is not None and not hidden and not ASIDE & set(folders):
                found.append(PictureFile(file.name, file.path))
        elif file.head(132)[128:] == b"DICM" or is_nifti(file):
            return ()
    return tuple(found)


def is_single_slice(path: Path) -> bool:
    """Whether a file is one DICOM image of one frame, which is no volume."""
    if not path.is_file():
        return False
    file = _stored(path)
    try:
        instance = read_instance(file, read_header(file))
    except (NotDicomError, CspineError):
        # What is wrong with it is said when it is opened as a study.
        return False
    return instance is not None and instance.format.frames == 1


def kind_of(path: Path) -> Literal["pictures", "slice", "study"]:
    """What a user's input is."""
    if pictures_in(path):
        return "pictures"
    return "slice" if is_single_slice(path) else "study"


def _stored(path: Path) -> StoredFile:
    return StoredFile(path.name, path.stat().st_size, path)


def _is_grey(file: StoredFile) -> bool:
    return file.name.lower().endswith(GREY_ENDINGS) or file.head(4).startswith(_MAGIC)
