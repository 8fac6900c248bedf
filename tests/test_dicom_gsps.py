"""Boxes and names on the source slices, as a Grayscale Softcopy Presentation State."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset

from components import validation_errors
from cspine import reports
from cspine.errors import UsageError
from cspine.findings import Findings
from cspine.reports.dicom_gsps import label
from dicom_factory import CORONAL, SAGITTAL, Grid, write_enhanced
from dicom_results import FRACTURED, Judged, evidence_middle, judge, judged, middle_of, neck, read
from report_factory import make_findings, make_level, make_volume

OBLIQUE = (0.98, 0.0, 0.199, 0.0398, 0.9798, -0.196)
SCANS = [
    pytest.param(neck(), id="axial"),
    pytest.param(neck(step=(0.0, 0.0, -2.0)), id="reversed"),
    pytest.param(neck(spacing=(1.25, 0.8)), id="pixels not square"),
    pytest.param(neck(orientation=OBLIQUE), id="oblique"),
    pytest.param(neck(orientation=SAGITTAL, rows=72), id="sagittal"),
    pytest.param(neck(orientation=CORONAL, rows=72), id="coronal"),
]


def centred(findings: Findings) -> Findings:
    """The same, with bodies where the phantom has them."""
    levels = tuple(
        item.model_copy(update={"body_center_mm": middle_of(FRACTURED) if item.level == FRACTURED.name else None})
        for item in findings.levels
    )
    return findings.model_copy(update={"levels": levels})


def annotations(state: Dataset, layer: str) -> list[Dataset]:
    """What is drawn on a layer."""
    return [item for item in state.get("GraphicAnnotationSequence", []) if item.GraphicLayer == layer]


def world_of(study: Judged, annotation: Dataset, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """LPS mm of places on the referenced image, from its own header (PS3.3 C.7.6.2.1.1, C.10.5.1.2)."""
    uid = annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID
    image = next(header for header in study.series.templates if header.SOPInstanceUID == uid)
    row, column = np.asarray(image.ImageOrientationPatient, float).reshape(2, 3)
    down, right = (float(value) for value in image.PixelSpacing)
    index = points - 0.5
    return np.asarray(image.ImagePositionPatient, float) + index[:, :1] * right * row + index[:, 1:] * down * column


class TestObject:
    def test_is_what_the_standard_wants(self, tmp_path: Path) -> None:
        written = judge(tmp_path / "study").write(tmp_path, "gsps")["gsps"]
        assert written.name == "marks.dcm"
        assert validation_errors(written) == []

    def test_shows_the_whole_series_in_the_bone_window(self, tmp_path: Path) -> None:
        study = judge(tmp_path / "study")
        state = read(study.write(tmp_path, "gsps")["gsps"])
        (series,) = state.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == study.series.series_uid
        shown = [item.ReferencedSOPInstanceUID for item in series.ReferencedImageSequence]
        assert shown == [one.sop_instance_uid for one in study.series.instances]
        window = state.SoftcopyVOILUTSequence[0]
        assert (window.WindowCenter, window.WindowWidth, window.WindowCenterWidthExplanation) == (450, 2000, "BONE")
        assert (state.RescaleSlope, state.RescaleIntercept, state.RescaleType) == (1, -1024, "HU")

    def test_same_input_same_bytes(self, tmp_path: Path) -> None:
        study = judge(tmp_path / "study")
        one, two = (study.write(tmp_path / name, "gsps")["gsps"].read_bytes() for name in "ab")
        assert one == two

    def test_nothing_located_and_nothing_found_leaves_the_window(self, tmp_path: Path) -> None:
        def empty(findings: Findings) -> Findings:
            levels = tuple(item.model_copy(update={"body_center_mm": None, "evidence": ()}) for item in findings.levels)
            return findings.model_copy(update={"levels": levels})

        written = judge(tmp_path / "study", findings=empty).write(tmp_path, "gsps")["gsps"]
        assert "GraphicAnnotationSequence" not in read(written)
        assert validation_errors(written) == []

    def test_needs_a_dicom_study(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="the format gsps needs a DICOM study"):
            reports.write(make_findings(), make_volume(), tmp_path, formats=["gsps"])


class TestPlaces:
    @pytest.mark.parametrize("grid", SCANS)
    def test_a_box_lies_around_the_evidence_in_the_patient(self, tmp_path: Path, grid: Grid) -> None:
        study = judge(tmp_path / "study", grid, findings=centred)
        state = read(study.write(tmp_path, "gsps")["gsps"])
        (box,) = annotations(state, "EVIDENCE")
        outline = box.GraphicObjectSequence[0]
        points = np.asarray(outline.GraphicData, float).reshape(-1, 2)
        np.testing.assert_array_equal(points[0], points[-1])
        middle = world_of(study, box, (points.min(axis=0) + points.max(axis=0))[None] / 2)[0]
        # Across the slices the box can be no nearer than the nearest slice.
        assert np.linalg.norm(middle - np.asarray(evidence_middle())) <= grid.thickness / 2 + 1.0
        assert (outline.GraphicType, outline.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")

    @pytest.mark.parametrize("grid", SCANS)
    def test_a_name_lies_on_the_body(self, tmp_path: Path, grid: Grid) -> None:
        study = judge(tmp_path / "study", grid, findings=lambda found: _without_evidence(centred(found)))
        state = read(study.write(tmp_path, "gsps")["gsps"])
        (name,) = annotations(state, "LEVELS")
        at = np.asarray(name.TextObjectSequence[0].AnchorPoint, float)[None]
        offset = world_of(study, name, at)[0] - np.asarray(middle_of(FRACTURED))
        assert np.linalg.norm(offset) <= grid.thickness / 2 + 0.1

    def test_a_slice_whose_box_says_the_name_does_not_say_it_twice(self, tmp_path: Path) -> None:
        study = judge(tmp_path / "study", findings=centred)
        state = read(study.write(tmp_path, "gsps")["gsps"])
        texts = [item.TextObjectSequence[0].UnformattedTextValue for item in state.GraphicAnnotationSequence]
        assert texts == ["C5 0.86"]

    def test_frames_of_one_enhanced_file_are_named(self, tmp_path: Path) -> None:
        write_enhanced(tmp_path / "all.dcm", neck())
        study = judged(tmp_path / "all.dcm", centred)
        written = study.write(tmp_path / "out", "gsps")["gsps"]
        state = read(written)
        (box,) = annotations(state, "EVIDENCE")
        frame = int(box.ReferencedImageSequence[0].ReferencedFrameNumber)
        z = next(one.position_mm[2] for one in study.series.instances if one.frame == frame)
        assert z == pytest.approx(evidence_middle()[2], abs=1.0)
        assert (state.RescaleSlope, state.RescaleIntercept) == (1, -1024)
        assert validation_errors(written) == []

    def test_slices_of_another_rescale_are_left_to_the_viewer(self, tmp_path: Path) -> None:
        # One presentation state holds one rescale; under a wrong one bone would look like air.
        def every_other(index: int, header: FileDataset) -> None:
            if index == 0:
                header.RescaleIntercept = "-1000"

        study = judge(tmp_path / "study", edit=every_other)
        written = study.write(tmp_path, "gsps")["gsps"]
        shown = read(written).ReferencedSeriesSequence[0].ReferencedImageSequence
        assert len(shown) == len(study.series.instances) - 1
        assert validation_errors(written) == []


class TestLabels:
    @pytest.mark.parametrize(
        ("probability", "text"), [(0.834, "C3 0.83"), (0.0001, "C3 0.01"), (0.9999, "C3 0.99"), (None, "C3")]
    )
    def test_a_label_is_short_and_promises_nothing(self, probability: float | None, text: str) -> None:
        assert label(make_level(2, probability)) == text


def _without_evidence(findings: Findings) -> Findings:
    levels = tuple(item.model_copy(update={"evidence": ()}) for item in findings.levels)
    return findings.model_copy(update={"levels": levels})
