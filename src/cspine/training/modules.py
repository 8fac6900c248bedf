"""The stages as Lightning modules: what a step computes, and what a validation says."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from cspine.errors import CspineError
from cspine.evaluation.metrics import area_under_curve
from cspine.training.averaging import Average
from cspine.training.losses import StackTargets, classifier_loss, locator_loss, mask_loss
from cspine.training.networks import build_network
from cspine.training.recipe import ClassifierStage, LocatorStage, PlanarStage, RefinerStage, Schedule

Batch = dict[str, Tensor]


class StageModule(lightning.LightningModule):
    """What all stages share: the optimizer, a rate over steps or minutes, the weight average, frozen statistics.

    A step is one change of the weights: with ``schedule.accumulate`` it takes that many batches, which the trainer
    (``accumulate_grad_batches``) sums up.

    Args:
        stage: the recipe's stage.
        max_minutes: when given, the schedule runs over this much training time instead of ``schedule.steps``.
        network: to train, with first weights; a planar stage needs one, others build their own by default.
    """

    def __init__(
        self,
        stage: LocatorStage | RefinerStage | ClassifierStage | PlanarStage,
        max_minutes: float | None = None,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.schedule: Schedule = stage.schedule
        self.max_minutes = max_minutes
        if network is None:
            if isinstance(stage, PlanarStage):
                raise TypeError("a planar stage comes with its network")
            network = build_network(stage.network)
        self.network: nn.Module = network
        self.average = Average(self.network, self.schedule.ema_decay)
        self.trained_seconds = 0.0
        self._last_tick: float | None = None
        self._averaged_at = 0

    def progress(self) -> float:
        """Share of the schedule that is done, 0..1."""
        if self.max_minutes is not None:
            return min(1.0, self.trained_seconds / (60 * self.max_minutes))
        return min(1.0, self.global_step / self.schedule.steps)

    def learning_rate(self) -> float:
        """Linear warm-up (Goyal et al., 2017) times what ``decay`` leaves of the rate at this part of the schedule."""
        warm = min(1.0, (self.global_step + 1) / self.schedule.warmup_steps)
        return self.schedule.learning_rate * warm * remaining_rate(self.schedule, self.progress())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW (Loshchilov and Hutter, 2019), or SGD with Nesterov's momentum (Sutskever et al., 2013).

        Norms and biases are not decayed.
        """
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        free = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.schedule.weight_decay}, {"params": free, "weight_decay": 0}]
        rate, momentum = self.schedule.learning_rate, self.schedule.momentum
        if self.schedule.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
        return torch.optim.AdamW(groups, lr=rate)

    def on_train_start(self) -> None:
        """Clock from here: loading and validation before the first step are not training time."""
        self._last_tick = time.monotonic()
        self._averaged_at = self.global_step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  (Lightning's signature)
        """Set the learning rate and, past ``freeze_norm_at``, fix the batch statistics.

        With batches of one or two windows the statistics of a step differ from the running ones that inference
        uses; the last part of the schedule learns under the latter.
        """
        rate = self.learning_rate()
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] = rate
        if self.progress() >= self.schedule.freeze_norm_at:
            for module in self.network.modules():
                if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                    module.eval()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Update the weight average, once a step, and the clock; stop at the end of the schedule."""
        if self.global_step > self._averaged_at:
            self.average.update(self.network)
            self._averaged_at = self.global_step
        now = time.monotonic()
        if self._last_tick is not None:
            self.trained_seconds += now - self._last_tick
        self._last_tick = now
        if self.progress() >= 1:
            self.trainer.should_stop = True

    def log_parts(self, parts: dict[str, Tensor]) -> Tensor:
        """Log every part of a loss and return the total.

        Raises:
            CspineError: the loss is not finite.
        """
        total = parts["total"]
        if not torch.isfinite(total):
            raise CspineError(
                f"the loss became {float(total)} at step {self.global_step}",
                where=type(self).__name__,
                fix="Lower schedule.learning_rate and run the same command; it goes on from the last checkpoint",
            )
        self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()})
        self.log("loss", total.detach(), prog_bar=True, logger=False)
        self.log("train/learning_rate", self.learning_rate())
        self.log("train/minutes", self.trained_seconds / 60)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002  (Lightning's)
        """Leave out a step whose gradient is not finite, though its loss was.

        In bfloat16 the gradient of a 3D convolution over very few voxels is now and then spoiled on processors.
        """
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            for gradient in gradients:
                gradient.zero_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the weight average, the clock and the stage."""
        checkpoint["average"] = self.average.state_dict()
        checkpoint["trained_seconds"] = self.trained_seconds
        checkpoint["stage"] = self.stage.model_dump(mode="json")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from what ``on_save_checkpoint`` added."""
        self.average.load_state_dict(checkpoint["average"])
        self.trained_seconds = float(checkpoint["trained_seconds"])


def remaining_rate(schedule: Schedule, progress: float) -> float:
    """Share of the learning rate that is left when ``progress`` 0..1 of a schedule is done.

    Half a cosine (Loshchilov and Hutter, 2017) from 1 down to ``final_factor``; a tenth after each third; or all of
    it.
    """
    if schedule.decay == "cosine":
        floor = schedule.final_factor
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    thirds = min(2, int(3 * progress)) if schedule.decay == "step" else 0
    return float(0.1**thirds)


class MaskModule(StageModule):
    """What the two stages that draw masks share: overlaps of held-back windows, counted a class."""

    def __init__(self, stage: LocatorStage | RefinerStage, max_minutes: float | None = None) -> None:
        super().__init__(stage, max_minutes)
        self._classes = stage.network.classes
        self._overlap = torch.zeros(3, self._classes)

    def answer(self, batch: Batch) -> Tensor:
        """The network's output for a batch."""
        output: Tensor = self.network(batch["image"].contiguous(memory_format=torch.channels_last_3d))
        return output

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._overlap = torch.zeros(3, self._classes)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Count overlaps with the averaged weights."""
        with self.average.applied(self.network):
            found = self.answer(batch)[:, : self._classes].argmax(1)
        truth = batch["labels"].long()
        classes = self._overlap.shape[1]
        both = torch.bincount(truth[found == truth], minlength=classes)
        counts = [
            both,
            torch.bincount(truth.flatten(), minlength=classes),
            torch.bincount(found.flatten(), minlength=classes),
        ]
        self._overlap += torch.stack(counts).cpu()

    def dice(self) -> Tensor:
        """Dice of each class over all validation windows."""
        both, truth, found = self._overlap
        share: Tensor = 2 * both / (truth + found).clamp(min=1)
        return share


class LocatorModule(MaskModule):
    """Trains the locator. Batches: ``image [B,1,Z,Y,X]``, ``labels``, ``heat``, ``known``, each ``[B,Z,Y,X]``."""

    def __init__(self, stage: LocatorStage, max_minutes: float | None = None) -> None:
        super().__init__(stage, max_minutes)
        self.weights = stage.loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of a batch."""
        output = self.answer(batch)
        return self.log_parts(locator_loss(output, batch["labels"], batch["heat"], batch["known"], self.weights))

    def on_validation_epoch_end(self) -> None:
        """Dice over all validation windows, a class."""
        dice = self.dice()
        names = [f"dice_{name}" for name in ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "thoracic", "other")]
        self.log_dict({f"val/{name}": float(value) for name, value in zip(names, dice[1:], strict=False)})
        self.log("dice", float(dice[1:8].mean()), prog_bar=True, logger=False)
        self.log("val/dice_cervical", float(dice[1:8].mean()))


class RefinerModule(MaskModule):
    """Trains the refiner. Batches: ``image [B,3,Z,Y,X]`` and ``labels [B,Z,Y,X]``, 0..3."""

    def __init__(self, stage: RefinerStage, max_minutes: float | None = None) -> None:
        super().__init__(stage, max_minutes)
        self.weights = stage.loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of a batch."""
        return self.log_parts(mask_loss(self.answer(batch), batch["labels"], self.weights))

    def on_validation_epoch_end(self) -> None:
        """Dice over all validation windows, a class."""
        dice = self.dice()
        names = ("odd", "even", "other")
        self.log_dict({f"val/dice_{name}": float(value) for name, value in zip(names, dice[1:], strict=True)})
        self.log("dice", float(dice[1:3].mean()), prog_bar=True, logger=False)


class ClassifierModule(StageModule):
    """Trains the classifier. Batches: ``stack`` and the fields of ``StackTargets``."""

    def __init__(self, stage: ClassifierStage, max_minutes: float | None = None) -> None:
        super().__init__(stage, max_minutes)
        self.weights = stage.loss
        self.mixup = stage.augment.mixup
        self._seen: list[tuple[float, float]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of a batch, sometimes of a blend of it with itself."""
        if torch.rand(()) < self.mixup:
            batch = _blended(batch)
        return self.log_parts(classifier_loss(self.network(batch["stack"]), _targets(batch), self.weights))

    def on_validation_epoch_start(self) -> None:
        """Start collecting."""
        self._seen = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Collect logits of the averaged weights."""
        with self.average.applied(self.network):
            logits = self.network(batch["stack"])["vertebra"].float()
        self._seen += list(zip(logits.tolist(), batch["vertebra"].tolist(), strict=True))

    def on_validation_epoch_end(self) -> None:
        """Area under the ROC curve over all validation vertebrae."""
        scores, truth = (np.asarray(column) for column in zip(*self._seen, strict=True))
        if 0 < (truth > 0.5).sum() < len(truth):
            value = area_under_curve(truth > 0.5, scores)
            self.log("auc", value, prog_bar=True, logger=False)
            self.log("val/auc", value)


def _blended(batch: Batch) -> Batch:
    """Mixup (Zhang et al., 2018): every example and its truth with a share of another's."""
    share = 0.5 * float(torch.rand(()))
    order = torch.randperm(len(batch["vertebra"]), device=batch["vertebra"].device)
    blended = {name: torch.lerp(value, value[order], share) for name, value in batch.items()}
    # Of a blend is known what is known of both.
    known = {name: torch.minimum(value, value[order]) for name, value in batch.items() if name.endswith("_known")}
    return blended | known


def _targets(batch: Batch) -> StackTargets:
    names = ("vertebra", "slices", "types", "evidence", "types_known", "evidence_known")
    return StackTargets(**{name: batch[name] for name in names if name in batch})
