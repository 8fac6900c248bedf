"""The refiner's training: masks as wrong as the locator's, windows that keep image and truth together, fit, export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from cspine.anatomy import OTHER_BONE
from cspine.errors import RecipeError
from cspine.evaluation.metrics import dice
from cspine.inference.refine import PARITY, soft_masks
from cspine.inference.runtime import refiner_distance
from cspine.training.export import export_stage
from cspine.training.fit import CHECKPOINT, FitOptions, fit_stage, load_network
from cspine.training.losses import mask_loss
from cspine.training.networks import build_network
from cspine.training.recipe import (
    LocatorStage,
    Recipe,
    RefinerAugment,
    RefinerLoss,
    RefinerStage,
    Schedule,
    UNet3dNetwork,
)
from cspine.training.refiner_windows import coarse_mask, draw_refiner_window
from cspine.training.samples import RefinerSample, read_refiner_sample, refiner_sample, write_sample
from training_factory import block_case

NETWORK = UNet3dNetwork(widths=(8, 8), classes=4, inputs=3, heat=False)
RECIPE = Recipe(
    name="tiny",
    refiner=RefinerStage(
        network=NETWORK,
        window=(32, 40, 32),
        schedule=Schedule(learning_rate=5e-3, steps=8, warmup_steps=1, ema_decay=0.5),
    ),
)
OPTIONS = FitOptions(workers=0, progress=False, accelerator="cpu", validate_every=4, validate_limit=2, patience=0)
# A locator that makes no mistake but those of its grid.
EXACT = RefinerAugment(
    flip=0, rotate_probability=0, contrast=(1, 1), shift_hu=0, noise_hu=0, blur_probability=0,
    warp_mm=(0, 0), ragged=(0, 0), holes=0, leaks=0, absent=0, thick_slices=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def sample() -> RefinerSample:
    return refiner_sample(block_case(3))


def test_samples_come_back_as_written(sample: RefinerSample, tmp_path: Path) -> None:
    again = read_refiner_sample(write_sample(sample, tmp_path, "phantom-000001"))
    assert np.array_equal(again.hu, sample.hu)
    assert np.array_equal(again.labels, sample.labels)
    assert again.hu.shape == again.labels.shape


def fine_parity(mask: NDArray[np.uint8], affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """A coarse mask as 0, odd, even on the fine grid."""
    odd, even = soft_masks(mask, affine, np.eye(4), shape)
    return np.where(np.maximum(odd, even) < 0.5, 0, np.where(odd > even, 1, 2))


def test_a_locator_without_mistakes_gives_the_truth(sample: RefinerSample) -> None:
    truth = np.array(sample.labels)
    mask, affine, absent = coarse_mask(truth, EXACT, np.random.default_rng(0))
    assert absent == []
    z, y, x = truth.shape
    found = fine_parity(mask, affine, (z, y, x))
    overlap = dice(PARITY[truth], found, (1, 2))
    assert min(overlap.values()) > 0.78


def test_mistakes_are_of_a_locators_size(sample: RefinerSample) -> None:
    truth = np.array(sample.labels)
    z, y, x = truth.shape
    values = []
    for seed in range(8):
        mask, affine, _ = coarse_mask(truth, RECIPE.refiner.augment, np.random.default_rng(seed))
        values += list(dice(PARITY[truth], fine_parity(mask, affine, (z, y, x)), (1, 2)).values())
    assert 0.6 < np.mean(values) < 0.88
    assert np.std(values) > 0.02


def test_a_vertebra_that_the_mask_lacks_is_other_bone(sample: RefinerSample) -> None:
    augment = EXACT.model_copy(update={"absent": 1.0})
    stage = RECIPE.refiner.model_copy(update={"augment": augment})
    window = draw_refiner_window(sample, stage, np.random.default_rng(1))
    assert set(np.unique(window.labels)) == {0, 3}
    assert not window.image[1:].any()
    mask, _, absent = coarse_mask(np.array(sample.labels), augment, np.random.default_rng(0))
    assert absent == list(range(1, 8))
    assert set(np.unique(mask)) == {0, OTHER_BONE}


@pytest.mark.parametrize("seed", range(6))
def test_windows_keep_image_masks_and_truth_together(sample: RefinerSample, seed: int) -> None:
    augment = EXACT.model_copy(update={"flip": 0.5, "rotate_probability": 0.5})
    stage = RECIPE.refiner.model_copy(update={"augment": augment})
    window = draw_refiner_window(sample, stage, np.random.default_rng(seed))
    assert window.image.shape == (3, 32, 40, 32)
    assert window.image.dtype == np.float32
    bone = (window.labels == 1) | (window.labels == 2)
    assert bone.any()
    assert np.median(window.image[0][bone]) > 0.4
    assert np.median(window.image[0][window.labels == 0]) < 0.1
    assert window.image[1][window.labels == 1].mean() > 0.6
    assert window.image[2][window.labels == 1].mean() < 0.2


def test_a_seed_draws_the_same_window_again(sample: RefinerSample) -> None:
    first, again, other = (draw_refiner_window(sample, RECIPE.refiner, np.random.default_rng(k)) for k in (4, 4, 5))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.image, other.image)


def test_a_plain_window_shows_the_image_as_scanned(sample: RefinerSample) -> None:
    window = draw_refiner_window(sample, RECIPE.refiner, np.random.default_rng(2), plain=True)
    inside = window.image[0] > -1
    hu = window.image[0][inside] * 1000
    np.testing.assert_allclose(hu, np.round(hu), atol=1e-3)


def test_perfect_answers_have_little_loss() -> None:
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    labels[:, 1:4, 2:6, 2:6] = 1
    labels[:, 4:7, 2:6, 2:6] = 2
    logits = torch.nn.functional.one_hot(labels.long(), 4).permute(0, 4, 1, 2, 3) * 20.0 - 10
    assert mask_loss(logits, labels, RefinerLoss())["total"] < 0.01
    assert mask_loss(-logits, labels, RefinerLoss())["total"] > 1


def test_a_refiner_has_three_inputs_and_no_heat() -> None:
    network = build_network(NETWORK)
    assert network(torch.zeros(1, 3, 16, 24, 32)).shape == (1, 4, 16, 24, 32)
    with pytest.raises(ValidationError, match="three inputs"):
        RefinerStage(network=UNet3dNetwork(widths=(8, 8), classes=4))
    with pytest.raises(ValidationError, match="heat"):
        LocatorStage(network=UNet3dNetwork(heat=False))


def test_a_fit_learns_resumes_and_becomes_a_stage_of_a_bundle(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    for number in (0, 1):
        write_sample(refiner_sample(block_case(number)), samples / "refiner", f"phantom-{number:06d}")
    checkpoint = fit_stage(RECIPE, "refiner", samples, tmp_path, OPTIONS)
    assert checkpoint == tmp_path / "refiner" / CHECKPOINT
    _, stage, facts = load_network(checkpoint)
    assert stage == RECIPE.refiner
    assert facts["steps"] == 8
    longer = RECIPE.refiner.model_copy(
        update={"schedule": RECIPE.refiner.schedule.model_copy(update={"steps": 12})}
    )  # fmt: skip
    fit_stage(RECIPE.model_copy(update={"refiner": longer}), "refiner", samples, tmp_path, OPTIONS)
    assert load_network(checkpoint)[2]["steps"] == 12
    other = longer.model_copy(update={"network": NETWORK.model_copy(update={"widths": (16, 8)})})
    with pytest.raises(RecipeError, match="another network"):
        fit_stage(RECIPE.model_copy(update={"refiner": other}), "refiner", samples, tmp_path, OPTIONS)
    exported = export_stage(tmp_path, "refiner", samples)
    assert set(exported.parity) == {"onnxruntime", "openvino"}
    assert exported.facts["steps"] == 12


def test_a_checkpoint_from_before_there_was_a_refiner_resumes(tmp_path: Path) -> None:
    """Settings that are newer than a checkpoint have the values that its network was built with."""
    from cspine.training.fit import _resume_point, build_module

    stage = LocatorStage(network=UNet3dNetwork(widths=(4, 4)), window=(16, 16, 16))
    saved: dict[str, object] = {"global_step": 7}
    build_module(stage).on_save_checkpoint(saved)
    content = json.loads(json.dumps(saved["stage"]))
    for name in ("inputs", "heat"):
        del content["network"][name]
    saved["stage"] = content
    path = tmp_path / CHECKPOINT
    torch.save(saved, path)
    assert _resume_point(path, stage) == 7
    assert load_network(path)[1] == stage


def test_the_distance_of_two_answers_counts_bone_alone() -> None:
    exact = np.zeros((1, 4, 1, 1, 10), np.float32)
    exact[0, 0, 0, 0, :6] = exact[0, 1, 0, 0, 6:] = 1
    other = exact.copy()
    other[0, :, 0, 0, 9] = (2, 0, 0, 0)
    assert refiner_distance({"refiner": exact}, {"refiner": exact}) == 0
    assert refiner_distance({"refiner": exact}, {"refiner": other}) == pytest.approx(0.25)
    assert np.isnan(refiner_distance({"refiner": exact}, {"refiner": np.full_like(exact, np.nan)}))


def test_no_patience_no_wait(tmp_path: Path) -> None:
    from cspine.errors import StudyError

    with pytest.raises(StudyError, match="no training samples"):
        fit_stage(RECIPE, "refiner", tmp_path / "nothing", tmp_path / "run", replace(OPTIONS, patience=0.0))
