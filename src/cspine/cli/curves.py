"""``cspine curves``: loss and validation figures of a training run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cspine.cli.extras import require


def curves(
    run: Annotated[Path, typer.Argument(help="Folder of a run that trains or has trained.", file_okay=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write: .png, .svg or .pdf.", dir_okay=False)],
) -> None:
    """Draw loss and validation figures of a run over its steps, one panel a stage."""
    require("train", for_what="cspine curves")
    from cspine.training.curves import draw_curves

    typer.echo(str(draw_curves(run, out)))
