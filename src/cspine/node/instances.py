"""One received instance as bytes: what it is, whether it is whole, and the Part 10 file that holds it.

Only the header is looked at, with the bounded scanner of ``studies``; pixels are hashed, never decoded.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass

from cspine.errors import DamagedFileError
from cspine.studies import header, tags

# PS3.5 9.1: digits and dots, no leading zeros, at most 64 characters.
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", re.ASCII)
# UUID-derived, drawn once for cspine; in the (0002,0012) of every file that the node writes.
IMPLEMENTATION_UID = "2.25.302853107764920531462984720371645518093"
IMPLEMENTATION_NAME = "CSPINE_NODE"
PREAMBLE = bytes(128) + b"DICM"
# A header of one slice is some kilobytes; more is looked at only when it does not end in what there is.
_FIRST_LOOK = 64 * 1024

# What ``studies`` decodes; the service accepts no other.
SYNTAXES = (
    tags.EXPLICIT_LITTLE,
    tags.IMPLICIT_LITTLE,
    *sorted(tags.JPEG | tags.JPEG_LS | tags.JPEG_2000 - tags.HTJ2K),
    *sorted(tags.HTJ2K),
    tags.RLE,
    tags.DEFLATED,
    tags.EXPLICIT_BIG,
)


class UnreadableError(Exception):
    """The bytes are no CT instance; ``str`` is a reason of our own words."""


@dataclass(frozen=True, slots=True)
class Instance:
    """What a received instance says of itself.

    Attributes:
        sop_class: SOP Class UID.
        sop: SOP Instance UID.
        series: Series Instance UID.
        study: Study Instance UID.
        syntax: transfer syntax UID.
        head: SHA-256 of everything before the pixels, 64 hexadecimal digits.
        pixels: SHA-256 of the pixels as encoded, and of what follows them.
    """

    sop_class: str
    sop: str
    series: str
    study: str
    syntax: str
    head: str
    pixels: str

    @property
    def digest(self) -> str:
        """SHA-256 of the whole content."""
        return content_digest(self.head, self.pixels)


def content_digest(head: str, pixels: str) -> str:
    """SHA-256 of a whole content, from those of its two parts."""
    return hashlib.sha256(f"{head}{pixels}".encode()).hexdigest()


def is_uid(text: str) -> bool:
    """Whether ``text`` is a UID by the rules of PS3.5 9.1."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def file_header(sop_class: str, sop: str, syntax: str) -> bytes:
    """Preamble of zeros, ``DICM`` and File Meta Information (PS3.10 7.1), to stand before a data set as received."""
    elements = b"".join(
        (
            struct.pack("<HH2sHI2s", 2, 0x0001, b"OB", 0, 2, b"\0\1"),  # version
            _element(0x0002, b"UI", sop_class.encode("ascii")),
            _element(0x0003, b"UI", sop.encode("ascii")),
            _element(0x0010, b"UI", syntax.encode("ascii")),
            _IMPLEMENTATION,
        )
    )
    return PREAMBLE + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements)) + elements


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    """An element of group 0002, explicit VR little endian; text is padded as its VR asks (PS3.5 6.2)."""
    padded = value + (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 2, number, vr, len(padded)) + padded


_IMPLEMENTATION = _element(0x0012, b"UI", IMPLEMENTATION_UID.encode()) + _element(
    0x0013, b"SH", IMPLEMENTATION_NAME.encode()
)


def dataset_start(data: bytes | memoryview) -> int:
    """Where the data set begins in a Part 10 file, from its group length (0002,0000).

    Raises:
        UnreadableError: no Part 10 file, or it does not say.
    """
    try:
        tag, length = struct.unpack_from("<I4xI", data, len(PREAMBLE))
    except struct.error:
        raise UnreadableError("too short for a DICOM file") from None
    if bytes(data[128:132]) != b"DICM" or tag != 0x00000002:
        raise UnreadableError("not a DICOM file")
    start: int = len(PREAMBLE) + 12 + length
    if start > len(data):
        raise UnreadableError("the file ends inside its header")
    return start


def describe(head: bytes, data: memoryview) -> Instance:
    """Look at an instance in memory.

    Args:
        head: the Part 10 header (``file_header``).
        data: the data set as received.

    Raises:
        UnreadableError: damaged, cut off, without pixels, or without one of the UIDs.
    """
    found = _scan(head, data)
    names = (tags.SOP_CLASS, tags.SOP_INSTANCE, tags.SERIES_UID, tags.STUDY_UID)
    uids = [found.text(tag) for tag in names]
    if not all(is_uid(uid) for uid in uids):
        raise UnreadableError("a UID of SOP class, instance, series or study is absent or malformed")
    if uids[0] not in tags.CT_CLASSES:
        raise UnreadableError("not a CT image")
    if found.pixel_tag is None:
        raise UnreadableError("no pixels")
    sop_class, sop, series, study = uids
    if found.syntax == tags.DEFLATED:
        start = 0  # where the pixels begin is known in the inflated stream only
    else:
        start = found.pixel_offset - len(head)
        if found.pixel_length is not None and start + found.pixel_length > len(data):
            raise UnreadableError("the pixels are cut off")
    return Instance(
        sop_class,
        sop,
        series,
        study,
        found.syntax,
        hashlib.sha256(data[:start]).hexdigest(),
        hashlib.sha256(data[start:]).hexdigest(),
    )


def _scan(head: bytes, data: memoryview) -> header.Header:
    size = _FIRST_LOOK
    while True:
        complete = size >= len(data)
        try:
            return header.scan(head + bytes(data[:size]), complete=complete, where="received instance")
        except header.NeedMoreError:
            if complete:  # a deflated data set that goes on and on: what was inflated is capped
                raise UnreadableError("the header does not end") from None
            size *= 8
        except header.NotDicomError:
            raise UnreadableError("not a DICOM file") from None
        except DamagedFileError as error:
            raise UnreadableError(error.message) from error
