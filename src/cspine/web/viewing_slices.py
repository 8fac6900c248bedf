"""Slices that the server draws: for the first view, and for browsers without WebGL.

Display is radiological: the patient's left on the right of axial and coronal pictures, front on the left of sagittal
ones, head up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cspine.anatomy import Level
from cspine.findings import Findings
from cspine.reports import colours, planes
from cspine.reports.images import (
    BONE_CENTER_HU,
    BONE_WIDTH_HU,
    Gray,
    Overlay,
    ScalarField,
    encode_overlay,
    heat_overlay,
    outline_overlay,
)
from cspine.reports.planes import Letters
from cspine.web.viewing_facts import AXIS, Plane, ViewFacts, ViewGrid
from cspine.web.viewing_files import CT_ARRAY, EVIDENCE_ARRAY, LABELS_ARRAY, SLICES_FILE, read_slice

# Good enough to judge how a picture goes on; the CT's own slice is sent without loss.
JPEG_QUALITY = 85
# A level without a probability, as in the HTML report.
NOT_JUDGED = (213, 217, 220)
CACHE_BYTES = 24 * 2**20
LETTERS: dict[Plane, Letters] = {
    "axial": planes.AXIAL,
    "sagittal": planes.SAGITTAL,
    "coronal": planes.CORONAL,
}


@dataclass(frozen=True, slots=True)
class Window:
    """HU from black to white.

    Attributes:
        center, width: HU.
    """

    center: float
    width: float

    @property
    def low(self) -> float:
        """Black, HU."""
        return self.center - self.width / 2

    @property
    def high(self) -> float:
        """White, HU."""
        return self.center + self.width / 2

    def gray(self, hu: NDArray[Any]) -> Gray:
        """HU of any shape as grey levels, uint8."""
        scaled = (hu.astype(np.float32) - self.low) * np.float32(255 / self.width)
        return np.asarray(np.clip(scaled + np.float32(0.5), 0, 255), dtype=np.uint8)


# In the order in which the key w goes round. Bone is that of the HTML report.
WINDOWS: dict[str, Window] = {
    "bone": Window(BONE_CENTER_HU, BONE_WIDTH_HU),
    "soft": Window(50, 400),
    "fine": Window(700, 3000),
    "air": Window(-500, 1500),
}


def level_colours(findings: Findings) -> dict[int, tuple[int, int, int]]:
    """The colour of each level on pictures, by label value: that of its probability, as in the HTML report."""
    ramp = colours.ramp("dark")
    return {
        Level[item.level].value: NOT_JUDGED if item.probability is None else ramp[colours.step_of(item.probability)]
        for item in findings.levels
    }


def picture_size(grid: ViewGrid, plane: Plane) -> tuple[float, float]:
    """Width and height of a plane's pictures, mm."""
    z, y, x = (count * step for count, step in zip(grid.shape, grid.spacing[::-1], strict=True))
    return {"axial": (x, y), "sagittal": (y, z), "coronal": (x, z)}[plane]


def draw_slice(folder: Path, grid: ViewGrid, plane: Plane, index: int, window: Window) -> bytes:
    """One slice of the view as JPEG with square pixels.

    Args:
        folder: that ``prepare_view`` wrote.
        grid: of the view.
        plane: which way it is cut.
        index: along the axis of the plane, from the patient's right, front or feet.
        window: HU from black to white.

    Raises:
        IndexError: there is no such slice.
    """
    gray = Image.fromarray(window.gray(_cut(folder / CT_ARRAY, plane, index)))
    picture = gray.resize(_pixels(grid, plane), Image.Resampling.BICUBIC)
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def draw_overlay(
    folder: Path, grid: ViewGrid, plane: Plane, index: int, colour_of: Mapping[int, tuple[int, int, int]]
) -> bytes:
    """Outlines coloured by probability over the tint of the evidence, PNG of the slice's own proportions.

    Raises:
        IndexError: there is no such slice.
    """
    columns, rows = _pixels(grid, plane)
    outlines = _outlines(_cut(folder / LABELS_ARRAY, plane, index), grid, plane, dict(colour_of))
    heat = Image.fromarray(_cut(folder / EVIDENCE_ARRAY, plane, index)).resize((columns, rows))
    tint = heat_overlay(np.asarray(heat, dtype=np.float32) / np.float32(255))
    size = (2 * columns, 2 * rows)
    picture = Image.new("RGBA", size) if tint is None else Image.fromarray(tint).resize(size)
    if outlines is not None:
        picture = Image.alpha_composite(picture, Image.fromarray(outlines))
    return encode_overlay(np.asarray(picture))


def draw_source(folder: Path, facts: ViewFacts, index: int, window: Window) -> bytes:
    """A slice of the CT itself, every pixel of it, as PNG; axes as on axial pictures.

    Raises:
        IndexError: there is no such slice.
    """
    count, rows, columns = facts.source_shape
    if not 0 <= index < count:
        raise IndexError(index)
    picture = Image.fromarray(window.gray(read_slice(folder / SLICES_FILE, index, (rows, columns))))
    across, along, _ = facts.source_spacing
    if abs(across - along) > 0.01 * across:
        picture = picture.resize((columns, max(1, round(rows * along / across))), Image.Resampling.BICUBIC)
    stream = BytesIO()
    picture.save(stream, "PNG", compress_level=3)
    return stream.getvalue()


def _cut(path: Path, plane: Plane, index: int) -> NDArray[Any]:
    """A slice as it is seen: rows downwards, columns to the right."""
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not 0 <= index < values.shape[AXIS[plane]]:
        raise IndexError(index)
    cut = values.take(index, axis=AXIS[plane])
    return np.ascontiguousarray(cut if plane == "axial" else cut[::-1])


def _pixels(grid: ViewGrid, plane: Plane) -> tuple[int, int]:
    """Columns and rows of a picture whose pixels are as wide as the finest voxels in the plane of the CT's slices."""
    step = min(grid.spacing[:2])
    width, height = picture_size(grid, plane)
    return max(1, round(width / step)), max(1, round(height / step))


def _outlines(
    labels: NDArray[np.uint8], grid: ViewGrid, plane: Plane, colour_of: dict[int, tuple[int, int, int]]
) -> Overlay | None:
    """Outlines of the labels of one picture, with twice its pixels."""
    columns, rows = _pixels(grid, plane)
    step = min(grid.spacing[:2])
    across, along = (
        length / count for length, count in zip(picture_size(grid, plane), labels.shape[::-1], strict=True)
    )
    # A flat world of its own, in which the picture's first voxel lies at the origin and z is the only layer.
    field = ScalarField(labels[None], np.diag([across, along, 1.0, 1.0]))
    x = (np.arange(columns) + 0.5) * step - across / 2
    y = (np.arange(rows) + 0.5) * step - along / 2
    points = np.stack([*np.meshgrid(x, y), np.zeros((rows, columns))], axis=-1)
    plane_of = planes.Plane(points, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), step, LETTERS[plane])
    return outline_overlay(field, plane_of, colour_of)


class PictureCache:
    """Pictures that were drawn lately, so that scrolling back costs nothing. Safe to use from several threads.

    Args:
        most_bytes: kept at most.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most, self._held = most_bytes, 0
        self._lock = Lock()
        self._pictures: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> bytes | None:
        """What was kept under a key."""
        with self._lock:
            found = self._pictures.get(key)
            if found is not None:
                self._pictures.move_to_end(key)
            return found

    def put(self, key: tuple[object, ...], picture: bytes) -> bytes:
        """Keep a picture, forget the oldest ones; gives the picture back."""
        with self._lock:
            self._held -= len(self._pictures.pop(key, b""))
            self._pictures[key] = picture
            self._held += len(picture)
            while self._held > self._most:
                _, oldest = self._pictures.popitem(last=False)
                self._held -= len(oldest)
        return picture

    def forget(self, first: object) -> None:
        """Drop everything whose key begins with ``first``, such as the pictures of a deleted study."""
        with self._lock:
            for key in [key for key in self._pictures if key[0] == first]:
                self._held -= len(self._pictures.pop(key))
