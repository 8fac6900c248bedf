"""How a stage learns: rates, optimizers, steps of several batches, and how a verdict is compared with the truth."""

from __future__ import annotations

import itertools
import math

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cspine.training.losses import verdict_loss
from cspine.training.modules import LocatorModule, remaining_rate
from cspine.training.recipe import ClassifierLoss, LocatorStage, Schedule, UNet3dNetwork

TINY = LocatorStage(network=UNet3dNetwork(widths=(4, 4)), window=(16, 16, 16))


def module(**schedule: object) -> LocatorModule:
    return LocatorModule(TINY.model_copy(update={"schedule": Schedule.model_validate(schedule)}))


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        ("cosine", [1.0, 0.51, 0.02]),
        ("step", [1.0, 0.1, 0.01]),
        ("none", [1.0, 1.0, 1.0]),
    ],
)
def test_rates_at_the_start_the_middle_and_the_end(decay: str, rates: list[float]) -> None:
    schedule = Schedule.model_validate({"decay": decay})
    assert [remaining_rate(schedule, done) for done in (0.0, 0.5, 1.0)] == pytest.approx(rates)


@given(st.sampled_from(["cosine", "step", "none"]), st.floats(0, 1), st.floats(0, 1))
def test_a_rate_never_rises(decay: str, one: float, other: float) -> None:
    schedule = Schedule.model_validate({"decay": decay})
    earlier, later = (remaining_rate(schedule, done) for done in sorted((one, other)))
    assert 0 < later <= earlier <= 1


def test_the_recipe_chooses_the_optimizer() -> None:
    adam = module(weight_decay=0.1).configure_optimizers()
    assert isinstance(adam, torch.optim.AdamW)
    assert [group["weight_decay"] for group in adam.param_groups] == [0.1, 0]
    plain = module(optimizer="sgd", momentum=0.0).configure_optimizers()
    heavy = module(optimizer="sgd", momentum=0.9).configure_optimizers()
    assert isinstance(plain, torch.optim.SGD)
    assert [(group["momentum"], group["nesterov"]) for group in plain.param_groups] == [(0.0, False)] * 2
    assert [(group["momentum"], group["nesterov"]) for group in heavy.param_groups] == [(0.9, True)] * 2


def test_a_step_of_several_batches_counts_once() -> None:
    learner = module(accumulate=3, steps=4, warmup_steps=4, decay="none", learning_rate=1e-3)
    rates: list[float] = []
    draw = torch.Generator().manual_seed(0)
    example = {
        "image": torch.randn(1, 16, 16, 16, generator=draw),
        "labels": torch.randint(0, 10, (16, 16, 16), generator=draw),
        "heat": torch.rand(16, 16, 16, generator=draw),
        "known": torch.ones(16, 16, 16, dtype=torch.bool),
    }

    class Watch(lightning.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            rates.append(learner.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, max_steps=-1, accumulate_grad_batches=3, logger=False,
        callbacks=[Watch()], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(learner, DataLoader([example] * 40, batch_size=1))  # type: ignore[arg-type]
    assert (learner.global_step, learner.average.count) == (4, 4)
    expected = itertools.chain.from_iterable([1e-3 * share] * 3 for share in (0.25, 0.5, 0.75, 1.0))
    assert rates == pytest.approx(list(expected))


def verdict(logit: float, truth: float, **weights: object) -> float:
    loss = verdict_loss(torch.tensor([logit]), torch.tensor([truth]), ClassifierLoss.model_validate(weights))
    return float(loss)


def test_each_verdict_is_the_formula_it_is_named_after() -> None:
    p = 1 / (1 + math.exp(-0.7))
    assert verdict(0.7, 1.0) == pytest.approx(-math.log(p))
    assert verdict(0.7, 0.0, verdict="focal") == pytest.approx(-(p**2) * math.log(1 - p))
    assert verdict(0.7, 1.0, verdict="hinge") == pytest.approx(0.3)
    assert verdict(0.7, 0.0, verdict="hinge") == pytest.approx(1.7)
    assert verdict(1.2, 1.0, verdict="hinge") == 0


def test_the_competition_counts_a_missed_fracture_twice() -> None:
    logits, truth = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    found = verdict_loss(logits, truth, ClassifierLoss(verdict="competition"))
    missed, alarm = math.log(2), -math.log(1 - 1 / (1 + math.exp(-2)))
    assert float(found) == pytest.approx((2 * missed + alarm) / 3)
    # Half everywhere scores log 2, whatever the truth.
    assert verdict(0.0, 0.0, verdict="competition") == pytest.approx(math.log(2))


KINDS = st.sampled_from(["cross-entropy", "focal", "hinge", "competition"])


@given(KINDS, st.floats(-20, 20), st.floats(0.1, 10), st.booleans(), st.floats(0.2, 5))
def test_a_verdict_nearer_to_the_truth_never_costs_more(
    kind: str, logit: float, nearer: float, fractured: bool, factor: float
) -> None:
    better = logit + nearer if fractured else logit - nearer
    truth, weights = float(fractured), {"verdict": kind, "positive_weight": factor}
    assert 0 <= verdict(better, truth, **weights) <= verdict(logit, truth, **weights) + 1e-5
