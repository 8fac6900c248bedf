"""The source of a result: whose images they are and where each lies, read again from what was opened."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from cspine.errors import DamagedFileError, GeometryError, StudyError, TooLargeError, UsageError
from cspine.reports import dicom_headers
from cspine.reports.dicom_source import SourceSeries, read_source
from cspine.studies import open_study
from dicom_factory import AXIAL, CORONAL, SAGITTAL, Grid, save, write_enhanced, write_localizer, write_series

UPSIDE_DOWN = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def source_of(path: Path) -> SourceSeries:
    return read_source(path, open_study(path).source)


def test_instances_are_the_slices_of_the_volume(tmp_path: Path) -> None:
    write_series(tmp_path)
    volume = open_study(tmp_path)
    series = read_source(tmp_path, volume.source)
    assert tuple(instance.sop_instance_uid for instance in series.instances) == volume.source.sop_instance_uids
    for k, instance in enumerate(series.instances):
        np.testing.assert_allclose(instance.position_mm, volume.to_world([0, 0, k]), atol=1e-4)
        assert (instance.rows, instance.columns, instance.frame) == (*volume.shape[1:], 1)
    assert series.series_uid == volume.source.series_uid
    assert series.orientation == AXIAL
    assert series.pixel_spacing == (2.0, 1.75)


@pytest.mark.parametrize(("orientation", "axis"), [(AXIAL, 2), (UPSIDE_DOWN, 2), (CORONAL, 1), (SAGITTAL, 0)], ids=str)
def test_instances_run_towards_head_back_or_left(orientation: tuple[float, ...], axis: int, tmp_path: Path) -> None:
    write_series(tmp_path, Grid(orientation=orientation))
    places = [instance.position_mm[axis] for instance in source_of(tmp_path).instances]
    assert places == sorted(places)


def test_slices_that_were_shifted_onto_a_grid_keep_their_own_places(tmp_path: Path) -> None:
    grid = Grid(step=(0.0, 0.8, 2.4))
    write_series(tmp_path, grid)
    volume = open_study(tmp_path)
    assert "corrected-gantry-tilt" in {warning.code for warning in volume.warnings}
    series = read_source(tmp_path, volume.source)
    for k, instance in enumerate(series.instances):
        np.testing.assert_allclose(instance.position_mm, grid.position(k), atol=1e-5)


def test_a_filled_gap_has_no_instance(tmp_path: Path) -> None:
    places = [k for k in range(12) if k != 5]
    write_series(tmp_path, places=places)
    volume = open_study(tmp_path)
    assert volume.shape[0] == 12
    assert len(read_source(tmp_path, volume.source).instances) == 11


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless],
    ids=lambda syntax: syntax.name,
)
def test_headers_are_read_in_every_syntax(syntax: str, tmp_path: Path) -> None:
    write_series(tmp_path, Grid(count=3), syntax=syntax)
    series = source_of(tmp_path)
    assert str(series.context.PatientName) == "Secret^Name"
    assert len(series.templates) == 3
    assert all("PixelData" not in header for header in series.templates)
    assert {header.Rows for header in series.templates} == {40}


def test_enhanced_ct_is_one_file_with_many_planes(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "all.dcm")
    series = source_of(tmp_path)
    assert len(series.instances) == 12
    assert len({instance.sop_instance_uid for instance in series.instances}) == 1
    assert sorted(instance.frame for instance in series.instances) == list(range(1, 13))
    assert all(instance.multiframe for instance in series.instances)
    assert len(series.templates) == 1


def test_a_zip_is_read_in_place(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in sorted((tmp_path / "s").iterdir()):
            archive.write(path, path.name)
    assert len(source_of(tmp_path / "s.zip").instances) == 12


def test_other_series_beside_it_are_left_alone(tmp_path: Path) -> None:
    write_series(tmp_path, series="1")
    write_series(tmp_path, Grid(count=4), series="2")
    write_localizer(tmp_path)
    volume = open_study(tmp_path)
    assert read_source(tmp_path, volume.source).series_uid == volume.source.series_uid


def test_patient_and_study_are_copied_byte_for_byte(tmp_path: Path) -> None:
    def edit(_: int, ds: FileDataset) -> None:
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientName = "Müller^Jürgen=山田^太郎"
        ds.PatientSex, ds.PatientBirthDate, ds.StudyDate = "O", "19620229", "20240101"
        ds.AccessionNumber, ds.StudyDescription, ds.PatientAge = "A1", "HWS nativ", "061Y"

    write_series(tmp_path, Grid(count=3), edit=edit)
    context = source_of(tmp_path).context
    assert str(context.PatientName) == "Müller^Jürgen=山田^太郎"
    # 29 February 1962 never was; what a study says is repeated, not repaired.
    assert context.PatientBirthDate == "19620229"
    assert (context.PatientSex, context.AccessionNumber, context.PatientAge) == ("O", "A1", "061Y")


def test_what_every_object_must_have_is_there_though_empty(tmp_path: Path) -> None:
    def edit(_: int, ds: FileDataset) -> None:
        del ds.PatientName, ds.PatientID

    write_series(tmp_path, Grid(count=3), edit=edit)
    context = source_of(tmp_path).context
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "AccessionNumber"):
        assert keyword in context
        assert not context.get(keyword)


def test_private_and_long_values_are_left_behind(tmp_path: Path) -> None:
    def edit(_: int, ds: FileDataset) -> None:
        ds.private_block(0x0029, "SOMEBODY", create=True).add_new(1, "OB", b"x" * 64)
        ds.PatientComments = "short"
        ds.add_new("EncapsulatedDocument", "OB", b"long" * 50_000)

    write_series(tmp_path, Grid(count=3), edit=edit)
    header = source_of(tmp_path).templates[0]
    assert not any(tag.is_private for tag in header.keys())  # noqa: SIM118
    assert "EncapsulatedDocument" not in header
    assert header.PatientComments == "short"


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_an_identifier_that_is_missing_is_named(keyword: str, tmp_path: Path) -> None:
    write_series(tmp_path, Grid(count=3), edit=lambda _, ds: delattr(ds, keyword))
    with pytest.raises(GeometryError, match=keyword):
        source_of(tmp_path)


def test_input_that_is_no_dicom_is_refused(tmp_path: Path) -> None:
    from report_factory import make_volume

    with pytest.raises(UsageError, match="DICOM study"):
        read_source(tmp_path, make_volume().source)


@pytest.mark.parametrize(
    "change",
    [
        lambda _, paths: paths[0].unlink(),
        lambda _, paths: [path.unlink() for path in paths],
        lambda folder, paths: [path.unlink() for path in paths] and write_series(folder, series="5", shuffle=True),
    ],
    ids=["a file fewer", "none left", "another series in its place"],
)
def test_images_that_changed_meanwhile_are_refused(
    change: Callable[[Path, list[Path]], object], tmp_path: Path
) -> None:
    paths = write_series(tmp_path)
    volume = open_study(tmp_path)
    change(tmp_path, paths)
    with pytest.raises((StudyError, UsageError)):
        read_source(tmp_path, volume.source)


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, Grid(count=3))
    monkeypatch.setattr(dicom_headers, "MAX_HEADER_BYTES", 200)
    with pytest.raises(TooLargeError, match="header"):
        source_of(tmp_path)


def test_a_deep_sequence_is_one_typed_error(tmp_path: Path) -> None:
    """Opening steps over sequences of known length; copying one that is nested a thousand deep must not recurse."""

    def edit(index: int, ds: FileDataset) -> None:
        item = Dataset()
        item.CodeValue = "1"
        ds.ProcedureCodeSequence = [item]

    paths = write_series(tmp_path, Grid(count=3), edit=edit)
    volume = open_study(tmp_path)
    for path in paths:
        raw = path.read_bytes()
        at = raw.index(b"\x08\x00\x32\x10SQ\0\0")
        length = int.from_bytes(raw[at + 8 : at + 12], "little")
        body = _nested(1500)
        path.write_bytes(raw[: at + 8] + len(body).to_bytes(4, "little") + body + raw[at + 12 + length :])
    with pytest.raises(DamagedFileError):
        read_source(tmp_path, volume.source)


def _nested(depth: int) -> bytes:
    """Sequence items of known length, each with a ProcedureCodeSequence inside."""
    body = b""
    for _ in range(depth):
        body = b"\xfe\xff\x00\xe0" + len(body).to_bytes(4, "little") + body
        body = b"\x08\x00\x32\x10SQ\0\0" + len(body).to_bytes(4, "little") + body
    return b"\xfe\xff\x00\xe0" + len(body).to_bytes(4, "little") + body


def test_errors_name_nobody(tmp_path: Path) -> None:
    write_series(tmp_path, Grid(count=3), edit=lambda _, ds: delattr(ds, "FrameOfReferenceUID"))
    with pytest.raises(GeometryError) as caught:
        source_of(tmp_path)
    assert "secret" not in str(caught.value).lower()


def test_a_file_that_was_saved_again_with_other_words_is_the_same_image(tmp_path: Path) -> None:
    """The identifier tells images apart; a copy in another syntax is the same one."""
    from pydicom import dcmread

    paths = write_series(tmp_path, Grid(count=3))
    volume = open_study(tmp_path)
    save(dcmread(paths[0]), paths[0], ImplicitVRLittleEndian)
    assert len(read_source(tmp_path, volume.source).instances) == 3
