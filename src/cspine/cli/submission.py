"""``cspine submission``: the answer file of the RSNA 2022 challenge from a folder of test studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli import console
from cspine.cli.predict import RuntimeName
from cspine.errors import BatchError, CspineError, StudyError

if TYPE_CHECKING:
    from cspine.evaluation.submission import TestFolder
    from cspine.findings import Findings
    from cspine.inference.predictor import Predictor


def submission(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.", show_default=False)],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="TEST_FOLDER", help="Folder with test_images (or train_images), and test.csv.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The CSV to write.", show_default=False)
    ] = Path("submission.csv"),
    runtime: Annotated[RuntimeName, typer.Option(help="What runs the networks.")] = RuntimeName.OPENVINO,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all when not given.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Write the competition's answer file: row_id, fractured.

    Findings of finished studies are kept beside the file, so the same command goes on after an interruption. Levels
    that were not judged get their base rate, and so do studies that cannot be read, which are listed.
    """
    from cspine.evaluation.submission import open_test_folder, submission_csv
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor
    from cspine.reports.atomic import write_file

    folder = open_test_folder(data)
    predictor = Predictor(Bundle.load(bundle), runtime.value, threads)
    answers, faults = _answered(folder, predictor, out.with_name(f"{out.name}.findings"), threads, quiet=quiet)
    write_file(out, submission_csv(folder.rows, answers).encode())
    typer.echo(f"{len(folder.rows)} rows of {len(folder.studies)} studies: {out}")
    screen = console.stderr()
    for study, error in faults.items():
        screen.print(f"base rates for {study}: {error.message}", markup=False, soft_wrap=True)
    if faults:
        raise BatchError(
            f"{len(faults)} of {len(folder.studies)} studies could not be read and got base rates",
            where=str(out),
            fix="Mend them and run the same command again",
        )


def _answered(
    folder: TestFolder, predictor: Predictor, kept: Path, threads: int | None, *, quiet: bool
) -> tuple[dict[str, dict[str, float]], dict[str, CspineError]]:
    """Probabilities of every study that could be read, and why the others could not be."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cspine.cli.progress import quiet_libraries
    from cspine.evaluation.submission import answers_of
    from cspine.reports.atomic import write_file
    from cspine.studies import open_study

    answers: dict[str, dict[str, float]] = {}
    faults: dict[str, CspineError] = {}
    columns = (TextColumn("studies"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with quiet_libraries(), Progress(*columns, console=console.stderr(), transient=True, disable=quiet) as bar:
        for study in bar.track(folder.studies):
            place = kept / f"{study}.json"
            findings = _known(place, predictor.bundle.sha256)
            if findings is None:
                try:
                    findings = predictor.predict(open_study(folder.images / study, threads=threads))
                except (StudyError, MemoryError) as error:
                    faults[study] = _fault(error, study)
                    continue
                write_file(place, findings.to_json().encode())
            answers[study] = answers_of(findings)
    return answers, faults


def _fault(error: Exception, study: str) -> CspineError:
    if isinstance(error, CspineError):
        return error
    return StudyError("the study needs more memory than there is", where=study)


def _known(place: Path, bundle: str) -> Findings | None:
    """Findings of this bundle from an earlier run, or None."""
    from cspine.findings import Findings

    try:
        found = Findings.load(place)
    except (OSError, StudyError):
        return None
    made = found.provenance.bundle
    return found if made is not None and made.sha256 == bundle else None
