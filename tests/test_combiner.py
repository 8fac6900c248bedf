"""Calibration curves and the patient's probability."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cspine.anatomy import LEVELS, Level
from cspine.inference.combiner import (
    FEATURES,
    Calibration,
    Isotonic,
    PatientHead,
    Platt,
    Thresholds,
    combine,
    logit,
    noisy_or,
    patient_features,
    patient_probability,
    sigmoid,
)

LOGITS = st.floats(-40, 40)
JUDGED = st.dictionaries(st.sampled_from(LEVELS), LOGITS, min_size=1)


@given(JUDGED)
def test_probabilities_are_never_certain_and_the_patient_is_at_least_as_likely_as_any_level(
    logits: dict[Level, float],
) -> None:
    combined = combine(logits, Calibration())
    assert combined.patient is not None
    assert set(combined.levels) == set(logits)
    assert all(0 < p < 1 for p in combined.levels.values())
    assert combined.patient >= max(combined.levels.values()) - 1e-9


def test_nothing_judged_gives_no_probability() -> None:
    assert combine({}, Calibration()).patient is None


def test_a_level_that_was_not_judged_does_not_count() -> None:
    three = combine({Level.C1: -2.0, Level.C2: 1.0, Level.C3: -1.0}, Calibration()).patient
    assert three == pytest.approx(noisy_or([sigmoid(-2), sigmoid(1), sigmoid(-1)]))


@given(JUDGED, st.sampled_from(LEVELS), st.floats(0.01, 10))
def test_more_evidence_never_lowers_the_patient(logits: dict[Level, float], level: Level, more: float) -> None:
    head = PatientHead(blend=0.5, weights=(0.8, 0.2, 0.1, 0.3, 0.0), bias=-1.0)
    calibration = Calibration(patient=head)
    if level not in logits:
        logits = {**logits, level: 0.0}
    before = combine(logits, calibration).patient
    after = combine({**logits, level: logits[level] + more}, calibration).patient
    assert before is not None
    assert after is not None
    assert after >= before - 1e-12


@given(JUDGED)
def test_the_names_of_levels_do_not_move_the_patient(logits: dict[Level, float]) -> None:
    head = PatientHead(blend=0.3, weights=(0.5, 0.3, 0.2, 0.1, 0.4), bias=-0.5)
    probabilities = {level: sigmoid(value) for level, value in logits.items()}
    renamed = dict(zip(LEVELS, probabilities.values(), strict=False))
    assert patient_probability(renamed, head) == pytest.approx(patient_probability(probabilities, head))


def test_features_are_sorted_and_padded() -> None:
    features = patient_features({Level.C7: sigmoid(-1), Level.C2: sigmoid(2)}, absent=-5.0)
    assert len(features) == FEATURES
    assert features[:3] == pytest.approx((2.0, -1.0, -5.0))
    assert features[4] == pytest.approx(2 / 7)


@given(LOGITS)
def test_logit_inverts_sigmoid_within_its_limits(value: float) -> None:
    assert logit(sigmoid(value)) == pytest.approx(min(max(value, -12), 12), abs=1e-6)


def test_each_level_has_its_own_curve() -> None:
    calibration = Calibration(levels={"C2": Platt(slope=0.5, offset=-1.0)})
    levels = combine({Level.C2: 2.0, Level.C3: 2.0}, calibration).levels
    assert levels[Level.C2] == pytest.approx(0.5)
    assert levels[Level.C3] == pytest.approx(sigmoid(2.0))


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6, unique=True), LOGITS, LOGITS)
def test_isotonic_curves_never_fall(points: list[float], a: float, b: float) -> None:
    xs = sorted(points)
    curve = Isotonic(logits=tuple(xs), probabilities=tuple(k / len(xs) for k in range(len(xs))))
    low, high = sorted((a, b))
    assert curve(low) <= curve(high) + 1e-12


@pytest.mark.parametrize(
    ("logits", "probabilities"), [((0, 1), (0.5, 0.4)), ((1, 0), (0.1, 0.2)), ((0, 1), (0.5,)), ((), ())]
)
def test_curves_that_fall_or_do_not_fit_are_refused(
    logits: tuple[float, ...], probabilities: tuple[float, ...]
) -> None:
    with pytest.raises(ValidationError):
        Isotonic(logits=logits, probabilities=probabilities)


def test_calibration_survives_json() -> None:
    calibration = Calibration(
        level_temperature=2.0,
        levels={"C1": Platt(slope=2.0), "C5": Isotonic(logits=(0, 1), probabilities=(0.1, 0.9))},
        patient=PatientHead(blend=0.4, bias=1.0),
    )
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_thresholds_fall_back_to_the_default() -> None:
    thresholds = Thresholds(levels={"C2": 0.3}, default=0.6)
    assert thresholds.of(Level.C2) == 0.3
    assert thresholds.of(Level.C3) == 0.6


def test_noisy_or_is_symmetric() -> None:
    values = [0.1, 0.5, 0.7]
    assert len({round(noisy_or(list(order)), 12) for order in itertools.permutations(values)}) == 1
