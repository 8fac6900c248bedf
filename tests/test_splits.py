"""Splits: by patient, even in every label, the same every time, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.anatomy import LEVELS
from cspine.errors import UsageError
from cspine.studies.rsna_tables import read_studies
from cspine.training.samples import sample_paths
from cspine.training.splits import (
    SPLITS_FILE,
    Splits,
    draw_splits,
    parsed_ratio,
    read_splits,
    settled_splits,
    write_splits,
)

# How often a level is fractured in RSNA 2022.
RATES = np.array([146, 285, 73, 108, 162, 277, 393]) / 2019


def patients(count: int, seed: int = 0) -> dict[str, tuple[bool, ...]]:
    truth = np.random.default_rng(seed).random((count, len(RATES))) < RATES
    return {f"1.2.{number}": (*map(bool, row), bool(row.any())) for number, row in enumerate(truth)}


def counts(splits: Splits, labels: dict[str, tuple[bool, ...]]) -> np.ndarray:
    """Positives of each label in each part."""
    return np.array([np.sum([labels[name] for name in part], axis=0) for part in splits.parts])


@given(st.integers(6, 80), st.integers(2, 5), st.integers(0, 5))
def test_every_study_is_in_one_part_and_parts_are_of_the_size_asked_for(count: int, folds: int, seed: int) -> None:
    labels = patients(count, seed)
    splits = draw_splits(labels, [1 / folds] * folds, seed)
    assert sorted(name for part in splits.parts for name in part) == sorted(labels)
    sizes = [len(part) for part in splits.parts]
    assert max(sizes) - min(sizes) <= 1 + count // 10
    assert splits == draw_splits(dict(reversed(labels.items())), [1 / folds] * folds, seed)


def test_rare_labels_are_shared_out_evenly() -> None:
    labels = patients(400)
    drawn = counts(draw_splits(labels, [0.2] * 5), labels)
    assert np.ptp(drawn, axis=0).max() <= 3
    names = np.random.default_rng(0).permutation(list(labels))
    by_chance = counts(Splits(tuple(tuple(part) for part in np.array_split(names, 5))), labels)
    assert np.ptp(drawn, axis=0).mean() < 0.4 * np.ptp(by_chance, axis=0).mean()


def test_a_ratio_holds_back_its_share() -> None:
    labels = patients(300)
    splits = draw_splits(labels, (0.2, 0.8))
    drawn = counts(splits, labels)
    np.testing.assert_allclose(drawn[0, :7], drawn[:, :7].sum(axis=0) * 0.2, atol=1.5)
    assert drawn[0, 7] == pytest.approx(drawn[:, 7].sum() * 0.2, abs=6)
    assert len(splits.parts[0]) == pytest.approx(60, abs=3)


def test_another_seed_is_another_split() -> None:
    labels = patients(60)
    assert draw_splits(labels, [0.5, 0.5], 0) != draw_splits(labels, [0.5, 0.5], 1)


@given(st.integers(0, 20))
def test_no_patient_is_on_both_sides(seed: int) -> None:
    labels = patients(60, seed)
    whose = {name: f"patient-{number // 3}" for number, name in enumerate(labels)}
    splits = draw_splits(labels, [1 / 4] * 4, seed, patients=whose)
    for patient in set(whose.values()):
        assert len({splits.part_of[name] for name in labels if whose[name] == patient}) == 1


@pytest.mark.parametrize("shares", [[1.0], [0.25] * 4, [0.5, 0.0]])
def test_what_cannot_be_split_is_refused(shares: list[float]) -> None:
    with pytest.raises(UsageError, match="cannot share 3 patients"):
        draw_splits(patients(3), shares)


def test_splits_are_drawn_once_and_kept(tmp_path: Path) -> None:
    labels = patients(30)
    assert read_splits(tmp_path) is None
    first = settled_splits(tmp_path, labels, folds=3, seed=1)
    assert settled_splits(tmp_path, labels, seed=2) == first == read_splits(tmp_path)
    with pytest.raises(UsageError, match="split in 3, not in 4"):
        settled_splits(tmp_path, labels, folds=4)


def test_other_studies_are_a_clear_error(tmp_path: Path) -> None:
    labels = patients(30)
    settled_splits(tmp_path, labels)
    del labels["1.2.0"], labels["1.2.1"]
    with pytest.raises(UsageError, match=r"1 are new and 2 are gone .*splits.json.*remove splits.json"):
        settled_splits(tmp_path, {**labels, "1.2.99": labels["1.2.2"]})


def test_a_ratio_is_drawn_once_and_kept(tmp_path: Path) -> None:
    labels = patients(50)
    first = settled_splits(tmp_path, labels, ratio=0.7, seed=1)
    assert settled_splits(tmp_path, labels, seed=2) == settled_splits(tmp_path, labels, ratio=0.7) == first
    assert read_splits(tmp_path) == first
    assert (first.kind, first.ratio, first.folds, [len(part) for part in first.parts]) == ("ratio", 0.7, 1, [15, 35])
    assert sum(first.held_back(name) for name in labels) == 15
    with pytest.raises(UsageError, match="fold of 0 to 0, got 1"):
        first.held_back("1.2.0", 1)
    with pytest.raises(UsageError, match=r"split by the ratio 0.7, not by the ratio 0.8 .*splits.json"):
        settled_splits(tmp_path, labels, ratio=0.8)
    with pytest.raises(UsageError, match=r"split by the ratio 0\.7, not in 5"):
        settled_splits(tmp_path, labels, folds=5)


def test_folds_and_ratios_clash(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--folds or --ratio, not both"):
        settled_splits(tmp_path, patients(20), folds=5, ratio=0.8)
    settled_splits(tmp_path, patients(20), folds=2)
    with pytest.raises(UsageError, match=r"split in 2, not by the ratio 0\.5"):
        settled_splits(tmp_path, patients(20), ratio=0.5)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("text", "share"), [("0.8", 0.8), ("80:20", 0.8), ("70/30", 0.7), ("1:1", 0.5)])
def test_ratios_as_people_write_them(text: str, share: float) -> None:
    assert parsed_ratio(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "1", "0", "80", "a:b", "1:2:3", "-1:3", "nan", "0:0"])
def test_what_is_no_ratio(text: str) -> None:
    with pytest.raises(UsageError, match=r"ratio like 0.8 or 80:20.*--ratio"):
        parsed_ratio(text)


def test_the_split_of_a_data_set_is_taken_over_unless_another_is_asked_for(tmp_path: Path) -> None:
    labels = patients(20)
    kept = {"1.2.3", "1.2.4"}
    given = settled_splits(tmp_path / "a", labels, held_back=kept)
    assert (given.kind, given.folds, set(given.parts[0])) == ("given", 1, kept)
    assert read_splits(tmp_path / "a") == given
    assert settled_splits(tmp_path / "b", labels, folds=4, held_back=kept).folds == 4
    with pytest.raises(UsageError, match="split as the data set says, not in 4"):
        settled_splits(tmp_path / "a", labels, folds=4)


@given(st.integers(0, 20), st.sampled_from([{"folds": 3}, {"ratio": 0.75}]))
def test_studies_of_a_patient_are_settled_on_one_side(
    tmp_path_factory: pytest.TempPathFactory, seed: int, how: dict
) -> None:
    labels = patients(40, seed)
    whose = {name: f"patient {number // 4}" for number, name in enumerate(labels) if number < 24}
    splits = settled_splits(tmp_path_factory.mktemp("s"), labels, seed=seed, patients=whose, **how)
    for patient in set(whose.values()):
        assert len({splits.part_of[name] for name in labels if whose.get(name) == patient}) == 1


def test_files_from_before_ratios_are_folds(tmp_path: Path) -> None:
    (tmp_path / SPLITS_FILE).write_text('{"format": 1, "seed": 3, "parts": [["a"], ["b"], ["c"]]}')
    assert read_splits(tmp_path) == Splits((("a",), ("b",), ("c",)), 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"format": 1, "seed": 0, "kind": "odd", "parts": [["1"], ["2"]]}',
        '{"format": 1, "seed": 0, "kind": "ratio", "parts": [["1"], ["2"], ["3"]]}',
        "[]",
        '{"format": 2, "seed": 0, "parts": [["1"], ["2"]]}',
        '{"format": 1, "seed": 0, "parts": [["1"], ["1"]]}',
    ],
)
def test_a_spoiled_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SPLITS_FILE).write_text(text)
    with pytest.raises(UsageError, match=r"cannot be read.*splits.json"):
        read_splits(tmp_path)


def finished(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "meta.json").write_text(json.dumps({"format": 1}))


def test_samples_follow_the_file_and_phantoms_their_number(tmp_path: Path) -> None:
    folder = tmp_path / "classifier"
    for name in ("1.2.16", "1.2.3", "1.2.4", "phantom-000016", "phantom-000017", "scan-00-000032"):
        finished(folder, name)
    assert [path.name for path in sample_paths(folder, held_back=True)] == [
        "1.2.16",
        "phantom-000016",
        "scan-00-000032",
    ]
    write_splits(Splits((("1.2.16", "1.2.4"), ("1.2.3",))), tmp_path)
    numbered = ["phantom-000016", "scan-00-000032"]
    assert [path.name for path in sample_paths(folder, held_back=True)] == ["1.2.16", "1.2.4", *numbered]
    assert [path.name for path in sample_paths(folder, held_back=True, fold=1)] == ["1.2.3", *numbered]
    assert [path.name for path in sample_paths(folder, held_back=False)] == ["1.2.3", "phantom-000017"]
    with pytest.raises(UsageError, match="fold of 0 to 1, got 2"):
        sample_paths(folder, held_back=False, fold=2)


def test_a_phantom_of_the_data_set_follows_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "planar"
    for name in ("phantom-clinical-000016", "phantom-clinical-000017", "phantom-000032"):
        finished(folder, name)
    write_splits(Splits((("phantom-clinical-000017",), ("phantom-clinical-000016",))), tmp_path)
    held = [path.name for path in sample_paths(folder, held_back=True)]
    assert held == ["phantom-000032", "phantom-clinical-000017"]


def test_a_sample_that_the_splits_do_not_know_is_never_trained_on_in_silence(tmp_path: Path) -> None:
    finished(tmp_path / "classifier", "1.2.3")
    write_splits(Splits((("1.2.16",), ("1.2.4",))), tmp_path)
    with pytest.raises(UsageError, match=r"no study in the splits: 1.2.3"):
        sample_paths(tmp_path / "classifier", held_back=False)


@pytest.mark.shared_data
def test_the_published_studies_split_evenly(shared_data: Path) -> None:
    rows = read_studies(shared_data / "rsna2022" / "train.csv")
    labels = {uid: (*row.fractured, row.overall) for uid, row in rows.items()}
    splits = draw_splits(labels, [0.2] * 5)
    drawn = counts(splits, labels)
    assert [len(part) for part in splits.parts] == pytest.approx([403.8] * 5, abs=4)
    assert np.ptp(drawn[:, : len(LEVELS)], axis=0).max() <= 2
    assert np.ptp(drawn[:, -1]) <= 4
