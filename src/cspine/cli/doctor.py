"""``cspine doctor``: what is here, what works, and what to install for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cspine.cli.console import stdout


def doctor(
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Look at this model bundle instead of the built-in one.")
    ] = None,
) -> None:
    """Say which decoders, runtimes, bundles and extras are here and working, and what to install for the rest.

    The exit code is 0 when predicting would work.
    """
    from rich.table import Table
    from rich.text import Text

    from cspine.cli.checks import everything
    from cspine.cli.progress import quiet_libraries

    console = stdout()
    with quiet_libraries():
        checks = everything(bundle)
    group = ""
    table = Table.grid(padding=(0, 2))
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_row(Text(group, style="bold"))
        needed = check.fault is not None or check.good
        mark = Text("ok", style="green") if check.good else Text("no", style="bold red" if needed else "dim")
        table.add_row(Text(f"  {check.name}"), mark, Text(check.detail))
        if not check.good and check.fix:
            table.add_row("", "", Text(check.fix, style="italic"))
    console.print(table)
    faults = [check.fault for check in checks if not check.good and check.fault is not None]
    if faults:
        console.print(Text(f"predicting does not work here: {len(faults)} of the above are needed", style="bold red"))
        raise typer.Exit(faults[0].exit_code)
    console.print(Text("predicting works here", style="green"))
