"""Parallel-beam projections of small slices, and their filtered back projection.

Artefacts of CT are errors of rays, so they are drawn as such: projections of what disturbs, a wrong function of
them, and the filtered back projection of the error (Kak and Slaney, Principles of Computerized Tomographic Imaging,
1988, chapters 3 and 5). The matrix of a geometry is made once a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.sparse
from numpy.typing import NDArray

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Projector:
    """Projections of square slices of ``size`` pixels along ``angles`` directions over half a turn.

    Detector bins are one pixel wide and as many as cover the diagonal. Lengths are in pixels.
    """

    size: int
    angles: int
    bins: int
    matrix: scipy.sparse.csr_array

    def project(self, slices: Float) -> Float:
        """Line integrals ``[n, angles, bins]`` of ``slices`` ``[n, size, size]``."""
        flat = slices.reshape(len(slices), -1)
        out = (self.matrix @ flat.T).T
        return np.asarray(out, dtype=np.float32).reshape(len(slices), self.angles, self.bins)

    def reconstruct(self, projections: Float) -> Float:
        """Slices ``[n, size, size]`` whose line integrals are ``projections`` ``[n, angles, bins]``."""
        length = scipy.fft.next_fast_len(2 * self.bins, real=True)
        ramp = np.fft.rfftfreq(length).astype(np.float32)
        # A Hann window: without it, so few angles would ring.
        ramp *= np.float32(0.5) + np.float32(0.5) * np.cos(2 * np.pi * np.fft.rfftfreq(length)).astype(np.float32)
        spectrum = scipy.fft.rfft(projections, n=length, axis=-1)
        filtered = scipy.fft.irfft(spectrum * ramp, n=length, axis=-1)[..., : self.bins]
        flat = filtered.reshape(len(projections), -1)
        out = (self.matrix.T @ flat.T).T * (np.pi / self.angles)
        return np.asarray(out, dtype=np.float32).reshape(len(projections), self.size, self.size)


@lru_cache(maxsize=4)
def projector(size: int, angles: int) -> Projector:
    """The projector of a geometry, remembered."""
    bins = int(np.ceil(size * np.sqrt(2))) + 2
    y, x = np.mgrid[:size, :size].astype(np.float64) - (size - 1) / 2
    pixel = np.arange(size * size)
    rows, columns, values = [], [], []
    for k in range(angles):
        angle = np.pi * k / angles
        place = (x * np.cos(angle) + y * np.sin(angle)).ravel() + (bins - 1) / 2
        low = np.floor(place).astype(np.int64)
        weight = place - low
        rows += [k * bins + low, k * bins + low + 1]
        columns += [pixel, pixel]
        values += [1 - weight, weight]
    entries = (np.concatenate(values).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    matrix = scipy.sparse.csr_array(entries, shape=(angles * bins, size * size))
    return Projector(size, angles, bins, matrix)
