"""One upload recognised, or one study judged, in a process of its own: ``python -m cspine.web.child KIND ORDER``.

The server never decodes what people upload. See ``cspine.node.child`` for the limits and for how results appear.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.errors import CspineError, StudyError
from cspine.node.child import JobOutcome, main
from cspine.node.drift import facts_of
from cspine.web.orders import DICOM_FORMATS, FORMATS, VIEW_FOLDER, IntakeOrder, JudgeOrder
from cspine.web.progress import Progress
from cspine.web.store import writing

if TYPE_CHECKING:
    from cspine.findings import Findings
    from cspine.inference.predictor import Prediction
    from cspine.reports.dicom_source import SourceSeries
    from cspine.volume import Volume

RECOGNISE, JUDGE = "recognise", "judge"


def judge(order: JudgeOrder, folder: Path) -> JobOutcome:
    """Open a study, judge it, and write results and what the reading room shows into ``folder``.

    Raises:
        CspineError: the study is refused, or nothing can be judged here.
    """
    from cspine.web.judge_pictures import judge_pictures

    progress = Progress(order.progress)
    progress.at(0.0)
    with writing():
        return judge_pictures(order, folder, progress) if order.kind == "pictures" else _volume(order, folder, progress)


def _volume(order: JudgeOrder, folder: Path, progress: Progress) -> JobOutcome:
    from cspine import reports
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor
    from cspine.studies import open_study
    from cspine.web.viewing_files import prepare_view

    start = time.perf_counter()
    path = _only_file(order.study)
    volume = open_study(path, series=order.series, threads=order.threads)
    volume = replace(volume, source=replace(volume.source, name=order.title or volume.source.name))
    opened = time.perf_counter()
    bundle = Bundle.default() if order.bundle is None else Bundle.load(order.bundle)
    prediction = Predictor(bundle, threads=order.threads).predict_full(volume, progress.within(0.05, 0.9))
    judged = time.perf_counter()
    progress.at(0.9)
    series = _series(path, volume)
    formats = FORMATS if series is None else (*DICOM_FORMATS, *FORMATS)
    written = reports.write(prediction, volume, folder, formats=formats, series=series)
    progress.at(0.96)
    prepare_view(volume, prediction, folder / VIEW_FOLDER)
    seconds = {"open": opened - start, "judge": judged - opened, "write": time.perf_counter() - judged}
    files: dict[str, tuple[str, ...]] = {n: (file.relative_to(folder).as_posix(),) for n, file in written.items()}
    return _outcome(prediction, volume, files, seconds)


def _only_file(folder: Path) -> Path:
    """The NIfTI file where that is all there is; else the folder."""
    files = list(folder.iterdir())
    return files[0] if len(files) == 1 and files[0].name.startswith("volume.nii") else folder


def _series(path: Path, volume: Volume) -> SourceSeries | None:
    """What results in DICOM need; None where the study has too little of itself to say, such as no identifiers."""
    from cspine.reports.dicom_source import read_source

    if volume.source.kind != "dicom":
        return None
    try:
        return read_source(path, volume.source)
    except StudyError:
        return None


def _outcome(
    prediction: Prediction, volume: Volume, files: dict[str, tuple[str, ...]], seconds: dict[str, float]
) -> JobOutcome:
    findings = prediction.findings
    levels = tuple(level.level for level in findings.levels if level.fracture)
    refused = findings.status == "refused"
    reason, message = _why(findings) if refused else ("", "")
    positive = None if refused else bool(findings.patient.fracture or levels)
    return JobOutcome(
        ending="skipped" if refused else "judged",
        reason=reason,
        message=message,
        positive=positive,
        probability=findings.patient.probability,
        levels=levels,
        study_uid=volume.source.study_uid,
        files=files,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        facts=facts_of(volume, positive),
    )


def _why(findings: Findings) -> tuple[str, str]:
    """Why nothing was judged, in the findings' own words."""
    last = findings.warnings[-1] if findings.warnings else None
    return ("nothing-judged", "no vertebra could be judged") if last is None else (last.code, last.message)


def run(arguments: list[str]) -> int:
    """Do what an order says; see ``cspine.node.child.main``.

    Args:
        arguments: ``recognise`` or ``judge``, and the path of the order.
    """
    kind, path = arguments
    if kind == RECOGNISE:
        from cspine.web.intake import recognise

        return main([path], recognise, IntakeOrder)
    if kind == JUDGE:
        return main([path], judge, JudgeOrder)
    raise CspineError(f"expected {RECOGNISE} or {JUDGE}, got another word")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
