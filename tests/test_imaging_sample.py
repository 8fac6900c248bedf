"""``Sample``: what every step takes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from cspine.errors import IntensityError, UsageError
from cspine.imaging import Boxes, Sample
from cspine.imaging.geometry import crop, flip, resize
from cspine.imaging.sample import drawn
from cspine.volume import Volume
from imaging_factory import with_box


def test_image_becomes_float32_and_nothing_else_is_needed() -> None:
    sample = Sample(np.arange(6, dtype=np.int16).reshape(2, 3))
    assert sample.image.dtype == np.float32
    assert sample.mask is None and len(sample.boxes) == 0 and sample.labels is None


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4), (0, 4)])
def test_only_images_and_stacks_with_pixels(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="non-empty image"):
        Sample(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    image = np.zeros((4, 4))
    image[1, 2] = value
    with pytest.raises(IntensityError, match="1 pixels that are NaN or infinite"):
        Sample(image)


def test_mask_must_lie_on_the_same_grid_and_hold_whole_numbers() -> None:
    with pytest.raises(UsageError, match=r"shape \(4, 4\), got uint8 of shape \(4, 5\)"):
        Sample(np.zeros((4, 4)), np.zeros((4, 5), np.uint8))
    with pytest.raises(UsageError, match="whole numbers"):
        Sample(np.zeros((4, 4)), np.zeros((4, 4)))


@pytest.mark.parametrize("label", [-0.1, 1.1, np.nan])
def test_labels_are_shares(label: float) -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        Sample(np.zeros((4, 4)), labels=np.array([label]))


def test_points_find_their_way_back_through_several_steps() -> None:
    sample = with_box(10, 8, 20, 18)
    out = flip(resize(crop(sample, (slice(None), slice(4, 36), slice(6, 46))), (64, 64)), "x")
    points = np.array([[0.0, 0.0, 0.0], [12.5, 30.0, 0.0]])
    np.testing.assert_allclose(out.from_original(out.to_original(points)), points, atol=1e-9)
    np.testing.assert_allclose(out.boxes_in_original().corners, sample.boxes.corners, atol=1e-9)


def test_placement_is_what_a_volume_needs() -> None:
    """A voxel of the steps' result lies in the patient where the same voxel of the volume lay."""
    affine = np.array([[0.5, 0, 0, -10], [0, 0.5, 0, 20], [0, 0, 2.0, 5], [0, 0, 0, 1]])
    volume = Volume(np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8), affine)
    out = crop(flip(Sample(volume.hu), "z"), (slice(1, 3), slice(2, 6), slice(3, 8)))
    assert out.placement is not None
    place = affine @ out.placement @ [0, 0, 0, 1]
    x, y, z = volume.to_index(place[:3]).round().astype(int)
    assert out.image[0, 0, 0] == volume.hu[z, y, x]


def test_a_number_is_itself_and_two_are_drawn_between() -> None:
    rng = np.random.default_rng(0)
    assert drawn(2.0, rng) == 2.0
    values = [drawn((1.0, 3.0), rng) for _ in range(50)]
    assert 1 <= min(values) < 1.5 < 2.5 < max(values) <= 3


def test_boxes_may_be_given_for_a_stack() -> None:
    boxes = Boxes.of([[1, 1, 3, 3]], [2], [[1, 2]])
    assert Sample(np.zeros((3, 4, 4)), boxes=boxes).boxes.slices.tolist() == [[1, 2]]
