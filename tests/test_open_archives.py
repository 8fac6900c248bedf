"""A zip is read like a folder, without unpacking it anywhere; one that escapes or explodes is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from cspine.errors import DamagedFileError, NoImagesError, UnsafeArchiveError
from cspine.studies import list_series, open_study
from dicom_factory import write_enhanced, write_series


def pack(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    return target


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_series(tmp_path / "study" / "deep" / "er", syntax="1.2.840.10008.1.2.4.70")
    (tmp_path / "study" / "notes.txt").write_text("other")
    return tmp_path / "study"


def test_a_zip_opens_like_its_folder(series: Path, tmp_path: Path) -> None:
    path = pack(series, tmp_path / "patient 7.zip", "a/b/")
    before = sorted(tmp_path.rglob("*"))
    packed, plain = open_study(path), open_study(series)
    np.testing.assert_array_equal(packed.hu, plain.hu)
    np.testing.assert_array_equal(packed.affine, plain.affine)
    assert packed.source.sha256 == plain.source.sha256
    assert packed.source.name == "patient 7"
    assert packed.source.files[0].startswith("a/b/deep/er/")
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
    assert list_series(path)[0].slices == 12


def test_one_multi_frame_file_in_a_zip(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_enhanced(tmp_path / "one" / "x.dcm")
    volume = open_study(pack(tmp_path / "one", tmp_path / "one.zip"))
    assert volume.shape == (12, 40, 48)


@pytest.mark.parametrize(
    "name", ["../evil.dcm", "a/../../evil.dcm", "/etc/evil.dcm", "C:\\evil.dcm", "..\\evil.dcm", "a/..\\..\\evil.dcm"]
)
def test_an_entry_that_escapes_is_refused(series: Path, tmp_path: Path, name: str) -> None:
    path = pack(series, tmp_path / "x.zip")
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, b"evil")
    with pytest.raises(UnsafeArchiveError, match="outside"):
        open_study(path)


def test_a_link_is_refused(series: Path, tmp_path: Path) -> None:
    path = pack(series, tmp_path / "x.zip")
    info = zipfile.ZipInfo("link.dcm")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeArchiveError, match="link"):
        open_study(path)


def test_a_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", bytes(20_000_000))
    with pytest.raises(UnsafeArchiveError, match="times its size"):
        open_study(path)


def test_many_entries_that_add_up_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.studies.files.MAX_UNPACKED_BYTES", 1_000_000)
    path = tmp_path / "big.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(3):
            archive.writestr(f"{k}.dcm", bytes(400_000))
    with pytest.raises(UnsafeArchiveError, match="GiB"):
        open_study(path)


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.studies.files.MAX_ENTRIES", 5)
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(6):
            archive.writestr(f"{k}.txt", "x")
    with pytest.raises(UnsafeArchiveError, match="6 entries"):
        open_study(path)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.dcm", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.dcm", "2")
    with pytest.raises(UnsafeArchiveError, match="same name"):
        open_study(path)


@pytest.mark.parametrize("keep", [0.3, 0.98])
def test_a_cut_off_zip_is_damaged(series: Path, tmp_path: Path, keep: float) -> None:
    path = pack(series, tmp_path / "cut.zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DamagedFileError, match=r"cut\.zip"):
        open_study(path)


def test_a_damaged_entry_is_named(series: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(series.rglob("*.dcm")):
            archive.write(file, file.name)
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at : at + 2000] = bytes(2000)
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedFileError, match=r"\.dcm"):
        open_study(path)


def test_an_empty_zip_holds_no_images(tmp_path: Path) -> None:
    path = tmp_path / "empty.zip"
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(NoImagesError, match="empty"):
        open_study(path)


def test_a_zip_without_images(tmp_path: Path) -> None:
    path = tmp_path / "text.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
        archive.writestr("b.dcm", "hello")
    with pytest.raises(NoImagesError, match="none of 2"):
        open_study(path)


def test_an_encrypted_zip_is_refused(series: Path, tmp_path: Path) -> None:
    path = pack(series, tmp_path / "locked.zip")
    data = bytearray(path.read_bytes())
    # Set the encryption bit of every local and central header.
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(magic, at + 4)
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedFileError, match="encrypted"):
        open_study(path)
