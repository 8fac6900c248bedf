"""From a volume to the images that planar networks see; training and inference cut them with the same lines.

Both start from ``planar_volume``, a copy of the volume that is small enough to keep on disk, so that a network meets
the same sharpness and noise everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cspine.inference.planar import PlanarView, Plane
from cspine.volume import AIR_HU, Volume

Float = NDArray[np.float64]
Images = NDArray[np.float32]

# The longer side of an axial slice has this many pixels, and slices are this far apart, unless they were coarser.
STORED_SIZE, STORED_STEP_MM = 320, 2.0


@dataclass(frozen=True, slots=True)
class PlaneGrid:
    """Where the images of one plane lie.

    Attributes:
        affine: index ``(column, row, image)`` → LPS mm. Axial: columns run to the left, rows to the back, images to
            the head. Sagittal: columns run to the back, rows to the feet, images to the left.
        count: number of images.
        size: rows and columns.
        plane: which.
    """

    affine: Float
    count: int
    size: int
    plane: Plane


def planar_volume(volume: Volume) -> Volume:
    """The whole field at ``STORED_SIZE`` pixels and ``STORED_STEP_MM``, canonical axes; never finer than it was."""
    volume = volume.reoriented()
    x, y, z = volume.spacing
    pixel = max(x * volume.shape[2], y * volume.shape[1]) / STORED_SIZE
    wanted = (max(x, pixel), max(y, pixel), max(z, STORED_STEP_MM))
    return volume if np.allclose(wanted, (x, y, z), rtol=1e-3) else volume.resampled(wanted)


def picture_volume(volume: Volume) -> Volume:
    """Pictures that lie anywhere, at most ``STORED_SIZE`` pixels along the longer side; never mixed with each other."""
    x, y, z = volume.spacing
    pixel = max(x * volume.shape[2], y * volume.shape[1]) / STORED_SIZE
    return volume.resampled((max(x, pixel), max(y, pixel), z))


def planar_labels(labels: Volume, like: Volume) -> Volume:
    """A label mask on the grid of a planar volume, nearest voxel; outside it is 0."""
    return labels.resampled_to(like.affine, like.shape, order=0, fill=0)


def plane_grid(
    volume: Volume, view: PlanarView, plane: Plane = "axial", box: tuple[Float, Float] | None = None
) -> PlaneGrid:
    """The images of a plane that cover a volume.

    Args:
        volume: a planar volume, canonical axes (what ``planar_volume`` gives).
        view: size and distance of the images.
        plane: which.
        box: smallest and largest LPS corner ``(3,)``; the images cover it instead of the volume. Only its sides in
            the plane count: images are cut over the whole height or width.
    """
    x, y, z = volume.spacing
    extent = np.array([x, y, z]) * volume.shape[::-1]
    axes = volume.affine[:3, :3] / volume.spacing
    corner = volume.affine[:3, 3] - volume.affine[:3, :3] @ np.full(3, 0.5)
    if box is not None:
        # In the volume's own axes, mm from its corner; the volume may be turned a little.
        ends = np.array([[box[k][0], box[m][1], box[n][2]] for k in (0, 1) for m in (0, 1) for n in (0, 1)])
        local = (ends - corner) @ np.linalg.inv(axes).T
        across = [0, 1] if plane == "axial" else [1, 2]
        low, high = np.zeros(3), extent.copy()
        low[across] = np.clip(local.min(axis=0), 0, extent)[across]
        high[across] = np.clip(local.max(axis=0), 0, extent)[across]
        corner, extent = corner + axes @ low, np.maximum(high - low, 1.0)
    # Directions of column, row and image, and the extent along each.
    left, back, up = axes.T
    if plane == "axial":
        directions, sides, start = (left, back, up), extent, corner
    else:
        directions, sides, start = (back, -up, left), extent[[1, 2, 0]], corner + up * extent[2]
    pixel = max(sides[0], sides[1]) / view.size
    count = max(1, round(float(sides[2]) / view.step_mm))
    affine = np.eye(4)
    steps = (pixel, pixel, float(sides[2]) / count)
    affine[:3, :3] = np.stack([d * s for d, s in zip(directions, steps, strict=True)], axis=1)
    # The field is centred; what is beyond its shorter side is black.
    spare = (view.size * pixel - sides[:2]) / 2
    first = start - directions[0] * spare[0] - directions[1] * spare[1]
    affine[:3, 3] = first + affine[:3, :3] @ np.full(3, 0.5)
    return PlaneGrid(affine, count, view.size, plane)


def sample_planes(
    volume: Volume, grid: PlaneGrid, start: int, count: int, *, order: Literal[0, 1] = 1, fill: float = AIR_HU
) -> NDArray[np.float32]:
    """``count`` images from number ``start`` on (it may lie outside the volume), ``[count, size, size]``."""
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 2] * start
    return np.asarray(volume.resampled_to(affine, (count, grid.size, grid.size), order=order, fill=fill).hu)


def images(volume: Volume, grid: PlaneGrid, view: PlanarView, start: int, count: int) -> Images:
    """Network inputs ``[count, C, size, size]``, -1 to 1, of ``count`` images from number ``start`` on.

    Args:
        volume: a planar volume in HU.
        grid: of ``plane_grid``.
        view: windows and neighbours; ``C`` is ``view.channels``.
        start: number of the first image.
        count: how many.
    """
    around = view.neighbours
    planes = sample_planes(volume, grid, start - around, count + 2 * around).astype(np.float32)
    return as_channels(planes, view)


def as_channels(planes: NDArray[np.float32], view: PlanarView) -> Images:
    """HU ``[N + 2 * neighbours, H, W]`` → inputs ``[N, C, H, W]``: windows of each image and its neighbours."""
    shown = np.stack([_window(planes, level, width) for level, width in view.windows], axis=1)
    count = len(planes) - 2 * view.neighbours
    parts = [shown[k : k + count] for k in range(2 * view.neighbours + 1)]
    return np.concatenate(parts, axis=1)


def grey_as_hu(volume: Volume, view: PlanarView) -> tuple[Volume, float]:
    """Grey levels 0..255 as the HU that the view's first window shows so, and the HU that it shows black."""
    level, width = view.windows[0]
    black = level - width / 2
    return replace(volume, hu=black + volume.hu.astype(np.float32) * np.float32(width / 255)), black


def grey_channels(plane: NDArray[np.float32], view: PlanarView) -> Images:
    """What ``grey_as_hu`` gave, cut to ``[H, W]`` → input ``[C, H, W]``: the first window alone, in every channel."""
    first = view.model_copy(update={"windows": view.windows[:1], "neighbours": 0})
    return np.repeat(as_channels(plane[None], first)[0], view.channels, axis=0)


def picture_input(volume: Volume, view: PlanarView, *, grey: bool) -> tuple[Images, PlaneGrid]:
    """A picture as a network sees it: on its own, so that it is its own neighbour. Training shows pictures so too.

    Args:
        volume: one picture ``[1, y, x]``, what ``picture_volume`` gives, with a diagonal affine.
        view: size, windows and neighbours.
        grey: the picture holds grey levels 0..255 instead of HU.

    Returns:
        the input ``[C, size, size]``, -1 to 1, and where its pixels lie.
    """
    grid = plane_grid(volume, view)
    # One image, on the picture itself, however far images of a scan are apart.
    affine = grid.affine.copy()
    affine[2, 2], affine[2, 3] = volume.affine[2, 2], volume.affine[2, 3]
    grid = PlaneGrid(affine, 1, grid.size, grid.plane)
    if grey:
        volume, black = grey_as_hu(volume, view)
        return grey_channels(sample_planes(volume, grid, 0, 1, fill=black)[0], view), grid
    planes = np.repeat(sample_planes(volume, grid, 0, 1), 2 * view.neighbours + 1, axis=0)
    return as_channels(planes, view)[0], grid


def _window(hu: NDArray[np.float32], level: float, width: float) -> Images:
    return np.asarray(np.clip((hu - np.float32(level)) * np.float32(2 / width), -1, 1), dtype=np.float32)
