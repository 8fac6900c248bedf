"""Two methods on the same vertebrae: who is better, and how sure that is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.evaluation.differences import auc_difference, vertebra_difference
from cspine.evaluation.metrics import area_under_curve, delong_interval
from cspine.evaluation.records import CaseRecord, patient_numbers
from cspine.evaluation.scoring import figures_of
from score_factory import cohort, scored


def columns(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % 3 == 0
    return truth, truth + rng.normal(size=count), truth + rng.normal(size=count), np.arange(count) // 3


@given(st.integers(0, 40))
def test_the_difference_is_that_of_the_areas_and_turns_with_the_methods(seed: int) -> None:
    truth, a, b, patient = columns(seed)
    wanted = area_under_curve(truth, a) - area_under_curve(truth, b)
    found = auc_difference(truth, a, b, patient, method="delong")
    back = auc_difference(truth, b, a, patient, method="delong")
    assert found.value == pytest.approx(wanted)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_delong_of_a_method_against_chance_has_the_width_of_its_own_interval() -> None:
    truth, a, _, patient = columns(3)
    found = auc_difference(truth, a, np.zeros(len(truth)), patient, method="delong")
    own = delong_interval(truth, a)
    # Equal scores have area 0.5 without any variance.
    assert found.low == pytest.approx(own.low - 0.5) and found.value == pytest.approx(own.value - 0.5)


def test_delong_matches_worked_numbers() -> None:
    """Six rows by hand: components of the first are (1, 2/3, 1) and (1, 1, 2/3); of the second all 1."""
    truth = [1, 1, 1, 0, 0, 0]
    found = auc_difference(truth, [9, 4, 8, 1, 2, 5], [9, 8, 7, 1, 2, 3], range(6), method="delong")
    variance = np.var([1, 2 / 3, 1], ddof=1) / 3 + np.var([1, 1, 2 / 3], ddof=1) / 3
    assert found.value == pytest.approx(-1 / 9)
    assert found.high - found.value == pytest.approx(1.959964 * variance**0.5)


def test_a_method_does_not_differ_from_itself() -> None:
    truth, a, _, patient = columns(1)
    for method in ("bootstrap", "delong"):
        found = auc_difference(truth, a, a, patient, method=method)  # type: ignore[arg-type]
        assert (found.value, found.low, found.high, found.clear) == (0, 0, 0, False)


def test_the_bootstrap_resamples_patients_not_vertebrae() -> None:
    truth, a, b, _ = columns(5, 60)
    alone = auc_difference(truth, a, b, np.arange(60))
    # Every row four times, as four vertebrae of one patient: nothing new was learnt.
    four = [np.repeat(x, 4) for x in (truth, a, b, np.arange(60))]
    together = auc_difference(*four)
    blind = auc_difference(*four[:3], np.arange(240))
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert blind.high - blind.low < 0.65 * (together.high - together.low)


def test_only_vertebrae_that_both_were_asked_about_count() -> None:
    good, poor = cohort(30, 3.0), cohort(30, 0.1)
    found = vertebra_difference(good, poor[:20])
    assert found is not None and found.rows == 20 * 7 and found.clear and found.value > 0


def test_without_fractures_there_is_no_difference_to_speak_of() -> None:
    whole = [scored("a", (False,) * 7, (0.1,) * 7)]
    assert vertebra_difference(whole, whole) is None


def test_studies_of_one_patient_are_resampled_together() -> None:
    records = cohort(24, 1.5)
    # Everybody comes twice with the same findings: that tells nothing new, so intervals must not shrink.
    again = [record.model_copy(update={"name": f"{record.name} again"}) for record in records]
    owned = [record.model_copy(update={"patient": record.name}) for record in records]
    both = owned + [record.model_copy(update={"patient": record.name[: -len(" again")]}) for record in again]
    assert patient_numbers(owned) == list(range(24)) and patient_numbers(both) == [*range(24), *range(24)]
    assert patient_numbers(records + again) == list(range(48))

    def width(of: list[CaseRecord]) -> float:
        auc = figures_of(of, method="m", data="d").vertebra.auc
        assert auc is not None and auc.low is not None and auc.high is not None
        return auc.high - auc.low

    assert width(both) == pytest.approx(width(records), rel=0.1)
    assert width(records + again) < 0.85 * width(records)
