"""What findings say: from verdicts, opinions and probabilities to the items of ``Findings``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, Level
from cspine.findings import Evidence, InputProvenance, LevelFinding, LevelName, PatientFinding
from cspine.inference.answers import Opinion
from cspine.inference.bundle import Manifest
from cspine.inference.combiner import Combined
from cspine.inference.evidence import boxes
from cspine.inference.judge import Verdict
from cspine.volume import Volume

# Below a level's threshold evidence is still shown from this probability on, so that a reader can look for himself.
SHOW_EVIDENCE_FROM = 0.1
# A type less sure than this is not named.
MIN_TYPE_CONFIDENCE = 0.3

_NAMES: dict[Level, LevelName] = dict(zip(LEVELS, get_args(LevelName), strict=True))
_ANY = tuple(_NAMES.values())


def level_finding(
    level: Level, verdict: Verdict, opinion: Opinion | None, combined: Combined, volume: Volume, manifest: Manifest
) -> LevelFinding:
    """What findings say of one level.

    Args:
        level: which.
        verdict: whether it is judged.
        opinion: the classifier's; None when it was not asked.
        combined: calibrated probabilities.
        volume: canonical axes; evidence is put into its slices.
        manifest: of the bundle: thresholds and types.
    """
    found, probability = verdict.found, combined.levels.get(level)
    shown = None if probability is None else _rounded(probability)
    threshold = manifest.thresholds.of(level)
    fracture = None if shown is None else shown >= threshold
    kind: tuple[str | None, float | None] = (None, None)
    evidence: tuple[Evidence, ...] = ()
    if opinion is not None and shown is not None:
        kind = _type(level, opinion.types, manifest) if fracture else kind
        evidence = boxes(opinion.evidence, volume) if fracture or shown >= SHOW_EVIDENCE_FROM else ()
    return LevelFinding(
        level=_NAMES[level],
        visible=verdict.visible,
        visible_fraction=_rounded(verdict.visible_fraction),
        confidence=0.0 if found is None else _rounded(found.confidence),
        body_center_mm=None if found is None else _point(found.center_mm),
        probability=shown,
        fracture=fracture,
        threshold=None if shown is None else threshold,
        type=kind[0],
        type_confidence=kind[1],
        evidence=evidence,
        not_judged=verdict.reason,
    )


def patient_finding(combined: Combined, threshold: float) -> PatientFinding:
    """What findings say of the patient; ``threshold`` is the bundle's."""
    if combined.patient is None:
        return PatientFinding(probability=None, fracture=None, threshold=threshold)
    probability = _rounded(combined.patient)
    return PatientFinding(probability=probability, fracture=probability >= threshold, threshold=threshold)


def status_of(judged: Collection[Level]) -> Literal["ok", "partial", "refused"]:
    """The status of findings in which these levels were judged."""
    if not judged:
        return "refused"
    return "ok" if len(judged) == len(LEVELS) else "partial"


def input_provenance(volume: Volume) -> InputProvenance:
    """What findings say of the images that were read."""
    source = volume.source
    return InputProvenance(
        name=source.name,
        kind=source.kind,
        sha256=source.sha256,
        series_uid=source.series_uid,
        study_uid=source.study_uid,
        frame_of_reference_uid=source.frame_of_reference_uid,
        selection=source.selection,
        shape=volume.shape,
        spacing_mm=volume.spacing,
        affine=tuple(tuple(float(value) for value in row) for row in volume.affine),
        acquisition=dict(source.acquisition),
    )


def _type(level: Level, logits: NDArray[np.float32], manifest: Manifest) -> tuple[str | None, float | None]:
    """Likeliest type that occurs at this level and the sigmoid of its logit; nothing when it is not sure enough."""
    possible = [k for k, name in enumerate(manifest.types) if level.name in manifest.type_levels.get(name, _ANY)]
    possible = [k for k in possible if k < len(logits)]
    if not possible:
        return None, None
    best = max(possible, key=lambda k: float(logits[k]))
    confidence = _rounded(float(0.5 * (1 + np.tanh(0.5 * logits[best]))))
    return (manifest.types[best], confidence) if confidence >= MIN_TYPE_CONFIDENCE else (None, None)


def _point(center: tuple[float, float, float]) -> tuple[float, float, float]:
    """LPS mm to a hundredth."""
    x, y, z = (round(value, 2) for value in center)
    return x, y, z


def _rounded(value: float) -> float:
    """Four digits: what is written is what thresholds are compared with."""
    return round(min(max(value, 0.0), 1.0), 4)
