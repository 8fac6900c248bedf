"""The hook for a scanner of the house's own: a command that is shown every file before anything reads it.

Its exit status decides, as ClamAV's does: 0 is clean, 1 is a finding, anything else is a fault of the scanner. A
scanner that does not work lets nothing through.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from cspine.errors import CspineError, UsageError

CLEAN, FOUND = 0, 1
PLACE = "{file}"
# One file must not hold up the queue for ever.
SECONDS = 120.0


class InfectedError(UsageError):
    """The scanner found something in a file."""

    code = "infected"


class ScannerError(CspineError):
    """The scanner itself failed."""

    code = "scanner"


def scan(command: Sequence[str] | None, files: Iterable[tuple[Path, str]]) -> None:
    """Show files to the scanner; without a command nothing happens.

    Args:
        command: such as ``clamdscan --fdpass --no-summary {file}``, a word each; no shell runs.
        files: where each lies, and what the user calls it.

    Raises:
        InfectedError: names the file.
        ScannerError: the command cannot be run, takes too long or ends in another way.
    """
    if command is None:
        return
    for path, name in files:
        status = _status([word.replace(PLACE, str(path)) for word in command])
        if status == FOUND:
            raise InfectedError(
                "the virus scanner of this server found something in a file",
                where=name,
                fix="Nothing of this upload is kept. Scan the files where they come from",
            )
        if status != CLEAN:
            raise ScannerError("the virus scanner of this server does not work", fix="Tell the administrator")


def _status(command: list[str]) -> int:
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    try:
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return -1
    return run.returncode
