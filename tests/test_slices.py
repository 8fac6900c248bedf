"""Pictures of single slices: what they show, that they fit the network, and how real ones are scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cspine.errors import RecipeError, StudyError
from cspine.studies.images import open_image
from cspine.training import slice_scores
from cspine.training.fit import FitOptions, fit_stage, load_network
from cspine.training.recipe import Recipe, Schedule, SliceStage, StackNetwork, load_recipe
from cspine.training.samples import ClassifierSample, classifier_sample, write_sample
from cspine.training.slices import draw_picture, picture_loaders, picture_tensor
from training_factory import block_case

SMALL = SliceStage(
    network=StackNetwork(encoder="own", widths=(4, 8, 8, 16), blocks=(1, 1, 1), neck=8, hidden=8),
    schedule=Schedule(batch_size=2, steps=2, warmup_steps=1),
    size=64,
    pixel_mm=(1.0, 2.0),
)


@pytest.fixture(scope="module")
def broken() -> ClassifierSample:
    return classifier_sample(block_case(1, fractured=True))


@pytest.fixture(scope="module")
def intact() -> ClassifierSample:
    return classifier_sample(block_case(2, fractured=False))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, broken: ClassifierSample, intact: ClassifierSample) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for number in (0, 1, 2):
        write_sample(broken if number < 2 else intact, folder / "classifier", f"phantom-{number:06d}")
    # Anything that is not a phantom is left alone.
    write_sample(broken, folder / "classifier", "planted-000003")
    return folder


def test_a_broken_picture_shows_its_fracture_and_an_intact_one_none(
    broken: ClassifierSample, intact: ClassifierSample
) -> None:
    rng = np.random.default_rng(0)
    shown = [draw_picture(broken, SMALL, rng, broken=True) for _ in range(8)]
    assert all(picture is not None and picture.evidence.any() for picture in shown)
    whole = [draw_picture(intact, SMALL, rng, broken=False) for _ in range(8)]
    assert all(picture is not None and not picture.evidence.any() for picture in whole)
    assert draw_picture(intact, SMALL, rng, broken=True) is None


def test_the_evidence_lies_where_the_gap_is(broken: ClassifierSample) -> None:
    plain = SMALL.model_copy(
        update={
            "pixel_mm": (1.0, 1.0),
            "window_level": (300.0, 300.0),
            "window_width": (1600.0, 1600.0),
            "gamma": (1.0, 1.0),
            "noise_hu": 0.0,
            "blur_probability": 0.0,
        }
    )
    rng = np.random.default_rng(3)
    dark = []
    for _ in range(12):
        picture = draw_picture(broken, plain, rng, broken=True)
        assert picture is not None
        cells = picture.image.reshape(16, 4, 16, 4)
        # A cell of the gap holds something darker than bone; bone is brighter than -0.2 in this window.
        dark.append(cells.min((1, 3))[picture.evidence > 0].mean())
    assert np.mean(dark) < -0.2


def test_pictures_have_eight_bits_and_the_network_takes_them(broken: ClassifierSample) -> None:
    picture = draw_picture(broken, SMALL, np.random.default_rng(0), broken=True)
    assert picture is not None
    steps = (picture.image + 1) * 127.5
    assert np.allclose(steps, np.round(steps), atol=1e-3)
    assert picture.image.min() >= -1 and picture.image.max() <= 1
    example = picture.example
    assert example["stack"].shape == (1, 4, 64, 64)
    assert float(example["vertebra"]) == 1.0


def test_the_same_seed_draws_the_same_pictures(samples: Path) -> None:
    one, two = (
        next(iter(picture_loaders(samples / "classifier", SMALL, seed=4, workers=0, limit=2)[0])) for _ in range(2)
    )
    assert torch.equal(one["stack"], two["stack"])


def test_held_back_pictures_are_of_phantoms_that_nobody_trains_on(samples: Path) -> None:
    _, held = picture_loaders(samples / "classifier", SMALL, seed=0, workers=0, limit=6)
    assert 3 <= len(held.dataset) <= 6  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="no classifier samples"):
        picture_loaders(samples / "nothing", SMALL, seed=0, workers=0, limit=2)


def test_a_slice_recipe_trains_and_scores_pictures(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(name="small", slice=SMALL)
    options = FitOptions(workers=0, progress=False, accelerator="cpu", validate_every=2, validate_limit=2)
    checkpoint = fit_stage(recipe, "slice", samples, tmp_path / "run", options)
    _, stage, facts = load_network(checkpoint)
    assert facts["steps"] == 2
    assert stage.network == SMALL.network
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = ["file,StudyInstanceUID,label"]
    for number, (study, label) in enumerate([("a", "fracture"), ("a", "fracture"), ("b", "negative_study")]):
        pixels = np.random.default_rng(number).integers(0, 255, (96, 80), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{study},{label}")
    (folder / "labels.csv").write_text("\n".join(rows))
    file = tmp_path / "small.toml"
    file.write_text('name = "small"\n[slice]\nsize = 64\n')
    assert slice_scores.main([str(checkpoint), str(folder), "--recipe", str(file)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["slices"], result["fractured"], result["studies"]) == (3, 2, 2)
    assert 0 <= result["auc"] <= 1


def test_the_interval_keeps_slices_of_a_study_together() -> None:
    truth = np.array([True] * 20 + [False] * 20)
    scores = np.concatenate([np.full(10, 2.0), np.full(10, 0.0), np.full(10, 1.0), np.full(10, -1.0)])
    by_study = slice_scores.area_by_study(truth, scores, sorted("abcd" * 10), rounds=200)
    by_slice = slice_scores.area_by_study(truth, scores, [str(k) for k in range(40)])
    assert by_study.value == pytest.approx(0.75)
    assert by_study.high - by_study.low > 2 * (by_slice.high - by_slice.low)


def test_only_the_middle_of_a_picture_is_looked_at(tmp_path: Path) -> None:
    pixels = np.zeros((100, 100), np.uint8)
    pixels[:15] = 255
    pixels[45:55, 45:55] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seen = picture_tensor(open_image(tmp_path / "a.png"), SMALL.model_copy(update={"crop": 0.6}))
    assert seen.shape == (1, 1, 4, 64, 64)
    assert float(seen[0, 0, 0].amax()) == pytest.approx(200 / 127.5 - 1, abs=0.02)
    assert float(seen[0, 0, 3].abs().amax()) == 0.0


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("name,label\nx,1\n")
    with pytest.raises(StudyError, match="StudyInstanceUID"):
        slice_scores.read_labels(tmp_path / "labels.csv")


def test_the_shipped_slice_recipe_is_of_phantoms_and_224_pixels() -> None:
    stage = load_recipe("slice").slice
    assert stage is not None
    assert stage.size == 224
    assert stage.network.encoder == "efficientnet-lite0"


def test_a_recipe_without_a_slice_stage_says_so(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no slice"):
        fit_stage(load_recipe("base"), "slice", samples, tmp_path)
