"""Single 2D images for the slice methods: a DICOM slice in HU, or a picture in grey levels."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cspine.errors import (
    DamagedFileError,
    NoImagesError,
    NotCtError,
    StudyError,
    StudyWarning,
    TooLargeError,
    UsageError,
)
from cspine.studies import tags
from cspine.studies.dicom import read_header
from cspine.studies.files import StoredFile, check_bytes
from cspine.studies.frames import PixelSource, read_file
from cspine.studies.header import NotDicomError, coded
from cspine.studies.instances import planes_of, read_instance
from cspine.studies.intensity import Scale, is_integer, parse_scale, rescale_of, to_hu
from cspine.volume import Source

# A picture of more pixels is refused before it is decoded.
MAX_PIXELS = 64 * 2**20
# Four bytes a pixel, as if nothing were compressed.
MAX_FILE_BYTES = 4 * MAX_PIXELS
_FORMATS = ("PNG", "JPEG", "TIFF")


@dataclass(frozen=True, slots=True)
class SliceImage:
    """One slice.

    Attributes:
        pixels: ``[y, x]``: HU (int16, or float32 where the rescale has fractions) when ``unit`` is ``"HU"``, else
            float32 grey levels from 0 (black) to 1 (white).
        unit: what the values are. Grey levels of a picture depend on the window it was made with.
        spacing_mm: between columns (x) and rows (y), or None when the file does not say.
        source: where it came from.
        warnings: what the reader must know.
    """

    pixels: NDArray[Any]
    unit: Literal["HU", "grey"]
    spacing_mm: tuple[float, float] | None
    source: Source
    warnings: tuple[StudyWarning, ...] = field(default=())


def open_image(path: str | Path, *, scale: str | Scale | None = None) -> SliceImage:
    """Open one 2D image: DICOM (one frame), PNG, JPEG or TIFF (one page); colour becomes luminance.

    Args:
        path: the file.
        scale: slope and intercept for a DICOM image without rescale, see ``open_study``.

    Raises:
        UsageError: there is no such file.
        NoImagesError: not an image of these kinds, or several in one file.
        NotCtError: a DICOM image that is not CT.
        DamagedFileError: cut off or nonsensical.
        IntensityError: a DICOM image without rescale.
        TooLargeError: more than ``MAX_PIXELS`` pixels.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("there is no such file", where=str(path))
    file = StoredFile(path.name, path.stat().st_size, path)
    try:
        return _open_dicom(file, path.stem, parse_scale(scale))
    except NotDicomError:
        return _open_picture(file, path.stem)


def _open_dicom(file: StoredFile, name: str, scale: Scale | None) -> SliceImage:
    header = read_header(file)
    instance = read_instance(file, header)
    if instance is None:
        raise NoImagesError("the DICOM file holds no image", where=file.name)
    fmt = instance.format
    if fmt.frames != 1:
        raise NoImagesError(f"expected one image, got {fmt.frames} frames", where=file.name, fix="Open it as a study")
    if instance.modality not in ("", "CT") or instance.color:
        what = "a colour picture" if instance.color else f"modality {coded(instance.modality)}"
        raise NotCtError(f"expected a CT slice, got {what}", where=file.name)
    _check_size(fmt.columns, fmt.rows, file.name)
    plane = planes_of(instance)[0]
    factors = rescale_of(plane, scale)
    data = read_file(instance)
    stored = PixelSource(data, header, fmt).frame(0)
    hu = np.empty((fmt.rows, fmt.columns), np.int16 if is_integer([factors]) else np.float32)
    to_hu(stored, fmt, factors, plane.padding, hu)
    source = Source(
        kind="image",
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        series_uid=instance.series_uid or None,
        study_uid=header.text(tags.STUDY_UID) or None,
        sop_instance_uids=(instance.sop_uid,),
        files=(file.name,),
    )
    spacing = None if plane.spacing is None else (plane.spacing[1], plane.spacing[0])
    return SliceImage(hu, "HU", spacing, source)


def _open_picture(file: StoredFile, name: str) -> SliceImage:
    from PIL import Image, ImageOps, UnidentifiedImageError

    check_bytes(file.size, MAX_FILE_BYTES, "the picture", where=file.name)
    data = file.read()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            _check_size(*picture.size, file.name)
            pages = getattr(picture, "n_frames", 1)
            if pages != 1:
                raise NoImagesError(f"expected one image, got {pages} pages", where=file.name)
            grey = _luminance(ImageOps.exif_transpose(picture))
    except StudyError:
        raise
    except UnidentifiedImageError as error:
        raise NoImagesError(
            "the file is not DICOM, PNG, JPEG or TIFF", where=file.name, fix="Give an image of one of these kinds"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError("the picture claims too many pixels", where=file.name) from error
    except Exception as error:  # what a decoder raises depends on where it meets nonsense; its text may hold a value
        raise DamagedFileError(f"the picture cannot be decoded ({type(error).__name__})", where=file.name) from error
    source = Source(kind="image", name=name, sha256=hashlib.sha256(data).hexdigest(), files=(file.name,))
    message = "The picture holds grey levels, not HU; its window is unknown."
    return SliceImage(grey, "grey", None, source, (StudyWarning("grey-levels", message),))


def _luminance(picture: Any) -> NDArray[np.float32]:
    """Grey levels 0..1 ``[y, x]``; colour by ITU-R BT.601, transparency over black."""
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(picture, dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError("pixels that are not numbers")
        top = 1.0 if picture.mode == "F" else 65535.0
        if values.min() < 0 or values.max() > top:
            raise ValueError(f"pixels outside 0 to {top:g}")
        return values / np.float32(top)
    if picture.mode in ("RGBA", "LA", "PA", "P"):
        from PIL import Image

        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)


def _check_size(columns: int, rows: int, name: str) -> None:
    if math.prod((columns, rows)) > MAX_PIXELS:
        raise TooLargeError(f"expected at most {MAX_PIXELS} pixels, got {columns}x{rows}", where=name)
