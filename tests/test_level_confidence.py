"""Where counting begins, how evenly vertebrae lie, how sure a name is, and what the reader is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import UsageError
from cspine.evaluation.landmarks import truths
from cspine.evaluation.level_confidence import (
    TEMPERATURES,
    ConfidenceRow,
    fit_curve,
    fit_level_confidence,
    held_out,
    rows_of,
)
from cspine.evaluation.marks import Marks
from cspine.inference.bundle import Bundle
from cspine.inference.candidates import CandidateSettings, find_candidates
from cspine.inference.certainty import Anchors, LevelConfidence
from cspine.inference.chain import STEP_MEAN_MM, ChainSettings, Link
from cspine.inference.evening import evened
from cspine.inference.judge import level_warnings, verdicts
from cspine.inference.levels import LevelMap, LevelSettings, find_chain, find_chains, find_levels
from cspine.inference.locate import Located
from cspine.inference.visibility import Field
from cspine.training.level_confidence import write_fit
from oracle import Patient, located_of, make_patient, oracle_bundle

COARSE = (2.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def patient() -> Patient:
    return make_patient(spacing=COARSE)


@pytest.fixture(scope="module")
def whole(patient: Patient) -> Located:
    return located_of(patient)


@pytest.fixture(scope="module")
def middle() -> Located:
    return located_of(make_patient(spacing=COARSE, z_mm=(-100.0, -30.0)))


def codes(result: LevelMap) -> dict[str, str]:
    return {item.code: item.message for item in level_warnings(result, verdicts(result, False))}


def test_the_ring_tells_c1_and_nothing_else(patient: Patient, whole: Located) -> None:
    peaks = find_candidates(whole, CandidateSettings())
    nearest = [
        min(patient.centers, key=lambda label: float(np.linalg.norm(patient.centers[label] - place)))
        for place in peaks.positions
    ]
    assert peaks.ring[nearest.index(1)] > 0.9
    assert all(share < 0.1 for share, label in zip(peaks.ring, nearest, strict=True) if label != 1)


def test_a_network_that_calls_everything_one_level_lower_is_held_by_the_ring(patient: Patient) -> None:
    """The dens is C2 at the height of C1 too: without the ring the first peak would pass for C2."""

    def drift(logits: np.ndarray, points: np.ndarray) -> None:
        height = (patient.centers[2][2] + patient.centers[3][2]) / 2
        low = points[..., 2] < height
        below = logits.copy()
        for label in range(3, 8):
            logits[label][low] = below[label - 1][low] if label > 3 else -4.0
        logits[8][low] = np.maximum(below[7], below[8])[low]

    chain = find_chain(located_of(patient, drift))
    assert [link.state for link in chain.links[:3]] == [0, 1, 2]
    assert chain.anchors.head > 0.9


def links_at(places: np.ndarray, states: list[int], lost: tuple[int, ...] = ()) -> list[Link]:
    return [
        Link(state, None if k in lost else k, np.array([0.0, 0.0, -place]), 0.9)
        for k, (state, place) in enumerate(zip(states, places, strict=True))
    ]


@given(st.floats(0.8, 1.2), st.integers(0, 2**32 - 1))
def test_scattered_peaks_of_an_even_spine_come_nearer_to_it(size: float, seed: int) -> None:
    states = [0, 1, 2, 3, 4, 5, 6, 7, 7]
    true = np.concatenate([[0.0], np.cumsum(size * STEP_MEAN_MM[states[:-1]])])
    scatter = np.random.default_rng(seed).normal(0, 3.5, len(true))
    moved = evened(links_at(true + scatter, states), np.full(len(true), 0.5), np.full(len(true), 50.0))
    error = np.array([-link.position[2] for link in moved]) - true
    assert np.sqrt((error**2).mean()) <= np.sqrt((scatter**2).mean()) + 0.3
    assert np.diff(error).std() < np.diff(scatter).std()


def test_strong_peaks_stay_where_they_are() -> None:
    states = [0, 1, 2, 3, 4, 5, 6]
    places = np.array([0.0, 22, 38, 59, 70, 88, 104])
    moved = evened(links_at(places, states), np.full(7, 0.99), np.full(7, 50.0))
    assert max(abs(-link.position[2] - place) for link, place in zip(moved, places, strict=True)) < 1.2


def test_a_peak_at_the_fields_end_goes_where_the_others_say() -> None:
    """C1's centre lies outside, so its peak is the rim that is left of it."""
    states = [0, 1, 2, 3, 4, 5]
    places = np.concatenate([[0.0], np.cumsum(STEP_MEAN_MM[states[:-1]])])
    places[0] += 7.0
    heat = np.full(6, 0.9)
    rim, inner = (evened(links_at(places, states), heat, np.array([depth, *[20.0] * 5])) for depth in (2.0, 20.0))
    assert -rim[0].position[2] < 3.0
    assert -inner[0].position[2] > 4.0


def test_short_chains_are_left_alone() -> None:
    links = links_at(np.array([0.0, 25, 31]), [2, 3, 4])
    assert evened(links, np.full(3, 0.5), np.full(3, 50.0)) == tuple(links)


def test_a_scan_that_shows_everything_is_anchored_at_both_ends(whole: Located) -> None:
    result = find_levels(whole)
    assert result.anchors.head > 0.9
    assert result.anchors.chest > 0.9
    assert codes(result) == {}


def test_a_scan_cut_at_both_ends_says_that_nothing_anchors_the_count(middle: Located) -> None:
    result = find_levels(middle, LevelSettings(chain=ChainSettings(temperature=3.0)))
    assert result.anchors == Anchors(0.0, 0.0)
    told = codes(result)
    assert "levels were named by shape" in told["levels-without-anchor"]
    assert "levels-uncertain" in told
    assert all(item.confidence < 0.75 for item in result.found)


def test_a_chest_with_the_lower_neck_is_counted_upwards() -> None:
    result = find_levels(located_of(make_patient(spacing=COARSE, z_mm=(-200.0, -75.0), count=14)))
    assert result.anchors.head == 0.0
    assert result.anchors.chest > 0.9
    assert "counted up from the chest" in codes(result)["levels-without-anchor"]


def test_two_vertebrae_grown_into_one_are_pointed_out(patient: Patient) -> None:
    """C4 and C5 as one block with one peak, both called C4."""
    upper, lower = patient.centers[4], patient.centers[5]
    block = (upper + lower) / 2

    def fuse(logits: np.ndarray, points: np.ndarray) -> None:
        near = np.linalg.norm(points - block, axis=-1)
        logits[10][np.abs(points[..., 2] - block[2]) < 15] = -9
        peak = 8 * np.exp(-0.5 * near**2 / 16) - 4.5
        logits[10] = np.where(near < 9, np.maximum(logits[10], peak), logits[10])
        logits[4] = np.maximum(logits[4], logits[5])
        logits[5] = -4.0

    result = find_levels(located_of(patient, fuse))
    told = codes(result)
    assert {"levels-uneven", "levels-uncertain", "levels-contradicted"} & set(told)
    assert min(item.confidence for item in result.found) < 0.7


def test_a_name_that_shape_contradicts_is_pointed_out(patient: Patient) -> None:
    """Thoracic from C7 on: six cervical vertebrae, or a cervical rib."""

    def rib(logits: np.ndarray, points: np.ndarray) -> None:
        logits[8] = np.maximum(logits[8], logits[7])
        logits[7] = -4.0

    result = find_levels(located_of(patient, rib))
    assert result.doubts.contradicted == (7,)
    assert "C7" in codes(result)["levels-contradicted"]
    assert result.found[6].confidence < find_levels(located_of(patient)).found[6].confidence


@given(st.floats(0.001, 0.999), st.floats(0, 1), st.floats(0, 1))
def test_confidence_is_a_probability_and_grows_with_its_parts(posterior: float, head: float, chest: float) -> None:
    curve = LevelConfidence(posterior=0.6, head=2.0, chest=0.5, contradicted=-1.0, bias=-1.0)
    value = curve(posterior, Anchors(head, chest))
    assert 0 < value < 1
    assert value <= curve(min(posterior + 0.1, 1.0), Anchors(head, chest))
    assert value <= curve(posterior, Anchors(1.0, 1.0))
    assert curve(posterior, Anchors(head, chest), True) < value
    plain = LevelConfidence(posterior=1.0, head=0.0, chest=0.0, contradicted=0.0, bias=0.0)
    assert plain(posterior, Anchors()) == pytest.approx(np.clip(posterior, 0.01799, 0.98201), abs=1e-4)


def rows(count: int = 240, seed: int = 0) -> list[ConfidenceRow]:
    """Right nine times in ten with the head in view, half the time without, whatever the posterior says."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(count):
        head = float(k % 2)
        posterior = tuple(float(value) for value in rng.uniform(0.6, 0.99, len(TEMPERATURES)))
        right = bool(rng.random() < (0.9 if head else 0.5))
        out.append(
            ConfidenceRow(
                scan=f"s{k // 12}",
                variant="v",
                level="C4",
                posterior=posterior,
                head=head,
                chest=0.0,
                contradicted=False,
                right=right,
            )
        )
    return out


def test_the_fit_learns_what_an_anchor_is_worth() -> None:
    fit = fit_level_confidence(rows())
    with_head, without = (fit.curve(0.85, Anchors(head, 0.0)) for head in (1.0, 0.0))
    assert with_head == pytest.approx(0.9, abs=0.06)
    assert without == pytest.approx(0.5, abs=0.12)
    assert fit.temperature in TEMPERATURES
    assert "240 stated levels of 20 scans" in fit.note


def test_scans_left_out_teach_nothing_about_themselves() -> None:
    table = rows()
    first = held_out(table, 0)[:12]
    turned = [row.model_copy(update={"right": not row.right}) if row.scan == "s0" else row for row in table]
    np.testing.assert_allclose(held_out(turned, 0)[:12], first)
    assert fit_curve(turned, 0) != fit_curve(table, 0)


def test_nothing_wrong_is_nothing_to_learn_from() -> None:
    with pytest.raises(UsageError, match="right and wrong"):
        fit_level_confidence([row.model_copy(update={"right": True}) for row in rows()])


def test_rows_hold_what_was_stated_and_whether_it_is_true(patient: Patient, whole: Located) -> None:
    names = ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "T1")
    marks = Marks(levels={name: tuple(patient.centers[k + 1]) for k, name in enumerate(names)})
    view = Field(whole.field_affine, whole.field_shape, whole.void, whole.affine)
    chains = find_chains(whole, LevelSettings(), TEMPERATURES)
    table = rows_of(chains, view, truths(marks, [patient.volume]), scan="a", variant="v")
    assert [row.level for row in table] == list(names[:7])
    assert all(row.right and row.head > 0.9 and list(row.posterior) == sorted(row.posterior)[::-1] for row in table)
    shifted = Marks(levels={name: tuple(patient.centers[k + 2]) for k, name in enumerate(names)})
    wrong = rows_of(chains, view, truths(shifted, [patient.volume]), scan="a", variant="v")
    assert not any(row.right for row in wrong)


def test_a_fit_goes_into_the_bundle_and_its_card(tmp_path: Path) -> None:
    oracle_bundle(tmp_path)
    text = (tmp_path / "bundle.json").read_text()
    content = json.loads(text)
    assert content["calibration"]["level_confidence"] == LevelConfidence().model_dump()
    fit = fit_level_confidence(rows())
    card = {"card.md": b"# A card\n\n## Figures\n\nmany\n"}
    bundle = Bundle.load(tmp_path)
    from cspine.inference.bundle import write_bundle

    fields = bundle.manifest.model_dump(exclude={"schema_version", "files"}, mode="json")
    write_bundle(tmp_path, {**bundle.files, **card}, fields)
    for again in (fit, replace(fit, note="A second note.")):
        bundle = write_fit(tmp_path, again)
    assert bundle.manifest.calibration.level_confidence == fit.curve
    assert bundle.manifest.calibration.level_temperature == fit.temperature
    shown = bundle.files["card.md"].decode()
    assert shown.count("## Confidence of levels") == 1
    assert "A second note." in shown
    assert "240 stated" not in shown
    assert "many" in shown
