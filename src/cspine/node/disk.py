"""Writing so that it lasts: what the spool asks of the disk."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path


def write_all(descriptor: int, parts: Sequence[bytes | memoryview], position: int) -> None:
    """Write all of ``parts``, one behind the other, into a file at ``position``.

    Raises:
        OSError: not all of it could be written.
    """
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        written = os.pwritev(descriptor, left, position)
        position += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def flush(descriptor: int) -> None:
    """Make the bytes of a file durable that has all its blocks already."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: they cannot be.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_disk(folder: Path) -> None:
    """Make everything on the file system of ``folder`` durable (syncfs of Linux; elsewhere every file below it).

    syncfs says that a write failed from Linux 5.8 on.

    Raises:
        OSError: something could not be written.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if call is not None:
            if call(descriptor):
                raise OSError(ctypes.get_errno(), "syncfs failed")
            return
    finally:
        os.close(descriptor)
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(root))
