"""``acquire``: scan a phantom scene.

The scene is drawn slab by slab on a grid at least as fine as the image; samples are averaged over pixel and slice
thickness, blurred as the kernel does, displaced by motion, disturbed by hardening, metal and noise, and cut to the
reconstructed disc.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.artefacts import METAL_HU, Renderer
from cspine.phantoms.finishing import Finisher
from cspine.phantoms.grid import Grid
from cspine.phantoms.scanner import Scanner, disc_of, field_of
from cspine.volume import AIR_HU, Source, Volume

Float = NDArray[np.float32]

# Voxels drawn at once: bounds the memory of float images, whatever the size of the scan.
SLAB_VOXELS = 6_000_000


@dataclass(frozen=True, slots=True)
class Acquired:
    """A scan and its truth; all three ``[z, y, x]`` on the volume's grid, z to the head.

    Attributes:
        volume: int16 HU.
        labels: uint8, values of ``cspine.anatomy``.
        fracture: bool, voxels of acute fracture.
    """

    volume: Volume
    labels: NDArray[np.uint8]
    fracture: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Sampling:
    """Samples of one axis: every ``step``-th lies on a voxel centre, ``pad`` more at either end, with weights."""

    step: int
    pad: int
    weights: tuple[float, ...]

    @classmethod
    def of(cls, spacing: float, width: float, largest: float) -> _Sampling:
        """Samples at most ``largest`` apart, averaged over a box of ``width`` around voxels ``spacing`` apart."""
        step = max(1, int(np.ceil(spacing / largest - 0.05)))
        fine = spacing / step
        pad = int(np.ceil(max(0.0, (width - fine) / 2) / fine - 1e-6))
        offsets = np.arange(-pad, pad + 1) * fine
        overlap = np.minimum(offsets + fine / 2, width / 2) - np.maximum(offsets - fine / 2, -width / 2)
        overlap = np.maximum(overlap, 0)
        return cls(step, pad, tuple(overlap / overlap.sum()))

    def count(self, voxels: int) -> int:
        """Samples that ``voxels`` need."""
        return (voxels - 1) * self.step + 1 + 2 * self.pad

    def centers(self, voxels: int) -> slice:
        """The samples on voxel centres."""
        return slice(self.pad, self.pad + (voxels - 1) * self.step + 1, self.step)

    def average(self, samples: Float, axis: int, voxels: int) -> Float:
        """Weighted means along ``axis``."""
        if len(self.weights) == 1 and self.step == 1:
            return samples
        out: Float | None = None
        for k, weight in enumerate(self.weights):
            at = [slice(None)] * 3
            at[axis] = slice(k, k + (voxels - 1) * self.step + 1, self.step)
            part = samples[tuple(at)] * np.float32(weight)
            out = part if out is None else np.add(out, part, out=out)
        return samples if out is None else out


def acquire(scene: Renderer, scanner: Scanner, rng: np.random.Generator, *, field: Grid | None = None) -> Acquired:
    """Scan ``scene``.

    Args:
        scene: a ``Scene``, or anything with ``render`` and ``spine.poses``.
        scanner: the protocol.
        rng: source of noise and of artefacts; equal generators give equal bytes.
        field: voxels to fill; by default the scanner's own field on this patient.

    Raises:
        UsageError: the scanner's field has too few or too many slices on this patient.
    """
    grid = field_of(scanner, scene.spine.poses) if field is None else field
    hu = np.empty(grid.shape, dtype=np.int16)
    labels = np.empty(grid.shape, dtype=np.uint8)
    fracture = np.empty(grid.shape, dtype=np.bool_)
    finisher = Finisher(scene, scanner, grid, rng)
    disc = disc_of(*grid.shape[1:], scanner.circle)
    for first, ideal, slab_labels, slab_fracture in _slabs(scene, scanner, grid):
        for k in range(len(ideal)):
            at = first + k
            hu[at] = finisher.finish(at, ideal[k])
            labels[at] = finisher.displaced(at, slab_labels[k])
            fracture[at] = finisher.displaced(at, slab_fracture[k])
            if disc is not None:
                hu[at][~disc] = AIR_HU
                labels[at][~disc] = 0
                fracture[at][~disc] = False
    source = Source(kind="phantom", acquisition=_facts(scanner))
    return Acquired(Volume(hu=hu, affine=grid.affine, source=source), labels, fracture)


def _facts(scanner: Scanner) -> dict[str, str | float]:
    """What a reader of the scan is told of the protocol."""
    return {
        "kernel": scanner.kernel,
        "thickness": scanner.thickness,
        "dose": scanner.dose,
        "circle": scanner.circle,
        "padding": scanner.padding,
        "storage": scanner.storage,
        "tilt": scanner.tilt,
    }


def _slabs(
    scene: Renderer, scanner: Scanner, grid: Grid
) -> Iterator[tuple[int, Float, NDArray[np.uint8], NDArray[np.bool_]]]:
    """First slice, averaged HU, labels and fracture of one slab after another."""
    slices, rows, columns = grid.shape
    plane = _Sampling.of(scanner.pixel, scanner.pixel, scanner.sample)
    along = _Sampling.of(scanner.spacing, scanner.thickness, scanner.sample)
    wide, deep = plane.count(columns), plane.count(rows)
    thick = max(1, SLAB_VOXELS // (wide * deep * along.step))
    # Slabs of equal height, so that the last one is not a sliver.
    thick = -(-slices // -(-slices // thick))
    for first in range(0, slices, thick):
        height = min(thick, slices - first)
        affine = grid.affine.copy()
        affine[:3, :3] /= np.array([plane.step, plane.step, along.step], dtype=np.float64)
        start = np.array([-plane.pad, -plane.pad, first * along.step - along.pad])
        affine[:3, 3] = grid.affine[:3, 3] + affine[:3, :3] @ start
        ideal = scene.render(Grid(affine, (along.count(height), deep, wide)))
        at = (along.centers(height), plane.centers(rows), plane.centers(columns))
        bright = np.where(ideal.metal > 0, np.maximum(ideal.hu, ideal.metal * np.float32(METAL_HU)), ideal.hu)
        hu = along.average(bright, 0, height)
        hu = plane.average(plane.average(hu, 1, rows), 2, columns)
        yield first, hu, ideal.labels[at], ideal.fracture[at]
