"""Boxes of a detector: which are kept, and how answers are compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cspine.errors import UsageError
from cspine.inference.planar_boxes import box_overlap, boxes_distance, suppressed


@st.composite
def answers(draw, classes: int = 3):
    """Boxes ``(N, 4)`` on a coarse grid, so that many overlap, and scores ``(N, K)``, many of them equal."""
    count = draw(st.integers(0, 12))
    corner = draw(arrays.arrays(np.float32, (count, 2), elements=st.integers(0, 12)))
    size = draw(arrays.arrays(np.float32, (count, 2), elements=st.integers(0, 8)))
    scores = draw(
        arrays.arrays(np.float32, (count, classes), elements=st.sampled_from([0.0, 0.04, 0.05, 0.2, 0.5, 0.9]))
    )
    return np.concatenate([corner, corner + size], axis=1), scores


def test_of_two_boxes_around_one_vertebra_the_surer_is_kept():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 60, 60]])
    scores = np.array([[0.6, 0.0], [0.8, 0.0], [0.0, 0.3]])
    kept = suppressed(boxes, scores)
    np.testing.assert_allclose(kept, [[1, 0.8, 1, 0, 11, 10], [2, 0.3, 40, 40, 60, 60]])
    assert kept.dtype == np.float32


def test_classes_do_not_suppress_one_another():
    kept = suppressed(np.array([[0, 0, 10, 10]]), np.array([[0.6, 0.4]]))
    assert kept[:, 0].tolist() == [1, 2]


def test_unlikely_and_impossible_boxes_are_left_out():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 5, 9], [np.nan, 0, 1, 1], [20, 20, 30, 30]])
    scores = np.array([[0.04], [0.9], [0.9], [np.nan]])
    assert suppressed(boxes, scores).shape == (0, 6)
    assert suppressed(np.zeros((0, 4)), np.zeros((0, 7))).shape == (0, 6)


def test_only_the_surest_are_kept():
    boxes = np.array([[20 * k, 0, 20 * k + 10, 10] for k in range(5)])
    scores = np.linspace(0.1, 0.5, 5)[:, None]
    assert suppressed(boxes, scores, limit=2)[:, 1].tolist() == pytest.approx([0.5, 0.4])


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [(np.zeros((2, 5)), np.zeros((2, 7))), (np.zeros((2, 4)), np.zeros(2)), (np.zeros((2, 4)), np.zeros((3, 7)))],
)
def test_shapes_that_do_not_belong_together_are_refused(boxes, scores):
    with pytest.raises(UsageError, match="expected"):
        suppressed(boxes, scores)


@given(answers(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_kept_boxes_of_a_class_overlap_no_more_than_allowed(answer, overlap):
    kept = suppressed(*answer, overlap=overlap)
    assert (kept[:, 1] >= np.float32(0.05)).all()
    assert (np.diff(kept[:, 1]) <= 0).all()
    for label in np.unique(kept[:, 0]):
        boxes = kept[kept[:, 0] == label, 2:]
        others = box_overlap(boxes, boxes) - np.eye(len(boxes))
        assert (others <= overlap).all()


@given(answers())
def test_what_is_left_out_overlaps_a_surer_box_of_its_class(answer):
    boxes, scores = answer
    kept = suppressed(boxes, scores)
    for box, row in zip(boxes, scores, strict=True):
        if (box[2:] <= box[:2]).any():
            continue
        for label, score in enumerate(row, start=1):
            same = kept[kept[:, 0] == label]
            if score >= np.float32(0.05):
                surer = same[same[:, 1] >= score, 2:]
                assert (box_overlap(box[None], surer) > 0.5).any() or (surer == box).all(axis=1).any()


@given(answers(), st.randoms(use_true_random=False))
def test_the_order_of_the_boxes_changes_nothing(answer, random):
    boxes, scores = answer
    order = list(range(len(boxes)))
    random.shuffle(order)
    np.testing.assert_array_equal(suppressed(boxes, scores), suppressed(boxes[order], scores[order]))
    if len(boxes):
        assert boxes_distance((boxes, scores), (boxes[order], scores[order])) == 0


@given(answers())
def test_suppressing_again_changes_nothing(answer):
    once = suppressed(*answer)
    scores = np.zeros((len(once), 3), np.float32)
    scores[np.arange(len(once)), once[:, 0].astype(int) - 1] = once[:, 1]
    np.testing.assert_array_equal(suppressed(once[:, 2:], scores), once)


def test_overlap_is_the_share_of_the_union():
    first = np.array([[0, 0, 2, 2], [0, 0, 0, 0]])
    second = np.array([[1, 0, 3, 2], [0, 0, 2, 2], [5, 5, 6, 6], [0, 0, 0, 0]])
    np.testing.assert_allclose(box_overlap(first, second), [[1 / 3, 1, 0, 0], [0, 0, 0, 0]])


def test_answers_differ_by_the_box_that_has_no_like():
    boxes, scores = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]]), np.array([[0.9], [0.8]])
    assert boxes_distance((boxes, scores), (boxes, scores - 0.1)) == pytest.approx(0.1)
    moved = boxes + [[0, 0, 0, 0], [0, 0, 0, 10]]
    assert boxes_distance((boxes, scores), (moved, scores)) == pytest.approx(0.5)
    assert boxes_distance((boxes, scores), (np.zeros((0, 4)), np.zeros((0, 1)))) == 1
