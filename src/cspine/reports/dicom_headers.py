"""Headers of the source for results in DICOM: read within limits, and copied without being decoded.

Opening a study scans headers with a reader of its own (``cspine.studies.header``), which keeps nothing of a patient.
It also says how far the header goes, so pydicom is shown no more than that.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING

from cspine.errors import DamagedFileError, TooLargeError
from cspine.studies import tags
from cspine.studies.frames import data_set_start
from cspine.studies.instances import Instance

if TYPE_CHECKING:
    from pydicom import Dataset

# Headers of CT take 5 kB, of Enhanced CT a few MB; pydicom needs some ten times as much memory to hold one.
MAX_HEADER_BYTES = 32 * 2**20
# No single attribute that a result repeats is longer; what is (private blocks, embedded pictures) is left behind.
MAX_VALUE_BYTES = 64 * 2**10
# Codes and their modifiers (PS3.3 8) nest three deep at most.
MAX_CODE_DEPTH = 8

# Patient, Clinical Trial Subject, General Study, Patient Study and Clinical Trial Study modules (PS3.3 C.7.1, C.7.2),
# and what is needed to read them. Sequences of references to other objects are not among them.
COPIED = (
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "QualityControlSubject",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientComments",
    "PatientSpeciesDescription",
    "PatientBreedDescription",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "ProcedureCodeSequence",
    "AdmittingDiagnosesDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "Occupation",
    "AdditionalPatientHistory",
    "AdmissionID",
    "PregnancyStatus",
)


def read_header(instance: Instance) -> Dataset:
    """The header of one file, without pixels, private attributes and long values.

    Raises:
        DamagedFileError: pydicom cannot read it.
        TooLargeError: it is longer than ``MAX_HEADER_BYTES``.
    """
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.filereader import dcmread, read_dataset

    where = instance.file.name
    try:
        if instance.header.syntax == tags.DEFLATED:
            return _kept(read_dataset(BytesIO(_inflated(instance)), False, True))
        data = instance.file.head(_within(instance.header.pixel_offset, where))
        return _kept(dcmread(BytesIO(data), force=True, stop_before_pixels=True))
    except MemoryError as error:
        raise TooLargeError("there is not enough memory for this header", where=where) from error
    except (
        RecursionError, InvalidDicomError, BytesLengthException, EOFError, struct.error, zlib.error,
        ValueError, KeyError, TypeError, AttributeError, IndexError, NotImplementedError, OverflowError,
    ) as error:  # fmt: skip
        # What pydicom raises depends on where nonsense is met; the text may hold values, so it is not repeated.
        raise DamagedFileError(
            f"the header cannot be read ({type(error).__name__})", where=where, fix="Copy or export the file again"
        ) from error


def _within(count: int, where: str) -> int:
    if count > MAX_HEADER_BYTES:
        raise TooLargeError(
            f"the header has {count} bytes, at most {MAX_HEADER_BYTES} are read for results in DICOM", where=where
        )
    return count


def _inflated(instance: Instance) -> bytes:
    """The part of a deflated data set that comes before its pixels."""
    count = _within(instance.header.pixel_offset, instance.file.name)
    data = instance.file.read()
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[data_set_start(memoryview(data)) :], count)


def _kept(header: Dataset) -> Dataset:
    """What of a header is passed on; values stay as they are written in the file."""
    from pydicom import DataElement, Dataset
    from pydicom.dataelem import RawDataElement

    kept = Dataset()
    for tag in header.keys():  # noqa: SIM118 (iterating a data set decodes its elements)
        if tag.is_private or tag.group >= 0x5000 or tag == 0x00880200:
            continue  # curves, functional groups, overlays, pixels; the icon
        element: object = header.get_item(tag)
        if isinstance(element, RawDataElement) and element.length > MAX_VALUE_BYTES:
            continue
        if isinstance(element, (DataElement, RawDataElement)):
            kept[tag] = element
    implicit, little = header.original_encoding
    kept.set_original_encoding(implicit, little, header.original_character_set)
    return kept


def copy_elements(source: Dataset, target: Dataset, keywords: Iterable[str]) -> None:
    """Copy the named elements that are there, values as they are written, replacing those of ``target``.

    Text is not decoded on the way, so what was written in an odd character set comes out as it came in.

    Raises:
        DamagedFileError: a sequence among them cannot be read.
    """
    from copy import deepcopy

    from pydicom.config import disable_value_validation
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement

    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        if tag is None or tag not in source:
            continue
        element: object = source.get_item(tag)
        vr = dictionary_VR(tag)
        if isinstance(element, RawDataElement) and vr != "SQ":
            target[tag] = element._replace(VR=vr, is_implicit_VR=False, is_little_endian=True)
            continue
        try:
            # pydicom quotes a bad value in its warning when it reads one; no value of a patient may reach a log.
            with disable_value_validation():
                copied = deepcopy(source[tag])
                if vr == "SQ":
                    _decode(copied.value, MAX_CODE_DEPTH)
                target[tag] = copied
        except (RecursionError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError) as error:
            raise DamagedFileError(f"{keyword} cannot be read") from error


def _decode(items: Iterable[Dataset], levels: int) -> None:
    """Decode a sequence to its end, so that it is written again in the syntax of the result.

    Raises:
        ValueError: it is nested deeper than ``levels``.
    """
    for item in items:
        for element in item:
            if element.VR == "SQ":
                if levels == 0:
                    raise ValueError("sequences are nested too deep")
                _decode(element.value, levels - 1)
