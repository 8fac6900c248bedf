"""The pointing game over labelled studies: which vertebrae count, and what is left out is said."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case
from cspine.errors import DamagedFileError, UsageError
from cspine.evaluation.pointing import HeatHit
from cspine.inference.evidence import EvidenceMap
from cspine.training.explain import LevelHeat
from cspine.training.pointing_runs import StudyHits, fractured, score_heat
from cspine.volume import Volume
from training_factory import block_case

BROKEN = block_case(5, fractured=True)


class FakeExplainer:
    """Heat where C1 to C3 are broken, and in a corner for the others."""

    asked = 0

    def explain(self, volume: Volume, _: Any, wanted: list[Level]) -> tuple[LevelHeat, ...]:
        self.asked += 1
        assert BROKEN.labels is not None
        assert BROKEN.fracture is not None
        out = []
        for level in wanted:
            values = ((BROKEN.labels == level) & BROKEN.fracture).astype(np.float32)
            if level > Level.C3:
                values = np.zeros_like(values)
                values[0, 0, 0] = 1
            heat = EvidenceMap(values, volume.affine)
            out.append(LevelHeat(level, 0.5, heat, None, values, volume.affine))
        return tuple(out)


class FakeStudies:
    """One broken neck, one intact one, and one that cannot be read."""

    path = "folder"
    studies = ("a", "b", "c")
    patients = {"a": "Somebody"}  # noqa: RUF012  (a test's stand-in)

    def labels(self) -> dict[str, tuple[bool, ...]]:
        return {"a": (True,) * 8, "b": (False,) * 8, "c": (True,) * 8}

    def case(self, name: str) -> Case:
        if name == "c":
            raise DamagedFileError("truncated")
        return BROKEN


def predict(_: Volume) -> Any:
    """Finds all but C7."""
    levels = [
        SimpleNamespace(visible=level < Level.C7, body_center_mm=BROKEN.levels[level].body_center_mm)
        for level in LEVELS
    ]
    return SimpleNamespace(findings=SimpleNamespace(levels=levels))


def test_only_studies_with_a_fracture_are_tried() -> None:
    studies: Any = FakeStudies()
    assert fractured(studies) == ["a", "c"]
    assert fractured(studies, 1) == ["a"]


def test_figures_over_a_folder(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    studies: Any = FakeStudies()
    explainer: Any = FakeExplainer()
    scores = score_heat(
        explainer, studies, predict, tmp_path, settings={}, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]
    assert scores.heat.count == 6
    assert scores.heat.pointing.value == 0.5
    assert (scores.evidence, scores.not_found, scores.refused) == (None, 1, {"c": "damaged-file"})
    text = json.dumps(scores.to_json(), allow_nan=False)
    assert json.loads(text)["heat"]["vertebrae"][0]["study"] == "a"
    assert "Somebody" not in text + "".join(path.read_text() for path in tmp_path.iterdir())
    assert scores.lines()[0].startswith("fractured vertebrae: 6 in 1 studies")
    assert scores.lines()[-2].endswith("did not find them: 1")


def test_studies_that_were_done_with_the_same_settings_are_not_done_again(tmp_path: Path) -> None:
    studies: Any = FakeStudies()
    explainer: Any = FakeExplainer()
    first, again, other = (
        score_heat(explainer, studies, predict, tmp_path, settings={"method": name}) for name in ("a", "a", "b")
    )
    assert explainer.asked == 2
    assert first == again
    assert other.heat == first.heat


def test_kept_hits_come_back_with_maps_that_had_no_heat() -> None:
    hit = HeatHit(group="a", level=Level.C4, distance_mm=float("inf"), centre_mm=2.0, box_iou=0.0)
    kept = StudyHits(settings={}, heat=(hit,))
    assert StudyHits.model_validate_json(kept.model_dump_json()) == kept


def test_a_folder_without_a_known_place_is_said(tmp_path: Path) -> None:
    studies: Any = SimpleNamespace(path="folder", studies=("a",), labels=lambda: {"a": (False,) * 8}, patients={})
    explainer: Any = FakeExplainer()
    with pytest.raises(UsageError, match="no fractured vertebra"):
        score_heat(explainer, studies, predict, tmp_path, settings={})
