"""Judged DICOM studies for tests of results: series in any orientation, with masks and evidence given in millimetres.

As in ``dicom_factory`` everything is a function of LPS millimetres, so the right answer for any voxel of any object
that was written, sent and read back is known without a stored copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset
from pydicom.pixels.utils import unpack_bits

from cspine import reports
from cspine.anatomy import LEVELS, OTHER_BONE, Level
from cspine.findings import Evidence, Findings
from cspine.inference.conclude import input_provenance
from cspine.reports.dicom_source import SourceInstance, SourceSeries, read_source
from cspine.reports.images import ScalarField
from cspine.studies import open_study
from cspine.volume import Volume
from dicom_factory import Grid, write_series
from report_factory import FakePrediction, make_findings

FRACTURED = Level.C5
OBLIQUE = (0.96, 0.28, 0.0, -0.28 * 0.8, 0.96 * 0.8, 0.6)
# Off the middle in x and y, so that a mirrored or shifted mask shows.
COLUMN_MM = (6.0, -4.0)
PITCH_MM = 7.5
RADIUS_MM = 4.6


def middle_of(level: Level) -> tuple[float, float, float]:
    """Centre of a vertebra, LPS mm."""
    return COLUMN_MM[0] + 0.5 * level.index, COLUMN_MM[1], PITCH_MM * (3 - level.index)


def evidence_middle() -> tuple[float, float, float]:
    """Centre of the evidence, at the left edge of the fractured vertebra."""
    x, y, z = middle_of(FRACTURED)
    return x + 3.0, y + 1.0, z


@cache
def mask() -> ScalarField:
    """Vertebrae on a grid of their own: 1.2 mm, not along any axis of any scan, with other bone beside them."""
    affine = np.diag([1.2, 1.2, 1.1, 1.0])
    affine[:3, 3] = (-24.3, -25.1, -32.2)
    turn = np.radians(5.0)
    affine[:2, :2] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ affine[:2, :2]
    values = np.zeros((60, 44, 44), np.uint8)
    z, y, x = np.indices(values.shape)
    world = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    for level in LEVELS:
        values[np.linalg.norm(world - np.asarray(middle_of(level)), axis=-1) < RADIUS_MM] = level
    values[np.linalg.norm(world - np.array([-15.0, 10.0, 0.0]), axis=-1) < 5] = OTHER_BONE
    return ScalarField(values, affine)


def evidence_map() -> ScalarField:
    """A warm spot in the fractured vertebra, cells of 1.6 mm."""
    affine = np.diag([1.6, 1.6, 1.6, 1.0])
    affine[:3, 3] = np.asarray(evidence_middle()) - 8.0
    z, y, x = np.indices((11, 11, 11))
    world = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(world - np.asarray(evidence_middle()), axis=-1)
    return ScalarField(np.exp(-((distance / 3.0) ** 2)).astype(np.float32), affine)


@dataclass(frozen=True)
class Judged:
    """A study that was opened and judged.

    Attributes:
        folder: its files.
        volume: as opened.
        series: its source, read again.
        prediction: with ``mask`` and ``evidence_map``.
    """

    folder: Path
    volume: Volume
    series: SourceSeries
    prediction: FakePrediction

    def write(self, out: Path, *formats: str) -> dict[str, Path]:
        """Write results."""
        return reports.write(self.prediction, self.volume, out, formats=formats, series=self.series)


def judge(
    folder: Path,
    grid: Grid | None = None,
    *,
    edit: Callable[[int, FileDataset], None] | None = None,
    places: list[float] | None = None,
    findings: Callable[[Findings], Findings] = lambda findings: findings,
) -> Judged:
    """Write a series, open it, and say what is always said of it: a burst C5, nothing elsewhere, C7 not judged."""
    write_series(folder, grid or neck(), edit=edit, places=places)
    return judged(folder, findings)


def judged(path: Path, findings: Callable[[Findings], Findings] = lambda findings: findings) -> Judged:
    """The same of a study that lies there already."""
    volume = open_study(path)
    said = findings(said_of(volume))
    prediction = FakePrediction(said, mask().values, mask().affine, {FRACTURED.name: evidence_map()})
    return Judged(path, volume, read_source(path, volume.source), prediction)


def neck(**fields: object) -> Grid:
    """Thin axial slices over all seven vertebrae."""
    return replace(Grid(count=34, rows=48, columns=56, spacing=(1.0, 1.0), thickness=2.0), **fields)  # type: ignore[arg-type]


def said_of(volume: Volume) -> Findings:
    """Findings whose evidence lies where ``evidence_map`` is warm."""
    findings = make_findings((0.02, 0.06, 0.1, 0.03, 0.86, 0.2, None), evidence={FRACTURED.index: (_box(volume),)})
    assert findings.provenance.input is not None
    levels = tuple(item.model_copy(update={"type": "burst" if item.fracture else None}) for item in findings.levels)
    provenance = findings.provenance.model_copy(update={"input": input_provenance(volume)})
    return findings.model_copy(update={"levels": levels, "provenance": provenance})


def _box(volume: Volume) -> Evidence:
    """A box 6 mm wide about the middle of the evidence."""
    at = volume.to_index(evidence_middle())
    half = 3.0 / np.asarray(volume.spacing)
    corners = volume.to_world([at - half, at + half])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return Evidence(
        slice_index=round(float(at[2])),
        box_px=(at[0] - half[0] + 0.5, at[1] - half[1] + 0.5, at[0] + half[0] + 0.5, at[1] + half[1] + 0.5),
        box_mm=(*low.tolist(), *high.tolist()),
        score=0.9,
    )


@dataclass(frozen=True)
class SegFrame:
    """One frame of a segmentation, decoded by nothing but pydicom.

    Attributes:
        segment: ReferencedSegmentNumber.
        source: SOPInstanceUID of the image it was made from.
        position, orientation, spacing: of the frame, as written.
        mask: bool ``[y, x]``.
    """

    segment: int
    source: str
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing: NDArray[np.float64]
    mask: NDArray[np.bool_]

    @property
    def points(self) -> NDArray[np.float64]:
        """LPS mm of the voxel centres, ``[y, x, 3]``, from the formula of PS3.3 C.7.6.2.1.1."""
        y, x = np.indices(self.mask.shape)
        row, column = self.orientation.reshape(2, 3)
        return self.position + x[..., None] * self.spacing[1] * row + y[..., None] * self.spacing[0] * column


def frames_of(seg: Dataset) -> Iterator[SegFrame]:
    """The frames of a BINARY segmentation."""
    shape = int(seg.NumberOfFrames), int(seg.Rows), int(seg.Columns)
    bits = np.asarray(unpack_bits(seg.PixelData))[: int(np.prod(shape))].reshape(shape)
    shared = seg.SharedFunctionalGroupsSequence[0]
    orientation = np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = np.asarray(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, bits, strict=True):
        yield SegFrame(
            segment=int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber),
            source=str(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID),
            position=np.asarray(frame.PlanePositionSequence[0].ImagePositionPatient, float),
            orientation=orientation,
            spacing=spacing,
            mask=pixels.astype(bool),
        )


def segment_numbers(seg: Dataset) -> dict[str, int]:
    """Number of each segment by its label."""
    return {str(item.SegmentLabel): int(item.SegmentNumber) for item in seg.SegmentSequence}


def nearest_labels(points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """What ``mask`` says of LPS points: the label of the nearest voxel, 0 outside."""
    field = mask()
    inverse = np.linalg.inv(field.affine)
    zyx = np.rint((points @ inverse[:3, :3].T + inverse[:3, 3])[..., ::-1]).astype(int)
    inside = ((zyx >= 0) & (zyx < field.values.shape)).all(axis=-1)
    out = np.zeros(points.shape[:-1], np.uint8)
    out[inside] = field.values[tuple(zyx[inside].T)]
    return out


def assert_voxels_are_ours(seg: Dataset, series: SourceSeries) -> None:
    """All voxels of all source slices, those in frames that are not there included, are as the masks say."""
    numbers = segment_numbers(seg)
    frames = {(frame.segment, frame.source): frame for frame in frames_of(seg)}
    assert len(frames) == int(seg.NumberOfFrames)
    row, column = np.asarray(series.orientation).reshape(2, 3)
    for instance in series.instances:
        points = points_of(series, instance)
        expected = nearest_labels(points)
        for level in LEVELS:
            frame = frames.get((numbers[level.name], instance.sop_instance_uid))
            wanted = expected == level
            assert (frame is not None) == wanted.any()
            if frame is not None:
                np.testing.assert_array_equal(frame.mask, wanted)
                np.testing.assert_allclose(frame.points, points, atol=1e-4)
    assert row @ column == pytest.approx(0, abs=1e-6)


def points_of(series: SourceSeries, instance: SourceInstance) -> NDArray[np.float64]:
    """LPS mm of the voxel centres of a source slice."""
    y, x = np.mgrid[: instance.rows, : instance.columns]
    row, column = np.asarray(series.orientation).reshape(2, 3)
    rows_mm, columns_mm = series.pixel_spacing
    return np.asarray(instance.position_mm) + x[..., None] * columns_mm * row + y[..., None] * rows_mm * column


def read(data: bytes | Path) -> FileDataset:
    """A DICOM object from bytes or a file."""
    return dcmread(BytesIO(data) if isinstance(data, bytes) else data)
