"""Damaged and hostile files end in one typed error that names the file; nothing hangs, crashes or eats memory."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence

from cspine.errors import CspineError, DamagedFileError, GeometryError, TooLargeError
from cspine.studies import list_series, open_study
from cspine.studies.header import NeedMoreError, NotDicomError, scan
from dicom_factory import Grid, make_slice, save, write_enhanced, write_series

JPEG = "1.2.840.10008.1.2.4.70"
RLE = "1.2.840.10008.1.2.5"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
DEFLATED = "1.2.840.10008.1.2.1.99"


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.97])
@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.1", DEFLATED, JPEG, RLE], ids=["plain", "deflated", "jpeg", "rle"]
)
def test_a_truncated_slice_is_named(tmp_path: Path, syntax: str, keep: float) -> None:
    victim = write_series(tmp_path, syntax=syntax)[5]
    data = victim.read_bytes()
    victim.write_bytes(data[: 160 + int(keep * (len(data) - 160))])
    with pytest.raises(DamagedFileError, match=victim.name) as caught:
        open_study(tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("syntax", [JPEG, RLE, JPEG_LS, JPEG_2000])
def test_garbage_in_a_compressed_slice_is_named(tmp_path: Path, syntax: str) -> None:
    victim = write_series(tmp_path, syntax=syntax)[5]
    data = bytearray(victim.read_bytes())
    start = data.rindex(b"\xfe\xff\x00\xe0") + 8
    data[start : start + 64] = bytes(range(64, 128))
    victim.write_bytes(bytes(data))
    with pytest.raises(DamagedFileError, match=victim.name):
        open_study(tmp_path)


@pytest.mark.parametrize("syntax", [JPEG, RLE, JPEG_LS, JPEG_2000])
@pytest.mark.parametrize("how", ["zeros", "short"])
def test_a_compressed_slice_that_breaks_off_inside_its_fragment(tmp_path: Path, syntax: str, how: str) -> None:
    """An interrupted copy leaves zeros or a short stream in a file whose lengths all fit."""
    victim = write_series(tmp_path, syntax=syntax)[5]
    data = victim.read_bytes()
    start, stop = data.rindex(b"\xfe\xff\x00\xe0") + 8, len(data) - 8
    middle = (start + stop) // 4 * 2
    if how == "zeros":
        victim.write_bytes(data[:middle] + bytes(stop - middle) + data[stop:])
    else:
        length = struct.pack("<I", middle - start)
        victim.write_bytes(data[: start - 4] + length + data[start:middle] + data[stop:])
    with pytest.raises(DamagedFileError, match=victim.name):
        open_study(tmp_path)


def test_a_damaged_file_of_another_series_does_not_disturb(tmp_path: Path) -> None:
    write_series(tmp_path, Grid(count=30, thickness=1.0), series="1")
    victim = write_series(tmp_path, series="2")[0]
    data = victim.read_bytes()
    victim.write_bytes(data[: data.index(b"\x28\x00\x10\x00") + 3])
    assert open_study(tmp_path).shape[0] == 30


def test_only_damaged_files(tmp_path: Path) -> None:
    path = write_series(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedFileError, match=path.name):
        open_study(path)
    with pytest.raises(DamagedFileError, match=path.name):
        list_series(path)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_deep_nesting_is_refused(tmp_path: Path, syntax: str) -> None:
    """Sequences in sequences, 5000 deep: written by hand, since pydicom itself would recurse to death."""
    explicit = syntax.endswith(".1")
    path = tmp_path / "deep.dcm"
    save(make_slice(Grid(), 0, 0), path, syntax)
    data = path.read_bytes()
    tag = b"\x08\x00\x40\x11"  # Referenced Image Sequence
    opening = (
        tag + (b"SQ\0\0" if explicit else b"") + b"\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    ) * 5000
    at = data.index(b"\x10\x00\x10\x00")
    path.write_bytes(data[:at] + opening + data[at:])
    with pytest.raises(DamagedFileError, match=r"nested.*deep\.dcm"):
        open_study(path)


def test_ordinary_nesting_is_stepped_over(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        inner = Dataset()
        inner.PatientName = "x"
        for _ in range(8):
            outer = Dataset()
            outer.ReferencedImageSequence = Sequence([inner, Dataset()])
            outer["ReferencedImageSequence"].is_undefined_length = True
            inner = outer
        ds.ReferencedImageSequence = Sequence([inner])

    write_series(tmp_path, edit=edit)
    assert open_study(tmp_path).shape[0] == 12


def test_a_long_private_element_before_the_pixels(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        block = ds.private_block(0x0029, "MAKER", create=True)
        block.add_new(0x10, "OB", bytes(300_000))

    write_series(tmp_path, edit=edit)
    assert open_study(tmp_path).shape[0] == 12


@pytest.mark.parametrize("value", [0, 65535])
@pytest.mark.parametrize("tag", ["Rows", "Columns"])
def test_nonsense_sizes_are_refused(tmp_path: Path, tag: str, value: int) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        setattr(ds, tag, value)

    write_series(tmp_path, edit=edit)
    with pytest.raises(DamagedFileError, match=tag):
        open_study(tmp_path)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", RLE, JPEG, JPEG_2000])
def test_rows_and_columns_that_the_pixels_do_not_have(tmp_path: Path, syntax: str) -> None:
    for path in write_series(tmp_path, syntax=syntax):
        data = path.read_bytes()
        at = data.index(b"\x28\x00\x10\x00US\x02\x00") + 8
        path.write_bytes(data[:at] + struct.pack("<H", 6000) + data[at + 2 :])
    with pytest.raises(DamagedFileError):
        open_study(tmp_path)


def test_size_is_checked_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "many.dcm"
    write_enhanced(path, syntax=RLE)
    with pytest.raises(TooLargeError, match="many"):
        open_study(path, max_bytes=10_000)


def test_a_tiny_file_that_claims_a_huge_image(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        ds.Rows = ds.Columns = 16_000

    write_series(tmp_path, edit=edit, syntax="1.2.840.10008.1.2.1")
    with pytest.raises(TooLargeError):
        open_study(tmp_path, max_bytes=2**30)


@pytest.mark.parametrize("frames", ["0", "-3", "999999999", "many"])
def test_nonsense_frame_counts(tmp_path: Path, frames: str) -> None:
    path = tmp_path / "enhanced.dcm"
    write_enhanced(path)
    ds = dcmread(path)
    ds["NumberOfFrames"]._value = frames
    ds.save_as(path)
    with pytest.raises(DamagedFileError, match="NumberOfFrames"):
        open_study(path)


def test_frames_without_their_attributes(tmp_path: Path) -> None:
    path = tmp_path / "enhanced.dcm"
    write_enhanced(path)
    ds = dcmread(path)
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]
    ds.save_as(path)
    with pytest.raises(DamagedFileError, match="12 frames but 11"):
        open_study(path)


def deflated(body: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeezer.compress(body) + squeezer.flush()


@pytest.mark.parametrize("where", ["header", "pixels"])
def test_a_deflate_bomb_is_not_inflated(tmp_path: Path, where: str) -> None:
    """Sixty kilobytes that would inflate to 60 MB."""
    import tracemalloc

    path = tmp_path / "bomb.dcm"
    save(make_slice(Grid(), 0, 0), path, DEFLATED)
    data = path.read_bytes()
    start = 132
    while data[start : start + 2] == b"\x02\x00":
        long = data[start + 4 : start + 6] == b"OB"
        length = struct.unpack_from("<I" if long else "<H", data, start + (8 if long else 6))[0]
        start += (12 if long else 8) + length
    body = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    huge = 60_000_000
    if where == "header":
        at = body.index(b"\x10\x00\x10\x00")
        body = body[:at] + b"\x09\x00\x10\x10OB\0\0" + struct.pack("<I", huge) + bytes(huge) + body[at:]
    else:
        body += bytes(huge)
    path.write_bytes(data[:start] + deflated(body))
    del body
    tracemalloc.start()
    with pytest.raises((DamagedFileError, GeometryError)):
        open_study(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_an_unknown_transfer_syntax_is_refused(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        ds.file_meta.ImplementationVersionName = "TEST"

    for path in write_series(tmp_path, edit=edit, syntax=JPEG):
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.99"))
    with pytest.raises(DamagedFileError, match=r"1\.2\.840\.10008\.1\.2\.4\.99"):
        open_study(tmp_path)


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "PixelSpacing", "RescaleSlope"])
@pytest.mark.parametrize("value", ["abc", "nan", "1e999", "1\\2\\3\\4"])
def test_numbers_that_are_none(tmp_path: Path, tag: str, value: str) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        if index == 3:
            ds[tag]._value = value

    write_series(tmp_path, edit=edit)
    with pytest.raises((DamagedFileError, GeometryError), match=tag):
        open_study(tmp_path)


def _sample(syntax: str, tmp: Path) -> bytes:
    path = tmp / "sample.dcm"
    if syntax == "enhanced":
        write_enhanced(path, Grid(count=3, rows=8, columns=8))
    else:
        save(make_slice(Grid(rows=8, columns=8), 0, 0), path, syntax)
    return path.read_bytes()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("samples")
    kinds = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", DEFLATED, RLE, "enhanced")
    return [_sample(kind, folder) for kind in kinds]


EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=4)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.integers(0, 5),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), max_size=4),
    cut=st.floats(0.1, 1),
)
def test_any_mutilation_ends_in_a_typed_error_or_a_header(
    samples: list[bytes], kind: int, edits: list[tuple[float, bytes]], cut: float
) -> None:
    data = bytearray(samples[kind])
    for place, new in edits:
        at = int(place * (len(data) - 1))
        data[at : at + len(new)] = new
    data = data[: int(cut * len(data))] if cut < 0.9 else data
    with contextlib.suppress(DamagedFileError, NotDicomError, NeedMoreError):
        scan(bytes(data), complete=True, where="x")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.integers(0, 5),
    edits=st.lists(st.tuples(st.floats(0.1, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3),
)
def test_opening_a_mutilated_file_only_raises_our_errors(
    samples: list[bytes], tmp_path_factory: pytest.TempPathFactory, kind: int, edits: list[tuple[float, bytes]]
) -> None:
    data = bytearray(samples[kind])
    for place, new in edits:
        at = int(place * (len(data) - 1))
        data[at : at + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "mutilated.dcm"
    path.write_bytes(bytes(data))
    with contextlib.suppress(CspineError):
        assert np.isfinite(open_study(path, max_bytes=2**26).affine).all()
