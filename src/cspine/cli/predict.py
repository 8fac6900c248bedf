"""``cspine predict``: studies in, findings and reports out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli.console import Verbosity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cspine.cli.batch import Outcome
    from cspine.cli.jobs import Job
    from cspine.cli.progress import StudyProgress
    from cspine.findings import Findings
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor


class RuntimeName(StrEnum):
    """What runs the networks."""

    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True, slots=True)
class Options:
    """How studies are opened and judged; the same for all studies of a run.

    Attributes:
        series: SeriesInstanceUID to take instead of the best one.
        scale: slope and intercept that make stored values HU, for files that do not say.
        runtime: what runs the networks.
        threads: processor threads; None = all.
        formats: names of ``cspine.reports.FORMATS``; json is always among them.
        viewer_url: template of the address at which a viewer shows a study.
    """

    series: str | None = None
    scale: tuple[float, float] | None = None
    runtime: RuntimeName = RuntimeName.OPENVINO
    threads: int | None = None
    formats: tuple[str, ...] = ("json", "html")
    viewer_url: str | None = None

    def settings(self, bundle: Bundle) -> dict[str, str]:
        """What changes a result, as text for ``run.json``. Threads do not."""
        linked = {} if self.viewer_url is None else {"viewer_url": self.viewer_url}
        return {
            "bundle_sha256": bundle.sha256,
            "formats": ",".join(self.formats),
            "runtime": self.runtime.value,
            "scale": "" if self.scale is None else f"{self.scale[0]!r},{self.scale[1]!r}",
            "series": self.series or "",
            **linked,
        }


class StudyJudge:
    """Opens one study after the other, judges it and writes its results. The networks are loaded once, when needed."""

    def __init__(self, bundle: Bundle, options: Options, progress: StudyProgress) -> None:
        self._bundle = bundle
        self._options = options
        self._progress = progress
        self._predictor: Predictor | None = None

    def __call__(self, job: Job) -> Findings:
        """Judge one study; ``findings.json`` and the report are in ``job.folder`` afterwards.

        Raises:
            StudyError: the study is refused.
            BundleError: the model cannot be used.
            OutputError: the results cannot be written.
        """
        from cspine import reports
        from cspine.inference.predictor import Predictor
        from cspine.node.viewer import link_of
        from cspine.studies import open_study

        options = self._options
        self._progress.step(0.0, "opening")
        volume = open_study(job.source, series=options.series, scale=options.scale, threads=options.threads)
        series = None
        if reports.wants_series(options.formats, dicom=volume.source.kind == "dicom"):
            # Before anything is judged: a study that cannot have these results is refused at once.
            from cspine.reports.dicom_source import read_source

            series = read_source(job.source, volume.source)
        if self._predictor is None:
            self._progress.step(0.1, "loading the model")
            self._predictor = Predictor(self._bundle, runtime=options.runtime.value, threads=options.threads)
        prediction = self._predictor.predict_full(volume, progress=self._progress.step)
        self._progress.step(0.95, "writing the report")
        link = link_of(options.viewer_url, None if series is None else series.context)
        reports.write(prediction, volume, job.folder, formats=options.formats, series=series, link=link)
        findings: Findings = prediction.findings
        return findings


def predict(
    studies: Annotated[
        list[Path],
        typer.Argument(
            metavar="STUDY",
            help="Folder or zip of DICOM files, one DICOM file, or NIfTI; or pictures.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="Folder for the results.", show_default=False)
    ],
    series: Annotated[
        str | None, typer.Option(metavar="UID", help="Take this series instead of the best one (see: cspine info).")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(metavar="SLOPE,INTERCEPT", help="HU = SLOPE * value + INTERCEPT, for files that do not say."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model bundle instead of the one that is built in.")
    ] = None,
    runtime: Annotated[RuntimeName, typer.Option(help="What runs the networks.")] = RuntimeName.OPENVINO,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all when not given.")] = None,
    formats: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What to write for a study: json, html, csv, seg, sr, sc, gsps, pdf, dicom-pdf, fhir, hl7.",
        ),
    ] = "json,html",
    viewer_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Viewer's address with {study_uid} or {accession}, for links in fhir and hl7."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Keep finished results whose input has not changed.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more, and show what libraries warn of.")
    ] = False,
) -> None:
    """Judge studies: writes findings.json and report.html for each, and a summary.csv for several.

    One study goes to OUT itself, several go to OUT/<name>. A bad study does not stop the others: its findings.json
    says why it was refused.

    Single pictures (PNG, JPEG, TIFF, DICOM slices that are no volume, folders of these) are judged by a bundle that was
    trained for them: writes pictures.json, pictures.csv and pictures.html for all.
    """
    from cspine.cli.pictures import given_pictures, predict_pictures
    from cspine.node.viewer import parse_template
    from cspine.studies.intensity import parse_scale

    template = parse_template(viewer_url, "--viewer-url")
    options = Options(series, parse_scale(scale), runtime, threads, parse_formats(formats), template)
    verbosity = Verbosity.of(quiet=quiet, verbose=verbose)
    pictures = given_pictures(studies, bundle)
    if pictures is not None:
        predict_pictures(pictures, out, options, bundle=bundle, verbosity=verbosity)
        return
    run(studies, out, options, bundle=bundle, resume=resume, verbosity=verbosity)


def run(
    studies: Sequence[Path],
    out: Path,
    options: Options,
    *,
    bundle: Path | None = None,
    resume: bool = True,
    verbosity: Verbosity = Verbosity.NORMAL,
) -> list[Outcome]:
    """Do what ``cspine predict`` does.

    Raises:
        StudyError: the only study was refused.
        BatchError: some of several studies were refused or failed.
        CspineError: nothing can be done: no such study, an unusable model or output folder.
    """
    from cspine.cli.batch import Batch
    from cspine.cli.jobs import plan_jobs
    from cspine.cli.progress import StudyProgress, quiet_libraries
    from cspine.inference.bundle import Bundle
    from cspine.reports import atomic
    from cspine.reports.summary import SUMMARY_FILE, row, write_summary

    jobs = plan_jobs(studies, out)
    chosen = Bundle.default() if bundle is None else Bundle.load(bundle)
    atomic.make_folder(out)
    batch = Batch(jobs, out, options.settings(chosen), resume, options.formats)

    def summarise(outcomes: Sequence[Outcome]) -> None:
        # After every study, so that an interrupted run leaves a table of what it finished.
        rows = [row(o.job.name, o.findings, folder=o.job.folder.name, status=o.status, error=o.error) for o in outcomes]
        write_summary(out / SUMMARY_FILE, rows, keep=True)

    with quiet_libraries(verbosity), StudyProgress(len(jobs), verbosity) as progress:
        if len(jobs) > 1:
            summarise(())

        def ended(outcomes: Sequence[Outcome]) -> None:
            progress.ended(outcomes[-1])
            if len(jobs) > 1:
                summarise(outcomes)

        outcomes = batch.run(StudyJudge(chosen, options, progress), started=progress.started, ended=ended)
    conclude(outcomes)
    return outcomes


def conclude(outcomes: Sequence[Outcome]) -> None:
    """Raise what the run as a whole amounts to.

    Raises:
        CspineError: the fault of the only study.
        BatchError: how many of several studies have no result.
    """
    from cspine.errors import BatchError

    faults = [outcome.error for outcome in outcomes if outcome.error is not None]
    if not faults:
        return
    if len(outcomes) == 1:
        raise faults[0]
    raise BatchError(
        f"{len(faults)} of {len(outcomes)} studies have no result",
        fix="The column reason of summary.csv says why; the others are done",
    )


def parse_formats(text: str) -> tuple[str, ...]:
    """Formats from a comma-separated list; json is always written, since resuming depends on it.

    Raises:
        UsageError: an unknown format.
        MissingExtraError: a format needs an optional part that is not installed.
    """
    from cspine.cli.extras import require
    from cspine.errors import UsageError
    from cspine.reports import FORMATS

    wanted = {part.strip().lower() for part in text.split(",") if part.strip()}
    unknown = sorted(wanted - set(FORMATS))
    if unknown:
        raise UsageError(f"unknown format '{unknown[0]}'", where="--formats", fix=f"Choose from: {', '.join(FORMATS)}")
    for name in FORMATS:
        if name in wanted and FORMATS[name].extra:
            require(FORMATS[name].extra, for_what=f"--formats {name}")
    return tuple(name for name in FORMATS if name == "json" or name in wanted)
