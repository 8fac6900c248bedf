"""A CT volume from DICOM files: scan all headers, choose a stack, lay it out, decode it, and say what was done."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cspine.errors import DamagedFileError, GeometryError, StudyWarning, TooLargeError
from cspine.studies import tags
from cspine.studies.assemble import decode
from cspine.studies.files import StoredFile, check_bytes
from cspine.studies.frames import PixelSource, read_file
from cspine.studies.geometry import DUPLICATE_MM, Layout, lay_out, require_geometry
from cspine.studies.header import (
    MAX_HEADER_BYTES,
    DamagedHeaderError,
    Header,
    NeedMoreError,
    NotDicomError,
    damaged_header,
    scan,
)
from cspine.studies.instances import Instance, Plane, read_instance
from cspine.studies.intensity import Scale, check_hu, is_integer, rescale_of
from cspine.studies.series import Stack, choose, stacks_of
from cspine.volume import Source, Volume

# Most headers of a single slice end before this many bytes; longer ones are read again with GROWTH times as many.
HEAD_BYTES = 8192
GROWTH = 8
# What the headers of one input may take in memory, and how many elements they may have: 100 000 files of a usual CT
# have 30 million. An archive of some megabytes could hold more.
MAX_KEPT_BYTES = 2**29
MAX_MET = 100_000_000


@dataclass(slots=True)
class Found:
    """What a look at all files gave."""

    instances: list[Instance] = field(default_factory=list)
    damaged: list[DamagedHeaderError] = field(default_factory=list)
    other: int = 0


def read_header(file: StoredFile) -> Header:
    """The header of one file, reading no more of it than needed.

    Raises:
        NotDicomError: it is something else.
        DamagedFileError: truncated or nonsense.
    """
    count = HEAD_BYTES
    while True:
        data = file.head(count)
        try:
            return scan(data, complete=len(data) >= file.size, where=file.name)
        except NeedMoreError:
            if len(data) >= min(file.size, MAX_HEADER_BYTES):
                most = f"in {MAX_HEADER_BYTES // 2**20} MiB" if len(data) < file.size else "with the file"
                raise damaged_header(DamagedFileError(f"the header does not end {most}", where=file.name)) from None
            count = min(count * GROWTH, MAX_HEADER_BYTES)
        except (RecursionError, MemoryError) as error:
            short = DamagedFileError("the header cannot be read in the memory there is", where=file.name)
            raise damaged_header(short) from error


def find_instances(files: Iterable[StoredFile]) -> Found:
    """Read all headers. Files that are not DICOM are counted, damaged ones kept aside.

    Raises:
        DamagedFileError: a file cannot be read at all.
        TooLargeError: all headers together are too much.
    """
    found = Found()
    kept = met = 0
    for file in files:
        try:
            header = read_header(file)
            kept, met = kept + header.kept, met + header.met
            if kept > MAX_KEPT_BYTES or met > MAX_MET:
                raise TooLargeError("the headers together are longer than those of any study", where=file.name)
            if header.text(tags.MEDIA_STORAGE_CLASS) == tags.DIRECTORY_STORAGE:
                continue
            instance = _instance(file, header)
        except NotDicomError:
            found.other += 1
        except DamagedHeaderError as error:
            # The frames of its traceback hold the bytes of the file.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            found.damaged.append(error)
        else:
            if instance is None:
                found.other += 1
            else:
                found.instances.append(instance)
    return found


def _instance(file: StoredFile, header: Header) -> Instance | None:
    """``read_instance``; nonsense sizes count as a damaged header of the series."""
    try:
        return read_instance(file, header)
    except DamagedFileError as error:
        raise damaged_header(error, header.text(tags.SERIES_UID)) from error


def open_series(
    found: Found, *, name: str, series: str | None, scale: Scale | None, max_bytes: int, threads: int | None
) -> Volume:
    """The best (or named) stack of ``found`` as a volume, axes as acquired.

    Raises:
        StudyError: one of its kinds; see ``cspine.studies.open_study``.
    """
    stacks = stacks_of(found.instances)
    stack, selection = choose(stacks, series)
    for error in found.damaged:
        if error.series_uid in ("", stack.series_uid):
            raise error
    for plane in stack.planes:
        require_geometry(plane)
    fmt = stack.first.instance.format
    where = stack.first.instance.file.name
    check_bytes(len(stack.planes) * fmt.rows * fmt.columns * 2, max_bytes, "the volume", where=where)
    planes, warnings = without_duplicates(stack.planes)
    scales = {id(plane): rescale_of(plane, scale) for plane in planes}
    layout = lay_out(planes)
    dtype = np.dtype(np.int16 if is_integer(list(scales.values())) else np.float32)
    for shape in (layout.shape, (len(planes), *layout.shape[1:])):
        check_bytes(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, max_bytes, "the volume", where=where)
    try:
        hu, digest = decode(layout, [scales[id(p)] for p in layout.planes], dtype, threads)
    except MemoryError as error:
        raise TooLargeError("there is not enough memory for this series", where=where) from error
    check_hu(hu, where=where)
    warnings += [*_notes(stack, stacks, scale), *layout.warnings]
    return Volume(hu, layout.affine, _source(layout, stack, name, selection, digest), tuple(warnings))


def without_duplicates(planes: tuple[Plane, ...]) -> tuple[list[Plane], list[StudyWarning]]:
    """One plane a place. Copies of the same image are dropped with a warning.

    Raises:
        GeometryError: two different images at one place.
    """
    normal = np.cross(*np.asarray(planes[0].orientation).reshape(2, 3))
    along = np.asarray([plane.position for plane in planes]) @ normal
    order = np.argsort(along, kind="stable")
    kept: list[int] = []
    for k in order:
        if not kept or along[k] - along[kept[-1]] >= DUPLICATE_MM:
            kept.append(int(k))
        elif not _same_image(planes[kept[-1]], planes[k]):
            raise GeometryError(
                "two different images lie at the same place",
                where=f"{planes[kept[-1]].where} and {planes[k].where}",
                fix="Separate the two series",
            )
    dropped = len(planes) - len(kept)
    note = StudyWarning("dropped-duplicate-slices", f"{dropped} slices were there twice; one copy of each was used.")
    return [planes[k] for k in kept], [note] if dropped else []


def _same_image(one: Plane, other: Plane) -> bool:
    if one.instance is other.instance:
        return False
    if one.instance.sop_uid and one.instance.sop_uid == other.instance.sop_uid and one.frame == other.frame:
        return True
    first, second = (PixelSource(read_file(p.instance), p.instance.header, p.instance.format) for p in (one, other))
    return bool(np.array_equal(first.frame(one.frame), second.frame(other.frame)))


def _notes(stack: Stack, stacks: list[Stack], scale: Scale | None) -> list[StudyWarning]:
    notes: list[StudyWarning] = []
    left = sum(len(s.planes) for s in stacks if s is not stack and s.series_uid == stack.series_uid and not s.refusal)
    if left:
        message = f"{left} images of the same series differ in size, direction or kernel and were left out."
        notes.append(StudyWarning("left-out-images", message))
    header = stack.first.instance.header
    if header.text(tags.LOSSY) == "01" or header.syntax in tags.LOSSY_SYNTAXES:
        notes.append(StudyWarning("lossy-compression", "The images were compressed with loss; fine lines may be gone."))
    if scale is not None:
        message = f"HU were made with the scale given: {scale[0]:g} * value + {scale[1]:g}."
        notes.append(StudyWarning("scale-given", message))
    return notes


def _source(layout: Layout, stack: Stack, name: str, selection: str, digest: str) -> Source:
    first = layout.planes[0]
    header = first.instance.header
    texts = {
        "manufacturer": header.text(tags.MANUFACTURER),
        "model": header.text(tags.MODEL),
        "kernel": first.kernel,
        "patient_position": header.text(tags.PATIENT_POSITION),
        "transfer_syntax": header.syntax,
    }
    facts: dict[str, str | float] = {key: text for key, text in texts.items() if text}
    if first.thickness is not None:
        facts["slice_thickness_mm"] = first.thickness
    for key, tag in (("kvp", tags.KVP), ("gantry_tilt_deg", tags.GANTRY_TILT)):
        try:
            value = float(header.text(tag))
        except ValueError:
            continue  # absent, or not a number: a fact for the reader only
        if math.isfinite(value):
            facts[key] = value
    kept = layout.slots is not None and layout.count == len(layout.planes)
    return Source(
        kind="dicom",
        name=name,
        sha256=digest,
        series_uid=stack.series_uid or None,
        study_uid=header.text(tags.STUDY_UID) or None,
        frame_of_reference_uid=header.text(tags.FRAME_OF_REFERENCE) or None,
        sop_instance_uids=tuple(plane.instance.sop_uid for plane in layout.planes) if kept else (),
        files=tuple(plane.instance.file.name for plane in layout.planes) if kept else (),
        selection=selection,
        acquisition=facts,
    )
