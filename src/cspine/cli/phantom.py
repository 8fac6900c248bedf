"""``cspine phantom``: synthetic studies with truth, on all cores."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli import console

if TYPE_CHECKING:
    from cspine.phantoms.cohort import Cohort


class LayoutName(StrEnum):
    """How the files are laid out."""

    RSNA2022 = "rsna2022"
    NIFTI = "nifti"
    DICOM = "dicom"


class PresetName(StrEnum):
    """Kind of scan."""

    CLINICAL = "clinical"
    SPINE = "spine"
    COARSE = "coarse"


def phantom(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for the studies.", show_default=False)
    ],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many studies.")] = 1,
    layout: Annotated[LayoutName, typer.Option(help="How the files are laid out.")] = LayoutName.RSNA2022,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same studies, byte for byte.")] = 0,
    preset: Annotated[
        PresetName, typer.Option(help="clinical: whole 512x512 scans; spine: crops; coarse: 1 to 3 mm.")
    ] = PresetName.CLINICAL,
    prevalence: Annotated[
        float, typer.Option(min=0, metavar="FACTOR", help="Times the fractures of RSNA 2022 at every level.")
    ] = 1.0,
    masks: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Share of studies with a mask (rsna2022 layout).")
    ] = 1.0,
    meshes: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder of meshes C1 to C7 (PLY, STL, OBJ); may be repeated."),
    ] = None,
    mesh_share: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Share of patients drawn from the meshes.")
    ] = 0.6,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core when not given.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Make synthetic neck CTs with known fractures.

    Every study comes with its truth: labels, fractures by name and place, boxes, body centres. The same command goes
    on after an interruption; finished studies are kept.
    """
    from cspine.phantoms.cohort import Cohort

    cohort = Cohort(out, layout.value, seed, preset.value, prevalence, masks, tuple(meshes or ()), mesh_share)
    made, kept = run(cohort, count, workers=workers, quiet=quiet)
    if not quiet:
        console.stdout().print(f"{made} made, {kept} were there: {out}", soft_wrap=True, markup=False)


def run(cohort: Cohort, count: int, *, workers: int | None = None, quiet: bool = False) -> tuple[int, int]:
    """Make the missing ones of the first ``count`` phantoms, then the tables; returns how many were made and kept.

    Raises:
        CspineError: the folder cannot be used, or a worker died.
    """
    from cspine.cli.workers import do_all

    missing = cohort.missing(count)
    cohort.begin()

    def finish() -> None:
        if any((cohort.out / "truth").glob("*.json")):
            cohort.finish()

    do_all(
        "phantoms",
        missing,
        cohort.make,
        cohort.make,
        total=count,
        workers=workers or os.cpu_count() or 1,
        finish=finish,
        quiet=quiet,
    )
    return len(missing), count - len(missing)
