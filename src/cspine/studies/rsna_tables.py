"""The label tables of RSNA 2022: every cell is checked, and a wrong one is named by file, row and column."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cspine.anatomy import LEVELS, Level
from cspine.errors import DamagedFileError

TABLE_FILE, BOXES_FILE = "train.csv", "train_bounding_boxes.csv"
UID_COLUMN, OVERALL_COLUMN, SLICE_COLUMN = "StudyInstanceUID", "patient_overall", "slice_number"
BOX_COLUMNS = ("x", "y", "width", "height")

# UIDs name folders and files, so nothing else is accepted (DICOM PS3.5, 9.1).
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID = 64


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One row of ``train.csv``.

    Attributes:
        uid: StudyInstanceUID.
        overall: column patient_overall.
        fractured: columns C1 to C7.
        where: file and row, for messages.
    """

    uid: str
    overall: bool
    fractured: tuple[bool, ...]
    where: str

    def of(self, level: Level) -> bool:
        """Whether a level is fractured."""
        return self.fractured[level.index]


@dataclass(frozen=True, slots=True)
class BoxRow:
    """One row of ``train_bounding_boxes.csv``: pixels of the stored image.

    Attributes:
        uid: StudyInstanceUID.
        x, y: left and upper edge.
        width, height: above 0.
        slice_number: number in the name of the slice's file.
        where: file and row, for messages.
    """

    uid: str
    x: float
    y: float
    width: float
    height: float
    slice_number: int
    where: str


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID, and so safe as the name of a file."""
    return len(text) <= _MAX_UID and _UID.fullmatch(text) is not None


def read_studies(path: Path) -> dict[str, StudyRow]:
    """``train.csv`` by StudyInstanceUID, in its order.

    Raises:
        DamagedFileError: not a table, a column is missing, a label is not 0 or 1, or a study is there twice.
    """
    rows: dict[str, StudyRow] = {}
    for where, cells in _rows(path, (UID_COLUMN, OVERALL_COLUMN, *(level.name for level in LEVELS))):
        uid = _uid(cells, where)
        if uid in rows:
            raise DamagedFileError(
                f"the study is in the table twice, first in {rows[uid].where}", where=f"{where}, column {UID_COLUMN}"
            )
        fractured = tuple(_flag(cells, level.name, where) for level in LEVELS)
        rows[uid] = StudyRow(uid, _flag(cells, OVERALL_COLUMN, where), fractured, where)
    if not rows:
        raise DamagedFileError("the table has no rows", where=path.name)
    return rows


def read_boxes(path: Path) -> dict[str, tuple[BoxRow, ...]]:
    """``train_bounding_boxes.csv``, the boxes of each study in their order.

    Raises:
        DamagedFileError: not a table, a column is missing, or a cell is not a number that a box can have.
    """
    found: dict[str, list[BoxRow]] = {}
    for where, cells in _rows(path, (UID_COLUMN, *BOX_COLUMNS, SLICE_COLUMN)):
        uid = _uid(cells, where)
        x, y, width, height, number = (_number(cells, name, where) for name in (*BOX_COLUMNS, SLICE_COLUMN))
        for name, value in (("width", width), ("height", height)):
            if value <= 0:
                raise DamagedFileError(f"expected a size above 0, got {value:g}", where=f"{where}, column {name}")
        if number != int(number) or number < 0:
            raise DamagedFileError(f"expected the number of a file, got {number:g}", where=f"{where}, {SLICE_COLUMN}")
        found.setdefault(uid, []).append(BoxRow(uid, x, y, width, height, int(number), where))
    return {uid: tuple(rows) for uid, rows in found.items()}


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str | None]]]:
    """``(where, cells)`` of every row that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            missing = [name for name in columns if name not in (table.fieldnames or ())]
            if missing:
                raise DamagedFileError(
                    f"expected the columns {', '.join(columns)}; missing: {', '.join(missing)}",
                    where=path.name,
                    fix="Take the table as it was published",
                )
            for cells in table:
                yield f"{path.name}, row {table.line_num}", cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DamagedFileError(f"the table cannot be read: {error}", where=path.name) from error


def _uid(cells: Mapping[str, str | None], where: str) -> str:
    text = (cells[UID_COLUMN] or "").strip()
    if not is_uid(text):
        raise DamagedFileError(
            "expected a UID: numbers with dots between, at most 64 characters", where=f"{where}, column {UID_COLUMN}"
        )
    return text


def _flag(cells: Mapping[str, str | None], column: str, where: str) -> bool:
    text = (cells[column] or "").strip()
    if text not in ("0", "1"):
        raise DamagedFileError(f"expected 0 or 1, got {text!r}", where=f"{where}, column {column}")
    return text == "1"


def _number(cells: Mapping[str, str | None], column: str, where: str) -> float:
    text = (cells[column] or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DamagedFileError(f"expected a number, got {text!r}", where=f"{where}, column {column}")
    return value
