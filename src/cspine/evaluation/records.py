"""What one scored case leaves behind: plain rows, in JSON and back, from which every table is made."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case
from cspine.evaluation.evidence_hits import fracture_points, peak_distance
from cspine.evaluation.evidence_marks import EvidenceMark, evidence_marks
from cspine.evaluation.image_records import ImageRecords, image_records
from cspine.evaluation.metrics import dice, level_hits, surface_distance
from cspine.findings import Findings
from cspine.inference.predictor import Prediction
from cspine.volume import Volume

# A vertebra counts as in view when this share of it is in the field, and as absent below the second.
IN_VIEW = 0.5
ABSENT = 0.02
CERVICAL = tuple(int(level) for level in LEVELS)


class LevelRecord(BaseModel):
    """Truth and answer of one vertebra of one case.

    Attributes:
        level: C1..C7.
        visible_fraction: truth, 0..1; None where nobody outlined the vertebra.
        fractured: truth, an acute fracture.
        types: truth.
        severity: truth, 0 hairline to 1 displaced.
        old_fracture: truth, a healed one.
        displacement_mm: truth, of the most displaced acute fracture; None when there is none or it is unknown.
        confounders: truth, names of what may be taken for a fracture.
        claimed: the answer says that it is in view.
        centre_known: truth, its centre is known, so that ``right_level`` means something.
        right_level: the answer's centre is right; False when there is none.
        distance_mm: between true and answered centre; None without an answer.
        dice: of its mask on the answer's grid; None when it is not in view.
        surface_mm: mean symmetric distance between the surfaces of true and answered mask; None without either.
        probability: the answer's, None when it was not judged.
        logit: raw vertebra logit, None when it was not judged.
        called: the answer says fracture.
        type: the answer's.
        confidence: of the level's name.
        evidence_mm: from the strongest cell of the evidence map to the nearest voxel of the fracture; None when it
            is not fractured, not judged, or the fracture's place is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: str
    visible_fraction: float | None
    fractured: bool
    types: tuple[str, ...] = ()
    severity: float = 0.0
    old_fracture: bool = False
    displacement_mm: float | None = None
    confounders: tuple[str, ...] = ()
    claimed: bool
    centre_known: bool = True
    right_level: bool
    distance_mm: float | None = None
    dice: float | None = None
    surface_mm: float | None = None
    probability: float | None = None
    logit: float | None = None
    called: bool = False
    type: str | None = None
    confidence: float = 0.0
    evidence_mm: float | None = None

    @property
    def in_view(self) -> bool:
        """The truth says that it can be judged."""
        return self.visible_fraction is not None and self.visible_fraction >= IN_VIEW

    @property
    def scored(self) -> bool:
        """It counts in figures of fractures: in view, or not known to be out of it."""
        return self.visible_fraction is None or self.in_view


class CaseRecord(BaseModel):
    """Truth and answer of one case.

    Attributes:
        name: of the case.
        bundle: SHA-256 of the bundle that answered.
        fractured: truth, any level.
        probability: the answer's, of the patient.
        called: the answer says fracture.
        status: of the findings.
        spine_dice: Dice of all cervical vertebrae as one; None without a true mask.
        seconds: that the answer took.
        levels: truth and answer of each level.
        images: of each axial image; None without a true mask.
        marks: where the answer points, strongest first.
        lesions: levels with a fracture whose place is known; None when no place is known in this case.
        patient: digest that studies of one patient have in common; empty when this is the patient's only one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bundle: str
    fractured: bool
    probability: float | None
    called: bool
    status: str
    spine_dice: float | None
    seconds: float
    levels: tuple[LevelRecord, ...]
    images: ImageRecords | None = None
    marks: tuple[EvidenceMark, ...] = ()
    lesions: tuple[str, ...] | None = None
    patient: str = ""


def patient_numbers(records: Sequence[CaseRecord]) -> list[int]:
    """The number of each record's patient: what intervals resample, since studies of one patient are alike."""
    numbers: dict[tuple[str, str], int] = {}
    whose = ((record.patient, "" if record.patient else record.name) for record in records)
    return [numbers.setdefault(key, len(numbers)) for key in whose]


def score_case(case: Case, prediction: Prediction) -> CaseRecord:
    """Compare an answer with the truth.

    Args:
        case: with ``levels``, those that are missing are not scored; ``labels`` for the Dice.
        prediction: of the same volume.
    """
    findings = prediction.findings
    masks = _masks(case, prediction)
    hits, distances = _placed(case, findings)
    broken = fracture_points(case)
    rows = []
    for item in findings.levels:
        level = Level[item.level]
        truth = case.levels.get(level)
        if truth is None:
            continue
        in_view = truth.visible_fraction >= IN_VIEW
        rows.append(
            LevelRecord(
                level=item.level,
                visible_fraction=None if math.isnan(truth.visible_fraction) else round(truth.visible_fraction, 4),
                fractured=truth.fractured,
                types=truth.types,
                severity=round(truth.severity, 3),
                old_fracture=truth.old_fracture,
                claimed=item.visible,
                centre_known=truth.body_center_mm is not None,
                right_level=hits.get(level, False),
                distance_mm=distances.get(level),
                displacement_mm=truth.displacement_mm,
                confounders=truth.confounders,
                dice=round(masks.dice.get(int(level), 0.0), 4) if in_view and case.labels is not None else None,
                surface_mm=masks.surface_mm.get(int(level)) if in_view else None,
                probability=item.probability,
                logit=prediction.logits.get(item.level),
                called=bool(item.fracture),
                type=item.type,
                confidence=item.confidence,
                evidence_mm=_evidence_mm(prediction, level, broken) if truth.fractured else None,
            )
        )
    bundle = findings.provenance.bundle
    return CaseRecord(
        name=case.name,
        bundle=bundle.sha256 if bundle else "",
        fractured=any(truth.fractured for truth in case.levels.values()),
        probability=findings.patient.probability,
        called=bool(findings.patient.fracture),
        status=findings.status,
        spine_dice=masks.spine_dice,
        seconds=findings.provenance.seconds.get("total", 0.0),
        levels=tuple(rows),
        images=image_records(case, prediction),
        marks=evidence_marks(findings, broken),
        lesions=tuple(level.name for level in broken) if _all_placed(case) else None,
        patient=hashlib.sha256(case.patient.encode()).hexdigest()[:16] if case.patient else "",
    )


def _all_placed(case: Case) -> bool:
    """Where every fracture of a case lies is known."""
    return case.fracture is not None and all(truth.place_known for truth in case.levels.values() if truth.fractured)


def _placed(case: Case, findings: Findings) -> tuple[dict[Level, bool], dict[Level, float]]:
    """Which levels in view were named rightly, and how far off every answered centre is."""
    truth = {
        level: item.body_center_mm
        for level, item in case.levels.items()
        if item.body_center_mm is not None and item.visible_fraction >= IN_VIEW
    }
    found = {
        Level[item.level]: item.body_center_mm
        for item in findings.levels
        if item.visible and item.body_center_mm is not None
    }
    distances = {
        level: round(float(np.linalg.norm(np.subtract(found[level], truth[level]))), 2)
        for level in truth
        if level in found
    }
    return level_hits(truth, found), distances


def _evidence_mm(prediction: Prediction, level: Level, broken: Mapping[Level, NDArray[np.float64]]) -> float | None:
    evidence = prediction.evidence.get(level.name)
    if evidence is None or level not in broken:
        return None
    return round(peak_distance(evidence, broken[level]), 2)


@dataclass(frozen=True, slots=True)
class _Masks:
    """How well the answered masks fit: Dice and surface distance by label, and Dice of all seven as one."""

    dice: Mapping[int, float]
    surface_mm: Mapping[int, float]
    spine_dice: float | None


def _masks(case: Case, prediction: Prediction) -> _Masks:
    """Overlap with the true masks, on the answer's own grid, whatever its spacing."""
    if case.labels is None:
        return _Masks({}, {}, None)
    found, affine = prediction.labels, prediction.labels_affine
    truth = on_grid(case.labels, case.volume.affine, affine, (found.shape[0], found.shape[1], found.shape[2]))
    whole = dice(_cervical(truth), _cervical(found), (1,))
    spacing = Volume(found, affine).spacing
    return _Masks(dice(truth, found, CERVICAL), surface_distances(truth, found, CERVICAL, spacing), whole.get(1))


def surface_distances(
    truth: NDArray[np.uint8], found: NDArray[np.uint8], labels: tuple[int, ...], spacing_xyz: tuple[float, float, float]
) -> dict[int, float]:
    """Mean symmetric surface distance in mm of each label that is in both masks ``[z, y, x]``; others are left out."""
    out = {}
    for label in labels:
        a, b = truth == label, found == label
        if a.any() and b.any():
            index = np.argwhere(a | b)
            box = tuple(
                slice(max(int(low) - 1, 0), int(high) + 2)
                for low, high in zip(index.min(axis=0), index.max(axis=0), strict=True)
            )
            out[label] = round(surface_distance(a[box], b[box], spacing_xyz)[0], 3)
    return out


def _cervical(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return ((labels >= Level.C1) & (labels <= Level.C7)).astype(np.uint8)


def on_grid(
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    target: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> NDArray[np.uint8]:
    """A label mask on another grid, nearest voxel; outside it is background."""
    moved = Volume(labels, affine).resampled_to(target, shape, order=0, fill=0)
    return np.asarray(moved.hu, dtype=np.uint8)
