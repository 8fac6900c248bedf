"""``cspine evaluate``: how good a bundle is, on phantoms that nobody trained on, or on marked real scans."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cspine.cli import console
from cspine.errors import OutputError, UsageError


def evaluate(
    *,
    phantoms: Annotated[int, typer.Option(help="How many phantoms.", min=1)] = 60,
    seed: Annotated[int, typer.Option(help="Sets of different seeds share no phantom.", min=0)] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables, figures and one JSON a case.")],
    bundle: Annotated[
        Path | None, typer.Option(help="Folder of a bundle (default: the one that comes with cspine).")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Kind of scan: clinical, spine or coarse.", show_default="clinical; spine with --set"),
    ] = None,
    multiplier: Annotated[float, typer.Option(help="Factor on the prevalence of fractures.", min=0.0)] = 2.0,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    runtime: Annotated[str, typer.Option(help="openvino or onnxruntime.")] = "openvino",
    figures: Annotated[bool, typer.Option(help="Draw figures (needs matplotlib).")] = True,
    landmarks: Annotated[
        Path | None, typer.Option(help="Marked centres (JSON): measure levels on real scans instead of phantoms.")
    ] = None,
    scans: Annotated[Path | None, typer.Option(help="Folder of the marked scans (default: that of the marks).")] = None,
    variants: Annotated[
        str, typer.Option(help="Also score changed scans: all, none, or names and groups with commas between.")
    ] = "none",
    half: Annotated[str, typer.Option(help="Of the marked scans: development, test or all.")] = "all",
    development: Annotated[
        list[str] | None, typer.Option(help="Scan of the development half (repeat; default: every other one).")
    ] = None,
    scale: Annotated[
        list[str] | None, typer.Option(help="NAME=SLOPE,INTERCEPT for a marked scan that is not HU (repeat).")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option("--set", help="Measure the classifier on a held-out set: parametric, mesh or planted."),
    ] = None,
    cases: Annotated[int, typer.Option(help="How many cases of that set.", min=1)] = 200,
    meshes: Annotated[
        Path | None, typer.Option(help="Folder of C1..C7 meshes that nobody trained on (--set mesh).")
    ] = None,
    scan: Annotated[
        list[str] | None,
        typer.Option(help="Scan of an unbroken neck, PATH or PATH=SLOPE,INTERCEPT (--set planted; repeat)."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder where a set's cases are kept: another bundle need not wait for them.")
    ] = None,
) -> None:
    """Score a bundle. Cases that were done are kept, so the same command goes on after an interruption."""
    if family is not None and landmarks is not None:
        raise UsageError("--set and --landmarks measure different things", fix="Give one of them")
    if family is not None:
        from cspine.cli.fracture_sets import SetOptions, measure_set

        chosen = SetOptions(
            family=family,
            cases=cases,
            seed=seed,
            out=out,
            bundle=bundle or _default_bundle(),
            preset=preset,
            meshes=meshes,
            scan=tuple(scan or ()),
            keep=keep,
            workers=workers,
            runtime=runtime,
            figures=figures,
        )
        typer.echo(measure_set(chosen, counting))
        return
    if landmarks is not None:
        from cspine.cli.landmarks import LandmarkOptions, measure_landmarks

        wanted_scans = LandmarkOptions(
            landmarks=landmarks,
            scans=scans or landmarks.parent,
            out=out,
            bundle=bundle or _default_bundle(),
            variants=variants,
            half=half,
            development=tuple(development or ()),
            scale=tuple(scale or ()),
            workers=workers,
            runtime=runtime,
            figures=figures,
        )
        typer.echo(measure_landmarks(wanted_scans, counting))
        return
    place = bundle or _default_bundle()
    typer.echo(
        _measure_phantoms((phantoms, seed, preset or "clinical", multiplier), out, place, workers, runtime, figures)
    )


def _measure_phantoms(
    wanted: tuple[int, int, str, float], out: Path, bundle: Path, workers: int, runtime: str, figures: bool
) -> str:
    """Score phantoms (how many, seed, preset, multiplier), write tables and figures, and return the tables."""
    from importlib.util import find_spec

    from cspine.evaluation.phantoms import PhantomSet
    from cspine.evaluation.running import evaluate_cases, evaluate_cases_in_parallel
    from cspine.evaluation.summary import summarise, to_markdown
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor

    phantoms = PhantomSet(*wanted)
    folder = out / "cases"
    with counting("phantoms judged", phantoms.count) as progress:
        if workers > 1:
            records = evaluate_cases_in_parallel(
                phantoms, bundle, folder=folder, workers=workers, runtime=runtime, progress=progress
            )
        else:
            records = evaluate_cases(
                phantoms, Predictor(Bundle.load(bundle), runtime), folder=folder, progress=progress
            )
    summary = summarise(records)
    table = to_markdown(summary, f"{phantoms.count} phantoms ({phantoms.preset}), seed {phantoms.seed}")
    try:
        (out / "evaluation.json").write_text(json.dumps(summary, indent=2) + "\n")
        (out / "evaluation.md").write_text(table)
    except OSError as error:
        raise OutputError(f"cannot write the tables: {error}", where=str(out)) from error
    if figures and find_spec("matplotlib") is not None:
        from cspine.evaluation.figures import draw_figures

        draw_figures(records, out)
    return table


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
