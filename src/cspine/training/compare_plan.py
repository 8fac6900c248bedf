"""What a comparison does: its sizes, how long each network is trained, and which networks several recipes share."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cspine.inference.bundle import StageName
from cspine.training.recipe import ClassifierStage, PlanarStage, Recipe, SequenceNetwork, Stage

# Heads of planar networks that answer for each pixel.
PIXEL_HEADS = frozenset({"levels", "fracture"})


class Budget(BaseModel):
    """What a network sees in training: the same number of examples for all networks of a kind.

    Attributes:
        images: of a planar network, one at a time.
        stacks: of a classifier of vertebrae, one vertebra each.
        windows: of a 3D network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(default=20_000, ge=1)
    stacks: int = Field(default=8_000, ge=1)
    windows: int = Field(default=2_000, ge=1)


class Haste(BaseModel):
    """What is changed of a schedule that is far shorter than its recipe's. Detectors keep theirs.

    Attributes:
        batch: of stacks and of networks that answer for pixels, at most: the same examples make more steps.
        image_batch: of networks that answer for an image as a whole, at most; batch statistics of fewer are too noisy.
        learning_rate: with AdamW, at least: recipes mean theirs for pretrained weights and a long way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(ge=1)
    image_batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)


class Preset(BaseModel):
    """The sizes of a comparison that anybody can repeat.

    Attributes:
        phantoms: drawn for it when no data are given.
        phantom_preset: kind of scan.
        prevalence: factor on the fractures of RSNA 2022, so that a small set has enough of them.
        seed: of the phantoms.
        folds: parts that the cases are split into.
        fold: the part that is held back; None for all in turn.
        budget: what every network sees in training.
        haste: how schedules are changed for it; None to leave them.
        size: pixels that planar views are cut to at most.
        stack_size: rows that the images of stacks are cut to at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    phantoms: int = Field(ge=2)
    phantom_preset: str = "spine"
    prevalence: float = 3.0
    seed: int = 0
    folds: int = Field(ge=2)
    fold: int | None = None
    budget: Budget = Budget()
    haste: Haste | None = None
    size: int | None = Field(default=None, ge=32, multiple_of=32)
    stack_size: int | None = Field(default=None, ge=32, multiple_of=32)


# Sized for four hours on two cores: some forty networks of about ten minutes on one core each, and a fifth of the
# phantoms judged by each method.
PRESETS = {
    "seeds": Preset(
        phantoms=160,
        seed=4,
        folds=5,
        fold=0,
        budget=Budget(images=6000, stacks=2000, windows=1000),
        haste=Haste(batch=2, image_batch=4, learning_rate=5e-4),
        size=96,
        stack_size=64,
    )
}


def steps_for(stage: Stage, budget: Budget) -> int:
    """Steps after which it has seen what the budget gives its kind, at least one; accumulated batches count as one."""
    if isinstance(stage, PlanarStage):
        examples = budget.images
    else:
        examples = budget.stacks if isinstance(stage, ClassifierStage) else budget.windows
    return max(1, math.ceil(examples / (stage.schedule.batch_size * stage.schedule.accumulate)))


def hastened(recipe: Recipe, haste: Haste | None, budget: Budget) -> Recipe:
    """A recipe whose schedules suit a small budget, see ``Haste``; they warm up for a tenth of it at most."""
    if haste is None:
        return recipe
    changes: dict[str, Any] = {}
    for name, stage in recipe.stages().items():
        old = stage.schedule
        heads = set(stage.network.heads) if isinstance(stage, PlanarStage) else set()
        if "boxes" in heads:
            continue
        batch = min(old.batch_size, haste.image_batch if heads and not heads & PIXEL_HEADS else haste.batch)
        rate = max(old.learning_rate, haste.learning_rate) if old.optimizer == "adamw" else old.learning_rate
        faster = old.model_copy(update={"batch_size": batch, "accumulate": 1, "learning_rate": rate})
        warm = min(old.warmup_steps, max(1, steps_for(stage.model_copy(update={"schedule": faster}), budget) // 10))
        faster = faster.model_copy(update={"warmup_steps": warm})
        changes[name] = stage.model_copy(update={"schedule": faster})
    return recipe.model_copy(update=changes)


def on_reference(recipe: Recipe, reference: Recipe) -> Recipe | None:
    """A recipe's classifier behind the reference's locator and refiner, to be judged apart from its own locator.

    None where there is nothing to exchange: for the reference, and for recipes without a classifier of their own.
    """
    if recipe.name == reference.name or recipe.classifier is None:
        return None
    if recipe.locator == reference.locator and recipe.refiner == reference.refiner:
        return None
    name = f"{recipe.name}-on-{reference.name}"
    return recipe.model_copy(update={"name": name, "locator": reference.locator, "refiner": reference.refiner})


def resized(recipe: Recipe, size: int | None, stack_size: int | None = None) -> Recipe:
    """A recipe whose planar views have at most ``size`` pixels, and images of stacks ``stack_size`` rows.

    Nothing else is changed.
    """
    table: dict[str, Any] = recipe.model_dump(mode="json")
    for name, stage in recipe.stages().items():
        if isinstance(stage, PlanarStage):
            table[name]["view"]["size"] = min(size or stage.view.size, stage.view.size)
        elif isinstance(stage.network, SequenceNetwork):
            table[name]["network"]["size"] = min(stack_size or stage.network.size, stage.network.size)
    # JSON has null where TOML writes "none"; a stage that is missing may have been one by default.
    return Recipe.model_validate_json(json.dumps(table))


def stage_key(recipe: Recipe, name: StageName, *, steps: int, data: str) -> str:
    """SHA-256 of all that decides what a stage learns; stages with one key are trained once.

    Args:
        recipe: says which fold is held back.
        name: of the stage.
        steps: of its training.
        data: digest of the data and their splits.
    """
    stage = recipe.stages()[name]
    content = {
        "stage": name,
        "configuration": stage.model_dump(mode="json"),
        "seed": recipe.seed,
        "steps": steps,
        "data": data,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
