"""``cspine evaluate``: how good a bundle is, on labelled studies, unseen phantoms, or marked real scans."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cspine.cli import console
from cspine.cli.evaluate_data import DataOptions, measure_data
from cspine.errors import OutputError, UsageError

_Bundle = Annotated[
    Path | None,
    typer.Argument(
        metavar="BUNDLE", help="Folder of a bundle (default: the one that comes with cspine).", show_default=False
    ),
]
_Data = Annotated[
    Path | None,
    typer.Option(help="Score on these labelled studies: RSNA 2022, phantoms, NIfTI or pictures.", file_okay=False),
]
_Samples = Annotated[
    Path | None,
    typer.Option(
        help="Samples made from --data: its splits.json says which studies --fold held back.", file_okay=False
    ),
]
_Fold = Annotated[int, typer.Option(help="Part that was held back, with --samples.", min=0)]
_Phantoms = Annotated[int, typer.Option(help="How many phantoms.", min=1)]
_Seed = Annotated[int, typer.Option(help="Sets of different seeds share no phantom.", min=0)]
_Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for tables, figures and one JSON a case.")]
_BundleOption = Annotated[Path | None, typer.Option("--bundle", help="The same as BUNDLE.")]
_Preset = Annotated[
    str | None,
    typer.Option(help="Kind of scan: clinical, spine or coarse.", show_default="clinical; spine with --set"),
]
_Multiplier = Annotated[float, typer.Option(help="Factor on the prevalence of fractures.", min=0.0)]
_Workers = Annotated[int, typer.Option(help="Processes.", min=1)]
_Runtime = Annotated[str, typer.Option(help="openvino or onnxruntime.")]
_Figures = Annotated[bool, typer.Option(help="Draw figures (needs matplotlib).")]
_Landmarks = Annotated[
    Path | None, typer.Option(help="Marked centres (JSON): measure levels on real scans instead of phantoms.")
]
_Scans = Annotated[Path | None, typer.Option(help="Folder of the marked scans (default: that of the marks).")]
_Variants = Annotated[
    str, typer.Option(help="Also score changed scans: all, none, or names and groups with commas between.")
]
_Half = Annotated[str, typer.Option(help="Of the marked scans: development, test or all.")]
_Development = Annotated[
    list[str] | None, typer.Option(help="Scan of the development half (repeat; default: every other one).")
]
_Scale = Annotated[
    list[str] | None, typer.Option(help="NAME=SLOPE,INTERCEPT for a marked scan that is not HU (repeat).")
]
_Family = Annotated[
    str | None,
    typer.Option("--set", help="Measure the classifier on a held-out set: parametric, mesh or planted."),
]
_Cases = Annotated[int, typer.Option(help="How many cases of that set.", min=1)]
_Meshes = Annotated[Path | None, typer.Option(help="Folder of C1..C7 meshes that nobody trained on (--set mesh).")]
_Scan = Annotated[
    list[str] | None,
    typer.Option(help="Scan of an unbroken neck, PATH or PATH=SLOPE,INTERCEPT (--set planted; repeat)."),
]
_Keep = Annotated[
    Path | None, typer.Option(help="Folder where a set's cases are kept: another bundle need not wait for them.")
]


def evaluate(
    place: _Bundle = None,
    *,
    data: _Data = None, samples: _Samples = None, fold: _Fold = 0,
    phantoms: _Phantoms = 60, seed: _Seed = 0, out: _Out, bundle: _BundleOption = None, preset: _Preset = None,
    multiplier: _Multiplier = 2.0, workers: _Workers = 1, runtime: _Runtime = "openvino", figures: _Figures = True,
    landmarks: _Landmarks = None, scans: _Scans = None, variants: _Variants = "none", half: _Half = "all",
    development: _Development = None, scale: _Scale = None,
    family: _Family = None, cases: _Cases = 200, meshes: _Meshes = None, scan: _Scan = None, keep: _Keep = None,
) -> None:  # fmt: skip
    """Score a bundle. Cases that were done are kept, so the same command goes on after an interruption."""
    given = {"--data": data, "--set": family, "--landmarks": landmarks}
    modes = [name for name, value in given.items() if value is not None]
    if len(modes) > 1:
        raise UsageError(f"{' and '.join(modes)} measure different things", fix="Give one of them")
    if place is not None and bundle is not None:
        raise UsageError("the bundle is given twice", where="--bundle", fix="Give BUNDLE alone")
    if samples is not None and data is None:
        raise UsageError("--samples says which studies of --data are scored", where="--samples", fix="Give --data too")
    chosen = place or bundle or _default_bundle()
    common = {"out": out, "bundle": chosen, "workers": workers, "runtime": runtime}
    if data is not None:
        text = measure_data(DataOptions(data, samples, fold, out, chosen, workers, runtime), counting)
    elif family is not None:
        wanted = {"family": family, "cases": cases, "seed": seed, "preset": preset, "meshes": meshes, "keep": keep}
        text = _measure_set(wanted | {"scan": tuple(scan or ()), "figures": figures} | common)
    elif landmarks is not None:
        wanted = {"landmarks": landmarks, "scans": scans or landmarks.parent, "variants": variants, "half": half}
        names = {"development": tuple(development or ()), "scale": tuple(scale or ())}
        text = _measure_landmarks(wanted | names | {"figures": figures} | common)
    else:
        what = (phantoms, seed, preset or "clinical", multiplier)
        text = _measure_phantoms(what, out, chosen, workers, runtime, figures)
    typer.echo(text)


def _measure_set(values: dict[str, Any]) -> str:
    """Tables of a held-out set; names are those of ``SetOptions``."""
    from cspine.cli.fracture_sets import SetOptions, measure_set

    return measure_set(SetOptions(**values), counting)


def _measure_landmarks(values: dict[str, Any]) -> str:
    """Tables of marked scans; names are those of ``LandmarkOptions``."""
    from cspine.cli.landmarks import LandmarkOptions, measure_landmarks

    return measure_landmarks(LandmarkOptions(**values), counting)


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
