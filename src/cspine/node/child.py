"""One study judged in a process of its own: ``python -m cspine.node.child ORDER``.

The parent never decodes a pixel. This process opens the study, judges it and writes the results under limits of
memory, and dies with its parent. Its results appear in one rename, with ``outcome.json`` among them: a folder that is
there is whole.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cspine.errors import (
    BundleError,
    CspineError,
    MissingExtraError,
    NoImagesError,
    NotCtError,
    OutputError,
    StudyError,
)
from cspine.node.drift import StudyFacts, facts_of

if TYPE_CHECKING:
    from cspine.findings import Findings
    from cspine.inference.predictor import Prediction
    from cspine.volume import Volume

OUTCOME_FILE = "outcome.json"
PART = ".part"
# Exit status when the outcome could not be written; anything else but 0 is a crash.
EXIT_NO_OUTCOME = 75

# judged: results are there. skipped: not a study for us (no CT, no neck). refused: damaged; trying again would give the
# same. failed: crashed, ran out of time or memory; may work the next time. hindered: the node's own fault (full disk,
# unusable bundle); no try of the study's.
Ending = Literal["judged", "skipped", "refused", "failed", "hindered"]


class Order(BaseModel):
    """What the child is told.

    Attributes:
        study: folder of the study's files.
        out: where the results appear; must not exist.
        formats: names of ``cspine.reports.FORMATS``.
        bundle: None for the one that comes with cspine.
        threads: processor threads; None for all.
        memory_bytes: address space that the child may have (RLIMIT_AS).
        viewer_url: template of the viewer's link, see ``cspine.node.viewer``; None for no link.
        parent: process that waits for the child; None when it may be any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    study: Path
    out: Path
    formats: tuple[str, ...]
    bundle: Path | None = None
    threads: int | None = None
    memory_bytes: int = Field(gt=0)
    viewer_url: str | None = None
    parent: int | None = None


class JobOutcome(BaseModel):
    """How one try ended. Holds no patient data.

    Attributes:
        ending: what happens next depends on it.
        reason: stable, kebab-case: a code of ``cspine.errors``, ``timeout``, ``memory``, ``crashed`` …
        message: one sentence for a person.
        positive: a fracture is stated, of the patient or of a level.
        probability: of the patient.
        levels: names of the levels with a fracture.
        study_uid: StudyInstanceUID of what was judged.
        link: at which a viewer shows the study; names it, so it goes where ``study_uid`` may.
        files: results by format, names in the folder ``out``.
        seconds: by step.
        facts: for input drift.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ending: Ending
    reason: str = ""
    message: str = ""
    positive: bool | None = None
    probability: float | None = None
    levels: tuple[str, ...] = ()
    study_uid: str | None = None
    link: str | None = None
    files: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    facts: StudyFacts | None = None


def confine(memory_bytes: int, parent: int | None = None) -> None:
    """Limit this process's address space, let no core file be written, and die when the parent dies (Linux)."""
    if sys.platform != "win32":
        import resource

        # The receiving parent's own limit (limits.cap_memory) is not the child's.
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the patient's images
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if parent not in (None, os.getppid()):  # it was gone before the request took effect
            os._exit(EXIT_NO_OUTCOME)


def main(
    arguments: list[str],
    judge: Callable[[Any, Path], JobOutcome] | None = None,
    kind: type[Order] = Order,
) -> int:
    """Do what an order file says.

    Args:
        arguments: the path of the order file.
        judge: what judges a study and writes its results into a folder; None for the real one.
        kind: of order; ``judge`` is given one of these.

    Returns:
        Exit status: 0 when the folder ``out`` is there, ``EXIT_NO_OUTCOME`` when the disk cannot be written.
    """
    order = kind.model_validate_json(Path(arguments[0]).read_bytes())
    confine(order.memory_bytes, order.parent)
    part = order.out.with_name(order.out.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError:
        return EXIT_NO_OUTCOME
    try:
        outcome = (judge or judge_study)(order, part)
    except CspineError as error:
        outcome = _ended(error)
    except MemoryError:
        outcome = JobOutcome(ending="failed", reason="memory", message="the worker's memory limit was reached")
    try:
        publish(outcome, part, order.out)
    except OSError:
        return EXIT_NO_OUTCOME
    return 0


def publish(outcome: JobOutcome, part: Path, out: Path) -> None:
    """Make a finished folder appear under its name, durably.

    Raises:
        OSError: the disk is full, or the folder is there already.
    """
    with (part / OUTCOME_FILE).open("w", encoding="utf-8") as stream:
        stream.write(outcome.model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(out)


def judge_study(order: Order, folder: Path) -> JobOutcome:
    """Select the eligible series, judge it and write the results into ``folder``.

    Raises:
        CspineError: the study is refused, or nothing can be judged here.
    """
    from cspine import reports
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor
    from cspine.node.viewer import link_of
    from cspine.reports.dicom_source import read_source
    from cspine.studies import open_study

    start = time.perf_counter()
    volume = open_study(order.study, threads=order.threads)
    opened = time.perf_counter()
    bundle = Bundle.default() if order.bundle is None else Bundle.load(order.bundle)
    prediction = Predictor(bundle, threads=order.threads).predict_full(volume)
    judged = time.perf_counter()
    if prediction.findings.status == "refused":
        return _not_for_us(prediction.findings, facts_of(volume, None))
    series = read_source(order.study, volume.source)
    link = link_of(order.viewer_url, series.context)
    written = reports.write(prediction, volume, folder, formats=order.formats, series=series, link=link)
    seconds = {"open": opened - start, "judge": judged - opened, "write": time.perf_counter() - judged}
    files: dict[str, tuple[str, ...]] = {name: (path.relative_to(folder).as_posix(),) for name, path in written.items()}
    return _judged(prediction, volume, files, seconds).model_copy(update={"link": link})


def _judged(
    prediction: Prediction, volume: Volume, files: dict[str, tuple[str, ...]], seconds: dict[str, float]
) -> JobOutcome:
    findings = prediction.findings
    levels = tuple(level.level for level in findings.levels if level.fracture)
    positive = bool(findings.patient.fracture or levels)
    return JobOutcome(
        ending="judged",
        positive=positive,
        probability=findings.patient.probability,
        levels=levels,
        study_uid=volume.source.study_uid,
        files=files,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        facts=facts_of(volume, positive),
    )


def _not_for_us(findings: Findings, facts: StudyFacts) -> JobOutcome:
    """A CT that was opened and looked at, in which no vertebra could be judged: nothing is sent."""
    last = findings.warnings[-1] if findings.warnings else None
    reason, message = ("nothing-judged", "no vertebra could be judged") if last is None else (last.code, last.message)
    return JobOutcome(ending="skipped", reason=reason, message=message, facts=facts)


def _ended(error: CspineError) -> JobOutcome:
    """The outcome of an error. Only its message is kept: ``where`` may name files as a sender named them."""
    ending: Ending = "failed"
    if isinstance(error, NoImagesError | NotCtError):
        ending = "skipped"
    elif isinstance(error, StudyError):
        ending = "refused"
    elif isinstance(error, BundleError | OutputError | MissingExtraError):
        ending = "hindered"
    return JobOutcome(ending=ending, reason=error.code, message=error.message)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
