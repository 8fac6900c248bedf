"""``cspine prepare``: a folder of labelled studies becomes training samples, once, on all cores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli import console
from cspine.errors import BatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cspine.training.case_samples import SampleKind
    from cspine.training.prepare import Preparation, Prepared

# More reasons than this are not listed on the screen; the files hold them all.
SHOWN = 8


def prepare(
    data: Annotated[
        Path, typer.Argument(metavar="DIR", help="Labelled studies: RSNA 2022, phantoms, NIfTI with CSV, or pictures.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="SAMPLES", help="Folder for the samples.", show_default=False)
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Finds the vertebrae of studies without a mask (default: the one that comes with cspine)."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Write only what this recipe learns from (default: all that the data can teach).")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Parts to split patients into (default: 5).", min=2)] = None,
    ratio: Annotated[
        str | None, typer.Option(metavar="0.8|80:20", help="Hold back one part; the share to train on comes first.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.", min=0)] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core when not given.", min=1)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Prepare samples for cspine train, a tenth or so of the size of the images.

    The same command goes on after an interruption. A study that cannot be used never stops the others:
    SAMPLES/prepared.csv and prepared.json say what became of each.
    """
    from cspine.training.splits import parsed_ratio

    preparation = opened(data, out, bundle, wanted=_wanted(recipe))
    preparation.begin(folds=folds, ratio=None if ratio is None else parsed_ratio(ratio), seed=seed)
    done = run(preparation, workers=workers, quiet=quiet)
    refused = sum(item.status == "refused" for item in done)
    typer.echo(f"{len(done) - refused} studies prepared, {refused} refused: {out}")
    if refused:
        raise BatchError(
            f"{refused} studies could not be used; the others are prepared",
            where=str(out / "prepared.csv"),
            fix="The table says why; the same command tries them again",
        )


def _wanted(recipe: str | None) -> tuple[SampleKind, ...] | None:
    """The kinds of samples that a recipe learns from."""
    from cspine.training.case_samples import kinds_for
    from cspine.training.recipe import load_recipe

    return None if recipe is None else kinds_for(load_recipe(recipe))


def opened(
    data: Path, out: Path, bundle: Path | None = None, wanted: tuple[SampleKind, ...] | None = None
) -> Preparation:
    """The studies of a folder and where their samples go.

    Args:
        data: of any layout that ``open_labelled`` knows.
        out: folder of the samples.
        bundle: what finds vertebrae where nobody outlined them; None for the one that comes with cspine.
        wanted: kinds of samples; None for all.

    Raises:
        UsageError: the folder is not of a layout that is known.
    """
    from importlib import resources

    from cspine.studies.labelled import open_labelled
    from cspine.training.case_samples import KINDS
    from cspine.training.prepare import Preparation

    if out.resolve() == data.resolve():
        raise UsageError("the samples need a folder of their own", where=str(out), fix="Give another --out")
    finder = bundle or Path(str(resources.files("cspine"))) / "bundles" / "base"
    return Preparation(open_labelled(data), out, finder, KINDS if wanted is None else wanted)


def run(preparation: Preparation, *, workers: int | None = None, quiet: bool = False) -> Sequence[Prepared]:
    """Prepare what is missing, and say on stderr what could not be used; returns what is known of every study.

    Raises:
        CspineError: the bundle or the output folder cannot be used, or a worker died.
    """
    from functools import partial

    from cspine.cli.progress import quiet_libraries
    from cspine.cli.workers import do_all
    from cspine.studies.assemble import cores
    from cspine.training.prepare import make_study

    screen = console.stderr()
    for warning in () if quiet else preparation.data.warnings[:SHOWN]:
        screen.print(warning.message, markup=False, soft_wrap=True)
    shared = partial(
        make_study, preparation.data.path, preparation.out, preparation.bundle, wanted=preparation.wanted, threads=1
    )
    with quiet_libraries():
        done = do_all(
            "studies",
            preparation.missing(),
            preparation.make,
            shared,
            total=len(preparation.data.studies),
            workers=workers or cores(),
            finish=preparation.finish,
            quiet=quiet,
        )
    if not quiet:
        _say_refused(done)
    return done


def _say_refused(done: Sequence[Prepared]) -> None:
    """Each reason once, with how many studies it is of and an example."""
    refused = [item for item in done if item.status == "refused"]
    screen = console.stderr()
    for reason, count in Counter(item.reason for item in refused).most_common(SHOWN):
        first = next(item for item in refused if item.reason == reason)
        more = f" and {count - 1} more" if count > 1 else ""
        screen.print(f"not used: {first.study}{more}: {reason} ({first.where})", markup=False, soft_wrap=True)
    lost = sum(len(item.lost) for item in done)
    if lost:
        screen.print(f"{lost} fractured vertebrae are not used: they were not found whole", markup=False)
