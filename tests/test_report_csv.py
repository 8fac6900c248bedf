"""summary.csv: stable columns, one row a study, safe in a spreadsheet."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cspine import reports
from cspine.errors import NotCtError, OutputError
from cspine.reports.summary import COLUMNS, read_summary, row, to_csv, write_summary
from report_factory import make_findings, make_volume

REFUSED = make_findings((None,) * 7)


def test_columns_are_these() -> None:
    assert COLUMNS[:5] == ("study", "status", "patient_probability", "patient_fracture", "patient_threshold")
    assert COLUMNS[5:9] == ("C1_visible", "C1_probability", "C1_fracture", "C1_type")
    assert len(COLUMNS) == 5 + 7 * 4 + 11


def test_row_says_what_was_found() -> None:
    entry = row("a", make_findings(), folder="a")
    assert entry["patient_probability"] == "0.8600"
    assert (entry["C2_fracture"], entry["C2_type"], entry["C7_probability"]) == ("yes", "dens-ii", "")
    assert (entry["not_judged"], entry["bundle_version"], entry["seconds"]) == ("C7", "9.8.7", "3.5")


def test_row_of_a_failed_study_says_why() -> None:
    entry = row("b", REFUSED, status="failed", error=NotCtError("expected CT, got MR", where="a.dcm"))
    assert (entry["status"], entry["reason"]) == ("failed", "expected CT, got MR")
    assert entry["patient_probability"] == ""


def test_rows_are_kept_in_place_and_replaced_by_name(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    write_summary(path, [row("a", make_findings()), row("b", REFUSED)])
    write_summary(path, [row("c", make_findings()), row("a", REFUSED)], keep=True)
    assert [(entry["study"], entry["status"]) for entry in read_summary(path)] == [
        ("a", "refused"),
        ("b", "refused"),
        ("c", "partial"),
    ]
    write_summary(path, [row("d", REFUSED)])
    assert [entry["study"] for entry in read_summary(path)] == ["d"]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "", "\x00\x01", ",".join(COLUMNS) + "\nonly one cell\n"])
def test_another_file_in_the_way_is_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "summary.csv"
    path.write_text(text)
    with pytest.raises(OutputError, match="another file"):
        write_summary(path, [row("a", REFUSED)], keep=True)
    assert path.read_text() == text


@given(st.text(st.characters(codec=None), max_size=30))
@example("\udcff\x0c=1")
def test_any_name_stays_one_cell_and_no_formula(name: str) -> None:
    data = to_csv([row(name, REFUSED)]).decode()
    header, entry = list(csv.reader(StringIO(data, newline="")))
    assert len(entry) == len(header) == len(COLUMNS)
    assert len(entry[0].splitlines()) <= 1
    assert not entry[0].startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_write_makes_one_row_for_one_study(tmp_path: Path) -> None:
    written = reports.write(make_findings(name="=cmd()"), make_volume(), tmp_path, formats=("csv", "json"))
    assert read_summary(written["csv"])[0]["study"] == "'=cmd()"
