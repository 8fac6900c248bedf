"""``write``: one result into one folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.errors import MissingExtraError, UsageError
from cspine.findings import Findings
from cspine.reports import atomic, html, summary
from cspine.reports.inputs import Predicted, ReportInput
from cspine.volume import Volume

if TYPE_CHECKING:
    from cspine.reports.dicom_source import SourceSeries


@dataclass(frozen=True, slots=True)
class Format:
    """One way to say a result.

    Attributes:
        file: where it goes.
        render: makes the bytes; None when the result has nothing to say in this form (no vertebra, no segmentation).
        needs_series: the input must be DICOM.
        uses_series: what the DICOM input says of itself is used where there is any.
        extra: optional part of the installation that it needs, or empty.
    """

    file: str
    render: Callable[[ReportInput], bytes | None]
    needs_series: bool = False
    uses_series: bool = False
    extra: str = ""


def _json(report: ReportInput) -> bytes:
    return report.findings.to_json().encode()


def _csv(report: ReportInput) -> bytes:
    source = report.findings.provenance.input
    return summary.to_csv([summary.row(source.name if source else "", report.findings)])


def _seg(report: ReportInput) -> bytes | None:
    from cspine.reports import dicom_seg

    return dicom_seg.render(report)


def _sr(report: ReportInput) -> bytes:
    from cspine.reports import dicom_sr

    return dicom_sr.render(report)


def _sc(report: ReportInput) -> bytes:
    from cspine.reports import dicom_sc

    return dicom_sc.render(report)


def _gsps(report: ReportInput) -> bytes:
    from cspine.reports import dicom_gsps

    return dicom_gsps.render(report)


def _pdf(report: ReportInput) -> bytes:
    from cspine.reports import pdf

    return pdf.render(report)


def _dicom_pdf(report: ReportInput) -> bytes:
    from cspine.reports import dicom_pdf

    return dicom_pdf.render(report)


def _fhir(report: ReportInput) -> bytes:
    from cspine.reports import fhir

    return fhir.render(report)


def _hl7(report: ReportInput) -> bytes:
    from cspine.reports import hl7

    return hl7.render(report)


FORMATS: dict[str, Format] = {
    "json": Format("findings.json", _json),
    "html": Format("report.html", html.render),
    "csv": Format("findings.csv", _csv),
    "seg": Format("seg.dcm", _seg, needs_series=True, extra="dicom"),
    "sr": Format("sr.dcm", _sr, needs_series=True, extra="dicom"),
    "sc": Format("key-images.dcm", _sc, needs_series=True, extra="dicom"),
    "gsps": Format("marks.dcm", _gsps, needs_series=True, extra="dicom"),
    "pdf": Format("report.pdf", _pdf, extra="dicom"),
    "dicom-pdf": Format("report-pdf.dcm", _dicom_pdf, needs_series=True, extra="dicom"),
    "fhir": Format("diagnostic-report.json", _fhir, uses_series=True, extra="dicom"),
    "hl7": Format("oru.hl7", _hl7, uses_series=True, extra="dicom"),
}


def write(
    prediction: Predicted | Findings,
    volume: Volume | None,
    out_dir: Path,
    *,
    formats: Sequence[str] = ("json", "html"),
    series: SourceSeries | None = None,
    link: str | None = None,
) -> dict[str, Path]:
    """Write the result of one study.

    All files are made in memory first, then put in place together, ``findings.json`` last: where it is, the result
    is complete. Files of an earlier result in ``out_dir`` never survive, whether this succeeds or fails.

    Args:
        prediction: from ``Predictor.predict_full``, or bare findings (then pictures carry boxes, no heat).
        volume: the CT that was judged; None when it could not be opened.
        out_dir: created when missing.
        formats: names from ``FORMATS``.
        series: from ``reports.dicom_source.read_source``; the formats in DICOM need it.
        link: at which a viewer shows the study; ``fhir`` and ``hl7`` repeat it.

    Returns:
        The file of each format that has something to say.

    Raises:
        UsageError: a format is unknown, or needs DICOM as input.
        MissingExtraError: a format needs an optional part that is not installed.
        OutputError: the folder cannot be written; nothing of this result is left there.
    """
    chosen = _chosen(formats)
    if series is None:
        refuse_without_series(formats)
    report = ReportInput.of(prediction, volume, series, chosen, link)
    try:
        made = {name: _rendered(name, form, report) for name, form in chosen.items()}
        files = {chosen[name].file: data for name, data in made.items() if data is not None}
    except BaseException:
        clear(out_dir)
        raise
    done = atomic.write_set(out_dir, files, retire=_own_files())
    return {name: done[form.file] for name, form in chosen.items() if form.file in done}


def refuse_without_series(formats: Sequence[str]) -> None:
    """Refuse formats that only a DICOM study can have.

    Raises:
        UsageError: names the first of them.
    """
    for name in formats:
        if name in FORMATS and FORMATS[name].needs_series:
            raise UsageError(
                f"the format {name} needs a DICOM study as input", fix=f"Leave {name} out, or give the DICOM series"
            )


def wants_series(formats: Sequence[str], *, dicom: bool) -> bool:
    """Whether the source series should be read again for these formats.

    Args:
        formats: names from ``FORMATS``.
        dicom: whether the input was DICOM; some formats use what it says of itself, and do without where it was not.
    """
    return any(FORMATS[name].needs_series or (dicom and FORMATS[name].uses_series) for name in formats)


def without_series(formats: Sequence[str]) -> tuple[str, ...]:
    """Those of the formats that any result can have, such as one of a study that could not be opened."""
    return tuple(name for name in formats if name in FORMATS and not FORMATS[name].needs_series)


def _rendered(name: str, form: Format, report: ReportInput) -> bytes | None:
    try:
        return form.render(report)
    except ModuleNotFoundError as error:
        if not form.extra:
            raise
        raise MissingExtraError(
            f"the format {name} needs the optional part '{form.extra}', which is not installed",
            where=f"missing: {error.name}",
            fix=f'Install it with: pip install "cspine[{form.extra}]"',
        ) from error


def clear(out_dir: Path) -> None:
    """Delete the files of an earlier result, so that a failure from here on leaves none that looks like the new one.

    Raises:
        OutputError: one of them cannot be deleted.
    """
    atomic.remove(out_dir, _own_files())


def _own_files() -> tuple[str, ...]:
    """Every file of one study's result, completion mark last. The summary of many studies is not among them."""
    return tuple(form.file for _, form in sorted(FORMATS.items(), key=lambda entry: entry[0] == "json"))


def _chosen(formats: Sequence[str]) -> dict[str, Format]:
    """The formats asked for, each once, JSON last.

    Raises:
        UsageError: one is unknown.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UsageError(
            f"expected formats among {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}",
            fix="Use --formats json,html",
        )
    return {name: FORMATS[name] for name in sorted(dict.fromkeys(formats), key=lambda name: name == "json")}
