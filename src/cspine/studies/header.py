"""Read the part of a DICOM file before its pixels: bounded, iterative over elements, and without pydicom.

A study has hundreds of files and each header is needed before the first pixel. pydicom builds an object per
element (about 1 ms a file, more than reading and hashing the file's pixels), recurses as deep as the file tells it
to, and inflates without bound. This scanner keeps some forty tags (``tags.WANTED``), steps over the rest by their
length, nests at most ``MAX_DEPTH`` deep and inflates at most what it is allowed. See DICOM PS3.5 section 7 and 10.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field

from cspine.errors import DamagedFileError
from cspine.studies import tags

# Nested sequences deeper than this are no CT header; real ones stay below 10.
MAX_DEPTH = 32
# A header may have, or inflate to, this much before its pixels begin; Enhanced CT headers reach a few megabytes.
MAX_HEADER_BYTES = 256 * 2**20
# The longest value that is kept: texts of 64 characters, lists of a few numbers (PS3.5 6.2).
MAX_VALUE_BYTES = 4096
# Items of kept sequences, seven a frame in Enhanced CT. An empty item takes 8 bytes in a file and 64 in memory.
MAX_ITEMS = 500_000
# Elements that are met, kept or not, a hundred a frame in Enhanced CT; each takes about a microsecond.
MAX_ELEMENTS = 10_000_000

CUT_OFF = "Copy or export the file again, it is cut off"

_UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_VRS = _SHORT_VRS | _LONG_VRS
MAX_SHOWN = 60
_NUMERIC = re.compile(r"[-+0-9.eE\\ ]*|[a-z]{1,4}", re.ASCII)
_CODE = re.compile(r"[A-Z0-9_ ]{0,16}|[0-9.]{0,64}", re.ASCII)

# What a kept value takes in memory besides its bytes.
_ELEMENT_BYTES = 150
_ITEM_BYTES = 200

Elements = dict[int, "bytes | tuple[Elements, ...]"]


class NotDicomError(Exception):
    """The bytes do not begin like a DICOM file."""


class NeedMoreError(Exception):
    """The header goes on past the bytes given."""


class DamagedHeaderError(DamagedFileError):
    """A header that cannot be read to its end; ``series_uid`` is the series it belongs to, empty when unknown."""

    series_uid = ""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its pixels.

    Attributes:
        elements: raw values by tag (see ``tags``); a sequence is a tuple of such dictionaries.
        syntax: transfer syntax UID.
        big_endian: byte order of the data set.
        pixel_tag: tag of the pixel element, None when the file ends without one.
        pixel_offset: where the pixel bytes begin (in the inflated stream when ``syntax`` is deflated).
        pixel_length: how many there are; None when undefined, i.e. encapsulated.
        met: elements that were met.
        kept: about how many bytes of memory ``elements`` takes.
    """

    elements: Elements
    syntax: str
    big_endian: bool = False
    pixel_tag: int | None = None
    pixel_offset: int = 0
    pixel_length: int | None = None
    where: str = ""
    met: int = 0
    kept: int = 0

    def text(self, tag: int) -> str:
        """The value as text, stripped; empty when absent."""
        return text_of(self.elements, tag)


@dataclass(slots=True)
class _Cursor:
    data: bytes | memoryview
    complete: bool
    where: str
    explicit: bool = True
    order: str = "<"
    met: int = 0
    items: int = 0
    kept: int = 0
    formats: tuple[struct.Struct, struct.Struct, struct.Struct] = field(init=False)

    def __post_init__(self) -> None:
        self.set_order(self.order)

    def set_order(self, order: str) -> None:
        self.order = order
        self.formats = (struct.Struct(order + "HH2sH"), struct.Struct(order + "HHI"), struct.Struct(order + "I"))

    def short(self, tag: int | None = None) -> Exception:
        """The error for running past the end: more bytes are needed, or the file is cut off."""
        if not self.complete:
            return NeedMoreError()
        spot = "its header" if tag is None else f"element {tags.describe(tag)}"
        return DamagedFileError(f"the file ends inside {spot}", where=self.where, fix=CUT_OFF)

    def keep(self, elements: Elements, tag: int, start: int, length: int) -> None:
        """Take a value over; too long ones are refused before they are read."""
        if length > MAX_VALUE_BYTES:
            raise DamagedFileError(
                f"expected at most {MAX_VALUE_BYTES} bytes in {tags.describe(tag)}, got {length}", where=self.where
            )
        if start + length > len(self.data):
            raise self.short(tag)
        elements[tag] = bytes(self.data[start : start + length])
        self.kept += length + _ELEMENT_BYTES

    def keep_item(self) -> None:
        """Count an item of a sequence that is kept."""
        self.items += 1
        self.kept += _ITEM_BYTES
        if self.items > MAX_ITEMS:
            raise self._endless()

    def _endless(self) -> DamagedFileError:
        """The error for headers that would take minutes to walk or gigabytes to keep."""
        return DamagedFileError(
            f"the header has more than {MAX_ELEMENTS} elements or {MAX_ITEMS} items",
            where=self.where,
            fix="This is no regular CT file",
        )

    def element(self, pos: int) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty when implicit), length and the place of the value."""
        explicit, implicit, long = self.formats
        self.met += 1
        if self.met > MAX_ELEMENTS:
            raise self._endless()
        try:
            if self.explicit:
                group, number, vr, length = explicit.unpack_from(self.data, pos)
                if group == 0xFFFE:
                    group, number, length = implicit.unpack_from(self.data, pos)
                    return (group << 16) | number, b"", length, pos + 8
                if vr in _LONG_VRS:
                    return (group << 16) | number, vr, long.unpack_from(self.data, pos + 8)[0], pos + 12
                return (group << 16) | number, vr, length, pos + 8
            group, number, length = implicit.unpack_from(self.data, pos)
            return (group << 16) | number, b"", length, pos + 8
        except struct.error:
            raise self.short() from None


def damaged_header(error: DamagedFileError, series_uid: str = "") -> DamagedHeaderError:
    """``error`` with the series it hurts, as far as that could be read."""
    damaged = DamagedHeaderError(error.message, where=error.where, fix=error.fix)
    damaged.series_uid = series_uid
    return damaged


def text_of(elements: Elements, tag: int) -> str:
    """The value of ``tag`` as stripped text, empty when absent or a sequence."""
    raw = elements.get(tag, b"")
    return raw.decode("latin-1").strip(" \0") if isinstance(raw, bytes) else ""


def shown(text: str) -> str:
    """A numeric value as a message may repeat it: lengths that lie can put anything into a value, also a name."""
    if len(text) <= MAX_SHOWN and _NUMERIC.fullmatch(text):
        return repr(text)
    return f"{len(text)} characters that are no number"


def coded(text: str) -> str:
    """A code string or UID as a message may repeat it (PS3.5 6.2: 16 characters, for UIDs 64), else what it is not."""
    return text if _CODE.fullmatch(text) else f"{len(text)} characters that are no code"


def scan(data: bytes, *, complete: bool, where: str) -> Header:
    """Read the header at the start of ``data``.

    Args:
        data: the first bytes of a file.
        complete: these are all its bytes.
        where: the file's name, for messages.

    Raises:
        NotDicomError: it does not begin like DICOM.
        NeedMoreError: the header goes on and ``complete`` is false.
        DamagedFileError: truncated, nested too deep, or lengths that make no sense.
    """
    cursor = _Cursor(data, complete, where)
    elements: Elements = {}
    try:
        return _scan(cursor, data, elements)
    except DamagedFileError as error:
        raise damaged_header(error, text_of(elements, tags.SERIES_UID)) from error


def _scan(cursor: _Cursor, data: bytes, elements: Elements) -> Header:
    if data[128:132] == b"DICM":
        pos = _scan_meta(cursor, elements)
    elif len(data) >= 8 and data[:2] in (b"\x02\x00", b"\x08\x00") and data[3] == 0:
        # No preamble (old archives): PS3.10 forbids it, but the first tag is unmistakable.
        pos = _scan_meta(cursor, elements, 0) if data[0] == 2 else 0
    else:
        raise NotDicomError
    syntax = text_of(elements, tags.TRANSFER_SYNTAX)
    if syntax == tags.EXPLICIT_BIG:
        cursor.set_order(">")
    if syntax == tags.DEFLATED:
        cursor.data, cursor.complete = _inflate_head(cursor, pos)
        pos = 0
    # Some writers say implicit and write explicit, or the reverse; the first element tells, since as a length two
    # letters would be more than 16 kB.
    cursor.explicit = bytes(cursor.data[pos + 4 : pos + 6]) in _VRS
    syntax = syntax or (tags.EXPLICIT_LITTLE if cursor.explicit else tags.IMPLICIT_LITTLE)
    pixel = _scan_elements(cursor, pos, len(cursor.data), elements, 0, top=True)[1]
    tag, offset, length = pixel or (None, 0, 0)
    if tag is None and tags.ROWS in elements and text_of(elements, tags.SOP_CLASS) in tags.CT_CLASSES:
        raise DamagedFileError("the file ends before its pixels", where=cursor.where, fix=CUT_OFF)
    known_length = None if length == _UNDEFINED else length
    return Header(
        elements, syntax, cursor.order == ">", tag, offset, known_length, cursor.where, cursor.met, cursor.kept
    )


def _scan_meta(cursor: _Cursor, elements: Elements, pos: int = 132) -> int:
    """Group 0002, always explicit little endian; returns where the data set begins."""
    while pos + 2 <= len(cursor.data) and bytes(cursor.data[pos : pos + 2]) == b"\x02\x00":
        tag, _, length, value = cursor.element(pos)
        if tag in tags.WANTED:
            cursor.keep(elements, tag, value, length)
        if value + length > len(cursor.data):
            raise cursor.short(tag)
        pos = value + length
    if pos + 8 > len(cursor.data):
        raise cursor.short()
    return pos


def _inflate_head(cursor: _Cursor, pos: int) -> tuple[bytes, bool]:
    """Inflate the first part of a deflated data set, as much as the compressed bytes given yield, under the cap."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    # Growing with the compressed bytes given keeps the pixels of a small file from being inflated twice.
    limit = min(MAX_HEADER_BYTES, max(2**16, 8 * len(cursor.data)))
    try:
        head = inflater.decompress(bytes(cursor.data[pos:]), limit)
    except zlib.error as error:
        raise DamagedFileError("the deflated data set cannot be inflated", where=cursor.where) from error
    return head, inflater.eof or (cursor.complete and len(head) < limit)


def _scan_elements(
    cursor: _Cursor, pos: int, end: int, elements: Elements, depth: int, *, top: bool = False
) -> tuple[int, tuple[int, int, int] | None]:
    """Collect the wanted elements of one data set or item; returns where it ends and the pixel element, if met."""
    if depth > MAX_DEPTH:
        raise DamagedFileError(
            f"sequences are nested more than {MAX_DEPTH} deep", where=cursor.where, fix="This is no regular CT file"
        )
    wanted, sequences = tags.WANTED, tags.SEQUENCES
    while pos < end:
        tag, vr, length, value = cursor.element(pos)
        if tag == _ITEM_END and not top:
            return value, None
        if top and tag in (tags.PIXELS, tags.FLOAT_PIXELS, tags.DOUBLE_PIXELS):
            return value, (tag, value, length)
        if length == _UNDEFINED or (tag in sequences and vr in (b"SQ", b"")):
            pos = _scan_sequence(cursor, tag, vr, value, length, elements, depth)
            continue
        if tag in wanted:
            cursor.keep(elements, tag, value, length)
        pos = value + length
        if pos > end:
            if pos > MAX_HEADER_BYTES:  # whatever comes there, nothing needs to be read to refuse it
                raise DamagedFileError(f"{length} bytes in {tags.describe(tag)} before the pixels", where=cursor.where)
            raise cursor.short(tag)
    if top and not cursor.complete:
        raise NeedMoreError
    return pos, None


def _scan_sequence(
    cursor: _Cursor, tag: int, vr: bytes, pos: int, length: int, elements: Elements, depth: int
) -> int:  # fmt: skip
    """Walk the items of one sequence, keeping them when wanted; returns the place after it."""
    end = len(cursor.data) if length == _UNDEFINED else pos + length
    if end > len(cursor.data):
        raise cursor.short(tag)
    if vr not in (b"SQ", b"", b"UN", b"OB", b"OW"):
        raise DamagedFileError(f"element {tags.describe(tag)} has no length", where=cursor.where)
    was_explicit = cursor.explicit
    if vr == b"UN":
        cursor.explicit = False  # PS3.5 6.2.2 note: UN of undefined length holds implicit little endian items
    items: list[Elements] = []
    while pos < end:
        item, _, size, pos = cursor.element(pos)
        if item == _SEQUENCE_END:
            break
        if item != _ITEM:
            raise DamagedFileError(f"sequence {tags.describe(tag)} holds no items", where=cursor.where)
        inner: Elements = {}
        pos = _scan_item(cursor, tag, pos, size, inner, depth + 1)
        if tag in tags.SEQUENCES:
            items.append(inner)
            cursor.keep_item()
    else:
        if length == _UNDEFINED:
            raise cursor.short(tag)
    cursor.explicit = was_explicit
    if tag in tags.SEQUENCES:
        elements[tag] = tuple(items)
    return pos


def _scan_item(cursor: _Cursor, tag: int, pos: int, size: int, inner: Elements, depth: int) -> int:
    """Walk one item of sequence ``tag``, or step over it when its length is known and it is not wanted."""
    if size == _UNDEFINED:
        return _scan_elements(cursor, pos, len(cursor.data), inner, depth)[0]
    if pos + size > len(cursor.data):
        raise cursor.short(tag)
    if tag in tags.SEQUENCES:
        _scan_elements(cursor, pos, pos + size, inner, depth)
    return pos + size
