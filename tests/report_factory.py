"""Small volumes, findings and predictions that reports are made from in tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.findings import (
    BundleProvenance,
    Evidence,
    Findings,
    InputProvenance,
    LevelFinding,
    PatientFinding,
    Provenance,
    WarningItem,
)
from cspine.reports.images import ScalarField
from cspine.volume import Source, Volume

SPACING = (0.8, 0.8, 1.5)
SHAPE = (120, 130, 130)
# World position of the middle of the volume: anything but the origin, so that a forgotten offset shows.
MIDDLE = np.array([12.0, -30.0, 400.0])


def make_volume(shape: tuple[int, int, int] = SHAPE, **source: object) -> Volume:
    """Soft tissue everywhere; axes left, posterior, superior."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = MIDDLE - np.asarray(SPACING) * (np.asarray(shape[::-1]) - 1) / 2
    hu = np.full(shape, 40, dtype=np.int16)
    return Volume(hu, affine, Source(kind="nifti", name="study", **source))  # type: ignore[arg-type]


def with_marker(volume: Volume, at_mm: tuple[float, float, float], radius_mm: float = 6.0) -> Volume:
    """The volume with a very dense ball at an LPS point."""
    z, y, x = np.indices(volume.shape)
    world = volume.to_world(np.stack([x, y, z], axis=-1))
    hu = volume.hu.copy()
    hu[np.linalg.norm(world - np.asarray(at_mm), axis=-1) <= radius_mm] = 3000
    return Volume(hu, volume.affine, volume.source)


def center_of(number: int) -> tuple[float, float, float]:
    """Body centre of the level with index 0 (C1) to 6 (C7): a column with some lordosis."""
    height = 60.0 - 18.0 * number
    return float(MIDDLE[0]), float(MIDDLE[1] - 10 + 0.002 * height**2), float(MIDDLE[2] + height)


def evidence_at(
    volume: Volume, at_mm: tuple[float, float, float], score: float = 0.8, half_mm: float = 5.0
) -> Evidence:
    """Evidence whose box is centred near an LPS point, on the slice that holds it."""
    x, y, z = volume.to_index(at_mm)
    at = int(np.clip(round(float(z)), 0, volume.shape[0] - 1))
    half = half_mm / np.asarray(volume.spacing)
    low = volume.to_world([x - half[0], y - half[1], at - 0.5])
    high = volume.to_world([x + half[0], y + half[1], at + 0.5])
    return Evidence(
        slice_index=at,
        box_px=(x - half[0] + 0.5, y - half[1] + 0.5, x + half[0] + 0.5, y + half[1] + 0.5),
        box_mm=(*low.tolist(), *high.tolist()),
        score=score,
    )


def make_level(number: int, probability: float | None, evidence: tuple[Evidence, ...] = ()) -> LevelFinding:
    """One level; without a probability it is not visible."""
    visible = probability is not None
    return LevelFinding(
        level=LEVELS[number].name,  # type: ignore[arg-type]
        visible=visible,
        visible_fraction=1.0 if visible else 0.0,
        confidence=0.95 if visible else 0.0,
        body_center_mm=center_of(number) if visible else None,
        probability=probability,
        fracture=None if probability is None else probability >= 0.5,
        threshold=0.5 if visible else None,
        type="dens-ii" if visible and probability is not None and probability >= 0.5 else None,
        type_confidence=0.6 if visible and probability is not None and probability >= 0.5 else None,
        evidence=evidence,
        not_judged=None if visible else "below the end of the scan",
    )


def make_findings(
    probabilities: tuple[float | None, ...] = (0.02, 0.86, 0.1, 0.3, 0.05, 0.2, None),
    *,
    evidence: dict[int, tuple[Evidence, ...]] | None = None,
    warnings: tuple[WarningItem, ...] = (),
    name: str = "study",
) -> Findings:
    """Findings with the given level probabilities; all None: refused."""
    levels = tuple(make_level(k, p, (evidence or {}).get(k, ())) for k, p in enumerate(probabilities))
    known = [p for p in probabilities if p is not None]
    status: Literal["ok", "partial", "refused"] = (
        "refused" if not known else "ok" if len(known) == len(LEVELS) else "partial"
    )
    top = max(known, default=None)
    return Findings(
        status=status,
        patient=PatientFinding(
            probability=top, fracture=None if top is None else top >= 0.45, threshold=None if top is None else 0.45
        ),
        levels=levels,
        warnings=warnings,
        provenance=Provenance(
            cspine="0.1.0",
            created="2030-01-02T03:04:05+00:00",
            input=InputProvenance(
                name=name,
                kind="nifti",
                sha256="5e" * 32,
                series_uid="1.2.3.4",
                selection="the only series",
                shape=SHAPE,
                spacing_mm=SPACING,
                affine=tuple(tuple(row) for row in make_volume().affine.tolist()),
                acquisition={"kernel": "B60s"},
            ),
            bundle=BundleProvenance(
                name="base", version="9.8.7", sha256="ab" * 32, trained_on="phantoms", runtime="fake", precision="f32"
            ),
            seconds={"open": 1.0, "locate": 2.5},
        ),
    )


@dataclass(frozen=True)
class FakePrediction:
    """The fields that a report reads of a prediction."""

    findings: Findings
    labels: NDArray[np.uint8]
    labels_affine: NDArray[np.float64]
    evidence: dict[str, ScalarField] = field(default_factory=dict)


def make_prediction(volume: Volume, findings: Findings) -> FakePrediction:
    """Balls for vertebrae, and a warm spot at the strongest evidence of each level."""
    coarse = volume.resampled(2.0)
    z, y, x = np.indices(coarse.shape)
    world = coarse.to_world(np.stack([x, y, z], axis=-1))
    labels = np.zeros(coarse.shape, dtype=np.uint8)
    maps: dict[str, ScalarField] = {}
    for number, item in enumerate(findings.levels):
        if item.body_center_mm is not None:
            labels[np.linalg.norm(world - np.asarray(item.body_center_mm), axis=-1) < 8] = number + 1
        if item.evidence:
            box = np.asarray(item.evidence[0].box_mm)
            distance = np.linalg.norm(world - (box[:3] + box[3:]) / 2, axis=-1)
            maps[item.level] = ScalarField(np.exp(-((distance / 5) ** 2)).astype(np.float32), coarse.affine)
    return FakePrediction(findings, labels, coarse.affine, maps)
