"""Programs that the suite drives but does not ship: validators, DICOM tools, a PACS.

A test that needs one says so with ``need``. Where it is missing the test is skipped on a developer's machine, and fails
in continuous integration (environment variable ``CI``): a skipped proof is no proof.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGES = {
    "dciodvfy": "dicom3tools",
    "dcmdump": "dcmtk",
    "echoscu": "dcmtk",
    "storescu": "dcmtk",
    "dcmsend": "dcmtk",
    "storescp": "dcmtk",
    "Orthanc": "orthanc",
    "chromium": "chromium",
    "npm": "npm",
}
# Debian installs servers where ordinary users do not look.
_PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


def need(program: str) -> str:
    """The path of a program; skips the test where it is missing, fails it in continuous integration."""
    found = shutil.which(program, path=_PLACES)
    if found is None:
        missing(f"{program} is not installed (Debian: apt install {PACKAGES.get(program, program)})")
    return str(found)


def missing(reason: str) -> None:
    """End the test: skipped, or failed in continuous integration."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def quick() -> dict[str, str]:
    """Environment for DCMTK and Orthanc: without this each small message waits 40 ms for an acknowledgement."""
    return {**os.environ, "TCP_NODELAY": "1"}


def free_port() -> int:
    """A TCP port on loopback that nobody uses at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def validation_errors(path: Path, *, known: Sequence[str] = ()) -> list[str]:
    """What ``dciodvfy`` calls an error in a DICOM file; empty when the object is as the standard wants it.

    Args:
        path: the file.
        known: regular expressions of errors that are the input's own.
    """
    run = subprocess.run([need("dciodvfy"), "-new", str(path)], capture_output=True, check=False, timeout=120)
    lines = (run.stdout + run.stderr).decode("latin-1").splitlines()
    errors = [line for line in lines if line.startswith("Error")]
    return [line for line in errors if not any(re.search(pattern, line) for pattern in known)]
