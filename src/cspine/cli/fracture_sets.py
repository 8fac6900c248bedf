"""The part of ``cspine evaluate`` that measures the classifier on its held-out test sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.errors import OutputError, UsageError

if TYPE_CHECKING:
    from cspine.evaluation.fracture_sets import FracturePhantoms, PlantedFractures
    from cspine.evaluation.records import CaseRecord
    from cspine.inference.predictor import Predictor

FAMILIES = ("parametric", "mesh", "planted")
Counter = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, slots=True)
class SetOptions:
    """What the command line was given; names as its flags."""

    family: str
    cases: int
    seed: int
    out: Path
    bundle: Path
    preset: str | None = None
    meshes: Path | None = None
    scan: tuple[str, ...] = ()
    keep: Path | None = None
    workers: int = 1
    runtime: str = "openvino"
    figures: bool = True


def measure_set(options: SetOptions, counting: Counter) -> str:
    """Measure, write ``fractures.json``, ``fractures.md`` and figures, and return the tables.

    Raises:
        UsageError: an option makes no sense.
        OutputError: the folder cannot be written.
    """
    from importlib.util import find_spec

    from cspine.evaluation.fracture_figures import draw_fracture_figures
    from cspine.evaluation.fracture_summary import summarise_fractures
    from cspine.evaluation.fracture_tables import fractures_to_markdown

    check(options)
    cases, records = _judged(options, counting)
    kinds = {cases.name(number): str(cases.kind(number)) for number in range(cases.count)}
    summary = {"set": described(options)} | summarise_fractures(records, kinds)
    table = fractures_to_markdown(summary, described(options), options.family)
    try:
        (options.out / "fractures.json").write_text(json.dumps(summary, indent=2) + "\n")
        (options.out / "fractures.md").write_text(table)
    except OSError as error:
        raise OutputError(f"cannot write the tables: {error}", where=str(options.out)) from error
    if options.figures and find_spec("matplotlib") is not None:
        draw_fracture_figures(records, summary, options.out)
    return table


def check(options: SetOptions) -> None:
    """What the flags must be.

    Raises:
        UsageError: an unknown set, or a flag that it needs or cannot use.
    """
    known = ", ".join(FAMILIES)
    if options.family not in FAMILIES:
        raise UsageError(f"no test set {options.family!r}, expected one of {known}", where="--set")
    if (options.family == "mesh") != (options.meshes is not None):
        raise UsageError("--meshes DIR belongs to --set mesh", where="--meshes", fix="Give both or neither")
    if (options.family == "planted") != bool(options.scan):
        raise UsageError("--scan FILE belongs to --set planted", where="--scan", fix="Give both or neither")
    if options.family == "planted" and options.preset is not None:
        raise UsageError("--preset is of phantoms, not of real scans", where="--preset", fix="Leave it out")


def described(options: SetOptions) -> str:
    """The set in words, without paths."""
    from cspine.evaluation.fracture_sets import DEFAULT_PRESET

    if options.family == "planted":
        count = len(options.scan)
        return f"Test set: fractures planted in {count} real scan{'s' if count > 1 else ''}, seed {options.seed}"
    meshes = f" of {options.meshes.resolve().name}" if options.meshes is not None else ""
    preset = options.preset or DEFAULT_PRESET
    return f"Test set: {options.family} phantoms{meshes}, preset {preset}, seed {options.seed}"


def _judged(options: SetOptions, counting: Counter) -> tuple[FracturePhantoms | PlantedFractures, list[CaseRecord]]:
    from cspine.evaluation.fracture_sets import DEFAULT_PRESET, FracturePhantoms
    from cspine.evaluation.kept_cases import KeptCases
    from cspine.evaluation.running import evaluate_cases, evaluate_cases_in_parallel
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor

    predictor = None if options.workers > 1 else Predictor(Bundle.load(options.bundle), options.runtime)
    cases: FracturePhantoms | PlantedFractures
    if options.family == "planted":
        labeller = predictor or Predictor(Bundle.load(options.bundle), options.runtime)
        cases = _planted(options, labeller)
    else:
        preset = options.preset or DEFAULT_PRESET
        cases = FracturePhantoms(options.cases, options.seed, preset=preset, meshes=options.meshes)
    folder = options.out / "cases"
    source = cases if options.keep is None else KeptCases(cases, options.keep)
    with counting("cases judged", options.cases) as progress:
        if predictor is not None:
            return cases, evaluate_cases(source, predictor, folder=folder, progress=progress)
        return cases, evaluate_cases_in_parallel(
            source, options.bundle, folder=folder, workers=options.workers, runtime=options.runtime, progress=progress
        )


def _planted(options: SetOptions, predictor: Predictor) -> PlantedFractures:
    """The set of planted fractures; scans without a mask in ``KEEP/labels`` (or ``OUT/labels``) are labelled first."""
    from cspine.evaluation.fracture_sets import PlantedFractures, RealScan
    from cspine.evaluation.labelling import label_scan, parse_scan

    scans = []
    for text in options.scan:
        path, scale = parse_scan(text)
        labels, digest = label_scan(path, (options.keep or options.out) / "labels", predictor, scale)
        scans.append(RealScan(path, labels, digest, scale))
    return PlantedFractures(options.cases, tuple(scans), options.seed)
