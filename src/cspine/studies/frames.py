"""From the bytes of a file to stored pixel values of one frame: native, RLE, JPEG, JPEG-LS, JPEG 2000, HTJ2K.

The codecs are imagecodecs' (BSD; libjpeg-turbo, CharLS, OpenJPEG and OpenJPH inside): they let go of the interpreter
lock, so slices decode on all cores, which neither pydicom's plugins nor dicomsdl do.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import DamagedFileError, TooLargeError
from cspine.studies import tags
from cspine.studies.codestreams import CodestreamError, check_codestream
from cspine.studies.files import MAX_RATIO, check_bytes
from cspine.studies.header import CUT_OFF, Header, coded
from cspine.studies.instances import Instance, PixelFormat

Stored = NDArray[Any]
# What may follow the pixels of a deflated file (padding, digital signatures).
AFTER_PIXELS_BYTES = 2**20
# A file of more bytes than its header, twice its pixels and this explain is not read: what follows the pixels is short.
MAX_UNEXPLAINED_BYTES = 64 * 2**20
# A compressed frame is never much longer than the plain one.
_CODED_SLACK_BYTES = 2**16
# Deflated data below this may be as compressible as they like: one empty slice.
_RATIO_CHECKED_FROM_BYTES = 64 * 2**20
# Runs of an RLE segment may overlap its end by an encoder's last packet (PS3.5 G.3.1: 128 bytes at most).
_RLE_SLACK_BYTES = 256
_NATIVE = frozenset((tags.IMPLICIT_LITTLE, tags.EXPLICIT_LITTLE, tags.EXPLICIT_BIG, tags.DEFLATED))
# EOI of JPEG and JPEG-LS, EOC of JPEG 2000; a fragment may be padded with zeros after it.
_END_MARKER = b"\xff\xd9"
_MARKED = tags.JPEG | tags.JPEG_LS | tags.JPEG_2000
_ITEM_HEADER = struct.Struct("<HHI")
_UNDEFINED = 0xFFFFFFFF


def check_size(instance: Instance) -> None:
    """Refuse a file that holds far more than its header and pixels, before it is read.

    Raises:
        TooLargeError: it does.
    """
    header, fmt = instance.header, instance.format
    explained = header.pixel_offset + 2 * fmt.frame_bytes * fmt.frames
    check_bytes(instance.file.size, explained + MAX_UNEXPLAINED_BYTES, "the file", where=instance.file.name)


def read_file(instance: Instance) -> bytes:
    """All bytes of an image's file.

    Raises:
        TooLargeError: there are far more than its header and pixels explain.
        DamagedFileError: it cannot be read.
    """
    check_size(instance)
    return instance.file.read()


class PixelSource:
    """The frames of one file.

    Args:
        data: all bytes of the file (``bytes`` or a memory map).
        header: what ``header.scan`` read from them.
        fmt: the pixel format.

    Raises:
        DamagedFileError: pixel data are absent, too short, or coded in an unknown way.
    """

    def __init__(self, data: bytes | memoryview, header: Header, fmt: PixelFormat) -> None:
        self.header = header
        self.format = fmt
        if header.pixel_tag != tags.PIXELS:
            raise DamagedFileError("expected integer PixelData, got floating point", where=header.where)
        self.data = _inflate(data, header, fmt) if header.syntax == tags.DEFLATED else data
        self.native = header.syntax in _NATIVE
        if self.native:
            self._check_native()
            self.spans: list[list[tuple[int, int]]] = []
        else:
            self.spans = _frame_spans(self.data, header, fmt.frames)
            self.decode = _decoder(header, fmt)

    def _check_native(self) -> None:
        needed = self.format.frame_bytes * self.format.frames
        there = len(self.data) - self.header.pixel_offset
        said = self.header.pixel_length
        if said is None or said < needed or there < needed:
            got = there if said is None or there < said else said
            raise DamagedFileError(
                f"expected {needed} bytes of pixels, got {got}",
                where=self.header.where,
                fix=CUT_OFF,
            )

    def frame(self, index: int) -> Stored:
        """Stored values ``[y, x]`` of one frame, in the machine's byte order, before masking to the bits stored.

        Raises:
            DamagedFileError: the frame does not decode to the size the header gives.
        """
        fmt = self.format
        kind = np.dtype(f"{'i' if fmt.signed else 'u'}{fmt.allocated // 8}")
        if self.native:
            start = self.header.pixel_offset + index * fmt.frame_bytes
            coded_as = kind.newbyteorder(">" if self.header.big_endian else "<")
            flat = np.frombuffer(self.data, coded_as, fmt.rows * fmt.columns, start)
            return flat.reshape(fmt.rows, fmt.columns)
        length = sum(stop - start for start, stop in self.spans[index])
        if length > 2 * fmt.frame_bytes + _CODED_SLACK_BYTES:
            raise DamagedFileError(
                f"a compressed image of {length} bytes for {fmt.frame_bytes} bytes of pixels", where=self.header.where
            )
        image = self._decoded(b"".join(bytes(self.data[start:stop]) for start, stop in self.spans[index]))
        if image.shape != (fmt.rows, fmt.columns) or image.dtype.kind not in "ui" or image.itemsize > kind.itemsize:
            raise DamagedFileError(
                f"expected a {fmt.columns}x{fmt.rows} image of {fmt.allocated} bits, "
                f"got shape {image.shape} of {image.dtype}",
                where=self.header.where,
            )
        return image.astype(kind, copy=False) if image.itemsize < kind.itemsize else image.view(kind)

    def _decoded(self, data: bytes) -> Stored:
        # libjpeg and OpenJPEG paint what they have of a stream that breaks off, and call it an image.
        if self.header.syntax in _MARKED and data.rstrip(b"\0")[-2:] != _END_MARKER:
            raise DamagedFileError(
                "the compressed image breaks off before its end marker", where=self.header.where, fix=CUT_OFF
            )
        try:
            # The stream's own claims are compared with the header before the codec takes memory for them.
            return self.decode(check_codestream(data, self.header.syntax, self.format))
        except CodestreamError as error:
            raise DamagedFileError(str(error), where=self.header.where) from error
        except MemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, struct.error) as error:  # codecs raise kinds of RuntimeError
            raise DamagedFileError(
                f"the compressed image cannot be decoded: {str(error)[:120]}", where=self.header.where
            ) from error


def _decoder(header: Header, fmt: PixelFormat) -> Callable[[bytes], Stored]:
    """The codec of a transfer syntax; imported on first use because plain files need none."""
    syntax = header.syntax
    if syntax == tags.RLE:
        return lambda data: _decode_rle(data, fmt)
    import imagecodecs

    if syntax in tags.JPEG:
        return lambda data: np.asarray(imagecodecs.jpeg8_decode(data))
    if syntax in tags.JPEG_LS:
        return lambda data: np.asarray(imagecodecs.jpegls_decode(data))
    if syntax in tags.JPEG_2000:
        # OpenJPEG for High-Throughput JPEG 2000 too: imagecodecs' OpenJPH is faster, but drops its errors and hands out
        # whatever it has by then.
        return lambda data: np.asarray(imagecodecs.jpeg2k_decode(data))
    raise DamagedFileError(
        f"transfer syntax {coded(syntax)} is not one that CT comes in",
        where=header.where,
        fix="Export the series uncompressed or as JPEG Lossless",
    )


def _decode_rle(data: bytes, fmt: PixelFormat) -> Stored:
    """DICOM RLE, PS3.5 annex G: one PackBits segment a byte plane, most significant first."""
    import imagecodecs

    planes = fmt.allocated // 8
    offsets = struct.unpack_from("<16I", data)
    if offsets[0] != planes:
        raise ValueError(f"{offsets[0]} segments instead of {planes}")
    edges = [*offsets[1 : planes + 1], len(data)]
    out = np.empty((fmt.rows * fmt.columns, planes), np.uint8)
    # PackBits makes up to 64 bytes out of one; what does not fit here is an error.
    room = len(out) + _RLE_SLACK_BYTES
    for k in range(planes):
        segment = data[edges[k] : edges[k + 1]]
        values = np.frombuffer(imagecodecs.packbits_decode(segment, out=room), np.uint8)
        if len(values) < len(out):
            raise ValueError("a segment is too short")
        out[:, planes - 1 - k] = values[: len(out)]
    return out.view(np.dtype(f"<u{planes}")).reshape(fmt.rows, fmt.columns)


def data_set_start(view: memoryview) -> int:
    """Where the data set begins after preamble and group 0002 of a file that ``header.scan`` has read."""
    start = 132
    while bytes(view[start : start + 2]) == b"\x02\x00":
        vr = bytes(view[start + 4 : start + 6])
        long = vr in (b"OB", b"UN", b"UT", b"OW")
        length = struct.unpack_from("<I" if long else "<H", view, start + (8 if long else 6))[0]
        start += (12 if long else 8) + length
    return start


def _inflate(data: bytes | memoryview, header: Header, fmt: PixelFormat) -> bytes:
    """The whole deflated data set, under a cap that follows from the size the header gives."""
    view = memoryview(data)
    start = data_set_start(view)
    cap = header.pixel_offset + fmt.frame_bytes * fmt.frames + AFTER_PIXELS_BYTES
    if cap > max(_RATIO_CHECKED_FROM_BYTES, MAX_RATIO * len(view)):
        raise TooLargeError(
            f"the deflated data set claims {cap / len(view):.0f} times its size, at most {MAX_RATIO} is inflated",
            where=header.where,
        )
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return inflater.decompress(view[start:], cap)
    except zlib.error as error:
        raise DamagedFileError("the deflated data set cannot be inflated", where=header.where) from error


def _frame_spans(data: bytes | memoryview, header: Header, frames: int) -> list[list[tuple[int, int]]]:
    """Byte ranges of the fragments of each frame, PS3.5 A.4."""
    if header.pixel_length is not None:
        raise DamagedFileError("compressed pixels need fragments, got one block", where=header.where)
    fragments: list[tuple[int, int]] = []
    pos = header.pixel_offset
    while pos + 8 <= len(data):
        group, element, length = _ITEM_HEADER.unpack_from(data, pos)
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        stop = pos + 8 + length
        if (group, element) != (0xFFFE, 0xE000) or length == _UNDEFINED or stop > len(data):
            raise DamagedFileError("the file ends inside its compressed pixels", where=header.where, fix=CUT_OFF)
        fragments.append((pos + 8, stop))
        pos = stop
    else:
        raise DamagedFileError("the file ends inside its compressed pixels", where=header.where, fix=CUT_OFF)
    if len(fragments) < 2:
        raise DamagedFileError("no compressed image", where=header.where)
    table, images = fragments[0], fragments[1:]
    if frames == 1:
        return [images]
    if len(images) == frames:
        return [[span] for span in images]
    starts = np.frombuffer(data, "<u4", (table[1] - table[0]) // 4, table[0]).astype(np.int64) + images[0][0] - 8
    if len(starts) != frames:
        raise DamagedFileError(
            f"{frames} frames in {len(images)} fragments and no table that says which is which", where=header.where
        )
    owner = np.searchsorted(starts, [start - 8 for start, _ in images], side="right") - 1
    return [[span for span, k in zip(images, owner, strict=True) if k == frame] for frame in range(frames)]
