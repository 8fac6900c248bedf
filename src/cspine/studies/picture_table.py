"""Which pictures a folder holds and what is said of each: by a table, or by the names of sub-folders.

``labels.csv`` (or the only ``.csv``) has a row a picture: ``file`` (path below the folder, or the name alone where it
is the only one), ``label`` (fractured or normal, 1 or 0, or nothing), and perhaps ``study``, ``patient``, ``level``
(``C5``, or several), ``slice`` (number in its study), ``mask`` (picture of C1..C7 as values 1..7), ``fracture_mask``
(anything but 0 is fracture; also one level alone may be in ``mask`` so) and ``x``, ``y``, ``width``, ``height`` of a
box around the fracture. Without a table the pictures lie in folders named ``fractured`` and ``normal`` (and other words
for that), which may lie in ``train``, ``val`` and ``test``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cspine.anatomy import Level
from cspine.errors import CspineError, NoImagesError, StudyError, UsageError
from cspine.studies.dicom import read_header
from cspine.studies.files import StoredFile, in_folder
from cspine.studies.header import NotDicomError
from cspine.studies.label_table import PATIENT_COLUMNS, Row, Table, class_of, levels_in, safe_name
from cspine.studies.rsna_tables import is_uid
from cspine.studies.tags import STUDY_UID

GREY_ENDINGS, _DICOM_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff"), (".dcm", ".dicom", ".ima")
ENDINGS = (*GREY_ENDINGS, *_DICOM_ENDINGS)
FILE_COLUMNS, LABEL_COLUMNS = ("file", "filename", "image", "path"), ("label", "fractured", "fracture", "class")
_STUDY_COLUMNS, _SLICE_COLUMNS = ("study", "studyinstanceuid", "study_id"), ("slice", "slice_number")
# Folders of masks beside pictures.
ASIDE = {"masks", "labels", "fractures", "segmentations"}
_KEPT_FOR_TESTS = {"val", "valid", "validation", "test", "testing"}
_UID = re.compile(r"\d+(?:\.\d+){3,}")

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and what is said of it.

    Attributes:
        path: the file.
        name: path below the folder, for messages.
        fractured: whether it shows a fracture; None where nothing is said.
        study: what study it is of; empty when nothing says so.
        patient: whose it is; empty when nothing says so.
        levels: the vertebrae it shows; None where nothing is said.
        number: its place in the study, or None.
        mask: picture of its vertebrae, or None.
        fracture_mask: picture of its fracture, or None.
        boxes: left, top, width and height, pixels, of boxes around the fracture.
        held_back: the data set keeps it for validation or test.
    """

    path: Path
    name: str
    fractured: bool | None
    study: str = ""
    patient: str = ""
    levels: tuple[Level, ...] | None = None
    number: float | None = None
    mask: Path | None = None
    fracture_mask: Path | None = None
    boxes: tuple[Box, ...] = ()
    held_back: bool = False


Listed = tuple[list[Picture], dict[str, CspineError]]


def pictures_below(folder: Path) -> dict[str, Path]:
    """Files that may be pictures by their path below the folder."""
    found = {}
    for file in in_folder(folder):
        parts = file.name.split("/")
        if file.path is not None and not any(part.startswith(".") for part in parts):
            known = file.name.lower().endswith(ENDINGS) or ("." not in parts[-1] and _is_dicom(file))
            if known:
                found[file.name] = file.path
    return found


def listed_in_table(table: Table, files: Mapping[str, Path]) -> Listed:
    """Pictures by a table: those that can be used, and what is wrong with the others.

    Raises:
        UsageError: a column is missing.
    """
    table.require(FILE_COLUMNS, LABEL_COLUMNS)
    index = _Index(files)
    found: dict[str, Picture] = {}
    faults: dict[str, CspineError] = {}
    first: dict[str, str] = {}
    seen: dict[str, str] = {}
    aside: set[Path] = set()
    for row in table.rows:
        try:
            key = index.find(row.text(FILE_COLUMNS), row)
            seen.setdefault(key, row.where)
            picture = _of_row(row, key, index)
        except CspineError as error:
            # Rows without a file have no other name.
            faults[safe_name(row.text(FILE_COLUMNS) or row.where)] = error
            continue
        aside |= {mask for mask in (picture.mask, picture.fracture_mask) if mask is not None}
        known = found.get(key)
        if known is not None and _differ_in_box(known, picture):
            found[key] = replace(known, boxes=known.boxes + picture.boxes)
        elif key in first:
            found.pop(key, None)
            message = f"the picture is in the table twice, first in {first[key]}"
            faults[safe_name(key)] = StudyError(message, where=row.where, fix="Remove one of the two rows")
        else:
            first[key], found[key] = row.where, picture
    for key, path in files.items():
        folders = {part.lower() for part in key.split("/")[:-1]}
        if key not in seen and path not in aside and not folders & ASIDE:
            faults[safe_name(key)] = StudyError(f"a picture without a row in {table.name}", where=key)
    return list(found.values()), faults


def listed_by_folder(files: Mapping[str, Path]) -> Listed:
    """Pictures by the words that their folders are named with."""
    found: list[Picture] = []
    faults: dict[str, CspineError] = {}
    for key, path in files.items():
        folders = key.split("/")[:-1]
        if {part.lower() for part in folders} & ASIDE:
            continue
        said = [flag for part in folders if (flag := class_of(part)) is not None]
        if not said:
            faults[safe_name(key)] = StudyError("a picture in no folder named fractured or normal", where=key)
            continue
        kept = bool({part.lower() for part in folders} & _KEPT_FOR_TESTS)
        found.append(Picture(path, key, said[-1], study=_study_of(path, key), held_back=kept))
    return found, faults


def has_class_folders(files: Iterable[str]) -> bool:
    """Whether any picture lies in a folder whose name says fractured or normal."""
    return any(class_of(part) is not None for key in files for part in key.split("/")[:-1])


class _Index:
    """Files by what a cell may call them: path, name, or either without its ending."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files
        self._by_name: dict[str, list[str]] = {}
        for key in files:
            name = key.rpartition("/")[2]
            # A file without an ending is called one thing, not two.
            for alias in {key, name, key.rpartition(".")[0], name.rpartition(".")[0]} - {""}:
                self._by_name.setdefault(alias, []).append(key)

    def find(self, text: str, row: Row) -> str:
        """The path below the folder of the file that a cell names.

        Raises:
            NoImagesError: there is none.
            UsageError: there are several.
        """
        wanted = text.strip().replace("\\", "/").removeprefix("./")
        found = [wanted] if wanted in self.files else self._by_name.get(wanted, [])
        if not found:
            raise NoImagesError("a row without a picture", where=row.where, fix="Add the file or drop the row")
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} pictures are called so", where=row.where, fix="Give the path below the folder"
            )
        return found[0]


def _of_row(row: Row, key: str, index: _Index) -> Picture:
    def other(column: str) -> Path | None:
        text = row.cells.get(column, "")
        return index.files[index.find(text, row)] if text else None

    box = tuple(row.number(name) for name in ("x", "y", "width", "height"))
    known = tuple(value for value in box if value is not None)
    number = next((value for name in _SLICE_COLUMNS if (value := row.number(name)) is not None), None)
    path = index.files[key]
    return Picture(
        path=path,
        name=key,
        fractured=row.flag(LABEL_COLUMNS),
        study=row.text(_STUDY_COLUMNS) or _study_of(path, key),
        patient=row.text(PATIENT_COLUMNS),
        levels=levels_in(row.text(("level", "levels")), where=f"{row.where}, column level"),
        number=number,
        mask=other("mask"),
        fracture_mask=other("fracture_mask"),
        boxes=((known[0], known[1], known[2], known[3]),) if len(known) == 4 else (),
        held_back=row.text(("split", "part", "set")).lower() in _KEPT_FOR_TESTS,
    )


def _differ_in_box(one: Picture, other: Picture) -> bool:
    """Whether two rows are two boxes of the same picture."""
    return bool(one.boxes and other.boxes) and replace(one, boxes=()) == replace(other, boxes=())


def _study_of(path: Path, key: str) -> str:
    """The study that a DICOM file states, or a UID in the path of a picture; else empty."""
    file = StoredFile(key, path.stat().st_size, path)
    if not key.lower().endswith(GREY_ENDINGS):
        try:
            uid = read_header(file).text(STUDY_UID).strip()
        except (NotDicomError, CspineError):
            # What is wrong with it is said when it is opened.
            uid = ""
        if is_uid(uid):
            return uid
    found = _UID.search(key.rpartition(".")[0])
    return found.group() if found else ""


def _is_dicom(file: StoredFile) -> bool:
    return file.head(132)[128:] == b"DICM"
