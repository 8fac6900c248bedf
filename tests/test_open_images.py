"""Single images: DICOM in HU, pictures in grey levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import MRImageStorage

from cspine.errors import DamagedFileError, IntensityError, NoImagesError, NotCtError, TooLargeError, UsageError
from cspine.studies import open_image
from dicom_factory import Grid, make_slice, phantom_hu, save, set_pixels, write_enhanced


def gradient() -> np.ndarray:
    return np.add.outer(np.arange(20) * 10, np.arange(30)).astype(np.uint8)


def test_a_dicom_slice_is_in_hu(tmp_path: Path) -> None:
    grid = Grid()
    path = tmp_path / "slice.dcm"
    save(make_slice(grid, 5, 5), path, "1.2.840.10008.1.2.4.70")
    image = open_image(path)
    assert image.unit == "HU"
    np.testing.assert_array_equal(image.pixels, phantom_hu(grid.points(5)))
    assert image.spacing_mm == (1.75, 2.0)
    assert image.source.name == "slice"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 90))])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, True), (13, False), (16, False), (16, True)])
def test_every_depth_decodes_exactly(tmp_path: Path, syntax: str, bits: int, signed: bool) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    stored = np.random.default_rng(bits).integers(low, high, (40, 48))
    ds = make_slice(Grid(), 0, 0)
    set_pixels(ds, stored, bits=bits, signed=signed)
    ds.RescaleIntercept = "0"
    save(ds, tmp_path / "a.dcm", syntax)
    np.testing.assert_array_equal(open_image(tmp_path / "a.dcm").pixels, np.clip(stored, -1024, 32767))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_grey_pictures(tmp_path: Path, name: str) -> None:
    Image.fromarray(gradient()).save(tmp_path / name, quality=100)
    image = open_image(tmp_path / name)
    assert (image.unit, image.spacing_mm, image.pixels.dtype) == ("grey", None, np.float32)
    np.testing.assert_allclose(image.pixels, gradient() / 255, atol=0.01)
    assert [w.code for w in image.warnings] == ["grey-levels"]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_pictures(tmp_path: Path, name: str) -> None:
    Image.fromarray(gradient().astype(np.uint16) * 257).save(tmp_path / name)
    np.testing.assert_allclose(open_image(tmp_path / name).pixels, gradient() / 255, atol=1e-4)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1"])
def test_colour_becomes_luminance(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(gradient()).convert("RGB" if mode == "P" else mode)
    if mode == "P":
        picture = picture.quantize(256)
    picture.save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    expected = np.asarray(picture.convert("RGB").convert("L")) / 255
    np.testing.assert_allclose(image.pixels, expected, atol=0.01)


def test_the_camera_was_held_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=exif, quality=100)
    assert open_image(tmp_path / "a.jpg").pixels.shape == (30, 20)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_truncated_pictures_are_damaged(tmp_path: Path, name: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises((DamagedFileError, NoImagesError), match=name):
        open_image(path)


def test_several_pages_are_not_one_image(tmp_path: Path) -> None:
    pages = [Image.fromarray(gradient()), Image.fromarray(gradient())]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(NoImagesError, match="2 pages"):
        open_image(tmp_path / "a.tif")


def test_several_frames_are_not_one_image(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm")
    with pytest.raises(NoImagesError, match="12 frames"):
        open_image(tmp_path / "a.dcm")


def test_a_picture_too_large_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    monkeypatch.setattr("cspine.studies.images.MAX_PIXELS", 100)
    with pytest.raises(TooLargeError, match="30x20"):
        open_image(tmp_path / "a.png")


def test_other_modalities_and_rescale(tmp_path: Path) -> None:
    ds = make_slice(Grid(), 0, 0)
    ds.Modality, ds.SOPClassUID = "MR", MRImageStorage
    save(ds, tmp_path / "mr.dcm")
    with pytest.raises(NotCtError, match="MR"):
        open_image(tmp_path / "mr.dcm")
    ds = make_slice(Grid(), 0, 0)
    del ds.RescaleIntercept
    save(ds, tmp_path / "ct.dcm")
    with pytest.raises(IntensityError):
        open_image(tmp_path / "ct.dcm")
    assert open_image(tmp_path / "ct.dcm", scale=(1, -1024)).pixels.min() == -1000


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(NoImagesError, match=r"a\.png"):
        open_image(tmp_path / "a.png")
    with pytest.raises(UsageError):
        open_image(tmp_path / "missing.png")
