"""Figures of the classifier: by hand, by symmetry, in millimetres."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case
from cspine.evaluation.calibration import prevalence_weights, sigmoid
from cspine.evaluation.evidence_hits import fracture_points, peak_distance, peak_mm
from cspine.evaluation.fracture_figures import draw_fracture_figures
from cspine.evaluation.fracture_metrics import (
    area_of,
    brier_score,
    calibration_error,
    equal_mass_bins,
    negative_predictive_value,
    positive_predictive_value,
    predictive_value_of,
)
from cspine.evaluation.fracture_summary import NOTHING, summarise_fractures, vertebrae_of
from cspine.evaluation.fracture_tables import fractures_to_markdown
from cspine.evaluation.metrics import area_under_curve, sensitivity_at_specificity
from cspine.evaluation.records import CaseRecord, LevelRecord, score_case, surface_distances
from cspine.inference.evidence import EvidenceMap
from cspine.volume import Volume
from fake_predictor import findings_of
from training_factory import block_case

scored = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=4, max_size=40).filter(
    lambda rows: 0 < sum(truth for truth, _ in rows) < len(rows)
)


# Ranks.


@given(scored)
def test_auc_depends_on_order_alone(rows: list[tuple[bool, int]]) -> None:
    truth, score = np.array([t for t, _ in rows]), np.array([s for _, s in rows], dtype=float)
    area = area_under_curve(truth, score)
    assert area_under_curve(truth, np.exp(score) - 3) == pytest.approx(area)
    assert area_under_curve(~truth, -score) == pytest.approx(area)
    assert area_of(truth, score, np.ones(len(truth), bool)) == pytest.approx(area)


def test_the_area_of_some_positives_leaves_the_others_out() -> None:
    truth, score = [1, 1, 0, 0], [0.9, 0.1, 0.5, 0.2]
    assert area_of(truth, score, [True, False, False, False]) == 1.0
    assert area_of(truth, score, [False, True, True, True]) == 0.0
    assert area_of(truth, score, [False] * 4) is None


@given(scored, st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 1.0]))
def test_sensitivity_at_a_specificity_is_the_best_that_trying_finds(
    rows: list[tuple[bool, int]], wanted: float
) -> None:
    truth, score = np.array([t for t, _ in rows]), np.array([s for _, s in rows], dtype=float)
    tried = [
        float((score[truth] >= value).mean()) for value in np.unique(score) if (score[~truth] < value).mean() >= wanted
    ]
    best, threshold = sensitivity_at_specificity(truth, score, wanted)
    assert best == pytest.approx(max(tried, default=0.0))
    assert (score[~truth] < threshold).mean() >= wanted


@given(scored)
def test_more_specificity_never_finds_more(rows: list[tuple[bool, int]]) -> None:
    truth, score = [t for t, _ in rows], [s for _, s in rows]
    found = [sensitivity_at_specificity(truth, score, wanted)[0] for wanted in np.linspace(0, 1, 9)]
    assert all(b <= a for a, b in pairwise(found))


# Calibration and predictive values at another prevalence.


def test_calibration_error_by_hand() -> None:
    truth, probability = [0, 1, 0, 1], [0.1, 0.3, 0.6, 0.8]
    rows = equal_mass_bins(truth, probability, bins=2)
    assert [(row.count, row.weight, row.observed) for row in rows] == [(2, 0.5, 0.5), (2, 0.5, 0.5)]
    assert [row.predicted for row in rows] == pytest.approx([0.2, 0.7])
    assert calibration_error(truth, probability, bins=2) == pytest.approx(0.5 * 0.3 + 0.5 * 0.2)
    # Weight 3 on the second: the first bin ends at half of all weight, which is inside it.
    assert calibration_error([0, 1], [0.2, 0.6], [1.0, 3.0], bins=1) == pytest.approx(abs(0.5 - 0.75))


@given(scored, st.integers(1, 12))
def test_bins_hold_all_weight_whatever_the_order(rows: list[tuple[bool, int]], bins: int) -> None:
    truth, probability = np.array([t for t, _ in rows]), np.array([s / 8 for _, s in rows])
    weight = np.linspace(0.5, 2, len(rows))
    order = np.random.default_rng(0).permutation(len(rows))
    table = equal_mass_bins(truth, probability, weight, bins)
    assert sum(row.weight for row in table) == pytest.approx(1.0)
    assert sum(row.count for row in table) == len(rows)
    assert len(table) <= bins
    predicted = [row.predicted for row in table]
    assert predicted == sorted(predicted)
    again = calibration_error(truth[order], probability[order], weight[order], bins)
    assert again == pytest.approx(calibration_error(truth, probability, weight, bins))


@given(scored)
def test_weight_two_is_the_case_twice(rows: list[tuple[bool, int]]) -> None:
    truth, probability = np.array([t for t, _ in rows]), np.array([s / 8 for _, s in rows])
    double = np.where(truth, 2.0, 1.0)
    twice = np.concatenate([truth, truth[truth]]), np.concatenate([probability, probability[truth]])
    assert calibration_error(truth, probability, double, 4) == pytest.approx(calibration_error(*twice, 1.0, 4))
    assert brier_score(truth, probability, double) == pytest.approx(brier_score(*twice))


def test_probabilities_that_drew_the_truth_are_calibrated_at_their_prevalence() -> None:
    rng = np.random.default_rng(5)
    logit = rng.normal(-1.0, 1.5, 40_000)
    truth = rng.random(len(logit)) < sigmoid(logit)
    assert calibration_error(truth, sigmoid(logit)) < 0.01
    # Moving the prevalence moves log odds by a constant (prior shift); without it the error is large.
    share = truth.mean()
    shift = np.log(0.05 / 0.95) - np.log(share / (1 - share))
    weight = prevalence_weights(truth, 0.05)
    assert calibration_error(truth, sigmoid(logit + shift), weight) < 0.01
    assert calibration_error(truth, sigmoid(logit), weight) > 0.1


def test_brier_score_and_predictive_values_by_hand() -> None:
    assert brier_score([1, 0], [0.8, 0.4], [1.0, 3.0]) == pytest.approx((0.04 + 3 * 0.16) / 4)
    assert positive_predictive_value(0.9, 0.95, 0.05) == pytest.approx(0.045 / (0.045 + 0.0475))
    assert negative_predictive_value(0.9, 0.95, 0.05) == pytest.approx(0.9025 / (0.9025 + 0.005))
    assert np.isnan(positive_predictive_value(0.0, 1.0))
    called = [True] * 9 + [False] + [True] + [False] * 19
    assert predictive_value_of([1] * 10 + [0] * 20, called) == pytest.approx(positive_predictive_value(0.9, 0.95))
    with pytest.raises(ValueError, match="positives and negatives"):
        predictive_value_of([1, 1], [True, False])


@given(st.floats(0.01, 1), st.floats(0, 0.99), st.floats(0.01, 0.5))
def test_predictive_value_grows_with_prevalence(share: float, kept: float, prevalence: float) -> None:
    rarer = positive_predictive_value(share, kept, prevalence / 2)
    assert rarer <= positive_predictive_value(share, kept, prevalence)


# Where the evidence points, in millimetres.


def evidence_at(index_zyx: tuple[int, int, int], affine: np.ndarray) -> EvidenceMap:
    values = np.full((6, 8, 10), 0.1, np.float32)
    values[index_zyx] = 0.9
    return EvidenceMap(values, affine)


def test_the_peak_is_placed_by_an_anisotropic_turned_affine() -> None:
    affine = np.eye(4)
    # x of the map runs to the back at 2.2 mm, y to the right at 2 mm, z to the head at 1.6 mm.
    affine[:3, :3] = np.array([[0.0, -2.0, 0.0], [2.2, 0.0, 0.0], [0.0, 0.0, 1.6]])
    affine[:3, 3] = (10.0, 20.0, 30.0)
    evidence = evidence_at((3, 2, 5), affine)
    assert peak_mm(evidence) == pytest.approx((10 - 4, 20 + 11, 30 + 4.8))
    near, far = peak_mm(evidence) + (0, 3.0, 4.0), peak_mm(evidence) + (40.0, 0, 0)
    assert peak_distance(evidence, np.array([far, near])) == pytest.approx(5.0)


def test_fracture_voxels_belong_to_the_vertebra_they_are_in_or_nearest_to() -> None:
    case = block_case(0, fractured=True)
    found = fracture_points(case)
    assert set(found) == set(LEVELS)
    for level, points in found.items():
        assert np.abs(points[:, 2] - case.levels[level].body_center_mm[2]).max() < 8  # type: ignore[index]
    assert case.fracture is not None and case.labels is not None
    assert sum(map(len, found.values())) == case.fracture.sum()
    # A cleft that is labelled as nothing goes to the nearest fractured vertebra.
    cleft = np.where(case.fracture, 0, case.labels).astype(np.uint8)
    bare = Case(case.name, case.volume, cleft, case.fracture, case.levels)
    assert {level: len(p) for level, p in fracture_points(bare).items()} == {k: len(p) for k, p in found.items()}
    assert fracture_points(block_case(0, fractured=False)) == {}


# Records and masks.


def test_surface_distance_of_a_label_is_in_millimetres() -> None:
    truth, found = np.zeros((8, 30, 30), np.uint8), np.zeros((8, 30, 30), np.uint8)
    truth[2:6, 5:25, 5:25] = 3
    found[3:7, 5:25, 5:25] = 3
    truth[0, 0, 0] = 5
    near = surface_distances(truth, found, (3, 5), (1.0, 1.0, 1.0))
    far = surface_distances(truth, found, (3, 5), (1.0, 1.0, 4.0))
    assert set(near) == {3}
    assert 0 < near[3] < 1 < far[3] < 4
    assert surface_distances(truth, truth, (3,), (1.0, 1.0, 4.0)) == {3: 0.0}


@pytest.mark.parametrize("spacing", [2.0, 1.0])
def test_a_case_is_scored_on_the_grid_of_the_answer(spacing: float) -> None:
    case = block_case(4, fractured=True)
    moved = Volume(case.labels, case.volume.affine).resampled(spacing, order=0)  # type: ignore[arg-type]
    maps = {}
    for level, points in fracture_points(case).items():
        affine = np.diag([2.2, 2.2, 1.6, 1.0])
        affine[:3, 3] = points[0] - affine[:3, :3] @ (5, 2, 3) + (0, 0, 4.0 if level is Level.C2 else 1.0)
        maps[level.name] = evidence_at((3, 2, 5), affine)
    findings = findings_of(case.volume, neck=True)
    prediction: Any = SimpleNamespace(
        findings=findings, labels=moved.hu, labels_affine=moved.affine, evidence=maps, logits={}
    )
    known = {level: truth for level, truth in case.levels.items() if level is not Level.C7}
    record = score_case(Case(case.name, case.volume, case.labels, case.fracture, known), prediction)
    assert [row.level for row in record.levels] == [f"C{k}" for k in range(1, 7)]
    assert all(row.dice > 0.9 and row.surface_mm < 0.3 for row in record.levels)  # type: ignore[operator]
    assert all(row.evidence_mm is not None and row.evidence_mm <= 4.0 for row in record.levels)


# The summary of a set.


def record(number: int, logits: list[float], broken: list[bool], **fields: Any) -> CaseRecord:
    rows = tuple(
        LevelRecord(
            level=f"C{k + 1}",
            visible_fraction=1.0,
            fractured=bad,
            types=("burst" if k % 2 else "wedge",) if bad else (),
            displacement_mm=0.5 + (number + k) % 3 if bad else None,
            confounders=() if bad or k % 2 else ("spur",),
            old_fracture=not bad and k == 6,
            claimed=True,
            right_level=True,
            dice=0.9,
            surface_mm=0.5,
            probability=float(sigmoid(x)),
            logit=2 * x,
            called=x > 0,
            evidence_mm=(1.0 if k else 9.0) if bad else None,
        )
        for k, (x, bad) in enumerate(zip(logits, broken, strict=True))
    )
    return CaseRecord(
        name=f"case-{number}", bundle="b", fractured=any(broken), probability=float(sigmoid(max(logits))),
        called=max(logits) > 0, status="ok", spine_dice=0.9, seconds=1.0, levels=rows, **fields,
    )  # fmt: skip


def a_set(count: int = 40) -> tuple[list[CaseRecord], dict[str, str]]:
    rng = np.random.default_rng(3)
    records = []
    for number in range(count):
        broken = (rng.random(7) < (0.3 if number % 2 == 0 else 0.0)).tolist()
        records.append(record(number, (rng.normal(-2, 1, 7) + 3.0 * np.array(broken)).tolist(), broken))
    return records, {r.name: ("fractured", "plain")[k % 2] for k, r in enumerate(records)}


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return summarise_fractures(*a_set())


def test_the_summary_counts_what_is_there(summary: dict[str, Any]) -> None:
    records, _ = a_set()
    rows, columns = vertebrae_of(records)
    positives = int(columns.truth.sum())
    assert summary["vertebrae_in_view"] == 280
    assert sum(row["count"] for row in summary["displacement"].values()) == positives
    assert sum(row["count"] for row in summary["types"].values()) == positives
    cells = [cell for row in summary["types_by_displacement"].values() for cell in row.values()]
    assert sum(n for _, n in cells) == positives
    assert sum(k for k, _ in cells) == int((columns.truth & columns.found).sum())
    hits = [row.evidence_mm == 1.0 for row in rows if row.fractured]
    assert summary["evidence"]["hit"]["value"] == pytest.approx(np.mean(hits), abs=1e-4)
    alarms = sum(row.called and not row.fractured for row in rows)
    found = summary["false_alarms"]
    assert sum(row["a_study"]["value"] * row["studies"] for row in found.values()) == pytest.approx(alarms, abs=0.01)
    negatives = sum(not row.fractured and not row.old_fracture and not row.confounders for row in rows)
    assert summary["confounders"][NOTHING]["count"] == negatives
    assert {"spur", "old-fracture"} < set(summary["confounders"])
    assert summary["vertebra"]["auc"]["low"] < summary["vertebra"]["auc"]["value"] < 1
    json.dumps(summary, allow_nan=False)


def test_calibration_is_shown_before_and_after(summary: dict[str, Any]) -> None:
    # Logits here are twice those of the probabilities.
    assert summary["calibration"]["raw"]["ece"] != summary["calibration"]["calibrated"]["ece"]
    assert summary["calibration"]["constant_brier"] == pytest.approx(0.05 * 0.95, abs=1e-4)


def test_an_unjudged_fracture_is_missed(summary: dict[str, Any]) -> None:
    records, kinds = a_set()
    silent = [
        r.model_copy(
            update={
                "levels": tuple(
                    row.model_copy(update={"probability": None, "logit": None, "called": False, "evidence_mm": None})
                    if row.fractured
                    else row
                    for row in r.levels
                )
            }
        )
        for r in records
    ]
    after = summarise_fractures(silent, kinds)
    assert after["vertebra"]["auc"]["value"] == 0.0
    assert after["vertebra"]["sensitivity"]["value"] == 0.0
    assert after["vertebra"]["judged"]["value"] < summary["vertebra"]["judged"]["value"] == 1.0
    assert after["evidence"]["hit"] is None


@pytest.mark.parametrize("family", ["parametric", "mesh", "planted"])
def test_tables_and_figures(tmp_path: Path, family: str, summary: dict[str, Any]) -> None:
    records, _ = a_set()
    text = fractures_to_markdown(summary, "A set", family)
    assert text.startswith("# A set")
    assert ("Dice" in text) is (family != "planted")
    assert "| burst |" in text and "| below 1 mm |" in text and "| spur |" in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert min(widths) >= 4
    pytest.importorskip("matplotlib")
    drawn = draw_fracture_figures(records, summary, tmp_path)
    assert {path.name for path in drawn} == {"roc.png", "calibration.png", "sensitivity.png"}


def test_a_set_without_fractures_still_has_tables(tmp_path: Path) -> None:
    records = [record(k, [-1.0] * 7, [False] * 7) for k in range(2)]
    summary = summarise_fractures(records, {r.name: "plain" for r in records})
    assert "auc" not in summary["vertebra"] and summary["calibration"] == {}
    assert "–" in fractures_to_markdown(summary, "None", "parametric")
    assert draw_fracture_figures(records, summary, tmp_path) == []
