"""Tables of labels that users write themselves, and the words in which they say fractured."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cspine.anatomy import LEVELS, Level
from cspine.errors import DamagedFileError, UsageError

# The table is taken by this name when a folder holds several.
LABELS_FILE = "labels.csv"
STUDY_COLUMNS = ("study", "studyinstanceuid", "study_id", "name", "file", "filename", "image")
PATIENT_COLUMNS = ("patient", "patient_id", "patientid")
OVERALL_COLUMNS = ("patient_overall", "overall", "fractured", "fracture", "label")

_FRACTURED = {"1", "1.0", "true", "yes", "fractured", "fracture", "broken", "positive"}
_INTACT = {
    "0", "0.0", "false", "no", "intact", "normal", "healthy", "negative", "negative study", "unfractured",
    "not fractured", "non fractured", "nonfractured", "notfractured", "no fracture",
}  # fmt: skip
_UNKNOWN = {"", "?", "nan", "na", "n/a", "unknown"}
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        cells: by name of the column, in lower case.
        where: file and row, for messages.
    """

    cells: Mapping[str, str]
    where: str

    def text(self, columns: Iterable[str]) -> str:
        """What the first of these columns that the table has says; empty when it has none."""
        return next((self.cells[name] for name in columns if name in self.cells), "")

    def flag(self, columns: Iterable[str]) -> bool | None:
        """Fractured or not, by the first of these columns that the table has; None where nothing is said.

        Raises:
            DamagedFileError: neither.
        """
        for name in columns:
            if name in self.cells:
                return said(self.cells[name], where=f"{self.where}, column {name}")
        return None

    def number(self, column: str) -> float | None:
        """A number, or None where nothing is said.

        Raises:
            DamagedFileError: something else.
        """
        text = self.cells.get(column, "")
        if text.lower() in _UNKNOWN:
            return None
        try:
            return float(text)
        except ValueError:
            raise DamagedFileError(
                f"expected a number, got {text[:40]!r}", where=f"{self.where}, column {column}"
            ) from None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of labels.

    Attributes:
        name: of the file.
        columns: in lower case.
        rows: those that are not empty.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def require(self, *choices: Sequence[str]) -> None:
        """Of each choice one column must be there.

        Raises:
            UsageError: none is.
        """
        for choice in choices:
            if not set(choice) & set(self.columns):
                raise UsageError(
                    f"expected a column {' or '.join(choice)}, got {', '.join(self.columns) or 'none'}",
                    where=self.name,
                    fix="Name the columns so in the first line",
                )


def read_table(path: Path) -> Table:
    """A CSV file with commas, semicolons or tabs, its columns named in the first line.

    Raises:
        DamagedFileError: not such a table, a column is named twice, or it has no rows.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        delimiter = max(",;\t", key=head.count)
        lines = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
        columns = tuple(name.strip().lower() for name in next(lines, []))
        rows = []
        for cells in lines:
            if any(cell.strip() for cell in cells):
                known = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
                rows.append(Row(known, f"{path.name}, row {lines.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DamagedFileError(f"the table cannot be read: {error}", where=path.name) from error
    if len(set(columns)) != len(columns):
        raise DamagedFileError("a column is named twice", where=path.name)
    if not rows:
        raise DamagedFileError("the table has no rows", where=path.name)
    return Table(path.name, columns, tuple(rows))


def find_table(folder: Path) -> Path | None:
    """The table of a folder: ``labels.csv``, else the only ``.csv`` file; None when there is none.

    Raises:
        UsageError: there are several others.
    """
    found = sorted(path for path in folder.glob("*.csv") if path.is_file() and not path.name.startswith("."))
    if len(found) < 2:
        return found[0] if found else None
    named = [path for path in found if path.name.lower() == LABELS_FILE]
    if named:
        return named[0]
    raise UsageError(
        f"{len(found)} tables lie in the folder: {', '.join(path.name for path in found[:4])}",
        where=str(folder),
        fix=f"Name the one with the labels {LABELS_FILE}",
    )


def said(text: str, *, where: str) -> bool | None:
    """Whether a word says fractured (True) or intact (False); None where nothing is said.

    Raises:
        DamagedFileError: another word.
    """
    word = _word(text)
    if word in _UNKNOWN:
        return None
    if word in _FRACTURED:
        return True
    if word in _INTACT:
        return False
    raise DamagedFileError(
        f"expected 1 or 0, fractured or normal, got {text[:40]!r}", where=where, fix="Leave it empty where unknown"
    )


def class_of(folder: str) -> bool | None:
    """Whether the name of a folder says fractured or intact; None when it says neither."""
    word = _word(folder)
    if not word or word.isdigit():
        return None
    return True if word in _FRACTURED else False if word in _INTACT else None


def levels_in(text: str, *, where: str) -> tuple[Level, ...] | None:
    """Levels in a cell like ``C5``, ``5`` or ``C4 C5``; None where nothing is said.

    Raises:
        DamagedFileError: something else than levels.
    """
    if text.strip().lower() in _UNKNOWN:
        return None
    names = {level.name: level for level in LEVELS} | {str(int(level)): level for level in LEVELS}
    words = [word for word in re.split(r"[\s,;/+]+", text.strip().upper()) if word]
    if any(word not in names for word in words):
        raise DamagedFileError(f"expected levels C1 to C7, got {text[:40]!r}", where=where)
    return tuple(sorted({names[word] for word in words}))


def safe_name(text: str) -> str:
    """A name that can be that of a folder; texts that had to be changed get a number, so that they stay apart."""
    if _SAFE.fullmatch(text):
        return text
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80]
    return f"{kept or 'study'}-{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"


def _word(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text.strip().lower())
