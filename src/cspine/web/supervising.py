"""The server's side of a child: start it, read how far it is, kill it when it is cancelled or its time is up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cspine.node.child import PART, JobOutcome, Order
from cspine.node.supervise import _ENVIRONMENT, _crash, _kill_group, _tail, finished

CHILD = (sys.executable, "-X", "faulthandler", "-m", "cspine.web.child")
# How often the child is looked at.
LOOK_SECONDS = 0.2
CANCELLED = "cancelled"


def supervise(
    order: Order, seconds: float, command: Sequence[str], *, go_on: Callable[[], bool] = lambda: True
) -> JobOutcome:
    """Have a child do an order, and wait for it.

    What an earlier try finished before the server was killed is taken as it is; what it left half done is thrown away.

    Args:
        order: what to do, and where the results go.
        seconds: wall time after which the child and everything it started is killed.
        command: what is run with the path of the order file.
        go_on: asked several times a second; false kills the child at once.

    Returns:
        The child's own outcome, or ``failed`` with ``timeout``, ``memory``, ``killed``, ``crashed`` or ``cancelled``.

    Raises:
        OSError: the disk cannot be written, or no process can be started.
    """
    done = finished(order.out)
    if done is not None:
        return done
    shutil.rmtree(order.out, ignore_errors=True)
    shutil.rmtree(order.out.with_name(order.out.name + PART), ignore_errors=True)
    order.out.parent.mkdir(parents=True, exist_ok=True)
    request = order.out.with_name(f"{order.out.name}.order.json")
    log = order.out.with_name(f"{order.out.name}.stderr")
    request.write_text(order.model_copy(update={"parent": os.getpid()}).model_dump_json(), encoding="utf-8")
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
            status, stopped = _wait(child, seconds, go_on)
        if stopped:
            return JobOutcome(ending="failed", reason=CANCELLED)
        outcome = finished(order.out) if status == 0 else None
        return outcome or _crash(status, _tail(log), seconds)
    finally:
        # Both may quote the patient; what may be kept of them is in the outcome.
        log.unlink(missing_ok=True)
        request.unlink(missing_ok=True)


def _wait(child: subprocess.Popen[bytes], seconds: float, go_on: Callable[[], bool]) -> tuple[int | None, bool]:
    """The exit status, None when time was up; and whether it was cancelled."""
    end = time.monotonic() + seconds
    try:
        while True:
            try:
                return child.wait(timeout=LOOK_SECONDS), False
            except subprocess.TimeoutExpired:
                cancelled = not go_on()
                if cancelled or time.monotonic() >= end:
                    _kill_group(child.pid)
                    child.wait()
                    return None, cancelled
    except BaseException:
        _kill_group(child.pid)
        raise


def leftovers(out: Path) -> None:
    """Delete what an unfinished child left beside ``out``."""
    shutil.rmtree(out.with_name(out.name + PART), ignore_errors=True)
    for ending in (".order.json", ".stderr", ".progress.json"):
        out.with_name(out.name + ending).unlink(missing_ok=True)
