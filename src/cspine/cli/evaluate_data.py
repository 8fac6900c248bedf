"""The part of ``cspine evaluate`` that scores a bundle on a user's own labelled studies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.errors import BatchError, NoImagesError, UsageError

if TYPE_CHECKING:
    from cspine.errors import CspineError
    from cspine.evaluation.labelled_set import LabelledCases
    from cspine.evaluation.records import CaseRecord

Counter = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]
JSON_FILE, PAGE_FILE = "evaluation.json", "evaluation.html"


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What the command line was given; names as its flags."""

    data: Path
    samples: Path | None
    fold: int
    out: Path
    bundle: Path
    workers: int = 1
    runtime: str = "openvino"


def measure_data(options: DataOptions, counting: Counter) -> str:
    """Score, write ``evaluation.json`` and ``evaluation.html``, and return one line. Pictures are scored one by one.

    Raises:
        UsageError: not a data set, no such fold, or pictures and a bundle that judges volumes alone.
        NoImagesError: no study could be scored.
        BatchError: some studies could not be scored; the others are.
        OutputError: the folder cannot be written.
    """
    from cspine.cli.evaluate_pictures import measure_pictures
    from cspine.cli.extras import require
    from cspine.inference.bundle import Bundle

    require("train", for_what="cspine evaluate --data")
    from cspine.evaluation.labelled_set import opened
    from cspine.evaluation.network_size import bundle_sizes
    from cspine.evaluation.pages import evaluation_page
    from cspine.evaluation.scoring import figures_of
    from cspine.reports.atomic import write_file
    from cspine.studies.picture_folder import PictureFolder

    bundle = Bundle.load(options.bundle)
    cases = _cases(options)
    data = opened(options.data)
    held = f", those that fold {options.fold} held back" if options.samples else ""
    if isinstance(data, PictureFolder):
        files = options.out / JSON_FILE, options.out / PAGE_FILE
        return measure_pictures(data, cases.names, bundle, options.runtime, files, counting, held=held)
    records, faults = _judged(options, cases, counting)
    if not records:
        raise NoImagesError(
            "no study could be scored", where=str(options.data), fix=next(iter(faults.values())).message
        )
    figures = figures_of(
        records,
        method=f"{bundle.manifest.name} {bundle.manifest.version}",
        data=f"{options.data.resolve().name} ({data.kind}){held}",
        sizes=bundle_sizes(bundle),
        threads=1 if options.workers > 1 else None,
        faults={name: error.message for name, error in faults.items()},
        judges="classifier" in bundle.manifest.stages,
    )
    write_file(options.out / JSON_FILE, (figures.model_dump_json(indent=1) + "\n").encode())
    write_file(options.out / PAGE_FILE, evaluation_page(figures))
    if faults:
        raise BatchError(
            f"{len(faults)} of {cases.count} studies could not be scored; the others are",
            where=str(options.out / PAGE_FILE),
            fix="The page says why; the same command tries them again",
        )
    from cspine.evaluation.comparison import shown

    return f"{len(records)} studies scored, AUC a vertebra {shown(figures.vertebra.auc)}: {options.out / PAGE_FILE}"


def _cases(options: DataOptions) -> LabelledCases:
    """The studies to score.

    Raises:
        UsageError: the samples have no splits, or not that fold.
    """
    from cspine.evaluation.labelled_set import held_back_cases
    from cspine.training.splits import read_splits

    if options.samples is None:
        return held_back_cases(options.data)
    splits = read_splits(options.samples)
    if splits is None:
        raise UsageError(
            "the samples have no splits.json", where=str(options.samples), fix="Make them with cspine prepare"
        )
    return held_back_cases(options.data, splits.parts, options.fold)


def _judged(
    options: DataOptions, cases: LabelledCases, counting: Counter
) -> tuple[list[CaseRecord], dict[str, CspineError]]:
    """The scored cases, and why the others could not be."""
    from cspine.evaluation.running import evaluate_cases, evaluate_cases_in_parallel
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor

    faults: dict[str, CspineError] = {}
    folder = options.out / "cases"
    with counting("studies judged", cases.count) as progress:
        if options.workers > 1:
            records = evaluate_cases_in_parallel(
                cases, options.bundle, folder=folder, workers=options.workers, runtime=options.runtime,
                progress=progress, faults=faults,
            )  # fmt: skip
        else:
            predictor = Predictor(Bundle.load(options.bundle), options.runtime)
            records = evaluate_cases(cases, predictor, folder=folder, progress=progress, faults=faults)
    return records, faults
