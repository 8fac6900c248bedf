"""Rigid registration finds a known motion, and says when there is none to find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cspine.errors import GeometryError, IntensityError, UsageError
from cspine.imaging import Boxes, Sample
from cspine.imaging.geometry import turned
from cspine.imaging.registration import Register, _grids, register_images, register_volumes, registered
from cspine.imaging.warps import shift_scale_rotate
from cspine.volume import Volume
from imaging_factory import blob

RNG = np.random.default_rng(0)
# Voxels of 2 x 2 x 3 mm, not where the world begins.
AFFINE = np.array([[2.0, 0, 0, -50], [0, 2, 0, 30], [0, 0, 3, 100], [0, 0, 0, 1]])


def motion(degrees: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """A turn about the middle of the phantom, then a shift, in LPS mm."""
    middle = AFFINE @ [24, 20, 12, 1]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = middle[:3] - matrix[:3, :3] @ middle[:3] + shift_mm
    return matrix


def test_a_known_motion_of_a_volume_is_found() -> None:
    fixed = Volume(blob(), AFFINE)
    known = motion((4, -3, 8), (6, -4, 5))
    # The same voxels, each lying where the motion takes it.
    moving = replace(fixed, affine=known @ AFFINE)
    found = register_volumes(moving, fixed)
    assert found.correlation > 0.99
    points = (AFFINE @ np.array([[24, 20, 12, 1], [34, 20, 12, 1], [24, 30, 16, 1]]).T)[:3].T
    there = points @ found.matrix[:3, :3].T + found.matrix[:3, 3]
    np.testing.assert_allclose(there, points @ known[:3, :3].T + known[:3, 3], atol=0.5)
    np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-6)


def test_the_moved_volume_lies_on_the_reference() -> None:
    fixed = Volume(blob(), AFFINE)
    moving = replace(fixed, affine=motion((0, 0, 6), (5, 3, 0)) @ AFFINE)
    out = registered(moving, fixed, register_volumes(moving, fixed))
    np.testing.assert_allclose(out.affine, fixed.affine)
    inside = (slice(4, -4), slice(8, -8), slice(8, -8))
    assert np.abs(out.hu[inside] - fixed.hu[inside]).max() < 0.05 * np.ptp(fixed.hu)


def test_the_same_images_give_the_same_motion() -> None:
    fixed, moving = blob((48, 48)), shift_scale_rotate(Sample(blob((48, 48))), (0.05, 0.02), 1, 6).image
    one, again = (register_images(moving, fixed) for _ in range(2))
    np.testing.assert_array_equal(one.matrix, again.matrix)


def test_as_a_step_image_mask_and_boxes_come_to_the_reference(tmp_path: Path) -> None:
    """The reference may have another size; the sample takes its grid."""
    image = blob((48, 48))
    np.save(tmp_path / "reference.npy", np.pad(image, ((0, 8), (0, 0)), mode="edge"))
    boxes = Boxes.of([[18, 20, 30, 28]], [4])
    moved = shift_scale_rotate(Sample(image, boxes.drawn_on(image.shape) * np.uint8(4), boxes), (0.06, -0.04), 1, 7)
    out = Register(reference=tmp_path / "reference.npy").apply(moved, RNG)
    assert out.image.shape == (56, 48) and out.mask is not None
    wanted = boxes.drawn_on(out.image.shape) > 0
    assert (wanted & (out.mask == 4)).sum() > 0.9 * (wanted | (out.mask == 4)).sum()
    # The box around a box that was turned twice is larger than it was, about the same middle.
    low, high = out.boxes.corners[0, :2], out.boxes.corners[0, 2:]
    np.testing.assert_allclose((low + high) / 2, [24, 24], atol=0.5)


def test_arrays_register_in_indices() -> None:
    fixed = blob((48, 48))
    moving = np.roll(fixed, (3, -2), (0, 1))
    found = register_images(moving, fixed)
    np.testing.assert_allclose(found.matrix[:2, 3], [-2, 3], atol=0.1)
    assert np.abs(turned(Sample(moving), found.matrix).image - fixed)[8:-8, 8:-8].max() < 0.02 * np.ptp(fixed)


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((48, 40, 24), [2]),
        ((512, 512), [0, 1, 2]),
        ((256, 256, 94), [0, 1, 2]),
        ((512, 512, 300), [0, 1]),
        ((9000, 9, 999), [2]),
    ],
)
def test_large_volumes_stay_on_coarse_grids_and_small_ones_on_fine(size: tuple[int, ...], grids: list[int]) -> None:
    assert _grids(size, size) == grids


def test_two_different_things_are_refused() -> None:
    noise = np.random.default_rng(1).normal(0, 1, (2, 32, 32)).astype(np.float32)
    with pytest.raises(GeometryError, match="did not converge"):
        register_images(noise[0], noise[1])


def test_too_few_iterations_are_no_result() -> None:
    fixed = blob((48, 48))
    with pytest.raises(GeometryError, match="still moving after 2 iterations"):
        register_images(np.roll(fixed, 4, 1) + np.rot90(fixed) / 3, fixed, iterations=2)


def test_a_constant_cannot_be_registered() -> None:
    with pytest.raises(IntensityError, match=r"constant \(moving\)"):
        register_images(np.zeros((8, 8)), blob((8, 8)))
    with pytest.raises(UsageError, match="two images or two stacks"):
        register_images(blob((8, 8, 8)), blob((8, 8)))


def test_a_reference_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    for name in ("broken.npy", "missing.npy"):
        with pytest.raises(UsageError, match=name):
            Register(reference=tmp_path / name).apply(Sample(blob((8, 8))), RNG)
