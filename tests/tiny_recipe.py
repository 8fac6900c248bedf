"""A method of networks so small that they train in a second, and samples for it."""

from __future__ import annotations

from pathlib import Path

from cspine.training.recipe import ClassifierStage, LocatorStage, Recipe, Schedule, StackNetwork, UNet3dNetwork
from cspine.training.samples import classifier_sample, locator_sample, write_sample
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


def write_samples(folder: Path) -> Path:
    """Three cases, one of them held back, as samples of both stages."""
    for number in (0, 1, 2):
        case = block_case(number)
        write_sample(locator_sample(case, {}), folder / "locator", f"phantom-{number:06d}")
        write_sample(classifier_sample(case), folder / "classifier", f"phantom-{number:06d}")
    return folder
