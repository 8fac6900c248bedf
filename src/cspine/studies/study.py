"""``open_study``: one door for everything a user may have."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cspine.errors import DamagedFileError, NoImagesError, UsageError
from cspine.studies.dicom import Found, find_instances, open_series
from cspine.studies.files import StoredFile, in_archive, in_folder, open_archive
from cspine.studies.intensity import Scale, parse_scale
from cspine.studies.series import SeriesInfo, info, stacks_of
from cspine.volume import Volume

# A volume larger than this is refused unless the caller allows more: 8000 slices of 512x512.
DEFAULT_MAX_BYTES = 4 * 2**30
_ENDINGS = (".nii.gz", ".nii", ".zip", ".dcm", ".dicom", ".ima")


def open_study(
    path: str | Path,
    *,
    series: str | None = None,
    scale: str | Scale | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> Volume:
    """Open a CT study as a volume in HU with axes closest to left, posterior, superior.

    Args:
        path: a folder or zip of DICOM (any nesting, other files among them), one multi-frame DICOM file, or NIfTI.
        series: SeriesInstanceUID to read instead of the best one; see ``list_series``.
        scale: ``(slope, intercept)`` or ``"slope,intercept"``: HU = slope * value + intercept, for values that are
            not HU. Replaces the rescale of DICOM, comes after the scale of NIfTI.
        max_bytes: most memory the volume may take; checked before anything is decoded.
        threads: cores to decode on; all by default.

    Returns:
        ``Volume`` with int16 HU (float32 where int16 would lose something). Its ``source`` says what was read and
        why, ``warnings`` what had to be done to it.

    Raises:
        UsageError: there is no such path or series.
        NoImagesError: nothing in it is an image.
        NotCtError: no CT volume among the images.
        DamagedFileError: truncated or nonsensical; names the file.
        GeometryError: places are unknown or contradictory.
        IntensityError: values are not HU.
        TooLargeError: more than ``max_bytes``.
        UnsafeArchiveError: a zip that escapes or explodes.
    """
    factors = parse_scale(scale)
    path = Path(path)
    with files_of(path) as files:
        nifti = _only_nifti(files, path)
        if nifti is not None:
            if series is not None:
                raise UsageError("NIfTI files have no series to choose from", where=nifti.name, fix="Leave it out")
            from cspine.studies.nifti import open_nifti

            return open_nifti(nifti, name=study_name(path), scale=factors, max_bytes=max_bytes)
        found = find_instances(files)
        _require_images(found, files, path)
        volume = open_series(
            found, name=study_name(path), series=series, scale=factors, max_bytes=max_bytes, threads=threads
        )  # fmt: skip
        return volume.reoriented()


def list_series(path: str | Path) -> tuple[SeriesInfo, ...]:
    """The DICOM image stacks in a folder, zip or file, best first; those that cannot be read say why.

    Raises:
        UsageError: there is no such path.
        NoImagesError: nothing in it is a DICOM image.
        DamagedFileError: the only files that look like DICOM cannot be read.
    """
    path = Path(path)
    with files_of(path) as files:
        found = find_instances(files)
        _require_images(found, files, path)
        return tuple(info(stack) for stack in stacks_of(found.instances))


def study_name(path: Path) -> str:
    """File or folder name without its ending; names the results."""
    name = path.name or path.resolve().name
    if path.is_dir():
        return name
    for ending in _ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name


@contextmanager
def files_of(path: Path) -> Iterator[list[StoredFile]]:
    """The files behind a path; a zip stays open meanwhile.

    Raises:
        UsageError: there is no such path.
        DamagedFileError: a zip that cannot be read.
        UnsafeArchiveError: a zip that escapes or explodes.
    """
    if path.is_dir():
        yield in_folder(path)
        return
    if not path.is_file():
        raise UsageError("there is no such file or folder", where=str(path))
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise UsageError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    if magic[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        yield [StoredFile(path.name, path.stat().st_size, path)]
        return
    with open_archive(path) as archive:
        yield in_archive(archive)


def _only_nifti(files: list[StoredFile], path: Path) -> StoredFile | None:
    """The NIfTI file to open: the file itself, or the only one in a folder or zip without DICOM."""
    named = [file for file in files if file.name.lower().endswith((".nii", ".nii.gz"))]
    if len(files) == 1:
        if is_nifti(files[0]):
            return files[0]
        if named:
            raise DamagedFileError("the file is not NIfTI inside", where=files[0].name, fix="Copy or export it again")
    images = [file for file in named if is_nifti(file)]
    if not images or find_instances(file for file in files if file not in named).instances:
        return None
    if len(images) > 1:
        raise UsageError(f"{len(images)} NIfTI files lie in {path.name}, which is no study", fix="Name one of them")
    return images[0]


def is_nifti(file: StoredFile) -> bool:
    """Whether the file begins like NIfTI-1 or -2, packed or not."""
    head = file.head(1024)
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, 512)
        except zlib.error:
            return False
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def _require_images(found: Found, files: list[StoredFile], path: Path) -> None:
    if found.instances:
        return
    if found.damaged:
        raise found.damaged[0]
    if not files:
        raise NoImagesError("the folder or archive is empty", where=path.name)
    raise NoImagesError(
        f"none of {len(files)} files is a DICOM image or NIfTI",
        where=files[0].name if len(files) == 1 else path.name,
        fix="Give a folder or zip of DICOM, a multi-frame file, or NIfTI",
    )
