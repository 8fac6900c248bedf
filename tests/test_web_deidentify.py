"""De-identification on upload: what the basic profile of PS3.15 lists is gone, attribute by attribute, and what nobody
listed is gone too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import DicomDictionary, dictionary_is_retired, dictionary_VR, keyword_for_tag
from pydicom.dataset import FileDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless

from components import need, validation_errors
from cspine.errors import DamagedFileError
from cspine.node.privacy import Pseudonyms
from cspine.studies import open_study
from cspine.studies.files import StoredFile
from cspine.web.codestream_comments import without_comments
from cspine.web.deidentify import (
    EMPTIED,
    KEPT,
    REPLACED_UIDS,
    BurnedInError,
    burned_in_warning,
    deidentified,
    deidentify_file,
    patient_label,
)
from cspine.web.intake_files import _rewrite_nifti
from dicom_factory import Grid, make_slice, write_enhanced, write_series
from orthanc_server import Orthanc

KEY = Pseudonyms(bytes(range(32)))
# A value of each VR that would tell something, as far as the VR can.
TELLING: dict[str, Any] = {
    "AE": "SECRETAE", "AS": "042Y", "CS": "SECRET", "DA": "20240229", "DS": "4242.5", "DT": "20240229101112",
    "FD": 4242.5, "FL": 4242.5, "IS": "4242", "LO": "Secret words", "LT": "Secret words", "OB": b"SECRET",
    "OD": b"SECRET42", "OF": b"SECRET42", "OL": b"SECRET42", "OV": b"SECRET42", "OW": b"SECRET", "PN": "Secret^Name",
    "SH": "Secret", "SL": 4242, "SS": 4242, "ST": "Secret words", "SV": 4242, "TM": "101112", "UC": "Secret words",
    "UI": "1.2.3.4242", "UL": 4242, "UN": b"SECRET", "UR": "https://secret.example", "US": 4242, "UT": "Secret words",
    "UV": 4242, "AT": 0x00100010,
}  # fmt: skip


def telling(tag: int) -> Any:
    vr = dictionary_VR(tag).split(" or ")[0]
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.TextValue, item.StudyDate = "Secret^Name", "Secret words", "20240229"
        return Sequence([item])
    return TELLING[vr]


def everything() -> FileDataset:
    """A CT slice that also has every attribute of the dictionary, each with a value that would tell something."""
    header = make_slice(Grid(count=1, rows=8, columns=8), 0, 0)
    for tag in DicomDictionary:
        if Tag(tag).group in (0x0000, 0x0002, 0x7FE0, 0xFFFA, 0xFFFC, 0xFFFE) or tag in header:
            continue
        header.add_new(tag, dictionary_VR(tag).split(" or ")[0], telling(tag))
    block = header.private_block(0x0029, "SECRET MAKER", create=True)
    block.add_new(0x01, "LO", "Secret words")
    header.add_new(0x60000010, "US", 8)  # an overlay
    header.add_new(0x60003000, "OW", b"SECRET")
    return header


def cleaned(header: FileDataset, folder: Path) -> Dataset:
    """The header as it comes back from a file that was written."""
    source, target = folder / "in.dcm", folder / "out.dcm"
    dcmwrite(source, header, enforce_file_format=True)
    deidentify_file(source, target, "P-1", KEY, where="in.dcm")
    return dcmread(target)


def test_of_all_attributes_there_are_only_listed_ones_stay(tmp_path: Path) -> None:
    header = everything()
    header.BurnedInAnnotation = "NO"
    for keyword in KEPT - REPLACED_UIDS:  # texts among them are checked below; here they would hide others
        if keyword in header and "Sequence" not in keyword and keyword not in ("Rows", "Columns", "PixelData"):
            del header[keyword]
    found = cleaned(header, tmp_path)
    ours = {
        "PatientName", "PatientID", "PatientIdentityRemoved", "DeidentificationMethod",
        "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified", "ContentDate", "ContentTime",
        "AcquisitionDateTime",
    }  # fmt: skip
    assert {element.keyword for element in found} <= KEPT | ours | set(EMPTIED)
    assert all(found[keyword].value in ("", None) for keyword in EMPTIED)
    data = (tmp_path / "out.dcm").read_bytes()
    for secret in (b"ecret", b"SECRET", b"20240229", b"4242"):
        assert secret not in data, secret


def test_the_list_of_the_standard_as_orthanc_has_it(tmp_path: Path, orthanc: Orthanc) -> None:
    """Orthanc generates its profile from table E.1-1: what it takes out, blanks or replaces, must not stay here."""
    header = everything()
    sent = words_as_file(header, tmp_path)
    instance = orthanc.json("/instances", method="POST", data=sent)["ID"]
    there = dcmread(io.BytesIO(orthanc.call(f"/instances/{instance}/anonymize", method="POST", data=b"{}")))
    before = dcmread(io.BytesIO(sent))
    listed = {e.keyword for e in before if e.tag not in there or there[e.tag].value != e.value}
    assert len(listed) > 250, "Orthanc has taken out less than the table lists"
    found = cleaned(header_without_burned_in(header), tmp_path)
    for keyword in listed:
        stays = keyword in found and found[keyword].value not in ("", None)
        if stays and keyword not in ("PatientName", "PatientID", "PatientIdentityRemoved", "DeidentificationMethod"):
            assert found[keyword].value != before[keyword].value, f"{keyword} is in the list and stayed"


def header_without_burned_in(header: FileDataset) -> FileDataset:
    header.BurnedInAnnotation = "NO"
    return header


def words_as_file(header: FileDataset, folder: Path) -> bytes:
    path = folder / "sent.dcm"
    dcmwrite(path, header, enforce_file_format=True)
    return path.read_bytes()


def test_what_names_somebody_in_a_sequence_that_stays_is_gone(tmp_path: Path) -> None:
    """Enhanced CT keeps its geometry in sequences; notes beside it go."""
    source = tmp_path / "in.dcm"
    write_enhanced(source, Grid(count=12))
    header = dcmread(source)
    for item in header.PerFrameFunctionalGroupsSequence:
        item.FrameContentSequence = [Dataset()]
        item.FrameContentSequence[0].FrameComments = "Secret words"
        item.FrameContentSequence[0].FrameAcquisitionDateTime = "20240229101112"
        item.FrameContentSequence[0].StackID = "1"
        item.PlanePositionSequence[0].PatientName = "Secret^Name"
        item.add_new(0x00291001, "LO", "Secret words")
    dcmwrite(source, header, enforce_file_format=True)
    before = open_study(source)
    deidentify_file(source, tmp_path / "out.dcm", "P-1", KEY, where="in.dcm")
    data = (tmp_path / "out.dcm").read_bytes()
    assert b"ecret" not in data and b"20240229" not in data
    after = open_study(tmp_path / "out.dcm")
    assert np.array_equal(before.hu, after.hu) and np.allclose(before.affine, after.affine)


def test_uids_are_replaced_alike_in_all_files_and_say_nothing(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", Grid(count=12))
    (tmp_path / "out").mkdir()
    for path in paths:
        deidentify_file(path, tmp_path / "out" / path.name, "P-1", KEY, where=path.name)
    headers = [dcmread(path) for path in sorted((tmp_path / "out").iterdir())]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({getattr(header, keyword) for header in headers}) == 1
    assert len({header.SOPInstanceUID for header in headers}) == 12
    assert all(header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID for header in headers)
    assert all(header.SOPInstanceUID.startswith("2.25.") for header in headers)
    other = deidentified(dcmread(paths[0]), "P-1", Pseudonyms(bytes(32)))
    assert other.StudyInstanceUID != headers[0].StudyInstanceUID, "another server gives other ones"
    before, after = open_study(tmp_path / "in"), open_study(tmp_path / "out")
    assert np.array_equal(before.hu, after.hu) and np.allclose(before.affine, after.affine)


def test_the_result_is_a_ct_that_the_validator_takes(tmp_path: Path) -> None:
    need("dciodvfy")
    (path, *_) = write_series(tmp_path / "in", Grid(count=12))
    cleaned(dcmread(path), tmp_path)
    known = ("SliceLocation", "AcquisitionNumber", "Exposure", "Type 2", "Required")
    before = validation_errors(path)
    assert set(validation_errors(tmp_path / "out.dcm", known=known)) <= set(before)


def test_a_patient_has_one_name_on_this_server() -> None:
    label = patient_label(KEY, "4711", "Secret^Name", "1.2.3")
    assert label == patient_label(KEY, " 4711 ", "", "9.9")
    assert label != patient_label(KEY, "4712", "Secret^Name", "1.2.3")
    assert label != patient_label(Pseudonyms(bytes(32)), "4711", "Secret^Name", "1.2.3")
    assert len(label) == 12 and label.startswith("P-")


def test_text_that_is_burned_in_is_refused_or_warned_of(tmp_path: Path) -> None:
    header = make_slice(Grid(count=1, rows=8, columns=8), 0, 0)
    assert burned_in_warning(header) is None
    header.BurnedInAnnotation = "YES"
    with pytest.raises(BurnedInError, match="burned into its picture"):
        cleaned(header, tmp_path)
    header.BurnedInAnnotation = "NO"
    header.Manufacturer, header.ManufacturerModelName = "GE MEDICAL SYSTEMS", "LightSpeed VCT"
    header.SeriesDescription, header.ImageType = "Dose Report", ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    found = burned_in_warning(header)
    assert found is not None and found.code == "burned-in-possible"


def test_the_preamble_and_the_file_meta_say_nothing(tmp_path: Path) -> None:
    header = make_slice(Grid(count=1, rows=8, columns=8), 0, 0)
    header.preamble = b"SECRET".ljust(128, b"\0")
    header.file_meta.SourceApplicationEntityTitle = "SECRET"
    header.file_meta.PrivateInformationCreatorUID, header.file_meta.PrivateInformation = "1.2.3", b"SECRET"
    cleaned(header, tmp_path)
    assert b"SECRET" not in (tmp_path / "out.dcm").read_bytes()


def test_a_file_that_cannot_be_read_says_no_value(tmp_path: Path) -> None:
    path = tmp_path / "in.dcm"
    path.write_bytes(bytes(128) + b"DICM" + b"Secret^Name" * 20)
    with pytest.raises(DamagedFileError) as raised:
        deidentify_file(path, tmp_path / "out.dcm", "P-1", KEY, where="in.dcm")
    assert "Secret" not in str(raised.value)


def test_comments_of_compressed_images_are_blanked() -> None:
    comment = b"Secret words"
    jpeg = b"\xff\xd8\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + b"\xff\xda\x00\x02Secret in the scan"
    j2k = b"\xff\x4f\xff\x64" + (len(comment) + 4).to_bytes(2, "big") + b"\0\1" + comment + b"\xff\x90\x00\x0aSecret"
    for syntax, stream, left in (("1.2.840.10008.1.2.4.70", jpeg, 1), (JPEG2000Lossless, j2k, 1)):
        item = b"\xfe\xff\x00\xe0" + len(stream).to_bytes(4, "little") + stream
        value = b"\xfe\xff\x00\xe0\0\0\0\0" + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
        out = without_comments(value, syntax)
        assert len(out) == len(value) and out.count(b"Secret") == left, "what is no comment is left alone"
    assert without_comments(b"as it is", "1.2.840.10008.1.2.5") == b"as it is"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_notes_of_nifti_are_blanked_and_voxels_stay(tmp_path: Path, ending: str, version: int) -> None:
    import nibabel

    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    values = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    image = kind(values, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header["descrip"], image.header["aux_file"], image.header["intent_name"] = b"Secret", b"Secret", b"Secret"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Secret words of somebody"))
    source, target = tmp_path / f"in{ending}", tmp_path / f"out{ending}"
    nibabel.save(image, source)
    stored = StoredFile(source.name, source.stat().st_size, source)
    _rewrite_nifti(stored, target, version, packed=ending == ".nii.gz")
    data = target.read_bytes()
    if ending == ".nii.gz":
        import gzip

        data = gzip.decompress(data)
    assert b"Secret" not in data
    after = nibabel.load(target)
    assert np.array_equal(np.asarray(after.dataobj), values) and np.allclose(after.affine, image.affine)


def test_nothing_that_stays_is_retired_or_unknown() -> None:
    from pydicom.datadict import tag_for_keyword

    for keyword in KEPT:
        tag = tag_for_keyword(keyword)
        assert tag is not None and keyword_for_tag(tag) == keyword and not dictionary_is_retired(tag)
