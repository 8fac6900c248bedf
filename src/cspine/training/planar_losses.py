"""Losses of planar networks. All take logits in any float type and compute in float32.

``PlanarLoss`` says how a head is compared with the truth and how much each head counts. Images whose truth is not
known for a head do not count for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from cspine.inference.planar import LEVEL_CHANNELS
from cspine.training.recipe_stages import PlanarLoss

# Focal loss: Lin et al., 2017; no weight of classes, since ``positive_weight`` is one.
FOCAL_GAMMA = 2.0
# Keeps Dice and Jaccard of the few pixels of a hairline from jumping.
SMOOTH = 1.0
# Of an image's verdict; the others describe what is common.
_JUDGED = ("broken", "slice")


def planar_loss(output: Mapping[str, Tensor], batch: Mapping[str, Tensor], weights: PlanarLoss) -> dict[str, Tensor]:
    """The loss of every head that the batch has truth for, and their weighted sum.

    Args:
        output: logits by head, of the shapes in ``inference.planar``.
        batch: truth and ``…_known`` by head, see ``planar_draw.draw_image``, each with a first axis of images.
        weights: the recipe's.

    Returns:
        ``total`` and its parts, scalars.
    """
    parts: dict[str, Tensor] = {}
    if "levels" in batch and "levels" in output:
        parts["levels"] = levels_loss(output["levels"], batch["levels"], batch["levels_known"], weights)
    if "fracture" in batch and "fracture" in output:
        parts["fracture"] = fracture_loss(output["fracture"], batch["fracture"], batch["fracture_known"], weights)
    for name in ("visible", "broken", "slice", "types"):
        if name in batch and name in output:
            positive = weights.positive_weight if name in _JUDGED else 1.0
            parts[name] = flags_loss(output[name], batch[name], batch[f"{name}_known"], weights, positive)
    total = torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()
    return {"total": total, **parts}


def levels_loss(logits: Tensor, labels: Tensor, known: Tensor, weights: PlanarLoss) -> Tensor:
    """Of the pixel classes ``[B, 9, H, W]``; overlaps are those of bone, background has none.

    Args:
        logits: of background, C1..C7 and thoracic.
        labels: ``[B, H, W]`` 0..8.
        known: ``[B]`` 0 or 1.
        weights: cross-entropy (or BCE of each class, ``levels_as = "each"``), Dice, Jaccard and focal.
    """
    which = known > 0.5
    if not which.any():
        return logits.float().sum() * 0
    logits, truth = logits[which].float(), labels[which].long()
    # Of classes that are in the batch alone: the library counts others as perfect.
    bone = [int(k) for k in torch.unique(truth) if k > 0]
    smooth = weights.label_smoothing
    loss = logits.new_zeros(())
    if weights.levels_as == "one":
        if weights.cross_entropy:
            loss = loss + weights.cross_entropy * functional.cross_entropy(logits, truth, label_smoothing=smooth)
        if weights.focal:
            loss = loss + weights.focal * smp.losses.FocalLoss("multiclass", gamma=FOCAL_GAMMA)(logits, truth)
        return loss + _overlaps("multiclass", logits, truth, weights, bone)
    flags = functional.one_hot(truth, LEVEL_CHANNELS).movedim(-1, 1).float()
    loss = loss + _each(logits, flags, weights)
    return loss + _overlaps("multilabel", logits, flags, weights, bone)


def fracture_loss(logits: Tensor, mask: Tensor, known: Tensor, weights: PlanarLoss) -> Tensor:
    """Of fractured pixels: logits ``[B, 1, H, W]``, mask ``[B, H, W]`` 0 or 1, known ``[B]`` 0 or 1."""
    which = known > 0.5
    if not which.any():
        return logits.float().sum() * 0
    logits, truth = logits[which].float(), mask[which].unsqueeze(1).float()
    return _each(logits, truth, weights, weights.positive_weight) + _overlaps("binary", logits, truth, weights)


def flags_loss(
    logits: Tensor, truth: Tensor, known: Tensor, weights: PlanarLoss, positive_weight: float = 1.0
) -> Tensor:
    """Of yes or no answers ``[B, n]``, 0..1; ``known`` ``[B, n]`` or ``[B, 1]``.

    With neither cross-entropy nor focal loss in the recipe (it compares masks by overlap) it is cross-entropy.
    """
    logits, truth = logits.float(), truth.float()
    alone = weights.cross_entropy == 0 and weights.focal == 0
    losses = weights.model_copy(update={"cross_entropy": 1.0}) if alone else weights
    counts = known.float().expand_as(logits)
    each = _each(logits, truth, losses, positive_weight, reduce=False)
    return (each * counts).sum() / counts.sum().clamp(min=1)


def _each(
    logits: Tensor, truth: Tensor, weights: PlanarLoss, positive_weight: float = 1.0, *, reduce: bool = True
) -> Tensor:
    """Binary cross-entropy and focal loss; a smoothed truth is nowhere quite 0 or 1."""
    wanted = truth * (1 - weights.label_smoothing) + weights.label_smoothing / 2
    loss = torch.zeros_like(logits)
    if weights.cross_entropy:
        positive = torch.tensor(positive_weight, device=logits.device)
        entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=positive)
        loss = loss + weights.cross_entropy * entropy
    if weights.focal:
        heavier = 1 + (positive_weight - 1) * truth
        loss = loss + weights.focal * heavier * sigmoid_focal_loss(logits, wanted, alpha=-1, gamma=FOCAL_GAMMA)
    return loss.mean() if reduce else loss


def _overlaps(
    mode: str, logits: Tensor, truth: Tensor, weights: PlanarLoss, classes: list[int] | None = None
) -> Tensor:
    """Dice (Milletari et al., 2016) and Jaccard (Rahman and Wang, 2016) over the batch, of ``classes``."""
    loss = logits.new_zeros(())
    if classes is not None and not classes:
        return loss
    for weight, kind in ((weights.dice, smp.losses.DiceLoss), (weights.jaccard, smp.losses.JaccardLoss)):
        if weight:
            loss = loss + weight * kind(mode, classes=classes, smooth=SMOOTH)(logits, truth)
    return loss
