"""``cspine web``: the web application, and what looks after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli.console import stderr, stdout
from cspine.cli.extras import require

if TYPE_CHECKING:
    from cspine.web.settings import WebSettings

app = typer.Typer(
    help="The web application: accounts, upload, worklist and reading room. Alone, it runs with its defaults.",
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)

_File = Annotated[
    Path | None,
    typer.Option(
        "--settings", "-s", metavar="FILE", help="Settings, TOML; without it the defaults.", show_default=False
    ),
]
_Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Data folder, instead of the settings'.", show_default=False),
]
_Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port, instead of the settings'.", show_default=False)
]


@app.callback()
def alone(context: typer.Context, *, settings: _File = None, data: _Data = None, port: _Port = None) -> None:
    """The web application: accounts, upload, worklist and reading room. Alone, it runs with its defaults."""
    if context.invoked_subcommand is None:
        run(settings=settings, data=data, port=port)
    elif (settings, data, port) != (None, None, None):
        from cspine.errors import UsageError

        raise UsageError("options come after the command", fix=f"cspine web {context.invoked_subcommand} --settings …")


@app.command()
def run(
    *,
    settings: _File = None,
    data: _Data = None,
    port: _Port = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    """Run the application until it is stopped with Ctrl-C or SIGTERM.

    Prints its address and, as long as nobody looks after the accounts, a link that makes the first administrator, once,
    within an hour. It may be killed at any moment: what was uploaded or queued is gone on with at the next start.
    """
    import logging
    import os
    import sys

    found = _settings(settings, data, port)
    from cspine.web.server import Server

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    for name in ("waitress", "dbos", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with Server(found) as server:
        typer.echo(f"cspine web: {server.settings.address}")
        link = server.first_link()
        if link is not None:
            typer.echo(f"first administrator (once, within an hour): {link}")
        sys.stdout.flush()
        stderr().print("stop with Ctrl-C")
        server.run()
    logging.shutdown()
    # A judgement under way must not hold up the end: its child dies with us, and it is done at the next start.
    os._exit(0)


@app.command()
def init(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Where the settings go, such as web.toml.")],
) -> None:
    """Write settings with every key explained; none of them needs changing to begin."""
    from importlib.resources import files

    from cspine.errors import OutputError, UsageError

    require("web", for_what="cspine web")
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write((files("cspine.web") / "sample.toml").read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise UsageError("a file of that name is there", where=target.name, fix="Choose another name") from error
    except OSError as error:
        raise OutputError(f"the settings cannot be written: {error.strerror}", where=target.name) from error
    stdout().print(f"{target}: settings. Run: cspine web run --settings {target}")


@app.command()
def user(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Address of the account.")],
    *,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="reader, uploader, administrator or auditor; once each.", show_default=False),
    ] = None,
    settings: _File = None,
    data: _Data = None,
) -> None:
    """Print a one-time link: an invitation for somebody new, a new password for somebody who has an account.

    With --role, the account gets these roles, and may log in again if it was closed.
    """
    from cspine.errors import UsageError

    found = _settings(settings, data)
    from cspine.web.people import link_for

    try:
        link, known = link_for(found, email, tuple(role or ()))
    except ValueError as error:
        raise UsageError(str(error), fix="Give an e-mail address, and roles such as reader") from error
    stderr().print("new password, within an hour:" if known else "invitation, within seven days:")
    typer.echo(link)


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for the backup.")],
    *,
    settings: _File = None,
    data: _Data = None,
) -> None:
    """Write rows, files and keys into one folder with the SHA-256 of each; the application may run meanwhile.

    The backup holds everything, patients' images and the keys too: keep it like the data folder itself.
    """
    found = _settings(settings, data)
    from cspine.web.backup import back_up

    summary = back_up(found, target)
    stdout().print(f"{summary.files} files, {summary.bytes / 1e6:.1f} MB, {summary.rows} rows: checked, in {target}")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a backup.")],
    *,
    only_check: Annotated[bool, typer.Option("--check", help="Only compare every file with its digest.")] = False,
    settings: _File = None,
    data: _Data = None,
) -> None:
    """Check a backup, and put it into an application that has no accounts yet.

    The database may be of another kind than that of the backup: SQLite or PostgreSQL, as the settings say.
    """
    found = _settings(settings, data)
    from cspine.web import backup as backups

    summary = backups.check(source) if only_check else backups.restore(found, source)
    done = "whole" if only_check else "restored"
    stdout().print(f"{done}: {summary.files} files, {summary.rows} rows, made {summary.made}")


@app.command()
def check(*, settings: _File = None, data: _Data = None) -> None:
    """Try everything that the application needs: folder, database, model, mail, single sign-on.

    Exit code 0 when all of it works.
    """
    from rich.text import Text

    found = _settings(settings, data)
    from cspine.errors import UsageError
    from cspine.web.check import everything

    bad = 0
    for one in everything(found):
        mark = ("ok    ", "green") if one.good else ("fails ", "bold red")
        stdout().print(Text.assemble(mark, one.name, "  ", (one.detail, "dim")), soft_wrap=True)
        bad += not one.good
    if bad:
        raise UsageError(f"{bad} of the things that the application needs do not work", fix="Mend them")


@app.command()
def audit(
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the whole trail to this new file.", show_default=False)
    ] = None,
    settings: _File = None,
    data: _Data = None,
) -> None:
    """Check the chain of the audit trail, and write it out as one file to be kept elsewhere."""
    import shutil

    found = _settings(settings, data)
    from cspine.errors import OutputError, UsageError
    from cspine.node.audit import files_of, verify

    broken = verify(found.data / "audit")
    if broken is not None:
        raise OutputError(
            f"the audit trail was changed: {broken.reason}",
            where=f"{broken.file}, line {broken.line}",
            fix="Compare with an earlier export",
        )
    if out is None:
        stdout().print("the audit trail is whole")
        return
    try:
        with out.open("xb") as target:
            for part in files_of(found.data / "audit"):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target)
    except FileExistsError as error:
        raise UsageError("a file of that name is there", where=out.name, fix="Choose another name") from error
    except OSError as error:
        raise OutputError(f"the trail cannot be written out: {error.strerror}", where=out.name) from error
    stdout().print(f"the audit trail is whole and written to {out}")


def _settings(file: Path | None, data: Path | None, port: int | None = None) -> WebSettings:
    """The settings, once it is sure that what the application needs is installed."""
    require("web", for_what="cspine web")
    from cspine.web.settings import WebSettings, load_settings

    found = WebSettings() if file is None else load_settings(file)
    changes = {"data": None if data is None else data.absolute(), "port": port}
    return found.model_copy(update={name: value for name, value in changes.items() if value is not None})
