"""The result as a FHIR R4 Bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from pydicom.dataset import FileDataset

from cspine import reports
from cspine.anatomy import LEVELS
from cspine.findings import Findings, WarningItem
from cspine.reports import fhir, words
from cspine.reports.inputs import ReportInput
from dicom_results import judge
from report_factory import make_findings, make_volume

SNOMED = "http://snomed.info/sct"
PROBABILITIES = (0.02, 0.86, 0.1, 0.3, 0.05, 0.2, None)
# Elements that R4 (4.0.1) defines for what is used here; R4B, whose models check the rest, must add none.
R4_ELEMENTS = {
    "DiagnosticReport": {
        "resourceType", "id", "meta", "text", "identifier", "basedOn", "status", "category", "code", "subject",
        "encounter", "effectiveDateTime", "effectivePeriod", "issued", "performer", "resultsInterpreter", "specimen",
        "result", "imagingStudy", "media", "conclusion", "conclusionCode", "presentedForm",
    },
    "Observation": {
        "resourceType", "id", "meta", "text", "identifier", "basedOn", "partOf", "status", "category", "code",
        "subject", "focus", "encounter", "effectiveDateTime", "issued", "performer", "valueCodeableConcept",
        "dataAbsentReason", "interpretation", "note", "bodySite", "method", "specimen", "device", "referenceRange",
        "hasMember", "derivedFrom", "component",
    },
    "Device": {
        "resourceType", "id", "meta", "text", "identifier", "definition", "udiCarrier", "status", "manufacturer",
        "serialNumber", "deviceName", "modelNumber", "type", "specialization", "version", "property", "note",
    },
    "ImagingStudy": {
        "resourceType", "id", "meta", "text", "identifier", "status", "modality", "subject", "started",
        "numberOfSeries", "numberOfInstances", "series", "note", "description",
    },
}  # fmt: skip


def bundle_of(findings: Findings) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(fhir.render(ReportInput.of(findings, make_volume())))
    return data


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def level(bundle: dict[str, Any], number: int) -> dict[str, Any]:
    """The observation of a vertebra, found by its code."""
    code = LEVELS[number].snomed
    (found,) = [one for one in resources(bundle, "Observation") if one["bodySite"]["coding"][0]["code"] == code]
    return found


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return bundle_of(make_findings(PROBABILITIES))


class TestBundle:
    @pytest.mark.parametrize("probabilities", [PROBABILITIES, (0.9,) * 7, (0.1,) * 7, (None,) * 7])
    def test_is_valid(self, probabilities: tuple[float | None, ...]) -> None:
        Bundle.model_validate(bundle_of(make_findings(probabilities)))

    def test_uses_only_what_r4_defines(self, plain: dict[str, Any]) -> None:
        assert plain["meta"]["profile"] == ["http://hl7.org/fhir/StructureDefinition/Bundle|4.0.1"]
        for entry in plain["entry"]:
            resource = entry["resource"]
            assert set(resource) <= R4_ELEMENTS[resource["resourceType"]]

    def test_every_reference_leads_to_a_resource(self, plain: dict[str, Any]) -> None:
        known = {entry["fullUrl"] for entry in plain["entry"]}
        assert len(known) == len(plain["entry"])
        asked = set(_references(plain))
        assert asked and asked <= known

    def test_same_input_same_bytes(self) -> None:
        report = ReportInput.of(make_findings(PROBABILITIES), make_volume())
        assert fhir.render(report) == fhir.render(report)

    def test_another_result_has_other_ids(self, plain: dict[str, Any]) -> None:
        other = bundle_of(make_findings((0.5, *PROBABILITIES[1:])))
        assert not {entry["fullUrl"] for entry in plain["entry"]} & {entry["fullUrl"] for entry in other["entry"]}


class TestReport:
    def test_is_preliminary_and_says_what_every_report_says(self, plain: dict[str, Any]) -> None:
        (report,) = resources(plain, "DiagnosticReport")
        assert report["status"] == "preliminary"
        assert report["category"][0]["coding"][0]["code"] == "RAD"
        expected = f"{words.impression(make_findings(PROBABILITIES))} {words.RESEARCH} {words.LIMITS}"
        assert report["conclusion"] == expected
        assert len(report["result"]) == 8

    def test_text_is_escaped(self) -> None:
        evil = WarningItem(code="w", message="<script>alert(1)</script> & more")
        (report,) = resources(bundle_of(make_findings(PROBABILITIES, warnings=(evil,))), "DiagnosticReport")
        assert "<script>" not in report["text"]["div"]
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more." in report["text"]["div"]


class TestObservations:
    def test_present(self, plain: dict[str, Any]) -> None:
        found = level(plain, 1)
        assert found["valueCodeableConcept"]["coding"][0] == {
            "system": SNOMED,
            "code": "52101004",
            "display": "Present",
        }
        assert found["interpretation"][0]["coding"][0]["code"] == "POS"
        first, threshold, kind = found["component"]
        assert (first["code"]["coding"][0]["code"], first["valueQuantity"]["value"]) == ("122157", 0.86)
        assert threshold["valueQuantity"]["value"] == 0.5
        assert kind["valueString"] == "dens II"

    def test_absent(self, plain: dict[str, Any]) -> None:
        found = level(plain, 0)
        assert found["valueCodeableConcept"]["coding"][0]["code"] == "272519000"
        assert found["interpretation"][0]["coding"][0]["code"] == "NEG"

    def test_not_judged_is_neither(self, plain: dict[str, Any]) -> None:
        found = level(plain, 6)
        assert "valueCodeableConcept" not in found and "interpretation" not in found and "component" not in found
        assert found["dataAbsentReason"]["coding"][0]["code"] == "not-performed"
        assert found["dataAbsentReason"]["text"] == "Below the end of the scan."

    def test_a_neck_of_which_a_part_was_not_judged_is_not_called_clear(self) -> None:
        neck = _patient(bundle_of(make_findings((0.1,) * 6 + (None,))))
        assert "valueCodeableConcept" not in neck
        assert neck["dataAbsentReason"]["text"] == "No fracture suspected in the levels judged."
        assert (
            _patient(bundle_of(make_findings((0.1,) * 7)))["valueCodeableConcept"]["coding"][0]["display"] == "Absent"
        )

    def test_what_one_level_raises_is_not_called_clear(self) -> None:
        findings = make_findings((0.6,) + (0.1,) * 6)
        patient = findings.patient.model_copy(update={"fracture": False, "threshold": 0.9})
        neck = _patient(bundle_of(findings.model_copy(update={"patient": patient})))
        assert neck["valueCodeableConcept"]["coding"][0]["display"] == "Present"

    def test_name_the_model(self, plain: dict[str, Any]) -> None:
        (device,) = resources(plain, "Device")
        assert device["identifier"][0]["value"] == "ab" * 32
        assert device["version"][0]["value"] == "9.8.7"
        assert all(one["device"]["reference"].endswith(device["id"]) for one in resources(plain, "Observation"))


class TestSubject:
    def test_without_dicom_nobody(self, plain: dict[str, Any]) -> None:
        assert {json.dumps(one["subject"]) for one in _with_subject(plain)} == {'{"display": "Anonymous"}'}
        assert resources(plain, "ImagingStudy") == []

    def test_with_dicom_the_identifier_and_nothing_else(self, tmp_path: Path) -> None:
        def issued(index: int, header: FileDataset) -> None:
            header.IssuerOfPatientID, header.StudyDate, header.PatientBirthDate = "Ward 7", "20300101", "19500102"

        study = judge(tmp_path / "study", edit=issued)
        text = study.write(tmp_path, "fhir")["fhir"].read_text()
        bundle = json.loads(text)
        Bundle.model_validate(bundle)
        for one in _with_subject(bundle):
            identifier = {"value": "SECRET-ID", "assigner": {"display": "Ward 7"}}
            assert one["subject"] == {"type": "Patient", "identifier": identifier}
        assert "Secret^Name" not in text and "1950" not in text
        (report,) = resources(bundle, "DiagnosticReport")
        assert report["effectiveDateTime"] == "2030-01-01"

    def test_with_dicom_the_study_and_series(self, tmp_path: Path) -> None:
        study = judge(tmp_path / "study")
        bundle = json.loads(study.write(tmp_path, "fhir")["fhir"].read_text())
        (imaging,) = resources(bundle, "ImagingStudy")
        assert imaging["identifier"][0]["value"] == f"urn:oid:{study.series.context.StudyInstanceUID}"
        assert imaging["series"][0]["uid"] == study.series.series_uid
        (report,) = resources(bundle, "DiagnosticReport")
        assert report["imagingStudy"][0]["reference"].endswith(imaging["id"])

    @pytest.mark.parametrize("date", ["", "2030", "not-date"])
    def test_a_damaged_date_is_left_out(self, tmp_path: Path, date: str) -> None:
        study = judge(tmp_path / "study", edit=lambda _, header: setattr(header, "StudyDate", date))
        bundle = json.loads(study.write(tmp_path, "fhir")["fhir"].read_text())
        assert all("effectiveDateTime" not in entry["resource"] for entry in bundle["entry"])


def test_the_file(tmp_path: Path) -> None:
    written = reports.write(make_findings(), make_volume(), tmp_path, formats=["fhir"])
    assert written["fhir"].name == "diagnostic-report.json"


def _patient(bundle: dict[str, Any]) -> dict[str, Any]:
    (found,) = [one for one in resources(bundle, "Observation") if "hasMember" in one]
    return found


def _with_subject(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in bundle["entry"] if "subject" in entry["resource"]]


def _references(value: object) -> list[str]:
    """All references inside a JSON value."""
    if isinstance(value, dict):
        own = [value["reference"]] if isinstance(value.get("reference"), str) else []
        return own + [found for part in value.values() for found in _references(part)]
    return [found for part in value for found in _references(part)] if isinstance(value, list) else []
