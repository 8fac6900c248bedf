"""The report on paper: one or two pages of PDF, alone and inside a DICOM object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset
from reportlab.platypus import KeepTogether, Paragraph, Table

from components import validation_errors
from cspine import reports
from cspine.errors import UsageError
from cspine.findings import Findings, WarningItem
from cspine.reports import pdf, words
from cspine.reports.inputs import ReportInput
from dicom_factory import write_enhanced
from dicom_results import judge, judged, read
from report_factory import center_of, evidence_at, make_findings, make_prediction, make_volume

CASES = [
    pytest.param((0.02, 0.86, 0.1, 0.3, 0.05, 0.2, None), id="one suspected"),
    pytest.param((0.9,) * 7, id="all suspected"),
    pytest.param((0.1,) * 7, id="none suspected"),
    pytest.param((None,) * 7, id="refused"),
]


def report_on(
    probabilities: tuple[float | None, ...], *, warnings: tuple[WarningItem, ...] = (), name: str = "study"
) -> ReportInput:
    volume = make_volume()
    evidence = {
        k: (evidence_at(volume, center_of(k)),) for k, value in enumerate(probabilities) if value and value > 0.5
    }
    findings = make_findings(probabilities, evidence=evidence, warnings=warnings, name=name)
    return ReportInput.of(make_prediction(volume, findings), volume)


def texts(parts: Iterable[object]) -> Iterator[str]:
    """All text of a report, in order; the PDF itself holds glyphs, not letters."""
    for part in parts:
        if isinstance(part, Paragraph):
            yield part.getPlainText()
        elif isinstance(part, Table):
            for row in part._cellvalues:
                for cell in row:
                    yield from texts(cell if isinstance(cell, list) else [cell])
        elif isinstance(part, KeepTogether):
            yield from texts(part._content)


def text_of(report: ReportInput, *, named: bool = True) -> str:
    pdf.render(report)  # makes the faces known
    return "\n".join(texts(pdf._story(report, named=named)))


def pages_in(data: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b", data))


class TestPages:
    @pytest.mark.parametrize("probabilities", CASES)
    def test_one_or_two_pages(self, probabilities: tuple[float | None, ...]) -> None:
        data = pdf.render(report_on(probabilities))
        assert data.startswith(b"%PDF-1.") and data.rstrip().endswith(b"%%EOF")
        assert pages_in(data) in (1, 2)

    def test_same_input_same_bytes(self) -> None:
        report = report_on((0.02, 0.86, 0.1, 0.3, 0.05, 0.2, None))
        assert pdf.render(report) == pdf.render(report)

    def test_dates_are_those_of_the_findings(self) -> None:
        data = pdf.render(report_on((0.1,) * 7))
        assert data.count(b"(D:20300102030405Z)") == 2

    def test_has_a_title_and_a_language(self) -> None:
        data = pdf.render(report_on((0.1,) * 7))
        assert b"/Title" in data and b"/Lang (en)" in data and b"/DisplayDocTitle true" in data

    def test_type_is_embedded(self) -> None:
        assert pdf.render(report_on((0.1,) * 7)).count(b"/FontFile2") == 2

    def test_text_of_any_length_is_laid_out(self) -> None:
        warnings = tuple(WarningItem(code=f"w-{k}", message="longword" * 300) for k in range(40))
        assert pages_in(pdf.render(report_on((0.9,) * 7, warnings=warnings, name="n" * 4000))) > 2


class TestSentences:
    @pytest.mark.parametrize("probabilities", CASES)
    def test_are_those_of_every_other_report(self, probabilities: tuple[float | None, ...]) -> None:
        report = report_on(probabilities, warnings=(WarningItem(code="w", message="slices were resampled"),))
        text = text_of(report)
        findings = report.findings
        expected = [words.headline(findings), *words.said(findings)]
        if findings.status != "refused":
            expected += [words.finding(item) for item in findings.levels]
            expected += [words.why_not(item) for item in findings.levels if item.probability is None]
            expected.append("Slices were resampled.")
        else:
            expected += words.advice(findings)
        assert all(sentence in text for sentence in expected)

    def test_where_it_comes_from(self) -> None:
        text = text_of(report_on((0.1,) * 7))
        assert "base 9.8.7" in text and "ab" * 32 in text and "2030-01-02 03:04:05 UTC" in text

    def test_nothing_in_a_name_or_a_warning_is_markup(self) -> None:
        evil = "<b>bold</b> & <font color='red'> <img src='file:///etc/passwd'/>"
        text = text_of(report_on((0.1,) * 7, warnings=(WarningItem(code="w", message=evil),), name=evil))
        assert text.count(evil) >= 2

    def test_letters_that_the_type_lacks_become_question_marks(self) -> None:
        assert "?? study" in text_of(report_on((0.1,) * 7, name="頸椎 study"))

    def test_the_name_can_be_left_out(self) -> None:
        report = report_on((0.1,) * 7, name="Secret_Name")
        assert "Secret_Name" in text_of(report)
        assert "Secret_Name" not in text_of(report, named=False)

    def test_without_a_ct_there_is_text(self) -> None:
        findings: Findings = make_findings()
        assert pages_in(pdf.render(ReportInput.of(findings, None))) == 1


class TestEncapsulated:
    def test_is_what_the_standard_wants(self, tmp_path: Path) -> None:
        def named(index: int, header: FileDataset) -> None:
            header.PatientBirthDate, header.StudyID, header.AccessionNumber = "19500102", "7", "ACC-7"

        written = judge(tmp_path / "study", edit=named).write(tmp_path, "dicom-pdf")["dicom-pdf"]
        assert written.name == "report-pdf.dcm"
        assert validation_errors(written) == []
        document = read(written)
        assert (document.PatientName, document.PatientID, document.AccessionNumber) == (
            "Secret^Name",
            "SECRET-ID",
            "ACC-7",
        )
        assert (document.Modality, document.BurnedInAnnotation) == ("DOC", "NO")

    def test_holds_the_pages_without_the_name_of_the_folder(self, tmp_path: Path) -> None:
        study = judge(tmp_path / "study")
        document = read(study.write(tmp_path, "dicom-pdf")["dicom-pdf"])
        pages = document.EncapsulatedDocument[: document.EncapsulatedDocumentLength]
        assert pages == pdf.render(ReportInput.of(study.prediction, study.volume, study.series), named=False)
        assert len(document.EncapsulatedDocument) % 2 == 0

    def test_refers_to_what_was_read(self, tmp_path: Path) -> None:
        study = judge(tmp_path / "study")
        document = read(study.write(tmp_path, "dicom-pdf")["dicom-pdf"])
        used = [item.ReferencedSOPInstanceUID for item in document.SourceInstanceSequence]
        assert used == [one.sop_instance_uid for one in study.series.instances]

    def test_of_one_enhanced_file(self, tmp_path: Path) -> None:
        write_enhanced(tmp_path / "all.dcm")
        written = judged(tmp_path / "all.dcm").write(tmp_path / "out", "dicom-pdf")["dicom-pdf"]
        assert validation_errors(written) == []
        assert len(read(written).SourceInstanceSequence) == 1

    def test_needs_a_dicom_study(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="the format dicom-pdf needs a DICOM study"):
            reports.write(make_findings(), make_volume(), tmp_path, formats=["dicom-pdf"])


def test_the_plain_pdf_needs_no_dicom(tmp_path: Path) -> None:
    written = reports.write(make_findings(), make_volume(), tmp_path, formats=["pdf"])
    assert written["pdf"].read_bytes().startswith(b"%PDF")
