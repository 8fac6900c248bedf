"""Metrics against values known by hand, by another library, or by symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cspine.anatomy import Level
from cspine.evaluation.metrics import (
    area_under_curve,
    bootstrap_interval,
    competition_score,
    delong_interval,
    dice,
    level_hits,
    proportion,
    sensitivity,
    sensitivity_at_specificity,
    specificity,
    surface_distance,
)

cases = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=4, max_size=40).filter(
    lambda rows: 0 < sum(truth for truth, _ in rows) < len(rows)
)


def block(shape: tuple[int, int, int], *ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in ranges)] = True
    return mask


def test_dice_of_half_overlap_and_of_absent_labels() -> None:
    truth, found = np.array([1, 1, 2, 2, 0]), np.array([1, 1, 1, 2, 3])
    assert dice(truth, found, (1, 2, 3)) == pytest.approx({1: 0.8, 2: 2 / 3})


def test_surface_distance_uses_millimetres_of_each_axis() -> None:
    truth = block((12, 12, 12), (2, 6), (2, 10), (2, 10))
    shifted = block((12, 12, 12), (4, 8), (2, 10), (2, 10))
    assert surface_distance(truth, truth, (1, 1, 1)) == (0.0, 0.0)
    near = surface_distance(truth, shifted, (1.0, 1.0, 1.0))[1]
    far = surface_distance(truth, shifted, (1.0, 1.0, 3.0))[1]
    assert near == pytest.approx(2.0)
    assert far > near


def test_surface_distance_of_empty_masks() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert surface_distance(empty, empty, (1, 1, 1)) == (0.0, 0.0)
    assert surface_distance(empty, full, (1, 1, 1)) == (float("inf"), float("inf"))


def test_levels_hit_when_near_and_nearest() -> None:
    truth = {Level.C3: (0.0, 0.0, 0.0), Level.C4: (0.0, 0.0, -17.0), Level.C5: (0.0, 0.0, -34.0)}
    found = {Level.C3: (3.0, 0.0, 0.0), Level.C4: (0.0, 0.0, -34.0)}
    assert level_hits(truth, found) == {Level.C3: True, Level.C4: False, Level.C5: False}


def test_a_centre_beyond_tolerance_is_wrong() -> None:
    assert level_hits({Level.C2: (0.0, 0.0, 0.0)}, {Level.C2: (10.5, 0.0, 0.0)}) == {Level.C2: False}


@given(cases)
@settings(max_examples=60, deadline=None)
def test_auc_agrees_with_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    truth, score = zip(*rows, strict=True)
    assert area_under_curve(truth, score) == pytest.approx(roc_auc_score(truth, score))


@given(cases)
@settings(max_examples=60, deadline=None)
def test_auc_turns_with_the_score(rows: list[tuple[bool, int]]) -> None:
    truth, score = zip(*rows, strict=True)
    assert area_under_curve(truth, score) + area_under_curve(truth, [-s for s in score]) == pytest.approx(1)


def test_delong_interval_covers_and_narrows() -> None:
    rng = np.random.default_rng(0)
    small, large = ((rng.random(n) < 0.4) for n in (60, 2000))
    few = delong_interval(small, small + rng.normal(0, 1, 60))
    many = delong_interval(large, large + rng.normal(0, 1, 2000))
    assert few.low < few.value < few.high
    # Normal scores one standard deviation apart: AUC = Phi(1 / sqrt 2) = 0.760.
    assert many.low < 0.760 < many.high
    assert many.high - many.low < few.high - few.low


def test_auc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="positives and negatives"):
        area_under_curve([1, 1], [0.2, 0.3])


def test_bootstrap_keeps_patients_together_and_repeats() -> None:
    values = np.repeat([0.0, 1.0], 50)
    by_patient = bootstrap_interval(lambda k: float(values[k].mean()), values, rounds=200)
    by_row = bootstrap_interval(lambda k: float(values[k].mean()), np.arange(100), rounds=200)
    assert (by_patient.low, by_patient.high) == (0.0, 1.0)
    assert by_row.high - by_row.low < 0.3
    assert by_row == bootstrap_interval(lambda k: float(values[k].mean()), np.arange(100), rounds=200)


def test_wilson_interval_by_hand() -> None:
    interval = proportion(9, 10)
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.596, 0.982)
    assert np.isnan(proportion(0, 0).value)


def test_sensitivity_and_specificity() -> None:
    truth, called = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert sensitivity(truth, called).value == pytest.approx(2 / 3)
    assert specificity(truth, called).value == pytest.approx(1 / 2)


def test_sensitivity_at_a_specificity() -> None:
    truth, score = [1, 1, 1, 0, 0, 0, 0], [0.9, 0.8, 0.3, 0.5, 0.2, 0.2, 0.1]
    assert sensitivity_at_specificity(truth, score, 0.99) == (pytest.approx(2 / 3), 0.8)
    assert sensitivity_at_specificity(truth, score, 0.75)[0] == 1.0


def test_competition_score_of_known_answers() -> None:
    truth = np.array([[0, 1, 0, 0, 0, 0, 0, 1], [0] * 8])
    assert competition_score(truth, np.full((2, 8), 0.5)) == pytest.approx(np.log(2))
    assert competition_score(truth, truth) == pytest.approx(0, abs=1e-9)
    # One negative study, sure of itself but for the patient: 7 of 14 weights.
    wrong = np.zeros((1, 8))
    wrong[0, 7] = 0.5
    assert competition_score(np.zeros((1, 8)), wrong) == pytest.approx(np.log(2) / 2)


def test_competition_score_wants_eight_columns() -> None:
    with pytest.raises(ValueError, match="studies, 8"):
        competition_score(np.zeros((2, 7)), np.zeros((2, 7)))
