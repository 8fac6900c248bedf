"""Many jobs with a bar: one after another, or in several processes of one thread each that end when the user says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from cspine.cli import console
from cspine.errors import CspineError

Item = TypeVar("Item")
Result = TypeVar("Result")
# What numpy's libraries read when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def do_all(
    noun: str,
    items: Sequence[Item],
    alone: Callable[[Item], object],
    shared: Callable[[Item], object],
    *,
    total: int,
    workers: int,
    finish: Callable[[], Result],
    quiet: bool = False,
) -> Result:
    """Do every item under a bar, then finish; after an interrupt or a failure too.

    Args:
        noun: what they are, in the plural.
        items: those that are not done yet.
        alone: does one in this process.
        shared: does one in a process among others; can be pickled.
        total: how many there are with those that were done before.
        workers: processes.
        finish: writes what is known by then.
        quiet: without the bar.

    Raises:
        CspineError: a worker died, or whatever the work raised.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(noun), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console.stderr(), transient=True, disable=quiet) as bar:
        task = bar.add_task(noun, total=total, completed=total - len(items))
        try:
            if workers == 1 or len(items) <= 1:
                for item in items:
                    alone(item)
                    bar.advance(task)
            else:
                in_processes(shared, items, workers, lambda: bar.advance(task))
        finally:
            # Also after an interrupt: what is finished by then is kept.
            result = finish()
    return result


def in_processes(
    work: Callable[[Item], object], items: Sequence[Item], workers: int, advance: Callable[[], object]
) -> None:
    """Do every item; what the work itself raises ends it all.

    Args:
        work: can be pickled; its results are not kept.
        items: what to do it with.
        workers: processes, at most one an item.
        advance: called after each.

    Raises:
        CspineError: a worker died, or whatever the work raised.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # Spawned, not forked: the parent may hold threads; and workers leave Ctrl-C to the parent.
    pool = ProcessPoolExecutor(
        min(workers, len(items)), mp_context=get_context("spawn"), initializer=_leave_interrupts_to_parent
    )
    try:
        with _one_thread_each():
            for future in as_completed([pool.submit(work, item) for item in items]):
                future.result()
                advance()
    except BrokenProcessPool as error:
        raise CspineError(
            "a worker ended without a word, most likely for want of memory",
            fix="Run the same command with fewer --workers: finished studies are kept",
        ) from error
    except KeyboardInterrupt:
        console.stderr().print("stopping when the studies at hand are finished …")
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers started meanwhile use one thread: each is one core's work, and waiting threads only cost time."""
    before = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    os.environ |= dict.fromkeys(THREAD_VARIABLES, "1")
    try:
        yield
    finally:
        for name in THREAD_VARIABLES:
            os.environ.pop(name, None)
        os.environ |= before


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
