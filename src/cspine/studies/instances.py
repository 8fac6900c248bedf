"""From headers to ``Plane``: one image plane of a CT, whether it is a file of its own or a frame of many."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

from cspine.errors import DamagedFileError
from cspine.studies import tags
from cspine.studies.files import StoredFile
from cspine.studies.header import Elements, Header, shown, text_of

# A plane wider than this, or a file with more frames, is a nonsense length rather than a CT.
MAX_SIDE = 16_384
MAX_FRAMES = 100_000
# Millimetres, cosines and rescales stay far below; what is larger would overflow in the geometry.
MAX_NUMBER = 1e9

Point = tuple[float, float, float]

# VR IS, PS3.5 6.2: at most twelve characters.
_INTEGER = re.compile(r"[-+]?[0-9]{1,12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How a stored value is coded, see PS3.3 C.7.6.3. Sizes are in bits."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    frames: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame when it is not compressed."""
        return self.rows * self.columns * self.allocated // 8


@dataclass(frozen=True, slots=True)
class Instance:
    """One file with images: its header once, shared by its planes."""

    file: StoredFile
    header: Header
    format: PixelFormat
    sop_uid: str
    series_uid: str
    modality: str
    image_type: tuple[str, ...]
    sop_class: str
    color: bool


@dataclass(frozen=True, slots=True)
class Plane:
    """One image plane. Geometry and rescale are None where the file does not say.

    Attributes:
        position: centre of the first voxel, LPS mm.
        orientation: direction of a row (x) and of a column (y), six cosines.
        spacing: mm between rows (y), between columns (x), the order of DICOM.
        slope, intercept: HU = slope * stored + intercept.
        padding: inclusive range of stored values outside the field of view, or None.
    """

    instance: Instance
    frame: int
    position: Point | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    padding: tuple[int, int] | None
    thickness: float | None
    kernel: str
    frame_type: tuple[str, ...]
    acquisition: str
    number: int | None

    @property
    def where(self) -> str:
        """File, and frame when there are several, for messages."""
        name = self.instance.file.name
        return name if self.instance.format.frames == 1 else f"{name}, frame {self.frame + 1}"


def read_instance(file: StoredFile, header: Header) -> Instance | None:
    """The image of a file, or None when it has no pixels (a report, a directory, a plan).

    Raises:
        DamagedFileError: sizes that make no sense.
    """
    if header.pixel_tag is None or tags.ROWS not in header.elements:
        return None
    sop_class = header.text(tags.SOP_CLASS) or header.text(tags.MEDIA_STORAGE_CLASS)
    modality = header.text(tags.MODALITY).upper()
    if not modality and sop_class in tags.CT_CLASSES:
        modality = "CT"  # anonymised sets (RSNA 2022) drop the attribute but keep the class
    return Instance(
        file=file,
        header=header,
        format=_pixel_format(header),
        sop_uid=header.text(tags.SOP_INSTANCE),
        series_uid=header.text(tags.SERIES_UID),
        modality=modality,
        image_type=_words(header.elements, tags.IMAGE_TYPE),
        sop_class=sop_class,
        color=(_integer(header, tags.SAMPLES, 1) or 1) != 1
        or header.text(tags.PHOTOMETRIC).upper() not in ("", "MONOCHROME1", "MONOCHROME2"),
    )


def planes_of(instance: Instance) -> list[Plane]:
    """All planes of one instance, in file order."""
    top = instance.header.elements
    shared = _first(top, tags.SHARED_GROUPS)
    per_frame = top.get(tags.PER_FRAME_GROUPS, ())
    count = instance.format.frames
    if isinstance(per_frame, bytes) or (per_frame and len(per_frame) != count):
        raise DamagedFileError(
            f"{count} frames but {len(per_frame)} sets of frame attributes", where=instance.file.name
        )  # fmt: skip
    if not per_frame:
        first = _plane(instance, 0, top, shared, {})
        return [first, *(replace(first, frame=frame) for frame in range(1, count))]
    return [_plane(instance, frame, top, shared, own) for frame, own in enumerate(per_frame)]


def _plane(instance: Instance, frame: int, top: Elements, shared: Elements, own: Elements) -> Plane:
    def group(tag: int) -> Elements:
        # Enhanced objects keep these in functional groups; classic ones at the top, where one frame is meant.
        return _first(own, tag) or _first(shared, tag) or (top if instance.format.frames == 1 or own == {} else {})

    where = instance.file.name
    multi = instance.format.frames > 1
    # A classic multi-frame image has one position for all frames: it says nothing about any but the first.
    place = {} if multi and not own else group(tags.PLANE_POSITION)
    position = _numbers(place, tags.POSITION, 3, where)
    orientation = _numbers(group(tags.PLANE_ORIENTATION), tags.ORIENTATION, 6, where)
    measures = group(tags.PIXEL_MEASURES)
    spacing = _numbers(measures, tags.PIXEL_SPACING, 2, where)
    thickness = _numbers(measures, tags.SLICE_THICKNESS, 1, where)
    rescale = group(tags.VALUE_TRANSFORMATION)
    slope, intercept = (_numbers(rescale, tag, 1, where) for tag in (tags.SLOPE, tags.INTERCEPT))
    kind = group(tags.CT_FRAME_TYPE)
    return Plane(
        instance=instance,
        frame=frame,
        position=None if position is None else (position[0], position[1], position[2]),
        orientation=orientation,
        spacing=None if spacing is None else (spacing[0], spacing[1]),
        slope=slope[0] if slope else None,
        intercept=intercept[0] if intercept else None,
        rescale_type=text_of(rescale, tags.RESCALE_TYPE).upper(),
        padding=_padding(instance),
        thickness=thickness[0] if thickness else None,
        kernel=text_of(group(tags.CT_RECONSTRUCTION), tags.KERNEL),
        frame_type=_words(kind, tags.FRAME_TYPE) or instance.image_type,
        acquisition="/".join(text_of(top, tag) for tag in (tags.ACQUISITION_NUMBER, tags.TEMPORAL_POSITION)),
        number=_instance_number(top),
    )


def _pixel_format(header: Header) -> PixelFormat:
    rows, columns = _integer(header, tags.ROWS, 0) or 0, _integer(header, tags.COLUMNS, 0) or 0
    allocated = _integer(header, tags.BITS_ALLOCATED, 16) or 16
    stored = _integer(header, tags.BITS_STORED, allocated) or allocated
    high = _integer(header, tags.HIGH_BIT, stored - 1)
    text = header.text(tags.FRAMES)
    try:
        frames = int(text) if text else 1
    except ValueError:
        frames = 0
    sizes = ((tags.ROWS, rows, MAX_SIDE), (tags.COLUMNS, columns, MAX_SIDE), (tags.FRAMES, frames, MAX_FRAMES))
    for tag, value, most in sizes:
        if not 1 <= value <= most:
            raise DamagedFileError(
                f"expected 1 to {most} in {tags.describe(tag)}, got {shown(text) if tag == tags.FRAMES else value}",
                where=header.where,
            )
    if (
        allocated not in (8, 16, 32)
        or not 1 <= stored <= allocated
        or high is None
        or not stored <= high + 1 <= allocated
    ):
        raise DamagedFileError(
            f"{stored} bits stored of {allocated} with high bit {high} make no sense", where=header.where
        )  # fmt: skip
    return PixelFormat(
        rows, columns, allocated, stored, high, bool(_integer(header, tags.PIXEL_REPRESENTATION, 0)), frames
    )


def _padding(instance: Instance) -> tuple[int, int] | None:
    first = _integer(instance.header, tags.PADDING, None, signed=instance.format.signed)
    if first is None:
        return None
    limit = _integer(instance.header, tags.PADDING_LIMIT, first, signed=instance.format.signed)
    return min(first, limit or first), max(first, first if limit is None else limit)


def _integer(header: Header, tag: int, default: int | None, *, signed: bool = False) -> int | None:
    """A binary US or SS value; ``default`` when absent or not two bytes."""
    raw = header.elements.get(tag)
    if not isinstance(raw, bytes) or len(raw) < 2:
        return default
    return int(struct.unpack_from((">" if header.big_endian else "<") + ("h" if signed else "H"), raw)[0])


def _numbers(elements: Elements, tag: int, count: int, where: str) -> tuple[float, ...] | None:
    """A DS value of ``count`` numbers, None when absent or empty.

    Raises:
        DamagedFileError: other than ``count`` numbers up to ``MAX_NUMBER``.
    """
    text = text_of(elements, tag)
    if not text:
        return None
    try:
        values = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        values = ()
    if len(values) != count or not all(abs(value) <= MAX_NUMBER for value in values):  # NaN is not
        raise DamagedFileError(f"expected {count} numbers in {tags.describe(tag)}, got {shown(text)}", where=where)
    return values


def _instance_number(elements: Elements) -> int | None:
    text = text_of(elements, tags.INSTANCE_NUMBER)
    return int(text) if _INTEGER.fullmatch(text) else None


def _words(elements: Elements, tag: int) -> tuple[str, ...]:
    text = text_of(elements, tag).upper()
    return tuple(part.strip() for part in text.split("\\")) if text else ()


def _first(elements: Elements, tag: int) -> Elements:
    value = elements.get(tag, ())
    return value[0] if isinstance(value, tuple) and value else {}
