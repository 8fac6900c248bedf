"""Draw real necks with what the default bundle finds in them.

``python docs/images/make_overlays.py OUT.png MARKS.json SCANS NAME [NAME …]`` draws one panel a scan: a sagittal
picture that follows the spine (nothing of the face), outlines of the masks, a cross at every body centre found, and
a ring at every mark that a reader set. A name may carry a scale: ``NAME=2400,-1000``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from cspine.anatomy import Level
from cspine.evaluation.marks import load_marks, scan_path
from cspine.inference import Prediction, Predictor
from cspine.studies import open_study
from cspine.volume import Volume

# Millimetres before and behind the body centres, above the first and below the last, and a millimetre's pixels.
FRONT, BACK, ABOVE, BELOW, ZOOM = 24.0, 46.0, 26.0, 24.0, 3.0
# Pixels at the right for names and at the foot for the scan's.
MARGIN, FOOT = 104, 22
SLAB = (-3.0, -1.0, 1.0, 3.0)
LOW_HU, HIGH_HU = -100.0, 800.0
PAPER, INK = (16, 18, 22), (235, 235, 235)
Float = NDArray[np.float64]
Centres = dict[str, tuple[float, float, float]]


def centres_of(prediction: Prediction) -> Centres:
    """Body centres by level name, head to chest."""
    return {item.level: item.body_center_mm for item in prediction.findings.levels if item.body_center_mm is not None}


def curve(centres: Float) -> tuple[Float, Float, Float]:
    """World x, y and z ``(rows,)`` of the middle of each picture row, along the spine."""
    order = np.argsort(-centres[:, 2])
    x, y, z = centres[order].T
    rows = np.arange(z[0] + ABOVE, z[-1] - BELOW, -1 / ZOOM)
    # Beyond the ends the column is taken to go on as it ended.
    slope = (y[-1] - y[-2]) / (z[-1] - z[-2]) if len(z) > 1 else 0.0
    behind = np.interp(rows, z[::-1], y[::-1]) + slope * np.minimum(rows - z[-1], 0)
    return np.interp(rows, z[::-1], x[::-1]), behind, rows


def sampled(values: NDArray[np.generic], volume: Volume, points: Float, order: int) -> Float:
    """Values of an array on ``volume``'s grid at world points ``(rows, columns, 3)``."""
    index = volume.to_index(points.reshape(-1, 3))[:, ::-1].T
    found = ndimage.map_coordinates(np.asarray(values, np.float32), index, order=order, cval=-1000 if order else 0)
    return np.asarray(found.reshape(points.shape[:2]))


def panel(name: str, volume: Volume, prediction: Prediction, marks: Centres) -> Image.Image:
    """One scan."""
    found = centres_of(prediction)
    x, y, z = curve(np.array(list((found or marks).values())))
    columns = np.arange(-FRONT, BACK, 1 / ZOOM)
    points = np.stack(np.broadcast_arrays(x[:, None], y[:, None] + columns, z[:, None]), axis=-1)
    grey = np.mean([sampled(volume.hu, volume, points + (shift, 0, 0), 1) for shift in SLAB], axis=0)
    light = np.clip((grey - LOW_HU) / (HIGH_HU - LOW_HU), 0, 1)[..., None] * 255
    picture = np.repeat(light, 3, axis=2).astype(np.uint8)
    mask = Volume(prediction.labels, prediction.labels_affine)
    labels = sampled(mask.hu, mask, points, 0).astype(int)
    for level in Level:
        own = labels == level
        picture[own & ~ndimage.binary_erosion(own)] = level.colour
    image = Image.new("RGB", (picture.shape[1] + MARGIN, picture.shape[0] + FOOT), PAPER)
    image.paste(Image.fromarray(picture))
    _notes(ImageDraw.Draw(image), name, prediction, marks, (y, z))
    return image


def _notes(
    draw: ImageDraw.ImageDraw, name: str, prediction: Prediction, marks: Centres, at: tuple[Float, Float]
) -> None:
    """Crosses, rings, and the name of each level with its confidence at the right edge."""
    behind, rows = at
    place = {item.level: item for item in prediction.findings.levels}

    def pixel(point: tuple[float, float, float]) -> tuple[float, float]:
        row = (rows[0] - point[2]) * ZOOM
        middle = float(np.interp(point[2], rows[::-1], behind[::-1]))
        return (point[1] - middle + FRONT) * ZOOM, row

    for level, point in marks.items():
        if level.startswith("C"):
            column, row = pixel(point)
            draw.ellipse((column - 7, row - 7, column + 7, row + 7), outline=INK, width=1)
    for level, point in centres_of(prediction).items():
        column, row = pixel(point)
        colour = Level[level].colour
        draw.line((column - 5, row, column + 5, row), fill=colour, width=2)
        draw.line((column, row - 5, column, row + 5), fill=colour, width=2)
        shown = "" if place[level].visible else " not judged"
        draw.text(((FRONT + BACK) * ZOOM + 6, row - 6), f"{level} {place[level].confidence:.2f}{shown}", fill=colour)
    draw.text((6, (rows[0] - rows[-1]) * ZOOM + 6), name, fill=INK)


def main(arguments: list[str]) -> None:
    """Draw the panels side by side."""
    out, marks, folder, *names = arguments
    known, predictor, panels = load_marks(Path(marks)), Predictor(), []
    for item in names:
        name, _, scale = item.partition("=")
        slope = tuple(float(part) for part in scale.split(",")) if scale else None
        volume = open_study(scan_path(Path(folder), name), scale=slope)  # type: ignore[arg-type]
        labels, points = known[name].points()
        at = {str(label): tuple(point) for label, point in zip(labels, points, strict=True)}
        panels.append(panel(name.split(".")[0], volume, predictor.predict_full(volume), at))  # type: ignore[arg-type]
    size = sum(image.width + 6 for image in panels), max(image.height for image in panels)
    sheet = Image.new("RGB", size, PAPER)
    left = 0
    for image in panels:
        sheet.paste(image, (left, 0))
        left += image.width + 6
    sheet.quantize(96).save(out, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
