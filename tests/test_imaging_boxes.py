"""Boxes: made from masks, moved by matrices, turned into the labels of slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import UsageError
from cspine.imaging import Boxes, Sample, boxes_from_mask, levels_from_boxes, slices_with_boxes
from cspine.imaging.labelling import BoxesFromMask, LabelsFromBoxes

RNG = np.random.default_rng(0)


def test_boxes_lie_on_pixel_edges() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[2, 3] = 4
    boxes = boxes_from_mask(mask)
    assert boxes.corners.tolist() == [[3, 2, 4, 3]]
    assert boxes.levels.tolist() == [4]


def test_one_box_for_each_slice_and_level() -> None:
    mask = np.zeros((3, 6, 6), np.uint8)
    mask[0, 0:2, 0:2] = 1
    mask[1, 0:2, 0:3] = 1
    mask[1, 4:6, 4:6] = 2
    boxes = boxes_from_mask(mask)
    assert boxes.slices.tolist() == [[0, 1], [1, 2], [1, 2]]
    assert boxes.levels.tolist() == [1, 1, 2]
    assert boxes.corners[1].tolist() == [0, 0, 3, 2]


def test_other_values_get_boxes_when_asked_for() -> None:
    mask = np.full((2, 2), 9, np.uint8)
    assert len(boxes_from_mask(mask)) == 0
    assert boxes_from_mask(mask, (9,)).levels.tolist() == [9]


def test_empty_mask_has_no_boxes() -> None:
    assert len(boxes_from_mask(np.zeros((4, 4), np.uint8))) == 0


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 4), st.integers(1, 4))
def test_a_drawn_box_is_found_again(x: int, y: int, width: int, height: int) -> None:
    boxes = Boxes.of([[x, y, x + width, y + height]], [5])
    found = boxes_from_mask(boxes.drawn_on((10, 10)), (1,))
    assert found.corners.tolist() == boxes.corners.tolist()


def test_slices_are_labelled_by_the_boxes_in_them() -> None:
    boxes = Boxes.of([[0, 0, 2, 2]] * 3, [1, 2, 8], [[0, 2], [1, 3], [0, 4]])
    labels = levels_from_boxes(boxes, 4)
    assert labels.shape == (4, 7)
    assert [row[:2].tolist() for row in labels] == [[1, 0], [1, 1], [0, 1], [0, 0]]
    assert labels[:, 2:].sum() == 0


def test_a_slice_with_any_box_shows_a_fracture() -> None:
    """Boxes of the RSNA 2022 table have no level; slices without one count as intact."""
    boxes = Boxes.of([[0, 0, 2, 2]] * 2, slices=[[1, 2], [2, 3]])
    assert slices_with_boxes(boxes, 4).tolist() == [0, 1, 1, 0]
    assert slices_with_boxes(Boxes.of([]), 2).tolist() == [0, 0]
    step = LabelsFromBoxes(of="any")
    stack = step.apply(Sample(np.zeros((4, 4, 4)), boxes=boxes), RNG)
    assert stack.labels is not None and stack.labels.tolist() == [0, 1, 1, 0]
    image = step.apply(Sample(np.zeros((4, 4)), boxes=Boxes.of([[0, 0, 2, 2]])), RNG)
    assert image.labels is not None and image.labels.tolist() == 1


def test_as_steps() -> None:
    mask = np.zeros((2, 6, 6), np.uint8)
    mask[1, 2:4, 2:5] = 7
    out = LabelsFromBoxes().apply(BoxesFromMask().apply(Sample(np.zeros(mask.shape), mask), RNG), RNG)
    assert out.labels is not None and np.argwhere(out.labels).tolist() == [[1, 6]]
    image = LabelsFromBoxes().apply(Sample(np.zeros((6, 6)), boxes=Boxes.of([[1, 1, 2, 2]], [3])), RNG)
    assert image.labels is not None and image.labels.tolist() == [0, 0, 1, 0, 0, 0, 0]
    with pytest.raises(UsageError, match="with a mask"):
        BoxesFromMask().apply(Sample(np.zeros((6, 6))), RNG)


def test_clipping_drops_what_lies_outside() -> None:
    boxes = Boxes.of([[-5, -5, 3, 3], [20, 20, 30, 30], [4, 4, 6, 6]], [1, 2, 3], [[0, 1], [0, 1], [5, 6]])
    left = boxes.clipped((2, 10, 10))
    assert left.corners.tolist() == [[0, 0, 3, 3]]
    assert left.levels.tolist() == [1]


def test_a_matrix_moves_boxes_within_and_across_slices() -> None:
    shift = np.eye(4)
    shift[:3, 3] = 2.5, -1, 0.5
    moved = Boxes.of([[3, 3, 5, 6]], [1], [[4, 5]]).moved(shift)
    assert moved.corners.tolist() == [[5.5, 2, 7.5, 5]]
    # Half a slice up: it now lies in two.
    assert moved.slices.tolist() == [[4, 6]]


@pytest.mark.parametrize("corners", [[3, 3, 3, 5], [5, 0, 3, 5], [0, np.nan, 3, 5]])
def test_boxes_without_extent_are_refused(corners: list[float]) -> None:
    with pytest.raises(UsageError, match="x0 < x1"):
        Boxes.of([corners])


def test_every_box_needs_its_level_and_slices() -> None:
    with pytest.raises(UsageError, match="levels"):
        Boxes.of([[0, 0, 1, 1]], [1, 2])
