"""A CT volume from NIfTI: the affine as the file states it, HU as its scale gives them, nothing assumed in silence."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from contextlib import nullcontext
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from cspine.errors import DamagedFileError, GeometryError, IntensityError, StudyWarning
from cspine.studies.files import StoredFile, check_bytes
from cspine.studies.geometry import MIN_PLANES, PIXEL_SPACING_MM, THICK_SPACING_MM
from cspine.studies.intensity import Scale, check_hu
from cspine.studies.regrid import straightened
from cspine.volume import AIR_HU, Source, Volume

Array = NDArray[Any]

# Where sform and qform put a corner further apart than this, they disagree.
FORM_TOLERANCE_MM = 1.0
# Header extensions before the voxels are notes of converters, a few kilobytes.
MAX_OFFSET_BYTES = 2**26
# Twice a volume of 4000 slices of 512x512: masks of whole numbers are often stored as floats.
DEFAULT_MASK_BYTES = 4 * 2**30
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNIT_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}


def open_nifti(file: StoredFile, *, name: str, scale: Scale | None, max_bytes: int) -> Volume:
    """The volume, axes as stored.

    Raises:
        DamagedFileError: truncated, or a header that makes no sense.
        GeometryError: not 3D, or no affine.
        IntensityError: not HU and no ``scale``.
        TooLargeError: more voxels than ``max_bytes`` hold.
    """
    digest = hashlib.sha256()
    with file.open() as raw:
        while block := raw.read(2**20):
            digest.update(block)
    with file.open() as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with file.open() as raw, gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as stream:
        stored, header = _read(stream, file.name, max_bytes)
    warnings: list[StudyWarning] = []
    affine = _affine(header, stored.shape, file.name, warnings)
    hu = _to_hu(stored, header, scale, file.name, warnings)
    check_hu(hu, where=file.name)
    source = Source(kind="nifti", name=name, sha256=digest.hexdigest(), files=(), selection="The only image.")
    volume = Volume(hu.transpose(2, 1, 0), affine, source).reoriented()
    straight, affine, angle = straightened(volume.hu, volume.affine, where=file.name)
    if angle:
        message = f"Slices were sheared by {angle:.1f} degrees and were shifted onto a straight grid."
        warnings.append(StudyWarning("corrected-gantry-tilt", message))
    step = float(np.linalg.norm(affine[:3, 2]))
    if step > THICK_SPACING_MM:
        message = f"Slices lie {step:.1f} mm apart; fractures may fall between them."
        warnings.append(StudyWarning("thick-slices", message))
    return Volume(straight, affine, source, tuple(warnings))


def open_mask(file: StoredFile, *, max_bytes: int = DEFAULT_MASK_BYTES) -> Volume:
    """A mask of whole numbers 0..255 as uint8, axes closest to left, posterior, superior.

    Raises:
        DamagedFileError: truncated, a header that makes no sense, or values that are no labels.
        GeometryError: not 3D, or no affine.
        TooLargeError: more voxels than ``max_bytes`` hold.
    """
    with file.open() as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with file.open() as raw, gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as stream:
        stored, header = _read(stream, file.name, max_bytes)
    warnings: list[StudyWarning] = []
    affine = _affine(header, stored.shape, file.name, warnings)
    values = np.asarray(stored)
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope, intercept or 0.0) != (1.0, 0.0):
        values = values * slope + (intercept or 0.0)
    labels = np.zeros(values.shape, np.uint8, order="F")
    np.copyto(labels, values, casting="unsafe")
    if values.dtype != np.uint8 and not np.array_equal(labels, values):
        raise DamagedFileError("expected a mask of whole numbers 0 to 255", where=file.name)
    source = Source(kind="nifti", name=file.name)
    return Volume(labels.transpose(2, 1, 0), affine, source, tuple(warnings)).reoriented()


def _read(stream: Any, name: str, max_bytes: int) -> tuple[Array, Any]:
    """Stored values ``[x, y, z]`` as coded, and the header; sizes are checked before memory is taken."""
    cut = DamagedFileError("the NIfTI file is cut off", where=name, fix="Copy or export the file again")
    try:
        size = stream.read(4)
        kind: Any = nibabel.Nifti2Header if size in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Header
        header = kind(size + stream.read(kind.sizeof_hdr - 4), check=True)
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        # Some writers leave the offset at 0; the smallest of a single file is meant.
        offset = max(int(header["vox_offset"]), kind.single_vox_offset)
    except (HeaderDataError, ImageFileError, ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedFileError(f"the NIfTI header cannot be read: {str(error)[:120]}", where=name) from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < MIN_PLANES:
        raise GeometryError(f"expected a 3D image, got shape {shape}", where=name, fix="Give one 3D volume")
    if dtype.names or dtype.kind not in "iuf":
        raise IntensityError(f"expected one number a voxel, got {dtype}", where=name)
    count = int(np.prod(shape, dtype=object))
    check_bytes(count * max(2, dtype.itemsize), max_bytes, "the volume", where=name)
    if offset > MAX_OFFSET_BYTES:
        raise DamagedFileError(f"the voxels are said to begin at byte {offset}", where=name)
    try:
        stream.read(offset - kind.sizeof_hdr)
        flat = np.empty(count, dtype)
        view = flat.view(np.uint8).data
        filled = 0
        while filled < len(view):
            got = stream.readinto(view[filled:])
            if not got:
                raise cut
            filled += got
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise cut from error
    return flat.reshape(shape, order="F"), header


def _affine(header: Any, shape: tuple[int, ...], name: str, warnings: list[StudyWarning]) -> NDArray[np.float64]:
    """Index to LPS mm from sform or qform.

    Raises:
        GeometryError: neither is set, or they contradict each other in direction.
    """
    sform, qform = header.get_sform(coded=True)[0], None
    try:
        qform = header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        qform = None  # a broken quaternion is no statement; sform may still be one
    chosen = sform if sform is not None else qform
    if chosen is None:
        raise GeometryError(
            "neither sform nor qform is set, so nothing says where the voxels lie",
            where=name,
            fix="Convert the original DICOM again",
        )
    affine = np.asarray(_RAS_TO_LPS @ chosen, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise GeometryError("the affine of the NIfTI header is not usable", where=name)
    if sform is not None and qform is not None:
        _compare(affine, np.asarray(_RAS_TO_LPS @ qform), shape, name, warnings)
    unit = header.get_xyzt_units()[0]
    factor = _UNIT_MM.get(unit)
    if factor is None:
        warnings.append(StudyWarning("units-assumed-mm", "The NIfTI file names no unit of length; mm was assumed."))
    affine[:3] *= factor or 1.0
    low, high = PIXEL_SPACING_MM
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((spacing >= low) & (spacing <= high)).all():
        raise GeometryError(f"expected voxels of {low} to {high} mm, got {spacing.round(4).tolist()}", where=name)
    return affine


def _compare(
    affine: NDArray[np.float64],
    other: NDArray[np.float64],
    shape: tuple[int, ...],
    name: str,
    warnings: list[StudyWarning],
) -> None:
    corners = np.array([[x, y, z, 1] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])], float)
    apart = float(np.linalg.norm((corners @ (affine - other).T)[:, :3], axis=1).max())
    if apart <= FORM_TOLERANCE_MM:
        return
    if np.sign(np.linalg.det(affine[:3, :3])) != np.sign(np.linalg.det(other[:3, :3])):
        raise GeometryError(
            "sform and qform mirror each other, so left and right are unknown", where=name, fix="Correct the header"
        )
    message = f"sform and qform of the NIfTI file lie up to {apart:.0f} mm apart; sform was used."
    warnings.append(StudyWarning("sform-qform-disagree", message))


def _to_hu(stored: Array, header: Any, scale: Scale | None, name: str, warnings: list[StudyWarning]) -> Array:
    """HU as int16 when that loses nothing, else float32; below air becomes air."""
    slope, intercept = header.get_slope_inter()
    slope, intercept = (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))
    if scale is not None:
        slope, intercept = slope * scale[0], intercept * scale[0] + scale[1]
        message = f"HU were made with the scale given: {scale[0]:g} * value + {scale[1]:g}."
        warnings.append(StudyWarning("scale-given", message))
    values = stored
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            bad = values.size - int(finite.sum())
            if bad == values.size:
                raise IntensityError("no voxel is a number", where=name)
            values = np.where(finite, values, (AIR_HU - intercept) / slope)
            warnings.append(StudyWarning("replaced-non-finite", f"{bad} voxels were not numbers and became air."))
    whole = slope == round(slope) and intercept == round(intercept)
    if values.dtype == np.int16 and (slope, intercept) == (1, 0) and values.dtype.isnative:
        np.maximum(values, AIR_HU, out=values)
        return values
    hu = np.empty(values.shape, np.float32, order="F")
    np.multiply(values, np.float32(slope), out=hu, casting="unsafe")
    hu += np.float32(intercept)
    np.maximum(hu, AIR_HU, out=hu)
    whole = (whole and values.dtype.kind in "iu") or bool((hu == np.rint(hu)).all())
    return hu.astype(np.int16) if whole and float(hu.max()) <= np.iinfo(np.int16).max else hu
