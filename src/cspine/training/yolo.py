"""YOLO detectors: trained by Ultralytics' library where the user has installed it, exported like any other network.

The library is under the AGPL-3.0 and is not part of cspine: the extra ``yolo`` installs it, by the user's choice.
Without it ``settled`` puts a detector of torchvision of about the same size in its place and says so. Networks start
from random weights, or from a file that the user has; nothing is fetched, see ``yolo_library``.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cspine.errors import CspineError, RecipeError
from cspine.inference.planar import PlanarView
from cspine.training.detectors import class_count, strongest
from cspine.training.recipe_networks import PlanarNetwork
from cspine.training.recipe_stages import PlanarStage
from cspine.training.yolo_data import COLOURS, YoloData, channels_of, write_yolo_data
from cspine.training.yolo_library import (
    LIBRARY,
    LOG,
    PIP,
    config_of,
    installed,
    library,
    private,
    require,
    size_of,
    start_from,
)

CHECKPOINT = "last.ckpt"
# By the size of a YOLO, the encoder with which FCOS has about as many weights: 5, 13, 26 and 45 million.
IN_PLACE = {"n": "mobilenet_v3_large", "s": "resnet18", "m": "resnet50", "l": "resnet101", "x": "resnet101"}


def settled(stage: PlanarStage) -> tuple[PlanarStage, str | None]:
    """The stage as it can be trained here, and what has to be said about it.

    Returns:
        the stage itself and None, but for a YOLO without its library: then a stage with FCOS in its place and one
        sentence for the user, which belongs into the record of the run as well.

    Raises:
        RecipeError: no such YOLO.
    """
    network = stage.network
    if network.body != "yolo" or installed():
        return stage, None
    encoder = IN_PLACE[size_of(network.encoder)]
    said = (
        f"The extra yolo ({LIBRARY}) is not installed: FCOS of torchvision on {encoder} is trained in place of "
        f"{network.encoder}. To train that one: {PIP}"
    )
    return stage.model_copy(update={"network": network.model_copy(update={"body": "fcos", "encoder": encoder})}), said


def fit_yolo(
    stage: PlanarStage,
    samples: Path,
    folder: Path,
    *,
    seed: int,
    max_steps: int | None = None,
    resume: bool = True,
    weights: Path | None = None,
    device: str | None = None,
    workers: int = 0,
    held_back: int = 96,
    progress: bool = True,
) -> Path:
    """Train a YOLO with its own library and augmentation; the same call goes on after the last finished epoch.

    Optimiser, rates, batch and size are the stage's; an epoch is once over the pictures, and as many are done as come
    nearest to the stage's steps.

    Args:
        stage: of a recipe, with body ``yolo``.
        samples: folder with planar samples in ``planar``.
        folder: of the stage in its run; pictures go to ``dataset``, the library's log to ``log``.
        seed: of everything that is drawn.
        max_steps: a shorter schedule.
        resume: go on with a checkpoint found there.
        weights: folder that may hold ``<encoder>.pt`` to start from, where ``pretrained`` is set.
        device: as torch names it; None takes a GPU when there is one.
        workers: processes that read pictures; the library takes none on a CPU.
        held_back: pictures to validate on.
        progress: show the library's progress.

    Returns:
        the checkpoint: tensors and plain values, no code; see ``yolo_network``.

    Raises:
        MissingExtraError: the library is not installed.
        RecipeError: no such YOLO, or the checkpoint there is of another network.
        StudyError: no samples.
        OutputError: the folder cannot be written.
        CspineError: the loss is not finite; the last checkpoint is kept.
    """
    require()
    if max_steps is not None and max_steps < stage.schedule.steps:
        stage = stage.model_copy(update={"schedule": stage.schedule.model_copy(update={"steps": max_steps})})
    checkpoint = folder / CHECKPOINT
    saved = _saved(checkpoint, stage.network) if resume and checkpoint.exists() else None
    # The library seeds what it draws itself, but the first weights are drawn here.
    torch.manual_seed(seed)
    network = build_yolo(stage.network, stage.view)
    if saved is None and stage.network.pretrained and weights is not None:
        logging.getLogger(__name__).info(start_from(network.yolo, stage.network.encoder, weights))
    data = write_yolo_data(stage, samples / "planar", folder / "dataset", seed=seed, held_back=held_back)
    settings = training_settings(stage, data, folder, seed=seed, device=device, workers=workers)
    if saved is None or saved["epoch"] < settings["epochs"]:
        with _speaking(progress), private():
            _train(stage, network.yolo, settings, checkpoint, saved)
    return checkpoint


def training_settings(
    stage: PlanarStage, data: YoloData, folder: Path, *, seed: int, device: str | None = None, workers: int = 0
) -> dict[str, Any]:
    """A stage's schedule in the words of the library."""
    schedule = stage.schedule
    batches = max(1, math.ceil(data.train / schedule.batch_size))
    return {
        "task": "detect",
        "model": config_of(stage.network.encoder),
        "data": str(data.file),
        "project": str(folder.resolve()),
        "name": "log",
        "exist_ok": True,
        "epochs": max(1, round(schedule.steps / batches)),
        "batch": schedule.batch_size,
        # Gradients of so many images make a step.
        "nbs": schedule.batch_size * schedule.accumulate,
        "imgsz": stage.view.size,
        "optimizer": {"sgd": "SGD", "adamw": "AdamW"}[schedule.optimizer],
        "lr0": schedule.learning_rate,
        "lrf": 1.0 if schedule.decay == "none" else schedule.final_factor,
        "cos_lr": schedule.decay == "cosine",
        "momentum": schedule.momentum,
        "weight_decay": schedule.weight_decay,
        "warmup_epochs": schedule.warmup_steps / batches,
        "patience": schedule.patience or 0,
        "seed": seed,
        "device": device or ("0" if torch.cuda.is_available() else "cpu"),
        "workers": workers,
        # Its check of half precision fetches a network first.
        "amp": False,
        "pretrained": False,
        "plots": False,
        # Channels are HU windows, not colours.
        "hsv_h": 0.0,
        "hsv_s": 0.0,
        "hsv_v": 0.2,
    }


def _train(
    stage: PlanarStage, network: nn.Module, settings: dict[str, Any], checkpoint: Path, saved: dict[str, Any] | None
) -> None:
    """Run the library's trainer; each epoch leaves our checkpoint instead of the library's, which holds code."""
    log = Path(settings["project"]) / settings["name"] / "results.csv"
    rows = log.read_text() if saved is not None and log.exists() else None
    # Begins the log anew.
    trainer = library().trainer(overrides=settings)
    if rows is not None:
        log.write_text(rows)
    trainer.model = network
    begun = time.monotonic()
    before = 0.0 if saved is None else float(saved["trained_seconds"])

    def save() -> bool:
        done = trainer.epoch + 1
        content = {
            "stage": stage.model_dump(mode="json"),
            "average": {"values": _plain(trainer.ema.ema.state_dict())},
            "global_step": done * len(trainer.train_loader),
            "trained_seconds": before + time.monotonic() - begun,
            "epoch": done,
            "network": _plain(_unwrapped(trainer.model).state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "updates": int(trainer.ema.updates),
            "best_fitness": None if trainer.best_fitness is None else float(trainer.best_fitness),
        }
        part = checkpoint.with_name(f".{checkpoint.name}.part")
        torch.save(content, part)
        part.replace(checkpoint)
        return True

    def go_on(own: Any) -> None:
        if saved is not None:
            _unwrapped(own.model).load_state_dict(saved["network"])
            own.ema.ema.load_state_dict(saved["average"]["values"])
            own.ema.updates, own.best_fitness = saved["updates"], saved["best_fitness"]
            own.optimizer.load_state_dict(saved["optimizer"])
            own.start_epoch = saved["epoch"]
            own.scheduler.last_epoch = saved["epoch"] - 1

    def check(own: Any) -> None:
        if not bool(torch.isfinite(own.loss).all()):
            raise CspineError(
                f"the loss is not finite after epoch {own.epoch + 1}",
                where="schedule.learning_rate",
                fix="Lower it and run the same command; it goes on from the last checkpoint",
            )

    trainer.save_model = save
    # The library would now read its own checkpoint again.
    trainer.final_eval = lambda: None
    trainer.add_callback("on_pretrain_routine_end", go_on)
    trainer.add_callback("on_train_epoch_end", check)
    trainer.train()


class YoloNetwork(nn.Module):
    """A YOLO that takes images ``[B, C, S, S]``, -1 to 1, and answers as ``detectors.Detector`` does."""

    def __init__(self, yolo: nn.Module, view: PlanarView) -> None:
        super().__init__()
        self.yolo, self.size, self.shown = yolo, view.size, channels_of(view)
        # Its grid is otherwise kept from the last image, and an exporter would fix the number of images with it.
        head: Any = cast(Any, yolo).model[-1]
        head.dynamic = True

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``boxes`` ``[B, N, 4]``, pixels, and ``scores`` ``[B, N, K]``, probabilities, in the order of the grid."""
        found = self.yolo((image[:, self.shown] + 1).div(2).expand(-1, COLOURS, -1, -1))
        rows = (found[0] if isinstance(found, (tuple, list)) else found).transpose(1, 2)
        middle, half, scores = rows[:, :, :2], rows[:, :, 2:4] / 2, rows[:, :, 4:]
        boxes = torch.cat([middle - half, middle + half], dim=2).clamp(0, self.size)
        chosen = strongest(scores)
        return {
            "boxes": boxes.gather(1, chosen.expand(-1, -1, 4)),
            "scores": scores.gather(1, chosen.expand(-1, -1, scores.shape[2])),
        }


def build_yolo(network: PlanarNetwork, view: PlanarView) -> YoloNetwork:
    """A YOLO with random weights.

    Raises:
        MissingExtraError: the library is not installed.
        RecipeError: no such YOLO.
    """
    config = config_of(network.encoder)
    return YoloNetwork(library().model(config, ch=COLOURS, nc=class_count(network), verbose=False), view)


def yolo_network(checkpoint: Path, stage: PlanarStage) -> YoloNetwork:
    """The averaged network of a checkpoint that ``fit_yolo`` left, in evaluation mode.

    Raises:
        MissingExtraError: the library is not installed.
        RecipeError: not such a checkpoint, or of another network than the stage's.
    """
    saved = _saved(checkpoint, stage.network)
    built = build_yolo(stage.network, stage.view)
    built.yolo.load_state_dict(saved["average"]["values"])
    return built.eval()


def _saved(checkpoint: Path, network: PlanarNetwork) -> dict[str, Any]:
    """A checkpoint of ``fit_yolo`` for that network."""
    try:
        saved: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        own = PlanarNetwork.model_validate(saved["stage"]["network"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise RecipeError("expected the checkpoint of a yolo network", where=str(checkpoint)) from error
    if own != network:
        raise RecipeError(
            "the run's checkpoint has another network than the recipe",
            where=str(checkpoint),
            fix="Use another --out or the run's own recipe",
        )
    return saved


@contextmanager
def _speaking(wanted: bool) -> Iterator[None]:
    """Let the library tell how it gets on; it is quiet otherwise."""
    log = logging.getLogger(LOG)
    level = log.level
    if wanted:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)


def _plain(values: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in values.items()}


def _unwrapped(network: Any) -> nn.Module:
    """Without what spreads it over several GPUs."""
    inner: nn.Module = getattr(network, "module", network)
    return inner
