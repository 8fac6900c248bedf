"""Train a stage of a recipe; the same command goes on from where an earlier run stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from pydantic import ValidationError
from torch.utils.data import DataLoader

from cspine.errors import OutputError, RecipeError
from cspine.inference.bundle import STAGES, StageName
from cspine.training.averaging import Average
from cspine.training.data import Example, train_loader, validation_loader
from cspine.training.first_weights import PRETRAINED, first_weights, start_from
from cspine.training.generate import generating
from cspine.training.modules import ClassifierModule, LocatorModule, RefinerModule, StageModule
from cspine.training.networks import channels_last
from cspine.training.recipe import ClassifierStage, LocatorStage, PlanarStage, Recipe, RefinerStage, Stage
from cspine.training.trainer import CHECKPOINT, FitOptions, TrainableStage, make_trainer, process_rank, typed_errors

__all__ = [
    "CHECKPOINT", "PRETRAINED", "STAGES", "FitOptions", "Stage", "StageName", "TrainableStage",
    "build_module", "fit_stage", "generating", "load_network", "samples_folder",
]  # fmt: skip


def build_module(stage: TrainableStage, max_minutes: float | None = None) -> StageModule:
    """The Lightning module of a stage."""
    if isinstance(stage, LocatorStage):
        return LocatorModule(stage, max_minutes)
    if isinstance(stage, RefinerStage):
        return RefinerModule(stage, max_minutes)
    if isinstance(stage, PlanarStage):
        from cspine.training.planar_module import PlanarModule

        return PlanarModule(stage, max_minutes)
    return ClassifierModule(stage, max_minutes)


def samples_folder(stage: TrainableStage, name: str) -> str:
    """The sub-folder of a run's samples that a stage learns from: all planar stages share one."""
    return "planar" if isinstance(stage, PlanarStage) else name


def fit_stage(recipe: Recipe, name: StageName, samples: Path, run: Path, options: FitOptions | None = None) -> Path:
    """Train one stage to the end of its schedule, or until interrupted.

    Args:
        recipe: the method.
        name: which of its stages.
        samples: folder with a sub-folder of samples, see ``samples_folder``.
        run: folder of this run; checkpoints and logs go to ``run/name``. A checkpoint found there is resumed.
        options: how it is done.

    Returns:
        The last checkpoint.

    Raises:
        RecipeError: the checkpoint there is of another network, or the recipe's network cannot be built.
        OutputError: the folder cannot be written.
        StudyError: no samples.
        MissingExtraError: a library that the stage or its log needs is not installed.
        CspineError: the loss is not finite, or memory ran out; the last checkpoint is kept.
    """
    options = options or FitOptions()
    if options.threads:
        torch.set_num_threads(options.threads)
    found: TrainableStage | None = getattr(recipe, name)
    if found is None:
        raise RecipeError(f"the recipe has no {name}", where=recipe.name, fix="Choose another stage or recipe")
    stage = _cut(found, options.max_steps)
    folder = run / name
    _prepare(folder, recipe)
    if isinstance(stage, PlanarStage) and stage.network.body == "yolo":
        from cspine.training.yolo import settled

        stage, said = settled(stage)
        if said is not None:
            rank_zero_info(said)
    if isinstance(stage, PlanarStage) and stage.network.body == "yolo":
        return _fit_yolo(stage, samples, folder, recipe.seed, options)
    return _fit(stage, name, samples, folder, recipe.seed, options)


def _fit_yolo(stage: PlanarStage, samples: Path, folder: Path, seed: int, options: FitOptions) -> Path:
    from cspine.training.yolo import fit_yolo

    with typed_errors(stage, folder):
        return fit_yolo(
            stage,
            samples,
            folder,
            seed=seed,
            weights=options.weights,
            device="cpu" if options.accelerator == "cpu" else None,
            workers=options.workers,
            held_back=options.validate_limit,
            progress=options.progress,
        )


def _fit(stage: TrainableStage, name: StageName, samples: Path, folder: Path, seed: int, options: FitOptions) -> Path:
    lightning.seed_everything(seed, verbose=False)
    module = build_module(stage, options.max_minutes)
    channels_last(module.network)
    checkpoint = folder / CHECKPOINT
    resumed = _resume_point(checkpoint, stage)
    if resumed is None:
        _begin(module, stage, folder, options)
    # A resumed run draws other examples than those it has seen.
    loader, held = _loaders(stage, name, samples, seed * 1000 + (resumed or 0), options)
    log = "log" if resumed is None else f"log-from-{resumed}"
    trainer = make_trainer(folder, stage, options, log, validate=held is not None)
    with typed_errors(stage, folder):
        trainer.fit(module, loader, held, ckpt_path=str(checkpoint) if resumed is not None else None, weights_only=True)
        trainer.save_checkpoint(checkpoint, weights_only=False)
    return checkpoint


def _cut(stage: TrainableStage, steps: int | None) -> TrainableStage:
    """The stage with a schedule of at most so many steps, its warm-up in proportion."""
    schedule = stage.schedule
    if steps is None or steps >= schedule.steps:
        return stage
    warmup = max(1, round(schedule.warmup_steps * steps / schedule.steps))
    return stage.model_copy(
        update={"schedule": schedule.model_copy(update={"steps": steps, "warmup_steps": warmup})}
    )  # fmt: skip


def _loaders(
    stage: TrainableStage, name: StageName, samples: Path, seed: int, options: FitOptions
) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Training batches without end, and the held-back examples if there are any."""
    folder, rank = samples / samples_folder(stage, name), process_rank()
    workers, limit, patience = options.workers, options.validate_limit, options.patience
    if isinstance(stage, PlanarStage):
        from cspine.training.planar_data import planar_loaders

        return planar_loaders(folder, stage, seed=(seed, rank), workers=workers, limit=limit, patience=patience)
    loader: DataLoader[Example] = train_loader(
        folder, stage, seed=seed, workers=workers, patience=patience, rank=rank
    )  # fmt: skip
    return loader, validation_loader(folder, stage, limit)


def _begin(module: StageModule, stage: TrainableStage, folder: Path, options: FitOptions) -> None:
    """First weights of a new run: pretrained ones where the network takes any, then those of another run."""
    if isinstance(stage, (ClassifierStage, PlanarStage)):
        rank_zero_info(first_weights(module.network, stage.network, folder / PRETRAINED, options.weights))
    if options.start is not None:
        rank_zero_info(start_from(module.network, options.start))
    # The module began its average before these weights came.
    module.average = Average(module.network, stage.schedule.ema_decay)


def _prepare(folder: Path, recipe: Recipe) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write the run: {error}", where=str(folder)) from error


def _resume_point(checkpoint: Path, stage: TrainableStage) -> int | None:
    """Steps done in an earlier run, or None when there is none.

    Raises:
        RecipeError: it was made with another network, or with other images for it.
    """
    if not checkpoint.exists():
        return None
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if not _same(saved["stage"], stage):
        raise RecipeError(
            "the run's checkpoint has another network than the recipe",
            where=str(checkpoint),
            fix="Use another --out or the run's own recipe",
        )
    return int(saved["global_step"])


def _same(saved: dict[str, Any], stage: TrainableStage) -> bool:
    """Whether a saved stage has this one's network and, where that matters, view."""
    try:
        # Read as a configuration, since an older checkpoint does not name settings that are newer than it.
        network = type(stage.network).model_validate_json(json.dumps(saved["network"]))
        view = type(stage.view).model_validate_json(json.dumps(saved["view"])) if isinstance(stage, PlanarStage) else 0
    except (ValidationError, KeyError):
        return False
    return network == stage.network and (not isinstance(stage, PlanarStage) or view == stage.view)


def load_network(checkpoint: Path) -> tuple[torch.nn.Module, Stage, dict[str, Any]]:
    """The averaged network of a checkpoint, in evaluation mode, with its stage and some facts.

    Only tensors and plain values are read, never code.

    Raises:
        MissingExtraError: a network of a library that is not installed.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    stage = _read_stage(saved["stage"])
    facts = {"steps": int(saved["global_step"]), "minutes": round(float(saved["trained_seconds"]) / 60, 1)}
    if isinstance(stage, PlanarStage) and stage.network.body == "yolo":
        from cspine.training.yolo import yolo_network

        return yolo_network(checkpoint, stage), stage, facts
    module = build_module(stage)
    module.network.load_state_dict(saved["average"]["values"])
    return module.network.eval(), stage, facts


def _read_stage(data: dict[str, Any]) -> Stage:
    """The stage that a checkpoint says it is of."""
    kinds: dict[str, type[Stage]] = {"planar": PlanarStage, "flexible-unet3d": LocatorStage, "unet3d": LocatorStage}
    kind = kinds.get(data["network"]["kind"], ClassifierStage)
    if data["network"]["kind"] == "unet3d" and not data["network"].get("heat", True):
        kind = RefinerStage
    return kind.model_validate_json(json.dumps(data))
