"""Pictures for reports: sampling a volume on a plane, the bone window, overlays, and encoding."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from cspine.reports.planes import Plane
from cspine.volume import AIR_HU, Volume

Gray = NDArray[np.uint8]
Overlay = NDArray[np.uint8]

BONE_CENTER_HU = 450.0
BONE_WIDTH_HU = 2000.0
JPEG_QUALITY = 88
# Averaging over this distance across a reformat calms the noise of thin slices without blurring a fracture line
# that crosses it.
SLAB_MM = 1.2
SMOOTH_ABOVE_MM = 1.0
HATCH_PX = 9
# Heat under this is not drawn: a tint over the whole vertebra says nothing.
HEAT_FLOOR = 0.15
# Weak enough for a fracture line to show through where the heat is strongest.
HEAT_ALPHA = 105
HEAT_LOW = np.array([242.0, 120.0, 60.0])
HEAT_HIGH = np.array([255.0, 224.0, 130.0])


@dataclass(frozen=True, slots=True)
class ScalarField:
    """Values on a grid in the patient: a mask or an evidence map.

    Attributes:
        values: ``[z, y, x]``.
        affine: index ``(x, y, z, 1)`` → LPS millimetres.
    """

    values: NDArray[Any]
    affine: NDArray[np.float64]

    def at(self, points: NDArray[np.float64], *, order: int = 1, fill: float = 0.0) -> NDArray[np.float32]:
        """Values at LPS points ``[..., 3]``, float32; ``fill`` outside the grid.

        Only the part of the grid that the points need is read, so a picture of a large volume is cheap.
        """
        local = points.reshape(-1, 3) - self.affine[:3, 3]
        zyx = np.linalg.solve(self.affine[:3, :3], local.T)[::-1]
        count = np.asarray(self.values.shape)
        start = np.clip(np.floor(zyx.min(axis=1)).astype(int) - 4, 0, count - 1)
        stop = np.clip(np.ceil(zyx.max(axis=1)).astype(int) + 5, start + 1, count)
        part = self.values[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))].astype(np.float32)
        out = map_coordinates(part, zyx - start[:, None], order=order, mode="nearest", output=np.float32)
        # Half a voxel of border belongs to the grid; beyond that nothing was measured.
        outside = ((zyx < -0.5) | (zyx > (count - 0.5)[:, None])).any(axis=0)
        out[outside] = fill
        return np.asarray(out.reshape(points.shape[:-1]), dtype=np.float32)


def sample_hu(volume: Volume, plane: Plane, *, slab_mm: float = 0.0) -> NDArray[np.float32]:
    """HU on a plane, float32 ``[rows, columns]``, NaN outside the scan.

    Args:
        volume: the CT.
        plane: where to sample.
        slab_mm: when not 0, the mean of three samples across this distance.
    """
    field = ScalarField(volume.hu, volume.affine)
    # Splines hide the steps between thick slices; thin ones are as good, and faster, with straight lines.
    order = 3 if slab_mm == 0.0 or max(volume.spacing) > SMOOTH_ABOVE_MM else 1
    if slab_mm == 0.0:
        return field.at(plane.points, order=order, fill=np.nan)
    normal = np.cross(plane.right, plane.down)
    offsets = (0.0, -slab_mm / 2, slab_mm / 2)
    layers = np.stack([field.at(plane.points + normal * offset, order=order, fill=np.nan) for offset in offsets])
    return np.asarray(np.where(np.isnan(layers), layers[:1], layers).mean(axis=0), dtype=np.float32)


def bone_window(hu: NDArray[np.float32]) -> Gray:
    """HU to grey, uint8 ``[rows, columns]``: black at -550, white at 1450; hatched where nothing was scanned (NaN)."""
    low = BONE_CENTER_HU - BONE_WIDTH_HU / 2
    gray = np.clip((np.nan_to_num(hu, nan=AIR_HU) - low) / BONE_WIDTH_HU * 255.0, 0, 255) + 0.5
    row, column = np.indices(hu.shape)
    # Air is black too: only a pattern says that a vertebra ends with the scan and not with the patient.
    hatch = np.where((row + column) % HATCH_PX < HATCH_PX // 3, 64, 30)
    return np.asarray(np.where(np.isnan(hu), hatch, gray), dtype=np.uint8)


def heat_overlay(heat: NDArray[np.float32]) -> Overlay | None:
    """Evidence 0..1 as a translucent warm tint, RGBA uint8 ``[rows, columns, 4]``; None when nothing is to be seen."""
    weight = np.clip((heat - HEAT_FLOOR) / (1 - HEAT_FLOOR), 0, 1)
    if not (weight > 0).any():
        return None
    out = np.empty((*heat.shape, 4), dtype=np.uint8)
    out[..., :3] = HEAT_LOW + (HEAT_HIGH - HEAT_LOW) * weight[..., None]
    out[..., 3] = HEAT_ALPHA * np.sqrt(weight)
    return _calm(out)


def outline_overlay(
    labels: ScalarField, plane: Plane, colours: dict[int, tuple[int, int, int]], *, finer: int = 2
) -> Overlay | None:
    """Outlines of labelled bones on a plane, RGBA uint8 ``[rows * finer, columns * finer, 4]``.

    Args:
        labels: mask, uint8.
        plane: the picture's pixels.
        colours: label value to sRGB; other labels are not drawn.
        finer: pixels of the overlay a pixel of the plane.
    """
    rows, columns = plane.shape
    out = np.zeros((rows * finer, columns * finer, 4), dtype=np.uint8)
    nearest = labels.at(plane.points, order=0).astype(int)
    for value, colour in colours.items():
        if not (nearest == value).any():
            continue
        inside = ScalarField((labels.values == value).astype(np.float32), labels.affine).at(plane.points)
        # The mask is coarse (2 mm): its staircase is smoothed away, the outline says "about here".
        smooth = _enlarged(gaussian_filter(inside, 1.0 / plane.mm_per_px), finer)
        slope = np.hypot(*np.gradient(smooth))
        distance = np.abs(smooth - 0.5) / np.maximum(slope, 1e-4)
        alpha = np.clip(1.9 - distance, 0, 1) * 235
        stronger = alpha > out[..., 3]
        out[stronger, :3] = colour
        out[..., 3] = np.maximum(out[..., 3], alpha.astype(np.uint8))
    return out if out[..., 3].any() else None


def encode_gray(gray: Gray, *, enlarge: int = 1) -> bytes:
    """JPEG bytes of a grey picture, enlarged smoothly by a whole factor. Holds no metadata."""
    image = Image.fromarray(gray)
    if enlarge > 1:
        image = image.resize((image.width * enlarge, image.height * enlarge), Image.Resampling.BICUBIC)
    return _bytes(image, "JPEG", quality=JPEG_QUALITY, optimize=True)


def encode_overlay(overlay: Overlay) -> bytes:
    """PNG bytes of a translucent overlay. Holds no metadata."""
    return _bytes(Image.fromarray(overlay), "PNG", optimize=True)


def _bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _enlarged(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    image = Image.fromarray(values)
    size = (image.width * factor, image.height * factor)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)


def _calm(overlay: Overlay) -> Overlay:
    """Fewer shades, so that the PNG stays small; the eye does not see the difference under a tint."""
    overlay[...] = overlay // 12 * 12
    overlay[overlay[..., 3] == 0] = 0
    return overlay
