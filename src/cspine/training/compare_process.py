"""The processes of a comparison: one a job, in a session of its own, so that a crash in one is its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from cspine.errors import CspineError
from cspine.reports.atomic import write_file
from cspine.training.compare_job import RecipeJob, StageJob, do, fail, reason_of

# What numpy's and torch's libraries read when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
AnyJob = StageJob | RecipeJob


class Handle(Protocol):
    """A job under way."""

    def poll(self) -> int | None:
        """Exit code, None while it goes on."""

    def interrupt(self) -> None:
        """Ask it to save what it has and end."""

    def wait(self, seconds: float) -> None:
        """Wait for its end; after so long end it."""


Launch = Callable[[AnyJob], Handle]


class _Process:
    """A job in a process of its own, whose words go to ``log.txt``."""

    def __init__(self, job: AnyJob) -> None:
        write_file(job.folder / "job.json", job.model_dump_json(indent=1).encode())
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(job.threads))
        with (job.folder / "log.txt").open("ab") as log:
            # A session of its own: Ctrl-C reaches it once, from here, and it has time to save.
            self._child = subprocess.Popen(
                [sys.executable, "-m", "cspine.training.compare_job", str(job.folder / "job.json")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    def poll(self) -> int | None:
        """See ``Handle``."""
        return self._child.poll()

    def interrupt(self) -> None:
        """See ``Handle``."""
        with suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGINT)

    def wait(self, seconds: float) -> None:
        """See ``Handle``."""
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def in_process(job: AnyJob) -> Handle:
    """Begin a job in a process of its own."""
    return _Process(job)


class Done:
    """A job that was done on the spot; for tests and debuggers."""

    def __init__(self, job: AnyJob, **tools: object) -> None:
        self._code = 0
        try:
            do(job, **tools)  # type: ignore[arg-type]
        except CspineError as error:
            fail(job.folder, reason_of(error))
            self._code = error.exit_code

    def poll(self) -> int | None:
        """See ``Handle``."""
        return self._code

    def interrupt(self) -> None:
        """See ``Handle``."""

    def wait(self, seconds: float) -> None:
        """See ``Handle``."""


def last_words(job: AnyJob, code: int) -> str:
    """What a process that ended without a word said last."""
    if code == 130:
        return "it was interrupted"
    said = "without a word"
    with suppress(OSError):
        lines = (job.folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), said)[:300]
    return f"the process ended with {code}: {said}"
