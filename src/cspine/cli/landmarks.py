"""The part of ``cspine evaluate`` that measures levels against marked centres of real scans."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cspine.errors import OutputError, UsageError

Halves = Literal["development", "test", "all"]
Counter = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, slots=True)
class LandmarkOptions:
    """What the command line was given; names as its flags."""

    landmarks: Path
    scans: Path
    out: Path
    bundle: Path
    variants: str = "none"
    half: str = "all"
    development: tuple[str, ...] = ()
    scale: tuple[str, ...] = ()
    workers: int = 1
    runtime: str = "openvino"
    figures: bool = True


def measure_landmarks(options: LandmarkOptions, counting: Counter) -> str:
    """Measure, write ``landmarks.json``, ``landmarks.md`` and ``confidence.png``, and return the tables.

    Raises:
        UsageError: an option makes no sense, or a scan is missing.
        OutputError: the folder cannot be written.
    """
    from importlib.util import find_spec

    from cspine.evaluation.landmark_runs import Plan, marked_scans, measure
    from cspine.evaluation.landmark_tables import draw_confidence, landmarks_to_markdown, summarise_landmarks
    from cspine.evaluation.marks import halves, load_marks
    from cspine.evaluation.variants import choose

    if options.half not in get_args(Halves):
        raise UsageError(f"no half {options.half!r}", fix=f"Known are {', '.join(get_args(Halves))}")
    marks = load_marks(options.landmarks)
    roles = halves(tuple(marks), options.development)
    scales = scan_scales(options.scale, tuple(marks))
    wanted = {name: item for name, item in marks.items() if options.half in ("all", roles[name])}
    scans = marked_scans(wanted, roles, options.scans, scales)
    if not scans:
        raise UsageError(f"no marked scan is in the {options.half} half", where=str(options.landmarks))
    choose(options.variants)
    plan = Plan(scans, options.variants, options.out / "cases", options.bundle, options.runtime)
    with counting("marked scans judged", len(scans)) as progress:
        records = measure(plan, workers=options.workers, progress=progress)
    summary = summarise_landmarks(records)
    table = landmarks_to_markdown(summary, f"Levels of {options.landmarks.parent.name}, {options.half} half")
    try:
        (options.out / "landmarks.json").write_text(json.dumps(summary, indent=2) + "\n")
        (options.out / "landmarks.md").write_text(table)
    except OSError as error:
        raise OutputError(f"cannot write the tables: {error}", where=str(options.out)) from error
    if options.figures and find_spec("matplotlib") is not None:
        draw_confidence(records, options.out / "confidence.png")
    return table


def scan_scales(given: Sequence[str], known: Sequence[str]) -> dict[str, tuple[float, float]]:
    """``NAME=SLOPE,INTERCEPT`` of each scan that is not HU.

    Raises:
        UsageError: another form, not numbers, or a scan that is not marked.
    """
    from cspine.studies.intensity import parse_scale

    out = {}
    for text in given:
        name, sign, numbers = text.rpartition("=")
        if not sign or name not in known:
            raise UsageError(f"expected NAME=SLOPE,INTERCEPT with the name of a marked scan, got {text!r}")
        factors = parse_scale(numbers)
        if factors is not None:
            out[name] = factors
    return out
