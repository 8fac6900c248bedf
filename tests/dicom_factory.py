"""Small CT studies made for tests: an asymmetric phantom given in world coordinates, written in any orientation.

Because the phantom is a function of LPS millimetres, a test needs no stored picture of the right answer: whatever
was written and however it was opened, ``volume.hu`` must equal ``phantom_hu`` at the volume's own voxel centres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
ROOT = "1.2.826.0.1.3680043.8.498."
HTJ2K = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203))


def phantom_hu(world: NDArray[np.float64]) -> NDArray[np.int16]:
    """HU at LPS points ``(..., 3)``: a ball of 36 mm with a different slope along every axis, bone off centre."""
    x, y, z = np.moveaxis(np.asarray(world, dtype=np.float64), -1, 0)
    hu = np.full(x.shape, -1000.0)
    inside = x * x + y * y + z * z < 36**2
    hu[inside] = np.rint(40 + 3 * x + 1.5 * y - 0.7 * z)[inside]
    bone = (x - 14) ** 2 + (y - 8) ** 2 + (z - 5) ** 2 < 8**2
    hu[bone] = 700
    return hu.astype(np.int16)


@dataclass(frozen=True)
class Grid:
    """Where slices lie. ``step`` is the vector from one slice to the next; by default the slice normal."""

    count: int = 12
    rows: int = 40
    columns: int = 48
    spacing: tuple[float, float] = (2.0, 1.75)  # between rows, between columns, the order of DICOM
    thickness: float = 2.5
    orientation: Sequence[float] = AXIAL
    step: Sequence[float] | None = None

    @property
    def axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        row, column = np.asarray(self.orientation, dtype=float).reshape(2, 3)
        return row, column, np.cross(row, column)

    def position(self, k: float) -> NDArray[np.float64]:
        """Centre of the first voxel of slice ``k``; the middle of the stack is the world's origin."""
        row, column, normal = self.axes
        step = normal * self.thickness if self.step is None else np.asarray(self.step, dtype=float)
        corner = -row * self.spacing[1] * (self.columns - 1) / 2 - column * self.spacing[0] * (self.rows - 1) / 2
        return np.asarray(corner + step * (k - (self.count - 1) / 2))

    def points(self, k: float) -> NDArray[np.float64]:
        """World points ``(rows, columns, 3)`` of slice ``k``."""
        row, column, _ = self.axes
        y, x = np.mgrid[: self.rows, : self.columns]
        return self.position(k) + x[..., None] * self.spacing[1] * row + y[..., None] * self.spacing[0] * column


def make_slice(
    grid: Grid, k: float, number: int, *, series: str = "1", hu: NDArray[np.int16] | None = None
) -> FileDataset:
    """One CT Image Storage instance, uncompressed, stored unsigned 12 bits with an intercept of -1024."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = f"{ROOT}1.{series}.{number + 1}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = ROOT + "1", f"{ROOT}1.{series}"
    ds.FrameOfReferenceUID = ROOT + "1.0"
    ds.PatientName, ds.PatientID = "Secret^Name", "SECRET-ID"
    ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Manufacturer, ds.ConvolutionKernel, ds.KVP = "Maker", "Br64", "120"
    ds.PatientPosition = "HFS"
    ds.SliceThickness = f"{grid.thickness:.4f}"
    ds.InstanceNumber = str(number + 1)
    ds.AcquisitionNumber = "1"
    ds.ImagePositionPatient = [f"{v:.6f}" for v in grid.position(k)]
    ds.ImageOrientationPatient = [f"{v:.6f}" for v in grid.orientation]
    ds.PixelSpacing = [f"{v:.6f}" for v in grid.spacing]
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "-1024", "HU"
    set_pixels(ds, (phantom_hu(grid.points(k)) if hu is None else hu).astype(np.int32) + 1024)
    return ds


def set_pixels(ds: Dataset, stored: NDArray[np.generic], *, bits: int = 12, signed: bool = False) -> None:
    """Put ``[y, x]`` (or ``[frame, y, x]``) stored values in, 16 bits allocated."""
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, int(signed)
    ds.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()


def write_series(
    folder: Path,
    grid: Grid | None = None,
    *,
    syntax: str = ExplicitVRLittleEndian,
    series: str = "1",
    places: Sequence[float] | None = None,
    edit: Callable[[int, FileDataset], None] | None = None,
    shuffle: bool = True,
) -> list[Path]:
    """Write a series, one file a slice, file names and instance numbers not in the order of place.

    Args:
        places: slice places in steps, default ``range(count)``.
        edit: called with the index and the data set before it is written.
    """
    grid = grid or Grid()
    folder.mkdir(parents=True, exist_ok=True)
    places = list(range(grid.count)) if places is None else list(places)
    names = np.random.default_rng(7).permutation(len(places)) if shuffle else np.arange(len(places))
    paths = []
    for index, place in enumerate(places):
        ds = make_slice(grid, place, int(names[index]), series=series)
        if edit is not None:
            edit(index, ds)
        path = folder / f"s{series}_{names[index]:04d}.dcm"
        save(ds, path, syntax)
        paths.append(path)
    return paths


def save(ds: FileDataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> None:
    """Write in any syntax CT comes in. Compressed ones are encoded by GDCM, which the reader does not use."""
    if syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(path, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    elif syntax == ExplicitVRBigEndian:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        dcmwrite(path, ds, enforce_file_format=True, implicit_vr=False, little_endian=False)
    elif syntax in HTJ2K:
        _save_htj2k(ds, path, syntax)
    else:
        ds.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
        _transcode(path, syntax)


def _save_htj2k(ds: FileDataset, path: Path, syntax: str) -> None:
    """GDCM and OpenJPEG do not write it; OpenJPH does."""
    import imagecodecs

    kind = np.int16 if ds.PixelRepresentation else np.uint16
    frames = np.frombuffer(ds.PixelData, kind).reshape(-1, ds.Rows, ds.Columns)
    ds.PixelData = encapsulate([imagecodecs.htj2k_encode(frame, reversible=True) for frame in frames])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)


def _transcode(path: Path, syntax: str) -> None:
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise RuntimeError(f"GDCM cannot read {path}")
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError(f"GDCM cannot write {syntax}")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError(f"GDCM cannot write {path}")


def write_enhanced(path: Path, grid: Grid | None = None, *, syntax: str = ExplicitVRLittleEndian) -> None:
    """One Enhanced CT file: geometry per frame, spacing and rescale shared, frames not in the order of place."""
    grid = grid or Grid()
    order = np.random.default_rng(3).permutation(grid.count)
    ds = make_slice(grid, 0, 0)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(ds, name)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[f"{v:.6f}" for v in grid.orientation])]
    measures = _item(PixelSpacing=[str(v) for v in grid.spacing], SliceThickness=str(grid.thickness))
    shared.PixelMeasuresSequence = [measures]
    rescale = _item(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU")
    shared.PixelValueTransformationSequence = [rescale]
    shared.CTReconstructionSequence = [_item(ConvolutionKernel="Br64")]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame = Dataset()
        frame.PlanePositionSequence = [_item(ImagePositionPatient=[f"{v:.6f}" for v in grid.position(float(k))])]
        frame.CTImageFrameTypeSequence = [_item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    ds.NumberOfFrames = str(grid.count)
    set_pixels(ds, np.stack([phantom_hu(grid.points(float(k))) for k in order]).astype(np.int32) + 1024)
    if syntax != ExplicitVRLittleEndian:
        # GDCM would rewrite the frames' geometry, so it only gets to see single slices.
        frames_coded = []
        for k in order:
            save(make_slice(grid, float(k), 0), path, syntax)
            frames_coded.append(next(generate_frames(dcmread(path).PixelData, number_of_frames=1)))
        ds.PixelData = encapsulate(frames_coded)
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)


def _item(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def write_localizer(folder: Path, *, series: str = "9") -> None:
    """Two localizer images of one series."""

    def edit(index: int, ds: FileDataset) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(folder, Grid(count=2, orientation=CORONAL), series=series, edit=edit)


def new_uid() -> str:
    """A UID of the test root."""
    return str(generate_uid(prefix=ROOT))
