"""``cspine node``: receive CT studies over DICOM, judge them, and send the results back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli.console import stderr, stdout
from cspine.cli.extras import require

if TYPE_CHECKING:
    from cspine.node.ledger import Ledger
    from cspine.node.settings import NodeSettings
    from cspine.node.status import NodeStatus

app = typer.Typer(
    no_args_is_help=True,
    help="Receive CT studies over DICOM, judge them durably, and send the results to where they are read.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_File = Annotated[Path, typer.Argument(metavar="SETTINGS", help="Settings of the node, TOML.", show_default=False)]


@app.command()
def run(
    file: _File,
    *,
    worker: Annotated[
        bool, typer.Option("--worker", help="Only judge and send what another node of the same database has taken in.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    """Run the node until it is stopped with Ctrl-C or SIGTERM.

    It may also be killed at any moment: what was accepted is judged after the next start, and nothing is done twice.
    """
    import logging
    import os
    import signal
    import threading

    settings = _settings(file)
    from cspine.node.limits import cap_memory
    from cspine.node.node import Node, Places
    from cspine.node.privacy import Pseudonyms, guard_handlers

    if worker and settings.database is None:
        from cspine.errors import UsageError

        raise UsageError(
            "expected a shared database for --worker, got SQLite files of one machine",
            where="database",
            fix="Set database to a postgresql:// address",
        )
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    guard_handlers(Pseudonyms.from_file(Places(settings).key))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if not worker:
        cap_memory(settings.limits.process_bytes)
    with Node(settings, receives=not worker) as node:
        where = "working" if worker else f"{settings.ae_title} listens on {settings.host}:{node.port}"
        stderr().print(f"{where}; stop with Ctrl-C")
        node.run(stop)
    logging.shutdown()
    # A judgement under way must not hold up the end: its child dies with us, and it is done at the next start.
    os._exit(0)


@app.command()
def check(file: _File) -> None:
    """Try everything that a node with these settings needs: folders, database, model, certificates, destinations.

    Nothing is sent. Exit code 0 when all of it works.
    """
    from rich.text import Text

    settings = _settings(file)
    from cspine.errors import UsageError
    from cspine.node.check import everything
    from cspine.node.privacy import quiet_libraries

    bad = 0
    with quiet_libraries():
        for found in everything(settings):
            mark = ("ok    ", "green") if found.good else ("fails ", "bold red")
            stdout().print(Text.assemble(mark, found.name, "  ", (found.detail, "dim")), soft_wrap=True)
            bad += not found.good
    if bad:
        raise UsageError(f"{bad} of the things that the node needs do not work", where=file.name, fix="Mend them")


@app.command()
def status(
    file: _File,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    links: Annotated[
        bool, typer.Option("--links", help="Also links to the last studies in the viewer; these name studies.")
    ] = False,
) -> None:
    """Say what waits and since when, what failed and why, where the time goes, and whether the input drifts."""
    import time

    settings = _settings(file)
    from cspine.node.status import gather, links_of

    ledger = _ledger(settings)
    try:
        found = gather(ledger, settings.data, time.time())
        if links:
            found = found.model_copy(update={"links": links_of(ledger, settings.data)})
    finally:
        ledger.close()
    if as_json:
        typer.echo(found.model_dump_json(indent=2, exclude=None if links else {"links"}))
        return
    _show(found)
    for one in found.links or ():
        finding = {True: "positive", False: "negative", None: "not judged"}[one.positive]
        stdout().print(f"{one.study} ({finding}): {one.link}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def retry(
    file: _File,
    studies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STUDY]...", help="Studies on the shelf, as in status.", show_default=False),
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Everything on the shelf.")] = False,
) -> None:
    """Put studies and results from the shelf back into the queue. A node that runs takes them up by itself."""
    import time

    settings = _settings(file)
    from cspine.errors import UsageError
    from cspine.node.shelf import Shelf
    from cspine.node.shelf import retry as put_back

    if bool(studies) == everything:
        raise UsageError("expected studies or --all, got both or neither", fix="Name studies as in: cspine node status")
    ledger = _ledger(settings)
    try:
        moved = put_back(ledger, Shelf(settings.data / "shelf"), None if everything else studies, time.time())
    finally:
        ledger.close()
    stdout().print(f"{len(moved)} back in the queue")
    for key in moved:
        stdout().print(f"  {key}")


@app.command()
def audit(
    file: _File,
    *,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Write the whole trail to this file.", show_default=False),
    ] = None,
) -> None:
    """Check the chain of the audit trail, and write it out as one file to be kept elsewhere."""
    import shutil

    settings = _settings(file)
    from cspine.errors import OutputError, UsageError
    from cspine.node.audit import files_of, verify
    from cspine.node.node import Places

    folder = Places(settings).audit
    broken = verify(folder)
    if broken is not None:
        raise OutputError(
            f"the audit trail was changed: {broken.reason}",
            where=f"{broken.file}, line {broken.line}",
            fix="Compare with an earlier export or with the syslog server",
        )
    if out is None:
        stdout().print("the audit trail is whole")
        return
    try:
        with out.open("xb") as target:
            for part in files_of(folder):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target)
    except FileExistsError as error:
        raise UsageError("a file of that name is there", where=out.name, fix="Choose another name") from error
    except OSError as error:
        raise OutputError(f"the trail cannot be written out: {error.strerror}", where=out.name) from error
    stdout().print(f"the audit trail is whole and written to {out}")


def _settings(file: Path) -> NodeSettings:
    """The settings, once it is sure that what the node needs is installed."""
    require("node", for_what="cspine node")
    from cspine.node.settings import load_settings

    return load_settings(file)


def _ledger(settings: NodeSettings) -> Ledger:
    """The ledger of a node that has run before.

    Raises:
        UsageError: it has not.
    """
    from cspine.errors import UsageError
    from cspine.node.ledger import Ledger
    from cspine.node.node import Places

    if not settings.data.is_dir():
        raise UsageError("no node has run with these settings", where="data", fix="Start it: cspine node run SETTINGS")
    return Ledger(Places(settings).ledger_url)


def _show(found: NodeStatus) -> None:
    from rich.table import Table

    console = stdout()
    counts = ", ".join(f"{count} {state}" for state, count in found.studies.items()) or "none yet"
    console.print(f"studies: {counts}")
    console.print(f"queue: {found.queued}, the oldest for {found.oldest_seconds:.0f} s")
    console.print(f"disk: {found.disk_free_bytes / 2**30:.1f} GiB free")
    if found.failures:
        console.print("failed tries: " + ", ".join(f"{count} {reason}" for reason, count in found.failures.items()))
    tables = (
        ("step", "times", "mean seconds"),
        tuple((one.step, str(one.times), f"{one.seconds:.2f}") for one in found.steps),
    ), (
        ("destination", "delivered", "waiting", "shelved"),
        tuple((one.name, str(one.delivered), str(one.waiting), str(one.shelved)) for one in found.destinations),
    ), (
        ("on the shelf", "what", "reason", "tries"),
        tuple((one.study, one.what, one.reason, str(one.tries)) for one in found.shelf),
    ), (
        ("input", "drift (PSI)", "by chance below", "state"),
        tuple((one.feature, f"{one.psi:.3f}", f"{one.chance:.3f}", one.state) for one in found.drift),
    )  # fmt: skip
    for head, rows in tables:
        if rows:
            table = Table(*head, box=None, pad_edge=False)
            for row in rows:
                table.add_row(*row)
            console.print(table)
