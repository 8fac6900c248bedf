"""The structured report: a measurement group for the patient and for each vertebra, as TID 1500 and IHE AIR want it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import FileDataset

from components import validation_errors
from cspine import reports
from cspine.anatomy import LEVELS, Level
from cspine.errors import MissingExtraError
from cspine.findings import Findings
from cspine.reports import dicom_codes as codes
from cspine.reports.dicom_marks import marks_of
from cspine.reports.inputs import ReportInput
from dicom_factory import SAGITTAL, write_enhanced
from dicom_results import FRACTURED, Judged, evidence_middle, judge, judged, neck, read, segment_numbers

SCT = "SCT"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """An axial study: C5 burst, C7 not judged."""
    return judge(tmp_path_factory.mktemp("axial"))


@pytest.fixture(scope="module")
def files(study: Judged, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SEG and SR, written together."""
    return study.write(tmp_path_factory.mktemp("out"), "seg", "sr")


@pytest.fixture(scope="module")
def document(files: dict[str, Path]) -> hd.sr.Comprehensive3DSR:
    """The report."""
    return hd.sr.srread(files["sr"])


def content(document: hd.sr.Comprehensive3DSR) -> hd.sr.MeasurementReport:
    return document.content


def group_of(document: hd.sr.Comprehensive3DSR, name: str) -> hd.sr.templates._MeasurementsAndQualitativeEvaluations:
    """The measurement group with a tracking identifier."""
    report = content(document)
    groups = [
        *report.get_image_measurement_groups(),
        *report.get_volumetric_roi_measurement_groups(),
        *report.get_planar_roi_measurement_groups(),
    ]
    (found,) = [group for group in groups if group.tracking_identifier == name]
    return found


def texts(group: hd.sr.templates._MeasurementsAndQualitativeEvaluations) -> dict[str, str]:
    """Text items by the meaning of their name."""
    items = group[0].ContentSequence
    return {item.ConceptNameCodeSequence[0].CodeMeaning: item.TextValue for item in items if item.ValueType == "TEXT"}


@pytest.mark.parametrize("level", LEVELS)
def test_each_vertebra_has_a_group(level: Level, document: hd.sr.Comprehensive3DSR, study: Judged) -> None:
    group = group_of(document, level.name)
    found = study.prediction.findings.levels[level.index]
    assert group.finding_type == codes.FRACTURE
    assert [site.value for site in group.finding_sites] == [codes.vertebra(level)]
    (answer,) = group.get_qualitative_evaluations(codes.FRACTURE)
    assert answer.value == codes.answer(found.fracture)
    measured = group.get_measurements(codes.PROBABILITY)
    assert [(float(m.value), m.unit) for m in measured] == (
        [] if found.probability is None else [(found.probability, codes.RATIO)]
    )


def test_answers_are_present_absent_or_undetermined(document: hd.sr.Comprehensive3DSR) -> None:
    answers = {
        level.name: group_of(document, level.name).get_qualitative_evaluations(codes.FRACTURE)[0].value.value
        for level in LEVELS
    }
    assert answers == {
        **dict.fromkeys(("C1", "C2", "C3", "C4", "C6"), "272519000"),
        "C5": "52101004",
        "C7": "373068000",
    }


def test_a_level_that_was_not_judged_says_why_and_has_no_probability(document: hd.sr.Comprehensive3DSR) -> None:
    group = group_of(document, "C7")
    assert group.get_measurements(codes.PROBABILITY) == []
    assert texts(group)[codes.NOT_JUDGED.meaning] == "below the end of the scan"


def test_how_sure_the_name_of_a_level_is(document: hd.sr.Comprehensive3DSR) -> None:
    (measured,) = group_of(document, "C5").get_measurements(codes.LEVEL_CONFIDENCE)
    assert float(measured.value) == 0.95
    assert group_of(document, "C7").get_measurements(codes.LEVEL_CONFIDENCE) == []


def test_a_type_without_a_code_is_text(document: hd.sr.Comprehensive3DSR) -> None:
    assert texts(group_of(document, "C5"))[codes.FRACTURE_TYPE.meaning] == "burst"


def test_a_type_with_a_code_is_coded(tmp_path: Path) -> None:
    def hangman(findings: Findings) -> Findings:
        levels = tuple(
            item.model_copy(update={"type": "hangman" if item.fracture else None}) for item in findings.levels
        )
        return findings.model_copy(update={"levels": levels})

    path = judge(tmp_path / "s", findings=hangman).write(tmp_path / "out", "sr")["sr"]
    (kind,) = group_of(hd.sr.srread(path), "C5").get_qualitative_evaluations(codes.FRACTURE_TYPE)
    assert kind.value == codes.TYPES["hangman"]
    assert validation_errors(path) == []


def test_levels_refer_to_their_segments(document: hd.sr.Comprehensive3DSR, files: dict[str, Path]) -> None:
    seg = read(files["seg"])
    numbers = segment_numbers(seg)
    groups = {g.tracking_identifier: g for g in content(document).get_volumetric_roi_measurement_groups()}
    assert set(groups) == set(numbers)
    for name, group in groups.items():
        segment = group.roi if hasattr(group, "segment") else group.referenced_segment
        assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert segment.referenced_segment_numbers == [numbers[name]]


def test_segments_and_groups_are_tracked_by_the_same_identifiers(
    document: hd.sr.Comprehensive3DSR, files: dict[str, Path]
) -> None:
    tracked = {str(item.TrackingID): str(item.TrackingUID) for item in read(files["seg"]).SegmentSequence}
    for group in content(document).get_volumetric_roi_measurement_groups():
        assert tracked[group.tracking_identifier] == group.tracking_uid
    uids = [group.tracking_uid for group in content(document).get_image_measurement_groups()]
    assert len(set(uids)) == len(uids)


def test_without_a_segmentation_beside_it_none_is_referred_to(study: Judged, tmp_path: Path) -> None:
    document = hd.sr.srread(study.write(tmp_path, "sr")["sr"])
    assert content(document).get_volumetric_roi_measurement_groups() == []
    assert group_of(document, "C5").finding_type == codes.FRACTURE


def test_key_images_are_slices_of_the_source_with_a_box(document: hd.sr.Comprehensive3DSR, study: Judged) -> None:
    groups = content(document).get_planar_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["C5 key image 1"]
    (group,) = groups
    region = group.roi
    image = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    index = [instance.sop_instance_uid for instance in study.series.instances].index(image)
    instance = study.series.instances[index]
    assert abs(instance.position_mm[2] - evidence_middle()[2]) <= 1.0
    # 0, 0 is the outer corner of the first pixel, so its centre is at 0.5, 0.5 (PS3.3 C.18.6.1.1).
    middle = (np.asarray(evidence_middle()[:2]) - instance.position_mm[:2]) / study.series.pixel_spacing[::-1] + 0.5
    np.testing.assert_allclose(region.value[:-1].mean(axis=0), middle, atol=0.02)
    np.testing.assert_array_equal(region.value[0], region.value[-1])
    patient = group_of(document, "patient")
    assert [source.referenced_sop_instance_uid for source in patient.source_images] == [image]


@pytest.mark.parametrize(
    "grid",
    [
        neck(orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
        neck(orientation=SAGITTAL, count=30, rows=64),
        neck(step=(0.0, 0.5, 1.9)),
    ],
    ids=["reversed", "sagittal", "tilted"],
)
def test_boxes_lie_around_the_evidence_however_slices_were_acquired(grid: object, tmp_path: Path) -> None:
    study = judge(tmp_path, grid)  # type: ignore[arg-type]
    (mark,) = marks_of(ReportInput.of(study.prediction, study.volume, study.series))
    instance = study.series.instances[mark.slice_index]
    row, column = np.asarray(study.series.orientation).reshape(2, 3)
    offset = np.asarray(evidence_middle()) - np.asarray(instance.position_mm)
    assert abs(offset @ np.cross(row, column)) <= 1.2
    x, y = offset @ row / study.series.pixel_spacing[1] + 0.5, offset @ column / study.series.pixel_spacing[0] + 0.5
    x0, y0, x1, y1 = mark.box_px
    assert x0 < x < x1
    assert y0 < y < y1


def test_the_patient_group_says_what_is_open(document: hd.sr.Comprehensive3DSR, study: Judged) -> None:
    group = group_of(document, "patient")
    assert [site.value for site in group.finding_sites] == [codes.CERVICAL_SPINE]
    (probability,) = group.get_measurements(codes.PROBABILITY)
    assert float(probability.value) == study.prediction.findings.patient.probability
    comments = [item.TextValue for item in group[0].ContentSequence if item.ValueType == "TEXT"]
    assert "Research use only. Not a diagnosis, not a medical device." in comments
    assert "Not judged: C7." in comments


def test_it_is_preliminary_and_unverified(document: hd.sr.Comprehensive3DSR) -> None:
    assert document.PreliminaryFlag == "PRELIMINARY"
    assert document.VerificationFlag == "UNVERIFIED"
    assert document.CompletionFlag == "COMPLETE"


def test_the_algorithm_and_the_device_are_named_with_version_and_digest(document: hd.sr.Comprehensive3DSR) -> None:
    for name in ("patient", "C1", "C5 evidence", "C5 key image 1"):
        said = texts(group_of(document, name))
        assert said["Algorithm Name"] == "cspine base"
        assert said["Algorithm Version"] == "9.8.7"
        assert said["Algorithm Parameters"] == f"bundle_sha256={'ab' * 32}"
    (observer,) = content(document).get_observer_contexts()
    assert observer.observer_type == codes.DEVICE
    assert observer.observer_identifying_attributes.serial_number == "ab" * 32


def test_all_images_of_the_source_are_its_evidence(
    document: hd.sr.Comprehensive3DSR, study: Judged, files: dict[str, Path]
) -> None:
    (item,) = document.CurrentRequestedProcedureEvidenceSequence
    assert item.StudyInstanceUID == study.series.context.StudyInstanceUID
    listed = {
        series.SeriesInstanceUID: {ref.ReferencedSOPInstanceUID for ref in series.ReferencedSOPSequence}
        for series in item.ReferencedSeriesSequence
    }
    seg = read(files["seg"])
    assert listed == {
        study.series.series_uid: {instance.sop_instance_uid for instance in study.series.instances},
        seg.SeriesInstanceUID: {seg.SOPInstanceUID},
    }


def test_the_library_lists_the_key_images(document: hd.sr.Comprehensive3DSR) -> None:
    (library,) = hd.sr.utils.find_content_items(document, name=codes_image_library(), recursive=True)
    images = hd.sr.utils.find_content_items(library, value_type="IMAGE", recursive=True)
    assert len(images) == 1


def codes_image_library() -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept("111028", "DCM", "Image Library")


def test_private_codes_are_declared(document: hd.sr.Comprehensive3DSR) -> None:
    schemes = [str(item.CodingSchemeDesignator) for item in document.CodingSchemeIdentificationSequence]
    assert codes.OWN_SCHEME in schemes


def test_the_standard_has_nothing_against_it(files: dict[str, Path]) -> None:
    assert validation_errors(files["sr"]) == []


def test_enhanced_ct_is_referred_to_by_frame(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "all.dcm", neck())
    study = judged(tmp_path / "all.dcm")
    path = study.write(tmp_path / "out", "seg", "sr")["sr"]
    (group,) = content(hd.sr.srread(path)).get_planar_roi_measurement_groups()
    reference = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
    mark = marks_of(ReportInput.of(study.prediction, study.volume, study.series))[0]
    assert reference.ReferencedFrameNumber == study.series.instances[mark.slice_index].frame
    assert validation_errors(path) == []


def test_a_result_that_judged_nothing_has_a_report_that_says_so(tmp_path: Path) -> None:
    def nothing(findings: Findings) -> Findings:
        levels = tuple(
            item.model_copy(
                update={
                    "probability": None,
                    "fracture": None,
                    "type": None,
                    "evidence": (),
                    "not_judged": "no classifier",
                }
            )
            for item in findings.levels
        )
        patient = findings.patient.model_copy(update={"probability": None, "fracture": None})
        return findings.model_copy(update={"status": "refused", "levels": levels, "patient": patient})

    study = judge(tmp_path / "s", findings=nothing)
    blank = replace(study, prediction=replace(study.prediction, labels=np.zeros((2, 2, 2), np.uint8), evidence={}))
    written = blank.write(tmp_path / "out", "seg", "sr")
    assert list(written) == ["sr"]
    document = hd.sr.srread(written["sr"])
    for level in LEVELS:
        (answer,) = group_of(document, level.name).get_qualitative_evaluations(codes.FRACTURE)
        assert answer.value == codes.UNDETERMINED
    assert validation_errors(written["sr"]) == []


def test_same_result_same_bytes(study: Judged, files: dict[str, Path], tmp_path: Path) -> None:
    again = study.write(tmp_path, "seg", "sr")
    for name in ("seg", "sr"):
        assert again[name].read_bytes() == files[name].read_bytes()


def test_another_run_differs_in_dates_and_times_only(study: Judged, files: dict[str, Path], tmp_path: Path) -> None:
    findings = study.prediction.findings
    later = findings.provenance.model_copy(update={"created": "2031-05-06T07:08:09+00:00", "seconds": {"total": 9.0}})
    prediction = replace(study.prediction, findings=findings.model_copy(update={"provenance": later}))
    again = replace(study, prediction=prediction).write(tmp_path, "seg", "sr")
    for name in ("seg", "sr"):
        one, other = read(files[name]), read(again[name])
        assert one.SOPInstanceUID == other.SOPInstanceUID
        assert {e.keyword for e in one if e != other.get(e.tag)} <= {
            "InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime",
        }  # fmt: skip


def test_nothing_of_this_moment_is_written(files: dict[str, Path]) -> None:
    dates = {
        str(element.value or "")[:6]
        for name in ("seg", "sr")
        for element in _walk(read(files[name]))
        if element.VR in ("DA", "DT")
    }
    # The study has no dates; the findings are of the 2nd of January 2030 in UTC, a day more or less in local time.
    assert dates == {"", "203001"}


def _walk(data: FileDataset) -> list:  # type: ignore[type-arg]
    found: list = []  # type: ignore[type-arg]
    data.walk(lambda _, element: found.append(element))
    return found


def test_another_result_has_other_identifiers(files: dict[str, Path], tmp_path: Path) -> None:
    def surer(findings: Findings) -> Findings:
        levels = tuple(
            item.model_copy(update={"probability": 0.87}) if item.level == FRACTURED.name else item
            for item in findings.levels
        )
        return findings.model_copy(update={"levels": levels})

    again = judge(tmp_path / "s", findings=surer).write(tmp_path / "out", "seg", "sr")
    for name in ("seg", "sr"):
        assert read(files[name]).SOPInstanceUID != read(again[name]).SOPInstanceUID
        assert str(read(again[name]).SOPInstanceUID).startswith("2.25.")


def test_times_are_in_the_zone_of_the_study(tmp_path: Path) -> None:
    def edit(_: int, ds: FileDataset) -> None:
        ds.TimezoneOffsetFromUTC = "+0530"

    path = judge(tmp_path / "s", edit=edit).write(tmp_path / "out", "sr")["sr"]
    document = read(path)
    assert document.TimezoneOffsetFromUTC == "+0530"
    assert (document.ContentDate, document.ContentTime) == ("20300102", "083405")


def test_a_part_that_is_not_installed_is_named(study: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "highdicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"cspine\[dicom\]"):
        study.write(tmp_path, "json", "sr")
    assert list(tmp_path.iterdir()) == []


def test_reports_without_dicom_load_nothing_of_it() -> None:
    code = "import sys, cspine.reports; print([m for m in ('highdicom', 'pynetdicom') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_formats_are_listed_for_the_command_line() -> None:
    assert reports.FORMATS["seg"].file == "seg.dcm"
    assert reports.FORMATS["sr"].file == "sr.dcm"
    assert reports.without_series(("json", "seg", "sr")) == ("json",)
