"""``write``: one result into one folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cspine.errors import UsageError
from cspine.findings import Findings
from cspine.reports import atomic, html, summary
from cspine.reports.inputs import Predicted, ReportInput
from cspine.volume import Volume


@dataclass(frozen=True, slots=True)
class Format:
    """One way to say a result: the file it goes to, and what makes the bytes."""

    file: str
    render: Callable[[ReportInput], bytes]


def _json(report: ReportInput) -> bytes:
    return report.findings.to_json().encode()


def _csv(report: ReportInput) -> bytes:
    source = report.findings.provenance.input
    return summary.to_csv([summary.row(source.name if source else "", report.findings)])


FORMATS: dict[str, Format] = {
    "json": Format("findings.json", _json),
    "html": Format("report.html", html.render),
    "csv": Format("findings.csv", _csv),
}


def write(
    prediction: Predicted | Findings,
    volume: Volume | None,
    out_dir: Path,
    *,
    formats: Sequence[str] = ("json", "html"),
) -> dict[str, Path]:
    """Write the result of one study.

    All files are made in memory first, then put in place together, ``findings.json`` last: where it is, the result
    is complete. Files of an earlier result in ``out_dir`` never survive, whether this succeeds or fails.

    Args:
        prediction: from ``Predictor.predict_full``, or bare findings (then pictures carry boxes, no heat).
        volume: the CT that was judged; None when it could not be opened.
        out_dir: created when missing.
        formats: names from ``FORMATS``.

    Returns:
        The file of each format.

    Raises:
        UsageError: a format is unknown.
        OutputError: the folder cannot be written; nothing of this result is left there.
    """
    chosen = _chosen(formats)
    report = ReportInput.of(prediction, volume)
    try:
        files = {chosen[name].file: chosen[name].render(report) for name in chosen}
    except BaseException:
        clear(out_dir)
        raise
    done = atomic.write_set(out_dir, files, retire=_own_files())
    return {name: done[form.file] for name, form in chosen.items()}


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
