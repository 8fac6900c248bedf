"""``cspine explain``: where the classifier of a run looks, beside what it was shown."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli.evaluate import counting
from cspine.cli.extras import require
from cspine.errors import UsageError

if TYPE_CHECKING:
    from cspine.inference.predictor import Predictor
    from cspine.training.explain import Explainer


class Method(StrEnum):
    """How heat is computed."""

    GRADCAM = "gradcam"
    GRADCAM_PLUS_PLUS = "gradcam++"


def explain(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run of any recipe.", file_okay=False)],
    study: Annotated[
        Path,
        typer.Argument(
            help="Folder or zip of DICOM files, one DICOM file, or NIfTI; with --score a folder of labelled studies."
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for one picture a level and heat.json, or pointing.json.")
    ],
    method: Annotated[
        Method, typer.Option(help="Grad-CAM (Selvaraju et al., 2017) or Grad-CAM++ (Chattopadhyay et al., 2018).")
    ] = Method.GRADCAM,
    level: Annotated[
        list[str] | None, typer.Option(metavar="C1..C7", help="Only this level (repeat; default: all in the scan).")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle whose locator finds the levels (default: the built-in one).", file_okay=False),
    ] = None,
    series: Annotated[str | None, typer.Option(metavar="UID", help="Take this series instead of the best one.")] = None,
    scale: Annotated[
        str | None,
        typer.Option(metavar="SLOPE,INTERCEPT", help="HU = SLOPE * value + INTERCEPT, for files that do not say."),
    ] = None,
    score: Annotated[
        bool, typer.Option("--score", help="Say how often the heat lies on the fracture of STUDY's studies instead.")
    ] = False,
    cases: Annotated[
        int | None, typer.Option(help="With --score: at most this many studies with a fracture.", min=1)
    ] = None,
    tolerance: Annotated[
        float, typer.Option(metavar="MM", help="With --score: how close to a fracture is on it.", min=0.1)
    ] = 15.0,
) -> None:
    """Show where the classifier of a run sees a fracture: slice, heat map and the method's own evidence."""
    require("train", for_what="cspine explain")
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor
    from cspine.studies import open_study
    from cspine.training.explain import Explainer, chosen_levels
    from cspine.training.heat_pictures import write_heat

    wanted = chosen_levels(level or ())
    if score and (wanted or series or scale):
        raise UsageError("--score looks at every fractured level of every study", fix="Leave out the other options")
    explainer = Explainer.of_run(run, method.value)
    predictor = Predictor(Bundle.default() if bundle is None else Bundle.load(bundle))
    if score:
        _score(explainer, study, predictor, out, cases, tolerance)
        return
    volume = open_study(study, series=series, scale=scale)
    heats = explainer.explain(volume, predictor.predict_full(volume), wanted)
    write_heat(out, heats, explainer)
    for heat in heats:
        typer.echo(f"{heat.level.name} {heat.probability:.3f} {out / heat.picture}")


def _score(
    explainer: Explainer, data: Path, predictor: Predictor, out: Path, cases: int | None, tolerance: float
) -> None:
    """Print the figures and write them as ``pointing.json``."""
    from cspine.reports.atomic import write_file
    from cspine.studies.labelled import open_labelled
    from cspine.training.pointing_runs import fractured, score_heat

    studies = open_labelled(data)
    settings = {
        "checkpoint": explainer.digest,
        "method": explainer.method,
        "recipe": explainer.recipe,
        "bundle": predictor.bundle.sha256,
    }
    with counting("studies explained", len(fractured(studies, cases))) as progress:
        scores = score_heat(
            explainer,
            studies,
            predictor.predict_full,
            out / "studies",
            settings=settings,
            tolerance_mm=tolerance,
            limit=cases,
            progress=progress,
        )
    write_file(out / "pointing.json", (json.dumps(settings | scores.to_json(), indent=2) + "\n").encode())
    typer.echo("\n".join(scores.lines()))
