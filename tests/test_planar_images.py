"""Images cut for planar networks: the same however a scan was stored, each way up that radiologists hang them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cspine.inference.planar import PlanarView, Plane
from cspine.inference.planar_images import (
    STORED_SIZE,
    STORED_STEP_MM,
    as_channels,
    images,
    planar_labels,
    planar_volume,
    plane_grid,
    sample_planes,
)
from cspine.volume import AIR_HU, Volume
from test_stacks import ORDERS, stored

PLANES: tuple[Plane, ...] = ("axial", "sagittal")
# One place to the patient's left, one to the back and one to the head, LPS mm from the middle of the scan.
MARKS = {"left": (30.0, -10.0, -5.0), "back": (5.0, 32.0, -15.0), "head": (-8.0, -5.0, 24.0)}
MIDDLE = np.array([12.0, -40.0, 300.0])


def marked(*names: str, spacing: tuple[float, float, float] = (1.5, 1.5, 2.0), turn_deg: float = 0.0) -> Volume:
    """A block of tissue 96 x 108 x 80 mm with dense balls at some of the marks, perhaps turned about the long axis."""
    size = np.array([96.0, 108.0, 80.0])
    count = np.round(size / spacing).astype(int)
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = MIDDLE - affine[:3, :3] @ ((count - 1) / 2)
    z, y, x = np.indices(count[::-1])
    points = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3] - MIDDLE
    hu = np.full(count[::-1], 40, np.int16)
    for name in names:
        hu[np.linalg.norm(points - MARKS[name], axis=-1) < 7] = 1500
    return Volume(hu, affine)


def seen(volume: Volume, plane: Plane, **view: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the brightest place of all images lies: image, row and column as shares 0..1, and its LPS mm."""
    looks = PlanarView(size=64, **view)
    grid = plane_grid(volume, looks, plane)
    shown = images(volume, grid, looks, 0, grid.count)[:, 0]
    index = np.argwhere(shown >= 0.6 * shown.max()).mean(axis=0)
    world = grid.affine[:3, :3] @ index[::-1] + grid.affine[:3, 3]
    return (index + 0.5) / shown.shape, world


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(("order", "flips"), ORDERS)
def test_storage_does_not_change_images(plane: Plane, order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    volume = marked("left", "back", "head", spacing=(3.0, 3.0, 4.0))
    view = PlanarView(size=32, step_mm=8.0, neighbours=1)
    first, second = (planar_volume(item) for item in (volume, stored(volume, order, flips)))
    one, two = (plane_grid(item, view, plane) for item in (first, second))
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-9)
    assert one.count == two.count
    shown = images(first, one, view, 0, one.count)
    np.testing.assert_allclose(shown, images(second, two, view, 0, two.count), atol=1e-4)
    assert shown.max() > 0.5 > -0.5 > shown.min()


def test_axial_images_show_the_left_at_the_right_the_back_below_and_the_head_last() -> None:
    (image, row, column), _ = seen(marked("left"), "axial")
    assert column > 0.7 and row < 0.5 and image < 0.5
    (image, row, column), _ = seen(marked("back"), "axial")
    assert row > 0.7 and 0.5 < column < 0.6 and image < 0.4
    (image, row, column), _ = seen(marked("head"), "axial")
    assert image > 0.7 and column < 0.5


def test_sagittal_images_show_the_back_at_the_right_the_head_above_and_the_left_last() -> None:
    (image, row, column), _ = seen(marked("left"), "sagittal")
    assert image > 0.7 and column < 0.5 and row > 0.5
    (image, row, column), _ = seen(marked("back"), "sagittal")
    assert column > 0.7 and 0.5 < image < 0.6
    (image, row, column), _ = seen(marked("head"), "sagittal")
    assert row < 0.3 and image < 0.5


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("turn_deg", [0.0, 12.0])
def test_images_know_where_they_lie(plane: Plane, mark: str, turn_deg: float) -> None:
    _, world = seen(planar_volume(marked(mark, turn_deg=turn_deg)), plane)
    np.testing.assert_allclose(world - MIDDLE, MARKS[mark], atol=0.8)


@pytest.mark.parametrize("plane", PLANES)
def test_labels_agree_with_images(plane: Plane) -> None:
    scan = marked("left", "head", spacing=(0.4, 0.4, 1.0))
    labels = Volume((scan.hu > 1000).astype(np.uint8) * np.uint8(5), scan.affine)
    small, view = planar_volume(scan), PlanarView(size=96)
    mask = planar_labels(labels, small)
    assert mask.shape == small.shape and mask.hu.dtype == np.uint8
    grid = plane_grid(small, view, plane)
    shown = sample_planes(small, grid, 0, grid.count) > 770
    named = sample_planes(mask, grid, 0, grid.count, order=0, fill=0) == 5
    assert 2 * (shown & named).sum() / (shown.sum() + named.sum()) > 0.9


def test_the_volume_kept_is_never_finer_than_it_was() -> None:
    coarse = marked(spacing=(3.0, 3.0, 4.0))
    assert planar_volume(coarse) is not coarse
    assert planar_volume(coarse).spacing == coarse.spacing
    fine = Volume(np.zeros((20, 640, 512), np.int16), np.diag([0.4, 0.4, 0.5, 1.0]))
    kept = planar_volume(fine)
    assert max(kept.shape[1:]) == STORED_SIZE
    assert kept.spacing == pytest.approx((0.8, 0.8, STORED_STEP_MM))


@pytest.mark.parametrize("plane", PLANES)
def test_the_longer_side_fills_the_image_and_the_rest_is_air(plane: Plane) -> None:
    volume, view = marked(), PlanarView(size=64)
    grid = plane_grid(volume, view, plane)
    shown = sample_planes(volume, grid, grid.count // 2, 1)[0] > -500
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    across, down = (96, 108) if plane == "axial" else (108, 80)
    pixel = 108 / 64
    assert np.linalg.norm(grid.affine[:3, 0]) == pytest.approx(pixel)
    assert len(columns) == pytest.approx(across / pixel, abs=1.1)
    assert len(rows) == pytest.approx(down / pixel, abs=1.1)
    # In the middle.
    assert rows[0] == pytest.approx(63 - rows[-1], abs=1)
    assert columns[0] == pytest.approx(63 - columns[-1], abs=1)


@pytest.mark.parametrize("plane", PLANES)
def test_a_box_cuts_the_plane_and_nothing_else(plane: Plane) -> None:
    volume, view = marked("back"), PlanarView(size=64)
    whole = plane_grid(volume, view, plane)
    place = MIDDLE + MARKS["back"]
    box = (place - 20, place + 20)
    cut = plane_grid(volume, view, plane, box)
    assert cut.count == whole.count
    np.testing.assert_allclose(cut.affine[:3, 2], whole.affine[:3, 2])
    assert np.linalg.norm(cut.affine[:3, 0]) < np.linalg.norm(whole.affine[:3, 0])
    shown = images(volume, cut, view, 0, cut.count)[:, 0]
    index = np.argwhere(shown > 0.5).mean(axis=0)
    np.testing.assert_allclose(cut.affine[:3, :3] @ index[::-1] + cut.affine[:3, 3], place, atol=0.8)
    # Never beyond what was scanned.
    outside = plane_grid(volume, view, plane, (place - 500, place + 500))
    np.testing.assert_allclose(outside.affine, whole.affine)


def test_a_box_of_a_turned_scan_holds_what_it_held() -> None:
    volume, view = planar_volume(marked("left", turn_deg=20.0)), PlanarView(size=64)
    place = MIDDLE + MARKS["left"]
    grid = plane_grid(volume, view, "axial", (place - 8, place + 8))
    index = np.linalg.solve(grid.affine, np.append(place, 1))[:3]
    assert (index[:2] > 8).all() and (index[:2] < 56).all()


def test_channels_are_windows_of_each_image_and_its_neighbours() -> None:
    view = PlanarView(size=32, windows=((0.0, 200.0), (100.0, 100.0)), neighbours=1)
    planes = np.stack([np.full((2, 2), value, np.float32) for value in (-500, 0, 50, 125, 900)])
    shown = as_channels(planes, view)
    assert shown.shape == (3, view.channels, 2, 2)
    assert shown[1, :, 0, 0].tolist() == [0, -1, 0.5, -1, 1, 0.5]
    assert shown.dtype == np.float32


@given(start=st.integers(-3, 45), count=st.integers(1, 6))
def test_any_images_can_be_asked_for(start: int, count: int) -> None:
    volume, view = marked("left", spacing=(4.0, 4.0, 4.0)), PlanarView(size=32, neighbours=1)
    grid = plane_grid(volume, view)
    shown = images(volume, grid, view, start, count)
    assert shown.shape == (count, 3, 32, 32)
    for number in range(count):
        alone = images(volume, grid, view, start + number, 1)
        np.testing.assert_allclose(shown[number], alone[0], atol=1e-4)
    outside = sample_planes(volume, grid, -3, 1)
    assert (outside == AIR_HU).all()


def test_source_and_warnings_stay_with_the_volume() -> None:
    volume = replace(marked(), source=replace(marked().source, name="neck"))
    assert planar_volume(volume).source.name == "neck"
