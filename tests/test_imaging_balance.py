"""Balancing: how many rows of each class come out, and which."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import UsageError
from cspine.imaging import Table
from cspine.imaging.balance import (
    OverSample,
    Smote,
    UnderSample,
    WeightedSample,
    class_weights,
    over_sample,
    smote,
    under_sample,
    weighted_sample,
)

RNG = np.random.default_rng
CLASSES = np.array([0] * 90 + [1] * 10)
some_classes = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(np.array)


@given(classes=some_classes, seed=st.integers(0, 100))
def test_under_sampling_keeps_rows_once_and_no_class_above_the_smallest(classes: np.ndarray, seed: int) -> None:
    kept = under_sample(classes, RNG(seed))
    counts = np.unique(classes[kept], return_counts=True)[1]
    assert len(set(kept)) == len(kept)
    assert set(counts) == {np.unique(classes, return_counts=True)[1].min()}
    np.testing.assert_array_equal(kept, under_sample(classes, RNG(seed)))


@given(classes=some_classes, seed=st.integers(0, 100))
def test_over_sampling_keeps_all_rows_and_lifts_every_class(classes: np.ndarray, seed: int) -> None:
    taken = over_sample(classes, RNG(seed))
    counts = np.unique(classes[taken], return_counts=True)[1]
    assert set(taken) == set(range(len(classes)))
    assert set(counts) == {np.unique(classes, return_counts=True)[1].max()}


def test_ratios_leave_some_imbalance() -> None:
    assert np.bincount(CLASSES[under_sample(CLASSES, RNG(0), 3)]).tolist() == [30, 10]
    assert np.bincount(CLASSES[over_sample(CLASSES, RNG(0), 0.5)]).tolist() == [90, 45]


def test_weights_make_classes_weigh_the_same() -> None:
    weights = class_weights(CLASSES)
    assert weights[CLASSES == 0].sum() == pytest.approx(weights[CLASSES == 1].sum())
    assert weights.mean() == pytest.approx(1)


def test_weighted_draws_show_classes_equally_often() -> None:
    drawn = weighted_sample(CLASSES, 2000, RNG(0))
    assert CLASSES[drawn].mean() == pytest.approx(0.5, abs=0.05)


def test_rows_may_be_numbers_of_images() -> None:
    table = Table(np.arange(100), CLASSES)
    assert len(UnderSample().apply(table, RNG(0)).rows) == 20
    assert len(OverSample().apply(table, RNG(0)).rows) == 180
    out = WeightedSample().apply(table, RNG(0))
    assert len(out.rows) == 100
    np.testing.assert_array_equal(out.classes, CLASSES[out.rows])


def test_smote_adds_rows_between_those_of_the_small_class() -> None:
    pytest.importorskip("imblearn")
    rng = RNG(0)
    rows = np.concatenate([rng.normal(0, 1, (90, 3)), rng.normal(8, 0.5, (10, 3))]).astype(np.float32)
    table = Table(rows, CLASSES)
    out, again = (Smote().apply(table, RNG(7)) for _ in range(2))
    assert np.bincount(out.classes).tolist() == [90, 90]
    np.testing.assert_array_equal(out.rows[:100], rows)
    np.testing.assert_array_equal(out.rows, again.rows)
    new, few = out.rows[100:], rows[90:]
    assert (new >= few.min(0)).all() and (new <= few.max(0)).all()


def test_smote_takes_fewer_neighbours_where_there_are_fewer() -> None:
    pytest.importorskip("imblearn")
    out = smote(Table(np.arange(14.0).reshape(7, 2), np.array([0, 0, 0, 0, 0, 1, 1])), RNG(0))
    assert np.bincount(out.classes).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("rows", "classes", "match"),
    [
        (np.zeros((4, 2)), [0, 0, 0, 1], "smallest has 1"),
        (np.zeros((4, 2)), [0, 0, 0, 0], "two classes"),
        (np.arange(4), [0, 0, 1, 1], "finite features"),
        (np.full((4, 2), np.nan), [0, 0, 1, 1], "finite features"),
    ],
)
def test_smote_says_what_it_needs(rows: np.ndarray, classes: list[int], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        smote(Table(rows, np.array(classes)), RNG(0))


def test_tables_and_ratios_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="a class for each"):
        Table(np.zeros((3, 2)), np.zeros(4, int))
    with pytest.raises(UsageError, match="whole numbers"):
        Table(np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(UsageError, match="ratio of at least 1"):
        under_sample(CLASSES, RNG(0), 0.5)
    with pytest.raises(UsageError, match="ratio above 0"):
        over_sample(CLASSES, RNG(0), 2)
    with pytest.raises(UsageError, match="count of at least 1"):
        weighted_sample(CLASSES, 0, RNG(0))
    with pytest.raises(UsageError, match="a class for each row"):
        under_sample(np.zeros((0,), int), RNG(0))
