"""Preparing and training on every layout of labelled studies, and on what only some networks of a recipe can use."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from cspine.anatomy import LEVELS
from cspine.cli.app import app
from cspine.errors import UsageError
from cspine.phantoms.write import write_nifti
from cspine.studies.labelled import open_labelled
from cspine.training import prepare
from cspine.training.case_samples import KINDS, kinds_for
from cspine.training.planar_samples import heads_taught, read_planar
from cspine.training.prepare import Preparation, Prepared
from cspine.training.recipe import Recipe, load_recipe
from cspine.training.samples import read_classifier_sample, read_locator_sample, sample_paths
from cspine.training.splits import read_splits
from labelled_factory import neck, picture, write_nifti_folder, write_phantoms, write_picture, write_rows
from rsna_factory import KnowingPredictor, studies, write_rsna_folder

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


def prepared(folder: Path, out: Path, **options: object) -> dict[str, Prepared]:
    preparation = Preparation(open_labelled(folder), out, BUNDLE, **options)  # type: ignore[arg-type]
    preparation.begin(folds=2)
    for name in preparation.missing():
        preparation.make(name)
    return {item.study: item for item in preparation.finish()}


def test_phantoms_teach_everything_with_all_that_is_true_of_them(tmp_path: Path) -> None:
    made = write_phantoms(tmp_path / "phantoms", 2)
    done = prepared(tmp_path / "phantoms", tmp_path / "out")
    for case in made:
        item = done[case.name]
        assert (item.status, item.masks, item.samples) == ("ok", "true", KINDS)
        broken = tuple(level.name for level in LEVELS if case.levels[level].fractured)
        assert (item.placed, item.lost) == (broken, ())
        located = read_locator_sample(tmp_path / "out" / "locator" / case.name)
        assert located.thoracic_known
        assert located.centers[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
        judged = read_classifier_sample(tmp_path / "out" / "classifier" / case.name)
        assert {item.types for item in judged.vertebrae if item.fractured} <= {("burst",)}
        assert all(item.evidence_known for item in judged.vertebrae)
    held = {path.name for path in sample_paths(tmp_path / "out" / "planar", held_back=True)}
    assert held == set(read_splits(tmp_path / "out").parts[0])


def test_a_scan_beside_the_neck_teaches_what_is_no_vertebra(tmp_path: Path) -> None:
    (case,) = write_phantoms(tmp_path / "phantoms", 1)
    write_phantoms(tmp_path / "phantoms", 2)
    for part in ("labels", "fracture"):
        empty = np.zeros(case.volume.shape, np.uint8)
        write_nifti(empty, case.volume.affine, tmp_path / "phantoms" / "truth" / f"{case.name}.{part}.nii.gz")
    truth = tmp_path / "phantoms" / "truth" / f"{case.name}.json"
    content = json.loads(truth.read_text())
    for level in content["levels"].values():
        level |= {"visible_fraction": 0.0, "fractured": False}
    truth.write_text(json.dumps(content))
    done = prepared(tmp_path / "phantoms", tmp_path / "out")[case.name]
    assert (done.status, done.samples, done.levels) == ("partial", ("locator", "planar"), ())


def test_nifti_without_masks_is_outlined_also_for_planar_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = neck(1, fractured=True)
    write_nifti_folder(tmp_path / "data", [case, neck(2)], fractures=[case.name])
    knowing = KnowingPredictor([])
    knowing.cases = {item.name: item for item in (case, neck(2))}
    monkeypatch.setattr(prepare, "_predictor", lambda *_: knowing)
    done = prepared(tmp_path / "data", tmp_path / "out")[case.name]
    assert (done.masks, done.samples, done.lost) == ("found", ("classifier", "planar"), ())
    assert done.placed == tuple(level.name for level in LEVELS)
    sample = read_planar(tmp_path / "out" / "planar" / case.name)
    assert set(np.unique(sample.labels)) == {0, 1, 2, 3, 4, 5, 6, 7}
    assert set(np.unique(sample.fracture)) == {0, 1, 2, 3, 4, 5, 6, 7}
    assert sample.fractured == (True,) * 7


def test_masks_without_labels_teach_the_locator(tmp_path: Path) -> None:
    names = [neck(1).name, neck(2).name]
    write_nifti_folder(tmp_path / "data", [neck(1), neck(2)], masked=names)
    write_rows(tmp_path / "data" / "labels.csv", [{"study": name} for name in names])
    done = prepared(tmp_path / "data", tmp_path / "out")[names[0]]
    assert done.samples == ("locator", "refiner", "planar")
    assert len(read_locator_sample(tmp_path / "out" / "locator" / names[0]).centers) >= 5
    assert heads_taught(tmp_path / "out" / "planar") == {"levels", "visible", "boxes"}


def picture_set(folder: Path, count: int = 8) -> Path:
    for number in range(count):
        kind = "fractured" if number % 2 else "normal"
        write_picture(folder / kind / f"1.2.{number // 2}.4.5_{number}.png", picture(number))
    return folder


def test_pictures_become_planar_samples_and_no_network_is_asked(tmp_path: Path, predictor: KnowingPredictor) -> None:
    predictor.cases = {}
    done = prepared(picture_set(tmp_path / "data"), tmp_path / "out")
    assert len(done) == 4
    assert {(item.status, item.masks, item.samples) for item in done.values()} == {("ok", "none", ("planar",))}
    assert heads_taught(tmp_path / "out" / "planar") == {"slice"}
    note = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert (note["data"], note["stages"]) == ("pictures", list(KINDS))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_bad_picture_stops_no_other(tmp_path: Path, workers: str) -> None:
    folder = picture_set(tmp_path / "data")
    (folder / "normal" / "1.2.1.4.5_2.png").write_bytes(b"\x89PNG torn")
    command = ["prepare", str(folder), "--out", str(tmp_path / "out"), "--workers", workers, "--ratio", "75:25"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 8
    assert "3 studies prepared, 1 refused" in result.stdout
    assert "1.2.1.4.5_2.png" in result.stderr
    assert [len(part) for part in read_splits(tmp_path / "out").parts] == [1, 3]
    assert CliRunner().invoke(app, [*command[:-2], "--folds", "2"]).exit_code == 2


def test_only_what_a_recipe_learns_from_is_written_and_more_is_added_later(
    published: Path, tmp_path: Path, predictor: KnowingPredictor
) -> None:
    masked, plain = (next(s for s in STUDIES if s.mask is flag) for flag in (True, False))
    done = prepared(published, tmp_path, wanted=("locator",))
    assert (done[masked.uid].samples, done[masked.uid].status) == (("locator",), "ok")
    assert (done[plain.uid].samples, done[plain.uid].status) == ((), "unused")
    before = (tmp_path / "locator" / masked.uid / "meta.json").stat().st_mtime_ns
    assert not Preparation(open_labelled(published), tmp_path, BUNDLE, ("locator",)).missing()
    done = prepared(published, tmp_path, wanted=("classifier", "planar"))
    assert done[masked.uid].samples == ("locator", "classifier", "planar")
    assert done[plain.uid].samples == ("classifier", "planar")
    assert (tmp_path / "locator" / masked.uid / "meta.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "prepare.json").read_text())["stages"] == ["locator", "classifier", "planar"]
    shutil.rmtree(tmp_path / "planar" / plain.uid)
    again = Preparation(open_labelled(published), tmp_path, BUNDLE, ("locator", "planar"))
    assert again.missing() == [plain.uid]


def test_kinds_of_samples_follow_the_recipe() -> None:
    assert kinds_for(load_recipe("base")) == ("locator", "refiner", "classifier")
    assert kinds_for(load_recipe("base"), ["locator"]) == ("locator",)
    assert kinds_for(planar_recipe()) == ("planar",)


def planar_recipe(heads: tuple[str, ...] = ("levels", "slice")) -> Recipe:
    stage = {"network": {"kind": "planar", "heads": list(heads)}}
    return Recipe.model_validate(
        {"name": "planar", "locator": stage, "refiner": "none", "classifier": "none", "shared": True}
    )


def test_samples_of_other_data_never_mix(tmp_path: Path) -> None:
    prepared(picture_set(tmp_path / "data"), tmp_path / "out")
    write_phantoms(tmp_path / "phantoms", 2)
    with pytest.raises(UsageError, match="prepared from other data"):
        prepared(tmp_path / "phantoms", tmp_path / "out")


def test_samples_from_before_planar_ones_are_gone_on_with(published: Path, tmp_path: Path, predictor: object) -> None:
    prepared(published, tmp_path, wanted=("locator", "refiner", "classifier"))
    note = json.loads((tmp_path / "prepare.json").read_text())
    del note["stages"]
    (tmp_path / "prepare.json").write_text(json.dumps(note))
    for path in (tmp_path / "studies").glob("*.json"):
        record = json.loads(path.read_text())
        del record["asked"]
        path.write_text(json.dumps(record))
    assert not Preparation(open_labelled(published), tmp_path, BUNDLE, ("locator", "classifier")).missing()
    assert len(Preparation(open_labelled(published), tmp_path, BUNDLE).missing()) == 4


@pytest.mark.parametrize(
    ("fault", "code"),
    [(MemoryError(), "too-large"), (PermissionError(13, "no"), "study"), (ZeroDivisionError(), "error")],
)
def test_whatever_goes_wrong_in_one_study_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    folder = picture_set(tmp_path / "data", 4)
    monkeypatch.setattr("cspine.training.case_samples.planar_sample", fail)
    assert {item.code for item in prepared(folder, tmp_path / "out").values()} == {code}
    monkeypatch.undo()
    assert {item.status for item in prepared(folder, tmp_path / "out").values()} == {"ok"}


def test_a_full_disk_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = picture_set(tmp_path / "data")
    save, calls = np.savez_compressed, []

    def full(*arguments: object, **arrays: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(*arguments, **arrays)

    monkeypatch.setattr(np, "savez_compressed", full)
    command = ["prepare", str(folder), "--out", str(tmp_path / "out"), "--workers", "1", "--folds", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 5
    assert "No space left" in result.stderr
    assert len(list(csv.DictReader((tmp_path / "out" / "prepared.csv").open()))) == 2
    assert not list((tmp_path / "out" / "planar").glob(".*"))
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(calls) == 5


def trained(*arguments: str, seen: list[str], monkeypatch: pytest.MonkeyPatch) -> Result:
    def fit(recipe: object, name: str, samples: Path, run: Path, options: object) -> Path:
        seen.append(name)
        return run / name / "last.ckpt"

    monkeypatch.setattr("cspine.training.fit.fit_stage", fit)
    monkeypatch.setattr("cspine.studies.assemble.cores", lambda: 1)
    return CliRunner().invoke(app, ["train", *arguments])


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    path = tmp_path / "planar.toml"
    path.write_text(
        'name = "planar"\nrefiner = "none"\nclassifier = "none"\nshared = true\n'
        '[locator.network]\nkind = "planar"\nheads = ["levels", "slice"]\n'
    )
    return str(path)


def test_training_on_pictures_without_masks_says_what_is_not_learnt(
    tmp_path: Path, recipe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, seen = picture_set(tmp_path / "data"), []
    arguments = (recipe_file, "--data", str(data), "--out", str(tmp_path / "run"), "--folds", "2")
    result = trained(*arguments, seen=seen, monkeypatch=monkeypatch)
    assert result.exit_code == 0, result.output
    assert seen == ["locator"]
    assert "nothing of levels: these heads of the locator learn nothing" in result.stderr
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir() if path.is_dir()) == [
        "planar",
        "studies",
    ]
    only = Path(recipe_file).read_text().replace('["levels", "slice"]', '["levels", "fracture"]')
    Path(recipe_file).write_text(only)
    result = trained(*arguments, seen=seen, monkeypatch=monkeypatch)
    assert result.exit_code == 2
    assert "nothing of what the locator answers (fracture, levels)" in result.stderr
    assert "--stage" in result.stderr


def test_training_a_locator_without_masks_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = picture_set(tmp_path / "data", 12), []
    result = trained("base", "--data", str(data), "--out", str(tmp_path / "run"), seen=seen, monkeypatch=monkeypatch)
    assert (result.exit_code, seen) == (2, [])
    assert "no samples for the locator: no study is outlined" in result.stderr
    assert "--stage" in result.stderr


def test_training_refuses_what_makes_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = picture_set(tmp_path / "data"), []
    out = ("--out", str(tmp_path / "run"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    for arguments, says in (
        (("base", "--stage", "detector", *out), "has no detector"),
        (("base", "--data", str(data), "--folds", "2", "--ratio", "0.8", *out), "--folds or --ratio, not both"),
        (("base", "--data", str(data), "--ratio", "8", *out), "expected a ratio like"),
        (("base", "--data", str(tmp_path / "other"), *out), "layouts that are read"),
        (("base", "--phantoms", "2", "--folds", "3", *out), "the samples are not split"),
    ):
        result = trained(*arguments, seen=seen, monkeypatch=monkeypatch)
        assert result.exit_code == 2, arguments
        assert says.lower() in result.stderr.lower()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    result = trained("base", "--data", str(data), *out, seen=seen, monkeypatch=monkeypatch)
    assert "Run cspine prepare first" in result.stderr
    assert seen == []


def test_only_the_first_of_several_processes_prepares_and_answers(
    tmp_path: Path, recipe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (recipe_file, "--data", str(picture_set(tmp_path / "data")), "--out", str(tmp_path / "run"))
    first = trained(*arguments, "--ratio", "0.5", seen=[], monkeypatch=monkeypatch)
    assert first.stdout.strip() == str(tmp_path / "run" / "locator" / "last.ckpt")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("cspine.cli.prepare.run", None)
    other = trained(*arguments, seen=[], monkeypatch=monkeypatch)
    assert (other.exit_code, other.stdout) == (0, "")


@pytest.mark.shared_data
def test_real_tables_and_slices_are_prepared_as_far_as_they_can(shared_data: Path, tmp_path: Path) -> None:
    """A part of the published folder: the official tables, and studies of a few slices, of which none is whole."""
    published = tmp_path / "rsna"
    published.mkdir()
    source = shared_data / "rsna2022"
    for name in ("train.csv", "train_bounding_boxes.csv"):
        shutil.copy(source / name, published / name)
    (published / "train_images").symlink_to(source / "dicom")
    data = open_labelled(published)
    assert data.kind == "rsna2022"
    # Two of the six studies are of the challenge's test set, which has no labels.
    assert len(data.studies) == 4
    assert sum("images without a row" in str(fault) for fault in data.faults.values()) == 2
    assert len(data.faults) == 2019 - 4 + 2
    settled = Preparation(data, tmp_path / "out", BUNDLE, ("planar",)).begin(ratio=0.7)
    assert sorted(name for part in settled.parts for name in part) == list(data.studies)
