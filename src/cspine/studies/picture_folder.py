"""A folder of single pictures (PNG, JPEG, TIFF, DICOM slices), labelled one by one; see ``studies.picture_table``.

Pictures of one study are one case, whose slices are these pictures. One that nothing assigns to a study is a case of
its own; for the split, such pictures whose names differ in their last number alone are taken as one patient's, since
they may be neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, OTHER_BONE, Level
from cspine.cases import Case, Pictures, SliceBox
from cspine.errors import CspineError, DamagedFileError, IntensityError, NoImagesError, StudyError, StudyWarning
from cspine.imaging.geometry import resize
from cspine.imaging.sample import Sample
from cspine.studies.images import SliceImage, open_image
from cspine.studies.label_table import find_table, read_table, safe_name
from cspine.studies.picture_table import Picture, has_class_folders, listed_by_folder, listed_in_table, pictures_below
from cspine.volume import AIR_HU, Source, Volume

# With fewer groups of names than this, the names say how pictures were numbered rather than whose they are.
MIN_NAME_GROUPS = 10
# Millimetres that a picture without any is given, and those between two pictures, which mean nothing.
UNIT_MM = 1.0
_LAST_NUMBER, _BRACKETS = re.compile(r"[\s_.-]*\d+(?=\D*$)"), re.compile(r"\(\d+\)")
_DIGITS = re.compile(r"(\d+)")

Mask = NDArray[np.uint8]


def is_picture_folder(path: Path) -> bool:
    """Whether a folder holds pictures, with a table or in folders named fractured and normal."""
    files = pictures_below(path)
    return bool(files) and (any(path.glob("*.csv")) or has_class_folders(files))


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """Pictures with labels; a ``LabelledStudies``.

    Attributes:
        path: the folder.
        studies: names of the studies, in order.
        pictures: those of each study, in order.
        patients: whose study it is, as far as anything says so.
        held_back: studies that the data set itself keeps for validation or test.
        faults: what is wrong with single pictures and studies that are therefore not used.
        warnings: what a reader of the labels must know.
    """

    path: Path
    studies: tuple[str, ...]
    pictures: Mapping[str, tuple[Picture, ...]]
    patients: Mapping[str, str]
    held_back: frozenset[str]
    faults: Mapping[str, CspineError]
    warnings: tuple[StudyWarning, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> PictureFolder:
        """Read the table, or the names of the folders, and look what is there; no picture is opened.

        Raises:
            UsageError: several tables, or one without a column that is needed.
            DamagedFileError: the table cannot be read.
            NoImagesError: no picture can be used.
        """
        path = Path(path)
        files = pictures_below(path)
        table = find_table(path)
        found, faults = listed_by_folder(files) if table is None else listed_in_table(read_table(table), files)
        if not found:
            raise NoImagesError(
                "no picture of the folder has a label",
                where=str(path),
                fix="Put pictures in folders named fractured and normal, or write labels.csv with file and label",
            )
        pictures = _grouped(found)
        patients, warnings = _patients(pictures)
        held = frozenset(name for name, group in pictures.items() if any(item.held_back for item in group))
        if _straddles(pictures, patients):
            held = frozenset()
            message = "The folders or the table put one patient on both sides of a split, so a new one is drawn."
            warnings = (*warnings, StudyWarning("split-straddles-patients", message))
        return cls(path, tuple(pictures), pictures, patients, held, dict(sorted(faults.items())), warnings)

    @property
    def kind(self) -> Literal["pictures"]:
        """What sort of folder it is."""
        return "pictures"

    def labels(self) -> dict[str, tuple[bool, ...]]:
        """For each study whether C1 to C7 are known to be fractured, and whether any is."""
        return {
            name: (*(any(_says(item, level) for item in group) for level in LEVELS), any(p.fractured for p in group))
            for name, group in self.pictures.items()
        }

    def files(self, name: str) -> tuple[Path, ...]:
        """The files of a study's pictures."""
        return tuple(item.path for item in self.pictures[name])

    def case(self, name: str, *, threads: int | None = None) -> Case:
        """The pictures of a study as the slices of a volume, with what is said of each.

        Pictures of several sizes are brought to that of the largest, sides in proportion.

        Args:
            name: one of ``studies``.
            threads: not used; pictures are small.

        Raises:
            CspineError: a picture or mask cannot be read, HU and grey levels are mixed, or what ``faults`` says.
        """
        del threads
        if name in self.faults:
            raise self.faults[name]
        if name not in self.pictures:
            raise StudyError("no such study in the folder", where=name)
        group = self.pictures[name]
        opened = [open_image(item.path) for item in group]
        units = {image.unit for image in opened}
        if len(units) > 1:
            raise IntensityError("pictures in HU and pictures in grey levels are of one study", where=group[0].name)
        grey = units == {"grey"}
        planes = _stacked(group, opened, grey=grey)
        affine = np.diag([*_pixel(opened), UNIT_MM, 1.0])
        source = Source(kind="image", name=name, files=tuple(item.path.name for item in group))
        says = Pictures(tuple(item.fractured for item in group), tuple(_levels(item) for item in group), grey)
        broken = any(item.fractured for item in group)
        return Case(
            name=name,
            volume=Volume(planes.image, affine, source, opened[0].warnings),
            labels=planes.labels,
            fracture=planes.fracture,
            boxes=planes.boxes,
            overall=True if broken else None,
            pictures=says,
        )

    def vertebrae(self, name: str, volume: Volume) -> None:
        """None: masks of pictures do not tell thoracic vertebrae apart."""
        del name, volume


@dataclass(frozen=True, slots=True)
class _Planes:
    """Pictures on one grid ``[z, y, x]``."""

    image: NDArray[Any]
    labels: Mask | None
    fracture: NDArray[np.bool_] | None
    boxes: tuple[SliceBox, ...]


def _stacked(group: Sequence[Picture], opened: Sequence[SliceImage], *, grey: bool) -> _Planes:
    """All pictures with their masks, as large as the largest."""
    shapes = [image.pixels.shape for image in opened]
    size = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    planes, labels, fractures, boxes = [], [], [], []
    for k, (item, image) in enumerate(zip(group, opened, strict=True)):
        pixels = image.pixels * np.float32(255) if grey else image.pixels
        own = _mask(item, image.pixels.shape)
        broken = _read_mask(item.fracture_mask, image.pixels.shape) > 0 if item.fracture_mask else None
        # Level in the lower bits, fracture above them, so that both move together.
        both = (np.zeros(pixels.shape, np.uint8) if own is None else own) + 16 * (broken if broken is not None else 0)
        sample = Sample(np.asarray(pixels, np.float32), mask=both.astype(np.uint8))
        if sample.image.shape != size:
            sample = resize(sample, size, fill=0.0 if grey else float(AIR_HU))
        mask = both if sample.mask is None else sample.mask
        planes.append(np.rint(sample.image).astype(np.int16))
        labels.append((mask % 16).astype(np.uint8))
        fractures.append(mask >= 16)
        boxes += [_box(k, box, sample) for box in item.boxes]
    outlined, placed = any(item.mask for item in group), any(item.fracture_mask for item in group)
    return _Planes(
        np.stack(planes), np.stack(labels) if outlined else None, np.stack(fractures) if placed else None, tuple(boxes)
    )


def _box(index: int, box: tuple[float, float, float, float], sample: Sample) -> SliceBox:
    x, y, width, height = box
    ends = np.array([[x, y, 0], [x + width, y + height, 0]]) - (0.5, 0.5, 0)
    low, high = sample.from_original(ends)[:, :2] + 0.5
    rows, columns = sample.image.shape
    left, top = (int(np.clip(np.floor(v), 0, n)) for v, n in zip(low, (columns, rows), strict=True))
    right, bottom = (int(np.clip(np.ceil(v), 0, n)) for v, n in zip(high, (columns, rows), strict=True))
    return SliceBox(index, left, top, right, bottom)


def _mask(item: Picture, shape: tuple[int, ...]) -> Mask | None:
    """Labels of a picture; black and white stands for the one level that the picture is said to show."""
    if item.mask is None:
        return None
    mask = _read_mask(item.mask, shape)
    values = set(np.unique(mask).tolist())
    if values <= {0, 255} and item.levels is not None and len(item.levels) == 1:
        return np.where(mask > 0, np.uint8(item.levels[0]), np.uint8(0))
    if max(values) > OTHER_BONE:
        raise DamagedFileError(
            f"expected a mask with values 0 to {OTHER_BONE}, got {max(values)}",
            where=item.mask.name,
            fix="Store C1 to C7 as 1 to 7; black and white needs one level in the table",
        )
    return mask


def _read_mask(path: Path, shape: tuple[int, ...]) -> Mask:
    """A picture of whole numbers, not scaled: values of a palette are its indices.

    Raises:
        DamagedFileError: cut off, coloured, or of another size than its picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.mode not in ("1", "L", "P"):
                raise DamagedFileError(
                    f"expected a mask of 8-bit numbers, got mode {picture.mode}", where=path.name, fix="Store it grey"
                )
            mask = np.asarray(picture, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedFileError(f"the mask cannot be decoded: {str(error)[:120]}", where=path.name) from error
    if mask.shape != shape:
        raise DamagedFileError(
            f"expected a mask of {shape[1]}x{shape[0]} pixels, got {mask.shape[1]}x{mask.shape[0]}", where=path.name
        )
    return mask


def _pixel(opened: Sequence[SliceImage]) -> tuple[float, float]:
    """Millimetres along x and y, where all pictures are alike; else 1."""
    known = {(image.spacing_mm, image.pixels.shape) for image in opened}
    spacing = opened[0].spacing_mm
    return spacing if len(known) == 1 and spacing is not None else (UNIT_MM, UNIT_MM)


def _levels(item: Picture) -> tuple[Level, ...] | None:
    """The levels that a picture is said to show; with a mask, that says it."""
    return None if item.mask is not None else item.levels


def _says(item: Picture, level: Level) -> bool:
    """Whether a picture says that this level is fractured: one that shows several does not say which."""
    return item.fractured is True and item.levels == (level,)


def _order(item: Picture) -> tuple[Any, ...]:
    """By number, then by name with its numbers as numbers."""
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(item.name)]
    return (item.number is None, item.number or 0.0, parts)


def _grouped(found: Iterable[Picture]) -> dict[str, tuple[Picture, ...]]:
    """Pictures by study, in order; those with masks and those without are cases apart.

    So what is known of one slice of a case is known of all.
    """
    by_study: dict[str, list[Picture]] = {}
    for picture in found:
        own = re.sub(r"\.[A-Za-z]+$", "", picture.name).replace("/", "_")
        by_study.setdefault(safe_name(picture.study or own), []).append(picture)
    out = {}
    for name, group in sorted(by_study.items()):
        placed = any(item.fracture_mask for item in group)
        kinds: dict[tuple[bool, bool], list[Picture]] = {}
        for item in sorted(group, key=_order):
            known = item.fracture_mask is not None or (placed and item.fractured is False)
            kinds.setdefault((item.mask is not None, known), []).append(item)
        for number, part in enumerate(kinds.values()):
            out[f"{name}.part-{number}" if number else name] = tuple(part)
    return out


def _patients(pictures: Mapping[str, tuple[Picture, ...]]) -> tuple[dict[str, str], tuple[StudyWarning, ...]]:
    """Whose study each is, as far as the table or else the names of pictures say."""
    patients = {}
    for name, group in pictures.items():
        said = next((item.patient for item in group if item.patient), "")
        if said or group[0].study:
            patients[name] = f"patient {said}" if said else f"study {group[0].study}"
    alone = [name for name in pictures if name not in patients]
    if not alone:
        return patients, ()
    stems = {name: _without_number(Path(pictures[name][0].name).stem) for name in alone}
    message = f"Nothing says which study {len(alone)} pictures are of; "
    if len(set(stems.values())) >= MIN_NAME_GROUPS:
        patients |= {name: f"name {stem}" for name, stem in stems.items()}
        message += "those whose names differ in their last number alone were kept on one side of the split."
    else:
        message += "neighbours may lie on both sides of the split. A column study in labels.csv prevents it."
    return patients, (StudyWarning("pictures-without-study", message),)


def _without_number(stem: str) -> str:
    """A name up to its number in brackets (what follows is said of a copy), else without its last number."""
    return re.split(r"\s*\(\d+\)", stem)[0] if _BRACKETS.search(stem) else _LAST_NUMBER.sub("", stem)


def _straddles(pictures: Mapping[str, tuple[Picture, ...]], patients: Mapping[str, str]) -> bool:
    """Whether the data set's own split has a patient on both sides."""
    sides: dict[str, set[bool]] = {}
    for name, group in pictures.items():
        sides.setdefault(patients.get(name, name), set()).update(item.held_back for item in group)
    return any(len(side) > 1 for side in sides.values())
