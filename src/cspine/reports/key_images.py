"""Key images: the slice with the strongest evidence of each suspected level, as pictures that nothing is hidden in.

Unlike the pictures of the HTML page these have their marks drawn in, for pages that are one picture: the key-image
sheet and the PDF. They are made from slices and findings alone; no name and no identifier of a patient is on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cspine.findings import Evidence, LevelFinding, Point
from cspine.reports import boxes, colours, figures, fonts, images, planes, words
from cspine.reports.boxes import Box
from cspine.reports.inputs import ReportInput
from cspine.reports.planes import Plane
from cspine.volume import Volume

if TYPE_CHECKING:
    from cspine.reports.dicom_source import SourceSeries

# Where nothing is suspected, this many of the highest levels are shown.
SHOWN_WITHOUT_SUSPICION = 3
VIEWS = 2
SAGITTAL_MM = 84.0
BOX_COLOUR = (255, 190, 92)
HALO = (0, 0, 0)
INK = (232, 234, 237)


@dataclass(frozen=True, slots=True)
class KeyImage:
    """One picture with its marks drawn in.

    Attributes:
        item: the level it shows.
        picture: RGB, square.
        caption: which plane, short.
    """

    item: LevelFinding
    picture: Image.Image
    caption: str


def chosen(levels: Sequence[LevelFinding]) -> list[LevelFinding]:
    """The suspected levels in order C1 to C7; where there is none, the few with the highest probability."""
    suspected = [item for item in levels if item.fracture]
    if suspected:
        return suspected
    judged = [item for item in levels if item.probability is not None]
    highest = sorted(judged, key=lambda item: -(item.probability or 0.0))[:SHOWN_WITHOUT_SUSPICION]
    return [item for item in judged if item in highest]


def key_images(report: ReportInput, pixels: int, *, views: int = 1) -> list[KeyImage]:
    """The key images of a result, level by level; none without a CT.

    None either when the source declares that names are burned into its pixels (BurnedInAnnotation, PS3.3 C.7.6.1.1):
    what stands in the pixels must not be copied into another object.

    Args:
        report: the result, with its CT.
        pixels: width and height of each.
        views: 1 = the axial slice; 2 = a sagittal view through the same place beside it.
    """
    volume = report.volume
    if volume is None or burned_in(report):
        return []
    made: list[KeyImage] = []
    for item in chosen(report.findings.levels):
        ranked = sorted(item.evidence, key=lambda one: -one.score)
        center = figures.center_of(item, ranked)
        if center is not None:
            made.append(_axial(report, volume, item, ranked, center, pixels))
        if center is not None and views > 1:
            made.append(_sagittal(volume, item, ranked, center, pixels))
    return made


def burned_in(report: ReportInput) -> bool:
    """Whether the source says that its pixels hold what identifies the patient."""
    series = report.series
    return series is not None and any(
        str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES" for header in series.templates
    )


def _axial(
    report: ReportInput,
    volume: Volume,
    item: LevelFinding,
    ranked: Sequence[Evidence],
    center: Point,
    pixels: int,
) -> KeyImage:
    """The slice with the strongest evidence, or through the body centre where there is none."""
    at = report.place_of(ranked[0])[0] if ranked else round(float(volume.to_index(center)[2]))
    at = int(np.clip(at, 0, volume.shape[0] - 1))
    # A window that holds the vertebra from the front of its body to its spinous process.
    plane = planes.axial_plane(volume, at, (center[0], center[1] + figures.AXIAL_SHIFT_MM, center[2]))
    placed = (report.place_of(one) for one in ranked)
    outlines = [boxes.on_plane(plane, boxes.slice_corners(volume, at, box)) for where, box in placed if where == at]
    middle = plane.points[plane.shape[0] // 2, plane.shape[1] // 2]
    height = f"z{words.NBSP}{words.millimetres(float(middle[2]))}"
    place = f"slice{words.NBSP}{at}" if report.series is None else _image_of(report.series, middle)
    return KeyImage(item, _picture(volume, plane, outlines, pixels), f"Axial · {place} · {height}")


def _image_of(series: SourceSeries, world: NDArray[np.float64]) -> str:
    """What a viewer calls the source image nearest to an LPS point: ``image 57``, or ``frame 57`` of many in a file."""
    normal = np.cross(*np.asarray(series.orientation, dtype=np.float64).reshape(2, 3))
    depths = [float((world - np.asarray(one.position_mm)) @ normal) for one in series.instances]
    nearest = int(np.abs(depths).argmin())
    if series.instances[nearest].multiframe:
        return f"frame{words.NBSP}{series.instances[nearest].frame}"
    number = str(series.templates[nearest].get("InstanceNumber") or "").strip()
    return f"image{words.NBSP}{number or '–'}"


def _sagittal(volume: Volume, item: LevelFinding, ranked: Sequence[Evidence], center: Point, pixels: int) -> KeyImage:
    """A flat sagittal view through the strongest evidence, or through the body centre."""
    box = np.asarray(ranked[0].box_mm if ranked else (*center, *center))
    middle = (box[:3] + box[3:]) / 2
    place = (middle[0], center[1] + figures.AXIAL_SHIFT_MM, (middle[2] + center[2]) / 2)
    plane = planes.sagittal_detail(place, size_mm=SAGITTAL_MM)
    cut = [one for one in ranked if one.box_mm[0] <= middle[0] <= one.box_mm[3]]
    outlines = boxes.merged(boxes.on_plane(plane, boxes.mm_corners(one.box_mm)) for one in cut)
    picture = _picture(volume, plane, outlines, pixels)
    return KeyImage(item, picture, f"Sagittal · x{words.NBSP}{words.millimetres(float(middle[0]))}")


def _picture(volume: Volume, plane: Plane, outlines: Iterable[Box], pixels: int) -> Image.Image:
    """The CT on a plane in the bone window, with its marks."""
    gray = images.bone_window(images.sample_hu(volume, plane))
    picture = Image.fromarray(gray).resize((pixels, pixels), Image.Resampling.BICUBIC).convert("RGB")
    _mark(ImageDraw.Draw(picture), boxes.clipped(outlines, plane), plane, pixels)
    return picture


def _mark(draw: ImageDraw.ImageDraw, outlines: Sequence[Box], plane: Plane, pixels: int) -> None:
    """Boxes, letters of direction and a ruler of 10 mm."""
    scale = pixels / plane.shape[1]
    line = max(2, round(pixels / 180))
    for box in outlines:
        x0, y0 = box.x * scale, box.y * scale
        x1, y1 = x0 + box.width * scale, y0 + box.height * scale
        draw.rounded_rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), radius=4, outline=HALO, width=line + 2)
        draw.rounded_rectangle((x0, y0, x1, y1), radius=4, outline=BOX_COLOUR, width=line)
    font = fonts.of_size(max(11, round(pixels / 24)))
    edge, half = round(pixels * 0.02), pixels / 2
    letters = plane.letters
    for text, place, anchor in (
        (letters.left, (edge, half), "lm"),
        (letters.right, (pixels - edge, half), "rm"),
        (letters.top, (half, edge), "ma"),
        (letters.bottom, (half, pixels - edge), "md"),
    ):
        draw.text(place, text, font=font, fill=INK, anchor=anchor, stroke_width=2, stroke_fill=HALO)
    ten = 10 / plane.mm_per_px * scale
    right, low = pixels - 2 * edge, pixels - 2 * edge
    ruler = [(right - ten, low - 5), (right - ten, low), (right, low), (right, low - 5)]
    draw.line(ruler, fill=HALO, width=line + 2)
    draw.line(ruler, fill=INK, width=line)
    small = fonts.of_size(max(10, round(pixels / 30)))
    draw.text((right, low - 8), "10 mm", font=small, fill=INK, anchor="rd", stroke_width=2, stroke_fill=HALO)


def paste_shape(image: Image.Image, item: LevelFinding, at: tuple[float, float], radius: int) -> None:
    """The mark of a finding, without need of colour: diamond = suspected, disc = not suspected, ring = not judged.

    Args:
        image: what is drawn on.
        item: the level.
        at: middle of the mark, pixels.
        radius: of the mark, pixels.
    """
    fine = 4 * radius
    mask = Image.new("L", (2 * fine, 2 * fine))
    pen = ImageDraw.Draw(mask)
    kind = figures.shape_of(item)
    inner = round(fine * 0.76)
    disc = (fine - inner, fine - inner, fine + inner, fine + inner)
    if kind == "fracture":
        pen.polygon([(fine, 0), (2 * fine, fine), (fine, 2 * fine), (0, fine)], fill=255)
    elif kind == "clear":
        pen.ellipse(disc, fill=255)
    else:
        pen.ellipse(disc, outline=255, width=8)
    step = figures.step_of(item.probability)
    colour = INK if step is None else colours.ramp("dark")[step]
    smooth = mask.resize((2 * radius, 2 * radius), Image.Resampling.LANCZOS)
    image.paste(colour, (round(at[0]) - radius, round(at[1]) - radius), smooth)
