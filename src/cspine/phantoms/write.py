"""Write cases as NIfTI or DICOM, all or nothing: a file or folder appears when it is whole.

The same case gives the same bytes: no clock, no machine and no library version is written.
"""

from __future__ import annotations

import errno
import gzip
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cspine.cases import Case
from cspine.errors import OutputError
from cspine.phantoms.scanner import disc_of
from cspine.volume import AIR_HU, Affine, Array, Volume

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset
    from pydicom.uid import UID

RESCALE_INTERCEPT = -1024
PARTIAL = ".partial-"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# ITK and others read level 1 as fast as any, and noise hardly shrinks at the higher ones.
_GZIP_LEVEL = 1


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A place to write ``path`` (a file or a folder); moved to ``path`` at the end, removed when anything fails.

    Raises:
        OutputError: the disk is full, the folder is read-only, or something is in the way.
    """
    partial = path.with_name(PARTIAL + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        try:
            yield partial
            _remove(path)
            partial.rename(path)
        finally:
            _remove(partial)
    except OSError as error:
        raise output_error(error, path) from error


def output_error(error: OSError, path: Path) -> OutputError:
    """The typed error for a failed write to ``path``."""
    fixes = {
        errno.ENOSPC: "Free some space and run the same command again: finished studies are kept",
        errno.EROFS: "Choose another folder with --out",
        errno.EACCES: "Choose another folder with --out, or change its permissions",
    }
    return OutputError(
        f"cannot write: {error.strerror or error}",
        where=str(path),
        fix=fixes.get(error.errno or 0, "Choose another folder"),
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_nifti(array: Array, affine: Affine, path: Path) -> None:
    """Write an array ``[z, y, x]`` with its LPS affine as NIfTI (RAS, millimetres); ``.gz`` compresses.

    Args:
        array: int16, uint8 or bool.
        affine: index ``(x, y, z, 1)`` → LPS mm.
        path: ends in ``.nii`` or ``.nii.gz``.

    Raises:
        OutputError: it cannot be written.
    """
    import nibabel

    stored = array.astype(np.uint8) if array.dtype == np.bool_ else array
    image: Any = nibabel.Nifti1Image(stored.T, _LPS_TO_RAS @ affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1, strip_shears=True)
    data = image.to_bytes()
    with writing(path) as partial:
        if path.name.endswith(".gz"):
            data = gzip.compress(data, compresslevel=_GZIP_LEVEL, mtime=0)
        partial.write_bytes(data)


def write_rsna_mask(labels: NDArray[np.uint8], affine: Affine, path: Path) -> None:
    """Write a label mask as RSNA 2022's are stored: rows run forward, so only the affine says where it belongs.

    Bone that is no vertebra is left out, and thoracic vertebrae are 8, as T1 is there.

    Raises:
        OutputError: it cannot be written.
    """
    from cspine.anatomy import OTHER_BONE

    vertebrae = np.where(labels == OTHER_BONE, 0, labels).astype(np.uint8)
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    flip[1, 3] = labels.shape[1] - 1
    write_nifti(vertebrae[:, ::-1], affine @ flip, path)


def phantom_uid(case: Case, part: str) -> str:
    """A DICOM UID under pydicom's root that depends on the case's name and voxels, and on what it is for."""
    from pydicom.uid import generate_uid

    digest = zlib.crc32(np.ascontiguousarray(case.volume.hu).view(np.uint8).data)
    return str(generate_uid(entropy_srcs=["cspine phantom", case.name, f"{digest:08x}", part]))


def write_dicom(case: Case, folder: Path, *, shuffle: bool = True) -> list[int]:
    """Write a case as a DICOM series, one file a slice, Explicit VR Little Endian.

    Args:
        case: its volume's slices lie along z.
        folder: to be made; replaced when it exists.
        shuffle: name the files in random order, so that nobody can sort by name; else by InstanceNumber, which
            counts from the feet or from the head as the scanner stores.

    Returns:
        The number in the file's name (``<n>.dcm``) of each slice along z.

    Raises:
        OutputError: it cannot be written.
    """
    from pydicom.uid import generate_uid

    volume = case.volume
    count = volume.shape[0]
    uids = {part: phantom_uid(case, part) for part in ("study", "series", "frame")}
    rng = np.random.default_rng(zlib.crc32(uids["series"].encode()))
    storage = volume.source.acquisition.get("storage", "feet-first")
    up = storage == "feet-first" or (storage == "shuffled" and bool(rng.random() < 0.5))
    instance = np.arange(1, count + 1) if up else np.arange(count, 0, -1)
    number = rng.permutation(count) + 1 if shuffle or storage == "shuffled" else instance
    template = _header(case, uids)
    pixels = _stored(volume)
    with writing(folder) as partial:
        partial.mkdir()
        for k in range(count):
            _fill(
                template,
                volume,
                k,
                int(instance[k]),
                generate_uid(entropy_srcs=[uids["series"], str(instance[k])]),
                pixels(k),
            )
            template.save_as(partial / f"{number[k]}.dcm", enforce_file_format=True)
    return [int(n) for n in number]


def _stored(volume: Volume) -> Callable[[int], NDArray[np.int16]]:
    """Function from slice to stored int16 pixels, with the padding value outside the reconstructed disc."""
    facts = volume.source.acquisition
    padding = int(facts.get("padding", AIR_HU))
    disc = disc_of(volume.shape[1], volume.shape[2], float(facts.get("circle", 2.0)))

    def pixels(k: int) -> NDArray[np.int16]:
        out: NDArray[np.int16] = volume.hu[k].astype(np.int16) - np.int16(RESCALE_INTERCEPT)
        if disc is not None:
            out[~disc] = padding - RESCALE_INTERCEPT
        return out

    return pixels


def _number(value: float) -> str:
    """A DICOM decimal string: at most 16 characters, no exponent for the lengths that occur here."""
    text = f"{round(value, 6):.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _header(case: Case, uids: dict[str, str]) -> FileDataset:
    """What all slices share."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, CTImageStorage, ExplicitVRLittleEndian

    volume, facts = case.volume, case.volume.source.acquisition
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = "CSPINE_PHANTOM"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    bone = facts.get("kernel", "bone") == "bone"
    thickness = float(facts.get("thickness", volume.spacing[2]))
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SOPClassUID = CTImageStorage
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20200101"
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "120000"
    data.AccessionNumber = ""
    data.Modality = "CT"
    data.Manufacturer = "cspine"
    data.ManufacturerModelName = "phantom"
    data.ReferringPhysicianName = ""
    data.StudyDescription = "CT CERVICAL SPINE (SYNTHETIC)"
    data.SeriesDescription = f"{'BONE' if bone else 'SOFT TISSUE'} {thickness:.2f}"
    data.PatientName = "PHANTOM"
    data.PatientID = case.name[:64]
    data.PatientBirthDate = ""
    data.PatientSex = "O"
    data.BodyPartExamined = "CSPINE"
    data.SliceThickness = _number(thickness)
    data.KVP = "120"
    data.SpacingBetweenSlices = _number(volume.spacing[2])
    data.GantryDetectorTilt = _number(float(facts.get("tilt", 0.0)))
    data.ConvolutionKernel = "BONE" if bone else "STANDARD"
    data.PatientPosition = "HFS"
    data.StudyInstanceUID = uids["study"]
    data.SeriesInstanceUID = uids["series"]
    data.FrameOfReferenceUID = uids["frame"]
    data.StudyID = "1"
    data.SeriesNumber = 2
    data.AcquisitionNumber = 1
    _describe_pixels(data, volume)
    return data


def _describe_pixels(data: FileDataset, volume: Volume) -> None:
    """The image module that all slices share."""
    _, rows, columns = volume.shape
    x_mm, y_mm, _ = volume.spacing
    axes = volume.affine[:3, :2] / np.array([x_mm, y_mm])
    data.ImageOrientationPatient = [_number(float(v)) for v in (*axes[:, 0], *axes[:, 1])]
    data.PositionReferenceIndicator = ""
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = rows, columns
    data.PixelSpacing = [_number(y_mm), _number(x_mm)]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = 1
    padding = int(volume.source.acquisition.get("padding", AIR_HU))
    if padding < AIR_HU:
        data.add_new("PixelPaddingValue", "SS", padding - RESCALE_INTERCEPT)
    data.WindowCenter, data.WindowWidth = "500", "2000"
    data.RescaleIntercept = str(RESCALE_INTERCEPT)
    data.RescaleSlope = "1"
    data.RescaleType = "HU"


def _fill(data: FileDataset, volume: Volume, k: int, instance: int, uid: UID, pixels: NDArray[np.int16]) -> None:
    """What differs from slice to slice."""
    position = volume.to_world([0, 0, k])
    data.SOPInstanceUID = uid
    data.file_meta.MediaStorageSOPInstanceUID = uid
    data.InstanceNumber = instance
    data.ImagePositionPatient = [_number(float(v)) for v in position]
    data.SliceLocation = _number(float(position[2]))
    data.PixelData = np.ascontiguousarray(pixels, dtype="<i2").tobytes()
