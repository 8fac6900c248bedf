"""Compressed images may carry comments and camera data of their own: they are blanked where they lie.

JPEG and JPEG-LS: segments APPn and COM before the scan (ISO/IEC 10918-1 B.2.4.5, B.2.4.6). JPEG 2000: segments COM of
the main header (ISO/IEC 15444-1 A.9.2). Lengths stay as they are, so that nothing moves.
"""

from __future__ import annotations

import struct

from cspine.studies import tags

_START, _SCAN = 0xD8, 0xDA
_COM, _APP0, _APP15 = 0xFE, 0xE0, 0xEF
_J2K_START, _J2K_TILE, _J2K_COM = b"\xff\x4f", 0x90, 0x64


def without_comments(encapsulated: bytes, syntax: str) -> bytes:
    """The value of an encapsulated PixelData with comments of its frames blanked; other kinds come back as they are.

    Args:
        encapsulated: items as in PS3.5 A.4, the offset table first.
        syntax: UID of the transfer syntax.
    """
    if syntax in tags.JPEG or syntax in tags.JPEG_LS:
        blank = _blank_jpeg
    elif syntax in tags.JPEG_2000:
        blank = _blank_j2k
    else:
        return encapsulated
    data, pos = bytearray(encapsulated), 0
    while pos + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, pos)
        if (group, element) != (0xFFFE, 0xE000) or pos + 8 + length > len(data):
            break
        blank(data, pos + 8, pos + 8 + length)
        pos += 8 + length
    return bytes(data)


def _blank_jpeg(data: bytearray, pos: int, end: int) -> None:
    if data[pos : pos + 2] != bytes((0xFF, _START)):
        return  # an offset table, or a frame that goes on in this fragment
    pos += 2
    while pos + 4 <= end and data[pos] == 0xFF and data[pos + 1] != _SCAN:
        marker, length = data[pos + 1], struct.unpack_from(">H", data, pos + 2)[0]
        if marker == _COM or _APP0 <= marker <= _APP15:
            _zero(data, pos + 4, min(pos + 2 + length, end))
        pos += 2 + max(length, 2)


def _blank_j2k(data: bytearray, pos: int, end: int) -> None:
    if data[pos : pos + 2] != _J2K_START:
        return
    pos += 2
    while pos + 4 <= end and data[pos] == 0xFF and data[pos + 1] != _J2K_TILE:
        marker, length = data[pos + 1], struct.unpack_from(">H", data, pos + 2)[0]
        if marker == _J2K_COM:
            _zero(data, pos + 6, min(pos + 2 + length, end))
        pos += 2 + max(length, 2)


def _zero(data: bytearray, start: int, end: int) -> None:
    if end > start:
        data[start:end] = bytes(end - start)
