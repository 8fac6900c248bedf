"""From ideal slices to scanned ones: blur, motion, noise, beam hardening and metal, slice after slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cspine.phantoms.artefacts import (
    Motion,
    Overview,
    Renderer,
    interpolation,
    look_over,
    motion_of,
    noise_amplitude,
    streaks_of,
)
from cspine.phantoms.grid import Grid
from cspine.phantoms.noise import (
    Complex,
    KernelPlane,
    directional_noise,
    kernel_plane,
    noise_level,
    white_spectrum,
)
from cspine.phantoms.scanner import Scanner
from cspine.volume import AIR_HU

Float = NDArray[np.float32]
Pixel = TypeVar("Pixel", bound=np.generic)

MAX_HU = 3071
# Pixels repeated around a slice before it is blurred, so that one border does not bleed into the other.
BORDER = 6
# A fainter ghost than this cannot be seen.
MIN_GHOST = 0.02


@dataclass(frozen=True, slots=True)
class Layer:
    """A coarse volume along the patient's axes, to be read at the slices of an image.

    Attributes:
        values: float32 ``[z, y, x]``.
        rows: interpolation from its y to the image's rows, ``[rows, y]``.
        columns: interpolation from its x to the image's columns, ``[x, columns]``.
        first: fractional z index of the middle of the image's slice 0.
        step: fractional z index from one slice to the next.
    """

    values: Float
    rows: Float
    columns: Float
    first: float
    step: float

    @classmethod
    def of(cls, values: Float, grid: Grid, image: Grid) -> Layer:
        """Prepare ``values`` on ``grid`` for the slices of ``image``; a tilted slice is read at its middle's z."""
        _, rows, columns = image.shape
        mapping = np.linalg.solve(grid.affine, image.affine)
        y = mapping[1, 3] + mapping[1, 1] * np.arange(rows)
        x = mapping[0, 3] + mapping[0, 0] * np.arange(columns)
        across = interpolation(x, grid.shape[2]).T.copy()
        middle = mapping[2, 3] + mapping[2, 1] * (rows - 1) / 2
        return cls(values, interpolation(y, grid.shape[1]), across, float(middle), float(mapping[2, 2]))

    def place(self, at: int) -> tuple[int, np.float32]:
        """Lower z index and share of the next one for slice ``at``; the ends continue."""
        z = self.first + self.step * at
        low = int(np.clip(np.floor(z), 0, max(len(self.values) - 2, 0)))
        return low, np.float32(np.clip(z - low, 0, 1))

    def covers(self, at: int) -> bool:
        """Slice ``at`` lies within the layer's z range."""
        return -0.5 <= self.first + self.step * at <= len(self.values) - 0.5

    def at(self, at: int) -> Float:
        """The values on slice ``at``, ``[rows, columns]``."""
        return np.asarray(self.rows @ _between(self.values, *self.place(at)) @ self.columns)


def _between(values: Float, low: int, share: np.float32) -> Float:
    """Linear interpolation between ``values[low]`` and the next."""
    return np.asarray(values[low] * (1 - share) + values[min(low + 1, len(values) - 1)] * share)


class Finisher:
    """Turns ideal slices into scanned ones, in order: neighbouring slices share some of their noise."""

    def __init__(self, scene: Renderer, scanner: Scanner, grid: Grid, rng: np.random.Generator) -> None:
        _, rows, columns = grid.shape
        self.size = (rows, columns)
        self.padded = (scipy.fft.next_fast_len(rows + 2 * BORDER), scipy.fft.next_fast_len(columns + 2 * BORDER))
        plane_rng, self.rng = rng.spawn(2)
        self.plane: KernelPlane = kernel_plane(scanner.kernel, scanner.sharpness, scanner.pixel, *self.padded)
        self.sigma = noise_level(scanner.kernel, scanner.thickness, scanner.dose)
        self.modulation = scanner.modulation
        self.overview: Overview = look_over(scene, grid)
        strength = np.float32(scanner.beam_hardening)
        self.hardening = Layer.of(self.overview.hardening * strength, self.overview.grid, grid)
        metal = streaks_of(scene, grid, scanner, plane_rng)
        self.streaks = None if metal is None else Layer.of(metal.error, metal.grid, grid)
        self.motion: Motion | None = motion_of(scanner, grid.shape[0], plane_rng)
        # Helical interpolation and overlap make neighbours share noise (an order-one autoregression along z).
        self.shared = float(np.clip(1.15 - scanner.spacing / scanner.thickness, 0.15, 0.8))
        self.white: tuple[Complex, Complex] | None = None

    def finish(self, at: int, ideal: Float) -> NDArray[np.int16]:
        """Slice ``at`` as int16 HU from its ideal float32 HU ``[y, x]``."""
        rows, columns = self.size
        margins = tuple((BORDER, wide - count - BORDER) for count, wide in zip(self.size, self.padded, strict=True))
        spectrum = scipy.fft.rfft2(np.pad(ideal, margins, mode="edge"))
        spectrum *= self.plane.transfer
        if self.motion is not None:
            spectrum *= self._moved(at)
        image: Float = scipy.fft.irfft2(spectrum, s=self.padded, overwrite_x=True)
        image = image[BORDER : BORDER + rows, BORDER : BORDER + columns]
        image += self._noise(at)
        image += self.hardening.at(at)
        if self.streaks is not None and self.streaks.covers(at):
            image += self.streaks.at(at)
        np.rint(image, out=image)
        return np.asarray(np.clip(image, AIR_HU, MAX_HU, out=image), dtype=np.int16)

    def displaced(self, at: int, mask: NDArray[Pixel]) -> NDArray[Pixel]:
        """A mask of slice ``at`` moved as the image is, to whole pixels."""
        if self.motion is None:
            return mask
        by = (round(float(self.motion.shift_y[at])), round(float(self.motion.shift_x[at])))
        return np.roll(mask, by, axis=(0, 1)) if any(by) else mask

    def _moved(self, at: int) -> Complex:
        """Fourier factor of the slice's displacement and ghost."""
        motion = self.motion
        if motion is None:
            return np.ones((1, 1), dtype=np.complex64)

        def phase(x: float, y: float) -> Complex:
            # The product of one row and one column: a plane of exponentials would cost more than the transform.
            row = np.exp(-2j * np.pi * self.plane.frequency_x * x)
            column = np.exp(-2j * np.pi * self.plane.frequency_y * y)
            return np.asarray(column * row, dtype=np.complex64)

        share = np.float32(motion.share[at])
        shift = phase(motion.shift_x[at], motion.shift_y[at])
        if share < MIN_GHOST:
            return shift
        return shift * (1 - share + share * phase(motion.ghost_x[at], motion.ghost_y[at]))

    def _noise(self, at: int) -> Float:
        """Noise of slice ``at``; must be called once a slice, in order."""
        fresh = (white_spectrum(self.rng, *self.padded), white_spectrum(self.rng, *self.padded))
        if self.white is not None:
            kept = np.float32(self.shared)
            new = np.float32(np.sqrt(1 - self.shared**2))
            fresh = (kept * self.white[0] + new * fresh[0], kept * self.white[1] + new * fresh[1])
        self.white = fresh
        low, share = self.hardening.place(at)
        across = self.hardening.rows @ _between(self.overview.across, low, share)
        along = _between(self.overview.along, low, share) @ self.hardening.columns
        row = noise_amplitude(across, self.modulation) * np.float32(self.sigma)
        column = noise_amplitude(along, self.modulation) * np.float32(self.sigma)
        return directional_noise(*fresh, self.plane, row, column)
