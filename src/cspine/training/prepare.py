"""From a folder of labelled studies to samples: once, study by study, in any number of processes.

A study with a true mask feeds all three stages. Any other is outlined by a bundle's locator and feeds the classifier
alone, with the levels that the bundle would judge. ``OUT/studies/<uid>.json`` is written last: a study that has one
is finished, so an interrupted run goes on where it stopped. A study that cannot be used is noted there too, with the
reason, and tried again by the next run.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import ndimage

from cspine.anatomy import BACKGROUND, LEVELS, OTHER_BONE, THORACIC, Level
from cspine.cases import Case, LevelTruth
from cspine.errors import BundleError, CspineError, OutputError, StudyError, TooLargeError, UsageError
from cspine.inference.bundle import Bundle, bundle_digest
from cspine.inference.predictor import Prediction, Predictor
from cspine.reports.atomic import write_file
from cspine.studies.rsna import IMAGES_FOLDER, RsnaFolder, with_owned_boxes
from cspine.training.centres import Point, body_centres
from cspine.training.columns import column_only
from cspine.training.samples import classifier_sample, locator_sample, refiner_sample, write_sample
from cspine.training.splits import Splits, settled_splits
from cspine.volume import Volume

RECORDS, SETTINGS_FILE, TABLE_FILE, REPORT_FILE = "studies", "prepare.json", "prepared.csv", "prepared.json"
# What no study can do without; anything else that goes wrong is one study's own.
FATAL = (BundleError, OutputError)
# Of a study without anything else in its mask, what is this dense is bone: skull, jaw, ribs. Mean over 2 mm voxels,
# at least one of which lies between it and a vertebra, so that the rim of a tight mask is no other bone.
OTHER_BONE_HU, OTHER_BONE_GRID_MM = 250.0, 2.0
# Labels of the true masks whose body centre serves: C1 to C7, and T1 as the lower neighbour of C7.
CENTRED = range(1, 9)

Stage = Literal["locator", "refiner", "classifier"]
Predict = Callable[[Volume], Prediction]


class Prepared(BaseModel):
    """What became of one study.

    Attributes:
        study: its UID.
        status: ``ok``, ``partial`` (some of its vertebrae are not used) or ``refused``.
        masks: whether its vertebrae were outlined by people, found by a locator, or neither.
        samples: stages that got a sample.
        levels: vertebrae that the classifier may learn from.
        placed: those of them that are fractured at a known place.
        lost: fractured vertebrae that the classifier does not get, since they were not found whole.
        code, reason, where, fix: why it was refused, as in the errors of cspine.
        raw_bytes, kept_bytes: size of its images and of its samples.
        seconds: wall time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    status: Literal["ok", "partial", "refused"]
    masks: Literal["true", "found", "none"] = "none"
    samples: tuple[Stage, ...] = ()
    levels: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    code: str = ""
    reason: str = ""
    where: str = ""
    fix: str = ""
    raw_bytes: int = 0
    kept_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Preparation:
    """A folder of studies and where its samples go.

    Attributes:
        data: the studies.
        out: folder of the samples.
        bundle: folder of the bundle that finds vertebrae where nobody outlined them.
    """

    data: RsnaFolder
    out: Path
    bundle: Path

    def begin(self, *, folds: int | None = None, seed: int = 0) -> Splits:
        """Note the settings, and draw the splits or find them drawn.

        Raises:
            UsageError: the folder holds samples of another bundle, or splits of other studies or folds.
            BundleError: the bundle cannot be read.
            OutputError: the folder cannot be written.
        """
        settings = {"format": 1, "data": "rsna2022", "bundle": bundle_digest(self.bundle)}
        note = self.out / SETTINGS_FILE
        if note.is_file():
            try:
                same = json.loads(note.read_text(encoding="utf-8")) == settings
            except ValueError:
                same = False
            if not same:
                raise UsageError(
                    "the folder holds samples that were prepared with another bundle",
                    where=str(note),
                    fix="Take another folder, or the same bundle",
                )
        rows = self.data.rows
        labels = {uid: (*rows[uid].fractured, any(rows[uid].fractured)) for uid in self.data.studies}
        splits = settled_splits(self.out, labels, folds=folds, seed=seed)
        write_file(note, (json.dumps(settings, indent=1) + "\n").encode())
        return splits

    def missing(self) -> list[str]:
        """The studies that are not finished."""
        return [uid for uid in self.data.studies if not self._is_finished(uid)]

    def make(self, uid: str, *, threads: int | None = None) -> Prepared:
        """Prepare one study and note what became of it; a bad one is noted, never raised.

        Args:
            uid: one of the studies.
            threads: of this process.

        Raises:
            BundleError: the bundle cannot be used.
            OutputError: nothing can be written.
        """
        return _make(self.data, self.out, self.bundle, uid, threads)

    def outcomes(self) -> list[Prepared]:
        """What is known of every study, those that cannot even be tried among them."""
        noted = [self._record(uid) for uid in self.data.studies]
        faults = [_refused(uid, error) for uid, error in self.data.faults.items()]
        return sorted([*(item for item in noted if item is not None), *faults], key=lambda item: item.study)

    def finish(self) -> list[Prepared]:
        """Write ``prepared.csv`` and ``prepared.json`` from what is known by now, and return it.

        Raises:
            OutputError: they cannot be written.
        """
        done = self.outcomes()
        write_file(self.out / TABLE_FILE, _table(done).encode())
        content = {
            "format": 1,
            "counts": Counter(item.status for item in done),
            "reasons": Counter(item.reason for item in done if item.reason).most_common(),
            "warnings": [warning.message for warning in self.data.warnings],
            "studies": [item.model_dump(mode="json") for item in done],
        }
        write_file(self.out / REPORT_FILE, (json.dumps(content, indent=1) + "\n").encode())
        return done

    def _record(self, uid: str) -> Prepared | None:
        try:
            return Prepared.model_validate_json((self.out / RECORDS / f"{uid}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def _is_finished(self, uid: str) -> bool:
        known = self._record(uid)
        if known is None or known.status == "refused":
            return False
        return all((self.out / stage / uid / "meta.json").is_file() for stage in known.samples)


def make_study(data: Path, out: Path, bundle: Path, uid: str, threads: int | None) -> None:
    """``Preparation.make`` for another process: tables and networks are read once in each.

    Raises:
        BundleError: the bundle cannot be used.
        OutputError: nothing can be written.
    """
    _make(_folder(data), out, bundle, uid, threads)


def _make(data: RsnaFolder, out: Path, bundle: Path, uid: str, threads: int | None) -> Prepared:
    """Prepare one study and note what became of it."""
    start = time.perf_counter()
    try:
        done = prepare_case(data, uid, out, lambda volume: _predictor(bundle, threads).predict_full(volume), threads)
    except Exception as caught:
        # A fault met in one study must not cost the others; what concerns all of them is raised again.
        if isinstance(caught, FATAL):
            raise
        done = _refused(uid, _study_fault(caught, uid))
    done = done.model_copy(update={"seconds": round(time.perf_counter() - start, 2)})
    write_file(out / RECORDS / f"{uid}.json", (done.model_dump_json(indent=1) + "\n").encode())
    return done


@lru_cache(maxsize=1)
def _folder(path: Path) -> RsnaFolder:
    return RsnaFolder.open(path)


@lru_cache(maxsize=1)
def _predictor(bundle: Path, threads: int | None) -> Predictor:
    return Predictor(Bundle.load(bundle), threads=threads)


def prepare_case(data: RsnaFolder, uid: str, out: Path, predict: Predict, threads: int | None = None) -> Prepared:
    """Write the samples of one study.

    Args:
        data: its folder.
        uid: which.
        out: folder of the samples.
        predict: finds vertebrae where nobody outlined them.
        threads: cores to decode on.

    Raises:
        StudyError: it cannot be used.
        OutputError: a sample cannot be written.
    """
    case = data.case(uid, threads=threads)
    samples: list[Stage] = []
    thoracic: dict[int, Point] = {}
    if case.labels is not None:
        vertebrae = data.vertebrae(uid, case.volume)
        case, thoracic = outlined(case, case.labels if vertebrae is None else vertebrae)
        write_sample(locator_sample(case), out / "locator", uid)
        write_sample(refiner_sample(case), out / "refiner", uid)
        samples += ["locator", "refiner"]
        masks: Literal["true", "found"] = "true"
    else:
        case, masks = located(case, predict(case.volume)), "found"
    sample = column_only(classifier_sample(case, thoracic))
    if sample.vertebrae:
        write_sample(sample, out / "classifier", uid)
        samples.append("classifier")
    if not samples:
        raise StudyError("no cervical vertebra was found that could be judged", where=uid)
    used = {item.label: item for item in sample.vertebrae}
    broken = [level for level in LEVELS if data.rows[uid].of(level)]
    return Prepared(
        study=uid,
        status="ok" if len(used) == len(LEVELS) else "partial",
        masks=masks,
        samples=tuple(samples),
        levels=tuple(level.name for level in LEVELS if level in used),
        placed=tuple(level.name for level in broken if level in used and used[level].evidence_known),
        lost=tuple(level.name for level in broken if level not in used),
        raw_bytes=_bytes_in(data.path / IMAGES_FOLDER / uid),
        kept_bytes=sum(_bytes_in(out / stage / uid) for stage in samples),
    )


def outlined(case: Case, vertebrae: NDArray[np.uint8]) -> tuple[Case, dict[int, Point]]:
    """A case with a true mask, with body centres and with bone that is no vertebra in the mask.

    Only vertebrae that are whole get a centre: that of a cut one cannot be measured.

    Args:
        case: with ``labels``.
        vertebrae: uint8 ``[z, y, x]`` with thoracic vertebrae told apart, 8 for T1.

    Returns:
        the case, and the centre of T1 when it is whole, LPS mm by label.
    """
    centres = body_centres(Volume(vertebrae, case.volume.affine), CENTRED)
    cut = set(np.unique(vertebrae[[0, -1]]).tolist())
    centres = {label: point for label, point in centres.items() if label not in cut}
    levels = {level: replace(truth, body_center_mm=centres.get(int(level))) for level, truth in case.levels.items()}
    thoracic = {THORACIC: centres[THORACIC]} if THORACIC in centres else {}
    return _with_other_bone(replace(case, levels=levels)), thoracic


def _with_other_bone(case: Case) -> Case:
    """Dense voxels that are no vertebra as ``OTHER_BONE``: published masks show vertebrae alone."""
    if case.labels is None:
        raise StudyError("expected a case with labels", where=case.name)
    coarse = case.volume.resampled(OTHER_BONE_GRID_MM)
    own = Volume(case.labels, case.volume.affine).resampled_to(coarse.affine, coarse.shape, order=0, fill=BACKGROUND)
    dense = (coarse.hu > OTHER_BONE_HU) & ~ndimage.binary_dilation(own.hu > 0)
    fine = Volume(dense.astype(np.uint8), coarse.affine).resampled_to(
        case.volume.affine, case.volume.shape, order=0, fill=0
    )
    labels = np.where((case.labels == BACKGROUND) & (fine.hu > 0), np.uint8(OTHER_BONE), case.labels)
    return replace(case, labels=labels)


def located(case: Case, found: Prediction) -> Case:
    """A case without a mask, with what a locator found: mask, body centres, share in view; boxes get their level.

    Levels that would not be judged are left out: what the classifier never sees it need not learn.
    """
    mask = Volume(found.labels, found.labels_affine)
    labels = mask.resampled_to(case.volume.affine, case.volume.shape, order=0, fill=BACKGROUND).hu
    case = with_owned_boxes(replace(case, labels=labels))
    levels: dict[Level, LevelTruth] = {}
    for level, finding in zip(LEVELS, found.findings.levels, strict=True):
        if finding.not_judged is None and finding.body_center_mm is not None:
            levels[level] = replace(
                case.levels[level], visible_fraction=finding.visible_fraction, body_center_mm=finding.body_center_mm
            )
    return replace(case, levels=levels)


def _refused(uid: str, error: CspineError) -> Prepared:
    return Prepared(
        study=uid,
        status="refused",
        code=error.code,
        reason=error.message,
        where=error.where or "",
        fix=error.fix or "",
    )


def _study_fault(caught: Exception, uid: str) -> CspineError:
    """The error of one study."""
    if isinstance(caught, CspineError):
        return caught
    if isinstance(caught, MemoryError):
        return TooLargeError("the study needs more memory than there is", where=uid, fix="Use fewer --workers")
    if isinstance(caught, OSError):
        return StudyError(f"the study cannot be read: {caught.strerror or caught}", where=uid)
    return CspineError(f"unexpected {type(caught).__name__}: {str(caught)[:200]}", where=uid, fix="Please report it")


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _table(done: Iterable[Prepared]) -> str:
    """The outcomes as CSV, one row a study."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(Prepared.model_fields)
    for item in done:
        row = item.model_dump(mode="json").values()
        table.writerow([" ".join(value) if isinstance(value, list) else value for value in row])
    return text.getvalue()
