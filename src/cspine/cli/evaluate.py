"""``cspine evaluate``: how good a bundle is, on phantoms that nobody trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cspine.cli import console
from cspine.errors import OutputError


def evaluate(
    *,
    phantoms: Annotated[int, typer.Option(help="How many phantoms.", min=1)] = 60,
    seed: Annotated[int, typer.Option(help="Sets of different seeds share no phantom.", min=0)] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables, figures and one JSON a case.")],
    bundle: Annotated[
        Path | None, typer.Option(help="Folder of a bundle (default: the one that comes with cspine).")
    ] = None,
    preset: Annotated[str, typer.Option(help="Kind of scan: clinical, spine or coarse.")] = "clinical",
    multiplier: Annotated[float, typer.Option(help="Factor on the prevalence of fractures.", min=0.0)] = 2.0,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    runtime: Annotated[str, typer.Option(help="openvino or onnxruntime.")] = "openvino",
    figures: Annotated[bool, typer.Option(help="Draw figures (needs matplotlib).")] = True,
) -> None:
    """Score a bundle. Cases that were done are kept, so the same command goes on after an interruption."""
    from importlib.util import find_spec

    from cspine.evaluation.phantoms import PhantomSet, evaluate_phantoms, evaluate_phantoms_in_parallel
    from cspine.evaluation.summary import summarise, to_markdown
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor

    wanted = PhantomSet(count=phantoms, seed=seed, preset=preset, multiplier=multiplier)
    folder = out / "cases"
    with counting("phantoms judged", phantoms) as progress:
        if workers > 1:
            place = bundle or _default_bundle()
            records = evaluate_phantoms_in_parallel(
                wanted, place, folder=folder, workers=workers, runtime=runtime, progress=progress
            )
        else:
            predictor = Predictor(Bundle.load(bundle) if bundle else None, runtime)
            records = evaluate_phantoms(wanted, predictor, folder=folder, progress=progress)
    summary = summarise(records)
    title = f"{phantoms} phantoms ({preset}), seed {seed}"
    table = to_markdown(summary, title)
    try:
        (out / "evaluation.json").write_text(json.dumps(summary, indent=2) + "\n")
        (out / "evaluation.md").write_text(table)
    except OSError as error:
        raise OutputError(f"cannot write the tables: {error}", where=str(out)) from error
    if figures and find_spec("matplotlib") is not None:
        from cspine.evaluation.figures import draw_figures

        draw_figures(records, out)
    typer.echo(table)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that counts to ``total``; yields what sets it to ``(done, total)``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console.stderr(), transient=True) as bars:
        task = bars.add_task(what, total=total)

        def show(done: int, _: int) -> None:
            bars.update(task, completed=done)

        yield show


def _default_bundle() -> Path:
    from importlib import resources

    return Path(str(resources.files("cspine"))) / "bundles" / "base"
