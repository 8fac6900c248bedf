"""findings.json: what is written is what was found, and its published schema is the one in force."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspine import reports
from cspine.errors import StudyError, UsageError
from cspine.findings import SCHEMA_VERSION, Findings
from cspine.reports.schema import schema_text
from report_factory import make_findings, make_volume

DOCS = Path(__file__).resolve().parents[1] / "docs" / "reference"


def test_json_holds_the_fixed_names_and_reads_back(tmp_path: Path) -> None:
    findings = make_findings()
    written = reports.write(findings, make_volume(), tmp_path, formats=("json",))
    assert written == {"json": tmp_path / "findings.json"}
    data = json.loads(written["json"].read_text())
    assert data["schema_version"] == SCHEMA_VERSION
    assert data["patient"]["probability"] == 0.86
    assert data["patient"]["fracture"] is True
    assert [level["level"] for level in data["levels"]] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    names = {"level", "visible", "visible_fraction", "confidence", "body_center_mm", "probability", "fracture", "type"}
    assert all(names | {"evidence"} <= set(level) for level in data["levels"])
    assert data["status"] == "partial"
    assert data["levels"][6]["probability"] is None
    assert Findings.load(written["json"]) == findings


def test_same_findings_same_bytes(tmp_path: Path) -> None:
    first = reports.write(make_findings(), make_volume(), tmp_path / "a")
    second = reports.write(make_findings(), make_volume(), tmp_path / "b")
    assert first.keys() == second.keys() == {"json", "html"}
    for name in first:
        assert first[name].read_bytes() == second[name].read_bytes()


def test_published_schema_is_current() -> None:
    published = (DOCS / "findings.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), (
        "write it again: python -m cspine.reports.schema > docs/reference/findings.schema.json"
    )


def test_schema_is_a_json_schema_of_this_version() -> None:
    schema = json.loads(schema_text())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == f"cspine findings {SCHEMA_VERSION}"
    # Written by this version, every key is there, also those that are null.
    assert set(schema["required"]) == set(schema["properties"])


def test_reference_page_explains_every_field() -> None:
    page = (DOCS / "findings.md").read_text(encoding="utf-8")
    schema = json.loads(schema_text())
    parts = [schema, *schema["$defs"].values()]
    missing = [name for part in parts for name in part.get("properties", {}) if f"`{name}`" not in page]
    assert not missing


@pytest.mark.parametrize("formats", [("json", "docx"), ()])
def test_unknown_or_no_format_is_a_usage_error(tmp_path: Path, formats: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="formats among json, html, csv"):
        reports.write(make_findings(), None, tmp_path / "out", formats=formats)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_findings_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "findings.json"
    path.write_text(make_findings().to_json().replace('"visible": true', '"visible": "perhaps"', 1))
    with pytest.raises(StudyError, match=r"levels\.0\.visible"):
        Findings.load(path)
