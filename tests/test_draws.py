"""Draws: random windows and stacks from samples show what they say, and pools mix them as the recipe says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cspine.training.data import Pool, type_names
from cspine.training.locator_windows import AIR, coarsened, draw_heat, draw_window, porous, thick_slices
from cspine.training.recipe import ClassifierAugment
from cspine.training.samples import classifier_sample, locator_sample, sample_paths, write_sample
from cspine.training.stacks import draw_stack
from tiny_recipe import RECIPE, write_samples
from training_factory import block_case


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples"))


def test_heat_peaks_at_its_point() -> None:
    heat = draw_heat(np.array([[4.0, 5.0, 6.0], [40.0, 0.0, 0.0]]), (12, 12, 12), 2.0)
    assert heat[4, 5, 6] == 1
    assert heat[4, 5, 8] == pytest.approx(np.exp(-0.5))
    assert heat[11, 11, 0] == 0


def test_a_plain_window_shows_the_scan_unchanged() -> None:
    sample = locator_sample(block_case(3), {})
    stage = RECIPE.locator.model_copy(update={"window": (96, 64, 64)})
    window = draw_window(sample, stage, np.random.default_rng(0), plain=True)
    assert window.image.shape == window.labels.shape == window.heat.shape == (96, 64, 64)
    assert set(np.unique(window.labels)) == set(range(8))
    bone = window.image[window.labels > 0]
    assert np.median(bone) == pytest.approx(0.55, abs=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_random_windows_keep_image_and_labels_together(seed: int) -> None:
    sample = locator_sample(block_case(3), {})
    window = draw_window(sample, RECIPE.locator, np.random.default_rng(seed))
    assert window.image.dtype == np.float32
    assert window.image.min() >= -1
    # Bone is never labelled where the augmentation shows air.
    assert not ((window.labels > 0) & (window.image <= -1)).any()


def test_thick_slices_average_and_keep_the_place() -> None:
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None, None], (12, 2, 2))
    thick = thick_slices(ramp, 3)
    # A ramp stays a ramp between the middles of the first and last thick slice.
    assert np.allclose(thick[1:-1], ramp[1:-1])
    spike = np.zeros((12, 1, 1), np.float32)
    spike[4] = 3.0
    assert thick_slices(spike, 3).max() == pytest.approx(1.0)
    assert int(thick_slices(spike, 3).argmax()) == 4


def test_porous_bone_keeps_its_shell() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[5:15, 5:15, 5:15] = 7
    image = np.where(mask > 0, np.float32(800), np.float32(40))
    bone = porous(image, mask, np.random.default_rng(1))
    inner = np.zeros(mask.shape, bool)
    inner[6:14, 6:14, 6:14] = True
    assert (bone[inner] < 600).all()
    np.testing.assert_array_equal(bone[~inner], image[~inner])


def test_a_coarse_window_is_smoother_and_keeps_the_air_outside() -> None:
    rng = np.random.default_rng(2)
    image = rng.normal(300, 200, (24, 32, 32)).astype(np.float32)
    image[:, :4] = AIR
    coarse = coarsened(image, RECIPE.locator.augment, rng)
    assert coarse.shape == image.shape
    assert (coarse[:, :4] == AIR).all()
    assert coarse[:, 8:].std() < 0.6 * image[:, 8:].std()


def test_known_thoracic_centres_count_where_others_are_unknown() -> None:
    sample = locator_sample(block_case(3), {})
    stage = RECIPE.locator.model_copy(update={"window": (96, 64, 64)})
    labels = np.where(sample.labels == 7, np.uint8(8), sample.labels)
    part = replace(sample, labels=labels, thoracic_known=False)
    window = draw_window(part, stage, np.random.default_rng(0), plain=True)
    thoracic = window.labels == 8
    assert window.known[~thoracic].all()
    assert 0 < window.known[thoracic].mean() < 1


def test_flipping_a_stack_flips_its_evidence() -> None:
    sample = classifier_sample(block_case(5, fractured=True))
    stage = RECIPE.classifier
    plain = draw_stack(sample, sample.vertebrae[3], stage, type_names(), np.random.default_rng(0), plain=True)
    quiet = dict.fromkeys(
        ("shift_mm", "rotate_degrees", "coarse_mask", "shift_hu", "noise_hu", "blur_probability", "drop_slices"), 0.0
    )
    augment = stage.augment.model_copy(
        update={**quiet, "cutout": 0.0, "flip": 1.0, "scale": (1.0, 1.0), "contrast": (1.0, 1.0)}
    )
    turned = draw_stack(
        sample, sample.vertebrae[3], stage.model_copy(update={"augment": augment}), type_names(),
        np.random.default_rng(0),
    )  # fmt: skip
    assert np.allclose(turned.stack[..., ::-1][:, 3], plain.stack[:, 3], atol=1e-5)
    assert np.array_equal(turned.evidence[..., ::-1], plain.evidence)
    assert plain.vertebra == 1
    assert plain.types[type_names().index("burst")] == 1


def test_short_stacks_mostly_show_the_evidence_and_are_labelled_by_what_they_show() -> None:
    sample = classifier_sample(block_case(5, fractured=True))
    rng = np.random.default_rng(0)
    short = (6, 128, 160)
    drawn = [
        draw_stack(sample, sample.vertebrae[4], RECIPE.classifier, type_names(), rng, window=short) for _ in range(12)
    ]
    assert {stack.stack.shape[0] for stack in drawn} == {6}
    assert all(bool(stack.vertebra) == bool(stack.evidence.any()) for stack in drawn)
    assert sum(stack.vertebra for stack in drawn) >= 9


def test_a_narrow_part_shows_its_piece_of_the_whole_stack() -> None:
    # Bright cubes at known places: the part has to show them where its evidence says that it lies.
    sample = classifier_sample(block_case(5, fractured=True))
    still = ClassifierAugment(
        flip=0, shift_mm=0, rotate_degrees=0, scale=(1, 1), coarse_mask=0, contrast=(1, 1), shift_hu=0, noise_hu=0,
        blur_probability=0, thick_slices=0, drop_slices=0, cutout=0,
    )  # fmt: skip
    stage = RECIPE.classifier.model_copy(update={"augment": still})
    vertebra, names = sample.vertebrae[4], type_names()
    whole = draw_stack(sample, vertebra, stage, names, np.random.default_rng(0))
    for seed in range(4):
        part = draw_stack(sample, vertebra, stage, names, np.random.default_rng(seed), window=(8, 64, 64))
        assert part.stack.shape == (8, 4, 64, 64)
        places = [
            (z, y, x)
            for z in range(17) for y in range(17) for x in range(25)
            if np.abs(whole.stack[z : z + 8, :, 4 * y : 4 * y + 64, 4 * x : 4 * x + 64] - part.stack).max() < 0.02
        ]  # fmt: skip
        assert len(places) == 1
        z, y, x = places[0]
        assert np.array_equal(whole.evidence[z : z + 8, y : y + 16, x : x + 16], part.evidence)
        # Where in the vertebra a type's evidence lies cannot be told from a part.
        assert part.types_known == 0


def test_an_intact_vertebra_has_no_evidence() -> None:
    sample = classifier_sample(block_case(5, fractured=False))
    stack = draw_stack(sample, sample.vertebrae[0], RECIPE.classifier, type_names(), np.random.default_rng(0))
    assert stack.vertebra == 0
    assert not stack.evidence.any()
    assert not stack.slices.any()


def test_batches_of_short_stacks_hold_more(samples: Path) -> None:
    stage = RECIPE.classifier.model_copy(update={"windows": ((8, 128, 160),)})
    pool = Pool(samples / "classifier", stage, held_back=False)
    pool.refresh()
    assert pool.draw_batch(np.random.default_rng(0))["stack"].shape == (6, 8, 4, 128, 160)


def test_a_pool_takes_in_what_is_added(tmp_path: Path) -> None:
    pool = Pool(tmp_path, RECIPE.classifier, held_back=False)
    pool.refresh()
    assert not pool.ready
    write_sample(classifier_sample(block_case(5, fractured=True)), tmp_path, "phantom-000001")
    pool.refresh()
    assert len(pool.positives) == 7
    assert not pool.ready
    write_sample(classifier_sample(block_case(6, fractured=False)), tmp_path, "phantom-000002")
    pool.refresh()
    assert pool.ready


def test_real_scans_are_drawn_as_often_as_the_recipe_says(samples: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locator"
    first = sample_paths(samples / "locator", held_back=False)[0]
    shutil.copytree(first, folder / "phantom-000001")
    shutil.copytree(first, folder / "scan-000001")
    stage = RECIPE.locator.model_copy(update={"scan_share": 1.0})
    pool = Pool(folder, stage, held_back=False)
    pool.refresh()
    assert ([path.name for path in pool.paths], [path.name for path in pool.scans]) == (
        ["phantom-000001"],
        ["scan-000001"],
    )
    shutil.rmtree(folder / "phantom-000001")
    assert pool.draw(np.random.default_rng(0))["image"].ndim == 4
