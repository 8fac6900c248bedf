"""The result as an HL7 v2.5.1 message ORU^R01."""

from __future__ import annotations

from pathlib import Path

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.parser import parse_message
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset

from cspine import reports
from cspine.findings import Findings, WarningItem
from cspine.reports import hl7, words
from cspine.reports.inputs import ReportInput
from dicom_results import judge
from report_factory import make_findings, make_volume

PROBABILITIES = (0.02, 0.86, 0.1, 0.3, 0.05, 0.2, None)
DELIMITERS = "|^&~\\\r\n"


def message_of(findings: Findings) -> bytes:
    return hl7.render(ReportInput.of(findings, make_volume()))


def segments(data: bytes) -> list[list[str]]:
    """Fields of each segment, split as a simple receiver does it."""
    text = data.decode()
    assert text.endswith("\r") and "\n" not in text
    return [line.split("|") for line in text.rstrip("\r").split("\r")]


def observations(data: bytes) -> list[list[str]]:
    return [fields for fields in segments(data) if fields[0] == "OBX"]


def valid(data: bytes) -> Message:
    """The message, if a strict parser takes it."""
    message = parse_message(data.decode(), validation_level=VALIDATION_LEVEL.STRICT)
    assert message.validate()
    return message


def unescaped(text: str) -> str:
    for letter, mark in zip("FSTR", "|^&~", strict=True):
        text = text.replace(f"\\{letter}\\", mark)
    return text.replace("\\E\\", "\\")


class TestMessage:
    @pytest.mark.parametrize("probabilities", [PROBABILITIES, (0.9,) * 7, (0.1,) * 7, (None,) * 7])
    def test_is_valid(self, probabilities: tuple[float | None, ...]) -> None:
        valid(message_of(make_findings(probabilities)))

    def test_head(self) -> None:
        head = segments(message_of(make_findings(PROBABILITIES)))[0]
        assert (head[8], head[11], head[17]) == ("ORU^R01^ORU_R01", "2.5.1", "UNICODE UTF-8")
        assert head[6] == "20300102030405+0000"
        assert 0 < len(head[9]) <= 20

    def test_same_input_same_bytes(self) -> None:
        assert message_of(make_findings(PROBABILITIES)) == message_of(make_findings(PROBABILITIES))

    def test_another_result_is_another_message(self) -> None:
        one, two = (segments(message_of(make_findings(p)))[0][9] for p in (PROBABILITIES, (0.9,) * 7))
        assert one != two


class TestText:
    def test_impression_levels_warnings_and_limits_in_order(self) -> None:
        findings = make_findings(PROBABILITIES, warnings=(WarningItem(code="w", message="slices were resampled"),))
        lines = observations(message_of(findings))
        assert [fields[1] for fields in lines] == [str(number) for number in range(1, 11)]
        assert lines[0][3] == "19005-8^Impressions^LN"
        assert lines[0][5] == words.impression(findings).replace(words.NBSP, " ")
        assert [fields[4] for fields in lines[1:8]] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
        assert lines[2][5] == "C2: Fracture suspected, 86 % (threshold 50 %), likely type dens II (60 %)."
        assert lines[7][5] == "C7: Not judged: below the end of the scan."
        assert lines[8][5] == "Slices were resampled."
        assert lines[9][5] == f"{words.RESEARCH} {words.LIMITS}"

    def test_everything_is_preliminary(self) -> None:
        data = message_of(make_findings(PROBABILITIES))
        assert {fields[11] for fields in observations(data)} == {"P"}
        (request,) = [fields for fields in segments(data) if fields[0] == "OBR"]
        assert request[25] == "P"

    def test_abnormal_only_where_something_is_suspected(self) -> None:
        flags = [fields[8] for fields in observations(message_of(make_findings(PROBABILITIES)))]
        assert flags == ["A", "N", "A", "N", "N", "N", "N", "", ""]

    @given(st.text(max_size=100))
    def test_nothing_in_a_text_begins_a_field_or_a_segment(self, text: str) -> None:
        escaped = hl7.escaped(text)
        assert not set(escaped) & set("|^&~\r\n")
        assert unescaped(escaped).split() == "".join(" " if ord(c) < 32 or ord(c) == 127 else c for c in text).split()

    def test_a_warning_full_of_delimiters_arrives(self) -> None:
        evil = WarningItem(code="w", message=f"a{DELIMITERS}b OBX|99|TX|forged")
        data = message_of(make_findings(PROBABILITIES, warnings=(evil,)))
        valid(data)
        assert len(observations(data)) == 10
        assert unescaped(observations(data)[8][5]) == "A|^&~\\ b OBX|99|TX|forged."


class TestPatient:
    def test_without_dicom_anonymous_with_the_name_of_the_study(self) -> None:
        patient = segments(message_of(make_findings(PROBABILITIES, name="neck|7")))[1]
        assert (patient[3], patient[5]) == ("neck\\F\\7", "ANONYMOUS")

    def test_without_anything(self) -> None:
        findings = make_findings(PROBABILITIES)
        provenance = findings.provenance.model_copy(update={"input": None})
        data = message_of(findings.model_copy(update={"provenance": provenance}))
        valid(data)
        assert segments(data)[1][3] == "ANONYMOUS"

    def test_with_dicom_as_it_stands_there(self, tmp_path: Path) -> None:
        def named(index: int, header: FileDataset) -> None:
            header.PatientName, header.PatientID, header.IssuerOfPatientID = "Muster^Anna^B^Dr.^PhD", "ID&7", "Ward^7"
            header.PatientBirthDate, header.PatientSex = "19500102", "F"
            header.AccessionNumber, header.StudyDate, header.StudyTime = "ACC|7", "20300101", "101112.5"
            header.ReferringPhysicianName = "Doe^Jane"

        data = judge(tmp_path / "study", edit=named).write(tmp_path, "hl7")["hl7"].read_bytes()
        valid(data)
        patient, request = segments(data)[1:3]
        assert patient[3] == "ID\\T\\7^^^Ward\\S\\7"
        assert patient[5] == "Muster^Anna^B^PhD^Dr."
        assert (patient[7], patient[8]) == ("19500102", "F")
        assert (request[2], request[7], request[16]) == ("ACC\\F\\7", "20300101101112", "^Doe^Jane")

    @pytest.mark.parametrize(
        ("keyword", "value"),
        [("PatientBirthDate", "1950"), ("StudyDate", "yesterday"), ("StudyTime", "??:??")],
    )
    def test_damaged_values_are_left_out(self, tmp_path: Path, keyword: str, value: str) -> None:
        study = judge(tmp_path / "study", edit=lambda _, header: setattr(header, keyword, value))
        data = study.write(tmp_path, "hl7")["hl7"].read_bytes()
        valid(data)
        assert value not in data.decode()

    def test_an_unknown_sex_is_left_out(self, tmp_path: Path) -> None:
        study = judge(tmp_path / "study", edit=lambda _, header: setattr(header, "PatientSex", "X"))
        data = study.write(tmp_path, "hl7")["hl7"].read_bytes()
        valid(data)
        assert len(segments(data)[1]) <= 8

    def test_no_value_of_a_patient_reaches_a_warning(self, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
        study = judge(tmp_path / "study", edit=lambda _, header: setattr(header, "PatientBirthDate", "1950"))
        recwarn.clear()
        study.write(tmp_path, "hl7", "fhir")
        assert not [one for one in recwarn if "1950" in str(one.message)]

    def test_a_study_without_patient_id_does_not_show_the_name_of_its_folder(self, tmp_path: Path) -> None:
        study = judge(tmp_path / "Secret_Folder", edit=lambda _, header: setattr(header, "PatientID", ""))
        data = study.write(tmp_path, "hl7")["hl7"].read_bytes()
        assert segments(data)[1][3] == "ANONYMOUS"
        assert b"Secret_Folder" not in data


def test_the_file(tmp_path: Path) -> None:
    written = reports.write(make_findings(), make_volume(), tmp_path, formats=["hl7"])
    assert written["hl7"].name == "oru.hl7"
