"""NIfTI volumes and pictures of an upload; written again without notes about people where that is asked for."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from cspine.errors import CspineError, DamagedFileError, TooLargeError
from cspine.studies.files import StoredFile
from cspine.web.deidentify import FACE_WARNING
from cspine.web.intake import Desk, size_of
from cspine.web.orders import Note, StudyFound
from cspine.web.strings import t
from cspine.web.unpacking import note

BLOCK = 2**20
# Header extensions before the voxels are notes of converters, a few kilobytes.
MAX_OFFSET = 2**26
# Free text of a header, NIfTI-1 and -2: data_type, db_name, descrip, aux_file, intent_name.
_TEXTS = {1: ((4, 14), (14, 32), (148, 228), (228, 252), (328, 344)), 2: ((240, 320), (320, 344), (508, 524))}
_HEADER = {1: 348, 2: 540}
_GZIP = b"\x1f\x8b"
# gzip at level 1: noise hardly shrinks at higher ones.
_LEVEL = 1

Found = tuple[list[StudyFound], list[Note]]


def sort_nifti(files: Sequence[StoredFile], desk: Desk, start: int) -> Found:
    """A study for each NIfTI volume.

    Args:
        files: that begin like NIfTI.
        desk: where they go.
        start: number of the first study.
    """
    studies: list[StudyFound] = []
    problems: list[Note] = []
    for file in files:
        try:
            studies.append(_nifti(file, desk, start + len(studies)))
        except CspineError as error:
            problems.append(note(error.code, file.name, error))
    return studies, problems


def _nifti(file: StoredFile, desk: Desk, number: int) -> StudyFound:
    """One volume.

    Raises:
        CspineError: it is no CT volume, as far as its header says.
    """
    head, version = _nifti_head(file)
    shape, spacing = _grid(head, version, file.name)
    place = desk.place(number)
    packed = file.head(2) == _GZIP
    target = place / ("volume.nii.gz" if packed else "volume.nii")
    notes: list[Note] = []
    title = PurePosixPath(file.name).name.removesuffix(".gz").removesuffix(".nii")[:200]
    if desk.deidentify:
        _rewrite_nifti(file, target, version, packed=packed)
        notes.append(Note(code=FACE_WARNING.code, message=FACE_WARNING.message))
        title = t("uploads.title.nifti")
    else:
        desk.keep(file, target)
    _, size = size_of(place)
    facts: dict[str, object] = {
        "slices": shape[2], "rows": shape[1], "columns": shape[0], "spacing": round(spacing[2], 3),
        "coverage": round(spacing[2] * shape[2], 1), "thickness": None, "kernel": "", "maker": "", "files": 1,
        "bytes": size,
    }  # fmt: skip
    return StudyFound(kind="volume", title=title, facts=facts, notes=tuple(notes))


def _nifti_head(file: StoredFile) -> tuple[bytes, int]:
    """The header, unpacked, and the version of the format."""
    try:
        with file.open() as raw:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if file.head(2) == _GZIP else raw
            head = stream.read(_HEADER[2])
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFileError("the NIfTI file cannot be unpacked", where=file.name, fix="Export it again") from error
    version = 1 if head[344:348] == b"n+1\0" else 2
    if len(head) < _HEADER[version]:
        raise DamagedFileError("the file ends inside its header", where=file.name, fix="Copy or export the file again")
    return head, version


def _grid(head: bytes, version: int, name: str) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Voxels and mm along the three axes of the file."""
    import nibabel

    kind: Any = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    try:
        header = kind(head[: _HEADER[version]], check=False)
        shape = tuple(int(value) for value in header.get_data_shape() if value != 1)
        zooms = tuple(abs(float(value)) for value in header.get_zooms())
    except Exception as error:  # nibabel raises whatever it stumbles over
        raise DamagedFileError("the NIfTI header makes no sense", where=name, fix="Export the file again") from error
    if len(shape) != 3:
        said = "x".join(str(value) for value in shape) or "nothing"
        raise DamagedFileError(f"expected a volume of three dimensions, got {said}", where=name)
    return (shape[0], shape[1], shape[2]), (*zooms[:3], *(1.0,) * 3)[:3]  # type: ignore[return-value]


def _rewrite_nifti(file: StoredFile, target: Path, version: int, *, packed: bool) -> None:
    """The same volume with its notes blanked: texts of the header, and all extensions.

    Raises:
        DamagedFileError: it ends early.
        TooLargeError: the notes are longer than those of any volume.
    """
    import struct

    try:
        with file.open() as raw, target.open("wb") as sink:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
            out = (
                cast(IO[bytes], gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=_LEVEL, mtime=0))
                if packed
                else sink
            )
            head = bytearray(_exactly(stream, _HEADER[version], file.name))
            order = "<" if struct.unpack_from("<i", head)[0] == _HEADER[version] else ">"
            offset = struct.unpack_from(f"{order}f", head, 108)[0] if version == 1 else 0
            offset = struct.unpack_from(f"{order}q", head, 168)[0] if version == 2 else offset
            for start, end in _TEXTS[version]:
                head[start:end] = bytes(end - start)
            if not _HEADER[version] <= offset <= MAX_OFFSET:
                raise TooLargeError("the voxels begin at a place that makes no sense", where=file.name)
            skipped = int(offset) - len(head)
            _exactly(stream, skipped, file.name)
            out.write(bytes(head) + bytes(skipped))
            while block := stream.read(BLOCK):
                out.write(block)
            if out is not sink:
                out.close()
    except (EOFError, zlib.error, gzip.BadGzipFile, OverflowError, ValueError) as error:
        raise DamagedFileError("the NIfTI file cannot be unpacked", where=file.name, fix="Export it again") from error


def _exactly(stream: IO[bytes], count: int, name: str) -> bytes:
    data = b""
    while len(data) < count and (more := stream.read(count - len(data))):
        data += more
    if len(data) < count:
        raise DamagedFileError("the file ends before its voxels", where=name, fix="Copy or export the file again")
    return data


def sort_pictures(files: Sequence[StoredFile], desk: Desk, start: int) -> Found:
    """One study of all pictures.

    Args:
        files: that begin like PNG, JPEG or TIFF.
        desk: where they go.
        start: number of the study.
    """
    problems: list[Note] = []
    taken: list[str] = []
    for file in files:
        try:
            _picture(file, desk, start, len(taken) + 1)
        except CspineError as error:
            problems.append(note(error.code, file.name, error))
        else:
            taken.append(file.name)
    if not taken:
        return [], problems
    count, size = size_of(desk.place(start))
    notes = [Note(code="grey-levels", message=t("uploads.warning.grey-levels"))]
    if desk.deidentify:
        notes.append(Note(code="burned-in-unknown", message=t("uploads.warning.burned-in-unknown")))
    one = PurePosixPath(taken[0]).name
    title = t("uploads.title.pictures", count=count)
    if count == 1:
        title = t("uploads.title.picture") if desk.deidentify else one
    facts: dict[str, object] = {"slices": count, "files": count, "bytes": size, "spacing": None, "thickness": None}
    return [StudyFound(kind="pictures", title=title[:200], facts=facts, notes=tuple(notes))], problems


def _picture(file: StoredFile, desk: Desk, number: int, count: int) -> None:
    """One picture, decoded once to see that it can be; written again when it may say something of people.

    Raises:
        CspineError: it cannot be read.
    """
    import numpy as np
    from PIL import Image

    from cspine.studies.images import open_image

    if file.path is None:
        return
    try:
        opened = open_image(file.path)
    except CspineError as error:
        raise type(error)(error.message, where=file.name, fix=error.fix) from error
    place = desk.place(number)
    if not desk.deidentify:
        ending = PurePosixPath(file.name.lower()).suffix
        known = ending if ending in (".png", ".jpg", ".jpeg", ".tif", ".tiff") else ".png"
        desk.keep(file, place / f"{count:06d}{known}")
        return
    # Grey levels alone: what cameras and programs write beside them stays behind.
    grey = np.rint(np.asarray(opened.pixels, np.float32) * np.float32(255)).astype(np.uint8)
    Image.fromarray(grey).save(place / f"{count:06d}.png")
