"""``cspine demo``: a synthetic neck CT with two fractures, judged, with what was planted beside what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli.console import Verbosity, stderr, stdout

if TYPE_CHECKING:
    from rich.table import Table

    from cspine.cases import Case
    from cspine.findings import Findings
    from cspine.phantoms.scanner import Scanner

DEMO_SEED = 7
"""The default patient."""
DEMO_SEVERITY = 0.75
"""Of both fractures, 0 hairline to 1 displaced: a reader should see them too."""


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="Folder for the study and its results.")
    ] = Path("demo-output"),
    seed: Annotated[int, typer.Option(min=0, help="Another number, another patient.")] = DEMO_SEED,
) -> None:
    """Make a synthetic neck CT with two fractures, judge it, and show the report.

    Needs no patient data, no network and no settings.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from cspine.cli.predict import Options, run
    from cspine.inference.bundle import Bundle

    # Before the phantom is drawn: without a model there is nothing to show.
    Bundle.default()
    study, result = out / "study", out / "result"
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        bar.add_task("making a neck CT with two fractures", total=None)
        case = make_study(study, seed)
    outcome = run([study], result, Options(), resume=False, verbosity=Verbosity.QUIET)[0]
    console = stdout()
    console.print(comparison(case, outcome.findings))
    console.print(f"study   {study}", soft_wrap=True, markup=False)
    console.print(f"report  {result / 'report.html'}", soft_wrap=True, markup=False)
    console.print("Synthetic patient; research use only, not a diagnosis.", style="dim")


def make_study(folder: Path, seed: int, *, scanner: Scanner | None = None) -> Case:
    """Write a phantom with two fractures as a DICOM series; the same seed gives the same bytes.

    The dens is broken at its base, and one of C5 to C7 is burst.

    Args:
        folder: replaced when it exists.
        seed: of the patient, the fractures and the noise.
        scanner: how it is scanned, else 1 mm slices that show the whole neck.

    Raises:
        OutputError: the folder cannot be written.
    """
    import numpy as np

    from cspine.phantoms.acquisition import acquire
    from cspine.phantoms.case import case_of
    from cspine.phantoms.fracture_types import FractureType
    from cspine.phantoms.fractures import plan_fracture
    from cspine.phantoms.scanner import Scanner
    from cspine.phantoms.scene import make_scene
    from cspine.phantoms.write import write_dicom

    patient, breaks, noise = np.random.SeedSequence(seed).spawn(3)
    whole = make_scene(int(patient.generate_state(1)[0]), fractures="none")
    rng = np.random.default_rng(breaks)
    planted = ((2, FractureType.DENS_II), (int(rng.integers(5, 8)), FractureType.BURST))
    broken = replace(
        whole,
        fractures=tuple(
            plan_fracture(rng, level, whole.spine.landmarks[level], type=kind, severity=DEMO_SEVERITY)
            for level, kind in planted
        ),
    )
    # Large enough to show the neck whole, small enough to be made in well under a minute.
    scanner = scanner or Scanner(
        pixel=0.45, matrix=(360, 360), spacing=1.0, thickness=1.0, above_c1=35.0, below_c7=40.0
    )
    case = case_of(broken, acquire(broken, scanner, np.random.default_rng(noise)), name="demo")
    write_dicom(case, folder)
    return case


def comparison(case: Case, findings: Findings) -> Table:
    """A table of what was planted and what was found, one row a level."""
    from rich.table import Table

    from cspine.anatomy import Level

    table = Table(title="planted and found", title_justify="left")
    for column in ("level", "planted", "found", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left")
    for found in findings.levels:
        truth = case.levels.get(Level[found.level])
        planted = ", ".join(truth.types) if truth is not None and truth.fractured else "-"
        table.add_row(
            found.level, planted, _said(found.fracture, found.type, found.not_judged), _shown(found.probability)
        )
    return table


def _said(fracture: bool | None, kind: str | None, not_judged: str | None) -> str:
    if fracture is None:
        return f"not judged: {not_judged}" if not_judged else "not judged"
    return (kind or "fracture") if fracture else "-"


def _shown(probability: float | None) -> str:
    return "" if probability is None else f"{probability:.2f}"
