"""``cspine export``: a trained run becomes a bundle that predicts without torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli import console
from cspine.cli.evaluate import counting
from cspine.cli.extras import require

if TYPE_CHECKING:
    from cspine.inference.bundle import StageName


class OnlyChoice(StrEnum):
    """Which network may stand alone in a bundle."""

    LOCATOR = "locator"
    CLASSIFIER = "classifier"


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run with all networks of its recipe.", file_okay=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the run's samples (default: RUN/samples).", file_okay=False)
    ] = None,
    calibrate: Annotated[int, typer.Option(help="Phantoms to fit calibration and thresholds on; 0: none.", min=0)] = 60,
    seed: Annotated[int, typer.Option(help="Set of those phantoms; evaluate on another.", min=0)] = 1,
    preset: Annotated[str, typer.Option(help="Kind of scan: clinical, spine or coarse.")] = "spine",
    meshes: Annotated[
        list[Path] | None,
        typer.Option(help="Calibrate on as many phantoms of this folder of meshes too; may be repeated."),
    ] = None,
    sources: Annotated[
        str | None, typer.Option(help="Where the data come from and under which licences, for the card.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    half: Annotated[bool, typer.Option(help="Store large weights in float16.")] = True,
    name: Annotated[str | None, typer.Option(help="Name of the bundle (default: the recipe's).")] = None,
    only: Annotated[
        OnlyChoice | None,
        typer.Option(help="Pack this network alone. A classifier of images then judges single pictures, no volume."),
    ] = None,
) -> None:
    """Write ONNX files, check them in both runtimes, calibrate, record a phantom, and vouch for every byte."""
    require("train", for_what="cspine export")
    from cspine.evaluation.fracture_sets import FracturePhantoms
    from cspine.evaluation.running import evaluate_cases_in_parallel
    from cspine.inference.verify import record_into
    from cspine.training.export import calibrate_bundle, export_bundle

    screen = console.stderr()
    alone: StageName | None = None if only is None else "locator" if only is OnlyChoice.LOCATOR else "classifier"
    bundle = export_bundle(run, out, samples=data, half=half, name=name, sources=sources, only=alone)
    screen.print(f"the networks answer as torch does, in OpenVINO and ONNX Runtime: {out}", soft_wrap=True)
    if not bundle.manifest.judges_volumes:
        screen.print("it judges single pictures: there is no phantom to calibrate on, or to record", soft_wrap=True)
        typer.echo(f"{out} {bundle.sha256}")
        return
    # A method that only locates has no probabilities to calibrate.
    if calibrate and "classifier" in bundle.manifest.stages:
        records = []
        for source in (None, *(meshes or ())):
            phantoms = FracturePhantoms(count=calibrate, seed=seed, preset=preset, meshes=source)
            with counting("phantoms judged", calibrate) as progress:
                records += evaluate_cases_in_parallel(
                    phantoms, out, folder=run / "calibration", workers=workers, progress=progress
                )
        bundle = calibrate_bundle(out, records)
    bundle = record_into(out)
    typer.echo(f"{out} {bundle.sha256}")
