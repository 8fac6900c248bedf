"""``cspine train``: train the networks of a recipe."""

from __future__ import annotations

from contextlib import ExitStack
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
    CLASSIFIER = "classifier"
    BOTH = "both"


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe that comes with cspine (base), or a .toml file.")] = "base",
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints and logs.")],
    phantoms: Annotated[
        int, typer.Option(help="Draw this many phantoms a stage while training; finished ones are reused.", min=0)
    ] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Folder of training samples (default: OUT/samples).", file_okay=False)
    ] = None,
    stage: Annotated[StageChoice, typer.Option(help="Which network.")] = StageChoice.BOTH,
    max_minutes: Annotated[
        float | None, typer.Option(help="Training time a stage, instead of the recipe's steps.", min=0.01)
    ] = None,
    generators: Annotated[int, typer.Option(help="Processes that draw phantoms.", min=1)] = 1,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches; 0: none.", min=0)] = 1,
    threads: Annotated[int | None, typer.Option(help="Processor threads of the training itself.", min=1)] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from a checkpoint in OUT, or refuse when there is one.")
    ] = True,
) -> None:
    """Train a recipe. The same command goes on from where an interrupted run stopped."""
    require("train", for_what="cspine train")
    from cspine.training.fit import CHECKPOINT, STAGES, FitOptions, fit_stage, generating
    from cspine.training.recipe import load_recipe

    chosen = load_recipe(recipe)
    samples = data or out / "samples"
    names = [name for name in STAGES if stage in (StageChoice.BOTH, name)]
    for name in names:
        if not resume and (out / name / CHECKPOINT).exists():
            raise UsageError("the run has a checkpoint", where=str(out / name), fix="Use --resume or another --out")
        if not phantoms and not (samples / name).is_dir():
            raise UsageError(
                f"no samples for the {name}", where=str(samples / name), fix="Give --phantoms N, or --data DIR"
            )
    screen = console.stderr()
    options = FitOptions(max_minutes=max_minutes, workers=workers, threads=threads, progress=screen.is_terminal)
    for name in names:
        with ExitStack() as stack:
            if phantoms:
                stack.enter_context(generating(recipe, name, samples, phantoms, generators))
            screen.print(f"training the {name} of recipe {chosen.name} in {out / name}", soft_wrap=True)
            checkpoint = fit_stage(chosen, name, samples, out, options)
            typer.echo(str(checkpoint))
