"""``summary.csv``: one row a study, the same columns in every version 1 of the schema."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path

from cspine.anatomy import LEVELS
from cspine.errors import CspineError, OutputError
from cspine.findings import Findings
from cspine.reports import atomic, words

SUMMARY_FILE = "summary.csv"
COLUMNS: tuple[str, ...] = (
    "study",
    "status",
    "patient_probability",
    "patient_fracture",
    "patient_threshold",
    *(f"{level.name}_{what}" for level in LEVELS for what in ("visible", "probability", "fracture", "type")),
    "not_judged",
    "warnings",
    "reason",
    "folder",
    "input_sha256",
    "series_uid",
    "bundle",
    "bundle_version",
    "cspine",
    "created",
    "seconds",
)
# Spreadsheets read a cell that starts with one of these as a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t")

Row = dict[str, str]


def row(study: str, findings: Findings, *, folder: str = "", status: str = "", error: CspineError | None = None) -> Row:
    """The row of a study.

    Args:
        study: its name, the key of the table.
        findings: its result.
        folder: where its files are, relative to the table.
        status: instead of ``findings.status``, for example ``failed``.
        error: why nothing was judged; otherwise the first warning of a refused study says it.
    """
    patient, provenance = findings.patient, findings.provenance
    reason = "" if error is None else error.message
    if not reason and findings.status == "refused" and findings.warnings:
        reason = findings.warnings[0].message
    cells: Row = {
        "study": text_cell(study),
        "status": status or findings.status,
        "patient_probability": _number(patient.probability),
        "patient_fracture": _flag(patient.fracture),
        "patient_threshold": _number(patient.threshold),
        "not_judged": " ".join(item.level for item in findings.levels if item.probability is None),
        "warnings": text_cell(" ".join(item.code for item in findings.warnings)),
        "reason": text_cell(reason),
        "folder": text_cell(folder),
        "cspine": provenance.cspine,
        "created": text_cell(provenance.created),
        "seconds": f"{words.seconds(provenance.seconds):.1f}" if provenance.seconds else "",
    }
    for item in findings.levels:
        cells[f"{item.level}_visible"] = _flag(item.visible)
        cells[f"{item.level}_probability"] = _number(item.probability)
        cells[f"{item.level}_fracture"] = _flag(item.fracture)
        cells[f"{item.level}_type"] = text_cell(item.type or "")
    if provenance.input is not None:
        cells["input_sha256"] = provenance.input.sha256
        cells["series_uid"] = text_cell(provenance.input.series_uid or "")
    if provenance.bundle is not None:
        cells["bundle"] = text_cell(provenance.bundle.name)
        cells["bundle_version"] = text_cell(provenance.bundle.version)
    return {name: cells.get(name, "") for name in COLUMNS}


def to_csv(rows: Iterable[Mapping[str, str]]) -> bytes:
    """The whole table, UTF-8, header first, line feeds at the ends of lines."""
    stream = StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def write_summary(path: Path, rows: Iterable[Mapping[str, str]], *, keep: bool = False) -> Path:
    """Write the table atomically.

    Args:
        path: usually ``OUT/summary.csv``.
        rows: from ``row``; of two rows with the same ``study`` the later one holds.
        keep: rows already in the file stay, in their place, unless a new row of that study replaces them.

    Raises:
        OutputError: the file cannot be written, or ``keep`` meets a file that is no such table.
    """
    table = {entry["study"]: dict(entry) for entry in (read_summary(path) if keep and path.exists() else [])}
    table.update((entry["study"], dict(entry)) for entry in rows)
    atomic.write_file(path, to_csv(table.values()))
    return path


def read_summary(path: Path) -> list[Row]:
    """The rows of a table that ``write_summary`` wrote, as text.

    Raises:
        OutputError: another file is in the way: it cannot be read, or its columns are not ours.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = tuple(reader.fieldnames or ())
            rows = list(reader) if header == COLUMNS else []
    except OSError as error:
        raise atomic.output_error(error, path) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _foreign(path) from error
    if header != COLUMNS or any(None in entry or None in entry.values() for entry in rows):
        raise _foreign(path)
    return rows


def _foreign(path: Path) -> OutputError:
    return OutputError(
        f"expected {path.name} to be a summary of this version, but it is another file",
        where=str(path.parent),
        fix="Move it, or choose another output folder",
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _flag(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def text_cell(value: str) -> str:
    """Text that a spreadsheet takes for text, on one line."""
    # A file name may hold bytes that are no text; those become question marks.
    known = value.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
    line = " ".join(known.splitlines())
    return f"'{line}" if line.startswith(_FORMULA_STARTS) else line
