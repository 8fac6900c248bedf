"""Pictures show the patient the way radiologists expect, and the right place."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cspine.reports import boxes, colours, figures, images, planes
from cspine.reports.boxes import Box
from cspine.reports.inputs import ReportInput
from cspine.reports.planes import SpinePath
from cspine.volume import Volume
from report_factory import MIDDLE, center_of, evidence_at, make_findings, make_prediction, make_volume, with_marker

LEFT, BACK, UP = np.array([18.0, 0, 0]), np.array([0, 14.0, 0]), np.array([0, 0, 9.0])


def shown(picture: figures.Picture) -> NDArray[np.float64]:
    """The picture as grey values, one a pixel of its plane."""
    image = Image.open(BytesIO(picture.base))
    assert image.mode == "L"
    return np.asarray(image.resize((picture.width, picture.height)), dtype=np.float64)


def brightest(picture: figures.Picture) -> tuple[float, float]:
    """Centre (column, row) of the bright pixels, as a share of width and height."""
    rows, columns = np.nonzero(shown(picture) > 220)
    assert len(rows), "the marker is not in the picture"
    return float(columns.mean()) / picture.width, float(rows.mean()) / picture.height


def pictures_of(volume: Volume, number: int = 3) -> tuple[figures.LevelPictures, tuple[figures.Picture, ...]]:
    report = ReportInput.of(make_findings(), volume)
    return figures.level_pictures(report, report.findings.levels[number]), figures.glance(report)


def test_patients_left_is_on_the_right_of_axial_and_coronal() -> None:
    level, glance = pictures_of(with_marker(make_volume(), tuple(center_of(3) + LEFT)))
    assert level.axial is not None
    assert brightest(level.axial)[0] > 0.6
    assert brightest(glance[1])[0] > 0.6
    assert (level.axial.letters.left, level.axial.letters.right) == ("R", "L")


def test_front_is_up_in_axial_and_left_in_sagittal() -> None:
    front, back = center_of(3), tuple(center_of(3) + 2 * BACK)
    for place, low, high in ((front, 0.0, 0.45), (back, 0.45, 1.0)):
        level, _ = pictures_of(with_marker(make_volume(), place))
        assert level.axial is not None
        assert level.sagittal is not None
        assert low < brightest(level.axial)[1] < high
        assert low < brightest(level.sagittal)[0] < high


def test_head_is_up_in_sagittal_and_coronal() -> None:
    level, glance = pictures_of(with_marker(make_volume(), tuple(center_of(3) + UP)))
    assert level.sagittal is not None
    assert brightest(level.sagittal)[1] < 0.45
    above = with_marker(make_volume(), center_of(0))
    assert all(brightest(picture)[1] < 0.4 for picture in pictures_of(above)[1])
    assert glance[0].letters.top == "H"


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_storage_order_does_not_matter(order: tuple[int, int, int]) -> None:
    volume = with_marker(make_volume(), tuple(center_of(3) + LEFT))
    moved = np.flip(volume.hu.transpose(order), 0)
    columns = [2 - order[2 - k] for k in range(3)]
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, columns]
    affine[:3, 3] += affine[:3, 2] * (moved.shape[0] - 1)
    affine[:3, 2] *= -1
    stored = Volume(moved, affine)
    place = evidence_at(volume, tuple(center_of(3) + LEFT))
    findings = make_findings(evidence={3: (place,)})
    first, second = (ReportInput.of(findings, one) for one in (volume, stored))
    assert second.as_opened is False
    assert first.place_of(place)[0] == second.place_of(place)[0]
    assert first.place_of(place)[1] == pytest.approx(second.place_of(place)[1])
    a, b = (figures.level_pictures(one, findings.levels[3]).axial for one in (first, second))
    assert a is not None
    assert b is not None
    assert a.base == b.base


def test_evidence_box_lies_on_the_marker() -> None:
    place = tuple(center_of(1) + LEFT * 0.6 + BACK)
    volume = with_marker(make_volume(), place, radius_mm=5)
    findings = make_findings(evidence={1: (evidence_at(volume, place), evidence_at(volume, center_of(1), 0.4))})
    level = figures.level_pictures(ReportInput.of(findings, volume), findings.levels[1])
    assert level.axial is not None
    for picture in (level.axial, level.sagittal):
        assert picture is not None
        across, down = brightest(picture)
        column, row = across * picture.width, down * picture.height
        # One pixel of grace: the middle of the ball may fall between two slices.
        assert any(
            box.x - 1 <= column <= box.x + box.width + 1 and box.y - 1 <= row <= box.y + box.height + 1
            for box in picture.boxes
        )
    assert "slice" in level.axial.caption
    assert level.axial.has_overlay


def test_heat_lies_where_the_map_is_warm() -> None:
    volume = make_volume()
    place = tuple(center_of(1) + LEFT)
    findings = make_findings(evidence={1: (evidence_at(volume, place),)})
    report = ReportInput.of(make_prediction(volume, findings), volume)
    axial = figures.level_pictures(report, findings.levels[1]).axial
    assert axial is not None
    alpha = np.asarray(Image.open(BytesIO(axial.overlays[0])))[..., 3]
    columns = np.nonzero(alpha)[1]
    assert columns.mean() / axial.width > 0.6
    assert 0 < alpha.max() < 128, "a fracture line must show through"


def test_marks_stand_at_the_body_centres_in_order() -> None:
    volume = make_volume()
    report = ReportInput.of(make_findings(), volume)
    sagittal = figures.glance(report)[0]
    assert [mark.level for mark in sagittal.marks] == ["C1", "C2", "C3", "C4", "C5", "C6"]
    heights = [mark.y for mark in sagittal.marks]
    assert heights == sorted(heights)
    assert {mark.level: mark.shape for mark in sagittal.marks}["C2"] == "fracture"
    gaps = np.diff(heights) * sagittal.mm_per_px
    assert gaps == pytest.approx(18.0, abs=0.5)


def test_curved_planes_follow_a_bent_spine() -> None:
    # A scoliotic column: every body lies 4 mm further left than the one above it.
    centers = [tuple(np.asarray(center_of(k)) + [4.0 * k, 0, 0]) for k in range(7)]
    volume = make_volume()
    for center in centers:
        volume = with_marker(volume, center, radius_mm=4)
    sagittal, coronal = planes.spine_planes(volume, SpinePath.through(centers))
    bone = images.sample_hu(volume, sagittal) > 1500
    rows = [round(sagittal.pixel_of(center)[1]) for center in centers]
    columns = [round(sagittal.pixel_of(center)[0]) for center in centers]
    assert all(bone[row, column] for row, column in zip(rows, columns, strict=True))
    across = [coronal.pixel_of(center)[0] for center in centers]
    assert np.diff(across) == pytest.approx(4.0 / coronal.mm_per_px, abs=0.1)


@settings(max_examples=40)
@given(st.lists(st.tuples(*(st.floats(-200, 200) for _ in range(3))), min_size=1, max_size=9))
def test_path_stays_between_its_centres(centers: list[tuple[float, float, float]]) -> None:
    path = SpinePath.through(centers)
    x, y = path.at(np.linspace(-300.0, 300.0, 61))
    points = np.asarray(centers)
    assert points[:, 0].min() - 0.001 <= x.min() <= x.max() <= points[:, 0].max() + 0.001
    assert points[:, 1].min() - 0.001 <= y.min() <= y.max() <= points[:, 1].max() + 0.001


def test_outside_the_scan_is_hatched_not_black() -> None:
    volume = make_volume((40, 60, 60))
    plane = planes.sagittal_detail(tuple(MIDDLE + [0, 0, 30.0]))
    hu = images.sample_hu(volume, plane)
    assert np.isnan(hu).any()
    assert np.isfinite(hu).any()
    gray = images.bone_window(hu)
    assert gray[np.isnan(hu)].min() >= 30
    assert len(np.unique(gray[np.isnan(hu)])) == 2


def test_bone_window_is_monotone() -> None:
    gray = images.bone_window(np.linspace(-1024, 3000, 500, dtype=np.float32)[None])
    assert (np.diff(gray[0].astype(int)) >= 0).all()
    assert (gray.min(), gray.max()) == (0, 255)


def test_outlines_follow_the_mask() -> None:
    volume = make_volume()
    findings = make_findings()
    report = ReportInput.of(make_prediction(volume, findings), volume)
    assert report.labels is not None
    sagittal, _ = planes.spine_planes(volume, SpinePath.through([center_of(k) for k in range(6)]))
    overlay = images.outline_overlay(report.labels, sagittal, {2: (255, 0, 0)})
    assert overlay is not None
    column, row = sagittal.pixel_of(center_of(1))
    drawn = np.argwhere(overlay[..., 3] > 100) / 2
    distance = np.linalg.norm(drawn - [row, column], axis=1) * sagittal.mm_per_px
    assert distance.min() > 5.5
    assert distance.max() < 10.5
    assert (overlay[overlay[..., 3] > 0][:, :3] == (255, 0, 0)).all()
    assert images.outline_overlay(report.labels, sagittal, {9: (255, 0, 0)}) is None


def test_pictures_carry_no_metadata() -> None:
    level, glance = pictures_of(make_volume())
    for picture in (*level.all, *glance):
        image = Image.open(BytesIO(picture.base))
        assert not image.getexif()
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_no_pictures_without_a_scan_and_flat_ones_without_levels() -> None:
    assert figures.glance(ReportInput.of(make_findings(), None)) == ()
    refused = make_findings((None,) * 7)
    pictures = figures.glance(ReportInput.of(refused, make_volume()))
    assert [picture.marks for picture in pictures] == [(), ()]
    assert "middle" in pictures[0].caption


def test_tiny_volume_still_gives_pictures() -> None:
    volume = make_volume((1, 2, 2))
    assert len(figures.glance(ReportInput.of(make_findings(), volume))) == 2
    assert figures.level_pictures(ReportInput.of(make_findings(), volume), make_findings().levels[0]).axial


@settings(max_examples=40)
@given(st.lists(st.builds(Box, *(st.floats(0, 100) for _ in range(2)), *(st.floats(1, 20) for _ in range(2)))))
def test_merged_boxes_cover_all_and_do_not_touch(found: list[Box]) -> None:
    merged = boxes.merged(found)
    for box in found:
        assert any(
            one.x <= box.x + 1e-6
            and one.y <= box.y + 1e-6
            and one.x + one.width >= box.x + box.width - 1e-6
            and one.y + one.height >= box.y + box.height - 1e-6
            for one in merged
        )
    for number, one in enumerate(merged):
        for other in merged[number + 1 :]:
            apart = one.x + one.width < other.x or other.x + other.width < one.x
            assert apart or one.y + one.height < other.y or other.y + other.height < one.y


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_ramp_is_ordered_in_lightness(theme: colours.Theme) -> None:
    light = [0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2 for r, g, b in colours.ramp(theme)]
    steps = np.diff(light) * (1 if theme == "dark" else -1)
    assert (steps > 0).all()
    assert len(light) == colours.STEPS
    assert (colours.step_of(0), colours.step_of(0.5), colours.step_of(1)) == (0, 5, 10)
