"""Small files that claim much: what a reader without limits would pay for with its memory. All made here, by hand."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from cspine.studies.frames import data_set_start
from dicom_factory import make_slice, save, write_enhanced
from fuzz_mutations import with_syntax
from fuzz_reader_target import GRID, SYNTAXES, deflated

MIB = 2**20
GIB = 2**30
UNDEFINED = b"\xff\xff\xff\xff"
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
PATIENT_TAG = b"\x10\x00\x10\x00"
ROWS, FRAMES_AND_ROWS = b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x08\x00IS"


def plain_slice(path: Path, syntax: str = SYNTAXES["plain"]) -> bytes:
    """One valid slice."""
    save(make_slice(GRID, 0, 0), path, syntax)
    return path.read_bytes()


def before_patient(data: bytes, inserted: bytes) -> bytes:
    """``data`` with elements of group 0009 put where they belong."""
    at = data.index(PATIENT_TAG)
    return data[:at] + inserted + data[at:]


def private(length: int, value: bytes = b"") -> bytes:
    """A private element that says it has ``length`` bytes."""
    return b"\x09\x00\x10\x10OB\0\0" + struct.pack("<I", length) + value


def sized(data: bytes, rows: int, columns: int) -> bytes:
    """Other Rows and Columns."""
    at = data.index(ROWS)
    return (
        data[: at + 8]
        + struct.pack("<H", rows)
        + data[at + 10 : at + 18]
        + struct.pack("<H", columns)
        + data[at + 20 :]
    )


def with_pixels(data: bytes, *fragments: bytes, syntax: str) -> bytes:
    """A plain slice whose pixels are replaced by fragments."""
    at = data.rindex(b"\xe0\x7f\x10\x00")
    body = b"".join(ITEM + struct.pack("<I", len(part)) + part for part in (b"", *fragments))
    return with_syntax(data[:at], syntax.encode()) + b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED + body + END + bytes(4)


def nested(depth: int, *, explicit: bool = True) -> bytes:
    """Referenced Image Sequences in each other, without ends."""
    return (b"\x08\x00\x40\x11" + (b"SQ\0\0" if explicit else b"") + UNDEFINED + ITEM + UNDEFINED) * depth


def sparse(path: Path, data: bytes, size: int) -> None:
    """A file of ``size`` bytes that takes no room on the disk."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.truncate(size)


# JPEG, JPEG-LS and JPEG 2000 headers, with nothing behind them -------------------------------------------------------


def jpeg(rows: int, columns: int, *, kind: int = 0xC3, components: int = 1, scans: int = 1) -> bytes:
    """A JPEG that claims a size."""
    parts = b"".join(bytes((k + 1, 0x11, 0)) for k in range(components))
    frame = struct.pack(
        ">BBHBHHB", 0xFF, kind, 8 + 3 * components, 16 if kind in (0xC3, 0xF7) else 8, rows, columns, components
    )
    tables = b"\xff\xc4" + struct.pack(">HB", 19 + 1, 0) + bytes((1, *([0] * 15))) + b"\0"
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0) + b"\0\0"
    return b"\xff\xd8" + frame + parts + tables + scan * scans + b"\xff\xd9"


def jpeg_2000(rows: int, columns: int, *, components: int = 1, tile: int = 0, layers: int = 1) -> bytes:
    """A JPEG 2000 codestream that claims a size."""
    wide, high = tile or columns, tile or rows
    size = struct.pack(">HIIIIIIIIH", 0, columns, rows, 0, 0, wide, high, 0, 0, components)
    size = b"\xff\x51" + struct.pack(">H", 38 + 3 * components) + size + b"\x0f\x01\x01" * components
    style = b"\xff\x52" + struct.pack(">HBBHBBBBBB", 12, 0, 0, layers, 0, 5, 4, 4, 0, 1)
    quantities = b"\xff\x5c" + struct.pack(">HB", 19, 0x40) + bytes(16)
    part = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14, 0, 1) + b"\xff\x93"
    return b"\xff\x4f" + size + style + quantities + part + b"\xff\xd9"


# Files --------------------------------------------------------------------------------------------------------------


def _deflated_header(path: Path) -> None:
    data = plain_slice(path)
    huge = 300 * MIB
    path.write_bytes(
        deflated(data, before_patient(data[data_set_start(memoryview(data)) :], private(huge, bytes(huge))))
    )


def _deflated_pixels(path: Path) -> None:
    data = plain_slice(path)
    path.write_bytes(deflated(data, data[data_set_start(memoryview(data)) :] + bytes(300 * MIB)))


def _deflated_frames(path: Path) -> None:
    """A thousand empty frames of 512 x 512, which the header really says: 500 MB out of 500 kB."""
    write_enhanced(path, GRID)
    data = sized(path.read_bytes(), 512, 512)
    path.write_bytes(deflated(data, data[data_set_start(memoryview(data)) :] + bytes(2 * MIB * 64)))


def _items(path: Path) -> None:
    """Five million empty items in a sequence that the reader keeps: 40 MB of header in 40 kB."""
    data = plain_slice(path)
    items = (ITEM + bytes(4)) * 5_000_000
    body = data[data_set_start(memoryview(data)) :]
    at = body.rindex(b"\xe0\x7f\x10\x00")
    groups = b"\x00\x52\x29\x92SQ\0\0" + struct.pack("<I", len(items)) + items
    path.write_bytes(deflated(data, body[:at] + groups + body[at:]))


def _frames(path: Path) -> None:
    """A tiny file of a hundred thousand frames."""
    data = plain_slice(path)
    at = data.index(ROWS)
    path.write_bytes(data[:at] + FRAMES_AND_ROWS + struct.pack("<H", 6) + b"100000" + data[at:])


def _rle(path: Path, rows: int, columns: int, runs: int) -> None:
    """One RLE frame whose two segments are ``runs`` runs of 128 zeros each."""
    segment = b"\x81\x00" * runs
    frame = struct.pack("<16I", 2, 64, 64 + len(segment), *([0] * 13)) + segment * 2
    path.write_bytes(with_pixels(sized(plain_slice(path), rows, columns), frame, syntax=SYNTAXES["rle"]))


def _coded(path: Path, codestream: bytes, syntax: str, rows: int = 12, columns: int = 12) -> None:
    path.write_bytes(with_pixels(sized(plain_slice(path), rows, columns), codestream, syntax=SYNTAXES[syntax]))


def _long_private(path: Path) -> None:
    sparse(path, before_patient(plain_slice(path), private(0xFFFFFFF0))[:2000], 5 * GIB)


def _long_value(path: Path) -> None:
    data = plain_slice(path)
    at = data.index(PATIENT_TAG)
    sparse(path, data[:at] + b"\x08\x00\x3e\x10UT\0\0" + struct.pack("<I", 3 * GIB), 4 * GIB)


def _long_tail(path: Path) -> None:
    sparse(path, plain_slice(path), 6 * GIB)


def _deep(path: Path, *, explicit: bool) -> None:
    data = plain_slice(path, SYNTAXES["plain" if explicit else "implicit"])
    path.write_bytes(before_patient(data, nested(10_000, explicit=explicit)))


def _zip_ratio(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", bytes(200 * MIB))


def _zip_of_bombs(path: Path) -> None:
    inside = path.with_suffix(".inside")
    _deflated_header(inside)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for k in range(5):
            archive.writestr(f"{k}.dcm", inside.read_bytes())


def _zip_lzma(path: Path) -> None:
    """An entry whose LZMA header claims a dictionary of 4 GiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.dcm", bytes(1000))
    data = path.read_bytes()
    at = data.index(b"a.dcm") + 5 + 4 + 1
    path.write_bytes(data[:at] + UNDEFINED + data[at + 4 :])


def _nifti(shape: tuple[int, int, int], body: bytes, *, packed: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.int16)
        header.set_data_shape(shape)
        header.set_sform(np.eye(4), 1)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        data = header.binaryblock + bytes(4) + body
        path.write_bytes(gzip.compress(data, 1) if packed else data)

    return write


def _png(path: Path, width: int, height: int, *chunks: tuple[bytes, bytes]) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rest = b"".join(chunk(*part) for part in (*chunks, (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rest)


def _jpg(path: Path) -> None:
    path.write_bytes(jpeg(65_000, 65_000, kind=0xC0))


def _tiff(path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "TIFF")
    data = bytearray(stream.getvalue())
    for tag in (256, 257):  # ImageWidth, ImageLength
        at = data.index(
            struct.pack("<HH", tag, 4) if struct.pack("<HH", tag, 4) in data else struct.pack("<HH", tag, 3)
        )
        data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 100_000)
    path.write_bytes(bytes(data))


HUGE_TEXT = zlib.compress(bytes(200 * MIB), 9)

# Name with the file's ending, how it is opened, what writes it, and a part of the code of the error that ends it.
BOMBS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "deflated-header.dcm": (_deflated_header, ("damaged-file",)),
    "deflated-pixels.dcm": (_deflated_pixels, ("geometry",)),
    "deflated-frames.dcm": (_deflated_frames, ("damaged-file", "too-large", "geometry")),
    "items.dcm": (_items, ("damaged-file",)),
    "frames.dcm": (_frames, ("geometry",)),
    "rle-30000.dcm": (lambda path: _rle(path, 30_000, 30_000, 10), ("damaged-file",)),
    "rle-16384.dcm": (lambda path: _rle(path, 16_384, 16_384, 10), ("damaged-file", "too-large")),
    "rle-explodes.dcm": (lambda path: _rle(path, 12, 12, 1_000_000), ("damaged-file",)),
    "rle-explodes-a-little.dcm": (lambda path: _rle(path, 12, 12, 15_000), ("damaged-file",)),
    "jpeg.dcm": (lambda path: _coded(path, jpeg(65_500, 65_500), "jpeg"), ("damaged-file",)),
    "jpeg-colour.dcm": (lambda path: _coded(path, jpeg(12, 12, components=200), "jpeg"), ("damaged-file",)),
    "jpeg-scans.dcm": (lambda path: _coded(path, jpeg(12, 12, kind=0xC2, scans=6000), "jpeg"), ("damaged-file",)),
    "jpeg-ls.dcm": (lambda path: _coded(path, jpeg(65_500, 65_500, kind=0xF7), "jpeg-ls"), ("damaged-file",)),
    "jpeg-2000.dcm": (lambda path: _coded(path, jpeg_2000(60_000, 60_000), "jpeg-2000"), ("damaged-file",)),
    "jpeg-2000-colours.dcm": (
        lambda path: _coded(path, jpeg_2000(4000, 4000, components=16_000), "jpeg-2000", 4000, 4000), ("damaged-file",)
    ),
    "jpeg-2000-tiles.dcm": (
        lambda path: _coded(path, jpeg_2000(250, 250, tile=1), "jpeg-2000", 250, 250), ("damaged-file",)
    ),
    "jpeg-2000-layers.dcm": (
        lambda path: _coded(path, jpeg_2000(12, 12, layers=65_535), "jpeg-2000"), ("damaged-file",)
    ),
    "long-private.dcm": (_long_private, ("damaged-file",)),
    "long-value.dcm": (_long_value, ("damaged-file",)),
    "long-tail.dcm": (_long_tail, ("too-large", "geometry")),
    "deep-explicit.dcm": (lambda path: _deep(path, explicit=True), ("damaged-file",)),
    "deep-implicit.dcm": (lambda path: _deep(path, explicit=False), ("damaged-file",)),
    "ratio.zip": (_zip_ratio, ("unsafe-archive",)),
    "bombs.zip": (_zip_of_bombs, ("damaged-file",)),
    "lzma.zip": (_zip_lzma, ("unsafe-archive",)),
    "absurd.nii": (_nifti((32_767, 32_767, 32_767), b"", packed=False), ("too-large",)),
    "claims.nii": (_nifti((500, 500, 100), b"", packed=False), ("damaged-file",)),
    "bomb.nii.gz": (_nifti((1000, 1000, 100), bytes(200 * MIB), packed=True), ("too-large",)),
    "tail.nii.gz": (_nifti((8, 8, 8), bytes(300 * MIB), packed=True), ("intensity",)),
    "claims.png": (lambda path: _png(path, 60_000, 60_000), ("too-large",)),
    "text.png": (lambda path: _png(path, 8, 8, (b"zTXt", b"k\0\0" + HUGE_TEXT)), ("damaged-file",)),
    "profile.png": (lambda path: _png(path, 8, 8, (b"iCCP", b"k\0\0" + HUGE_TEXT)), ("damaged-file",)),
    "claims.jpg": (_jpg, ("too-large", "damaged-file")),
    "claims.tif": (_tiff, ("too-large", "damaged-file")),
    "long.png": (lambda path: sparse(path, b"\x89PNG\r\n\x1a\n", 4 * GIB), ("too-large",)),
}  # fmt: skip


def write(folder: Path) -> list[Path]:
    """All of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in BOMBS.items():
        make(folder / name)
    return [folder / name for name in BOMBS]
