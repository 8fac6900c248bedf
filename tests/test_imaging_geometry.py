"""Flips, transpose, regions of interest and resize: image, mask, boxes and placement move together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.errors import IntensityError, UsageError
from cspine.imaging import Boxes, Sample, boxes_from_mask
from cspine.imaging.geometry import Axis, Resize, Roi, crop, flip, region, resize, transpose, turned
from imaging_factory import blob, images, same, with_box

corners = st.tuples(st.integers(0, 46), st.integers(0, 38), st.integers(1, 20), st.integers(1, 20)).map(
    lambda c: (c[0], c[1], min(c[0] + c[2], 48), min(c[1] + c[3], 40))
)
RNG = np.random.default_rng(0)


def stack_with_box(box: tuple[int, int, int, int]) -> Sample:
    """The box in slices 1 and 2 of five."""
    boxes = Boxes.of([box], [3], [[1, 3]])
    mask = boxes.drawn_on((5, 40, 48)) * np.uint8(3)
    return Sample((mask > 0).astype(np.float32), mask, boxes)


def agree(sample: Sample) -> None:
    """The box lies where mask and image show it."""
    assert sample.mask is not None
    np.testing.assert_array_equal(sample.image > 0.5, sample.mask > 0)
    np.testing.assert_array_equal(sample.boxes.drawn_on(sample.image.shape), sample.mask > 0)


@given(box=corners, axis=st.sampled_from(["x", "y", "z"]))
@settings(max_examples=30)
def test_flips_move_all_and_undo_themselves(box: tuple[int, int, int, int], axis: Axis) -> None:
    sample = stack_with_box(box)
    once = flip(sample, axis)
    agree(once)
    twice = flip(once, axis)
    assert same(twice, sample)
    np.testing.assert_allclose(twice.placement, np.eye(4))


def test_a_flipped_sample_lies_in_memory_order() -> None:
    """So that it can become a tensor, which knows no negative strides."""
    out = flip(with_box(0, 10, 5, 20), "x")
    assert out.image.flags.c_contiguous and out.mask is not None and out.mask.flags.c_contiguous


def test_flip_x_swaps_left_and_right() -> None:
    out = flip(with_box(0, 10, 5, 20), "x")
    assert out.boxes.corners.tolist() == [[43, 10, 48, 20]]
    with pytest.raises(UsageError, match="no axis z"):
        flip(with_box(0, 10, 5, 20), "z")


@given(box=corners)
@settings(max_examples=20)
def test_transpose_moves_all_and_undoes_itself(box: tuple[int, int, int, int]) -> None:
    sample = with_box(*box)
    agree(transpose(sample))
    assert same(transpose(transpose(sample)), sample)


@given(box=corners, top=st.integers(0, 20), left=st.integers(0, 20))
@settings(max_examples=30)
def test_crop_moves_all(box: tuple[int, int, int, int], top: int, left: int) -> None:
    sample = stack_with_box(box)
    out = crop(sample, (slice(1, 4), slice(top, 40), slice(left, 48)))
    agree(out)
    np.testing.assert_array_equal(out.to_original(np.zeros(3)), [left, top, 1])


def test_crop_leaves_out_boxes_that_lie_outside() -> None:
    out = crop(with_box(2, 2, 6, 6), (slice(None), slice(10, 40), slice(10, 48)))
    assert len(out.boxes) == 0
    with pytest.raises(UsageError, match="non-empty"):
        crop(out, (slice(None), slice(5, 5), slice(0, 4)))


@given(box=corners, rows=st.integers(1, 70), columns=st.integers(1, 70), keep=st.booleans())
@settings(max_examples=50)
def test_boxes_come_back_from_any_size(box: tuple[int, int, int, int], rows: int, columns: int, keep: bool) -> None:
    sample = with_box(*box)
    out = resize(sample, (rows, columns), keep_aspect=keep)
    assert out.image.shape == (rows, columns) and out.mask is not None and out.mask.shape == (rows, columns)
    np.testing.assert_allclose(out.boxes_in_original().corners, sample.boxes.corners, atol=1e-6)


@given(image=images, size=st.tuples(st.integers(1, 12), st.integers(1, 12)))
@settings(max_examples=30)
def test_resize_keeps_the_range_and_its_input(image: np.ndarray, size: tuple[int, int]) -> None:
    before = image.copy()
    out = resize(Sample(image), size).image
    assert image.min() <= out.min() and out.max() <= image.max()
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("factor", [2, 3])
def test_enlarged_mask_and_box_agree(factor: int) -> None:
    out = resize(with_box(10, 8, 20, 18), (40 * factor, 48 * factor))
    assert out.mask is not None
    np.testing.assert_array_equal(out.boxes.drawn_on(out.mask.shape), out.mask > 0)


def test_there_and_back_is_nearly_the_same() -> None:
    image = blob((40, 48))
    there = resize(Sample(image), (80, 96))
    back = resize(there, (40, 48))
    assert np.abs(back.image - image).max() < 0.02 * np.ptp(image)
    np.testing.assert_allclose(back.placement, np.eye(4), atol=1e-12)


def test_the_aspect_is_kept_by_padding() -> None:
    sample = Sample(np.ones((40, 80)))
    out = resize(sample, (64, 64), fill=0)
    assert (out.image[16:48] == 1).all()
    assert (out.image[:16] == 0).all() and (out.image[48:] == 0).all()
    assert (resize(sample, (64, 64), keep_aspect=False).image == 1).all()


def test_shrinking_averages() -> None:
    checks = np.indices((64, 64)).sum(0) % 2
    assert np.abs(resize(Sample(checks), (8, 8)).image - 0.5).max() < 0.05


def test_a_pixel_may_become_a_picture() -> None:
    assert (resize(Sample(np.full((1, 1), 5.0)), (4, 4)).image == 5).all()
    with pytest.raises(UsageError, match="at least 1 x 1"):
        resize(Sample(np.zeros((4, 4))), (0, 4))


def test_regions_hold_body_bone_or_mask_with_a_margin() -> None:
    hu = np.full((3, 40, 48), -1000, np.float32)
    hu[1:, 5:35, 10:40] = 40
    hu[1:, 15:25, 20:30] = 900
    hu[1, 2, 2] = 900
    sample = Sample(hu, (hu > 500).astype(np.uint8))
    assert region(sample, "body") == (slice(1, 3), slice(5, 35), slice(10, 40))
    # The lone bright pixel is no bone, but it is in the mask.
    assert region(sample, "bone", margin=2) == (slice(1, 3), slice(13, 27), slice(18, 32))
    assert region(sample, "mask")[1:] == (slice(2, 25), slice(2, 30))
    assert region(sample, "body", margin=100)[1:] == (slice(0, 40), slice(0, 48))
    out = Roi(of="bone").apply(sample, RNG)
    assert (out.image == 900).all()
    assert out.to_original(np.zeros(3)).tolist() == [20, 15, 1]


def test_a_region_of_nothing_is_refused() -> None:
    empty = Sample(np.full((8, 8), -1000.0), np.zeros((8, 8), np.uint8))
    with pytest.raises(UsageError, match="mask with something in it"):
        region(empty, "mask")
    with pytest.raises(IntensityError, match="bone above 250"):
        region(empty, "bone")
    with pytest.raises(IntensityError, match="body above -300"):
        region(empty, "body")


def test_a_turn_by_a_right_angle_is_exact() -> None:
    sample = with_box(10, 8, 20, 18, shape=(41, 41))
    matrix = np.eye(4)
    matrix[:2, :2], matrix[:2, 3] = [[0, 1], [-1, 0]], [0, 40]
    out = turned(sample, matrix)
    np.testing.assert_allclose(out.image, np.rot90(sample.image, -1), atol=1e-6)
    assert out.boxes.corners.tolist() == boxes_from_mask(np.asarray(out.mask)).corners.tolist()


def test_a_sample_without_a_mask_keeps_none() -> None:
    sample = Sample(np.eye(6))
    assert turned(Sample(np.eye(6), np.eye(6, dtype=bool)), np.eye(4)).mask is not None
    for out in (flip(sample), transpose(sample), resize(sample, (3, 3)), turned(sample, np.eye(4))):
        assert out.mask is None
    assert Resize(size=(3, 3)).apply(sample, RNG).image.shape == (3, 3)
