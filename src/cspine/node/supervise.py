"""The parent's side of a judgement: start the child, watch the clock, and turn whatever happens into an outcome."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cspine.node.child import EXIT_NO_OUTCOME, OUTCOME_FILE, PART, JobOutcome, Order

CHILD = (sys.executable, "-X", "faulthandler", "-m", "cspine.node.child")
# Of what a child says on stderr at most this many bytes are looked at, from the end.
STDERR_BYTES = 64 * 1024
# What a child needs of the environment. Addresses and passwords of databases stay here.
_ENVIRONMENT = (
    "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PATH", "PYTHONPATH", "SYSTEMROOT", "TEMP",
    "TMPDIR", "VIRTUAL_ENV",
)  # fmt: skip
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]*)", line (?P<line>\d+),? in (?P<name>[\w<>]+)')
_ERROR = re.compile(r"^(?P<name>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt|Exit))\b")
_FATAL = re.compile(r"^Fatal Python error: (?P<name>[\w ]+)")
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "can't start new thread")


def judge(order: Order, seconds: float, command: Sequence[str] = CHILD) -> JobOutcome:
    """Have a child do an order, and wait for it.

    What an earlier try finished before the node was killed is taken as it is; what it left half done is thrown away.

    Args:
        order: what to judge, and where the results go.
        seconds: wall time after which the child and everything it started is killed.
        command: what is run with the path of the order file; tests put a stand-in here.

    Returns:
        The child's own outcome, or ``failed`` with ``timeout``, ``memory``, ``killed`` or ``crashed``.

    Raises:
        OSError: the disk of the node cannot be written, or no process can be started.
    """
    done = finished(order.out)
    if done is not None:
        return done
    shutil.rmtree(order.out, ignore_errors=True)
    shutil.rmtree(order.out.with_name(order.out.name + PART), ignore_errors=True)
    order.out.parent.mkdir(parents=True, exist_ok=True)
    request = order.out.with_name("order.json")
    request.write_text(order.model_copy(update={"parent": os.getpid()}).model_dump_json(), encoding="utf-8")
    log = order.out.with_name("stderr")
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        with log.open("wb") as stderr:
            child = subprocess.Popen(
                [*command, str(request)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
            status = _wait(child, seconds)
        outcome = finished(order.out) if status == 0 else None
        return outcome or _crash(status, _tail(log), seconds)
    finally:
        # It may quote the patient; what may be kept of it is in the outcome.
        log.unlink(missing_ok=True)


def finished(out: Path) -> JobOutcome | None:
    """The outcome in a folder of results, None when there is none that is whole."""
    try:
        return JobOutcome.model_validate_json((out / OUTCOME_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def scrub(stderr: str) -> str:
    """What may be told of a child's stderr: where in the code it failed and with what kind of error.

    Messages are left out, whatever they say: libraries quote elements of the files they read.
    """
    told: list[str] = []
    for line in stderr.splitlines():
        frame = _FRAME.match(line)
        if frame:
            path = Path(frame["file"])
            told.append(f"{path.parent.name}/{path.name}:{frame['line']} {frame['name']}")
        elif match := _ERROR.match(line) or _FATAL.match(line):
            told.append(match["name"])
    return "; ".join(told[-6:])


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit status, negative for a signal; None when time was up and the child's whole session was killed."""
    try:
        return child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill_group(child.pid)
        child.wait()
        return None
    except BaseException:
        _kill_group(child.pid)
        raise


def _kill_group(pid: int) -> None:
    """Kill a child's session, as far as there is anything left of it."""
    if sys.platform == "win32":
        return
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _crash(status: int | None, stderr: str, seconds: float) -> JobOutcome:
    if status is None:
        return JobOutcome(ending="failed", reason="timeout", message=f"judging took more than {seconds:g} seconds")
    if status == EXIT_NO_OUTCOME:
        return JobOutcome(ending="hindered", reason="output", message="the results cannot be written")
    where = scrub(stderr)
    told = f": {where}" if where else ""
    if any(word in stderr for word in _OUT_OF_MEMORY):
        return JobOutcome(ending="failed", reason="memory", message=f"the worker's memory limit was reached{told}")
    if status == -signal.SIGKILL:
        message = "the child was killed from outside, mostly by the system when its memory runs out"
        return JobOutcome(ending="failed", reason="killed", message=message)
    if status < 0:
        name = signal.Signals(-status).name
        return JobOutcome(ending="failed", reason="crashed", message=f"the child died of {name}{told}")
    return JobOutcome(ending="failed", reason="crashed", message=f"the child ended with status {status}{told}")


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - STDERR_BYTES))
        return stream.read().decode("utf-8", errors="replace")
