"""What a reconstruction kernel does to edges and to noise.

Both are linear in plane, so both are done in the frequency plane of a slice: the image is multiplied with the
kernel's modulation transfer function, and the noise is white noise given the kernel's power spectrum. Filtered back
projection gives noise a power spectrum that grows with frequency until the kernel cuts it off (Riederer, Pelc and
Chesler, Phys Med Biol 23:446, 1978); rays that pass through much bone or shoulder are noisier than others, and
their noise runs along them as streaks (Hsieh, Med Phys 25:2139, 1998).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cspine.phantoms.scanner import Kernel

Float = NDArray[np.float32]
Complex = NDArray[np.complex64]

# Standard deviation, HU, in the middle of a neck at the usual dose and a slice of this thickness.
REFERENCE_THICKNESS_MM = 0.625
REFERENCE_NOISE = {"bone": 70.0, "soft": 21.0}
# Frequencies are cycles per mm; beyond this no kernel passes anything.
MAX_FREQUENCY = 1.6


@dataclass(frozen=True, slots=True)
class KernelShape:
    """Modulation transfer (1 + boost * (1 - exp(-(f / rise)^2))) * exp(-(f / cut)^power), f in cycles per mm."""

    boost: float
    rise: float
    cut: float
    power: float

    def transfer(self, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
        """Modulation transfer at ``frequency``, cycles per mm; 1 at 0."""
        edge = 1 + self.boost * (1 - np.exp(-((frequency / self.rise) ** 2)))
        return np.asarray(edge * np.exp(-((frequency / self.cut) ** self.power)))

    def noise(self, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
        """Amplitude of noise at ``frequency``, in arbitrary units; a little remains at 0, as slices are finite."""
        return np.asarray(np.sqrt(frequency + 0.06) * self.transfer(frequency))


def kernel_shape(kernel: Kernel, sharpness: float) -> KernelShape:
    """The shape of a kernel; ``sharpness`` scales its cut-off."""
    if kernel == "bone":
        return KernelShape(boost=0.7, rise=0.40, cut=0.78 * sharpness, power=3.2)
    return KernelShape(boost=0.05, rise=0.30, cut=0.46 * sharpness, power=1.9)


@dataclass(frozen=True, slots=True)
class KernelPlane:
    """A kernel on the frequency plane of ``rows`` x ``columns`` pixels, as ``rfft2`` lays it out.

    Attributes:
        transfer: float32 ``[rows, columns // 2 + 1]``.
        across, along: amplitude of noise whose streaks run along x and along y; unit variance each when white noise
            of unit variance is multiplied with it, less what the pixel size cannot carry.
        frequency_x, frequency_y: cycles per pixel.
        columns: of the plane's images.
    """

    transfer: Float
    across: Float
    along: Float
    frequency_x: Float
    frequency_y: Float
    columns: int


@lru_cache(maxsize=8)
def kernel_plane(kernel: Kernel, sharpness: float, pixel: float, rows: int, columns: int) -> KernelPlane:
    """The kernel on a frequency plane; ``pixel`` in mm."""
    shape = kernel_shape(kernel, sharpness)
    fy = np.fft.fftfreq(rows)[:, None]
    fx = np.fft.rfftfreq(columns)[None, :]
    frequency = np.hypot(fx, fy) / pixel
    amplitude = shape.noise(frequency)
    direction_y = np.abs(fy) / np.maximum(np.hypot(fx, fy), 1e-9)
    direction_x = np.abs(fx) / np.maximum(np.hypot(fx, fy), 1e-9)
    # Power over the whole plane, in polar coordinates, so that coarse pixels lose the noise they average away.
    radial = np.linspace(0, MAX_FREQUENCY, 800)
    power = np.trapezoid(shape.noise(radial) ** 2 * 2 * np.pi * radial, radial)
    scale = 1 / (pixel * np.sqrt(power))
    return KernelPlane(
        transfer=shape.transfer(frequency).astype(np.float32),
        across=(scale * amplitude * direction_y * np.sqrt(2)).astype(np.float32),
        along=(scale * amplitude * direction_x * np.sqrt(2)).astype(np.float32),
        frequency_x=fx.astype(np.float32),
        frequency_y=fy.astype(np.float32),
        columns=columns,
    )


def noise_level(kernel: Kernel, thickness: float, dose: float) -> float:
    """Standard deviation of the noise in HU in the middle of a neck, before pixels average it."""
    return REFERENCE_NOISE[kernel] * float(np.sqrt(REFERENCE_THICKNESS_MM / thickness / dose))


def white_spectrum(rng: np.random.Generator, rows: int, columns: int) -> Complex:
    """Spectrum, as of ``rfft2``, of white noise of unit variance (the redundant column is not made consistent)."""
    shape = (rows, columns // 2 + 1)
    parts = rng.standard_normal((*shape, 2), dtype=np.float32)
    parts *= np.float32(np.sqrt(rows * columns / 2))
    return np.asarray(parts.view(np.complex64)[..., 0])


def directional_noise(white_x: Complex, white_y: Complex, plane: KernelPlane, across: Float, along: Float) -> Float:
    """Noise of one slice.

    Args:
        white_x: white spectrum for the noise whose streaks run along x.
        white_y: another, independent one, for streaks along y.
        plane: the kernel.
        across: amplitude a row, float32 ``[rows]``: of the rays along x.
        along: amplitude a column, float32 ``[columns]``: of the rays along y.

    Returns:
        float32 ``[rows, columns]``, of unit variance where both amplitudes are 1. The first pixels are kept when the
        plane is larger.
    """
    size = plane.frequency_y.shape[0], plane.columns
    rows, columns = across.size, along.size
    first: Float = scipy.fft.irfft2(white_x * plane.across, s=size, overwrite_x=True)[:rows, :columns]
    second: Float = scipy.fft.irfft2(white_y * plane.along, s=size, overwrite_x=True)[:rows, :columns]
    first *= np.float32(np.sqrt(0.5)) * across[:, None]
    second *= np.float32(np.sqrt(0.5)) * along[None, :]
    first += second
    return first
