"""Losses of the stages. All take logits in any float type and compute in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cspine.training.recipe import ClassifierLoss, LocatorLoss, RefinerLoss

# Voxels a class needs in a window before its Dice is asked for; below, a few border voxels would rule the gradient.
MIN_DICE_VOXELS = 20


def soft_dice(probability: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice (Milletari et al., 2016) a row: both ``[N, V]`` in 0..1 → ``[N]``."""
    overlap = (probability * target).sum(1)
    return (2 * overlap + smooth) / (probability.sum(1) + target.sum(1) + smooth)


def heat_loss(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Quality focal loss (Li et al., 2020) of a heat map, per peak.

    Args:
        logits: ``[B, Z, Y, X]``.
        target: same shape, 0..1, 1 at a centre.
        known: bool, same shape; voxels where the truth is unknown do not count.
    """
    probability = torch.sigmoid(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = (probability - target).square() * entropy * known
    # A Gaussian of sigma 2 voxels sums to 126; "per peak" keeps the scale whatever is in view.
    return loss.sum() / torch.clamp((target * known).sum(), min=60.0)


def locator_loss(
    output: Tensor, labels: Tensor, heat: Tensor, known: Tensor, weights: LocatorLoss
) -> dict[str, Tensor]:
    """Cross-entropy, soft Dice over the bone classes in view, and heat.

    Args:
        output: ``[B, C + 1, Z, Y, X]`` logits.
        labels: ``[B, Z, Y, X]`` integers 0..C-1.
        heat: ``[B, Z, Y, X]``, see ``heat_loss``.
        known: bool, same shape, see ``heat_loss``.
        weights: the recipe's.

    Returns:
        ``total`` and its parts, scalars.
    """
    parts = mask_loss(output[:, :-1], labels, weights)
    centre = heat_loss(output[:, -1].float(), heat, known)
    return {**parts, "total": parts["total"] + weights.heat * centre, "heat": centre}


def mask_loss(logits: Tensor, labels: Tensor, weights: LocatorLoss | RefinerLoss) -> dict[str, Tensor]:
    """Cross-entropy, and soft Dice over the classes in view but the first.

    Args:
        logits: ``[B, C, Z, Y, X]``.
        labels: ``[B, Z, Y, X]`` integers 0..C-1.
        weights: the recipe's.

    Returns:
        ``total`` and its parts, scalars.
    """
    logits = logits.float()
    classes = logits.shape[1]
    log_probability = functional.log_softmax(logits, 1)
    weight = torch.tensor(weights.class_weights, device=logits.device)
    entropy = functional.nll_loss(log_probability, labels.long(), weight=weight)
    probability = log_probability.exp().flatten(2)[:, 1:]
    truth = (labels.flatten(1).unsqueeze(1) == torch.arange(1, classes, device=labels.device)[None, :, None]).float()
    present = truth.sum(2) > MIN_DICE_VOXELS
    dice = soft_dice(probability.flatten(0, 1), truth.flatten(0, 1)).view_as(present)
    lost = torch.where(present, 1 - dice, 0.0).sum() / present.sum().clamp(min=1)
    total = weights.cross_entropy * entropy + weights.dice * lost
    return {"total": total, "cross_entropy": entropy, "dice": lost}


@dataclass(frozen=True, slots=True)
class StackTargets:
    """Truth of a batch of stacks.

    Attributes:
        vertebra: ``[B]`` 0..1.
        slices: ``[B, S]`` 0..1.
        types: ``[B, T]`` 0..1.
        evidence: ``[B, S, h, w]`` 0..1.
        types_known: ``[B]`` 0 or 1.
        evidence_known: ``[B]`` 0 or 1: whether ``slices`` and ``evidence`` are; None when they all are.
    """

    vertebra: Tensor
    slices: Tensor
    types: Tensor
    evidence: Tensor
    types_known: Tensor
    evidence_known: Tensor | None = None


def classifier_loss(output: dict[str, Tensor], truth: StackTargets, weights: ClassifierLoss) -> dict[str, Tensor]:
    """The vertebra's verdict and the types as the recipe says, BCE of slices, focal BCE and Dice of the evidence map.

    Stacks whose evidence is not known teach the vertebra's answer alone.

    Returns:
        ``total`` and its parts, scalars.
    """
    smooth = weights.label_smoothing
    wanted = truth.vertebra * (1 - 2 * smooth) + smooth
    vertebra = verdict_loss(output["vertebra"].float(), wanted, weights)
    known = torch.ones_like(wanted) if truth.evidence_known is None else truth.evidence_known
    each = functional.binary_cross_entropy_with_logits(output["slices"].float(), truth.slices, reduction="none")
    slices = _mean_of_known(each.mean(1), known)
    evidence, lost = _evidence_loss(output["evidence"].float(), truth.evidence, known)
    types = _types_loss(output["types"].float(), truth, weights)
    total = (
        weights.vertebra * vertebra
        + weights.slices * slices
        + weights.evidence * evidence
        + weights.evidence_dice * lost
        + weights.types * types
    )
    return {"total": total, "vertebra": vertebra, "slices": slices, "evidence": evidence, "dice": lost, "types": types}


def verdict_loss(logits: Tensor, wanted: Tensor, weights: ClassifierLoss) -> Tensor:
    """How far a batch of verdicts is from the truth, a scalar; ``positive_weight`` multiplies that of fractures.

    With p the sigmoid of the logit x, and y the truth, which mixup and smoothing put between 0 and 1:

    - cross-entropy: -y log p - (1 - y) log(1 - p).
    - focal: that times (p - y)^2; Lin et al. (2017) with gamma 2, for soft truths as Li et al. (2020).
    - hinge: y max(0, 1 - x) + (1 - y) max(0, 1 + x), of a support vector machine (Cortes and Vapnik, 1995).
    - competition: cross-entropy weighed 2 for a fracture and 1 for none, over the sum of weights (RSNA 2022).

    Args:
        logits: ``[B]``.
        wanted: ``[B]``, 0..1.
        weights: the recipe's.
    """
    factor = weights.positive_weight
    if weights.verdict == "hinge":
        each = factor * wanted * functional.relu(1 - logits) + (1 - wanted) * functional.relu(1 + logits)
        return each.mean()
    if weights.verdict == "competition":
        factor *= 2.0
    positive = torch.tensor(factor, device=logits.device)
    each = functional.binary_cross_entropy_with_logits(logits, wanted, pos_weight=positive, reduction="none")
    if weights.verdict == "focal":
        each = (torch.sigmoid(logits) - wanted).square() * each
    if weights.verdict == "competition":
        return each.sum() / (1 - wanted + factor * wanted).sum()
    return each.mean()


def _types_loss(logits: Tensor, truth: StackTargets, weights: ClassifierLoss) -> Tensor:
    """BCE of every type, or cross-entropy of the one that is there; two types share it."""
    if weights.types_as == "each":
        each = functional.binary_cross_entropy_with_logits(logits, truth.types, reduction="none").mean(1)
        return (each * truth.types_known).mean()
    count = truth.types.sum(1)
    share = truth.types / count.clamp(min=1e-6).unsqueeze(1)
    counts = truth.types_known * count.clamp(max=1)
    entropy = -(share * functional.logsigmoid(logits)).sum(1)
    return (entropy * counts).sum() / counts.sum().clamp(min=1)


def _mean_of_known(each: Tensor, known: Tensor) -> Tensor:
    """Mean over the stacks of a batch ``[B]`` whose truth is known; 0 when it is of none."""
    return (each * known).sum() / known.sum().clamp(min=1e-6)


def _evidence_loss(logits: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Focal BCE (Lin et al., 2017, gamma 2) per positive cell, and Dice over the stacks that have a fracture.

    Only stacks that are ``known`` ``[B]`` count.
    """
    probability = torch.sigmoid(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (probability - target).square() * entropy
    cells = target.sum((1, 2, 3))
    # Negatives share a floor, so a stack without fracture still teaches, at the scale of a small one.
    floor = 40.0
    entropy_loss = _mean_of_known(focal.sum((1, 2, 3)) / cells.clamp(min=floor), known)
    has = (cells > 0).float() * known
    dice = soft_dice(probability.flatten(1), target.flatten(1))
    return entropy_loss, ((1 - dice) * has).sum() / has.sum().clamp(min=1)
