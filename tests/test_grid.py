"""A grid knows where its voxels are, which of them a box can touch, and how to fill a finer grid from a coarser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import GeometryError
from cspine.phantoms.grid import Grid, upsample
from cspine.phantoms.spine import placed, rotation

angles = st.floats(-40, 40)
steps = st.floats(0.3, 4.0)


def tilted(x: float, y: float, z: float, spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> Grid:
    affine = placed(rotation(x, y, z) @ np.diag(spacing), np.array([3.0, -7.0, 11.0]))
    return Grid(affine, shape)


def test_axis_aligned_is_centred_and_sized_as_asked() -> None:
    grid = Grid.axis_aligned((10, 20, 30), (8, 6, 4), (1, 2, 0.5))
    assert grid.shape == (8, 3, 8)
    points = grid.points()
    np.testing.assert_allclose(points.reshape(-1, 3).mean(axis=0), (10, 20, 30), atol=1e-5)
    np.testing.assert_allclose(grid.spacing, (1, 2, 0.5))


@given(angles, angles, angles, st.tuples(steps, steps, steps))
def test_points_follow_the_affine(x: float, y: float, z: float, spacing: tuple[float, float, float]) -> None:
    grid = tilted(x, y, z, spacing, (3, 4, 5))
    expected = grid.affine @ np.array([4, 1, 2, 1.0])
    np.testing.assert_allclose(grid.points()[2, 1, 4], expected[:3], atol=1e-3)


@given(angles, angles, angles, st.tuples(steps, steps, steps))
def test_points_in_a_pose_are_the_world_points_seen_from_it(
    x: float, y: float, z: float, spacing: tuple[float, float, float]
) -> None:
    grid = tilted(0, 0, 0, spacing, (2, 3, 2))
    pose = placed(rotation(x, y, z), np.array([1.0, 2.0, 3.0]))
    back = grid.points(pose) @ pose[:3, :3].T + pose[:3, 3]
    np.testing.assert_allclose(back, grid.points(), atol=1e-3)


@given(angles, angles, angles, st.tuples(st.floats(-30, 30), st.floats(-30, 30), st.floats(-30, 30)))
def test_covering_never_misses_a_voxel(x: float, y: float, z: float, middle: tuple[float, float, float]) -> None:
    grid = tilted(x, y, z, (1.0, 1.5, 2.0), (12, 14, 16))
    low, high = np.asarray(middle) - 6, np.asarray(middle) + 6
    points = grid.points()
    inside = ((points >= low) & (points <= high)).all(axis=-1)
    box = grid.covering(low.tolist(), high.tolist())
    covered = np.zeros(grid.shape, dtype=bool)
    if box is not None:
        covered[box] = True
    assert not (inside & ~covered).any()


def test_covering_outside_is_none() -> None:
    grid = Grid.axis_aligned((0, 0, 0), (10, 10, 10), 1)
    assert grid.covering((50, 50, 50), (60, 60, 60)) is None


def test_sub_keeps_world_positions() -> None:
    grid = tilted(10, 20, 30, (1.0, 1.5, 2.0), (8, 9, 10))
    box = (slice(2, 5), slice(1, 8), slice(3, 4))
    np.testing.assert_allclose(grid.sub(box).points(), grid.points()[box], atol=1e-4)


@given(angles, angles, angles, st.floats(1.0, 5.0))
def test_upsample_is_exact_for_linear_functions(x: float, y: float, z: float, coarse_step: float) -> None:
    grid = tilted(x, y, z, (0.9, 1.1, 1.4), (9, 8, 7))
    coarse = grid.coarsened(coarse_step)
    weights = np.array([0.5, -1.0, 2.0], dtype=np.float32)
    filled = upsample(coarse.points() @ weights + 3, coarse, grid)
    np.testing.assert_allclose(filled, grid.points() @ weights + 3, atol=2e-3)


def test_upsample_refuses_other_axes() -> None:
    grid = tilted(0, 0, 0, (1, 1, 1), (4, 4, 4))
    turned = tilted(0, 0, 20, (1, 1, 1), (4, 4, 4))
    with pytest.raises(GeometryError, match="parallel"):
        upsample(np.zeros((4, 4, 4), np.float32), turned, grid)
