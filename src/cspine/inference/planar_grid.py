"""Between images cut from a volume and the 2 mm grid that levels are named on.

The axes of both run along each other, so all of it is done one axis at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.inference.locate import VOID, locator_input
from cspine.inference.planar import LEVEL_CHANNELS, Plane
from cspine.inference.planar_images import PlaneGrid
from cspine.volume import Volume

Float = NDArray[np.float64]
Image = NDArray[np.float32]

# Which axis of the patient (0 x, 1 y, 2 z) the axes image, row and column of a plane run along.
ALONG: dict[Plane, tuple[int, int, int]] = {"axial": (2, 1, 0), "sagittal": (0, 2, 1)}


@dataclass(frozen=True, slots=True)
class CommonGrid:
    """The grid that solid locators see, 2 mm, cut to the body; what planes say is brought together on it.

    Attributes:
        image: float32 ``[Z, Y, X]``, HU / 1000 clipped to [-1, 2].
        void: bool ``[Z, Y, X]``, voxels without tissue.
        affine: index ``(x, y, z)`` → LPS mm.
    """

    image: Image
    void: NDArray[np.bool_]
    affine: Float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels z, y, x."""
        z, y, x = self.image.shape
        return z, y, x


def common_grid(volume: Volume) -> CommonGrid:
    """The 2 mm grid of a canonical volume in HU."""
    prepared = locator_input(volume, crop=True)
    z, y, x = (slice(0, size) for size in prepared.shape)
    image = prepared.image[z, y, x]
    return CommonGrid(image, image < VOID, prepared.affine)


def lines(grid: PlaneGrid, affine: Float) -> dict[int, tuple[float, float]]:
    """For each patient axis 0 x, 1 y, 2 z the line ``index in images = a * index in the other grid + b``.

    Args:
        grid: of the images.
        affine: of the other grid, canonical, with axes along those of the volume that the images were cut from.
    """
    step = np.linalg.solve(grid.affine, affine)
    image_axis = {axis: 2 - k for k, axis in enumerate(ALONG[grid.plane])}
    return {axis: (float(step[j, axis]), float(step[j, 3])) for axis, j in image_axis.items()}


def counts(grid: PlaneGrid) -> dict[int, int]:
    """Images, rows or columns along each patient axis."""
    return dict(zip(ALONG[grid.plane], (grid.count, grid.size, grid.size), strict=True))


def weights(line: tuple[float, float], wanted: int, given: int) -> Image:
    """``[wanted, given]``: how samples on one axis are read at places of another; rows have sum 1, or 0 outside.

    Linear between samples; where places are further apart than samples, a triangle of that width averages them.
    """
    places = line[0] * np.arange(wanted) + line[1]
    width = max(1.0, abs(line[0]))
    out = np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(given)[None]) / width)
    out[(places < -0.5) | (places > given - 0.5)] = 0.0
    total = out.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(out, total, out=np.zeros_like(out), where=total > 0), dtype=np.float32)


def nearest(line: tuple[float, float], wanted: int, given: int) -> NDArray[np.int64]:
    """``(wanted,)``: the sample next to each place, -1 outside."""
    places = np.rint(line[0] * np.arange(wanted) + line[1]).astype(np.int64)
    return np.where((places < 0) | (places >= given), np.int64(-1), places)


class Classes:
    """Pixel classes of images of any plane, averaged on the common grid as they come, so that none need be kept."""

    def __init__(self, grid: CommonGrid) -> None:
        self._grid = grid
        self._total = np.zeros((LEVEL_CHANNELS, *grid.shape), np.float32)
        self._seen = np.zeros(grid.shape, np.float32)
        self._weights: dict[Plane, tuple[Image, Image, Image]] = {}

    def add(self, grid: PlaneGrid, start: int, classes: Image) -> None:
        """Take in ``classes [n, 9, size, size]`` of the images from number ``start`` on."""
        along, across, columns = self._of(grid)
        part = along[:, start : start + len(classes)]
        (hit,) = np.nonzero(part.any(axis=1))
        if not len(hit):
            return
        inplane = across @ classes @ columns.T
        mixed = np.tensordot(part[hit], inplane, (1, 0))
        seen = np.multiply.outer(part[hit].sum(axis=1), np.outer(across.sum(axis=1), columns.sum(axis=1)))
        if grid.plane == "axial":
            self._total[:, hit] += mixed.transpose(1, 0, 2, 3)
            self._seen[hit] += seen
        else:
            self._total[..., hit] += mixed.transpose(1, 2, 3, 0)
            self._seen[..., hit] += seen.transpose(1, 2, 0)

    def _of(self, grid: PlaneGrid) -> tuple[Image, Image, Image]:
        if grid.plane not in self._weights:
            by_axis, size = lines(grid, self._grid.affine), counts(grid)
            image, row, column = (
                weights(by_axis[axis], self._grid.shape[2 - axis], size[axis]) for axis in ALONG[grid.plane]
            )
            self._weights[grid.plane] = image, row, column
        return self._weights[grid.plane]

    def probabilities(self) -> Image:
        """float32 ``[9, Z, Y, X]``, sum 1 along the first axis; background where no image was. Ends the adding."""
        total = self._total
        total /= np.maximum(self._seen, 1.0)
        total[0] += np.maximum(0.0, 1.0 - self._seen)
        # Channels that were trained each by itself need not sum to 1.
        total /= np.maximum(total.sum(axis=0), 1e-6)
        return total
