"""The pictures of one report: the spine at a glance, and the key images of each level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cspine.anatomy import Level
from cspine.findings import Evidence, LevelFinding, Point
from cspine.reports import boxes, colours, images, planes, words
from cspine.reports.boxes import Box
from cspine.reports.inputs import ReportInput
from cspine.reports.planes import Letters, Plane
from cspine.volume import Volume

Shape = Literal["fracture", "clear", "open"]
Located = tuple[LevelFinding, Point]

# An axial window that holds the vertebra from the front of its body to the tip of its spinous process.
AXIAL_SHIFT_MM = 17.0
# The level's name stands this far in front of its body, over the airway, where nothing is hidden by it.
LABEL_SHIFT_MM = 27.0
# Room for "C1 100 %" to the left of a label's mark, pixels of the picture.
LABEL_ROOM_PX = 64.0
FURTHER_SLICES = 2
APART_MM = 2.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A level's name on a picture: the body at ``x, y``, the label at ``label_x, y``; pixels of the picture."""

    level: str
    x: float
    y: float
    label_x: float
    shape: Shape
    step: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a report.

    Attributes:
        width, height: pixels; marks and boxes are in these, whatever the encoded size.
        mm_per_px: edge of a pixel.
        base: JPEG bytes of the CT.
        overlays: PNG bytes drawn over it when the overlay is on.
        letters: directions at the edges.
        alt: what it shows, for those who cannot see it.
        caption: short text under it.
    """

    width: int
    height: int
    mm_per_px: float
    base: bytes
    overlays: tuple[bytes, ...]
    letters: Letters
    alt: str
    caption: str = ""
    boxes: tuple[Box, ...] = ()
    marks: tuple[Mark, ...] = ()

    @property
    def has_overlay(self) -> bool:
        """Whether turning the overlay on or off changes anything."""
        return bool(self.overlays or self.boxes)


@dataclass(frozen=True, slots=True)
class LevelPictures:
    """Key images of one level: the axial slice with the strongest evidence, a sagittal view, further slices."""

    axial: Picture | None = None
    sagittal: Picture | None = None
    further: tuple[Picture, ...] = ()

    @property
    def all(self) -> tuple[Picture, ...]:
        """Those that exist, most telling first."""
        return tuple(item for item in (self.axial, self.sagittal, *self.further) if item is not None)


def shape_of(item: LevelFinding) -> Shape:
    """The mark's shape says the finding without colour: diamond, disc, or open ring."""
    if item.fracture is None:
        return "open"
    return "fracture" if item.fracture else "clear"


def step_of(probability: float | None) -> int | None:
    """Colour step 0..10, None when there is no probability."""
    return None if probability is None else colours.step_of(probability)


def glance(report: ReportInput) -> tuple[Picture, ...]:
    """Curved sagittal and coronal pictures with level marks; flat ones when no level was located; none without a CT."""
    if report.volume is None:
        return ()
    low, high = planes.world_box(report.volume)
    located = [
        (item, item.body_center_mm)
        for item in report.findings.levels
        if item.body_center_mm is not None and low[2] <= item.body_center_mm[2] <= high[2]
    ]
    if not located:
        sagittal, coronal = planes.scan_planes(report.volume)
    else:
        path = planes.SpinePath.through([center for _, center in located])
        sagittal, coronal = planes.spine_planes(report.volume, path)
    return (
        _spine_picture(report, report.volume, sagittal, located, "Sagittal"),
        _spine_picture(report, report.volume, coronal, located, "Coronal"),
    )


def level_pictures(report: ReportInput, item: LevelFinding) -> LevelPictures:
    """Key images of one level; empty when it is not in the scan or there is no CT."""
    volume = report.volume
    if volume is None or not item.visible:
        return LevelPictures()
    ranked = sorted(item.evidence, key=lambda one: -one.score)
    center = center_of(item, ranked)
    if center is None:
        return LevelPictures()
    if not ranked:
        at = int(np.clip(round(float(volume.to_index(center)[2])), 0, volume.shape[0] - 1))
        return LevelPictures(_axial(report, volume, item, at, center), _sagittal(report, volume, item, center))
    slices = _spread([report.place_of(one)[0] for one in ranked], volume.spacing[2])
    further = [_axial(report, volume, item, at, center, enlarge=1) for at in slices[1 : 1 + FURTHER_SLICES]]
    return LevelPictures(
        _axial(report, volume, item, slices[0], center),
        _sagittal(report, volume, item, center, ranked[0]),
        tuple(further),
    )


def _spread(slices: Sequence[int], step_mm: float) -> list[int]:
    """The first slice, then those far enough from all before: neighbours show the same thing."""
    chosen: list[int] = []
    for at in slices:
        if all(abs(at - other) * step_mm >= APART_MM for other in chosen):
            chosen.append(at)
    return chosen


def center_of(item: LevelFinding, ranked: Sequence[Evidence]) -> Point | None:
    """Where to look: the body centre, or the strongest evidence when the body was not located."""
    if item.body_center_mm is not None or not ranked:
        return item.body_center_mm
    box = ranked[0].box_mm
    return (box[0] + box[3]) / 2, (box[1] + box[4]) / 2 - AXIAL_SHIFT_MM, (box[2] + box[5]) / 2


def _axial(
    report: ReportInput, volume: Volume, item: LevelFinding, at: int, center: Point, *, enlarge: int = 2
) -> Picture:
    """One scanned slice around a vertebra with the evidence that lies on it."""
    plane = planes.axial_plane(volume, at, (center[0], center[1] + AXIAL_SHIFT_MM, center[2]))
    middle = plane.points[plane.shape[0] // 2, plane.shape[1] // 2]
    here = [(one, box) for one in item.evidence for where, box in (report.place_of(one),) if where == at]
    outlines = tuple(boxes.on_plane(plane, boxes.slice_corners(volume, at, box)) for _, box in here)
    score = max((one.score for one, _ in here), default=None)
    height = words.millimetres(float(middle[2]))
    caption = f"Axial · slice {at} · z {height}"
    alt = f"Axial CT of {item.level} at slice {at}, z {height}, patient's left on the right."
    if score is not None:
        alt += f" {len(here)} evidence box{'es' if len(here) > 1 else ''}, score {words.percent(score)}."
    return _picture(report, volume, plane, item, alt, caption, outlines, enlarge=enlarge)


def _sagittal(
    report: ReportInput,
    volume: Volume,
    item: LevelFinding,
    center: Point,
    best: Evidence | None = None,
) -> Picture:
    """A flat sagittal view through the strongest evidence, or through the body centre."""
    box = (*center, *center) if best is None else best.box_mm
    middle = (np.asarray(box[:3]) + np.asarray(box[3:])) / 2
    # Half way between body and evidence: both stay in view.
    plane = planes.sagittal_detail((middle[0], center[1] + AXIAL_SHIFT_MM, (middle[2] + center[2]) / 2))
    outlines = [
        boxes.on_plane(plane, boxes.mm_corners(one.box_mm))
        for one in item.evidence
        if one.box_mm[0] <= middle[0] <= one.box_mm[3]
    ]
    offset = float(middle[0] - center[0])
    where = "body centre"
    if abs(offset) >= 1:
        where = f"{words.millimetres(abs(offset), 0)} to the {'left' if offset > 0 else 'right'}"
    alt = f"Sagittal CT of {item.level}, {where}, front on the left."
    return _picture(report, volume, plane, item, alt, f"Sagittal · {where}", boxes.merged(outlines))


def _picture(
    report: ReportInput,
    volume: Volume,
    plane: Plane,
    item: LevelFinding,
    alt: str,
    caption: str,
    outlines: tuple[Box, ...],
    *,
    enlarge: int = 2,
) -> Picture:
    """A key image: the CT on a plane, the level's heat over it, boxes around its evidence."""
    rows, columns = plane.shape
    hu = images.sample_hu(volume, plane)
    overlays = []
    if item.level in report.evidence:
        heat = images.heat_overlay(report.evidence[item.level].at(plane.points))
        overlays = [] if heat is None else [images.encode_overlay(heat)]
    base = images.encode_gray(images.bone_window(hu), enlarge=enlarge)
    seen = boxes.clipped(outlines, plane)
    return Picture(columns, rows, plane.mm_per_px, base, tuple(overlays), plane.letters, alt, caption, seen)


def _spine_picture(report: ReportInput, volume: Volume, plane: Plane, located: Sequence[Located], name: str) -> Picture:
    """The whole neck on one plane, with marks, outlines and evidence."""
    rows, columns = plane.shape
    hu = images.sample_hu(volume, plane, slab_mm=images.SLAB_MM)
    overlays = []
    if report.labels is not None and located:
        ramp = colours.ramp("dark")
        wanted = {
            Level[item.level].value: ramp[colours.step_of(item.probability)]
            for item, _ in located
            if item.probability is not None
        }
        outline = images.outline_overlay(report.labels, plane, wanted)
        overlays = [] if outline is None else [images.encode_overlay(outline)]
    outlines = [boxes.on_plane(plane, boxes.mm_corners(one.box_mm)) for item, _ in located for one in item.evidence]
    base = images.encode_gray(images.bone_window(hu), enlarge=2)
    marks = tuple(_mark(item, center, plane) for item, center in located)
    alt = f"{name} CT of the neck" + (
        f" along the spine with {words.names([item for item, _ in located])} marked." if located else "."
    )
    caption = f"{name}, following the spine" if located else f"{name}, middle of the scan"
    seen = boxes.merged(boxes.clipped(outlines, plane))
    return Picture(columns, rows, plane.mm_per_px, base, tuple(overlays), plane.letters, alt, caption, seen, marks)


def _mark(item: LevelFinding, center: Point, plane: Plane) -> Mark:
    x, y = plane.pixel_of(center)
    reach = LABEL_SHIFT_MM / plane.mm_per_px
    return Mark(
        item.level,
        x,
        y,
        max(LABEL_ROOM_PX, x - reach),
        shape_of(item),
        step_of(item.probability),
        words.percent(item.probability),
    )
