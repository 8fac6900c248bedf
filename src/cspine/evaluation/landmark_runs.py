"""Judge marked scans and their variants, one JSON each, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from pydantic import ValidationError

from cspine.errors import OutputError
from cspine.evaluation.landmarks import LandmarkRecord, score, truths
from cspine.evaluation.marks import Half, Marks, scan_path
from cspine.evaluation.running import as_finished
from cspine.evaluation.variants import VERSION, Variant, choose
from cspine.findings import Findings
from cspine.inference.bundle import Bundle, bundle_digest
from cspine.inference.predictor import Predictor
from cspine.studies import open_study
from cspine.volume import Volume

Judge = Callable[[Volume], Findings]
Scale = tuple[float, float]


@dataclass(frozen=True, slots=True)
class MarkedScan:
    """A scan with marks.

    Attributes:
        name: in the marks file.
        path: of the study.
        marks: of its levels.
        half: development or test.
        scale: slope and intercept when it is not HU.
    """

    name: str
    path: Path
    marks: Marks
    half: Half
    scale: Scale | None = None

    @property
    def digest(self) -> str:
        """Of the marks, the scale and the way variants are made: what a stored score depends on beside the bundle."""
        text = f"{VERSION} {self.scale} {self.marks.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how.

    Attributes:
        scans: which.
        variants: names, as ``variants.choose`` takes them.
        folder: one JSON a scan and variant goes there.
        bundle: folder of the bundle.
        runtime: openvino or onnxruntime.
    """

    scans: tuple[MarkedScan, ...]
    variants: str
    folder: Path
    bundle: Path
    runtime: str = "openvino"


def marked_scans(
    marks: Mapping[str, Marks], halves: Mapping[str, Half], folder: Path, scales: Mapping[str, Scale] | None = None
) -> tuple[MarkedScan, ...]:
    """The scans to measure; every file must be there before anything is measured.

    Args:
        marks: by scan.
        halves: which half each scan belongs to.
        folder: where the scans are.
        scales: of scans that are not HU; instead of those in the marks.
    """
    given = scales or {}
    return tuple(
        MarkedScan(name, scan_path(folder, name), item, halves[name], given.get(name, item.scale))
        for name, item in marks.items()
    )


def measure(
    plan: Plan, *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> list[LandmarkRecord]:
    """Score every scan in every variant that has a meaning for it.

    Args:
        plan: what.
        workers: processes, of one thread each; with one, everything happens here and the runtime takes all threads.
        progress: called with scans done and all.
    """
    count = len(plan.scans)
    if workers <= 1:
        judge = _judge(plan.bundle, plan.runtime, None)
        digest = bundle_digest(plan.bundle)
        for number, scan in enumerate(plan.scans):
            measure_scan(scan, choose(plan.variants), judge, digest, plan.folder)
            if progress:
                progress(number + 1, count)
    else:
        # Fresh processes: a forked one would inherit the runtime's threads half alive.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(_work, plan, number) for number in range(count)}
            for finished in as_finished(futures):
                finished.result()
                if progress:
                    progress(count - len(futures), count)
    return _collect(plan)


@lru_cache(maxsize=1)
def _judge(bundle: Path, runtime: str, threads: int | None) -> Judge:
    """Loads networks once a process."""
    return Predictor(Bundle.load(bundle), runtime, threads=threads).predict


def _work(plan: Plan, number: int) -> None:
    judge = _judge(plan.bundle, plan.runtime, 1)
    measure_scan(plan.scans[number], choose(plan.variants), judge, bundle_digest(plan.bundle), plan.folder)


def measure_scan(
    scan: MarkedScan, variants: Sequence[Variant], judge: Judge, bundle: str, folder: Path
) -> list[LandmarkRecord]:
    """Score one scan; what was stored before with the same bundle and marks is not done again.

    Args:
        scan: which.
        variants: of it.
        judge: from a volume to findings.
        bundle: digest of what judges.
        folder: where scores are stored.
    """
    done = {variant.name: _stored(folder, scan, variant.name, bundle) for variant in variants}
    if all(record is not None for record in done.values()):
        return [record for record in done.values() if record is not None]
    volume = open_study(scan.path, scale=scan.scale)
    out = []
    for variant in variants:
        record = done[variant.name] or _score(scan, variant, volume, judge, bundle)
        if record is None:
            continue
        if done[variant.name] is None:
            _store(folder, record)
        out.append(record)
    return out


def _score(scan: MarkedScan, variant: Variant, volume: Volume, judge: Judge, bundle: str) -> LandmarkRecord | None:
    made = variant(volume, scan.marks, scan.name)
    if made is None:
        return None
    findings = judge(made.volume)
    fields = [made.volume] if made.motion is None else [made.volume, volume]
    scored = score(findings, truths(scan.marks, fields, made.motion))
    return LandmarkRecord(
        scan=scan.name,
        variant=variant.name,
        group=variant.group,
        half=scan.half,
        bundle=bundle,
        digest=scan.digest,
        marks=scan.marks.confidence,
        status=findings.status,
        warnings=findings.warnings,
        levels=scored.levels,
        doubled=scored.doubled,
        skipped=scored.skipped,
        seconds=findings.provenance.seconds.get("total", 0.0),
    )


def _file(folder: Path, scan: str, variant: str) -> Path:
    return folder / f"{scan.replace('/', '_')}--{variant}.json"


def _store(folder: Path, record: LandmarkRecord) -> None:
    path = _file(folder, record.scan, record.variant)
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(record.model_dump_json(indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write a scored scan: {error}", where=str(path)) from error


def _stored(folder: Path, scan: MarkedScan, variant: str, bundle: str) -> LandmarkRecord | None:
    """A score of this bundle and these marks; None when there is none or it cannot be read."""
    try:
        record = LandmarkRecord.model_validate_json(_file(folder, scan.name, variant).read_bytes())
    except (OSError, ValidationError):
        return None
    return record if (record.bundle, record.digest) == (bundle, scan.digest) else None


def _collect(plan: Plan) -> list[LandmarkRecord]:
    digest = bundle_digest(plan.bundle)
    found = [
        _stored(plan.folder, scan, variant.name, digest) for variant in choose(plan.variants) for scan in plan.scans
    ]
    return [record for record in found if record is not None]
