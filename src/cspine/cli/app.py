"""``cspine``: the commands, and what happens to an error that reaches the top."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cspine import __version__
from cspine.cli import (
    bundle,
    compare,
    console,
    curves,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    info,
    node,
    phantom,
    plant,
    predict,
    prepare,
    recipes,
    submission,
    train,
    web,
)
from cspine.errors import CspineError


class _Commands(TyperGroup):
    """Turns errors a user can meet into a message and the documented exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except CspineError as error:
            console.show_error(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            console.stderr().print("interrupted: finished results are kept; the same command goes on from there")
            raise typer.Exit(console.EXIT_INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    name="cspine",
    help="Find cervical spine fractures on CT: per vertebra, with the evidence and the limits shown.\n\n"
    "Research use only. Not a diagnosis, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cspine {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


# In the order in which a newcomer meets them.
COMMANDS = (
    predict.predict,
    info.info,
    demo.demo,
    doctor.doctor,
    phantom.phantom,
    plant.plant,
    recipes.recipes,
    prepare.prepare,
    train.train,
    curves.curves,
    evaluate.evaluate,
    compare.compare,
    submission.submission,
    explain.explain,
    export.export,
)
for _command in COMMANDS:
    app.command()(_command)
app.add_typer(bundle.app, name="bundle")
app.add_typer(node.app, name="node")
app.add_typer(web.app, name="web")


def main() -> None:
    """The ``cspine`` program."""
    app()
