"""What fuzzing the reader means: valid inputs of every kind, a spoiled one of them, and what opening it may do.

Opening either succeeds or raises a ``CspineError`` without patient data in it, in seconds. ``tools/fuzz_reader.py``
looks for inputs that do something else for hours, the suite for a moment; what was ever found lies in ``tests/corpus``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import nibabel
import numpy as np
from PIL import Image

import fuzz_mutations as mutations
from cspine.errors import CspineError
from cspine.reports.dicom_source import read_source
from cspine.studies import list_series, open_image, open_study
from cspine.studies.frames import data_set_start
from dicom_factory import Grid, make_slice, phantom_hu, save, write_enhanced
from fuzz_mutations import with_syntax

CORPUS = Path(__file__).parent / "corpus"
# The names that dicom_factory writes; no message may hold them.
PATIENT = ("Secret^Name", "SECRET-ID", "Secret", "SECRET")
MAX_BYTES = 2**26
# Far more than any of the small inputs takes, on a busy machine too.
MOST_SECONDS = 20.0
# The smallest phantom that passes the reader's check for Hounsfield units.
GRID = Grid(count=4, rows=12, columns=12, spacing=(6.0, 6.0), thickness=8.0)
SYNTAXES = {
    "plain": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "big": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg-2000": "1.2.840.10008.1.2.4.90",
    "htj2k": "1.2.840.10008.1.2.4.201",
}
ENDINGS = {"dicom": ".dcm", "zip": ".zip", "nifti": ".nii", "packed": ".nii.gz", "picture": ".png"}


class FindingError(Exception):
    """Opening did what it must not."""


@dataclass(frozen=True)
class Case:
    """One spoiled input.

    Attributes:
        kind: a key of ``ENDINGS``; the folder of the corpus.
        data: the file.
    """

    kind: str
    data: bytes

    @property
    def name(self) -> str:
        """The same for the same bytes."""
        return hashlib.sha256(self.data).hexdigest()[:16] + ENDINGS[self.kind]

    def save(self, folder: Path = CORPUS) -> Path:
        """Keep it in the corpus."""
        path = folder / self.kind / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)
        return path


@cache
def samples(kind: str) -> tuple[bytes, ...]:
    """Valid files of one kind, small ones."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(_MAKERS[kind](Path(folder)))


def _dicom(folder: Path) -> list[bytes]:
    made = []
    for name, syntax in SYNTAXES.items():
        path = folder / f"{name}.dcm"
        save(make_slice(GRID, 0, 0), path, syntax)
        made.append(path.read_bytes())
        if name not in ("implicit", "big", "deflated", "htj2k"):
            write_enhanced(path, GRID, syntax=syntax)
            made.append(path.read_bytes())
    return [*made, deflated(made[1])]


def deflated(data: bytes, body: bytes | None = None) -> bytes:
    """An explicit little endian file with its data set, or another ``body``, deflated."""
    start = data_set_start(memoryview(data))
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = squeezer.compress(data[start:] if body is None else body) + squeezer.flush()
    return with_syntax(data[:start], SYNTAXES["deflated"].encode()) + packed


def _hu() -> np.ndarray:
    return np.stack([phantom_hu(GRID.points(k)) for k in range(GRID.count)])


def _nifti(folder: Path) -> list[bytes]:
    affine = np.diag([6.0, 6.0, 8.0, 1.0])
    made = []
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for dtype in (np.int16, np.float32):
            image = kind(_hu().transpose(2, 1, 0).astype(dtype), affine)
            image.header.set_xyzt_units("mm")
            made.append(image.to_bytes())
    return made


def _packed(folder: Path) -> list[bytes]:
    return [gzip.compress(data, 1, mtime=0) for data in _nifti(folder)]


def _picture(folder: Path) -> list[bytes]:
    grey = ((_hu()[2].astype(float) + 1000) / 8).clip(0, 255).astype(np.uint8)
    forms = [("PNG", {}), ("JPEG", {"quality": 90}), ("JPEG", {"progressive": True})]
    forms += [("TIFF", {"compression": name}) for name in (None, "tiff_lzw", "jpeg", "packbits", "tiff_deflate")]
    made = []
    for name, options in forms:
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, name, **options)
        made.append(stream.getvalue())
    for mode in ("RGB", "P", "I;16"):
        stream = io.BytesIO()
        image = Image.fromarray(grey.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(grey).convert(mode)
        image.save(stream, "PNG")
        made.append(stream.getvalue())
    return made


def _series(folder: Path, syntax: str) -> list[tuple[str, bytes]]:
    files = []
    for k in range(GRID.count):
        save(make_slice(GRID, k, k), folder / "slice.dcm", syntax)
        files.append((f"{k}.dcm", (folder / "slice.dcm").read_bytes()))
    return files


def packed_zip(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of named files."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as archive:
        warnings.simplefilter("ignore", UserWarning)  # two entries of one name are meant
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def _zip(folder: Path) -> list[bytes]:
    return [
        packed_zip(_series(folder, syntax), method)
        for syntax in (SYNTAXES["plain"], SYNTAXES["rle"], SYNTAXES["jpeg"])
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ] + [packed_zip([("scan.nii", _nifti(folder)[0])])]


_MAKERS: dict[str, Callable[[Path], list[bytes]]] = {
    "dicom": _dicom, "zip": _zip, "nifti": _nifti, "packed": _packed, "picture": _picture,
}  # fmt: skip
_MUTATIONS = {
    "dicom": mutations.DICOM, "zip": mutations.ANY, "nifti": mutations.NIFTI, "packed": mutations.PACKED_NIFTI,
    "picture": mutations.ANY,
}  # fmt: skip
_NAMES = (
    "../0.dcm",
    "/0.dcm",
    "0.dcm",
    "a/",
    "a\\..\\b",
    "x" * 300,
    "\xe9.dcm",
    "con",
    "a.nii",
    "a.nii.gz",
    "DICOMDIR",
    "",
)


def spoiled(kind: str, random: Random) -> Case:
    """One input of a kind, made from a valid one."""
    data = random.choice(samples(kind))
    if kind == "zip" and random.random() < 0.6:
        return Case(kind, _spoiled_inside(data, random))
    return Case(kind, mutations.mutated(data, _MUTATIONS[kind], random))


def _spoiled_inside(data: bytes, random: Random) -> bytes:
    """A zip in order, of files that are not."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(random.choice((1, 1, 2, len(files)))):
        k = random.randrange(len(files))
        name, body = files[k]
        kinds = mutations.DICOM if name.endswith(".dcm") else mutations.NIFTI
        files[k] = (random.choice((name, name, name, *_NAMES)), mutations.mutated(body, kinds, random))
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return packed_zip(files, method)


def check(case: Case, folder: Path) -> None:
    """Open a case in every way there is.

    Raises:
        FindingError: something else than success or a typed error without patient data came of it.
    """
    path = folder / f"case{ENDINGS[case.kind]}"
    path.write_bytes(case.data)
    ways: list[Callable[[], object]] = [lambda: _open(path)]
    if case.kind in ("dicom", "picture"):
        ways.append(lambda: open_image(path))
    if case.kind in ("dicom", "zip"):
        ways.append(lambda: list_series(path))
    for way in ways:
        _check(way)


def _open(path: Path) -> None:
    volume = open_study(path, max_bytes=MAX_BYTES, threads=1)
    if not np.isfinite(volume.affine).all() or not np.isfinite(volume.hu).all():
        raise FindingError("a volume that is not finite")
    if volume.source.kind == "dicom":
        read_source(path, volume.source)


def _check(way: Callable[[], object]) -> None:
    start = time.monotonic()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            # What overflows has no meaning; better refused than computed.
            warnings.simplefilter("error", RuntimeWarning)
            way()
        texts = [str(warning.message) for warning in told]
        if any(name in text for name in PATIENT for text in texts):
            raise FindingError("patient data in a warning")
    except CspineError as error:
        text = f"{error} {error.where} {error.fix}"
        if any(name in text for name in PATIENT):
            raise FindingError(f"patient data in a message: {text}") from error
    except FindingError:
        raise
    except Exception as error:
        raise FindingError(f"{type(error).__name__}: {error}") from error
    if time.monotonic() - start > MOST_SECONDS:
        raise FindingError(f"opening took {time.monotonic() - start:.0f} s")
