"""Calibration: maps recover what made the scores, shrink when data are few, and are measured rightly."""

from __future__ import annotations

import numpy as np
import pytest

from cspine.errors import UsageError
from cspine.evaluation.calibration import (
    apply_platt,
    best_threshold,
    expected_calibration_error,
    fit_levels,
    fit_patient_head,
    fit_platt,
    prevalence_weights,
    reliability,
    sigmoid,
)
from cspine.evaluation.records import CaseRecord, LevelRecord
from cspine.evaluation.summary import summarise, to_markdown
from cspine.inference.combiner import Platt, noisy_or, patient_features


def drawn(count: int, slope: float, offset: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    score = rng.normal(0, 2, count)
    return score, rng.random(count) < sigmoid(slope * score + offset)


def test_platt_recovers_the_map_that_drew_the_truth() -> None:
    score, truth = drawn(20_000, 0.6, -1.0)
    found = fit_platt(score, truth)
    assert found.slope == pytest.approx(0.6, abs=0.05)
    assert found.offset == pytest.approx(-1.0, abs=0.08)


def test_without_data_the_prior_stays() -> None:
    prior = Platt(slope=0.7, offset=-0.4)
    found = fit_platt([], [], prior=prior, strength=5)
    assert (found.slope, found.offset) == (pytest.approx(0.7), pytest.approx(-0.4))


def test_a_level_with_few_cases_leans_on_the_others() -> None:
    score, truth = drawn(3000, 1.0, 0.0)
    few_score, few_truth = np.array([1.0, 2.0, -1.0]), np.array([False, False, True])
    level = np.concatenate([np.zeros(3000, int), np.full(3, 6)])
    curves = fit_levels(np.concatenate([score, few_score]), np.concatenate([truth, few_truth]), level, strength=20)
    assert len(curves) == 7
    assert abs(curves[6].slope - curves[0].slope) < 0.5
    # No data at all: the common map.
    assert curves[3].slope == pytest.approx(curves[0].slope, abs=0.05)


def test_calibrated_scores_have_little_calibration_error() -> None:
    score, truth = drawn(8000, 0.5, -0.7)
    raw = expected_calibration_error(truth, sigmoid(2 * score))
    fitted = expected_calibration_error(truth, apply_platt(fit_platt(score, truth), score))
    assert fitted < 0.03 < raw


def test_reliability_rows_hold_every_case() -> None:
    rows = reliability([0, 1, 1, 0], [0.0, 1.0, 0.95, 0.31])
    assert sum(row.count for row in rows) == 4
    assert [(row.low, row.observed) for row in rows] == [(0.0, 0.0), (0.3, 0.0), (0.9, 1.0)]


def test_prevalence_weights_move_the_share() -> None:
    truth = np.array([True] * 30 + [False] * 70)
    weight = prevalence_weights(truth, 0.1)
    assert (weight * truth).sum() / weight.sum() == pytest.approx(0.1)
    assert weight.mean() == pytest.approx(1.0)
    assert (prevalence_weights([True, True], 0.1) == 1).all()


def test_threshold_separates_what_can_be_separated() -> None:
    threshold = best_threshold([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.9])
    assert 0.3 < threshold <= 0.6
    assert best_threshold([1, 1], [0.2, 0.3]) == 0.5


def test_the_patient_head_is_no_worse_than_noisy_or() -> None:
    rng = np.random.default_rng(1)
    levels = [dict(enumerate(row, start=1)) for row in rng.beta(0.4, 2.5, (400, 7))]
    truth = np.array([(rng.random(7) < list(item.values())).any() for item in levels])
    features = [patient_features(item) for item in levels]  # type: ignore[arg-type]
    plain = np.array([noisy_or(list(item.values())) for item in levels])
    head = fit_patient_head(features, truth, plain)
    learned = sigmoid(np.asarray(features) @ head.weights + head.bias)
    blended = head.blend * plain + (1 - head.blend) * learned
    assert expected_calibration_error(truth, blended) < expected_calibration_error(truth, plain) + 0.03


def record(number: int, logits: list[float], broken: list[bool]) -> CaseRecord:
    rows = tuple(
        LevelRecord(
            level=f"C{k + 1}",
            visible_fraction=1.0,
            fractured=bad,
            types=("burst",) if bad else (),
            severity=0.5 if bad else 0.0,
            claimed=True,
            right_level=True,
            distance_mm=1.0,
            dice=0.9,
            probability=float(sigmoid(x)),
            logit=x,
            called=x > 0,
            confidence=0.9,
        )
        for k, (x, bad) in enumerate(zip(logits, broken, strict=True))
    )
    return CaseRecord(
        name=f"case-{number}", bundle="b", fractured=any(broken), probability=float(sigmoid(max(logits))),
        called=max(logits) > 0, status="ok", spine_dice=0.9, seconds=1.0, levels=rows,
    )  # fmt: skip


def records(count: int = 60) -> list[CaseRecord]:
    rng = np.random.default_rng(3)
    out = []
    for number in range(count):
        broken = (rng.random(7) < 0.15).tolist()
        out.append(record(number, (rng.normal(0, 1, 7) - 1.5 + 3.0 * np.array(broken)).tolist(), broken))
    return out


def test_calibration_of_scored_cases() -> None:
    pytest.importorskip("torch")
    from cspine.training.calibrate import fit_calibration

    fitted = fit_calibration(records())
    assert set(fitted.calibration.levels) == {f"C{k}" for k in range(1, 8)}
    assert 0 < fitted.thresholds.default < 1
    assert 0 < fitted.thresholds.patient < 1
    with pytest.raises(UsageError, match="calibration needs"):
        fit_calibration(records(2))


def test_the_summary_of_scored_cases() -> None:
    summary = summarise(records())
    assert summary["cases"] == 60
    assert summary["locating"]["vertebra_dice"]["value"] == pytest.approx(0.9)
    assert summary["vertebra"]["auc"]["low"] < summary["vertebra"]["auc"]["value"]
    text = to_markdown(summary, "Sixty cases")
    assert text.startswith("# Sixty cases")
    assert "| C7 |" in text
    assert "| burst |" in text


def test_a_summary_without_fractures_has_no_auc() -> None:
    summary = summarise([record(0, [-1.0] * 7, [False] * 7)])
    assert "auc" not in summary["vertebra"]
    assert "–" in to_markdown(summary)
