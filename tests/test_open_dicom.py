"""DICOM series in every syntax and orientation come out as the phantom they were written from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_frames

from cspine.studies import open_study
from cspine.volume import Volume
from dicom_factory import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    Grid,
    phantom_hu,
    set_pixels,
    write_enhanced,
    write_series,
)

SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big-endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-lossless": "1.2.840.10008.1.2.4.57",
    "jpeg-lossless-sv1": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg-2000-lossless": "1.2.840.10008.1.2.4.90",
    "htj2k-lossless": "1.2.840.10008.1.2.4.201",
    "htj2k-rpcl": "1.2.840.10008.1.2.4.202",
    "htj2k": "1.2.840.10008.1.2.4.203",
}


def expected(volume: Volume) -> np.ndarray:
    z, y, x = np.indices(volume.shape)
    return phantom_hu(volume.to_world(np.stack([x, y, z], axis=-1)))


def assert_phantom(volume: Volume) -> None:
    assert volume.hu.dtype == np.int16
    np.testing.assert_array_equal(volume.hu, expected(volume))
    assert np.diag(volume.affine)[:3].min() > 0, "axes run to the left, the back and the head"


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES.keys())
def test_every_syntax_of_ct_decodes_exactly(tmp_path: Path, syntax: str) -> None:
    write_series(tmp_path, syntax=syntax)
    volume = open_study(tmp_path)
    assert_phantom(volume)
    assert volume.source.acquisition["transfer_syntax"] == syntax
    assert volume.warnings == ()


def test_what_openjph_wrote_is_what_another_decoder_reads(tmp_path: Path) -> None:
    """The test images of HTJ2K come from the library that also reads them here; OpenJPEG must agree with it."""
    (path, *_) = write_series(tmp_path, syntax=SYNTAXES["htj2k-lossless"])
    ds = dcmread(path)
    ours = open_study(tmp_path).hu[0]
    (coded,) = generate_frames(ds.PixelData, number_of_frames=1)
    theirs = imagecodecs.jpeg2k_decode(coded).view(np.int16) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    np.testing.assert_array_equal(ours, theirs)


FEET_FIRST = tuple(-np.asarray(AXIAL))
OBLIQUE = (0.9848078, 0.1736482, 0.0, -0.1736482, 0.9848078, 0.0)


@pytest.mark.parametrize("orientation", [AXIAL, FEET_FIRST, CORONAL, SAGITTAL, OBLIQUE], ids=str)
@pytest.mark.parametrize("downwards", [False, True])
def test_any_orientation_is_read_where_it_lies(tmp_path: Path, orientation: tuple[float, ...], downwards: bool) -> None:
    places = list(range(14))
    write_series(tmp_path, Grid(count=14, orientation=orientation), places=places[::-1] if downwards else places)
    assert_phantom(open_study(tmp_path))


@pytest.mark.parametrize("syntax", [SYNTAXES["explicit"], SYNTAXES["jpeg-lossless-sv1"], SYNTAXES["rle"]])
def test_enhanced_ct_is_one_file_with_many_frames(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "enhanced.dcm"
    write_enhanced(path, syntax=syntax)
    volume = open_study(path)
    assert_phantom(volume)
    assert volume.source.name == "enhanced"
    assert volume.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(set(volume.source.sop_instance_uids)) == 1


def test_source_follows_slices_to_the_head(tmp_path: Path) -> None:
    grid = Grid(count=6)
    paths = write_series(tmp_path / "neck", grid)
    source = open_study(tmp_path / "neck").source
    assert source.files == tuple(path.name for path in paths)
    assert source.sha256 == hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    assert (source.kind, source.name) == ("dicom", "neck")
    assert source.series_uid
    assert source.study_uid
    assert source.frame_of_reference_uid
    assert len(source.sop_instance_uids) == 6
    assert source.acquisition["kernel"] == "Br64"
    assert source.acquisition["kvp"] == 120
    assert "only series" in source.selection


def test_nothing_of_the_patient_is_kept(tmp_path: Path) -> None:
    write_series(tmp_path)
    assert "secret" not in repr(open_study(tmp_path).source).lower()


def test_other_files_and_nesting_do_not_disturb(tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "b" / "c")
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "a" / "empty.dcm").write_bytes(b"")
    assert_phantom(open_study(tmp_path))


def test_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    for path in write_series(tmp_path, syntax=SYNTAXES["implicit"]):
        data = path.read_bytes()
        start = data.index(b"\x08\x00\x08\x00", 132)
        path.write_bytes(data[start:])
    # Without a file meta group nothing names the class of the image; the modality does.
    assert_phantom(open_study(tmp_path))


@pytest.mark.parametrize(("said", "written"), [("implicit", "explicit"), ("explicit", "implicit")])
def test_files_that_misstate_their_syntax_are_read(tmp_path: Path, said: str, written: str) -> None:
    for path in write_series(tmp_path, syntax=SYNTAXES[written]):
        data = path.read_bytes()
        true, false = (name.encode() + b"\0" * (len(name) % 2) for name in (SYNTAXES[written], SYNTAXES[said]))
        true, false = (b"UI" + len(name).to_bytes(2, "little") + name for name in (true, false))
        path.write_bytes(data.replace(b"\x02\x00\x10\x00" + true, b"\x02\x00\x10\x00" + false))
    assert_phantom(open_study(tmp_path))


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_threads_changes_nothing(tmp_path: Path, threads: int) -> None:
    write_series(tmp_path, syntax=SYNTAXES["jpeg-lossless-sv1"])
    volume = open_study(tmp_path, threads=threads)
    assert volume.source.sha256 == open_study(tmp_path).source.sha256
    assert_phantom(volume)


def test_signed_and_16_bit_values(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        hu = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).astype(np.int32) - 1024
        ds.RescaleIntercept = "0"
        set_pixels(ds, hu, bits=16, signed=True)

    write_series(tmp_path, edit=edit)
    assert_phantom(open_study(tmp_path))


def test_rescale_may_differ_between_slices(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        stored = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).astype(np.int32)
        ds.RescaleIntercept = str(-1024 - index)
        set_pixels(ds, stored + index)

    write_series(tmp_path, edit=edit)
    assert_phantom(open_study(tmp_path))


def test_fractions_of_hu_become_float32(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        stored = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).astype(np.int32)
        ds.RescaleSlope = "0.5"
        ds.RescaleIntercept = "-1024"
        set_pixels(ds, stored * 2, bits=16)

    write_series(tmp_path, edit=edit)
    volume = open_study(tmp_path)
    assert volume.hu.dtype == np.float32
    np.testing.assert_array_equal(volume.hu, expected(volume))


@pytest.mark.parametrize(("padding", "tagged"), [(-2000, True), (-2048, False), (-3024, False), (0, True)])
def test_padding_becomes_air(tmp_path: Path, padding: int, tagged: bool) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        hu = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).astype(np.int32) - 1024
        hu[:3, :] = padding
        ds.RescaleIntercept = "0"
        set_pixels(ds, hu, bits=16, signed=True)
        if tagged:
            ds.PixelPaddingValue = padding

    write_series(tmp_path, edit=edit)
    volume = open_study(tmp_path)
    truth = expected(volume)
    assert (volume.hu[:, :3] == -1024).all()
    # Also where the padding value happens to be that of tissue: only its border patch is taken out.
    np.testing.assert_array_equal(volume.hu[:, 3:], truth[:, 3:])
    assert volume.hu.min() == -1024


def test_bits_above_those_stored_are_ignored(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        stored = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).copy()
        stored[::2] |= 0x8000  # an overlay in the unused bits
        ds.PixelData = stored.tobytes()

    write_series(tmp_path, edit=edit)
    assert_phantom(open_study(tmp_path))
