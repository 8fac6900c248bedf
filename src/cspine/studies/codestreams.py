"""What a compressed image says of itself, read before a codec sees it: sizes, components and tiles that cost memory.

Codecs take memory for what a stream claims, and are written in C. They are shown only streams of the kind that the
transfer syntax allows and of the size that the DICOM header gives: JPEG (ISO/IEC 10918-1 annex B), JPEG-LS (ISO/IEC
14495-1 annex C) and JPEG 2000 (ISO/IEC 15444-1 annex A).
"""

from __future__ import annotations

import struct

from cspine.studies import tags
from cspine.studies.instances import PixelFormat

# Tiles of JPEG 2000; each costs a codec some kilobytes. CT has one, or squares of 64 pixels and more.
MAX_TILES = 4096
# Decomposition levels (PS3.5 A.4.4 does not limit them, ISO 15444-1 does at 32); writers use 5 or 6.
MAX_LEVELS = 32
# Quality layers; writers of CT use 1, some 20.
MAX_LAYERS = 100
# Frame headers: baseline, extended sequential, lossless. Progressive is not among the transfer syntaxes of CT, and its
# scans without number would take hours.
_JPEG, _JPEG_LS = frozenset((0xC0, 0xC1, 0xC3)), frozenset((0xF7,))
_START = b"\xff\xd8"
# Markers that stand alone, B.1.1.3: TEM and RST0 to RST7.
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
# Frame headers of any process; C4, C8 and CC are tables and a reserved one.
_FRAMES = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | _JPEG_LS
_END_OF_HEADER = frozenset((0xD8, 0xD9, 0xDA))
_J2K_START = b"\xff\x4f\xff\x51"
_COD = 0x52


class CodestreamError(ValueError):
    """The stream is not what the header says; ``str`` is a reason of our own words."""


def check_codestream(data: bytes, syntax: str, fmt: PixelFormat) -> bytes:
    """The part of a compressed frame that a codec may see.

    Args:
        data: the fragments of one frame.
        syntax: transfer syntax UID.
        fmt: what the DICOM header says.

    Raises:
        CodestreamError: its own header is absent, or claims another size or kind of image.
    """
    try:
        if syntax in tags.JPEG_2000:
            return _check_jpeg_2000(data, fmt)
        if syntax in tags.JPEG | tags.JPEG_LS:
            return _check_jpeg(data, syntax, fmt)
    except struct.error:
        raise CodestreamError("the compressed image ends inside its header") from None
    return data


def _check_jpeg(data: bytes, syntax: str, fmt: PixelFormat) -> bytes:
    kinds = _JPEG_LS if syntax in tags.JPEG_LS else _JPEG
    frame = None
    pos = 2
    if data[:2] != _START:
        raise CodestreamError("the compressed image does not begin like one")
    while True:
        if data[pos : pos + 1] != b"\xff":
            raise CodestreamError("the compressed image has no header")
        marker = data[pos + 1] if pos + 1 < len(data) else 0
        if marker == 0xFF:  # fill
            pos += 1
            continue
        if marker in _ALONE:
            pos += 2
            continue
        if marker in _END_OF_HEADER or marker == 0:
            break
        if marker in _FRAMES:
            if marker not in kinds or frame is not None:
                raise CodestreamError("the compressed image is of a process that its transfer syntax does not have")
            frame = struct.unpack_from(">BHHB", data, pos + 4)
        length = struct.unpack_from(">H", data, pos + 2)[0]
        if length < 2:
            raise CodestreamError("the compressed image has a segment without length")
        pos += 2 + length
    if frame is None:
        raise CodestreamError("the compressed image has no frame header")
    bits, rows, columns, components = frame
    _compare(rows, columns, components, bits, fmt)
    return data


def _check_jpeg_2000(data: bytes, fmt: PixelFormat) -> bytes:
    # Some writers put the file format around the codestream, which DICOM does not allow; the codec gets the stream.
    start = data.find(_J2K_START)
    if start < 0:
        raise CodestreamError("the compressed image does not begin like one")
    stream = data[start:]
    x1, y1, x0, y0, wide, high, tile_x, tile_y, components, bits = struct.unpack_from(">8IHB", stream, 8)
    if not (x0 < x1 and y0 < y1 and tile_x <= x0 and tile_y <= y0 and wide > 0 and high > 0):
        raise CodestreamError("the compressed image has sizes that make no sense")
    _compare(y1 - y0, x1 - x0, components, (bits & 0x7F) + 1, fmt)
    tiles = -(-(x1 - tile_x) // wide) * -(-(y1 - tile_y) // high)
    if tiles > MAX_TILES:
        raise CodestreamError(f"the compressed image has {tiles} tiles, at most {MAX_TILES} are read")
    _check_style(stream)
    return stream


def _check_style(stream: bytes) -> None:
    """Layers and levels of the default coding style (COD, A.6.1) in the main header."""
    pos = 2
    while pos + 4 <= len(stream):
        mark, marker, length = struct.unpack_from(">BBH", stream, pos)
        if mark != 0xFF or length < 2:
            raise CodestreamError("the compressed image has a segment that makes no sense")
        if marker == 0x90:  # SOT: the main header is over
            return
        if marker == _COD:
            layers, levels = struct.unpack_from(">xHxB", stream, pos + 5)
            if layers > MAX_LAYERS or levels > MAX_LEVELS:
                raise CodestreamError(f"the compressed image has {layers} layers and {levels} levels")
        pos += 2 + length


def _compare(rows: int, columns: int, components: int, bits: int, fmt: PixelFormat) -> None:
    if (rows, columns) != (fmt.rows, fmt.columns):
        raise CodestreamError(f"expected {fmt.columns}x{fmt.rows} pixels, the compressed image says {columns}x{rows}")
    if components != 1 or bits > fmt.allocated:
        raise CodestreamError(
            f"expected one value of at most {fmt.allocated} bits a pixel, the compressed image says {components} of "
            f"{bits} bits"
        )
