"""``cspine prepare``: a folder of labelled studies becomes training samples, once, on all cores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli import console
from cspine.errors import BatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cspine.training.prepare import Preparation, Prepared

# More reasons than this are not listed on the screen; the files hold them all.
SHOWN = 8


def prepare(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The RSNA 2022 folder as it is published.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="SAMPLES", help="Folder for the samples.", show_default=False)
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Finds the vertebrae of studies without a mask (default: the one that comes with cspine)."),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Parts to split patients into (default: 5).", min=2)] = None,
    seed: Annotated[int, typer.Option(help="Of the split.", min=0)] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core when not given.", min=1)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Prepare samples for cspine train, a tenth or so of the size of the images.

    The same command goes on after an interruption. A study that cannot be used never stops the others:
    SAMPLES/prepared.csv and prepared.json say what became of each.
    """
    preparation = opened(data, out, bundle)
    preparation.begin(folds=folds, seed=seed)
    done = run(preparation, workers=workers, quiet=quiet)
    refused = sum(item.status == "refused" for item in done)
    typer.echo(f"{len(done) - refused} studies prepared, {refused} refused: {out}")
    if refused:
        raise BatchError(
            f"{refused} studies could not be used; the others are prepared",
            where=str(out / "prepared.csv"),
            fix="The table says why; the same command tries them again",
        )


def opened(data: Path, out: Path, bundle: Path | None = None) -> Preparation:
    """The studies of a folder and where their samples go.

    Raises:
        UsageError: the folder is not of a layout that is known.
    """
    from importlib import resources

    from cspine.studies.rsna import RsnaFolder
    from cspine.training.prepare import Preparation

    if out.resolve() == data.resolve():
        raise UsageError("the samples need a folder of their own", where=str(out), fix="Give another --out")
    return Preparation(RsnaFolder.open(data), out, bundle or Path(str(resources.files("cspine"))) / "bundles" / "base")


def run(preparation: Preparation, *, workers: int | None = None, quiet: bool = False) -> Sequence[Prepared]:
    """Prepare what is missing, and say on stderr what could not be used; returns what is known of every study.

    Raises:
        CspineError: the bundle or the output folder cannot be used, or a worker died.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from cspine.cli.progress import quiet_libraries
    from cspine.studies.assemble import cores

    screen = console.stderr()
    for warning in () if quiet else preparation.data.warnings[:SHOWN]:
        screen.print(warning.message, markup=False, soft_wrap=True)
    missing = preparation.missing()
    total = len(preparation.data.studies)
    columns = (TextColumn("studies"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=quiet) as bar:
        task = bar.add_task("studies", total=total, completed=total - len(missing))
        try:
            with quiet_libraries():
                _make_all(preparation, missing, workers or cores(), lambda: bar.advance(task))
        finally:
            # Also after an interrupt: the tables then hold what is known by then.
            done = preparation.finish()
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


def _make_all(preparation: Preparation, missing: list[str], workers: int, advance: Callable[[], None]) -> None:
    """Prepare studies in this process, or in several."""
    if workers == 1 or len(missing) <= 1:
        for uid in missing:
            preparation.make(uid)
            advance()
        return
    from functools import partial

    from cspine.cli.workers import in_processes
    from cspine.training.prepare import make_study

    work = partial(make_study, preparation.data.path, preparation.out, preparation.bundle, threads=1)
    in_processes(work, missing, workers, advance)
