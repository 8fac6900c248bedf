"""From one labelled case to the samples that it can give: which kinds there are, and how each is made.

A scan with a true mask gives all kinds. One without is outlined by what finds vertebrae, and gives what the classifier
and planar networks learn from. Pictures that were labelled one by one give planar samples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import BACKGROUND, LEVELS, OTHER_BONE, THORACIC, Level
from cspine.cases import Case, LevelTruth
from cspine.errors import StudyError
from cspine.inference.centres import Point, body_centres
from cspine.inference.predictor import Prediction
from cspine.studies.labelled import LabelledStudies
from cspine.studies.masks import with_known_places
from cspine.training.columns import column_only
from cspine.training.planar_samples import planar_sample, write_planar
from cspine.training.recipe import Recipe
from cspine.training.recipe_stages import PlanarStage
from cspine.training.samples import classifier_sample, locator_sample, refiner_sample, write_sample
from cspine.volume import Volume

SampleKind = Literal["locator", "refiner", "classifier", "planar"]
KINDS: tuple[SampleKind, ...] = ("locator", "refiner", "classifier", "planar")
Masks = Literal["true", "found", "none"]
Predict = Callable[[Volume], Prediction]

# Of a study without anything else in its mask, what is this dense is bone: skull, jaw, ribs. Mean over 2 mm voxels,
# at least one of which lies between it and a vertebra, so that the rim of a tight mask is no other bone.
OTHER_BONE_HU, OTHER_BONE_GRID_MM = 250.0, 2.0
# Labels of the true masks whose body centre serves: C1 to C7, and T1 as the lower neighbour of C7.
CENTRED = range(1, 9)


def kinds_for(recipe: Recipe, stages: Collection[str] | None = None) -> tuple[SampleKind, ...]:
    """The kinds of samples that a recipe's networks learn from.

    Args:
        recipe: the method.
        stages: only these of its networks; None for all.
    """
    wanted: set[SampleKind] = set()
    for name, stage in recipe.stages().items():
        if stages is None or name in stages:
            wanted.add(kind_for(name, stage))
    return tuple(kind for kind in KINDS if kind in wanted)


def kind_for(name: str, stage: object) -> SampleKind:
    """The kind of samples that one network learns from, which is also the name of their folder.

    Args:
        name: of the stage.
        stage: its configuration.
    """
    if isinstance(stage, PlanarStage):
        return "planar"
    return next((kind for kind in KINDS if kind == name), "classifier")


@dataclass(frozen=True, slots=True)
class Written:
    """What one study gave.

    Attributes:
        masks: whether its vertebrae were outlined by people, found by a locator, or neither.
        kinds: of the samples that were written.
        levels: vertebrae that are used.
        placed: those of them that are fractured at a known place.
        lost: fractured vertebrae that are not used, since they were not found whole.
    """

    masks: Masks
    kinds: tuple[SampleKind, ...]
    levels: tuple[Level, ...] = ()
    placed: tuple[Level, ...] = ()
    lost: tuple[Level, ...] = ()


def write_samples(
    data: LabelledStudies,
    name: str,
    out: Path,
    predict: Predict,
    *,
    wanted: Collection[SampleKind] = KINDS,
    threads: int | None = None,
) -> Written:
    """Write the samples of one study, those of the wanted kinds that it can give.

    Args:
        data: its folder.
        name: which.
        out: folder of the samples; they go to ``out/<kind>/<name>``.
        predict: finds vertebrae where nobody outlined them; not called when nothing wanted needs it.
        wanted: kinds of samples.
        threads: cores to decode on.

    Raises:
        StudyError: the study cannot be used, or no vertebra of it was found.
        OutputError: a sample cannot be written.
    """
    case = data.case(name, threads=threads)
    if case.pictures is not None:
        return _pictures(case, out, wanted)
    if case.labels is not None:
        case, centres = outlined(case, data.vertebrae(name, case.volume))
        return _scan(_Known(case, case, centres, "true"), out, wanted)
    if not {"classifier", "planar"} & set(wanted):
        return Written("none", ())
    found = predict(case.volume)
    if all(finding.not_judged is not None for finding in found.findings.levels):
        raise StudyError("no cervical vertebra was found that could be judged", where=name)
    whole = _with_found_mask(case, found)
    return _scan(_Known(whole, _judged(whole, found), {}, "found"), out, wanted)


def _pictures(case: Case, out: Path, wanted: Collection[SampleKind]) -> Written:
    masks: Masks = "none" if case.labels is None else "true"
    if "planar" not in wanted:
        return Written(masks, ())
    write_planar(planar_sample(case), out / "planar", case.name)
    levels = () if case.labels is None else _in_mask(case)
    return Written(masks, ("planar",), levels)


@dataclass(frozen=True, slots=True)
class _Known:
    """A scan with a mask.

    Attributes:
        whole: with the truth of all levels.
        judged: with that of the levels that the classifier may learn from.
        centres: measured body centres, LPS mm by label.
        masks: where the mask comes from.
    """

    whole: Case
    judged: Case
    centres: dict[int, Point]
    masks: Masks


def _scan(known: _Known, out: Path, wanted: Collection[SampleKind]) -> Written:
    """Write what a scan with a mask gives.

    Raises:
        StudyError: it gives nothing of what is wanted, though its fractures are known.
    """
    case, name, centres, thoracic = known.judged, known.whole.name, known.centres, known.whole.thoracic_mm
    kinds: list[SampleKind] = []
    if known.masks == "true" and "locator" in wanted:
        cervical = {label: point for label, point in centres.items() if label <= Level.C7}
        write_sample(locator_sample(case, thoracic, cervical), out / "locator", name)
        kinds.append("locator")
    # Of a scan beside the neck the locator learns what is no cervical vertebra; the refiner nothing.
    if known.masks == "true" and "refiner" in wanted and _in_mask(case):
        write_sample(refiner_sample(case), out / "refiner", name)
        kinds.append("refiner")
    used = {level: case.levels[level].place_known for level in _in_mask(case) if level in case.levels}
    if "classifier" in wanted:
        first = {THORACIC: centres[THORACIC]} if THORACIC in centres else {}
        sample = column_only(classifier_sample(case, first if thoracic is None else thoracic))
        used = {Level(item.label): item.evidence_known for item in sample.vertebrae}
        if sample.vertebrae:
            write_sample(sample, out / "classifier", name)
            kinds.append("classifier")
    if "planar" in wanted:
        write_planar(planar_sample(known.whole), out / "planar", name)
        kinds.append("planar")
    if not kinds and known.whole.levels:
        raise StudyError("no cervical vertebra was found that could be judged", where=name)
    broken = [level for level, truth in sorted(known.whole.levels.items()) if truth.fractured]
    return Written(
        known.masks,
        tuple(kinds),
        tuple(level for level in LEVELS if level in used),
        tuple(level for level in broken if used.get(level)),
        tuple(level for level in broken if level not in used),
    )


def _in_mask(case: Case) -> tuple[Level, ...]:
    shown = set() if case.labels is None else set(np.unique(case.labels).tolist())
    return tuple(level for level in LEVELS if int(level) in shown)


def outlined(case: Case, vertebrae: NDArray[np.uint8] | None = None) -> tuple[Case, dict[int, Point]]:
    """A case with a true mask, with body centres and with bone that is no vertebra in the mask.

    Only vertebrae that are whole get a centre, unless it is known: that of a cut one cannot be measured.

    Args:
        case: with ``labels``.
        vertebrae: uint8 ``[z, y, x]`` with thoracic vertebrae told apart, 8 for T1; None when nothing tells them.

    Returns:
        the case, and the measured centres of C1 to C7 and of T1, LPS mm by label.

    Raises:
        StudyError: the case has no labels.
    """
    labels = case.labels
    if labels is None:
        raise StudyError("expected a case with labels", where=case.name)
    apart = labels if vertebrae is None else vertebrae
    wanted = [label for label in CENTRED if not _is_known(case, label) and (label < THORACIC or vertebrae is not None)]
    cut = set(np.unique(apart[[0, -1]]).tolist())
    found = body_centres(Volume(apart, case.volume.affine), wanted)
    centres = {label: point for label, point in found.items() if label not in cut}
    levels = {
        level: replace(truth, body_center_mm=truth.body_center_mm or centres.get(int(level)))
        for level, truth in case.levels.items()
    }
    if not (labels == OTHER_BONE).any():
        labels = _with_other_bone(case.volume, labels)
    return replace(case, levels=levels, labels=labels), centres


def _is_known(case: Case, label: int) -> bool:
    if label > Level.C7:
        return case.thoracic_mm is not None
    truth = case.levels.get(Level(label))
    return truth is not None and truth.body_center_mm is not None


def _with_other_bone(volume: Volume, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Dense voxels that are no vertebra as ``OTHER_BONE``: published masks show vertebrae alone."""
    coarse = volume.resampled(OTHER_BONE_GRID_MM)
    own = Volume(labels, volume.affine).resampled_to(coarse.affine, coarse.shape, order=0, fill=BACKGROUND)
    dense = (coarse.hu > OTHER_BONE_HU) & ~ndimage.binary_dilation(own.hu > 0)
    fine = Volume(dense.astype(np.uint8), coarse.affine).resampled_to(volume.affine, volume.shape, order=0, fill=0)
    return np.where((labels == BACKGROUND) & (fine.hu > 0), np.uint8(OTHER_BONE), labels)


def _with_found_mask(case: Case, found: Prediction) -> Case:
    """A case without a mask, with the one that a locator found, and what that says of the places of fractures."""
    mask = Volume(found.labels, found.labels_affine)
    labels = mask.resampled_to(case.volume.affine, case.volume.shape, order=0, fill=BACKGROUND).hu
    return with_known_places(replace(case, labels=labels))


def _judged(case: Case, found: Prediction) -> Case:
    """The case with body centres and shares in view as they were found, for the levels that would be judged alone.

    What the classifier never sees it need not learn.
    """
    levels: dict[Level, LevelTruth] = {}
    for level, finding in zip(LEVELS, found.findings.levels, strict=True):
        truth = case.levels.get(level)
        if truth is not None and finding.not_judged is None and finding.body_center_mm is not None:
            levels[level] = replace(
                truth, visible_fraction=finding.visible_fraction, body_center_mm=finding.body_center_mm
            )
    return replace(case, levels=levels)
