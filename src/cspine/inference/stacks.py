"""A frame in each vertebra, and the stack of slices sampled in it: what the classifier sees.

Frame axes follow the vertebra: +x to its left, +y to its back, +z up the spine. Stacks are therefore never
mirrored, whatever way the scan was stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.volume import AIR_HU, Volume

Float = NDArray[np.float64]
Image = NDArray[np.float32]

PLANES, PLANE_MM = 24, 1.6
ROWS, COLUMNS, PIXEL_MM = 128, 160, 0.55
CHANNELS = 4
# Rows start this far in front of the body centre (16 mm) and so end 54.4 mm behind it.
FRONT_MM = -16.0
# Neighbour slices shown as channels lie half a plane distance above and below.
NEIGHBOUR_MM = PLANE_MM / 2
# Height of the stack's middle over the body centre by label: C2 has its dens above, C3..C7 spinous processes below.
RISE_MM = {1: 0.0, 2: 9.0, 3: -3.0, 4: -3.0, 5: -3.0, 6: -3.0, 7: -3.0}
# HU window: clipped to [-300, 1500] and scaled to [-1, 1].
WINDOW_LOW, WINDOW_HIGH = -300.0, 1500.0
# The back of a vertebra is taken from its mask only when the mask is at least this large, and never turned further
# than this from the neighbours' mean direction.
MIN_MASK_MM3 = 1500.0
MAX_TURN_DEG = 40.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A vertebra's own coordinates.

    Attributes:
        origin: body centre, LPS mm ``(3,)``.
        axes: 3x3, columns are the vertebra's left, back and up as LPS unit vectors; orthonormal, right-handed.
    """

    origin: Float
    axes: Float

    def to_world(self, local: Float) -> Float:
        """LPS mm of local points ``(…, 3)`` mm."""
        return np.asarray(np.asarray(local, dtype=np.float64) @ self.axes.T + self.origin)

    def to_local(self, world: Float) -> Float:
        """Local mm of LPS points ``(…, 3)``."""
        return np.asarray((np.asarray(world, dtype=np.float64) - self.origin) @ self.axes)

    def affine(self, shape: tuple[int, int, int], spacing: tuple[float, float, float], middle: Float) -> Float:
        """4x4 affine, index ``(x, y, z)`` → LPS mm, of a grid ``shape`` (z, y, x) centred on local ``middle`` mm."""
        out = np.eye(4)
        out[:3, :3] = self.axes * np.asarray(spacing)
        first = np.asarray(middle) - (np.asarray(shape[::-1]) - 1) / 2 * np.asarray(spacing)
        out[:3, 3] = self.to_world(first)
        return out


def frames(
    centers: Mapping[int, tuple[float, float, float] | Float], labels: NDArray[np.uint8], affine: Float
) -> dict[int, Frame]:
    """A frame for each centre, from the line of centres and the masks.

    Args:
        centers: body centres LPS mm by label; neighbours have consecutive labels (8 and up are thoracic).
        labels: uint8 ``[z, y, x]`` mask with the same labels (a coarse one will do).
        affine: index ``(x, y, z)`` → LPS mm of ``labels``.

    Up is the direction from the lower to the upper neighbour's centre; back points from the body centre to the
    centroid of the mask, which the arch and the spinous process pull backwards; left completes it.
    """
    points = {label: np.asarray(point, dtype=np.float64) for label, point in centers.items()}
    ups = {label: _up(label, points) for label in points}
    backs = {label: _mask_back(labels == label, affine, points[label], ups[label]) for label in points if label < 8}
    known = [back for back in backs.values() if back is not None]
    mean = np.mean(known, axis=0) if known else np.array([0.0, 1.0, 0.0])
    # A spine turned by more than a quarter from the patient's back is a wrong mask, not a patient.
    general = mean if mean[1] > 0 else np.array([0.0, 1.0, 0.0])
    return {
        label: _frame(points[label], ups[label], _limited(backs.get(label), general, ups[label])) for label in points
    }


def _up(label: int, points: Mapping[int, Float]) -> Float:
    """Unit vector up the spine at a label."""
    upper, lower = points.get(label - 1), points.get(label + 1)
    direction = (points[label] if upper is None else upper) - (points[label] if lower is None else lower)
    length = float(np.linalg.norm(direction))
    return direction / length if length > 1e-6 else np.array([0.0, 0.0, 1.0])


def _mask_back(mask: NDArray[np.bool_], affine: Float, centre: Float, up: Float) -> Float | None:
    """Unit vector from the centre to the mask's centroid, square to ``up``; None for a poor mask."""
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    index = np.argwhere(mask)
    if len(index) * voxel_mm3 < MIN_MASK_MM3:
        return None
    offset = index.mean(axis=0)[::-1] @ affine[:3, :3].T + affine[:3, 3] - centre
    return _square(offset, up)


def _square(vector: Float, up: Float) -> Float | None:
    """``vector`` made square to ``up`` and of length 1; None when nothing is left of it (under 2 mm)."""
    flat = vector - up * float(vector @ up)
    length = float(np.linalg.norm(flat))
    return flat / length if length > 2.0 else None


def _limited(back: Float | None, general: Float, up: Float) -> Float:
    """``back`` square to ``up``, turned no further than the limit from the general direction."""
    flat = general - up * float(general @ up)
    flat = flat / float(np.linalg.norm(flat))
    if back is None:
        return np.asarray(flat)
    left = np.cross(flat, up)
    angle = float(np.arctan2(back @ left, back @ flat))
    limit = np.radians(MAX_TURN_DEG)
    angle = float(np.clip(angle, -limit, limit))
    return np.asarray(flat * np.cos(angle) + left * np.sin(angle))


def _frame(origin: Float, up: Float, back: Float) -> Frame:
    """Right-handed frame: left = back x up."""
    return Frame(origin, np.stack([np.cross(back, up), back, up], axis=1))


def sample_block(
    volume: Volume,
    frame: Frame,
    *,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    middle: tuple[float, float, float] = (0.0, 0.0, 0.0),
    fill: float = AIR_HU,
) -> Image:
    """Any block of a volume in a vertebra's frame, linear interpolation; the entry for training caches.

    Args:
        volume: HU or a soft mask; only the part that the block needs is touched.
        frame: of the vertebra.
        shape: samples z, y, x.
        spacing: mm along local x, y, z.
        middle: local mm of the block's centre.
        fill: value outside the volume.

    Returns:
        float32 ``shape``; z grows upwards, y backwards, x to the vertebra's left.
    """
    target = frame.affine(shape, spacing, np.asarray(middle))
    corners = np.array([[x, y, z] for x in (0, shape[2] - 1) for y in (0, shape[1] - 1) for z in (0, shape[0] - 1)])
    index = volume.to_index(corners @ target[:3, :3].T + target[:3, 3])
    low = np.floor(index.min(axis=0)).astype(int) - 1
    high = np.ceil(index.max(axis=0)).astype(int) + 2
    size = np.array(volume.shape[::-1])
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    if (high <= low).any():
        return np.full(shape, fill, np.float32)
    box = [slice(int(a), int(b)) for a, b in zip(low, high, strict=True)]
    part = volume.crop(box[2], box[1], box[0])
    return np.asarray(part.resampled_to(target, shape, fill=fill).hu, dtype=np.float32)


def stack_middle(label: int) -> tuple[float, float, float]:
    """Local mm of the centre of a stack for a label 1..7."""
    return (0.0, FRONT_MM + ROWS * PIXEL_MM / 2, RISE_MM[label])


def mask_volume(labels: NDArray[np.uint8], affine: Float, label: int) -> Volume:
    """One label of a 2 mm mask as a float volume for ``sample_stack``; training must use the same 2 mm grid."""
    return Volume((labels == label).astype(np.float32), affine)


def sample_stack(volume: Volume, mask: Volume, frame: Frame, label: int) -> Image:
    """The classifier's input for one vertebra: float32 ``[24, 4, 128, 160]``.

    Plane k lies at local z ``RISE_MM + (k - 11.5) * 1.6`` mm (up), row r at ``-16 + (r + 0.5) * 0.55`` mm (back),
    column c at ``(c - 79.5) * 0.55`` mm (left). Channels: window of HU 0.8 mm below, at, and 0.8 mm above the
    plane, then the vertebra's mask 0..1.
    """
    middle = stack_middle(label)
    fine = sample_block(
        volume, frame,
        shape=(2 * PLANES + 1, ROWS, COLUMNS), spacing=(PIXEL_MM, PIXEL_MM, NEIGHBOUR_MM), middle=middle,
    )  # fmt: skip
    soft = sample_block(
        mask, frame,
        shape=(PLANES, ROWS, COLUMNS), spacing=(PIXEL_MM, PIXEL_MM, PLANE_MM), middle=middle, fill=0.0,
    )  # fmt: skip
    return assemble(fine, soft)


def assemble(fine: Image, soft: Image) -> Image:
    """HU at half plane distances ``[49, 128, 160]`` and mask ``[24, 128, 160]`` → stack ``[24, 4, 128, 160]``."""
    shown = window(fine)
    return np.stack([shown[0:-2:2], shown[1:-1:2], shown[2::2], soft], axis=1)


def window(hu: Image) -> Image:
    """HU → [-1, 1]: clipped to [-300, 1500]."""
    scale = np.float32(2.0 / (WINDOW_HIGH - WINDOW_LOW))
    return (np.clip(hu, WINDOW_LOW, WINDOW_HIGH) - np.float32(WINDOW_LOW)) * scale - np.float32(1.0)


def evidence_affine(frame: Frame, label: int, shape: tuple[int, int, int]) -> Float:
    """4x4 affine, index ``(x, y, z)`` of an evidence grid of ``shape`` (z, y, x) over the stack → LPS mm."""
    size = (COLUMNS * PIXEL_MM, ROWS * PIXEL_MM, PLANES * PLANE_MM)
    cell = (size[0] / shape[2], size[1] / shape[1], size[2] / shape[0])
    return frame.affine(shape, cell, np.asarray(stack_middle(label)))
