"""Losses and fits: small networks on fake cases learn, stop, go on, and say what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cspine.errors import RecipeError, StudyError
from cspine.training.averaging import Average
from cspine.training.data import HeldBack
from cspine.training.fit import CHECKPOINT, FitOptions, build_module, fit_stage, load_network
from cspine.training.losses import StackTargets, classifier_loss, heat_loss, locator_loss, soft_dice
from cspine.training.recipe import ClassifierLoss, LocatorLoss, LocatorStage, Recipe
from tiny_recipe import RECIPE, SCHEDULE, write_samples

OPTIONS = FitOptions(workers=0, progress=False, accelerator="cpu", validate_every=4, validate_limit=2, patience=0)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples"))


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
