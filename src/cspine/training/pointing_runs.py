"""How often the heat of a trained network lies on the fracture, over a folder of studies whose fractures are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cspine.errors import CspineError, UsageError
from cspine.evaluation.evidence_hits import fracture_points
from cspine.evaluation.metrics import Interval
from cspine.evaluation.pointing import TOLERANCE_MM, HeatFigures, HeatHit, HeatItem, figures_of, heat_hit
from cspine.inference.predictor import Prediction
from cspine.reports.atomic import write_file
from cspine.studies.labelled import LabelledStudies
from cspine.training.explain import Explainer
from cspine.training.heat_questions import centers
from cspine.volume import Volume

# The figures of ``HeatFigures`` that have an interval, and what they are called.
FIGURES = {
    "pointing": "strongest on the fracture",
    "centre": "the same for the middle of the map",
    "box_iou": "overlap of the boxes (IoU)",
    "distance_mm": "median distance, mm",
}


class StudyHits(BaseModel):
    """What is kept of one study.

    Attributes:
        settings: what was used; a study that was done with others is done again.
        heat: how Grad-CAM did in each fractured vertebra that was found.
        evidence: how the method's own maps did.
        not_found: fractured vertebrae that were not.
        refused: code of the reason why it could not be used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    settings: dict[str, str]
    heat: tuple[HeatHit, ...] = ()
    evidence: tuple[HeatHit, ...] = ()
    not_found: int = 0
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class HeatScores:
    """What the maps of a set of studies are worth.

    Attributes:
        studies: what is known of each.
        heat: figures of Grad-CAM.
        evidence: of the method's own maps; None for a method without.
    """

    studies: dict[str, StudyHits]
    heat: HeatFigures
    evidence: HeatFigures | None

    @property
    def refused(self) -> dict[str, str]:
        """Studies that could not be used, and the code of the reason."""
        return {name: item.refused for name, item in self.studies.items() if item.refused is not None}

    @property
    def not_found(self) -> int:
        """Fractured vertebrae that were left out, since the locator did not find them."""
        return sum(item.not_found for item in self.studies.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what tells patients apart."""
        return {
            "studies": len(self.studies) - len(self.refused),
            "not_found": self.not_found,
            "refused": self.refused,
            "heat": _plain(self.heat, {name: item.heat for name, item in self.studies.items()}),
            "evidence": None
            if self.evidence is None
            else _plain(self.evidence, {name: item.evidence for name, item in self.studies.items()}),
        }

    def lines(self) -> list[str]:
        """The figures for a person."""
        used = len(self.studies) - len(self.refused)
        near = f"on the fracture: within {self.heat.tolerance_mm:g} mm"
        out = [f"fractured vertebrae: {self.heat.count} in {used} studies; {near}"]
        for name, figures in (("heat", self.heat), ("evidence of the method", self.evidence)):
            if figures is not None:
                out.append(name)
                out += [f"  {text}: {getattr(figures, key)}" for key, text in FIGURES.items()]
        if self.not_found:
            out.append(f"left out, since the locator did not find them: {self.not_found}")
        if self.refused:
            out.append(f"studies that could not be used: {len(self.refused)}")
        return out


def fractured(studies: LabelledStudies, limit: int | None = None) -> list[str]:
    """Names of the studies with a fracture that can be tried, at most ``limit``."""
    truth = studies.labels()
    return [name for name in studies.studies if any(truth.get(name, ()))][:limit]


def score_heat(
    explainer: Explainer,
    studies: LabelledStudies,
    predict: Callable[[Volume], Prediction],
    folder: Path,
    *,
    settings: dict[str, str],
    tolerance_mm: float = TOLERANCE_MM,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> HeatScores:
    """Pointing game and box overlap over the fractured vertebrae of labelled studies.

    Args:
        explainer: a trained network.
        studies: those with a known place of fracture count.
        predict: says where the levels of a volume are.
        folder: one JSON a study is kept here; those of the same settings are not done again.
        settings: what changes a result.
        tolerance_mm: see ``evaluation.pointing``.
        limit: at most this many studies with a fracture.
        progress: called with how many studies are done, and of how many.

    Raises:
        UsageError: no fractured vertebra was found whose place is known.
        OutputError: the folder cannot be written.
    """
    names = fractured(studies, limit)
    done: dict[str, StudyHits] = {}
    for number, name in enumerate(names):
        path = folder / f"{name}.json"
        kept = _kept(path, settings)
        if kept is None:
            kept = _study(explainer, studies, predict, name, settings)
            write_file(path, (kept.model_dump_json(indent=2) + "\n").encode())
        done[name] = kept
        if progress is not None:
            progress(number + 1, len(names))
    heat = _figures({name: item.heat for name, item in done.items()}, studies.patients, tolerance_mm)
    if heat is None:
        raise UsageError(
            f"no fractured vertebra with a known place was found in {len(names)} studies with a fracture",
            where=str(studies.path),
            fix="Give studies with fracture masks, such as a folder of cspine phantom",
        )
    own = _figures({name: item.evidence for name, item in done.items()}, studies.patients, tolerance_mm)
    return HeatScores(done, heat, own)


def _kept(path: Path, settings: dict[str, str]) -> StudyHits | None:
    """What an earlier run found; None when it did not get there, or had other settings. Refused studies are retried."""
    try:
        kept = StudyHits.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return kept if kept.settings == settings and kept.refused is None else None


def _study(
    explainer: Explainer,
    studies: LabelledStudies,
    predict: Callable[[Volume], Prediction],
    name: str,
    settings: dict[str, str],
) -> StudyHits:
    """Explain the fractured vertebrae of one study."""
    try:
        case = studies.case(name)
        points = fracture_points(case)
        found = predict(case.volume) if points else None
        known = [] if found is None else [level for level in points if level in centers(found)]
        heats = explainer.explain(case.volume, found, known) if found is not None and known else ()
        own = [(item.level, item.evidence) for item in heats if item.evidence is not None]
        return StudyHits(
            settings=settings,
            heat=tuple(heat_hit(HeatItem(name, item.level, item.heat, points[item.level])) for item in heats),
            evidence=tuple(heat_hit(HeatItem(name, level, values, points[level])) for level, values in own),
            not_found=len(points) - len(known),
        )
    except CspineError as error:
        return StudyHits(settings=settings, refused=error.code)


def _figures(
    hits: Mapping[str, tuple[HeatHit, ...]], patients: Mapping[str, str], tolerance_mm: float
) -> HeatFigures | None:
    """Of the hits of each study; None when there are none. Studies of one patient are drawn as one."""
    grouped = [replace(hit, group=patients.get(name, name)) for name, found in hits.items() for hit in found]
    return figures_of(grouped, tolerance_mm=tolerance_mm) if grouped else None


def _plain(figures: HeatFigures, hits: Mapping[str, tuple[HeatHit, ...]]) -> dict[str, Any]:
    out: dict[str, Any] = {"count": figures.count, "tolerance_mm": figures.tolerance_mm}
    for name in FIGURES:
        interval: Interval = getattr(figures, name)
        out[name] = {key: _finite(value) for key, value in asdict(interval).items()}
    out["vertebrae"] = [
        {
            "study": name,
            "level": hit.level.name,
            "distance_mm": _finite(hit.distance_mm),
            "box_iou": _finite(hit.box_iou),
        }
        for name, found in hits.items()
        for hit in found
    ]
    return out


def _finite(value: float) -> float | None:
    """To four digits; JSON has no infinity."""
    return round(value, 4) if math.isfinite(value) else None
