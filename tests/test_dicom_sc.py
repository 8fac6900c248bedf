"""The key-image sheet, and it as a DICOM Secondary Capture in the patient's study."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset

from components import need, validation_errors
from cspine import reports
from cspine.errors import UsageError
from cspine.findings import WarningItem
from cspine.reports import fonts, key_images, sheet, words
from cspine.reports.inputs import ReportInput
from dicom_factory import write_enhanced
from dicom_results import Judged, judge, judged, read
from orthanc_server import Orthanc
from report_factory import evidence_at, make_findings, make_prediction, make_volume, with_marker

PATIENT = {
    "PatientName": "Secret^Name",
    "PatientID": "SECRET-ID",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
    "StudyDate": "20300101",
    "StudyTime": "101112",
    "AccessionNumber": "ACC-7",
    "StudyID": "7",
    "ReferringPhysicianName": "Doe^Jane",
}


def dressed(index: int, header: FileDataset) -> None:
    """Everything that a study says of its patient."""
    for keyword, value in PATIENT.items():
        setattr(header, keyword, value)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return judge(tmp_path_factory.mktemp("study"), edit=dressed)


def report_of(study: Judged) -> ReportInput:
    return ReportInput.of(study.prediction, study.volume, study.series)


def phantom_report(
    probabilities: tuple[float | None, ...], warnings: tuple[WarningItem, ...] = (), name: str = "study"
) -> ReportInput:
    """A report whose suspected levels have evidence 12 mm to the left of their bodies, where a dense ball lies."""
    volume = make_volume()
    plain = make_findings(probabilities)
    places = {
        number: (item.body_center_mm[0] + 12, item.body_center_mm[1] + 20, item.body_center_mm[2])
        for number, item in enumerate(plain.levels)
        if item.fracture and item.body_center_mm is not None
    }
    for place in places.values():
        volume = with_marker(volume, place, 4.0)
    evidence = {number: (evidence_at(volume, place),) for number, place in places.items()}
    findings = make_findings(probabilities, evidence=evidence, warnings=warnings, name=name)
    return ReportInput.of(make_prediction(volume, findings), volume)


class TestObject:
    def test_is_what_the_standard_wants(self, study: Judged, tmp_path: Path) -> None:
        written = study.write(tmp_path, "sc")["sc"]
        assert written.name == "key-images.dcm"
        assert validation_errors(written) == []

    def test_shows_the_sheet_pixel_by_pixel(self, study: Judged, tmp_path: Path) -> None:
        image = read(study.write(tmp_path, "sc")["sc"])
        assert (image.Rows, image.Columns, image.PhotometricInterpretation) == (1200, 1600, "RGB")
        np.testing.assert_array_equal(image.pixel_array, sheet.draw(report_of(study)))

    def test_belongs_to_the_patient_and_study(self, study: Judged, tmp_path: Path) -> None:
        image = read(study.write(tmp_path, "sc")["sc"])
        assert {keyword: str(image[keyword].value) for keyword in PATIENT} == PATIENT
        assert image.StudyInstanceUID == study.series.context.StudyInstanceUID
        assert image.SeriesInstanceUID != study.series.series_uid
        assert image.preamble == b"\0" * 128

    def test_says_what_it_is_and_what_made_it(self, study: Judged, tmp_path: Path) -> None:
        image = read(study.write(tmp_path, "sc")["sc"])
        assert image.BurnedInAnnotation == "NO"
        assert image.DerivationDescription == f"Drawn from findings of cspine bundle base 9.8.7, SHA-256 {'ab' * 32}"
        assert "research use only" in image.SeriesDescription
        assert list(image.ImageType)[:2] == ["DERIVED", "SECONDARY"]

    def test_same_input_same_bytes(self, study: Judged, tmp_path: Path) -> None:
        one, two = (study.write(tmp_path / name, "sc")["sc"].read_bytes() for name in "ab")
        assert one == two

    def test_says_that_the_source_lost_something_to_compression(self, tmp_path: Path) -> None:
        def lossy(index: int, header: FileDataset) -> None:
            dressed(index, header)
            header.LossyImageCompression, header.LossyImageCompressionRatio = "01", "8.5"
            header.LossyImageCompressionMethod = "ISO_10918_1"

        written = judge(tmp_path / "study", edit=lossy).write(tmp_path / "out", "sc")["sc"]
        image = read(written)
        assert (image.LossyImageCompression, image.LossyImageCompressionRatio) == ("01", 8.5)
        assert validation_errors(written) == []

    def test_of_one_enhanced_file(self, tmp_path: Path) -> None:
        write_enhanced(tmp_path / "all.dcm")
        written = judged(tmp_path / "all.dcm").write(tmp_path / "out", "sc")["sc"]
        assert validation_errors(written) == []

    def test_needs_a_dicom_study(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="the format sc needs a DICOM study"):
            reports.write(make_findings(), make_volume(), tmp_path, formats=["sc"])


class TestInAPacs:
    """Sheet, marks and PDF go into a real Orthanc beside the study they belong to, and come out as they went in."""

    FORMATS = ("sc", "gsps", "dicom-pdf")

    def test_by_c_store(self, study: Judged, tmp_path: Path, orthanc: Orthanc) -> None:
        files = study.write(tmp_path, *self.FORMATS)
        slices = sorted(study.folder.glob("*.dcm"))[:2]
        send = [need("storescu"), "-R", orthanc.host, str(orthanc.dicom_port)]
        subprocess.run([*send, *map(str, [*slices, *files.values()])], check=True, timeout=60)
        self.same(orthanc, files)

    def test_by_stow_rs(self, study: Judged, tmp_path: Path, orthanc: Orthanc) -> None:
        files = study.write(tmp_path, *self.FORMATS)
        client = DICOMwebClient(orthanc.dicomweb)
        client.store_instances([read(path) for path in (*sorted(study.folder.glob("*.dcm"))[:2], *files.values())])
        self.same(orthanc, files)

    def same(self, orthanc: Orthanc, files: dict[str, Path]) -> None:
        for path in files.values():
            sent = read(path)
            assert read(orthanc.file_of(sent.SOPInstanceUID)) == sent
        (found,) = orthanc.json("/studies?expand")
        assert len(found["Series"]) == 1 + len(files)


class TestNobodyIsNamed:
    def test_whose_study_it_is_does_not_change_a_pixel(self, study: Judged, tmp_path: Path) -> None:
        def other(index: int, header: FileDataset) -> None:
            dressed(index, header)
            header.PatientName, header.PatientID, header.AccessionNumber = "Else^Somebody", "OTHER", "X"

        stranger = judge(tmp_path / "Else_Somebody", edit=other)
        np.testing.assert_array_equal(sheet.draw(report_of(study)), sheet.draw(report_of(stranger)))

    def test_nor_does_the_name_of_a_folder(self) -> None:
        probabilities = (0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
        one, two = (sheet.draw(phantom_report(probabilities, name=name)) for name in ("Secret_Name", "study"))
        np.testing.assert_array_equal(one, two)

    def test_slices_with_names_burned_in_are_not_shown(self, tmp_path: Path) -> None:
        def burned(index: int, header: FileDataset) -> None:
            dressed(index, header)
            header.BurnedInAnnotation = "YES"

        report = report_of(judge(tmp_path, edit=burned))
        assert key_images.key_images(report, 200) == []
        assert sheet.draw(report).shape == (1200, 1600, 3)


class TestKeyImages:
    def test_the_suspected_levels_are_shown(self) -> None:
        report = phantom_report((0.9, 0.1, 0.7, 0.1, 0.1, 0.1, None))
        assert [one.item.level for one in key_images.key_images(report, 200)] == ["C1", "C3"]

    def test_two_views_show_each_from_the_front_and_the_side(self) -> None:
        shown = key_images.key_images(phantom_report((0.9, 0.1, 0.1, 0.1, 0.1, 0.1, None)), 200, views=2)
        assert [one.caption.split(" ")[0] for one in shown] == ["Axial", "Sagittal"]

    def test_without_a_suspicion_the_highest_levels_are_shown_in_order(self) -> None:
        levels = make_findings((0.3, 0.02, 0.1, 0.05, 0.4, 0.2, None)).levels
        assert [item.level for item in key_images.chosen(levels)] == ["C1", "C5", "C6"]

    def test_the_box_lies_around_what_was_found(self) -> None:
        (one,) = key_images.key_images(phantom_report((0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1)), 336)
        pixels = np.asarray(one.picture).astype(int)
        box = np.argwhere((pixels == key_images.BOX_COLOUR).all(axis=-1))
        ball = np.argwhere((pixels > 250).all(axis=-1))
        np.testing.assert_allclose((box.min(axis=0) + box.max(axis=0)) / 2, ball.mean(axis=0), atol=2.5)
        assert (box.max(axis=0) - box.min(axis=0) > ball.max(axis=0) - ball.min(axis=0)).all()

    def test_a_viewer_finds_the_slice_by_its_image_number(self, study: Judged) -> None:
        (one,) = key_images.key_images(report_of(study), 100)
        at = study.prediction.findings.levels[4].evidence[0].slice_index
        assert f"image{words.NBSP}{study.series.templates[at].InstanceNumber} ·" in one.caption


class TestSheet:
    @pytest.mark.parametrize(
        "probabilities",
        [
            pytest.param((0.9,) * 7, id="all suspected"),
            pytest.param((0.1,) * 7, id="none suspected"),
            pytest.param((None,) * 7, id="refused"),
            pytest.param((None, None, 0.2, None, None, None, None), id="nearly nothing in the scan"),
        ],
    )
    def test_every_result_has_one(self, probabilities: tuple[float | None, ...]) -> None:
        warnings = tuple(WarningItem(code=f"w-{k}", message="a long story " * 30) for k in range(12))
        drawn = sheet.draw(phantom_report(probabilities, warnings))
        assert drawn.shape == (1200, 1600, 3) and drawn.dtype == np.uint8
        # Nothing runs over the edge of the page.
        border = np.concatenate([drawn[:, :20].reshape(-1, 3), drawn[:, -20:].reshape(-1, 3)])
        assert (border == sheet.PAGE).all()

    def test_without_a_ct_it_says_so(self) -> None:
        report = replace(phantom_report((0.9,) * 7), volume=None)
        assert sheet.draw(report).shape == (1200, 1600, 3)

    def test_png(self) -> None:
        assert sheet.png(phantom_report((None,) * 7)).startswith(b"\x89PNG")


class TestType:
    @given(st.text(max_size=200), st.integers(20, 400), st.integers(1, 4))
    def test_no_line_is_wider_than_the_page(self, text: str, width: int, lines: int) -> None:
        font = fonts.of_size(14)
        done = fonts.wrapped(text, font, width, lines=lines)
        assert len(done) <= lines
        assert all(fonts.length(line, font) <= width for line in done)

    @given(st.text(max_size=200))
    def test_what_the_face_lacks_becomes_a_question_mark(self, text: str) -> None:
        shown = fonts.known(text)
        assert shown == fonts.known(shown)
        assert "\n" not in shown

    def test_the_sentences_of_a_report_need_none(self) -> None:
        findings = make_findings()
        for sentence in (*words.said(findings), *words.reading(findings), words.RESEARCH, words.LIMITS):
            assert "?" not in fonts.known(sentence)
