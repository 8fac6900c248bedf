"""``SourceSeries``: the images that a result belongs to, as results need them: whose they are, and where each lies.

A volume carries no patient data, on purpose. Results in DICOM must say whose they are, so the headers are read again
from what was opened, checked to be the same images, and copied as they stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cspine.errors import GeometryError, StudyError, UsageError
from cspine.reports.dicom_headers import COPIED, copy_elements, read_header
from cspine.studies import tags
from cspine.studies.dicom import find_instances, without_duplicates
from cspine.studies.geometry import require_geometry
from cspine.studies.instances import Instance, Plane
from cspine.studies.series import choose, stacks_of
from cspine.studies.study import files_of
from cspine.volume import Source

if TYPE_CHECKING:
    from pydicom import Dataset

Point = tuple[float, float, float]

# Frame of reference, and facts of the series that an object derived from it repeats.
SERIES_FACTS = ("FrameOfReferenceUID", "PositionReferenceIndicator", "BodyPartExamined", "PatientPosition")
# Type 2: must be there, may be empty.
_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)


@dataclass(frozen=True, slots=True)
class SourceInstance:
    """One image plane of the source.

    Attributes:
        sop_class_uid, sop_instance_uid: of the instance that holds it.
        position_mm: centre of its first voxel, LPS mm (ImagePositionPatient).
        rows, columns: its size.
        frame: number of the frame, 1 for the first; 1 where the instance has only one.
        multiframe: the instance has several frames, so that references must name the frame.
        rescale: slope and intercept to HU, or None where the file does not say.
    """

    sop_class_uid: str
    sop_instance_uid: str
    position_mm: Point
    rows: int
    columns: int
    frame: int = 1
    multiframe: bool = False
    rescale: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class SourceSeries:
    """The series a volume was made from.

    Attributes:
        context: patient and study attributes and frame of reference, as they stand in the first instance. Those that
            every object must have (type 2) are there, empty if need be. No pixels.
        instances: its planes. Where the volume has the files' slices they are in its order along z; in any case
            towards the head, the back or the left, whichever the stack runs closest to.
        orientation: direction cosines of a row and of a column (ImageOrientationPatient), shared by all.
        pixel_spacing: mm between rows, between columns (PixelSpacing), shared by all.
        templates: the header of each file, without pixels, private attributes and values beyond 64 KiB, in the order
            of ``instances``; one for a multi-frame file.
        series_uid: SeriesInstanceUID.
        thickness_mm: SliceThickness, or None.
    """

    context: Dataset
    instances: tuple[SourceInstance, ...]
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing: tuple[float, float]
    templates: tuple[Dataset, ...]
    series_uid: str
    thickness_mm: float | None = None


def read_source(path: Path, source: Source) -> SourceSeries:
    """Read again whose images a volume was made from and where each of them lies. Pixels are not read.

    Args:
        path: what ``open_study`` was given: a folder, zip or file.
        source: of the volume that it gave.

    Raises:
        UsageError: it is no DICOM.
        StudyError: the images are no longer those that were opened, or lack an identifier.
        DamagedFileError, GeometryError, TooLargeError: a header cannot be used.
    """
    if source.kind != "dicom":
        raise UsageError(
            "results in DICOM need a DICOM study as input",
            where=source.name or None,
            fix="Leave the DICOM formats out, or give the DICOM series",
        )
    with files_of(Path(path)) as files:
        # The names of the files are known unless slices were resampled or belong to another axis.
        named = set(source.files)
        found = find_instances(file for file in files if not named or file.name in named)
        if not found.instances:
            raise _changed(source)
        stack, _ = choose(stacks_of(found.instances), source.series_uid)
        for plane in stack.planes:
            require_geometry(plane)
        planes = _towards_head(without_duplicates(stack.planes)[0])
        uids = tuple(plane.instance.sop_uid for plane in planes)
        if source.sop_instance_uids and uids != source.sop_instance_uids:
            raise _changed(source)
        headers = tuple(read_header(instance) for instance in _unique(planes))
    first = planes[0]
    context = _context(headers[0], source, first.where)
    return SourceSeries(
        context=context,
        instances=tuple(_instance(plane) for plane in planes),
        orientation=_six(first.orientation or ()),
        pixel_spacing=first.spacing or (0.0, 0.0),
        templates=headers,
        series_uid=first.instance.series_uid,
        thickness_mm=first.thickness,
    )


def _context(header: Dataset, source: Source, where: str) -> Dataset:
    from pydicom import Dataset

    context = Dataset()
    context.set_original_encoding(False, True, header.original_character_set)
    copy_elements(header, context, (*COPIED, *SERIES_FACTS))
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not str(context.get(keyword) or ""):
            raise GeometryError(
                f"{keyword} is missing, without which results cannot be put in their place",
                where=where,
                fix="Export the original series",
            )
    if source.study_uid is not None and str(context.StudyInstanceUID) != source.study_uid:
        raise _changed(source)
    for keyword in _REQUIRED:
        if keyword not in context:
            setattr(context, keyword, "")
    return context


def _towards_head(planes: list[Plane]) -> list[Plane]:
    """Planes along the axis of the patient that their normal is closest to; the order of ``Volume.reoriented``."""
    normal = np.cross(*np.asarray(planes[0].orientation).reshape(2, 3))
    normal *= np.sign(normal[int(np.argmax(np.abs(normal)))])
    return sorted(planes, key=lambda plane: float(normal @ np.asarray(plane.position)))


def _unique(planes: list[Plane]) -> Iterator[Instance]:
    """The files of the planes, each once."""
    seen: set[int] = set()
    for plane in planes:
        if id(plane.instance) not in seen:
            seen.add(id(plane.instance))
            yield plane.instance


def _instance(plane: Plane) -> SourceInstance:
    instance, place = plane.instance, plane.position
    for name, value in (("SOPInstanceUID", instance.sop_uid), ("SeriesInstanceUID", instance.series_uid)):
        if not value:
            raise StudyError(f"{name} is missing, so nothing can refer to this image", where=plane.where)
    return SourceInstance(
        sop_class_uid=instance.sop_class or tags.CT_STORAGE,
        sop_instance_uid=instance.sop_uid,
        position_mm=(0.0, 0.0, 0.0) if place is None else place,
        rows=instance.format.rows,
        columns=instance.format.columns,
        frame=plane.frame + 1,
        multiframe=instance.sop_class in (tags.ENHANCED_CT_STORAGE, tags.LEGACY_ENHANCED_CT_STORAGE),
        rescale=None if plane.slope is None or plane.intercept is None else (plane.slope, plane.intercept),
    )


def _six(values: tuple[float, ...]) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = values
    return a, b, c, d, e, f


def _changed(source: Source) -> StudyError:
    return StudyError(
        "the images are not those that were opened a moment ago",
        where=source.name or None,
        fix="Leave the files alone while they are judged, and run again",
    )
