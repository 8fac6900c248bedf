"""Preparing: every study becomes samples once, a bad one costs no other, and training keeps to the splits."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from typer.testing import CliRunner

from cspine.anatomy import LEVELS, OTHER_BONE
from cspine.cli.app import app
from cspine.errors import OutputError, StudyError, UsageError
from cspine.inference.stacks import PLANES
from cspine.studies.rsna import RsnaFolder
from cspine.training import prepare
from cspine.training.case_samples import KINDS, outlined
from cspine.training.columns import column_only
from cspine.training.data import HeldBack, Pool, type_names
from cspine.training.fit import fit_stage
from cspine.training.losses import StackTargets, classifier_loss
from cspine.training.modules import _blended
from cspine.training.prepare import Preparation, Prepared
from cspine.training.recipe import ClassifierLoss, Schedule
from cspine.training.samples import (
    classifier_sample,
    read_classifier_sample,
    read_meta,
    sample_paths,
    write_sample,
)
from cspine.training.splits import read_splits
from cspine.training.stacks import draw_stack
from cspine.volume import Volume
from rsna_factory import KnowingPredictor, Study, studies, write_rsna_folder
from test_training import OPTIONS, RECIPE
from training_factory import block_case

STUDIES = studies(4)
BUNDLE = Path(prepare.__file__).parents[1] / "bundles" / "base"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_rsna_folder(folder, STUDIES)
    return folder


@pytest.fixture(autouse=True)
def predictor(monkeypatch: pytest.MonkeyPatch) -> KnowingPredictor:
    """The networks are not what is tested here."""
    knowing = KnowingPredictor(STUDIES)
    monkeypatch.setattr(prepare, "_predictor", lambda *_: knowing)
    return knowing


@pytest.fixture(scope="module")
def samples(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of all four studies, in two parts."""
    out = tmp_path_factory.mktemp("samples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_predictor", lambda *_: KnowingPredictor(STUDIES))
        preparation = Preparation(RsnaFolder.open(published), out, BUNDLE)
        preparation.begin(folds=2)
        for uid in preparation.missing():
            preparation.make(uid)
        preparation.finish()
    return out


def of(samples: Path, study: Study) -> Prepared:
    return Prepared.model_validate_json((samples / "studies" / f"{study.uid}.json").read_bytes())


def test_true_masks_feed_all_stages_and_found_ones_the_classifier(samples: Path) -> None:
    for study in STUDIES:
        done = of(samples, study)
        assert done.masks == ("true" if study.mask else "found")
        assert done.samples == (KINDS if study.mask else ("classifier", "planar"))
        assert done.levels == tuple(level.name for level in LEVELS)
        assert done.status == "ok"
        for stage in KINDS:
            assert (samples / stage / study.uid / "meta.json").exists() is (stage in done.samples)


def test_vertebrae_say_whether_it_is_known_where_they_are_broken(samples: Path) -> None:
    for study in STUDIES:
        sample = read_classifier_sample(samples / "classifier" / study.uid)
        for item in sample.vertebrae:
            truth = study.case.levels[LEVELS[item.label - 1]]
            assert item.fractured is truth.fractured
            assert item.types == ()
            assert item.evidence_known is (study.boxed or not truth.fractured)
            assert bool((sample.points[:, 0] == item.label).any()) is (truth.fractured and study.boxed)


def test_points_lie_around_the_fracture_of_their_vertebra(samples: Path) -> None:
    study = next(study for study in STUDIES if study.boxed and not study.mask and study.case.patient_fractured)
    sample = read_classifier_sample(samples / "classifier" / study.uid)
    broken = study.case.volume.to_world(np.argwhere(study.case.fracture)[:, ::-1])
    nearest = [np.linalg.norm(broken - point, axis=1).min() for point in sample.points[::7, 1:]]
    assert np.max(nearest) < 35
    assert {int(label) for label in np.unique(sample.points[:, 0])} == {
        int(level) for level, truth in study.case.levels.items() if truth.fractured
    }


def test_only_the_column_is_kept_and_vertebrae_look_the_same() -> None:
    whole = classifier_sample(block_case(5, spacing=(1.0, 1.0, 2.0), fractured=True))
    wide = np.pad(whole.volume.hu, 40, constant_values=-1000)
    affine = whole.volume.affine.copy()
    affine[:3, 3] = whole.volume.to_world([-40, -40, -40])
    whole = replace(whole, volume=Volume(wide, affine))
    part = column_only(whole)
    assert part.volume.hu.size < 0.1 * whole.volume.hu.size
    for item in whole.vertebrae:
        first, second = (
            draw_stack(sample, item, RECIPE.classifier, type_names(), np.random.default_rng(0), plain=True)
            for sample in (whole, part)
        )
        # Channel 3 is the mask; in and around it every voxel is the same.
        near = ndimage.binary_dilation(first.stack[:, 3] > 0, iterations=2)
        np.testing.assert_allclose(first.stack[:, 3], second.stack[:, 3], atol=1e-6)
        for channel in range(3):
            np.testing.assert_allclose(first.stack[:, channel][near], second.stack[:, channel][near], atol=1e-6)
        np.testing.assert_array_equal(first.evidence, second.evidence)


def test_a_locator_sample_knows_centres_and_bone_that_is_no_vertebra(published: Path) -> None:
    study = next(study for study in STUDIES if study.mask)
    folder = RsnaFolder.open(published)
    case = folder.case(study.uid)
    hu = case.volume.hu.copy()
    hu[:12, :20, :20] = 900
    bright = replace(case, volume=replace(case.volume, hu=hu))
    known, _ = outlined(bright, case.labels)
    assert (known.labels[2:10, 2:18, 2:18] == OTHER_BONE).all()
    assert np.array_equal(known.labels[case.labels > 0], case.labels[case.labels > 0])
    assert all(known.levels[level].body_center_mm is not None for level in LEVELS)


def bad_copy(published: Path, folder: Path) -> tuple[Path, str]:
    """A copy in which one study has a torn slice; and its UID."""
    shutil.copytree(published, folder)
    uid = STUDIES[1].uid
    path = folder / "train_images" / uid / "3.dcm"
    path.write_bytes(path.read_bytes()[:2000])
    return folder, uid


def test_a_bad_study_is_listed_with_its_reason_and_stops_nobody(
    published: Path, tmp_path: Path, predictor: KnowingPredictor
) -> None:
    data, uid = bad_copy(published, tmp_path / "rsna")
    out = tmp_path / "samples"
    command = ["prepare", str(data), "--out", str(out), "--workers", "1", "--folds", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 8
    assert result.stdout == f"3 studies prepared, 1 refused: {out}\n"
    assert f"not used: {uid}" in result.stderr
    rows = {row["study"]: row for row in csv.DictReader((out / "prepared.csv").open())}
    assert len(rows) == 4
    assert (rows[uid]["status"], rows[uid]["code"]) == ("refused", "damaged-file")
    assert "3.dcm" in rows[uid]["where"]
    assert json.loads((out / "prepared.json").read_text())["counts"] == {"ok": 3, "refused": 1}
    # Once the study is repaired the same command does it, and nothing else.
    shutil.copytree(published / "train_images" / uid, data / "train_images" / uid, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (out / "studies").glob("*.json") if path.stem != uid}
    assert CliRunner().invoke(app, command).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert Prepared.model_validate_json((out / "studies" / f"{uid}.json").read_bytes()).status == "ok"


def test_an_interrupted_run_goes_on_where_it_stopped(
    published: Path, tmp_path: Path, predictor: KnowingPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer = predictor.predict_full

    def impatient(volume: Volume) -> SimpleNamespace:
        asked.append(volume.source.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(volume)

    monkeypatch.setattr(predictor, "predict_full", impatient)
    command = ["prepare", str(published), "--out", str(tmp_path), "--workers", "1", "--folds", "2"]
    assert CliRunner().invoke(app, command).exit_code == 130
    done = [row["study"] for row in csv.DictReader((tmp_path / "prepared.csv").open())]
    assert 1 <= len(done) < 4
    assert not [path for path in tmp_path.rglob(".*") if path.is_dir()]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert sorted(asked) == sorted([*{study.uid for study in STUDIES if not study.mask}, asked[1]])


def test_samples_of_two_bundles_never_mix(published: Path, samples: Path, tmp_path: Path) -> None:
    other = shutil.copytree(BUNDLE, tmp_path / "bundle")
    (other / "bundle.json").write_text((other / "bundle.json").read_text() + "\n")
    with pytest.raises(UsageError, match="another bundle"):
        Preparation(RsnaFolder.open(published), samples, other).begin()


def test_levels_that_are_not_judged_are_left_out(published: Path, tmp_path: Path) -> None:
    study = next(s for s in STUDIES if not s.mask and s.case.patient_fractured)
    lost = next(level for level in LEVELS if study.case.levels[level].fractured)
    shy = KnowingPredictor(STUDIES, not_judged=[lost.name])
    done = prepare.prepare_case(RsnaFolder.open(published), study.uid, tmp_path, shy.predict_full)
    assert (done.status, done.lost) == ("partial", (lost.name,))
    assert lost.name not in done.levels
    blind = KnowingPredictor(STUDIES, not_judged=[level.name for level in LEVELS])
    with pytest.raises(StudyError, match="no cervical vertebra was found"):
        prepare.prepare_case(RsnaFolder.open(published), study.uid, tmp_path / "none", blind.predict_full)


def test_a_full_disk_ends_it(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("no space left on the disk")

    preparation = Preparation(RsnaFolder.open(published), tmp_path, BUNDLE)
    preparation.begin(folds=2)
    monkeypatch.setattr("cspine.training.case_samples.write_planar", full)
    with pytest.raises(OutputError):
        preparation.make(STUDIES[0].uid)
    assert STUDIES[0].uid in preparation.missing()


def unplaced(seed: int = 5) -> tuple[object, object]:
    """A sample whose vertebrae are all broken, nobody knows where, and its first vertebra."""
    case = block_case(seed, fractured=True)
    levels = {level: replace(truth, place_known=False, types=()) for level, truth in case.levels.items()}
    sample = classifier_sample(replace(case, fracture=None, levels=levels))
    return sample, sample.vertebrae[2]


def test_fractured_at_an_unknown_place_is_still_fractured() -> None:
    sample, vertebra = unplaced()
    stack = draw_stack(sample, vertebra, RECIPE.classifier, type_names(), np.random.default_rng(0))
    assert (stack.vertebra, stack.evidence_known, stack.types_known) == (1.0, 0.0, 0.0)
    assert not stack.evidence.any()
    with pytest.raises(StudyError, match="no known place"):
        draw_stack(
            sample, vertebra, RECIPE.classifier, type_names(), np.random.default_rng(0), window=(PLANES // 2, 128, 160)
        )


def test_parts_are_drawn_of_known_places_only(tmp_path: Path) -> None:
    write_sample(unplaced()[0], tmp_path, "1.2.3")
    write_sample(classifier_sample(block_case(6, fractured=False)), tmp_path, "1.2.4")
    short = RECIPE.classifier.model_copy(update={"windows": ((8, 128, 160),)})
    pool = Pool(tmp_path, short, held_back=False)
    pool.refresh()
    assert pool.draw_batch(np.random.default_rng(0))["stack"].shape[1] == PLANES
    write_sample(classifier_sample(block_case(7, fractured=True)), tmp_path, "1.2.5")
    pool.refresh()
    for seed in range(4):
        batch = pool.draw_batch(np.random.default_rng(seed))
        assert batch["stack"].shape[1] == 8
        assert batch["evidence_known"].all()


def test_unknown_evidence_teaches_nothing_about_places() -> None:
    output = {
        "vertebra": torch.zeros(2),
        "slices": torch.randn(2, 6),
        "types": torch.randn(2, 3),
        "evidence": torch.randn(2, 6, 4, 4),
    }
    truth = StackTargets(
        vertebra=torch.tensor([1.0, 0.0]),
        slices=torch.zeros(2, 6),
        types=torch.zeros(2, 3),
        evidence=torch.zeros(2, 6, 4, 4),
        types_known=torch.tensor([0.0, 1.0]),
        evidence_known=torch.tensor([0.0, 1.0]),
    )
    losses = classifier_loss(output, truth, ClassifierLoss())
    wild = {**output, "slices": output["slices"].clone(), "evidence": output["evidence"].clone()}
    wild["slices"][0] += 9
    wild["evidence"][0] += 9
    for name, value in classifier_loss(wild, truth, ClassifierLoss()).items():
        assert torch.equal(value, losses[name]), name
    nobody = replace(truth, evidence_known=torch.zeros(2))
    assert classifier_loss(output, nobody, ClassifierLoss())["slices"] == 0


def test_of_a_blend_is_known_what_is_known_of_both() -> None:
    batch = {"vertebra": torch.tensor([1.0, 0.0]), "evidence_known": torch.tensor([0.0, 1.0])}
    torch.manual_seed(0)
    for _ in range(5):
        assert set(_blended(batch)["evidence_known"].tolist()) <= {0.0, 1.0}
        assert _blended(batch)["evidence_known"][0] == 0


def test_samples_from_before_real_labels_know_every_place(tmp_path: Path) -> None:
    path = write_sample(classifier_sample(block_case(5, fractured=True)), tmp_path, "phantom-000001")
    meta = read_meta(path)
    for item in meta["vertebrae"]:
        del item["evidence_known"]
    (path / "meta.json").write_text(json.dumps(meta))
    assert all(item.evidence_known for item in read_classifier_sample(path).vertebrae)
    pool = Pool(tmp_path, RECIPE.classifier, held_back=False)
    pool.refresh()
    assert len(pool.placed) == len(pool.positives) == 7


@pytest.mark.parametrize("fold", [0, 1])
def test_training_learns_from_the_prepared_folder_and_keeps_to_the_split(
    samples: Path, tmp_path: Path, fold: int
) -> None:
    splits = read_splits(samples)
    assert splits is not None
    recipe = RECIPE.on_fold(fold)
    held = HeldBack(samples / "classifier", recipe.classifier, 99)
    assert {path.name for path, _ in held.items} == set(splits.parts[fold])
    assert {path.name for path in sample_paths(samples / "classifier", held_back=False, fold=fold)} == set(
        splits.parts[1 - fold]
    )
    schedule = Schedule(steps=2, warmup_steps=1, batch_size=2)
    stage = recipe.classifier.model_copy(update={"schedule": schedule})
    recipe = recipe.model_copy(update={"classifier": stage})
    checkpoint = fit_stage(recipe, "classifier", samples, tmp_path, OPTIONS)
    saved = torch.load(checkpoint, weights_only=True)
    assert (saved["global_step"], saved["stage"]["fold"]) == (2, fold)


def test_one_command_trains_on_the_published_folder(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fit(recipe: object, name: str, samples: Path, run: Path, options: object) -> Path:
        seen.append((name, recipe.classifier.fold, sorted(path.name for path in (samples / name).iterdir())))
        return run / name / "last.ckpt"

    monkeypatch.setattr("cspine.training.fit.fit_stage", fit)
    monkeypatch.setattr("cspine.studies.assemble.cores", lambda: 1)
    command = ["train", "base", "--data", str(published), "--out", str(tmp_path), "--folds", "2", "--fold", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    masked = sorted(study.uid for study in STUDIES if study.mask)
    every = sorted(study.uid for study in STUDIES)
    assert seen == [("locator", 1, masked), ("refiner", 1, masked), ("classifier", 1, every)]
    # The samples may be used again, by another run for another fold.
    again = ["train", "base", "--data", str(tmp_path / "samples"), "--out", str(tmp_path / "b"), "--fold", "0"]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert CliRunner().invoke(app, [*again[:-1], "2"]).exit_code == 2
    assert CliRunner().invoke(app, [*again, "--folds", "3"]).exit_code == 2
