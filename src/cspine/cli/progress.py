"""What a user sees while studies are judged: a bar on stderr, then one line a study on stdout."""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from cspine.cli import console
from cspine.cli.console import Verbosity

if TYPE_CHECKING:
    from types import TracebackType

    from cspine.cli.batch import Outcome
    from cspine.cli.jobs import Job
    from cspine.findings import Findings

_STYLES = {"ok": "green", "partial": "yellow", "refused": "red", "failed": "bold red"}


class StudyProgress:
    """A bar for the study at hand and, when there are several, one for all of them."""

    def __init__(self, studies: int, verbosity: Verbosity) -> None:
        self._studies = studies
        self._verbosity = verbosity
        screen = console.stderr()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            MofNCompleteColumn() if studies > 1 else TextColumn(""),
            TimeElapsedColumn(),
            console=screen,
            transient=True,
            # In a log file a bar is noise; the line of each study says it.
            disable=verbosity is Verbosity.QUIET or not screen.is_terminal,
        )
        self._all: TaskID | None = None
        self._one: TaskID | None = None

    def __enter__(self) -> StudyProgress:
        self._bars.start()
        if self._studies > 1:
            self._all = self._bars.add_task("all studies", total=self._studies, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: Job) -> None:
        """A study begins."""
        if self._one is not None:
            self._bars.remove_task(self._one)
        self._one = self._bars.add_task(job.name, total=100, note="")

    def step(self, fraction: float, note: str) -> None:
        """How far the study at hand is, 0..1, and what is being done."""
        if self._one is not None:
            self._bars.update(self._one, completed=round(100 * fraction), note=note)

    def ended(self, outcome: Outcome) -> None:
        """A study is finished: its line goes to stdout."""
        if self._all is not None:
            self._bars.advance(self._all)
        if self._one is not None:
            self._bars.remove_task(self._one)
            self._one = None
        if self._verbosity is Verbosity.QUIET:
            return
        console.stdout().print(line(outcome), soft_wrap=True)
        if outcome.error is not None and self._studies > 1:
            console.show_error(outcome.error)
        if outcome.status == "failed" and outcome.error is not None and self._verbosity is Verbosity.VERBOSE:
            cause = outcome.error.__cause__
            console.stderr().print("".join(traceback.format_exception(cause)), markup=False, soft_wrap=True)


def line(outcome: Outcome) -> Text:
    """One study in one line: name, status, what was found, what was not judged, where the results are."""
    found = outcome.findings
    text = Text.assemble(outcome.job.name, "  ", (outcome.status, _STYLES[outcome.status]))
    if outcome.error is None:
        patient = found.patient
        if patient.probability is not None:
            text.append(f"  patient {patient.probability:.2f} ({_verdict(found)})")
        marked = [f"{level.level} {level.probability:.2f}" for level in found.levels if level.fracture]
        if marked:
            text.append("  " + ", ".join(marked), style="bold")
        unjudged = [level.level for level in found.levels if level.probability is None]
        if unjudged:
            text.append(f"  not judged: {' '.join(unjudged)}")
    text.append(f"  {outcome.job.folder}")
    text.append("  (done before)" if outcome.resumed else f"  {outcome.seconds:.1f} s", style="dim")
    return text


def _verdict(found: Findings) -> str:
    """Never clear when a level is suspected: thresholds of patient and levels are fitted apart."""
    if found.patient.fracture:
        return "fracture"
    return "possible fracture" if any(level.fracture for level in found.levels) else "no fracture found"


@contextlib.contextmanager
def quiet_libraries(verbosity: Verbosity = Verbosity.NORMAL) -> Iterator[None]:
    """Keep libraries from writing to the terminal, unless the user wants it: their warnings may quote patient data."""
    if verbosity is Verbosity.VERBOSE:
        yield
        return
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
