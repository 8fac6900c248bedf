"""What holds for the images of any volume, in any view: they cover it, they are square, and they lie where they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cspine.inference.planar import PlanarView, Plane
from cspine.inference.planar_images import STORED_SIZE, STORED_STEP_MM, PlaneGrid, planar_volume, plane_grid
from cspine.volume import Volume

Points = NDArray[np.float64]
MM = st.floats(0.3, 5.0)
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Scene:
    """A volume, a view of it, and a plane."""

    volume: Volume
    view: PlanarView
    plane: Plane

    def corners(self) -> Points:
        """Of the whole field, edges of its outermost voxels; ``(8, 3)`` LPS mm."""
        ends = [(-0.5, n - 0.5) for n in self.volume.shape[::-1]]
        return self.volume.to_world([(x, y, z) for x in ends[0] for y in ends[1] for z in ends[2]])


@st.composite
def scenes(draw: st.DrawFn, *, most_degrees: float = 40.0) -> Scene:
    """Any field, its axes turned a little about the long axis, anywhere in space."""
    shape = draw(st.tuples(*[st.integers(8, 30)] * 3))
    spacing = np.array(draw(st.tuples(MM, MM, MM)))
    angle = np.radians(draw(st.floats(-most_degrees, most_degrees)))
    c, s = np.cos(angle), np.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    size, step = draw(st.sampled_from([32, 64, 256])), draw(st.floats(0.5, 6.0))
    view = PlanarView(size=size, step_mm=step)
    return Scene(Volume(np.zeros(shape, np.int16), affine), view, draw(st.sampled_from(["axial", "sagittal"])))


def index_of(points: Points, grid: PlaneGrid) -> Points:
    """Column, row and image of LPS points."""
    return (points - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T


def holds(grid: PlaneGrid, points: Points, axes: tuple[int, ...] = (0, 1, 2)) -> bool:
    """Whether all points lie in the images."""
    index = index_of(points, grid)[:, axes]
    ends = np.array([grid.size, grid.size, grid.count])[list(axes)] - 0.5
    return bool((index >= -0.5 - TOLERANCE).all() and (index <= ends + TOLERANCE).all())


@given(scenes())
def test_images_cover_the_whole_field_and_no_more_than_they_must(scene: Scene) -> None:
    grid = plane_grid(scene.volume, scene.view, scene.plane)
    assert holds(grid, scene.corners())
    index = index_of(scene.corners(), grid)
    extent = np.ptp(index, axis=0)
    # The longer side fills the image, the images fill the third direction, and the field lies in the middle.
    assert extent[:2].max() == pytest.approx(grid.size) and extent[2] == pytest.approx(grid.count)
    np.testing.assert_allclose(index.mean(axis=0), (np.array([grid.size, grid.size, grid.count]) - 1) / 2, atol=1e-6)


@given(scenes())
def test_pixels_are_square_and_images_stand_upright_on_one_another(scene: Scene) -> None:
    grid = plane_grid(scene.volume, scene.view, scene.plane)
    steps = np.linalg.norm(grid.affine[:3, :3], axis=0)
    assert steps[0] == pytest.approx(steps[1])
    directions = grid.affine[:3, :3] / steps
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    # Axial columns, rows and images make a right hand; sagittal ones a left one, as rows run to the feet.
    columns_rows = np.cross(directions[:, 0], directions[:, 1])
    assert columns_rows @ directions[:, 2] == pytest.approx(1 if scene.plane == "axial" else -1)


@given(scenes())
def test_images_are_as_far_apart_as_asked_for_as_nearly_as_whole_images_allow(scene: Scene) -> None:
    grid = plane_grid(scene.volume, scene.view, scene.plane)
    step = float(np.linalg.norm(grid.affine[:3, 2]))
    along = step * grid.count
    for count in {max(1, grid.count - 1), grid.count + 1}:
        assert abs(grid.count - along / scene.view.step_mm) <= abs(count - along / scene.view.step_mm) + TOLERANCE


@given(scenes(), st.data())
def test_a_box_is_held_by_the_images_cut_to_it(scene: Scene, data: st.DataObject) -> None:
    shares = np.array(data.draw(st.tuples(*[st.floats(0, 1)] * 6))).reshape(2, 3)
    low, high = scene.corners().min(axis=0), scene.corners().max(axis=0)
    ends = np.sort(low + shares * (high - low), axis=0)
    grid = plane_grid(scene.volume, scene.view, scene.plane, (ends[0], ends[1]))
    whole = plane_grid(scene.volume, scene.view, scene.plane)
    assert np.linalg.norm(grid.affine[:3, 0]) <= np.linalg.norm(whole.affine[:3, 0]) + TOLERANCE
    assert grid.count == whole.count
    # What of the box lies in the field: its corners, drawn to the nearest place there.
    points = np.array([(ends[a, 0], ends[b, 1], ends[c, 2]) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    inside = scene.volume.to_world(
        np.clip(scene.volume.to_index(points), -0.5, np.array(scene.volume.shape[::-1]) - 0.5)
    )
    assert holds(grid, inside, (0, 1))


@given(scenes())
def test_a_kept_volume_is_as_coarse_as_it_must_be_and_keeping_it_again_changes_nothing(scene: Scene) -> None:
    kept = planar_volume(scene.volume)
    (x, y, z), (_, rows, columns) = scene.volume.spacing, scene.volume.shape
    pixel = max(x * columns, y * rows) / STORED_SIZE
    wanted = (max(x, pixel), max(y, pixel), max(z, STORED_STEP_MM))
    assert kept.spacing == pytest.approx(wanted, rel=2e-3)
    assert max(kept.shape[1:]) <= STORED_SIZE + 1
    again = planar_volume(kept)
    assert again.shape == kept.shape
    np.testing.assert_allclose(again.affine, kept.affine, atol=1e-6)
