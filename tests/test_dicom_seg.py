"""The segmentation: every voxel of it is what the masks say at that place of the patient, and on its own slice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset

from components import validation_errors
from cspine import reports
from cspine.anatomy import LEVELS, Level
from cspine.errors import UsageError
from cspine.findings import Findings
from cspine.inference.evidence import FLOOR, SHARE_OF_PEAK
from cspine.reports.dicom_segments import segments
from cspine.reports.dicom_source import SourceInstance, SourceSeries, read_source
from cspine.reports.inputs import ReportInput
from dicom_factory import CORONAL, SAGITTAL, Grid, write_enhanced
from dicom_results import (
    FRACTURED,
    OBLIQUE,
    Judged,
    assert_voxels_are_ours,
    evidence_map,
    frames_of,
    judge,
    judged,
    mask,
    nearest_labels,
    neck,
    points_of,
    read,
    segment_numbers,
)
from report_factory import make_findings, make_prediction, make_volume

SCANS: dict[str, Grid] = {
    "axial": neck(),
    "reversed": neck(orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
    "mirrored rows": neck(orientation=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
    "oblique": neck(orientation=OBLIQUE),
    "tilted gantry": neck(step=(0.0, 0.5, 1.9)),
    "sagittal": neck(orientation=SAGITTAL, count=30, rows=64),
    "coronal": neck(orientation=CORONAL, count=30, rows=64),
    "anisotropic": neck(count=16, thickness=5.0, spacing=(0.7, 1.3), rows=70),
    "odd sizes": neck(rows=47, columns=53),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """An axial study with known masks."""
    return judge(tmp_path_factory.mktemp("axial"))


@pytest.fixture(scope="module")
def seg(study: Judged, tmp_path_factory: pytest.TempPathFactory) -> FileDataset:
    """Its segmentation."""
    return read(study.write(tmp_path_factory.mktemp("out"), "seg")["seg"])


@pytest.mark.parametrize("name", SCANS)
def test_voxels_equal_the_masks_in_patient_space(name: str, tmp_path: Path) -> None:
    study = judge(tmp_path / "study", SCANS[name])
    assert_voxels_are_ours(read(study.write(tmp_path / "out", "seg")["seg"]), study.series)


def test_a_slice_that_was_filled_in_gets_no_frame(tmp_path: Path) -> None:
    study = judge(tmp_path / "study", places=[float(k) for k in range(34) if k != 15])
    assert study.volume.shape[0] == 34
    assert_voxels_are_ours(read(study.write(tmp_path / "out", "seg")["seg"]), study.series)


def test_frames_of_enhanced_ct_are_referred_to_by_number(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "all.dcm", neck())
    study = judged(tmp_path / "all.dcm")
    path = study.write(tmp_path / "out", "seg")["seg"]
    seg = read(path)
    places = {instance.frame: instance.position_mm for instance in study.series.instances}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == study.series.instances[0].sop_instance_uid
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(np.asarray(place, float), places[source.ReferencedFrameNumber], atol=1e-4)
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    for frame in frames_of(seg):
        if frame.segment <= len(LEVELS):
            np.testing.assert_array_equal(frame.mask, nearest_labels(frame.points) == frame.segment)
    assert validation_errors(path) == []


@settings(max_examples=15, phases=(Phase.explicit, Phase.generate))
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(st.floats(0.4, 2.0), st.floats(0.4, 2.0)),
    step=st.floats(0.6, 6.0),
    shear=st.floats(-0.4, 0.4),
)
def test_any_direction_any_spacing(
    angles: tuple[float, ...], spacing: tuple[float, float], step: float, shear: float
) -> None:
    """Property: whatever way slices lie, a voxel has the label of the mask voxel that is nearest to its centre."""
    series = series_like(angles, spacing, step, shear)
    field = mask()
    report = ReportInput(make_findings(), labels=field, series=series)
    found = {part.level: part for part in segments(report)}
    for index, instance in enumerate(series.instances):
        labels = nearest_labels(points_of(series, instance))
        labels[labels > LEVELS[-1]] = 0
        ours = np.zeros_like(labels)
        for level, part in found.items():
            for patch in part.patches:
                if patch.slice_index == index:
                    rows, columns = patch.mask.shape
                    window = ours[patch.row : patch.row + rows, patch.column : patch.column + columns]
                    window[patch.mask] = level
        np.testing.assert_array_equal(ours, labels)


def series_like(angles: tuple[float, ...], spacing: tuple[float, float], step: float, shear: float) -> SourceSeries:
    """A series turned about three axes, its slices shifted against each other, without files."""
    a, b, c = np.radians(angles)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    row, column, normal = (about_x @ about_y @ about_z).T
    count = int(70 / step)
    corner = -row * spacing[1] * 20 - column * spacing[0] * 22
    places = [corner + (k - count / 2) * step * (normal + shear * column) for k in range(count)]
    instances = tuple(
        SourceInstance("1.2.840.10008.5.1.4.1.1.2", f"1.2.{k}", (p[0], p[1], p[2]), 45, 41)
        for k, p in enumerate(places)
    )
    orientation = (*row.tolist(), *column.tolist())
    return SourceSeries(Dataset(), instances, orientation, spacing, (), "1.2")  # type: ignore[arg-type]


def test_evidence_is_where_the_map_reaches_the_share_of_its_peak_that_boxes_use(
    seg: FileDataset, study: Judged
) -> None:
    number = segment_numbers(seg)[f"{FRACTURED.name} evidence"]
    field = evidence_map()
    cut = max(FLOOR, SHARE_OF_PEAK * float(field.values.max()))
    frames = {frame.source: frame for frame in frames_of(seg) if frame.segment == number}
    for instance in study.series.instances:
        wanted = field.at(points_of(study.series, instance)) >= cut
        assert wanted.any() == (instance.sop_instance_uid in frames)
        if wanted.any():
            np.testing.assert_array_equal(frames[instance.sop_instance_uid].mask, wanted)
    assert seg.SegmentsOverlap == "YES"


def test_evidence_between_slices_far_apart_is_not_lost(tmp_path: Path) -> None:
    grid = neck(count=9, thickness=9.0, rows=70)
    study = judge(tmp_path / "study", grid)
    assert f"{FRACTURED.name} evidence" in segment_numbers(read(study.write(tmp_path / "out", "seg")["seg"]))


def test_a_level_without_evidence_in_the_findings_has_no_evidence_segment(tmp_path: Path) -> None:
    plain = judge(tmp_path / "s", findings=without_evidence)
    seg = read(plain.write(tmp_path / "out", "seg")["seg"])
    assert list(segment_numbers(seg)) == [level.name for level in LEVELS]
    assert seg.SegmentsOverlap == "NO"


def without_evidence(findings: Findings) -> Findings:
    levels = tuple(item.model_copy(update={"evidence": ()}) for item in findings.levels)
    return findings.model_copy(update={"levels": levels})


def test_segments_are_coded(seg: FileDataset) -> None:
    items = {str(item.SegmentLabel): item for item in seg.SegmentSequence}
    for level in LEVELS:
        item = items[level.name]
        category, kind = item.SegmentedPropertyCategoryCodeSequence[0], item.SegmentedPropertyTypeCodeSequence[0]
        assert (category.CodingSchemeDesignator, category.CodeValue) == ("SCT", "91723000")
        assert (kind.CodingSchemeDesignator, kind.CodeValue) == ("SCT", level.snomed)
        assert item.SegmentAlgorithmType == "AUTOMATIC"
    evidence = items["C5 evidence"]
    assert evidence.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert evidence.SegmentedPropertyTypeCodeSequence[0].CodeValue == "125605004"
    assert evidence.AnatomicRegionSequence[0].CodeValue == Level.C5.snomed
    colours = {tuple(item.RecommendedDisplayCIELabValue) for item in items.values()}
    assert len(colours) == len(items)


def test_the_algorithm_is_named_with_version_and_digest(seg: FileDataset) -> None:
    for item in seg.SegmentSequence:
        algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("cspine base", "9.8.7")
        assert algorithm.AlgorithmParameters == f"bundle_sha256={'ab' * 32}"
    assert seg.DeviceSerialNumber == "ab" * 32


def test_it_lies_in_the_study_and_frame_of_reference_of_the_source(seg: FileDataset, study: Judged) -> None:
    context = study.series.context
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg.get(keyword) == context.get(keyword)
    assert seg.SeriesInstanceUID != study.series.series_uid
    assert seg.preamble == b"\0" * 128
    used = {frame.source for frame in frames_of(seg)}
    listed = {i.ReferencedSOPInstanceUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert used == listed
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == study.series.series_uid


def test_patient_attributes_that_no_standard_allows_are_repeated_as_they_are_and_in_silence(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """pydicom quotes a bad value in a warning; what is said of a patient must not get into a log that way."""

    def edit(_: int, ds: FileDataset) -> None:
        other = Dataset()
        other.PatientID, other.TypeOfPatientID = "SECRET-2", "by phone"
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientName, ds.PatientSex, ds.PatientBirthDate = "Müller^Jürgen", "unknown", "about 1950"
        ds.OtherPatientIDsSequence = [other]

    study = judge(tmp_path / "study", edit=edit)
    recwarn.clear()
    source = read_source(study.folder, study.volume.source)
    files = replace(study, series=source).write(tmp_path / "out", "seg", "sr")
    assert [str(warning.message) for warning in recwarn] == []
    for name in ("seg", "sr"):
        data = files[name].read_bytes()
        for value in ("Müller^Jürgen", "about 1950", "unknown", "SECRET-2", "by phone"):
            assert value.encode() in data


def test_the_standard_has_nothing_against_it(study: Judged, tmp_path: Path) -> None:
    assert validation_errors(study.write(tmp_path, "seg")["seg"]) == []


@pytest.mark.parametrize("name", ["oblique", "sagittal", "odd sizes"])
def test_the_standard_has_nothing_against_it_in_other_directions(name: str, tmp_path: Path) -> None:
    study = judge(tmp_path / "study", SCANS[name])
    assert validation_errors(study.write(tmp_path / "out", "seg")["seg"]) == []


def test_frames_are_numbered_in_one_order_over_all_segments(seg: FileDataset) -> None:
    index = {}
    for item, frame in zip(seg.PerFrameFunctionalGroupsSequence, frames_of(seg), strict=True):
        segment, place = item.FrameContentSequence[0].DimensionIndexValues
        assert segment == frame.segment
        assert index.setdefault(place, frame.source) == frame.source
    assert sorted(index) == list(range(1, len(index) + 1))


def test_one_vertebra_alone(tmp_path: Path) -> None:
    study = judge(tmp_path / "study")
    only = np.where(mask().values == Level.C3, Level.C3, 0).astype(np.uint8)
    lone = replace(study, prediction=replace(study.prediction, labels=only, evidence={}))
    path = lone.write(tmp_path / "out", "seg")["seg"]
    seg = read(path)
    assert segment_numbers(seg) == {"C3": 1}
    for frame, item in zip(_single(seg), seg.PerFrameFunctionalGroupsSequence, strict=True):
        np.testing.assert_array_equal(frame, nearest_labels(_points(seg, item)) == Level.C3)
    assert validation_errors(path) == []


def _single(seg: Dataset) -> NDArray[np.bool_]:
    return np.asarray(seg.pixel_array).reshape(int(seg.NumberOfFrames), seg.Rows, seg.Columns).astype(bool)


def _points(seg: Dataset, item: Dataset) -> NDArray[np.float64]:
    shared = seg.SharedFunctionalGroupsSequence[0]
    row, column = np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    spacing = np.asarray(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    y, x = np.mgrid[: seg.Rows, : seg.Columns]
    place = np.asarray(item.PlanePositionSequence[0].ImagePositionPatient, float)
    return np.asarray(place + x[..., None] * spacing[1] * row + y[..., None] * spacing[0] * column)


def test_without_a_vertebra_there_is_no_file_and_an_old_one_goes(tmp_path: Path) -> None:
    study = judge(tmp_path / "study")
    study.write(tmp_path / "out", "json", "seg")
    nothing = replace(study.prediction, labels=np.zeros_like(study.prediction.labels))
    written = replace(study, prediction=nothing).write(tmp_path / "out", "json", "seg")
    assert list(written) == ["json"]
    assert not (tmp_path / "out" / "seg.dcm").exists()


def test_other_input_than_dicom_is_refused_by_name(tmp_path: Path) -> None:
    volume = make_volume()
    with pytest.raises(UsageError, match="seg needs a DICOM study"):
        reports.write(make_prediction(volume, make_findings()), volume, tmp_path, formats=["json", "seg"])
