"""From scored cases to ``Figures``. Needs scikit-learn (extra ``train``); intervals resample whole patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.evaluation import scores
from cspine.evaluation.detection import box_scores, froc
from cspine.evaluation.image_scores import image_scores
from cspine.evaluation.metrics import bootstrap_interval, competition_score
from cspine.evaluation.network_size import NetworkSize
from cspine.evaluation.records import CaseRecord, LevelRecord, patient_numbers
from cspine.evaluation.scores import Estimate, Figures, Locating
from cspine.evaluation.submission import BASE_RATES, OVERALL_RATE
from cspine.evaluation.summary import UNJUDGED
from cspine.evaluation.yes_no import Asked, share, yes_no

VARIANT = (
    "RSNA 2022 weighted log loss: mean over studies of sum(w * BCE) / sum(w), w = 1 (intact) or 2 (fractured) for a "
    "vertebra, 7 or 14 for the patient, probabilities clipped at 1e-15, what was not judged takes its base rate; "
    "base rates alone score 0.5638 on the published labels"
)
Row = tuple[int, LevelRecord]


def figures_of(
    records: Sequence[CaseRecord], *, method: str, data: str, sizes: Sequence[NetworkSize] = (),
    threads: int | None = None, faults: Mapping[str, str] | None = None, judges: bool | None = None,
) -> Figures:  # fmt: skip
    """All figures of one method on one set of cases.

    Args:
        records: scored cases.
        method: what was scored.
        data: on what, in words.
        sizes: of its networks.
        threads: that a study's time was measured with.
        faults: cases that could not be scored, and why.
        judges: whether the method is meant to judge fractures; None when any answer says so.
    """
    rows: list[Row] = [
        (k, row)
        for k, record in zip(patient_numbers(records), records, strict=True)
        for row in record.levels
        if row.scored
    ]
    located = [(k, row) for k, row in rows if row.in_view]
    if judges is None:
        judges = any(row.probability is not None for _, row in rows)
    asked = _asked(rows)
    names = np.asarray([row.level for _, row in rows])
    marks = froc(records) if judges else None
    return Figures(
        method=method,
        data=data,
        cases=len(records),
        bundle=tuple(sorted({record.bundle for record in records})),
        judges=judges,
        vertebra=yes_no(asked),
        patient=yes_no(_patients(records)),
        levels={
            level.name: _level(asked.at(names == level.name), [item for item in located if item[1].level == level.name])
            for level in LEVELS
        },
        false_alarms=_false_alarms(records) if judges else None,
        competition_score=_competition(records) if judges else None,
        competition_variant=VARIANT,
        locating=_locating(records, located),
        images=image_scores(records),
        boxes=_boxes(records),
        froc=None
        if marks is None
        else scores.EvidenceFroc(
            fractures=marks.fractures,
            studies=marks.studies,
            score=marks.score,
            at=dict(marks.at),
            iou=marks.iou,
            curve=tuple(
                (round(float(x), 4), round(float(y), 4))
                for x, y in zip(marks.false_marks, marks.sensitivity, strict=True)
            ),
        ),
        networks=tuple(sizes),
        parameters=sum(size.parameters for size in sizes) if sizes else None,
        flops=sum(size.flops for size in sizes) if sizes else None,
        seconds=float(np.median([record.seconds for record in records])) if records else None,
        threads=threads,
        not_scored=dict(faults or {}),
    )


def _asked(rows: Sequence[Row]) -> Asked:
    score = [UNJUDGED if row.probability is None else row.probability for _, row in rows]
    return Asked(
        np.asarray([row.fractured for _, row in rows], dtype=bool),
        np.asarray(score, dtype=np.float64),
        np.asarray([row.called for _, row in rows], dtype=bool),
        np.asarray([k for k, _ in rows], dtype=np.int64),
    )


def _patients(records: Sequence[CaseRecord]) -> Asked:
    """Patients with a vertebra that counts; fractured means one of these."""
    kept = [record for record in records if any(row.scored for row in record.levels)]
    score = [UNJUDGED if record.probability is None else record.probability for record in kept]
    return Asked(
        np.asarray([_is_fractured(record) for record in kept], dtype=bool),
        np.asarray(score, dtype=np.float64),
        np.asarray([record.called for record in kept], dtype=bool),
        np.asarray(patient_numbers(kept), dtype=np.int64),
    )


def _is_fractured(record: CaseRecord) -> bool:
    return any(row.fractured and row.scored for row in record.levels)


def _level(asked: Asked, located: Sequence[Row]) -> scores.Level:
    """Of one level; ``located`` are those in view."""
    overlaps = [row.dice for _, row in located if row.dice is not None]
    distances = [row.distance_mm for _, row in located if row.right_level and row.distance_mm is not None]
    placed = [row for _, row in located if row.centre_known]
    return scores.Level(
        in_view=len(located),
        fracture=yes_no(asked, intervals=False),
        dice=_mean(overlaps),
        iou=_mean([_iou(value) for value in overlaps]),
        identified=_mean([float(row.right_level) for row in placed]),
        distance_mm=float(np.median(distances)) if distances else None,
    )


def _iou(dice: float) -> float:
    """Intersection over union of a mask, from its Dice coefficient."""
    return dice / (2 - dice)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _mean_estimate(pairs: Sequence[tuple[int, float]]) -> Estimate | None:
    """A mean whose interval resamples patients; pairs of case and value."""
    if not pairs:
        return None
    values = np.asarray([value for _, value in pairs])
    return Estimate.of(bootstrap_interval(lambda index: float(values[index].mean()), [k for k, _ in pairs]))


def _locating(records: Sequence[CaseRecord], located: Sequence[Row]) -> Locating:
    overlaps = [(k, row.dice) for k, row in located if row.dice is not None]
    placed = [(k, row) for k, row in located if row.centre_known]
    right = [row.distance_mm for _, row in placed if row.right_level and row.distance_mm is not None]
    return Locating(
        identified=share(
            np.asarray([row.right_level for _, row in placed], dtype=bool),
            np.asarray([k for k, _ in placed], dtype=np.int64),
            intervals=True,
        ),
        distance_mm=_mean_estimate([(k, row.distance_mm) for k, row in placed if row.distance_mm is not None]),
        median_mm=float(np.median(right)) if right else None,
        dice=_mean_estimate(overlaps),
        iou=_mean_estimate([(k, _iou(value)) for k, value in overlaps]),
        spine_dice=_mean([record.spine_dice for record in records if record.spine_dice is not None]),
    )


def _false_alarms(records: Sequence[CaseRecord]) -> Estimate | None:
    return _mean_estimate(
        [
            (k, float(sum(row.called and not row.fractured for row in record.levels if row.scored)))
            for k, record in zip(patient_numbers(records), records, strict=True)
        ]
    )


def _competition(records: Sequence[CaseRecord]) -> Estimate | None:
    """Over cases whose truth is known for all seven levels; ``VARIANT`` says how."""
    known = [record for record in records if len(record.levels) == len(LEVELS)]
    if not known:
        return None
    truth = np.asarray([[*(row.fractured and row.scored for row in r.levels), _is_fractured(r)] for r in known])
    rates = [*(BASE_RATES[level] for level in LEVELS), OVERALL_RATE]
    found = np.asarray(
        [
            [
                rate if p is None else p
                for p, rate in zip((*(row.probability for row in r.levels), r.probability), rates, strict=True)
            ]
            for r in known
        ]
    )

    def score(index: NDArray[np.intp]) -> float:
        return competition_score(truth[index], found[index])

    return Estimate.of(bootstrap_interval(score, patient_numbers(known)))


def _boxes(records: Sequence[CaseRecord]) -> scores.Boxes | None:
    found = box_scores(records)
    if found is None:
        return None
    return scores.Boxes(
        count=found.boxes,
        source="boxes of a detector, or around the answered masks with the surety of the level's name",
        map50=found.map50,
        map50_95=found.map50_95,
        iou=found.iou,
        ap50=dict(found.ap50),
    )
