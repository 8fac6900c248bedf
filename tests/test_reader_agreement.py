"""Figures of findings against readers' answers: known tables, clustered statements, predictive value elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from cspine.evaluation.metrics import proportion
from cspine.evaluation.reader_agreement import Agreement, agreement, cohen_kappa, predictive_value_at


def table(both: int, found_only: int, read_only: int, neither: int) -> Agreement:
    """Figures of as many studies with one statement each."""
    found = [True] * (both + found_only) + [False] * (read_only + neither)
    read = [True] * both + [False] * found_only + [True] * read_only + [False] * neither
    return agreement(found, read, range(len(found)))


def test_a_known_table() -> None:
    figures = table(20, 5, 10, 15)
    assert figures.statements == figures.studies == 50
    assert figures.agreement is not None and figures.agreement.value == pytest.approx(0.7)
    assert figures.kappa is not None and figures.kappa.value == pytest.approx(0.4)  # agreement .7, by chance .5
    # Of independent statements the interval is Wilson's own.
    assert figures.sensitivity == proportion(20, 30)
    assert figures.specificity == proportion(15, 20)
    assert figures.predictive_value == proportion(20, 25)


def test_the_interval_of_kappa_is_about_the_one_of_large_samples() -> None:
    """Fleiss, Cohen and Everitt (1969) give a standard error of 0.128 for this table."""
    p = np.array([[20, 5], [10, 15]]) / 50
    rows, columns = p.sum(1), p.sum(0)
    chance, kappa = float(rows @ columns), 0.4
    a = sum(p[i, i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in (0, 1))
    b = (1 - kappa) ** 2 * sum(p[i, j] * (columns[i] + rows[j]) ** 2 for i, j in ((0, 1), (1, 0)))
    error = math.sqrt((a + b - (kappa - chance * (1 - kappa)) ** 2) / (50 * (1 - chance) ** 2))
    found = table(20, 5, 10, 15).kappa
    assert found is not None
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.05)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[bool, bool]]) -> None:
    found, read = (list(side) for side in zip(*pairs, strict=True))
    if len(set(found)) == len(set(read)) == 1 and found[0] == read[0]:
        assert agreement(found, read, range(len(found))).kappa is None
        return
    cells = ((True, True), (True, False), (False, True), (False, False))
    counts = [sum(pair == cell for pair in pairs) for cell in cells]
    assert float(cohen_kappa(counts)) == pytest.approx(cohen_kappa_score(found, read), abs=1e-9)


def test_statements_of_one_study_count_less_than_independent_ones() -> None:
    read = np.repeat([True, False, True, False], 7)
    found = np.repeat([True, True, False, False], 7)
    alone = agreement(found, read, np.arange(28)).agreement
    together = agreement(found, read, np.repeat(np.arange(4), 7)).agreement
    assert alone is not None and together is not None
    assert together.value == alone.value
    assert together.low < alone.low and together.high > alone.high
    assert together.high - together.low > 0.6  # as wide as four studies make it


def test_what_does_not_exist_is_none() -> None:
    assert agreement([], [], []) == Agreement()
    figures = table(0, 0, 0, 5)
    assert figures.sensitivity is None and figures.predictive_value is None and figures.kappa is None
    assert predictive_value_at(figures, 0.1) is None


def test_rows_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="three rows"):
        agreement([True], [True, False], [1])


def test_the_predictive_value_falls_with_the_prevalence() -> None:
    figures = table(90, 10, 10, 90)  # sensitivity and specificity 0.9
    half = predictive_value_at(figures, 0.5)
    rare = predictive_value_at(figures, 0.05)
    assert half is not None and half.value == pytest.approx(0.9)
    assert rare is not None and rare.value == pytest.approx(0.9 * 0.05 / (0.9 * 0.05 + 0.1 * 0.95))
    assert rare.low < rare.value < rare.high


def test_the_interval_of_the_predictive_value_covers_it() -> None:
    """Of draws from known rates, about 95 in 100 intervals hold the true value."""
    rng = np.random.default_rng(0)
    truth = 0.8 * 0.1 / (0.8 * 0.1 + 0.15 * 0.9)
    held = 0
    for _ in range(400):
        hits, alarms = int(rng.binomial(40, 0.8)), int(rng.binomial(60, 0.15))
        found = predictive_value_at(table(hits, alarms, 40 - hits, 60 - alarms), 0.1)
        assert found is not None
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 400 <= 1.0


def test_the_interval_exists_without_a_single_error() -> None:
    found = predictive_value_at(table(12, 0, 0, 30), 0.05)
    assert found is not None and found.value == 1.0
    assert 0.05 < found.low < found.high < 1.0


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.1, 2.0])
def test_a_prevalence_out_of_range_is_refused(prevalence: float) -> None:
    with pytest.raises(ValueError, match="prevalence"):
        predictive_value_at(table(1, 1, 1, 1), prevalence)
