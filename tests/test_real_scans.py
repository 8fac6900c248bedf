"""What the default bundle says of real scans: the levels that are there, and nothing of those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cspine.findings import Findings
from cspine.inference import Predictor
from cspine.studies import open_study

pytestmark = pytest.mark.shared_data
# A level is right when its centre lies this near to the mark, and no other mark is nearer.
NEAR_MM = 10.0


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(threads=1)


def judged(predictor: Predictor, path: Path) -> Findings:
    return predictor.predict(open_study(path))


@pytest.mark.parametrize("name", ["head_c1_c6_dicom", "head_c1_c5_intubated.nii.gz"])
def test_marked_levels_are_found_in_their_place(name: str, predictor: Predictor, shared_data: Path) -> None:
    marks = json.loads((shared_data / "ct" / "levels.json").read_text())[name]["levels"]
    findings = judged(predictor, shared_data / "ct" / name)
    centers = {item.level: np.array(item.body_center_mm) for item in findings.levels if item.body_center_mm}
    for level, mark in marks.items():
        distance = {other: float(np.linalg.norm(center - mark)) for other, center in centers.items()}
        assert distance[level] <= NEAR_MM
        assert min(distance, key=lambda other: distance[other]) == level


def test_levels_below_the_scan_are_not_claimed(predictor: Predictor, shared_data: Path) -> None:
    findings = judged(predictor, shared_data / "ct" / "head_c1_c6_dicom")
    assert [item.visible for item in findings.levels[5:]] == [False, False]
    assert all(item.probability is None and item.not_judged for item in findings.levels[5:])


@pytest.mark.parametrize("name", ["chest_no_cervical_dicom", "gantry_tilt_dicom"])
def test_scans_without_a_neck_are_refused(name: str, predictor: Predictor, shared_data: Path) -> None:
    findings = judged(predictor, shared_data / "ct" / name)
    assert findings.status == "refused"
    assert not any(item.visible for item in findings.levels)
    assert findings.patient.probability is None


def test_a_chest_claims_nothing_above_c6(predictor: Predictor, shared_data: Path) -> None:
    findings = judged(predictor, shared_data / "ct" / "chest_from_c6.nii.gz")
    assert not any(item.visible for item in findings.levels[:5])
