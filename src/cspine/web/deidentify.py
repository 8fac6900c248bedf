"""De-identification on upload: the Basic Application Level Confidentiality Profile of DICOM PS3.15 annex E, and more.

The profile lists what must go. Here only what is listed in ``KEPT`` stays, at every depth; all else goes, whether
table E.1-1 knows it or not: private attributes, overlays, and what next year's standard adds. The library ``deid``
could do the same for flat headers, but it keeps all that lies in a sequence that is kept, and Enhanced CT is made of
such sequences. What ``deid`` knows better than anybody is which machines write names into the picture; that is asked.

Pixels are not changed, and a head CT shows a face: that is said to whoever uploads, see ``FACE_WARNING``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.errors import DamagedFileError, StudyError, StudyWarning
from cspine.node.privacy import Pseudonyms
from cspine.studies import tags
from cspine.web.codestream_comments import without_comments

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

METHOD = "DICOM PS3.15 Basic Application Level Confidentiality Profile; only listed attributes kept"
# PS3.16 CID 7050.
METHOD_CODE = ("113100", "DCM", "Basic Application Confidentiality Profile")
# A date that is none: type 1 of Enhanced CT, code D of table E.1-1.
DUMMY_DATE, DUMMY_TIME = "19000101", "000000"
# Sequences of Enhanced CT nest three deep.
MAX_DEPTH = 8
FACE_WARNING = StudyWarning("deidentified-pixels", "The pixels were not changed: a CT of the head can show a face.")

# Action U: replaced by a UID that is always the same for the same UID, so that series stay together.
REPLACED_UIDS = frozenset(
    ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "DimensionOrganizationUID")
)
# Type 2 attributes of patient and study that a reader expects; actions Z and X/Z.
EMPTIED = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
    "StudyID", "PositionReferenceIndicator",
)  # fmt: skip
_IMAGE = (
    "SpecificCharacterSet ImageType SOPClassUID Modality Manufacturer ManufacturerModelName BodyPartExamined "
    "PatientPosition SeriesNumber AcquisitionNumber InstanceNumber ImagePositionPatient ImageOrientationPatient "
    "SliceLocation TemporalPositionIdentifier NumberOfTemporalPositions SamplesPerPixel PhotometricInterpretation "
    "PlanarConfiguration NumberOfFrames Rows Columns PixelSpacing PixelAspectRatio BitsAllocated BitsStored HighBit "
    "PixelRepresentation SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue PixelPaddingRangeLimit "
    "BurnedInAnnotation WindowCenter WindowWidth VOILUTFunction RescaleIntercept RescaleSlope RescaleType "
    "LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod PresentationLUTShape PixelData "
    "FloatPixelData DoubleFloatPixelData"
)
_ACQUISITION = (
    "KVP SliceThickness SpacingBetweenSlices DataCollectionDiameter ReconstructionDiameter GantryDetectorTilt "
    "TableHeight RotationDirection ExposureTime XRayTubeCurrent Exposure ExposureInmAs FilterType FilterMaterial "
    "GeneratorPower FocalSpots ConvolutionKernel ConvolutionKernelGroup AcquisitionType RevolutionTime "
    "SingleCollimationWidth TotalCollimationWidth TableSpeed TableFeedPerRotation SpiralPitchFactor CTDIvol "
    "ScanOptions DistanceSourceToDetector DistanceSourceToPatient ReconstructionAlgorithm ReconstructionFieldOfView "
    "ReconstructionPixelSpacing ReconstructionAngle ImageFilter TubeAngle ConstantVolumeFlag ExposureTimeInms "
    "XRayTubeCurrentInmA"
)
_ENHANCED = (
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence PlanePositionSequence "
    "PlaneOrientationSequence PixelValueTransformationSequence FrameVOILUTSequence CTImageFrameTypeSequence FrameType "
    "PixelPresentation VolumetricProperties VolumeBasedCalculationTechnique CTReconstructionSequence "
    "CTAcquisitionTypeSequence CTAcquisitionDetailsSequence CTExposureSequence CTGeometrySequence FrameContentSequence "
    "StackID InStackPositionNumber DimensionIndexValues FrameAcquisitionNumber TemporalPositionIndex "
    "DimensionOrganizationSequence DimensionIndexSequence DimensionIndexPointer FunctionalGroupPointer "
    "DimensionOrganizationType ContentQualification MultienergyCTAcquisition"
)
# What a CT needs to be opened, judged and shown. None of it is in table E.1-1, but for the UIDs that are replaced.
KEPT = frozenset((*_IMAGE.split(), *_ACQUISITION.split(), *_ENHANCED.split())) | REPLACED_UIDS


class BurnedInError(StudyError):
    """The file says that names may be written into its picture."""

    code = "burned-in"


def patient_label(pseudonyms: Pseudonyms, patient_id: str, name: str, study_uid: str) -> str:
    """What a patient is called from now on: the same for all uploads to this server, and of no use elsewhere."""
    known = patient_id.strip() or name.strip() or study_uid
    return f"P-{pseudonyms.digest('patient', known)[:10].upper()}"


def deidentify_file(source: Path, target: Path, label: str, pseudonyms: Pseudonyms, *, where: str) -> None:
    """Write a DICOM file again with nothing in it that names somebody.

    Args:
        source: the file, whose header has been checked by ``studies``; it has been read within limits before.
        target: where the new one goes.
        label: stands for name and ID of the patient.
        pseudonyms: make the new UIDs.
        where: how the user calls the file, for errors.

    Raises:
        BurnedInError: the file says that its picture holds annotation.
        DamagedFileError: it cannot be read to its end.
        OSError: the new one cannot be written.
    """
    from pydicom import dcmread, dcmwrite
    from pydicom.config import disable_value_validation

    with disable_value_validation():  # pydicom's warning of a bad value would quote it
        try:
            header = dcmread(source, force=True)
            if str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
                raise BurnedInError(
                    "the file says that text is burned into its picture, which cannot be taken out",
                    where=where,
                    fix="Upload it without de-identification, or remove the text first",
                )
            dcmwrite(target, deidentified(header, label, pseudonyms), enforce_file_format=True)
        except (StudyError, OSError):
            raise
        except MemoryError as error:
            raise DamagedFileError("there is not enough memory for this file", where=where) from error
        except Exception as error:  # pydicom raises whatever it stumbles over; its text may hold a value
            raise DamagedFileError(f"the file cannot be read ({type(error).__name__})", where=where) from error


def deidentified(header: Dataset, label: str, pseudonyms: Pseudonyms) -> Dataset:
    """A copy of a data set that keeps what ``KEPT`` lists, see ``deidentify_file``.

    Raises:
        DamagedFileError: it holds no image, or sequences nest deeper than those of any CT.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    old_meta = getattr(header, "file_meta", None)
    meta.TransferSyntaxUID = UID(str(getattr(old_meta, "TransferSyntaxUID", ExplicitVRLittleEndian)))
    clean = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _copy(header, clean, pseudonyms, 0)
    if "Rows" not in clean:
        raise DamagedFileError("the file holds no image")
    clean.PatientName = clean.PatientID = label
    for keyword in EMPTIED:
        setattr(clean, keyword, "")
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = METHOD[:64]
    clean.DeidentificationMethodCodeSequence = [_code(*METHOD_CODE)]
    clean.LongitudinalTemporalInformationModified = "REMOVED"
    if "PerFrameFunctionalGroupsSequence" in clean:
        clean.ContentDate, clean.ContentTime = DUMMY_DATE, DUMMY_TIME
        clean.AcquisitionDateTime = DUMMY_DATE + DUMMY_TIME
    if "PixelData" in clean and meta.TransferSyntaxUID.is_encapsulated:
        clean["PixelData"].value = without_comments(clean.PixelData, meta.TransferSyntaxUID)
    # Sets that others have anonymised may have lost them.
    clean.SOPClassUID = clean.get("SOPClassUID") or getattr(old_meta, "MediaStorageSOPClassUID", tags.CT_STORAGE)
    clean.SOPInstanceUID = clean.get("SOPInstanceUID") or generate_uid(prefix=None)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = clean.SOPClassUID, clean.SOPInstanceUID
    return clean


def burned_in_warning(header: Dataset) -> StudyWarning | None:
    """Whether ``deid`` knows a machine that writes names into pictures such as this one, or cannot tell."""
    from deid.dicom.pixels import has_burned_pixels
    from pydicom.dataset import FileDataset

    try:
        found = has_burned_pixels(FileDataset("", header), deid=_machines())
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # it stumbles over values that make no sense
        return StudyWarning("burned-in-unknown", "Whether text is burned into these pictures could not be found out.")
    # Rules without an area say no more than which machine it is, and the white list is of clean ones.
    rules = [one for one in found["results"] if one["group"] != "whitelist"]
    if not any(pair[1] for one in rules for pair in one["coordinates"]):
        return None
    message = "Machines of this kind write names into pictures of this kind; look at the images before you share them."
    return StudyWarning("burned-in-possible", message)


@functools.cache
def _machines() -> object:
    from deid.config import DeidRecipe

    return DeidRecipe()


def _copy(source: Dataset, target: Dataset, pseudonyms: Pseudonyms, depth: int) -> None:
    from pydicom import Dataset
    from pydicom.sequence import Sequence

    if depth > MAX_DEPTH:
        raise DamagedFileError(f"sequences are nested more than {MAX_DEPTH} deep", fix="This is no regular CT file")
    for element in _kept(source):
        if element.VR == "SQ":
            items = []
            for item in element.value or ():
                inner = Dataset()
                _copy(item, inner, pseudonyms, depth + 1)
                items.append(inner)
            target.add_new(element.tag, "SQ", Sequence(items))
        elif element.keyword in REPLACED_UIDS:
            value = str(element.value or "").strip()
            target.add_new(element.tag, "UI", str(pseudonyms.uid("uid", value)) if value else "")
        else:
            target[element.tag] = element


def _kept(source: Dataset) -> Iterator[DataElement]:
    """The listed elements, whose VR is that of the dictionary: a sequence or text under another's tag is dropped."""
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    for tag in source.keys():  # noqa: SIM118 (iterating a data set decodes its elements)
        if tag.is_private or keyword_for_tag(tag) not in KEPT:
            continue
        element = source[tag]
        if element.VR in dictionary_VR(tag).split(" or ") or element.VR in ("OB", "OW"):
            yield element


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
