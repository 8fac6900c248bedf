"""A CT volume from NIfTI: the affine as the file states it, HU as its scale gives them, nothing assumed in silence."""

from __future__ import annotations

import gzip
import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from cspine.errors import DamagedFileError, GeometryError, IntensityError, StudyWarning, TooLargeError
from cspine.studies.files import MAX_RATIO, StoredFile, check_bytes
from cspine.studies.geometry import MIN_PLANES, PIXEL_SPACING_MM, THICK_SPACING_MM
from cspine.studies.instances import MAX_NUMBER
from cspine.studies.intensity import Scale, check_hu
from cspine.studies.regrid import straightened
from cspine.volume import AIR_HU, Source, Volume

Array = NDArray[Any]

# Where sform and qform put a corner further apart than this, they disagree.
FORM_TOLERANCE_MM = 1.0
# Header extensions before the voxels are notes of converters, a few kilobytes.
MAX_OFFSET_BYTES = 2**26
# gzip of less than this may be as compressible as it likes; a CT with noise stays below 10:1.
RATIO_CHECKED_FROM_BYTES = 2**26
_SLAB_VOXELS = 2**22
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
    with _readable(file.name):
        digest = hashlib.sha256()
        with file.open() as raw:
            while block := raw.read(2**20):
                digest.update(block)
        stored, header = _stored(file, max_bytes, explodes=False)
        warnings: list[StudyWarning] = []
        affine = _affine(header, stored.shape, file.name, warnings)
        hu = _to_hu(stored, header, scale, file.name, max_bytes, warnings)
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
    warnings: list[StudyWarning] = []
    with _readable(file.name):
        stored, header = _stored(file, max_bytes, explodes=True)
        affine = _affine(header, stored.shape, file.name, warnings)
    values = np.asarray(stored)
    slope, intercept = _factors(header, file.name)
    if (slope, intercept) != (1.0, 0.0):
        values = values * slope + intercept
    labels = np.zeros(values.shape, np.uint8, order="F")
    np.copyto(labels, values, casting="unsafe")
    if values.dtype != np.uint8 and not np.array_equal(labels, values):
        raise DamagedFileError("expected a mask of whole numbers 0 to 255", where=file.name)
    source = Source(kind="nifti", name=file.name)
    return Volume(labels.transpose(2, 1, 0), affine, source, tuple(warnings)).reoriented()


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """What reading a file, a zip entry and gzip can raise, as one error that names the file."""
    try:
        yield
    except MemoryError as error:
        raise TooLargeError("there is not enough memory for this image", where=name) from error
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, ValueError) as error:
        raise DamagedFileError(
            f"the NIfTI file cannot be read ({type(error).__name__})", where=name, fix="Copy or export the file again"
        ) from error


def _stored(file: StoredFile, max_bytes: int, *, explodes: bool) -> tuple[Array, Any]:
    """Stored values ``[x, y, z]`` as coded, and the header.

    ``explodes``: gzip may have made the file as small as it likes, as it does with masks.
    """
    with file.open() as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with file.open() as raw, gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as stream:
        header, shape, dtype, offset = _read_header(stream, file.name)
        count = math.prod(shape)
        size = count * dtype.itemsize
        check_bytes(count * max(2, dtype.itemsize), max_bytes, "the volume", where=file.name)
        if not packed and size > file.size:
            raise _cut(file.name)
        if packed and not explodes and size > max(RATIO_CHECKED_FROM_BYTES, MAX_RATIO * file.size):
            raise TooLargeError(
                f"the file unpacks to {size / file.size:.0f} times its size, at most {MAX_RATIO} is read",
                where=file.name,
            )
        flat = np.empty(count, dtype)
        _fill(stream, offset, flat.view(np.uint8).data, file.name)
    return flat.reshape(shape, order="F"), header


def _read_header(stream: Any, name: str) -> tuple[Any, tuple[int, ...], np.dtype[Any], int]:
    """Header, shape of three sizes, type of a voxel, and bytes from the header's end to the voxels."""
    try:
        size = stream.read(4)
        kind: Any = nibabel.Nifti2Header if size in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Header
        header = kind(size + stream.read(kind.sizeof_hdr - 4), check=True)
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        # Some writers leave the offset at 0; the smallest of a single file is meant.
        offset = max(int(header["vox_offset"]), kind.single_vox_offset)
    except (
        HeaderDataError, ImageFileError, WrapStructError, ValueError, LookupError, TypeError, ArithmeticError,
    ) as error:  # fmt: skip
        raise DamagedFileError(f"the NIfTI header cannot be read: {str(error)[:120]}", where=name) from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < MIN_PLANES:
        raise GeometryError(f"expected a 3D image, got shape {shape}", where=name, fix="Give one 3D volume")
    if dtype.names or dtype.kind not in "iuf":
        raise IntensityError(f"expected one number a voxel, got {dtype}", where=name)
    if offset > MAX_OFFSET_BYTES:
        raise DamagedFileError(f"the voxels are said to begin at byte {offset}", where=name)
    return header, shape, dtype, offset - kind.sizeof_hdr


def _fill(stream: Any, skip: int, view: memoryview, name: str) -> None:
    """Step over ``skip`` bytes, then read until ``view`` is full."""
    while skip:
        passed = len(stream.read(min(skip, 2**20)))
        if not passed:
            raise _cut(name)
        skip -= passed
    try:
        while view:
            got = stream.readinto(view[: 2**26])
            if not got:
                raise _cut(name)
            view = view[got:]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _cut(name) from error


def _cut(name: str) -> DamagedFileError:
    return DamagedFileError("the NIfTI file is cut off", where=name, fix="Copy or export the file again")


def _affine(header: Any, shape: tuple[int, ...], name: str, warnings: list[StudyWarning]) -> NDArray[np.float64]:
    """Index to LPS mm from sform or qform.

    Raises:
        GeometryError: neither is set, or they contradict each other in direction.
    """
    sform, qform = header.get_sform(coded=True)[0], None
    try:
        with np.errstate(all="ignore"):  # numbers that are none; seen below
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
    if not _usable(chosen):
        raise GeometryError("the affine of the NIfTI header is not usable", where=name)
    affine = np.asarray(_RAS_TO_LPS @ chosen, dtype=np.float64)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise GeometryError("the affine of the NIfTI header is not usable", where=name)
    if sform is not None and qform is not None and _usable(qform):
        _compare(affine, np.asarray(_RAS_TO_LPS @ qform), shape, name, warnings)
    try:
        factor = _UNIT_MM.get(header.get_xyzt_units()[0])
    except KeyError:
        factor = None  # a code that stands for no unit
    if factor is None:
        warnings.append(StudyWarning("units-assumed-mm", "The NIfTI file names no unit of length; mm was assumed."))
    affine[:3] *= factor or 1.0
    low, high = PIXEL_SPACING_MM
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((spacing >= low) & (spacing <= high)).all():
        raise GeometryError(f"expected voxels of {low} to {high} mm, got {spacing.round(4).tolist()}", where=name)
    return affine


def _usable(affine: Array) -> bool:
    """Whether all its numbers are such as a scanner writes; NaN is none."""
    return bool((np.abs(affine) <= MAX_NUMBER).all())


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


def _factors(header: Any, name: str) -> Scale:
    """Slope and intercept of the header; 1 and 0 where it has none.

    Raises:
        DamagedFileError: they are no numbers of a CT.
    """
    try:
        slope, intercept = (float(value or 0.0) for value in header.get_slope_inter())
    except (HeaderDataError, ValueError) as error:
        raise DamagedFileError("the scale of the NIfTI header makes no sense", where=name) from error
    if not max(abs(slope), abs(intercept)) <= MAX_NUMBER:
        raise DamagedFileError("the scale of the NIfTI header makes no sense", where=name)
    return slope or 1.0, intercept


def _to_hu(
    stored: Array, header: Any, scale: Scale | None, name: str, max_bytes: int, warnings: list[StudyWarning]
) -> Array:
    """HU as int16 when that loses nothing, else float32; below air becomes air."""
    slope, intercept = _factors(header, name)
    if scale is not None:
        slope, intercept = slope * scale[0], intercept * scale[0] + scale[1]
        message = f"HU were made with the scale given: {scale[0]:g} * value + {scale[1]:g}."
        warnings.append(StudyWarning("scale-given", message))
    if stored.dtype == np.int16 and (slope, intercept) == (1, 0) and stored.dtype.isnative:
        np.maximum(stored, AIR_HU, out=stored)
        return stored
    bad = _not_numbers(stored)
    if bad == stored.size:
        raise IntensityError("no voxel is a number", where=name)
    if bad:
        warnings.append(StudyWarning("replaced-non-finite", f"{bad} voxels were not numbers and became air."))
    hu = _converted(stored, slope, intercept, np.dtype(np.int16))
    if hu is None:
        check_bytes(stored.size * 4, max_bytes, "the volume", where=name)
        hu = _converted(stored, slope, intercept, np.dtype(np.float32))
    if hu is None:
        raise IntensityError("the values are no HU", where=name)
    return hu


def _slabs(stored: Array) -> Iterator[slice]:
    """Ranges of slices of a few million voxels, so that floats of a large image are never all there."""
    step = max(1, _SLAB_VOXELS // math.prod(stored.shape[:2]))
    return (slice(k, k + step) for k in range(0, stored.shape[2], step))


def _not_numbers(stored: Array) -> int:
    if stored.dtype.kind != "f":
        return 0
    return sum(int((~np.isfinite(stored[..., slab])).sum()) for slab in _slabs(stored))


def _converted(stored: Array, slope: float, intercept: float, dtype: np.dtype[Any]) -> Array | None:
    """HU as ``dtype``; None when they are not whole numbers or too large for int16, and that is wanted."""
    hu = np.empty(stored.shape, dtype, order="F")
    exact = stored.dtype.kind in "iu" and slope == round(slope) and intercept == round(intercept)
    for slab in _slabs(stored):
        values = stored[..., slab]
        with np.errstate(over="ignore", invalid="ignore"):
            part = np.multiply(values, np.float32(slope), dtype=np.float32, casting="unsafe")
            part += np.float32(intercept)
        if values.dtype.kind == "f":
            part[~np.isfinite(values)] = AIR_HU
        np.maximum(part, AIR_HU, out=part)
        if dtype.kind == "i" and (
            float(part.max()) > np.iinfo(dtype).max or not (exact or (part == np.rint(part)).all())
        ):
            return None
        hu[..., slab] = part
    return hu
