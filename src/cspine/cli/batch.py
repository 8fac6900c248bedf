"""Many studies, one after the other: what is done already, what went wrong, and going on all the same.

A study is finished when its folder holds ``run.json``, which is written last and names the digests of what went in
and of what came out. Anything else (an interrupt, a full disk, a killed process) leaves it unfinished, and the next
run does it again.

Decoders are native code: one that crashes takes the process with it. While a study is judged its folder holds
``attempt.json``; where a run finds one, an earlier run died. Such studies come last, and are left out after
``MAX_DEATHS``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cspine import __version__, reports
from cspine.cli.jobs import ATTEMPT_FILE, FINDINGS_FILE, RUN_FILE, Job, input_digest
from cspine.errors import BundleError, CspineError, MissingExtraError, OutputError, StudyError, TooLargeError
from cspine.findings import Findings, LevelFinding, LevelName, PatientFinding, Provenance, WarningItem
from cspine.reports import atomic

# Warnings that say why none of the levels was judged; the first that is there is the reason.
NOTHING_JUDGED = ("no-cervical-spine", "locates-only", "too-coarse-for-fractures")

# What no study can do without; anything else that goes wrong is one study's own.
FATAL = (BundleError, MissingExtraError, OutputError)

# A power cut may hit a study once; twice, it is the study.
MAX_DEATHS = 2

Status = Literal["ok", "partial", "refused", "failed"]
Judge = Callable[[Job], Findings]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one study ended.

    Attributes:
        job: the study.
        status: as in findings.json, or ``failed`` when the fault lies with cspine rather than with the input.
        findings: what was written.
        error: why nothing was judged; None when something was.
        seconds: wall time.
        resumed: the result of an earlier run was kept.
    """

    job: Job
    status: Status
    findings: Findings
    error: CspineError | None = None
    seconds: float = 0.0
    resumed: bool = False


class Attempt(BaseModel):
    """``attempt.json``: how many runs began this study and did not come back, the present one included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deaths: int = Field(ge=0)


class RunRecord(BaseModel):
    """``run.json``: what a finished result was made from, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cspine: str
    input_sha256: str
    findings_sha256: str
    settings: dict[str, str]


def _nothing(_: object) -> None:
    """The callback of somebody who does not want to know."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A list of studies and how to treat them.

    Attributes:
        jobs: the studies, from ``plan_jobs``.
        out: the output folder as given; results in it are never part of an input.
        settings: whatever changes a result (bundle digest, series, scale, formats …); a difference means: do it again.
        resume: keep finished results.
        formats: of the files that say why a study was refused, names of ``reports.FORMATS``.
    """

    jobs: tuple[Job, ...]
    out: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    resume: bool = True
    formats: tuple[str, ...] = ("json", "html")

    def run(
        self,
        judge: Judge,
        *,
        started: Callable[[Job], object] = _nothing,
        ended: Callable[[Sequence[Outcome]], object] = _nothing,
    ) -> list[Outcome]:
        """Do every study; a bad one does not stop the others.

        Args:
            judge: opens and judges one study and writes its findings.json and report.
            started: called before each study.
            ended: called after each study with all outcomes so far, the newest last.

        Raises:
            CspineError: something no study can do without is unusable: the model, or the output folder.
        """
        outcomes: list[Outcome] = []
        for job in sorted(self.jobs, key=self._deaths):
            started(job)
            outcomes.append(self._one(job, judge))
            ended(tuple(outcomes))
        return outcomes

    def _one(self, job: Job, judge: Judge) -> Outcome:
        begin = time.perf_counter()
        digest = input_digest(job.source, outputs=(self.out, job.folder))
        earlier = self._finished(job, digest) if self.resume else None
        if earlier is not None:
            return Outcome(job, earlier.status, earlier, _nothing_judged(earlier, job), resumed=True)
        atomic.make_folder(job.folder)
        reports.clear(job.folder)
        atomic.remove(job.folder, (RUN_FILE,))
        try:
            findings = self._attempt(job, judge)
        except Exception as caught:
            # A fault met in one study must not cost the others; what concerns all of them is raised again.
            error = _study_fault(caught, job)
            if error is None:
                raise
            findings = refused_findings(error)
            reports.write(findings, None, job.folder, formats=reports.without_series(self.formats))
            status: Status = "failed" if error.exit_code == CspineError.exit_code else "refused"
            return Outcome(job, status, findings, error, time.perf_counter() - begin)
        atomic.write_file(job.folder / RUN_FILE, (self._record(job, digest).model_dump_json(indent=2) + "\n").encode())
        return Outcome(job, findings.status, findings, _nothing_judged(findings, job), time.perf_counter() - begin)

    def _attempt(self, job: Job, judge: Judge) -> Findings:
        """Judge a study, with a note in its folder that only the death of this process leaves there.

        Raises:
            CspineError: too many runs have died with this study.
        """
        deaths = self._deaths(job)
        if deaths >= MAX_DEATHS:
            raise CspineError(
                f"the program died {deaths} times while it judged this study",
                where=job.name,
                fix="Try it alone with --no-resume; where that crashes, please report it",
            )
        note = Attempt(deaths=deaths + 1).model_dump_json()
        atomic.write_file(job.folder / ATTEMPT_FILE, f"{note}\n".encode())
        try:
            return judge(job)
        finally:
            atomic.remove(job.folder, (ATTEMPT_FILE,))

    def _deaths(self, job: Job) -> int:
        """How many runs died while they judged a study; 0 when that shall not matter."""
        try:
            content = (job.folder / ATTEMPT_FILE).read_bytes() if self.resume else b""
            return Attempt.model_validate_json(content).deaths if content else 0
        except (OSError, ValidationError):
            return 0

    def _record(self, job: Job, digest: str) -> RunRecord:
        """What ``run.json`` has to say for the findings that are in the folder now."""
        written = hashlib.sha256((job.folder / FINDINGS_FILE).read_bytes()).hexdigest()
        return RunRecord(cspine=__version__, input_sha256=digest, findings_sha256=written, settings=dict(self.settings))

    def _finished(self, job: Job, digest: str) -> Findings | None:
        """The findings of an earlier run, when nothing that matters has changed since."""
        try:
            earlier = RunRecord.model_validate_json((job.folder / RUN_FILE).read_bytes())
            return Findings.load(job.folder / FINDINGS_FILE) if earlier == self._record(job, digest) else None
        except (OSError, ValidationError, StudyError):
            return None


def _nothing_judged(findings: Findings, job: Job) -> StudyError | None:
    """The error that a study amounts to which was opened and looked at, but in which no vertebra could be judged."""
    if findings.status != "refused":
        return None
    reasons = {warning.code: warning.message for warning in findings.warnings}
    named = [reasons[code] for code in NOTHING_JUDGED if code in reasons]
    return StudyError((named or ["no vertebra could be judged"])[0], where=job.name)


def _study_fault(caught: Exception, job: Job) -> CspineError | None:
    """The error of this study, or None when it concerns all of them and must end the run."""
    if isinstance(caught, CspineError):
        return None if isinstance(caught, FATAL) else caught
    error: CspineError
    if isinstance(caught, MemoryError):
        error = TooLargeError(
            "the study needs more memory than there is", where=job.name, fix="Close other programs, or crop the study"
        )
    elif isinstance(caught, OSError):
        error = StudyError(f"the study cannot be read: {caught.strerror or caught}", where=str(job.source))
    else:
        error = CspineError(
            f"unexpected {type(caught).__name__}",
            where=job.name,
            fix="This is a fault of cspine: please report it with the output of --verbose and of cspine doctor",
        )
    error.__cause__ = caught
    return error


def refused_findings(error: CspineError) -> Findings:
    """Findings that say why nothing was judged: all seven levels, none of them visible."""
    levels = tuple(
        LevelFinding(
            level=name, visible=False, visible_fraction=0, confidence=0, body_center_mm=None,
            probability=None, fracture=None, not_judged="the study was refused",
        )
        for name in get_args(LevelName)
    )  # fmt: skip
    text = error.message if error.fix is None else f"{error.message}. {error.fix}"
    return Findings(
        status="refused",
        patient=PatientFinding(probability=None, fracture=None),
        levels=levels,
        warnings=(WarningItem(code=error.code, message=text),),
        provenance=Provenance(
            cspine=__version__, created=datetime.now(UTC).isoformat(timespec="seconds"), input=None, bundle=None
        ),
    )
