"""How good answers about single pictures are: does it show a fracture, and which vertebrae.

Pictures are those of ``studies.picture_folder``, judged one by one as ``cspine predict`` judges them. Judging one takes
milliseconds, so nothing is kept for an interrupted run to go on from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cspine.anatomy import LEVELS
from cspine.cases import Case
from cspine.errors import BundleError, CspineError, StudyError
from cspine.evaluation.image_records import MIN_SHOWN_MM2
from cspine.evaluation.image_scores import shown_scores
from cspine.evaluation.network_size import NetworkSize
from cspine.evaluation.scores import Images, PictureFigures
from cspine.evaluation.summary import UNJUDGED
from cspine.evaluation.yes_no import Asked, yes_no
from cspine.inference.pictures import PictureAnswer, PicturePredictor
from cspine.studies.images import SliceImage
from cspine.studies.picture_folder import PictureFolder
from cspine.volume import Source

# From which probability a picture is called fractured: nothing is fitted to pictures.
CALLED_FROM = 0.5


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """Truth and answer of one picture.

    Attributes:
        patient: whose it is, as far as anything says so.
        fractured: truth, it shows a fracture; None where unknown.
        levels: truth, the labels 1..7 that it shows; None where unknown.
        fracture: the answer's probability; None from a method that does not judge.
        visible: the answer's probability that it shows C1..C7; None from a method that does not say.
    """

    patient: str
    fractured: bool | None
    levels: tuple[int, ...] | None
    fracture: float | None
    visible: tuple[float, ...] | None


def slices_of(case: Case) -> tuple[SliceImage, ...]:
    """The pictures of a case, each on its own.

    Raises:
        StudyError: the case is a scan.
    """
    if case.pictures is None:
        raise StudyError("expected pictures that were labelled one by one, got a scan", where=case.name)
    volume, grey = case.volume, case.pictures.grey
    spacing = None if grey else volume.spacing[:2]
    pixels = [np.asarray(plane / np.float32(255), np.float32) if grey else plane for plane in volume.hu]
    return tuple(
        SliceImage(plane, "grey" if grey else "HU", spacing, Source(kind="image", name=f"{case.name} {number}"))
        for number, plane in enumerate(pixels)
    )


def score_pictures(case: Case, answers: Sequence[PictureAnswer], patient: str) -> list[PictureRecord]:
    """Compare answers with the truth of the pictures of a case; there is one answer a picture.

    Raises:
        StudyError: the case is a scan.
    """
    if case.pictures is None:
        raise StudyError("expected pictures that were labelled one by one, got a scan", where=case.name)
    return [
        PictureRecord(
            patient=patient,
            fractured=fractured,
            levels=_shown(case, number),
            fracture=answer.fracture,
            visible=None if answer.visible is None else tuple(float(p) for p in answer.visible),
        )
        for number, (fractured, answer) in enumerate(zip(case.pictures.fractured, answers, strict=True))
    ]


def _shown(case: Case, number: int) -> tuple[int, ...] | None:
    """The levels that a picture truly shows: by its mask, or as the table says."""
    if case.labels is not None:
        x, y, _ = case.volume.spacing
        counts = np.bincount(case.labels[number].ravel(), minlength=len(LEVELS) + 1)[1 : len(LEVELS) + 1]
        return tuple(int(level) for level in LEVELS if counts[level.index] * x * y >= MIN_SHOWN_MM2)
    said = None if case.pictures is None else case.pictures.levels[number]
    return None if said is None else tuple(int(level) for level in said)


def judge_folder(
    data: PictureFolder,
    names: Sequence[str],
    predictor: PicturePredictor,
    *,
    faults: dict[str, CspineError],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[PictureRecord], float]:
    """Judge the pictures of some studies.

    Args:
        data: the labelled pictures.
        names: of the studies.
        predictor: what is scored.
        faults: takes the errors of studies that cannot be opened, by name.
        progress: called with studies done and all.

    Returns:
        what was said of each picture, and the seconds that judging took, reading not counted.
    """
    records: list[PictureRecord] = []
    seconds = 0.0
    for done, name in enumerate(names, start=1):
        try:
            case = data.case(name)
            images = slices_of(case)
            start = time.perf_counter()
            answers = predictor.judge(images)
            seconds += time.perf_counter() - start
            records += score_pictures(case, answers, data.patients.get(name, f"alone {name}"))
        except BundleError:
            raise
        except CspineError as error:
            faults[name] = error
        if progress:
            progress(done, len(names))
    return records, seconds


def picture_figures(
    records: Sequence[PictureRecord],
    *,
    method: str,
    data: str,
    bundle: str,
    sizes: Sequence[NetworkSize] = (),
    seconds: float | None = None,
    faults: Mapping[str, str] | None = None,
) -> PictureFigures:
    """All figures of one method on single pictures.

    Args:
        records: what was said of each.
        method: what was scored.
        data: on what, in words.
        bundle: SHA-256 of it.
        sizes: of its networks.
        seconds: that judging all of them took.
        faults: studies that could not be opened, and why.
    """
    patients = {name: number for number, name in enumerate(dict.fromkeys(record.patient for record in records))}
    asked = [record for record in records if record.fractured is not None]
    return PictureFigures(
        method=method,
        data=data,
        pictures=len(records),
        patients=len(patients),
        bundle=bundle,
        judges=any(record.fracture is not None for record in records),
        fracture=yes_no(
            Asked(
                np.asarray([bool(record.fractured) for record in asked], dtype=bool),
                np.asarray([UNJUDGED if r.fracture is None else r.fracture for r in asked], dtype=np.float64),
                np.asarray([r.fracture is not None and r.fracture >= CALLED_FROM for r in asked], dtype=bool),
                np.asarray([patients[record.patient] for record in asked], dtype=np.int64),
            )
        ),
        threshold=CALLED_FROM,
        levels=_levels(records, patients),
        networks=tuple(sizes),
        seconds=None if seconds is None or not records else seconds / len(records),
        not_scored=dict(faults or {}),
    )


def _levels(records: Sequence[PictureRecord], patients: Mapping[str, int]) -> Images | None:
    """Figures of the levels, on pictures where both truth and answer say which they show."""
    known = [(r.levels, r.visible, patients[r.patient]) for r in records if r.levels is not None and r.visible]
    if not known:
        return None
    truth = np.asarray([[int(level) in shown for level in LEVELS] for shown, _, _ in known], dtype=bool)
    answer = np.asarray([visible for _, visible, _ in known], dtype=np.float64)
    return shown_scores(truth, answer, np.asarray([patient for _, _, patient in known], dtype=np.int64))
