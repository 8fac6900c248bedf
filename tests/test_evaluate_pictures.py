"""``cspine evaluate`` on labelled pictures: figures of images, intervals by patient, and what could not be scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cspine.cases import Case
from cspine.cli.app import app
from cspine.errors import StudyError, UsageError
from cspine.evaluation.picture_scores import PictureRecord, judge_folder, picture_figures, slices_of
from cspine.evaluation.scores import PictureFigures
from cspine.inference.bundle import Bundle, StageName
from cspine.inference.pictures import PicturePredictor
from cspine.inference.planar import PlanarView
from cspine.studies.labelled import open_labelled
from cspine.studies.picture_folder import PictureFolder
from cspine.training.export import export_bundle
from cspine.training.fit import FitOptions, fit_stage
from cspine.training.planar_samples import planar_sample, write_planar
from cspine.training.recipe import PlanarNetwork, PlanarStage, Recipe, Schedule
from cspine.volume import Volume
from labelled_factory import write_picture, write_rows
from picture_oracle import PictureRuntime, picture_bundle, spotted
from planar_oracle import use_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve pictures of four patients: a bright spot means fractured, but for one that is labelled wrongly."""
    rows = []
    for number in range(12):
        bright = number % 3 == 0
        pixels = (spotted(bright=bright).pixels * 255).astype(np.uint8)
        write_picture(tmp_path / "data" / f"{number}.png", pixels)
        label = 1 - int(bright) if number == 11 else int(bright)
        level = "C4" if number < 6 else ""
        rows.append({"file": f"{number}.png", "label": label, "study": f"s{number // 3}", "level": level})
    write_rows(tmp_path / "data" / "labels.csv", rows)
    return tmp_path / "data"


def evaluate(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.inference.pictures.make_runtime", lambda *_: PictureRuntime())
    monkeypatch.setattr("cspine.evaluation.network_size.bundle_sizes", lambda _: ())


@pytest.mark.usefixtures("oracle")
def test_figures_of_labelled_pictures(tmp_path: Path, data: Path) -> None:
    picture_bundle(tmp_path / "bundle", {"classifier": use_of("slice", "visible")})
    result = evaluate(tmp_path / "bundle", "--data", data, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "12 pictures scored" in result.stdout
    found = PictureFigures.model_validate_json((tmp_path / "out" / "evaluation.json").read_bytes())
    fracture = found.fracture
    assert (found.pictures, found.patients, fracture.count, fracture.positive) == (12, 4, 12, 5)
    assert fracture.confusion is not None
    assert (fracture.confusion.true_positive, fracture.confusion.false_negative) == (4, 1)
    assert fracture.accuracy == pytest.approx(11 / 12, abs=1e-4)
    assert fracture.sensitivity is not None and fracture.sensitivity.value == pytest.approx(0.8)
    assert fracture.specificity is not None and fracture.specificity.value == 1
    assert fracture.log_loss is not None and fracture.reliability and fracture.roc and fracture.precision_recall
    assert found.levels is not None
    assert (found.levels.count, found.levels.exact_match.value if found.levels.exact_match else 0) == (6, 1)
    assert found.levels.coverage_error == 1
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "Research use only" in page and "AUC a picture" in page and "macro-F1 of 6 axial images" in page


@pytest.mark.usefixtures("oracle")
def test_a_bundle_that_names_levels_is_scored_on_those(tmp_path: Path, data: Path) -> None:
    picture_bundle(tmp_path / "bundle", {"locator": use_of("visible")})
    assert evaluate(tmp_path / "bundle", "--data", data, "-o", tmp_path / "out").exit_code == 0
    found = PictureFigures.model_validate_json((tmp_path / "out" / "evaluation.json").read_bytes())
    assert not found.judges and found.fracture.judged == 0
    assert found.levels is not None and found.levels.macro_f1 is not None
    assert "does not judge them" in (tmp_path / "out" / "evaluation.html").read_text()


@pytest.mark.usefixtures("oracle")
def test_a_picture_that_cannot_be_opened_is_named(tmp_path: Path, data: Path) -> None:
    picture_bundle(tmp_path / "bundle", {"classifier": use_of("slice")})
    (data / "0.png").write_bytes((data / "0.png").read_bytes()[:50])
    result = evaluate(tmp_path / "bundle", "--data", data, "-o", tmp_path / "out")
    assert result.exit_code == 8
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (figures["pictures"], list(figures["not_scored"])) == (9, ["s0"])


def test_a_bundle_that_judges_volumes_alone_is_refused(tmp_path: Path, data: Path) -> None:
    result = evaluate("--data", data, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "cannot judge single pictures" in result.stderr


def test_intervals_keep_pictures_of_a_patient_together() -> None:
    truth = [True] * 20 + [False] * 20
    scores = np.concatenate([np.full(10, 0.9), np.full(10, 0.4), np.full(10, 0.6), np.full(10, 0.1)])

    def width(patients: list[str]) -> float:
        rows = [PictureRecord(p, t, None, s, None) for p, t, s in zip(patients, truth, scores, strict=True)]
        auc = picture_figures(rows, method="m", data="d", bundle="").fracture.auc
        assert auc is not None and auc.value == pytest.approx(0.75)
        return (auc.high or 0) - (auc.low or 0)

    assert width(sorted("abcd" * 10)) > 2 * width([str(k) for k in range(40)])


def test_pictures_of_unknown_truth_do_not_count() -> None:
    rows = [PictureRecord("a", None, None, 0.9, None), PictureRecord("b", True, (4,), 0.9, None)]
    figures = picture_figures(rows, method="m", data="d", bundle="")
    assert (figures.pictures, figures.fracture.count, figures.levels) == (2, 1, None)


def test_a_scan_is_not_a_set_of_pictures() -> None:
    with pytest.raises(StudyError, match="got a scan"):
        slices_of(Case("scan", Volume(np.zeros((2, 2, 2), np.int16), np.eye(4))))


# ---------------------------------------------------------------- from training to evaluation

STAGE = PlanarStage(
    network=PlanarNetwork(body="own", heads=("slice",), fully_connected=(8,), pretrained=False),
    view=PlanarView(size=32),
    schedule=Schedule(batch_size=4, steps=2, warmup_steps=1, freeze_norm_at=1.0),
)


def trained(folder: Path, data: PictureFolder) -> Bundle:
    """A classifier of images, two steps old, as a bundle of its own."""
    for number, name in enumerate(data.studies):
        write_planar(planar_sample(data.case(name)), folder / "samples" / "planar", f"phantom-{number:06d}")
    options = FitOptions(workers=0, progress=False, accelerator="cpu", validate_every=2, validate_limit=4, patience=0)
    recipe = Recipe(name="tiny", classifier=STAGE)
    fit_stage(recipe, "classifier", folder / "samples", folder / "run", options)
    return export_bundle(folder / "run", folder / "bundle", samples=folder / "samples", half=False, only="classifier")


def test_a_classifier_trained_on_pictures_alone_judges_pictures(tmp_path: Path, data: Path) -> None:
    opened = open_labelled(data)
    assert isinstance(opened, PictureFolder)
    bundle = trained(tmp_path, opened)
    assert set(bundle.manifest.stages) == {"classifier"}
    assert "single axial pictures" in bundle.files["card.md"].decode()
    assert "locator" not in bundle.manifest.trained_on
    result = evaluate(tmp_path / "bundle", "--data", data, "-o", tmp_path / "out", "--runtime", "onnxruntime")
    assert result.exit_code == 0, result.output
    figures = PictureFigures.model_validate_json((tmp_path / "out" / "evaluation.json").read_bytes())
    assert figures.fracture.judged == 12 and figures.networks[0].parameters > 0


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [*map(str, arguments)])


RECIPE = """
name = "tiny"
[classifier.network]
kind = "planar"
body = "own"
heads = ["slice"]
fully_connected = [8]
pretrained = false
[classifier.view]
size = 32
[classifier.schedule]
batch_size = 4
steps = 2
warmup_steps = 1
"""


def test_commands_from_labelled_pictures_to_answers_and_figures(tmp_path: Path, data: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    done = run(
        "train", tmp_path / "tiny.toml", "--stage", "classifier", "--data", data, "--ratio", "50:50", "--workers", 0,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    whole = run("export", tmp_path / "run", "--out", tmp_path / "bundle")
    assert whole.exit_code == 2 and "no trained locator" in whole.stderr and "--only" in whole.stderr
    done = run("export", tmp_path / "run", "--only", "classifier", "--out", tmp_path / "bundle")
    assert done.exit_code == 0, done.output
    assert "single pictures" in done.stderr
    done = run("predict", data / "0.png", data / "1.png", "--bundle", tmp_path / "bundle", "--out", tmp_path / "said")
    assert done.exit_code == 0, done.output
    held = ("--samples", tmp_path / "run" / "samples", "--fold", 0)
    done = run("evaluate", tmp_path / "bundle", "--data", data, *held, "--out", tmp_path / "figures")
    assert done.exit_code == 0, done.output
    figures = PictureFigures.model_validate_json((tmp_path / "figures" / "evaluation.json").read_bytes())
    assert figures.patients == 2 and "fold 0 held back" in figures.data
    checked = run("bundle", "verify", tmp_path / "bundle")
    assert checked.exit_code == 4 and "judges single pictures" in checked.stderr
    assert run("bundle", "info", tmp_path / "bundle").exit_code == 0


@pytest.mark.parametrize(
    ("recipe", "only", "said"),
    [
        (Recipe(name="a", classifier=None), "classifier", "has no classifier"),
        (Recipe(name="a"), "classifier", "does not see whole axial images"),
        (
            Recipe(name="a", classifier=STAGE.model_copy(update={"view": PlanarView(planes=("sagittal",))})),
            "classifier",
            "does not see whole axial images",
        ),
    ],
)
def test_what_cannot_judge_pictures_alone_is_not_packed_alone(
    tmp_path: Path, recipe: Recipe, only: StageName, said: str
) -> None:
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    with pytest.raises(UsageError, match=said):
        export_bundle(tmp_path, tmp_path / "bundle", only=only)


@pytest.mark.shared_data
def test_real_slices_are_opened_as_labelled_pictures(tmp_path: Path, data: Path, shared_data: Path) -> None:
    real = open_labelled(shared_data / "rsna2022" / "slices")
    own = open_labelled(data)
    assert isinstance(real, PictureFolder) and isinstance(own, PictureFolder)
    assert not real.faults
    assert sum(len(group) for group in real.pictures.values()) == 60
    assert sum(item.fractured is True for group in real.pictures.values() for item in group) == 27
    broken = [name for name, flags in real.labels().items() if flags[-1]]
    whole = [name for name, flags in real.labels().items() if not flags[-1]]
    assert (len(broken), len(whole)) == (4, 8)
    predictor = PicturePredictor(trained(tmp_path, own), "onnxruntime", threads=1)
    records, _ = judge_folder(real, [broken[0], *whole[:2]], predictor, faults={})
    assert {record.fractured for record in records} == {True, False}
    # An untrained network says something of each; nothing is claimed of what.
    assert all(record.fracture is not None and 0 < record.fracture < 1 for record in records)
    assert len({record.patient for record in records}) == 3
