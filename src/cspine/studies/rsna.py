"""The folder of the RSNA 2022 cervical spine fracture challenge, exactly as it is published.

``train.csv`` (one row a study: patient_overall, C1..C7), ``train_bounding_boxes.csv`` (one box a slice; the slice is
named by the number of its file), ``train_images/<StudyInstanceUID>/<number>.dcm`` and, for some studies,
``segmentations/<StudyInstanceUID>.nii``. File numbers, instance numbers and heights disagree in direction between
studies and masks are stored sagittally, so nothing here is matched by order: boxes go through the position in the
file's own header, masks through their affine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, THORACIC
from cspine.cases import Case, LevelTruth, SliceBox
from cspine.errors import GeometryError, NoImagesError, StudyError, StudyWarning, UsageError
from cspine.studies.dicom import find_instances
from cspine.studies.files import StoredFile
from cspine.studies.instances import planes_of
from cspine.studies.masks import mask_on, visible_fractions, with_owned_boxes
from cspine.studies.rsna_tables import BOXES_FILE, TABLE_FILE, BoxRow, StudyRow, is_uid, read_boxes, read_studies
from cspine.studies.study import open_study
from cspine.volume import Volume

__all__ = ["IMAGES_FOLDER", "RsnaFolder", "is_rsna_folder", "visible_fractions", "with_owned_boxes"]

IMAGES_FOLDER, MASKS_FOLDER = "train_images", "segmentations"
# A box may reach this far over the edge of its image, pixels: it was drawn by hand.
EDGE_PX = 2.0


def is_rsna_folder(path: Path) -> bool:
    """Whether a folder has the parts by which the published data are known."""
    return (path / TABLE_FILE).is_file() and (path / IMAGES_FOLDER).is_dir()


@dataclass(frozen=True, slots=True)
class RsnaFolder:
    """The tables, and which study has what.

    Attributes:
        path: the folder.
        studies: UIDs of the studies with a row and images, in order.
        rows: the row of every study in ``train.csv``.
        boxes: the rows of ``train_bounding_boxes.csv`` a study.
        masks: the file with a study's segmentation, for those that have one.
        faults: what is wrong with single studies that are therefore not in ``studies``, by UID.
        warnings: what a reader of the labels must know.
    """

    path: Path
    studies: tuple[str, ...]
    rows: Mapping[str, StudyRow]
    boxes: Mapping[str, tuple[BoxRow, ...]]
    masks: Mapping[str, Path]
    faults: Mapping[str, StudyError]
    warnings: tuple[StudyWarning, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> RsnaFolder:
        """Read the tables and look what is there; no image is opened.

        Raises:
            UsageError: no such folder, or not of this layout.
            DamagedFileError: a table is not as published; names file, row and column.
            NoImagesError: no study of the table has images.
        """
        path = Path(path)
        _require_layout(path)
        rows = read_studies(path / TABLE_FILE)
        boxes = read_boxes(path / BOXES_FILE)
        folders = {item.name for item in (path / IMAGES_FOLDER).iterdir() if item.is_dir()}
        folders = {name for name in folders if not name.startswith(".")}
        faults = _faults(rows, boxes, folders)
        studies = tuple(sorted(uid for uid in rows if uid in folders))
        if not studies:
            raise NoImagesError(
                f"none of the {len(rows)} studies of {TABLE_FILE} has a folder in {IMAGES_FOLDER}",
                where=str(path),
                fix="Unpack the images, or name the folder that holds both",
            )
        return cls(path, studies, rows, boxes, _mask_files(path / MASKS_FOLDER), faults, _contradictions(rows))

    def case(self, uid: str, *, threads: int | None = None) -> Case:
        """A study with what is known of it.

        ``labels`` come from the segmentation when there is one, with all thoracic vertebrae as one label; only then
        is it known how much of a vertebra is in view and which vertebra a box belongs to. A fractured vertebra
        without a box has no known place, and types are unknown for all.

        Args:
            uid: one of ``studies``.
            threads: cores to decode on; all by default.

        Raises:
            StudyError: the study cannot be used; of the kinds of ``open_study``, or the table's row at fault.
        """
        if uid in self.faults:
            raise self.faults[uid]
        if uid not in self.rows:
            raise StudyError(f"no such study in {TABLE_FILE}", where=uid)
        folder = self.path / IMAGES_FOLDER / uid
        volume = open_study(folder, threads=threads)
        boxes = tuple(_placed(row, folder, volume) for row in self.boxes.get(uid, ()))
        row = self.rows[uid]
        vertebrae = self.vertebrae(uid, volume)
        if vertebrae is None:
            levels = {level: LevelTruth(math.nan, row.of(level), place_known=False) for level in LEVELS}
            return Case(uid, volume, levels=levels, boxes=boxes)
        labels = np.minimum(vertebrae, np.uint8(THORACIC))
        shown = visible_fractions(labels)
        levels = {level: LevelTruth(shown[level], row.of(level)) for level in LEVELS}
        return with_owned_boxes(Case(uid, volume, labels, levels=levels, boxes=boxes))

    def vertebrae(self, uid: str, volume: Volume) -> NDArray[np.uint8] | None:
        """The published mask on the grid of the images, 1..7 = C1..C7 and 8..19 = T1..T12; None without one.

        Raises:
            StudyError: the mask cannot be read, has other labels, or does not lie on the images.
        """
        path = self.masks.get(uid)
        if path is None:
            return None
        return mask_on(path, volume)

    @property
    def kind(self) -> Literal["rsna2022"]:
        """What sort of folder it is."""
        return "rsna2022"

    @property
    def patients(self) -> Mapping[str, str]:
        """Whose study it is; the published data do not say."""
        return {}

    @property
    def held_back(self) -> frozenset[str]:
        """Studies that the data set itself keeps for validation: none."""
        return frozenset()

    def labels(self) -> dict[str, tuple[bool, ...]]:
        """For each study whether C1 to C7 are fractured, and whether any is."""
        return {uid: (*self.rows[uid].fractured, any(self.rows[uid].fractured)) for uid in self.studies}

    def files(self, uid: str) -> tuple[Path, ...]:
        """The files of a study's images."""
        return tuple(path for path in (self.path / IMAGES_FOLDER / uid).iterdir() if path.is_file())


def _require_layout(path: Path) -> None:
    if not path.is_dir():
        raise UsageError("there is no such folder", where=str(path))
    for name, is_there in (
        (TABLE_FILE, (path / TABLE_FILE).is_file()),
        (BOXES_FILE, (path / BOXES_FILE).is_file()),
        (IMAGES_FOLDER, (path / IMAGES_FOLDER).is_dir()),
    ):
        if not is_there:
            raise UsageError(
                f"expected {name} in a folder of RSNA 2022 data, as it is published",
                where=str(path),
                fix="Name the folder that holds train.csv and train_images, with all files unpacked",
            )


def _faults(
    rows: Mapping[str, StudyRow], boxes: Mapping[str, tuple[BoxRow, ...]], folders: set[str]
) -> dict[str, StudyError]:
    """What is wrong with single studies."""
    faults: dict[str, StudyError] = {}
    for uid, of_study in boxes.items():
        if uid not in rows:
            faults[uid] = StudyError(f"boxes of a study that {TABLE_FILE} does not list", where=of_study[0].where)
    for number, name in enumerate(sorted(folders - rows.keys()), start=1):
        # The name of a folder that is no UID may say who the patient is.
        uid = name if is_uid(name) else f"folder-{number}"
        faults[uid] = StudyError(f"images without a row in {TABLE_FILE}", where=f"{IMAGES_FOLDER}/{uid}")
    for uid, row in rows.items():
        if uid not in folders:
            faults[uid] = NoImagesError(f"a row without images in {IMAGES_FOLDER}", where=row.where)
    return dict(sorted(faults.items()))


def _contradictions(rows: Mapping[str, StudyRow]) -> tuple[StudyWarning, ...]:
    """Rows whose patient_overall is not what the levels say; the levels are believed."""
    odd = [row for row in rows.values() if row.overall != any(row.fractured)]
    return tuple(
        StudyWarning(
            "overall-contradicts-levels",
            f"{row.where}: patient_overall is {int(row.overall)} but the levels say {int(any(row.fractured))}; "
            "the levels were used.",
        )
        for row in odd
    )


def _mask_files(folder: Path) -> dict[str, Path]:
    """Segmentations by study; a packed copy will do."""
    if not folder.is_dir():
        return {}
    found = {path.name.removesuffix(".gz").removesuffix(".nii"): path for path in sorted(folder.glob("*.nii.gz"))}
    return found | {path.stem: path for path in sorted(folder.glob("*.nii"))}


def _placed(row: BoxRow, folder: Path, volume: Volume) -> SliceBox:
    """A row of the box table on the volume, through the position that its file states.

    Raises:
        StudyError: the file is missing or not of the volume, or the box lies outside the image.
    """
    path = folder / f"{row.slice_number}.dcm"
    if not path.is_file():
        raise StudyError(f"expected the slice {path.name} of a box in {folder.name}", where=row.where)
    found = find_instances([StoredFile(path.name, path.stat().st_size, path)])
    planes = planes_of(found.instances[0]) if found.instances else []
    if not planes or (volume.source.files and path.name not in volume.source.files):
        raise StudyError(f"a box lies on {path.name}, which is not among the slices that were read", where=row.where)
    plane = planes[0]
    rows, columns = plane.instance.format.rows, plane.instance.format.columns
    left, top, right, bottom = row.x, row.y, row.x + row.width, row.y + row.height
    if min(left, top) < -EDGE_PX or right > columns + EDGE_PX or bottom > rows + EDGE_PX:
        raise StudyError(f"a box reaches outside its image of {columns} x {rows} pixels", where=row.where)
    if plane.position is None or plane.orientation is None or plane.spacing is None:
        raise GeometryError("the slice of a box does not say where it lies", where=f"{path.name}, {row.where}")
    across, down = np.asarray(plane.orientation).reshape(2, 3) * np.array([[plane.spacing[1]], [plane.spacing[0]]])
    # Edges, not centres, of pixels: pixel 0 covers -0.5 to 0.5.
    corners = np.array([[x - 0.5, y - 0.5] for x in (left, right) for y in (top, bottom)])
    at = volume.to_index(np.asarray(plane.position) + corners @ np.stack([across, down]))
    depth = float(at[:, 2].mean())
    index = round(depth)
    if abs(depth - index) > 0.51 or not 0 <= index < volume.shape[0]:
        raise GeometryError("the slice of a box lies outside the volume", where=row.where)
    low, high = np.floor(at[:, :2].min(axis=0) + 0.5 + 1e-3), np.ceil(at[:, :2].max(axis=0) + 0.5 - 1e-3)
    size = np.array([volume.shape[2], volume.shape[1]])
    (x_min, y_min), (x_max, y_max) = np.clip(low, 0, size).astype(int), np.clip(high, 0, size).astype(int)
    return SliceBox(index, int(x_min), int(y_min), int(x_max), int(y_max))
