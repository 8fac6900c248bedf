"""Samples, draws and fit: small networks on fake cases learn, stop, go on, and say what is wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cspine.anatomy import Level
from cspine.errors import RecipeError, StudyError
from cspine.training.averaging import Average
from cspine.training.data import HeldBack, Pool, type_names
from cspine.training.fit import CHECKPOINT, FitOptions, build_module, fit_stage, load_network
from cspine.training.locator_windows import AIR, coarsened, draw_heat, draw_window, porous, thick_slices
from cspine.training.losses import StackTargets, classifier_loss, heat_loss, locator_loss, soft_dice
from cspine.training.recipe import (
    ClassifierAugment,
    ClassifierLoss,
    ClassifierStage,
    LocatorLoss,
    LocatorStage,
    Recipe,
    Schedule,
    StackNetwork,
    UNet3dNetwork,
)
from cspine.training.samples import (
    classifier_sample,
    locator_sample,
    read_locator_sample,
    read_meta,
    sample_paths,
    write_sample,
)
from cspine.training.stacks import draw_stack
from training_factory import block_case

SCHEDULE = Schedule(learning_rate=5e-3, steps=8, warmup_steps=1, ema_decay=0.5)
RECIPE = Recipe(
    name="tiny",
    locator=LocatorStage(
        network=UNet3dNetwork(widths=(8, 8)), window=(32, 32, 32), schedule=SCHEDULE
    ),
    classifier=ClassifierStage(
        network=StackNetwork(widths=(4, 4, 8, 8), blocks=(1, 1, 1), neck=8, hidden=8),
        schedule=SCHEDULE.model_copy(update={"batch_size": 2}),
    ),
)  # fmt: skip
OPTIONS = FitOptions(workers=0, progress=False, accelerator="cpu", validate_every=4, validate_limit=2, patience=0)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases, one of them held back, as samples of both stages."""
    folder = tmp_path_factory.mktemp("samples")
    for number in (0, 1, 2):
        case = block_case(number)
        write_sample(locator_sample(case, {}), folder / "locator", f"phantom-{number:06d}")
        write_sample(classifier_sample(case), folder / "classifier", f"phantom-{number:06d}")
    return folder


def test_samples_come_back_as_written(samples: Path) -> None:
    case = block_case(1)
    whole = locator_sample(case, {8: (0.0, 0.0, -140.0)})
    again = read_locator_sample(samples / "locator" / "phantom-000001")
    assert np.array_equal(whole.hu, again.hu)
    assert np.array_equal(whole.labels, again.labels)
    assert np.array_equal(whole.centers[:-1], again.centers)
    assert again.hu.shape == again.labels.shape


def test_centres_lie_in_their_vertebra(samples: Path) -> None:
    sample = read_locator_sample(samples / "locator" / "phantom-000001")
    for label, x, y, z in sample.centers:
        assert sample.labels[round(z), round(y), round(x)] == label


def test_the_split_is_by_number_and_unfinished_samples_do_not_count(samples: Path) -> None:
    (samples / "locator" / ".phantom-000016.half").mkdir(exist_ok=True)
    assert [path.name for path in sample_paths(samples / "locator", held_back=True)] == ["phantom-000000"]
    names = [path.name for path in sample_paths(samples / "locator", held_back=False)]
    assert names == ["phantom-000001", "phantom-000002"]


def test_a_foreign_folder_is_no_sample(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"format": 99}')
    with pytest.raises(StudyError, match="format"):
        read_meta(tmp_path)


def test_fracture_points_know_their_vertebra() -> None:
    sample = classifier_sample(block_case(5, fractured=True))
    assert {int(label) for label in np.unique(sample.points[:, 0])} == {int(level) for level in Level}
    for vertebra in sample.vertebrae:
        own = sample.points[sample.points[:, 0] == vertebra.label, 1:]
        assert np.abs(vertebra.frame.to_local(own)[:, 2]).max() < 14


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


def test_batches_of_short_stacks_hold_more(samples: Path) -> None:
    stage = RECIPE.classifier.model_copy(update={"windows": ((8, 128, 160),)})
    pool = Pool(samples / "classifier", stage, held_back=False)
    pool.refresh()
    assert pool.draw_batch(np.random.default_rng(0))["stack"].shape == (6, 8, 4, 128, 160)


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


def test_perfect_answers_have_little_loss() -> None:
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    labels[:, 2:6, 2:6, 2:6] = 3
    heat = torch.zeros(1, 8, 8, 8)
    heat[0, 4, 4, 4] = 1
    logits = torch.nn.functional.one_hot(labels.long(), 10).permute(0, 4, 1, 2, 3) * 20.0 - 10
    output = torch.cat([logits, (heat * 40 - 20).unsqueeze(1)], 1)
    good = locator_loss(output, labels, heat, torch.ones_like(heat, dtype=torch.bool), LocatorLoss())
    bad = locator_loss(-output, labels, heat, torch.ones_like(heat, dtype=torch.bool), LocatorLoss())
    assert good["total"] < 0.01 < 1 < bad["total"]


def test_unknown_heat_does_not_count() -> None:
    target = torch.zeros(1, 4, 4, 4)
    wrong = torch.full_like(target, 5.0)
    assert heat_loss(wrong, target, torch.zeros_like(target, dtype=torch.bool)) == 0
    assert heat_loss(wrong, target, torch.ones_like(target, dtype=torch.bool)) > 0


def test_soft_dice_of_equal_and_disjoint_masks() -> None:
    a = torch.tensor([[1.0, 1.0, 0.0, 0.0] * 50])
    assert soft_dice(a, a).item() == pytest.approx(1)
    assert soft_dice(a, 1 - a).item() < 0.01


def test_classifier_loss_falls_with_the_right_answer() -> None:
    truth = StackTargets(
        vertebra=torch.tensor([1.0, 0.0]),
        slices=torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        types=torch.eye(2, 13),
        evidence=torch.zeros(2, 2, 4, 4),
        types_known=torch.ones(2),
    )
    truth.evidence[0, 0, 1, 1] = 1
    right = {
        "vertebra": truth.vertebra * 8 - 4,
        "slices": truth.slices * 8 - 4,
        "types": truth.types * 8 - 4,
        "evidence": truth.evidence * 8 - 4,
    }
    wrong = {name: -value for name, value in right.items()}
    assert classifier_loss(right, truth, ClassifierLoss())["total"] < 0.3
    assert classifier_loss(wrong, truth, ClassifierLoss())["total"] > 3


def test_the_average_follows_and_steps_aside() -> None:
    network = torch.nn.Linear(2, 1)
    average = Average(network, 0.9)
    own = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    average.update(network)
    with average.applied(network):
        inside = network.weight.detach().clone()
    assert (own < inside).all()
    assert (inside < network.weight).all()


@pytest.mark.parametrize("stage", ["locator", "classifier"])
def test_a_fit_learns_resumes_and_refuses_another_network(samples: Path, tmp_path: Path, stage: str) -> None:
    name = "locator" if stage == "locator" else "classifier"
    checkpoint = fit_stage(RECIPE, name, samples, tmp_path, OPTIONS)
    network, config, facts = load_network(checkpoint)
    assert facts["steps"] == 8
    assert config == getattr(RECIPE, stage)
    more = _longer(RECIPE, stage, 20)
    first = _loss(network, more, samples, name)
    fit_stage(more, name, samples, tmp_path, OPTIONS)
    network, _, facts = load_network(tmp_path / stage / CHECKPOINT)
    assert facts["steps"] == 20
    assert _loss(network, more, samples, name) < first
    other = _wider(RECIPE, stage)
    with pytest.raises(RecipeError, match="another network"):
        fit_stage(other, name, samples, tmp_path, OPTIONS)


def test_a_run_starts_from_what_fits_of_another(samples: Path, tmp_path: Path) -> None:
    first = fit_stage(_longer(RECIPE, "classifier", 2), "classifier", samples, tmp_path / "first", OPTIONS)
    wider = _wider(RECIPE, "classifier")
    options = replace(OPTIONS, start=first, validate_limit=1)
    stage = wider.classifier.model_copy(
        update={"schedule": SCHEDULE.model_copy(update={"steps": 1, "learning_rate": 1e-9, "warmup_steps": 1})}
    )
    wider = wider.model_copy(update={"classifier": stage})
    second = fit_stage(wider, "classifier", samples, tmp_path / "second", options)
    old, new = load_network(first)[0].state_dict(), load_network(second)[0].state_dict()
    same = [name for name in new if name in old and new[name].shape == old[name].shape and "norm" not in name]
    kept = [name for name in same if torch.allclose(new[name].float(), old[name].float(), atol=1e-6)]
    assert {name for name in same if name.endswith("weight") and new[name].ndim > 1} <= set(kept)
    assert any(new[name].shape != old[name].shape for name in new if name in old)


def test_a_run_does_not_start_from_another_kind_of_file(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.ckpt").write_text("none")
    with pytest.raises(RecipeError, match="expected a checkpoint to start from"):
        fit_stage(RECIPE, "locator", samples, tmp_path / "run", replace(OPTIONS, start=tmp_path / "notes.ckpt"))
    locator = fit_stage(_longer(RECIPE, "locator", 1), "locator", samples, tmp_path / "locator", OPTIONS)
    with pytest.raises(RecipeError, match="no weight of that checkpoint fits"):
        fit_stage(RECIPE, "classifier", samples, tmp_path / "run", replace(OPTIONS, start=locator))


def test_a_step_with_a_spoiled_gradient_is_left_out() -> None:
    module = build_module(RECIPE.classifier)
    for parameter in module.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    first = next(module.network.parameters())
    module.on_before_optimizer_step(module.configure_optimizers())
    assert first.grad is not None
    assert (first.grad == 1).all()
    first.grad.view(-1)[0] = float("nan")
    module.on_before_optimizer_step(module.configure_optimizers())
    assert all((p.grad == 0).all() for p in module.network.parameters() if p.grad is not None)


def test_thick_slices_average_and_keep_the_place() -> None:
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None, None], (12, 2, 2))
    thick = thick_slices(ramp, 3)
    # A ramp stays a ramp between the middles of the first and last thick slice.
    assert np.allclose(thick[1:-1], ramp[1:-1])
    spike = np.zeros((12, 1, 1), np.float32)
    spike[4] = 3.0
    assert thick_slices(spike, 3).max() == pytest.approx(1.0)
    assert int(thick_slices(spike, 3).argmax()) == 4


def test_no_samples_is_said(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no training samples"):
        fit_stage(RECIPE, "locator", tmp_path / "nothing", tmp_path / "run", replace(OPTIONS, patience=0.0))


def _longer(recipe: Recipe, stage: str, steps: int) -> Recipe:
    old = getattr(recipe, stage)
    schedule = old.schedule.model_copy(update={"steps": steps})
    return recipe.model_copy(update={stage: old.model_copy(update={"schedule": schedule})})


def _wider(recipe: Recipe, stage: str) -> Recipe:
    old = getattr(recipe, stage)
    change = {"widths": (16, 8)} if stage == "locator" else {"neck": 16}
    return recipe.model_copy(
        update={stage: old.model_copy(update={"network": old.network.model_copy(update=change)})}
    )  # fmt: skip


def _loss(network: torch.nn.Module, recipe: Recipe, samples: Path, name: str) -> float:
    """Of the held-back examples, without augmentation."""
    stage = recipe.locator if name == "locator" else recipe.classifier
    total = 0.0
    with torch.no_grad():
        held = HeldBack(samples / name, stage, 4)
        for index in range(len(held)):
            batch = {key: value.unsqueeze(0) for key, value in held[index].items()}
            if isinstance(stage, LocatorStage):
                answer = network(batch["image"])
                total += float(
                    locator_loss(answer, batch["labels"], batch["heat"], batch["known"], stage.loss)["total"]
                )
            else:
                names = ("vertebra", "slices", "types", "evidence", "types_known")
                truth = StackTargets(**{key: batch[key] for key in names})
                total += float(classifier_loss(network(batch["stack"]), truth, stage.loss)["total"])
    return total


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
