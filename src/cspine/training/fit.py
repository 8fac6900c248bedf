"""Train a stage of a recipe; the same command goes on from where an earlier run stopped."""

from __future__ import annotations

import json
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

from cspine.errors import OutputError, RecipeError
from cspine.training.data import train_loader, validation_loader
from cspine.training.modules import ClassifierModule, LocatorModule, StageModule
from cspine.training.recipe import ClassifierStage, LocatorStage, Recipe

StageName = Literal["locator", "classifier"]
STAGES: tuple[StageName, ...] = ("locator", "classifier")
CHECKPOINT = "last.ckpt"


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


def build_module(stage: LocatorStage | ClassifierStage, max_minutes: float | None = None) -> StageModule:
    """The Lightning module of a stage."""
    if isinstance(stage, LocatorStage):
        return LocatorModule(stage, max_minutes)
    return ClassifierModule(stage, max_minutes)


def fit_stage(recipe: Recipe, name: StageName, samples: Path, run: Path, options: FitOptions | None = None) -> Path:
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
    stage = recipe.locator if name == "locator" else recipe.classifier
    folder = run / name
    _prepare(folder, recipe)
    lightning.seed_everything(recipe.seed, verbose=False)
    module = build_module(stage, options.max_minutes)
    if isinstance(stage, LocatorStage):
        module.network.to(memory_format=torch.channels_last_3d)
    else:
        module.network.to(memory_format=torch.channels_last)
    checkpoint = folder / CHECKPOINT
    resumed = _resume_point(checkpoint, stage)
    # A resumed run draws other examples than those it has seen.
    seed = recipe.seed * 1000 + (resumed or 0)
    loader = train_loader(samples / name, stage, seed=seed, workers=options.workers, patience=options.patience)
    held = validation_loader(samples / name, stage, options.validate_limit)
    log = "log" if resumed is None else f"log-from-{resumed}"
    trainer = _trainer(folder, stage, options, log, validate=held is not None)
    trainer.fit(module, loader, held, ckpt_path=str(checkpoint) if resumed is not None else None, weights_only=True)
    trainer.save_checkpoint(checkpoint)
    return checkpoint


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


def _resume_point(checkpoint: Path, stage: LocatorStage | ClassifierStage) -> int | None:
    """Steps done in an earlier run, or None when there is none.

    Raises:
        RecipeError: it was made with another network.
    """
    if not checkpoint.exists():
        return None
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if saved["stage"]["network"] != stage.model_dump(mode="json")["network"]:
        raise RecipeError(
            "the run's checkpoint has another network than the recipe",
            where=str(checkpoint),
            fix="Use another --out or the run's own recipe",
        )
    return int(saved["global_step"])


def _trainer(
    folder: Path, stage: LocatorStage | ClassifierStage, options: FitOptions, log: str, *, validate: bool
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
def generating(recipe: str, stage: StageName, out: Path, count: int, processes: int) -> Iterator[None]:
    """Draw phantoms in the background within the block; children end with it, finished samples stay."""
    import os

    children = []
    for first in range(processes):
        command = [sys.executable, "-m", "cspine.training.generate", "--stage", stage, "--out", str(out)]
        command += ["--count", str(count), "--first", str(first), "--step", str(processes)]
        command += ["--recipe", recipe, "--parent", str(os.getpid())]
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


def load_network(checkpoint: Path) -> tuple[torch.nn.Module, LocatorStage | ClassifierStage, dict[str, Any]]:
    """The averaged network of a checkpoint, in evaluation mode, with its stage and some facts.

    Only tensors and plain values are read, never code.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    data = saved["stage"]
    stage: LocatorStage | ClassifierStage
    if data["network"]["kind"] == "unet3d":
        stage = LocatorStage.model_validate_json(json.dumps(data))
    else:
        stage = ClassifierStage.model_validate_json(json.dumps(data))
    module = build_module(stage)
    module.network.load_state_dict(saved["average"]["values"])
    facts = {"steps": int(saved["global_step"]), "minutes": round(float(saved["trained_seconds"]) / 60, 1)}
    return module.network.eval(), stage, facts
