"""Levels against marks: what counts as right, which variants are made, and a measurement that goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import cspine.evaluation.landmark_runs as runs
from cspine.anatomy import LEVELS
from cspine.cli.app import app
from cspine.cli.landmarks import scan_scales
from cspine.errors import UsageError
from cspine.evaluation.degrading import filtered, noisy, sliced
from cspine.evaluation.landmark_runs import MarkedScan, measure_scan
from cspine.evaluation.landmark_tables import (
    confidence_figures,
    draw_confidence,
    landmarks_to_markdown,
    summarise_landmarks,
)
from cspine.evaluation.landmarks import LandmarkRecord, score, truths
from cspine.evaluation.marks import Marks, halves, load_marks, scan_path
from cspine.evaluation.variants import AS_IS, VARIANTS, choose, stored, turned
from cspine.findings import Findings, WarningItem
from cspine.volume import Volume
from fake_predictor import findings_of

HEIGHTS = {name: 150.0 - 17 * k for k, name in enumerate(("C1", "C2", "C3", "C4", "C5", "C6", "C7", "T1", "T2"))}
MARKS = Marks(levels={name: (40.0, 50.0, z) for name, z in HEIGHTS.items()})


@lru_cache(maxsize=4)
def neck(spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> Volume:
    """A bright drum at every mark in a column of tissue, 80 x 100 x 190 mm from the origin on."""
    count = [round(size / step) for size, step in zip((80, 100, 190), spacing, strict=True)]
    z, y, x = np.meshgrid(*(np.arange(n) * s for n, s in zip(count[::-1], spacing[::-1], strict=True)), indexing="ij")
    hu = np.where(np.hypot(x - 40, y - 50) < 36, 40.0, -1000.0)
    for height in HEIGHTS.values():
        hu[(np.hypot(x - 40, y - 50) < 9) & (np.abs(z - height) < 6)] = 600
    return Volume(hu.astype(np.int16), np.diag([*spacing, 1.0]))


def answer(shift: int = 0, *, hidden: str = "", confidence: float = 0.9, volume: Volume | None = None) -> Findings:
    """Findings with every level at its mark, or ``shift`` vertebrae further down; ``hidden`` levels not visible."""
    findings = findings_of(volume or neck(), neck=True)
    names = list(HEIGHTS)
    levels = []
    for k, item in enumerate(findings.levels):
        if item.level in hidden.split():
            gone = {"visible": False, "probability": None, "fracture": None, "threshold": None, "confidence": 0.0}
            levels.append(item.model_copy(update={**gone, "body_center_mm": None, "not_judged": "not in the scan"}))
        else:
            centre = (41.0, 50.0, HEIGHTS[names[k + shift]])
            levels.append(item.model_copy(update={"body_center_mm": centre, "confidence": confidence}))
    return findings.model_copy(update={"levels": tuple(levels)})


def record(scan: str = "a", *, shift: int = 0, confidence: float = 0.9, warning: str | None = None) -> LandmarkRecord:
    scored = score(answer(shift, confidence=confidence), truths(MARKS, [neck()]))
    warnings = () if warning is None else (WarningItem(code=warning, message="…"),)
    return LandmarkRecord(
        scan=scan, variant=AS_IS, group="as it is", half="test", bundle="b", digest="d", marks="sure", status="ok",
        warnings=warnings, levels=scored.levels, doubled=scored.doubled, skipped=scored.skipped, seconds=1.0,
    )  # fmt: skip


def test_answers_at_their_marks_are_right() -> None:
    scored = score(answer(), truths(MARKS, [neck()]))
    assert all(row.right and row.truth == "visible" and row.nearest == row.level for row in scored.levels)
    assert {row.error_mm for row in scored.levels} == {1.0}
    assert (scored.doubled, scored.skipped) == ((), ())


def test_a_chain_one_level_off_is_wrong_everywhere_but_in_order() -> None:
    scored = score(answer(1), truths(MARKS, [neck()]))
    assert not any(row.right for row in scored.levels)
    assert [row.nearest for row in scored.levels] == list(HEIGHTS)[1:8]
    assert (scored.doubled, scored.skipped) == ((), ())


def test_two_answers_at_one_mark_and_none_at_another_are_named() -> None:
    findings = answer()
    levels = list(findings.levels)
    levels[4] = levels[4].model_copy(update={"body_center_mm": (40.0, 50.0, HEIGHTS["C6"] + 2)})
    scored = score(findings.model_copy(update={"levels": tuple(levels)}), truths(MARKS, [neck()]))
    assert scored.doubled == ("C6",)
    assert scored.skipped == ("C5",)


def test_levels_outside_the_field_must_not_be_claimed() -> None:
    """The field ends 5 mm above C6's centre, and C5's is well inside."""
    volume = neck().crop(slice(35, None), slice(None), slice(None))
    good = score(answer(hidden="C6 C7"), truths(MARKS, [volume]))
    assert [row.truth for row in good.levels] == ["visible"] * 5 + ["outside"] * 2
    assert not any(row.claimed for row in good.levels[5:])
    bad = score(answer(), truths(MARKS, [volume]))
    assert all(row.claimed for row in bad.levels[5:])
    assert record().wrong == ()


def test_a_centre_at_the_fields_end_is_not_counted() -> None:
    volume = neck().crop(slice(33, None), slice(None), slice(None))
    row = score(answer(), truths(MARKS, [volume])).levels[5]
    assert row.truth == "edge"
    assert row.stated_name_holds is None


def test_levels_without_a_mark_are_outside_when_the_next_ones_leave_no_room() -> None:
    few = Marks(levels={name: MARKS.levels[name] for name in ("C1", "C2", "C3")})
    volume = neck().crop(slice(50, None), slice(None), slice(None))
    assert [row.truth for row in score(answer(), truths(few, [volume])).levels] == ["visible"] * 3 + ["edge"] + [
        "outside"
    ] * 3
    assert [row.truth for row in score(answer(), truths(few, [neck()])).levels[3:5]] == ["edge", "edge"]


def test_every_other_scan_is_for_development_in_the_order_of_numbers() -> None:
    assert halves(["pt_10", "pt_2", "pt_9"]) == {"pt_2": "development", "pt_9": "test", "pt_10": "development"}
    assert halves(["a", "b"], ["b"]) == {"a": "test", "b": "development"}
    with pytest.raises(UsageError, match="'c' is marked"):
        halves(["a"], ["c"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "expected JSON"),
        ("[]", "an object"),
        ('{"a": {"levels": {"C1": [0, 0, 0]}}}', "at least 2"),
        ('{"a": {"levels": {"C1": [0, 0, 0], "L1": [0, 0, 1]}}}', "'L1'"),
        ('{"a": {"levels": {"C1": [0, 0], "C2": [0, 0, 1]}}}', "a.levels.C1"),
    ],
)
def test_marks_that_make_no_sense_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "marks.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        load_marks(path)


def test_scales_of_scans_are_read_and_checked() -> None:
    assert scan_scales(["head.nii.gz=2400,-1000"], ["head.nii.gz"]) == {"head.nii.gz": (2400.0, -1000.0)}
    for text in ("head=1,2", "head.nii.gz", "head.nii.gz=1"):
        with pytest.raises(UsageError):
            scan_scales([text], ["head.nii.gz"])


def test_a_turn_moves_voxels_and_marks_alike() -> None:
    made = turned(neck(), MARKS, (20.0, 0.0, 0.0))
    assert made.motion is not None
    moved = MARKS.moved(made.motion)
    place = np.rint(made.volume.to_index(np.array([moved.levels[name] for name in ("C3", "C4", "C5")]))).astype(int)
    assert all(made.volume.hu[z, y, x] > 300 for x, y, z in place)
    away = np.linalg.norm(np.subtract(moved.levels["C1"], MARKS.levels["C1"]))
    assert away == pytest.approx(2 * np.sin(np.radians(10)) * 4 * 17, rel=1e-6)
    scored = score(answer(), truths(MARKS, [made.volume, neck()], made.motion))
    assert scored.levels[4].right
    assert not scored.levels[0].right


@pytest.mark.parametrize(("order", "flipped"), [((0, 1, 2), (0,)), ((1, 2, 0), (1,)), ((2, 0, 1), (0, 1, 2))])
def test_another_storage_order_is_the_same_patient(order: tuple[int, int, int], flipped: tuple[int, ...]) -> None:
    volume = neck((1.0, 2.0, 2.5))
    again = stored(volume, order, flipped).reoriented()
    np.testing.assert_array_equal(again.hu, volume.hu)
    np.testing.assert_allclose(again.affine, volume.affine)


def test_thicker_slices_are_means_and_stay_in_their_place() -> None:
    ramp = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None, None], (60, 4, 4))
    thick = sliced(Volume(ramp, np.diag([1.0, 1.0, 1.0, 1.0])), 2.5)
    assert thick.spacing[2] == pytest.approx(2.5)
    np.testing.assert_allclose(
        thick.hu[:, 0, 0], thick.to_world(np.array([[0, 0, k] for k in range(24)]))[:, 2], atol=0.06
    )
    thin = sliced(neck(), 0.5)
    assert thin.shape[0] == 4 * neck().shape[0]
    assert thin.hu[int(thin.to_index([40, 50, 150])[2]), 25, 20] > 300


def test_a_soft_kernel_blurs_and_a_sharp_one_does_the_opposite() -> None:
    volume, rng = neck(), np.random.default_rng(0)
    edge = [np.abs(np.diff(filtered(volume, kind, rng).hu[75, 25].astype(float))).max() for kind in ("soft", "bone")]
    own = np.abs(np.diff(volume.hu[75, 25].astype(float))).max()
    assert edge[0] < own < edge[1]


def test_low_dose_noise_is_even_handed() -> None:
    volume = neck()
    noise = noisy(volume, np.random.default_rng(1)).hu - volume.hu
    assert 25 < noise.std() < 120
    assert abs(noise.mean()) < 5


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda item: item.name)
def test_every_variant_is_made_the_same_way_twice(variant) -> None:
    volume = neck((2.0, 2.0, 2.5))
    made, again = variant(volume, MARKS, "scan"), variant(volume, MARKS, "scan")
    assert made is not None
    np.testing.assert_array_equal(made.volume.hu, again.volume.hu)
    assert (variant.name == AS_IS) == (made.volume.hu is volume.hu)
    assert made.volume.hu.dtype == np.int16
    fields = [made.volume] if made.motion is None else [made.volume, volume]
    truth = [row.truth for row in score(answer(), truths(MARKS, fields, made.motion)).levels]
    hidden = {"cut-above": 2, "cut-below": 2, "cut-both": 3, "cut-through": 4}
    assert truth.count("outside") == hidden.get(variant.name, 0)


def test_a_cut_without_marks_to_place_it_is_left_out() -> None:
    few = Marks(levels={name: MARKS.levels[name] for name in ("C1", "C2")})
    made = {variant.name: variant(neck(), few, "scan") for variant in VARIANTS}
    missing = {name for name, item in made.items() if item is None}
    assert missing == {"cut-above", "cut-below", "cut-both", "cut-through", "metal-screws"}


def test_variants_are_chosen_by_name_and_group() -> None:
    assert [item.name for item in choose("none")] == [AS_IS]
    assert choose("all") == VARIANTS
    assert [item.name for item in choose("metal, nod+25")] == [AS_IS, "nod+25", "metal-teeth", "metal-screws"]
    with pytest.raises(UsageError, match="'sideways'"):
        choose("sideways")


def test_the_summary_counts_what_went_wrong_and_whether_anybody_was_told() -> None:
    records = [
        record("a"),
        record("b"),
        record("c", shift=1, confidence=0.95),
        record("d", shift=1, confidence=0.4, warning="levels-uncertain"),
    ]
    summary = summarise_landmarks(records)
    pooled = summary["pooled"]
    assert (pooled["visible"], pooled["misnamed"], pooled["missed"]) == (28, 14, 0)
    assert pooled["right"]["value"] == 0.5
    assert pooled["right"]["low"] < 0.5 < pooled["right"]["high"]
    assert pooled["whole_scans_right"] == 2
    assert pooled["wrong_without_warning"] == 1
    assert summary["levels"]["C3"]["right"] == 2
    figures = summary["confidence"]
    assert (figures["wrong"], figures["wrong_and_unsure"], figures["right_but_unsure"]) == (14, 7, 0)
    assert [row["observed"] for row in figures["reliability"]] == [0.0, pytest.approx(2 / 3, abs=1e-4)]
    assert [item["scan"] for item in summary["failures"]] == ["c", "d"]
    table = landmarks_to_markdown(summary, "Levels")
    assert "C1 at C2 (0.95)" in table
    assert "levels-uncertain" in table
    json.dumps(summary, allow_nan=False)


def test_nothing_stated_is_no_confidence() -> None:
    assert confidence_figures([]) == {"stated": 0}


def test_the_reliability_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = draw_confidence([record("a"), record("b", shift=1, confidence=0.5)], tmp_path / "confidence.png")
    assert path is not None
    assert path.stat().st_size > 5000
    assert draw_confidence([], tmp_path / "none.png") is None


def test_scores_are_stored_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "open_study", lambda *_, **__: neck())
    asked = []

    def judge(volume: Volume) -> Findings:
        asked.append(volume.shape)
        return answer(volume=volume)

    scan = MarkedScan("a/b", tmp_path, MARKS, "test")
    variants = choose("cropped")
    first = measure_scan(scan, variants, judge, "bundle", tmp_path)
    assert len(asked) == len(variants) == len(first)
    assert measure_scan(scan, variants, judge, "bundle", tmp_path) == first
    assert len(asked) == len(variants)
    measure_scan(scan, variants, judge, "another", tmp_path)
    assert len(asked) == 2 * len(variants)
    changed = replace(scan, marks=MARKS.model_copy(update={"levels": {**MARKS.levels, "C1": (0.0, 0.0, 0.0)}}))
    measure_scan(changed, variants[:1], judge, "another", tmp_path)
    assert len(asked) == 2 * len(variants) + 1


def test_scans_are_found_by_name_with_or_without_ending(tmp_path: Path) -> None:
    (tmp_path / "pt_1_ct.nii.gz").touch()
    (tmp_path / "head.nii.gz").touch()
    assert scan_path(tmp_path, "pt_1").name == "pt_1_ct.nii.gz"
    assert scan_path(tmp_path, "head").name == scan_path(tmp_path, "head.nii.gz").name == "head.nii.gz"
    with pytest.raises(UsageError, match="'pt_2'"):
        scan_path(tmp_path, "pt_2")


def test_the_command_writes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "open_study", lambda *_, **__: neck())
    monkeypatch.setattr(runs, "_judge", lambda *_: lambda volume: answer(volume=volume))
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.nii").touch()
    marks = tmp_path / "marks.json"
    marks.write_text(json.dumps({name: {"levels": MARKS.levels} for name in ("a", "b", "c")}))
    out = tmp_path / "out"
    told = CliRunner().invoke(
        app, ["evaluate", "--landmarks", str(marks), "-o", str(out), "--half", "development", "--variants", "storage"]
    )
    assert told.exit_code == 0, told.output
    assert "2 marked scans (development half)" in told.output
    summary = json.loads((out / "landmarks.json").read_text())
    assert summary["pooled"]["right"]["value"] == 1.0
    assert len(list((out / "cases").glob("*.json"))) == 8
    refused = CliRunner().invoke(app, ["evaluate", "--landmarks", str(marks), "-o", str(out), "--half", "third"])
    assert refused.exit_code != 0


@pytest.mark.shared_data
def test_two_real_scans_are_measured(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ct" / "neck_openkbp"
    marks = {name: item for name, item in load_marks(folder / "levels.json").items() if name in ("pt_2", "pt_4")}
    scans = runs.marked_scans(marks, halves(tuple(marks)), folder)
    bundle = Path(runs.__file__).parents[1] / "bundles" / "base"
    records = runs.measure(runs.Plan(scans, "none", tmp_path, bundle))
    assert [item.scan for item in records] == ["pt_2", "pt_4"]
    assert all(len(item.levels) == len(LEVELS) and not item.doubled for item in records)
    assert all(row.truth == "visible" for item in records for row in item.levels)
    assert summarise_landmarks(records)["pooled"]["right"]["value"] > 0.5
