"""Images and boxes: which vertebrae an image shows, how boxes fit, and whether evidence lies on the fracture."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cspine.anatomy import LEVELS, Level
from cspine.evaluation.detection import box_scores, froc
from cspine.evaluation.evidence_marks import EvidenceMark, evidence_marks
from cspine.evaluation.image_records import VIEW, image_records, overlap
from cspine.evaluation.image_scores import image_scores
from cspine.findings import Evidence
from cspine.inference.planar_images import PlaneGrid, plane_grid
from cspine.volume import Volume
from fake_predictor import findings_of
from score_factory import images, scored
from training_factory import block_case

NECK = block_case(1, fractured=True)


def answer(labels: np.ndarray, own: Any = None) -> Any:
    return SimpleNamespace(
        findings=findings_of(NECK.volume, neck=True),
        labels=labels,
        labels_affine=NECK.volume.affine,
        images=own,
    )


def test_a_perfect_mask_shows_every_image_rightly() -> None:
    assert NECK.labels is not None
    rows = image_records(NECK, answer(NECK.labels))
    assert rows is not None
    shown = {label for image in rows.visible for label in image}
    assert shown == {int(level) for level in LEVELS}
    for truth, found in zip(rows.visible, rows.answers, strict=True):
        assert {k + 1 for k, p in enumerate(found) if p >= 0.5} == set(truth)
    assert all(iou == 1.0 for *_, iou in rows.found)
    record = scored("a", (True,) * 7, (0.9,) * 7).model_copy(update={"images": rows})
    figures, boxes = image_scores([record]), box_scores([record])
    assert figures is not None and boxes is not None
    assert figures.exact_match is not None and figures.exact_match.value == 1
    assert figures.coverage_error == pytest.approx(figures.shown)
    assert boxes.map50_95 == pytest.approx(1) and boxes.iou == pytest.approx(1)


def test_images_with_a_fracture_are_those_where_it_lies() -> None:
    assert NECK.labels is not None and NECK.fracture is not None
    rows = image_records(NECK, answer(NECK.labels))
    assert rows is not None
    share = rows.broken.count(1) / len(rows.broken)
    assert share == pytest.approx(NECK.fracture.any(axis=(1, 2)).mean(), abs=0.06)


def test_no_mask_no_images() -> None:
    from dataclasses import replace

    assert image_records(replace(NECK, labels=None), answer(np.zeros(NECK.volume.shape, np.uint8))) is None


@dataclass
class Answers:
    grid: PlaneGrid
    visible: np.ndarray
    broken: np.ndarray | None = None
    fracture: np.ndarray | None = None
    boxes: tuple[np.ndarray, ...] | None = None


def test_a_detector_on_a_grid_of_its_own_is_read_in_the_right_place() -> None:
    """Half as many pixels and images, and still the boxes fit: they go through millimetres."""
    assert NECK.labels is not None
    labels = Volume(NECK.labels, NECK.volume.affine)
    coarse = plane_grid(labels, VIEW.model_copy(update={"size": 128, "step_mm": 4.0}))
    from cspine.evaluation.image_records import _areas, _boxes, _planes

    planes = _planes(labels, coarse)
    boxes = tuple(
        np.array([(label, 0.8, *box) for label, box in _boxes(plane).items()], np.float32).reshape(-1, 6)
        for plane in planes
    )
    visible = (_areas(planes, coarse) > 30).astype(np.float32)
    own = Answers(coarse, visible, boxes=boxes, broken=np.full((coarse.count, 7), 0.3, np.float32))
    rows = image_records(NECK, answer(np.zeros(NECK.volume.shape, np.uint8), own))
    assert rows is not None and rows.fracture is not None and set(rows.fracture) == {0.3}
    # Where the arch ends, an image 2 mm off shows another outline.
    assert np.median([iou for *_, iou in rows.found]) > 0.9


def test_overlap_of_boxes() -> None:
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 1, 1), (1, 1, 2, 2)) == 0


def test_average_precision_as_coco_has_it() -> None:
    """C1 in two images: one found, one missed, and a surer false box: precision 1/2 up to a recall of 1/2."""
    rows = images().model_copy(
        update={"visible": ((1,), (1,), ()), "answers": ((0.0,) * 7,) * 3, "broken": (0,) * 3,
                "found": ((2, 1, 0.9, 0.0), (0, 1, 0.8, 0.6))}
    )  # fmt: skip
    found = box_scores([scored("a", (False,) * 7, (0.1,) * 7).model_copy(update={"images": rows})])
    assert found is not None and found.boxes == 2
    # 51 of the 101 recalls are reached.
    assert found.map50 == pytest.approx(0.5 * 51 / 101)
    # An overlap of 0.6 is enough at 0.5, 0.55 and 0.6.
    assert found.map50_95 == pytest.approx(0.5 * 51 / 101 * 3 / 10)
    assert found.iou == pytest.approx(0.3)


def test_of_two_boxes_on_one_vertebra_the_surer_counts() -> None:
    rows = images().model_copy(
        update={"visible": ((1,),), "answers": ((0.0,) * 7,), "broken": (0,),
                "found": ((0, 1, 0.9, 0.9), (0, 1, 0.5, 0.95))}
    )  # fmt: skip
    found = box_scores([scored("a", (False,) * 7, (0.1,) * 7).model_copy(update={"images": rows})])
    assert found is not None and found.map50 == pytest.approx(1) and found.iou == pytest.approx(0.9)


def box(centre: tuple[float, float, float], size: float = 4.0, index: int = 0, score: float = 0.8) -> Evidence:
    low, high = np.subtract(centre, size / 2), np.add(centre, size / 2)
    mm = tuple(float(value) for value in (*low, *high))
    return Evidence(slice_index=index, box_px=(0, 0, 1, 1), box_mm=mm, score=score)  # type: ignore[arg-type]


def test_boxes_of_neighbouring_slices_are_one_mark_and_far_ones_another() -> None:
    findings = findings_of(NECK.volume, neck=True)
    boxes = (box((0, 0, 0)), box((0, 0, 4)), box((30, 0, 0), score=0.4))
    item = findings.levels[1].model_copy(update={"evidence": boxes, "probability": 0.5})
    findings = findings.model_copy(update={"levels": (findings.levels[0], item, *findings.levels[2:])})
    points = np.array([[0.0, 0.0, z] for z in range(-2, 7)]) + [[-1.0, -1.0, 0.0]]
    first, second = evidence_marks(findings, {Level.C2: points})
    assert (first.level, first.hit, first.score) == ("C2", "C2", pytest.approx(0.4))
    assert (second.hit, second.score, second.iou) == (None, pytest.approx(0.2), 0)


def test_the_free_response_curve_counts_marks_and_fractures() -> None:
    broken = (True, True, *(False,) * 5)
    marks = (
        EvidenceMark(level="C1", score=0.9, hit="C1", iou=0.4),
        EvidenceMark(level="C5", score=0.8),
        EvidenceMark(level="C2", score=0.7, hit="C2", iou=0.2),
        # A second mark on the same fracture is neither a hit nor an alarm.
        EvidenceMark(level="C1", score=0.6, hit="C1", iou=0.1),
    )
    one = scored("a", broken, (0.9,) * 7).model_copy(update={"marks": marks})
    other = scored("b", (False,) * 7, (0.1,) * 7)
    unknown = scored("c", broken, (0.9,) * 7).model_copy(update={"lesions": None})
    found = froc([one, other, unknown])
    assert found is not None and (found.fractures, found.studies) == (2, 2)
    assert found.at["0.125"] == 0.5 and found.at["0.5"] == 1.0
    assert found.iou == pytest.approx((0.4 + 0.2 + 0.1) / 3)
    assert froc([other]) is None
