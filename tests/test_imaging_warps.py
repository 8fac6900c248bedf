"""Shift, scale, rotation and the distortions: mask and boxes follow the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.errors import UsageError
from cspine.imaging import Boxes, Sample, boxes_from_mask
from cspine.imaging.dropout import CoarseDropout, drop
from cspine.imaging.sample import Step
from cspine.imaging.warps import (
    Elastic,
    GridDistortion,
    OpticalDistortion,
    ShiftScaleRotate,
    elastic_source,
    grid_source,
    optical_source,
    shift_scale_rotate,
    warp,
)
from imaging_factory import blob, same, with_box

STEPS: list[Step] = [
    ShiftScaleRotate(),
    GridDistortion(),
    OpticalDistortion(strength=(-0.3, 0.3)),
    Elastic(amplitude=(0.5, 3.0), smoothness=12.0),
]
ids = [step.kind for step in STEPS]


@pytest.mark.parametrize("step", STEPS, ids=ids)
@given(seed=st.integers(0, 1000), stack=st.booleans())
@settings(max_examples=25)
def test_mask_and_boxes_move_together(step: Step, seed: int, stack: bool) -> None:
    shape = (2, 40, 48) if stack else (40, 48)
    out = step.apply(with_box(14, 10, 30, 26, shape), np.random.default_rng(seed))
    assert out.mask is not None and set(np.unique(out.mask)) == {0, 3}
    around = boxes_from_mask(out.mask.reshape(-1, 40, 48)[0])
    # The image is linear and the mask nearest: they differ by less than a pixel at the edge.
    assert np.abs((out.image > 0.5).astype(int) - (out.mask > 0)).mean() < 0.02
    # The box around a turned box touches its corners, which are no pixels.
    assert np.abs(out.boxes.corners - around.corners).max() <= (1.0 if step.kind == "shift-scale-rotate" else 0.0)
    assert out.boxes.levels.tolist() == [3]


@pytest.mark.parametrize("step", STEPS, ids=ids)
def test_same_seed_same_warp_and_the_input_stays(step: Step) -> None:
    sample = with_box(14, 10, 30, 26)
    before = sample.image.copy()
    one, again, other = (step.apply(sample, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert same(one, again) and not same(one, other)
    np.testing.assert_array_equal(sample.image, before)


@pytest.mark.parametrize("step", STEPS, ids=ids)
@pytest.mark.parametrize("image", [np.full((9, 9), 4.0), np.full((1, 1), 4.0)], ids=["constant", "one pixel"])
def test_a_constant_stays_a_constant(step: Step, image: Any) -> None:
    out = step.apply(Sample(image, np.zeros(image.shape, np.uint8)), np.random.default_rng(0))
    np.testing.assert_allclose(out.image, image, rtol=1e-6)
    assert out.mask is not None and not out.mask.any() and len(out.boxes) == 0


@pytest.mark.parametrize("step", STEPS, ids=ids)
@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_the_range_stays(step: Step, seed: int) -> None:
    image = blob((30, 30))
    out = step.apply(Sample(image), np.random.default_rng(seed)).image
    assert image.min() - 1e-3 <= out.min() and out.max() <= image.max() + 1e-3


def test_shift_is_to_the_right_and_down_in_shares_of_the_side() -> None:
    out = shift_scale_rotate(with_box(10, 10, 20, 20), shift=(0.25, 0.1))
    assert out.boxes.corners.tolist() == [[22, 14, 32, 24]]
    np.testing.assert_array_equal(out.boxes.drawn_on((40, 48)) > 0, out.image > 0.5)


def test_scale_enlarges_about_the_middle() -> None:
    out = shift_scale_rotate(with_box(20, 16, 28, 24), scale=2)
    np.testing.assert_allclose(out.boxes.corners, [[16, 12, 32, 28]])
    with pytest.raises(UsageError, match="above 0"):
        shift_scale_rotate(out, scale=0)


def test_a_positive_angle_turns_right_to_down() -> None:
    """What lay to the right of the middle lies below it after 90 degrees, clockwise as a screen shows it."""
    out = shift_scale_rotate(with_box(30, 18, 36, 23, shape=(41, 41)), degrees=90)
    np.testing.assert_allclose(out.boxes.corners, [[18, 30, 23, 36]], atol=1e-9)


def test_affine_turns_know_the_way_back_and_distortions_do_not() -> None:
    sample = with_box(14, 10, 30, 26)
    out = shift_scale_rotate(sample, (0.1, 0.05), 1.2, 20)
    point = np.array([22.0, 18.0, 0.0])
    np.testing.assert_allclose(out.to_original(out.from_original(point)), point)
    bent = warp(sample, optical_source((40, 48), 0.1))
    with pytest.raises(UsageError, match="no way back"):
        bent.to_original(point)


def test_equal_cells_and_no_strength_change_nothing() -> None:
    sample = with_box(14, 10, 30, 26)
    for source in (
        grid_source((40, 48), np.ones(5), np.ones(5)),
        optical_source((40, 48), 0.0),
        elastic_source((40, 48), 0.0, 10.0, np.random.default_rng(0)),
    ):
        np.testing.assert_allclose(warp(sample, source).image, sample.image, atol=1e-6)


def test_grid_distortion_keeps_the_frame_and_the_order() -> None:
    y, x = grid_source((50, 50), np.array([1.0, 2.0, 0.5]), np.array([0.7, 1.3]))
    assert (np.diff(x, axis=1) > 0).all() and (np.diff(y, axis=0) > 0).all()
    assert x.min() > -0.5 and x.max() < 49.5


def test_a_barrel_shows_more_and_a_pincushion_less() -> None:
    sample = with_box(4, 4, 44, 36)
    size = [warp(sample, optical_source((40, 48), k)).image.sum() for k in (0.3, 0.0, -0.3)]
    assert size[0] < size[1] < size[2]


def test_elastic_has_its_amplitude_and_is_smooth() -> None:
    field = elastic_source((128, 128), 3.0, 16.0, np.random.default_rng(0)) - np.indices((128, 128))
    assert field.std() == pytest.approx(3, rel=0.4)
    assert np.abs(np.diff(field, axis=2)).max() < 1


def test_a_thin_box_does_not_fall_between_pixels() -> None:
    sample = Sample(np.zeros((20, 20)), boxes=Boxes.of([[5.1, 5.1, 5.3, 15]], [2]))
    assert len(warp(sample, np.indices((20, 20)).astype(float)).boxes) == 1


def test_a_box_that_leaves_the_frame_goes() -> None:
    sample = with_box(40, 30, 46, 38)
    assert len(shift_scale_rotate(sample, shift=(0.5, 0.5)).boxes) == 0
    assert len(warp(sample, np.indices((40, 48)) / 4.0).boxes) == 0


def test_warps_that_fit_nothing_are_refused() -> None:
    sample = with_box(4, 4, 8, 8)
    with pytest.raises(UsageError, match="finite rows and columns"):
        warp(sample, np.zeros((2, 4, 4)))
    with pytest.raises(UsageError, match="positive widths"):
        grid_source((8, 8), np.array([1.0, 0.0]), np.ones(2))


def test_coarse_dropout_covers_the_image_and_leaves_the_truth() -> None:
    sample = with_box(4, 4, 40, 36)
    out = CoarseDropout(holes=4, size=0.25, fill=9.0).apply(sample, np.random.default_rng(0))
    assert 0 < (out.image == 9).sum() <= 4 * 10 * 12
    assert out.mask is sample.mask and out.boxes is sample.boxes
    assert (sample.image <= 1).all()


def test_holes_are_where_they_are_said_to_be() -> None:
    out = drop(np.ones((2, 5, 6)), np.array([[-3, 1, 2, 3], [5, 4, 99, 99], [-5, -5, 0, 0]]), fill=0)
    assert np.argwhere(out[0] == 0).tolist() == [[1, 0], [1, 1], [2, 0], [2, 1], [4, 5]]
    with pytest.raises(UsageError, match="whole numbers"):
        drop(np.ones((5, 6)), np.zeros((1, 4)))
