"""Vertebrae and evidence as a DICOM Segmentation (BINARY), on the slices of the source series. PS3.3 A.51, C.8.20."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cspine.reports import dicom_codes as codes
from cspine.reports.dicom_segments import Segment, overlap, segments
from cspine.reports.dicom_source import SourceSeries
from cspine.reports.dicom_uids import SERIES_NUMBERS, result_uid, uid_of
from cspine.reports.dicom_writing import MANUFACTURER, equipment, finish, moment, neutral, series_of
from cspine.reports.inputs import ReportInput

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset

# Told apart from the colours of the vertebrae, also with the common colour-vision deficiencies: darker than all.
EVIDENCE_COLOUR = (200, 0, 40)


def render(report: ReportInput) -> bytes | None:
    """The segmentation as a DICOM file; None when no vertebra was found.

    Raises:
        UsageError: the input was no DICOM.
        DamagedFileError: an attribute of the source cannot be repeated.
    """
    parts = segments(report)
    if all(part.evidence for part in parts):
        return None
    series = series_of(report)
    described = [_description(report, part) for part in parts]
    # Evidence lies inside vertebrae, and highdicom wants one label a voxel or one whole volume a segment: so what
    # does not overlap is given to it together as labels, and the frames of all calls are put behind each other.
    calls = [[part for part in parts if not part.evidence], *([part] for part in parts if part.evidence)]
    pieces = [_piece(report, call, described) for call in calls]
    whole = pieces[0]
    _join(whole, pieces)
    whole.SegmentsOverlap = "YES" if overlap(parts) else "NO"
    _put_references_right(whole, series)
    organization = uid_of(result_uid(report, "seg"), "dimensions")
    for item in (*whole.DimensionOrganizationSequence, *whole.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return finish(whole, report)


def _description(report: ReportInput, part: Segment) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription

    made = equipment(report.findings)
    site = codes.vertebra(part.level)
    algorithm = AlgorithmIdentificationSequence(
        name=f"{MANUFACTURER} {made.name}",
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=made.version,
        source=MANUFACTURER,
        parameters={"bundle_sha256": made.digest},
    )
    return SegmentDescription(
        segment_number=part.number,
        segment_label=part.label,
        segmented_property_category=codes.ABNORMAL_STRUCTURE if part.evidence else codes.ANATOMICAL_STRUCTURE,
        segmented_property_type=codes.FRACTURE if part.evidence else site,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=result_uid(report, part.tracking),
        tracking_id=part.label,
        anatomic_regions=[site] if part.evidence else None,
        display_color=CIELabColor.from_rgb(*(EVIDENCE_COLOUR if part.evidence else part.level.colour)),
    )


def _piece(report: ReportInput, parts: Sequence[Segment], described: Sequence[SegmentDescription]) -> Segmentation:
    """One segmentation by highdicom, of segments that do not overlap, on the slices that they have voxels in."""
    from highdicom.seg import Segmentation, SegmentationTypeValues

    series, made = series_of(report), equipment(report.findings)
    used = sorted({patch.slice_index for part in parts for patch in part.patches})
    first = series.instances[used[0]]
    labels = np.zeros((len(used), first.rows, first.columns), np.uint8)
    for part in parts:
        for patch in part.patches:
            rows, columns = patch.mask.shape
            target = labels[used.index(patch.slice_index)]
            target[patch.row : patch.row + rows, patch.column : patch.column + columns][patch.mask] = part.number
    day, clock = moment(report)
    return Segmentation(
        source_images=[neutral(series, series.instances[k], uid=_stand_in(k)) for k in used],
        pixel_array=labels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=result_uid(report, "seg-series"),
        series_number=SERIES_NUMBERS["seg"],
        sop_instance_uid=result_uid(report, "seg"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=made.model,
        software_versions=made.software,
        device_serial_number=made.digest,
        content_label="CERVICAL_SPINE",
        content_description="Cervical vertebrae and evidence of fractures",
        series_description="cspine vertebrae and evidence (research use only)",
        content_date=day,
        content_time=clock,
        series_date=day,
        series_time=clock,
    )


def _stand_in(index: int) -> str:
    """What a source plane is called until the references are put right."""
    return f"2.25.{index + 1}"


def _join(whole: Segmentation, pieces: Sequence[Segmentation]) -> None:
    """Give ``whole`` the frames of all pieces, and number the slices of all in one order."""
    from highdicom.spatial import VOLUME_INDEX_CONVENTION, get_normal_vector

    if len(pieces) == 1:
        return
    frames = [frame for piece in pieces for frame in piece.PerFrameFunctionalGroupsSequence]
    orientation = whole.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    normal = get_normal_vector(orientation, index_convention=VOLUME_INDEX_CONVENTION)
    depths = [float(normal @ np.asarray(f.PlanePositionSequence[0].ImagePositionPatient, float)) for f in frames]
    rank = {depth: k + 1 for k, depth in enumerate(sorted(set(depths)))}
    for frame, depth in zip(frames, depths, strict=True):
        content = frame.FrameContentSequence[0]
        content.DimensionIndexValues = [content.DimensionIndexValues[0], rank[depth]]
    # ``whole`` is one of the pieces: its pixels are joined while it still counts its own frames.
    whole.PixelData = _bits(pieces)
    whole.PerFrameFunctionalGroupsSequence = frames
    whole.NumberOfFrames = len(frames)


def _bits(pieces: Sequence[Segmentation]) -> bytes:
    """The pixels of all pieces behind each other, eight a byte, frames not padded (PS3.5 8.1.1, D)."""
    from pydicom.pixels.utils import pack_bits, unpack_bits

    counts = [int(piece.NumberOfFrames) * piece.Rows * piece.Columns for piece in pieces]
    if all(count % 8 == 0 for count in counts):
        data = b"".join(piece.PixelData[: count // 8] for piece, count in zip(pieces, counts, strict=True))
        return data + b"\0" * (len(data) % 2)
    bits = [np.asarray(unpack_bits(p.PixelData))[:count] for p, count in zip(pieces, counts, strict=True)]
    return pack_bits(np.concatenate(bits))


def _put_references_right(whole: Segmentation, series: SourceSeries) -> None:
    """Let every reference name the image that stood behind the stand-in, and its frame where it has several."""
    behind = {_stand_in(k): k for k in range(len(series.instances))}
    used: set[int] = set()
    for frame in whole.PerFrameFunctionalGroupsSequence:
        for item in frame.DerivationImageSequence[0].SourceImageSequence:
            # highdicom shares one item between the frames of a slice.
            index = behind.get(str(item.ReferencedSOPInstanceUID))
            if index is not None:
                used.add(index)
                _refer(item, series, index)
                if series.instances[index].multiframe:
                    item.ReferencedFrameNumber = series.instances[index].frame
    whole.SourceImageSequence = _references(series, used)
    whole.ReferencedSeriesSequence[0].ReferencedInstanceSequence = _references(series, used)


def _refer(item: Dataset, series: SourceSeries, index: int) -> None:
    item.ReferencedSOPClassUID = series.instances[index].sop_class_uid
    item.ReferencedSOPInstanceUID = series.instances[index].sop_instance_uid


def _references(series: SourceSeries, used: set[int]) -> list[Dataset]:
    """One item an instance, in slice order."""
    from pydicom import Dataset

    first = {series.instances[index].sop_instance_uid: index for index in sorted(used, reverse=True)}
    items = []
    for index in sorted(first.values()):
        item = Dataset()
        _refer(item, series, index)
        items.append(item)
    return items
