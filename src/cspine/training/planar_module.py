"""Planar stages as a Lightning module: detectors by their own losses, all others by ``planar_losses``."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor

from cspine.evaluation.metrics import area_under_curve
from cspine.inference.planar import LEVEL_CHANNELS
from cspine.training.modules import Batch, StageModule
from cspine.training.planar_losses import planar_loss
from cspine.training.planar_networks import build_planar, probe
from cspine.training.recipe_stages import PlanarStage

# Shorter sides of boxes, in pixels, are left out of the truth: a stray pixel of a mask is no vertebra to find.
MIN_SIDE = 3.0
# A box counts as found when the best one of its class overlaps it by this much (PASCAL VOC's rule).
FOUND_OVERLAP = 0.5


class PlanarModule(StageModule):
    """Trains a planar network. Batches are those of ``planar_data.collated``.

    Validation says of all held-back images: ``dice_cervical`` of the pixel classes over C1..C7, ``dice_fracture``,
    ``auc_slice`` and ``auc_broken``, ``f1_visible`` (macro), ``recall_boxes``; ``score`` is the mean of those that the
    network has.

    Args:
        stage: the recipe's stage.
        max_minutes: as in ``StageModule``.

    Raises:
        RecipeError: there is no such network, or it cannot see images of that size.
    """

    def __init__(self, stage: PlanarStage, max_minutes: float | None = None) -> None:
        network = build_planar(stage.network, stage.view)
        probe(network, stage.view)
        super().__init__(stage, max_minutes, network=network)
        self.weights = stage.loss
        self.detects = "boxes" in stage.network.heads
        self._begin()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of a batch."""
        if self.detects:
            found = self.network.losses(batch["image"], box_targets(batch))  # type: ignore[operator]
            return self.log_parts({**found, "total": torch.stack(list(found.values())).sum()})
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        return self.log_parts(planar_loss(self.network(image), batch, self.weights))

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._begin()

    def _begin(self) -> None:
        self._overlap = torch.zeros(3, LEVEL_CHANNELS)
        self._fracture = torch.zeros(3)
        self._flags: dict[str, list[tuple[list[float], list[float], list[float]]]] = {}
        self._boxes = [0, 0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Collect answers of the averaged weights."""
        with self.average.applied(self.network):
            found = self.network(batch["image"])
        if self.detects:
            self._count_boxes(found, box_targets(batch))
        if "levels" in found:
            self._count_levels(found["levels"].argmax(1), batch["levels"].long(), batch["levels_known"])
        if "fracture" in found:
            shown = (found["fracture"][:, 0] > 0) & (batch["fracture_known"] > 0.5)[:, None, None]
            truth = (batch["fracture"] > 0) & (batch["fracture_known"] > 0.5)[:, None, None]
            self._fracture += torch.stack([(shown & truth).sum(), truth.sum(), shown.sum()]).cpu()
        for name in ("slice", "broken", "visible"):
            if name in found:
                parts = (found[name].float(), batch[name], batch[f"{name}_known"].expand_as(batch[name]))
                self._flags.setdefault(name, []).extend(zip(*(part.tolist() for part in parts), strict=True))

    def _count_levels(self, found: Tensor, truth: Tensor, known: Tensor) -> None:
        found, truth = found[known > 0.5], truth[known > 0.5]
        parts = (truth[found == truth], truth.flatten(), found.flatten())
        self._overlap += torch.stack([torch.bincount(part, minlength=LEVEL_CHANNELS) for part in parts]).cpu()

    def _count_boxes(self, found: Batch, targets: list[Batch]) -> None:
        from torchvision.ops import box_iou

        for boxes, scores, truth in zip(found["boxes"].float(), found["scores"].float(), targets, strict=True):
            for box, label in zip(truth["boxes"], truth["labels"], strict=True):
                best = boxes[scores[:, int(label) - 1].argmax()]
                self._boxes[0] += int(box_iou(best[None], box[None]) >= FOUND_OVERLAP)
                self._boxes[1] += 1

    def figures(self) -> dict[str, float]:
        """The figures of the images seen since the validation began, 0..1; see the class."""
        out: dict[str, float] = {}
        both, truth, found = self._overlap[:, 1:8]
        if truth.sum() > 0:
            shown = truth > 0
            out["dice_cervical"] = float((2 * both / (truth + found).clamp(min=1))[shown].mean())
        if self._fracture[1] > 0:
            out["dice_fracture"] = float(2 * self._fracture[0] / (self._fracture[1] + self._fracture[2]))
        for name, rows in self._flags.items():
            scores, flags, known = (np.asarray(part, dtype=np.float64) for part in zip(*rows, strict=True))
            counts = known > 0.5
            if name == "visible":
                seen = counts.all(axis=1)
                if seen.any():
                    answer, wanted = scores[seen] > 0, flags[seen] > 0.5
                    out["f1_visible"] = float(f1_score(wanted, answer, average="macro", zero_division=0.0))
            elif 0 < (flags[counts] > 0.5).sum() < counts.sum():
                out[f"auc_{name}"] = area_under_curve(flags[counts] > 0.5, scores[counts])
        if self._boxes[1]:
            out["recall_boxes"] = self._boxes[0] / self._boxes[1]
        return out

    def on_validation_epoch_end(self) -> None:
        """Log the figures, and their mean as ``val/score``."""
        figures = self.figures()
        for name, value in figures.items():
            self.log(f"val/{name}", value)
        if figures:
            score = float(np.mean(list(figures.values())))
            self.log("val/score", score)
            self.log("score", score, prog_bar=True, logger=False)


def box_targets(batch: Batch) -> list[dict[str, Tensor]]:
    """Boxes of each image as detectors take them: ``boxes`` ``[n, 4]`` and ``labels`` ``[n]``, 1 to 7 or 14."""
    targets = []
    for boxes, labels in zip(batch["boxes"], batch["box_labels"], strict=True):
        large = (labels > 0) & ((boxes[:, 2:] - boxes[:, :2]).amin(1) >= MIN_SIDE)
        targets.append({"boxes": boxes[large].float(), "labels": labels[large].long()})
    return targets
