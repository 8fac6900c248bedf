"""From planar answers to levels: one ordered reading whatever the network says, and a mask that agrees with it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cspine.anatomy import Level
from cspine.inference.planar import PlanarView, Plane
from cspine.inference.planar_answers import PlaneAnswers
from cspine.inference.planar_fractures import region_of
from cspine.inference.planar_grid import Classes, CommonGrid, common_grid, weights
from cspine.inference.planar_images import PlaneGrid, planar_labels, planar_volume, plane_grid, sample_planes
from cspine.inference.planar_levels import find_planar_levels
from cspine.inference.planar_masks import painted_boxes
from cspine.inference.planar_reading import STRETCH_MM, read
from cspine.volume import Volume
from oracle import Patient, make_patient

ROW_MM = 2.0
PLANES: tuple[Plane, ...] = ("axial", "sagittal")


def neck(start_mm: float, rows: int, *, thoracic: bool = True) -> NDArray[np.float64]:
    """Scores ``[rows, 8]`` of a neck whose C1 begins at ``start_mm`` below the first row."""
    place = np.arange(rows) * ROW_MM
    out, top = np.zeros((rows, 8)), start_mm
    for k, length in enumerate(STRETCH_MM):
        out[:, k] = np.exp(-0.5 * ((place - top - length / 2) / (length / 2.5)) ** 2)
        top += length
    if thoracic:
        out[:, 7] = 1 / (1 + np.exp((top - place) / 3))
    return out


@given(scores=arrays(np.float64, st.tuples(st.integers(1, 70), st.just(8)), elements=st.floats(0, 1)))
def test_a_reading_is_ordered_and_complete_whatever_the_scores(scores: NDArray[np.float64]) -> None:
    reading = read(scores, ROW_MM, 2.0)
    labels = list(reading.rows)
    assert labels == list(range(labels[0], labels[-1] + 1)) if labels else True
    stretches = list(reading.rows.values())
    assert all(start < stop for start, stop in stretches)
    assert all(before[1] == after[0] for before, after in pairwise(stretches))
    assert reading.posterior.shape == (len(scores), 9)
    np.testing.assert_allclose(reading.posterior.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("thoracic", [True, False])
@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_a_whole_neck_is_read(thoracic: bool, noise: float) -> None:
    scores = neck(40, 130, thoracic=thoracic)
    noisy = np.clip(scores + np.random.default_rng(3).normal(0, noise, scores.shape), 0, 1)
    noisy[:, 7] *= thoracic
    reading = read(noisy, ROW_MM)
    assert list(reading.rows) == list(range(1, 8))
    tops = 40 + np.concatenate([[0], np.cumsum(STRETCH_MM)])
    for label, (start, stop) in reading.rows.items():
        assert start * ROW_MM == pytest.approx(tops[label - 1], abs=4)
        assert stop * ROW_MM == pytest.approx(tops[label], abs=4)
        assert reading.posterior[(start + stop) // 2, label] > 0.9


def test_a_neck_cut_off_at_both_ends_begins_and_ends_where_it_does() -> None:
    reading = read(neck(-45, 32), ROW_MM)
    assert list(reading.rows) == [3, 4, 5, 6]
    assert reading.rows[3][0] == 0
    assert reading.rows[6][1] == 32


@pytest.mark.parametrize(("start_mm", "thoracic"), [(-220.0, True), (300.0, True), (300.0, False)])
def test_nothing_cervical_gives_no_level(start_mm: float, thoracic: bool) -> None:
    assert read(neck(start_mm, 50, thoracic=thoracic), ROW_MM).rows == {}


def test_a_level_that_the_network_calls_by_its_neighbours_name_keeps_its_place() -> None:
    scores = neck(40, 130)
    scores[:, 3], scores[:, 4] = scores[:, 3] + scores[:, 4], 0.0
    reading = read(np.clip(scores, 0, 1), ROW_MM)
    assert list(reading.rows) == list(range(1, 8))
    start, stop = reading.rows[5]
    assert abs((start + stop) / 2 * ROW_MM - (40 + STRETCH_MM[:4].sum() + STRETCH_MM[4] / 2)) < 6


def test_the_posterior_is_less_sure_when_hot() -> None:
    scores = neck(-30, 40)
    cold, hot = read(scores, ROW_MM, 1.0), read(scores, ROW_MM, 30.0)
    assert cold.rows == hot.rows
    assert hot.posterior.max(axis=1).mean() < cold.posterior.max(axis=1).mean()


def test_weights_interpolate_average_and_leave_out_what_lies_outside() -> None:
    line = weights((0.5, 0.0), 6, 3)
    np.testing.assert_allclose(line @ [0.0, 10.0, 20.0], [0, 5, 10, 15, 20, 20])
    np.testing.assert_allclose(weights((1.0, -2.0), 4, 2).sum(axis=1), [0, 0, 1, 1])
    # Four samples a place: each place is their mean, more or less.
    assert np.ptp(weights((4.0, 1.5), 5, 20) @ (np.arange(20) % 2)) < 0.1


@pytest.fixture(scope="module")
def patient() -> Patient:
    return make_patient(spacing=(1.5, 1.5, 2.0), z_mm=(-165.0, 45.0))


@pytest.fixture(scope="module")
def grid(patient: Patient) -> CommonGrid:
    return common_grid(patient.volume)


def ramp(grid: PlaneGrid, direction: NDArray[np.float64], middle: NDArray[np.float64]) -> NDArray[np.float32]:
    """Pixel classes that say 0..1 for C1, more along a direction in the patient, and for background the rest."""
    z, y, x = np.indices((grid.count, grid.size, grid.size))
    world = np.stack([x, y, z], axis=-1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    share = np.clip(0.5 + (world - middle) @ direction / 300, 0, 1)
    out = np.zeros((grid.count, 9, grid.size, grid.size), np.float32)
    out[:, 0], out[:, 1] = 1 - share, share
    return out


@pytest.mark.parametrize("planes", [("axial",), ("sagittal",), PLANES])
def test_classes_of_planes_come_to_lie_where_they_were(
    patient: Patient, grid: CommonGrid, planes: tuple[Plane, ...]
) -> None:
    direction, middle = np.array([0.6, -0.5, 0.62]), patient.volume.to_world(np.array(patient.volume.shape[::-1]) / 2)
    classes = Classes(grid)
    for plane in planes:
        view = PlanarView(size=64, step_mm=3.0)
        cut = plane_grid(planar_volume(patient.volume), view, plane)
        said = ramp(cut, direction, middle)
        for start in range(0, cut.count, 8):
            classes.add(cut, start, said[start : start + 8])
    mixed = classes.probabilities()
    np.testing.assert_allclose(mixed.sum(axis=0), 1, atol=1e-5)
    z, y, x = np.indices(grid.shape)
    world = np.stack([x, y, z], axis=-1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    expected = np.clip(0.5 + (world - middle) @ direction / 300, 0, 1)
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(mixed[1][inner], expected[inner], atol=2e-3)


def test_outside_of_images_there_is_background(patient: Patient, grid: CommonGrid) -> None:
    place = patient.centers[4]
    cut = plane_grid(patient.volume, PlanarView(size=32), "axial", (place - 15, place + 15))
    classes = Classes(grid)
    said = np.zeros((cut.count, 9, 32, 32), np.float32)
    said[:, 4] = 1
    classes.add(cut, 0, said)
    mixed = classes.probabilities()
    index = np.rint(np.linalg.solve(grid.affine, np.append(place, 1))[:3]).astype(int)
    assert mixed[4, index[2], index[1], index[0]] == pytest.approx(1)
    assert mixed[0, index[2], 0, 0] == pytest.approx(1)


@pytest.mark.parametrize("plane", PLANES)
def test_boxes_are_painted_where_they_were_seen(patient: Patient, grid: CommonGrid, plane: Plane) -> None:
    cut = plane_grid(planar_volume(patient.volume), PlanarView(size=64, step_mm=3.0), plane)
    place = patient.centers[5]
    column, row, number = np.linalg.solve(cut.affine, np.append(place, 1))[:3]
    rows = [np.empty((0, 6), np.float32)] * cut.count
    # Fractured C5 is C5 too.
    rows[round(number)] = np.array([[12, 0.8, column - 3, row - 3, column + 4, row + 4]], np.float32)
    painted = painted_boxes([PlaneAnswers(cut, boxes=tuple(rows))], grid)
    assert painted is not None
    hit = np.argwhere(painted[4] > 0)
    assert painted[4].max() == pytest.approx(0.8)
    assert not painted[[0, 1, 2, 3, 5, 6]].any()
    middle = hit.mean(axis=0)[::-1] @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    np.testing.assert_allclose(middle, place, atol=2.0)


def said_of(patient: Patient, grid: CommonGrid) -> NDArray[np.float32]:
    """Pixel classes on the common grid that know the truth."""
    small = planar_volume(patient.volume)
    cut = plane_grid(small, PlanarView(size=96))
    labels = sample_planes(planar_labels(patient.labels, small), cut, 0, cut.count, order=0, fill=0)
    classes = Classes(grid)
    classes.add(cut, 0, np.where(labels[:, None] == np.arange(9)[None, :, None, None], 0.92, 0.01).astype(np.float32))
    return classes.probabilities()


def test_levels_named_wrongly_in_places_are_named_right_in_the_mask(patient: Patient, grid: CommonGrid) -> None:
    classes = said_of(patient, grid)
    truth = find_planar_levels((), classes.copy(), grid, patient.volume)
    # All of C5 is called C3, and a lump of shoulder C2.
    spoilt = classes.copy()
    spoilt[3] += spoilt[5]
    spoilt[5] = 0
    spoilt[:, 10:14, 5:9, 5:9] = 0
    spoilt[2, 10:14, 5:9, 5:9] = 1
    found = find_planar_levels((), spoilt, grid, patient.volume)
    assert [item.label for item in found.found] == list(range(1, 8))
    both = (truth.labels == Level.C5) & (found.labels == Level.C5)
    assert both.sum() > 0.8 * (truth.labels == Level.C5).sum()
    assert not (found.labels[10:14, 5:9, 5:9] == Level.C2).any()
    assert found.cervical()[Level.C5].confidence < truth.cervical()[Level.C5].confidence
    assert found.doubts.contradicted == (5,)


def test_what_is_found_keeps_the_promises_of_a_level_map(patient: Patient, grid: CommonGrid) -> None:
    rng = np.random.default_rng(5)
    for strength in (0.0, 0.6, 3.0):
        noisy = said_of(patient, grid) * np.exp(strength * rng.normal(size=(9, *grid.shape))).astype(np.float32)
        found = find_planar_levels((), noisy / noisy.sum(axis=0), grid, patient.volume)
        labels = [item.label for item in found.found]
        assert labels == list(range(labels[0], labels[-1] + 1)) if labels else True
        heights = [item.center_mm[2] for item in found.found]
        assert heights == sorted(heights, reverse=True)
        assert all(0 <= item.confidence <= 1 and 0 <= item.visible_fraction <= 1 for item in found.found)
        assert found.labels.shape == grid.shape
        assert set(np.unique(found.labels)) <= set(range(10))


def test_a_region_is_the_mask_and_its_margin(patient: Patient, grid: CommonGrid) -> None:
    levels = find_planar_levels((), said_of(patient, grid), grid, patient.volume)
    tight, wide = (region_of(levels, Level.C4, margin) for margin in (0.0, 6.0))
    assert tight.inside.sum() == (levels.labels == Level.C4).sum()
    assert wide.inside.sum() > 1.5 * tight.inside.sum()
    for region in (tight, wide):
        index = np.argwhere(region.inside)[:, ::-1]
        assert Volume(region.inside.astype(np.uint8), region.affine).to_world(index.mean(axis=0)) == pytest.approx(
            patient.centers[4] + (0, 13, 0), abs=6
        )
