"""A predictor that looks at nothing: tests of the command line need findings, not judgement."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import get_args

import numpy as np

from cspine import __version__
from cspine.findings import (
    Findings,
    InputProvenance,
    LevelFinding,
    LevelName,
    PatientFinding,
    Provenance,
    WarningItem,
)
from cspine.volume import Volume


class FakePredictor:
    """Same findings for every volume; none for a volume whose kernel is ``CHEST``."""

    def __init__(self, bundle: object, runtime: str = "openvino", threads: int | None = None) -> None:
        self.bundle = bundle

    def predict_full(self, volume: Volume, progress: Callable[[float, str], None] | None = None) -> SimpleNamespace:
        if progress is not None:
            progress(0.5, "looking away")
        neck = "CHEST" not in volume.source.acquisition.values()
        return SimpleNamespace(
            findings=findings_of(volume, neck=neck),
            labels=np.zeros((4, 4, 4), np.uint8),
            labels_affine=np.diag([2.0, 2.0, 2.0, 1.0]),
            evidence={},
        )


def findings_of(volume: Volume, *, neck: bool) -> Findings:
    warnings = [WarningItem(code=item.code, message=item.message) for item in volume.warnings]
    if not neck:
        warnings.append(WarningItem(code="no-cervical-spine", message="no cervical vertebra was found"))
    source = volume.source
    levels = tuple(
        LevelFinding(
            level=name,
            visible=neck,
            visible_fraction=float(neck),
            confidence=0.9 * neck,
            body_center_mm=(0.0, 0.0, 20.0 - 6 * k) if neck else None,
            probability=0.1 if neck else None,
            fracture=False if neck else None,
            threshold=0.5 if neck else None,
            not_judged=None if neck else "not in the scan",
        )
        for k, name in enumerate(get_args(LevelName))
    )
    return Findings(
        status="ok" if neck else "refused",
        patient=PatientFinding(probability=0.2 if neck else None, fracture=False if neck else None),
        levels=levels,
        warnings=tuple(warnings),
        provenance=Provenance(
            cspine=__version__,
            created="2024-01-01T00:00:00+00:00",
            input=InputProvenance(
                name=source.name,
                kind=source.kind,
                sha256=source.sha256,
                series_uid=source.series_uid,
                selection=source.selection,
                shape=volume.shape,
                spacing_mm=volume.spacing,
                affine=tuple(tuple(float(value) for value in row) for row in volume.affine),
            ),
            bundle=None,
        ),
    )
