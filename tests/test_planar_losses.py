"""Losses of planar networks: what the truth does not say does not count, and what it says pulls the right way."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from cspine.training.planar_losses import flags_loss, fracture_loss, levels_loss, planar_loss
from cspine.training.recipe import PlanarLoss

LABELS = torch.zeros(2, 16, 16, dtype=torch.uint8)
LABELS[0, 4:10, 4:10] = 3
LABELS[1, 8:12, 2:9] = 8
KNOWN = torch.ones(2)
WEIGHTS = [
    PlanarLoss(),
    PlanarLoss(levels_as="each", dice=0, jaccard=1),
    PlanarLoss(cross_entropy=0, dice=0, focal=1),
    PlanarLoss(cross_entropy=0, dice=0, jaccard=1),
]


def levels_logits(labels: torch.Tensor, strength: float = 8.0) -> torch.Tensor:
    return (functional.one_hot(labels.long(), 9).movedim(-1, 1).float() * 2 - 1) * strength


@pytest.mark.parametrize("weights", WEIGHTS)
def test_right_pixels_cost_little_and_wrong_ones_much(weights: PlanarLoss) -> None:
    good = levels_loss(levels_logits(LABELS), LABELS, KNOWN, weights)
    bad = levels_loss(-levels_logits(LABELS), LABELS, KNOWN, weights)
    assert good < 0.02 < 0.5 < bad
    marked = (LABELS == 3).to(torch.uint8)
    right = (marked.float().unsqueeze(1) * 2 - 1) * 8
    assert fracture_loss(right, marked, KNOWN, weights) < 0.02 < fracture_loss(-right, marked, KNOWN, weights)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_images_without_truth_do_not_count(weights: PlanarLoss) -> None:
    logits = levels_logits(LABELS)
    logits[1] *= -1
    half = levels_loss(logits, LABELS, torch.tensor([1.0, 0.0]), weights)
    assert half == pytest.approx(float(levels_loss(logits[:1], LABELS[:1], KNOWN[:1], weights)))
    logits.requires_grad_()
    none = levels_loss(logits, LABELS, torch.zeros(2), weights)
    none.backward()
    assert none == 0
    assert not logits.grad.any()  # type: ignore[union-attr]


def test_flags_that_are_not_known_do_not_count() -> None:
    logits = torch.tensor([[4.0, -4.0], [4.0, 4.0]])
    truth = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    known = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert flags_loss(logits, truth, known, PlanarLoss()) < 0.05
    assert flags_loss(logits, truth, torch.ones(2, 2), PlanarLoss()) > 0.5
    # One column of knowledge stands for the whole row.
    assert flags_loss(logits, truth, known[:, :1], PlanarLoss()) < 0.05


def test_a_recipe_of_overlaps_alone_still_teaches_flags() -> None:
    logits, truth = torch.tensor([[-3.0]]), torch.tensor([[1.0]])
    overlaps = PlanarLoss(cross_entropy=0, dice=1)
    assert flags_loss(logits, truth, truth, overlaps) == flags_loss(logits, truth, truth, PlanarLoss())


def test_positives_weigh_as_the_recipe_says_in_verdicts_only() -> None:
    found = {"slice": torch.tensor([[-1.0]]), "visible": torch.full((1, 7), -1.0)}
    batch = {"slice": torch.ones(1, 1), "slice_known": torch.ones(1, 1)}
    batch |= {"visible": torch.ones(1, 7), "visible_known": torch.ones(1, 7)}
    plain = planar_loss(found, batch, PlanarLoss())
    heavy = planar_loss(found, batch, PlanarLoss(positive_weight=3))
    assert heavy["slice"] == pytest.approx(3 * float(plain["slice"]))
    assert heavy["visible"] == plain["visible"]


def test_the_total_is_weighted_and_a_head_without_truth_is_left_out() -> None:
    found = {"slice": torch.tensor([[1.0]]), "types": torch.ones(1, 13), "heat": torch.ones(1, 1, 2, 2)}
    batch = {"slice": torch.ones(1, 1), "slice_known": torch.ones(1, 1)}
    parts = planar_loss(found, batch, PlanarLoss(slice=0.5))
    assert set(parts) == {"total", "slice"}
    assert parts["total"] == pytest.approx(0.5 * float(parts["slice"]))


def test_smoothed_labels_never_ask_for_certainty() -> None:
    sure, modest = torch.tensor([[9.0]]), torch.tensor([[2.0]])
    truth, smooth = torch.ones(1, 1), PlanarLoss(label_smoothing=0.2)
    assert flags_loss(sure, truth, truth, PlanarLoss()) < flags_loss(modest, truth, truth, PlanarLoss())
    assert flags_loss(sure, truth, truth, smooth) > flags_loss(modest, truth, truth, smooth)
