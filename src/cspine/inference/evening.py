"""Body centres of one person lie evenly: steps differ between people, and hardly within one.

In 13 people marked by hand (the development half) steps between neighbouring centres below C2 are within an eighth of
the anatomical mean for their place times one factor a person. Peaks of a heat map scatter far more, when slices are
thick or bodies sclerotic. So centres are moved along the spine to where peaks and evenness agree best, by least
squares:

    sum_i ((x_i - peak_i) / s_i)² + sum_i ((x_i+1 - x_i - f m_i) / (0.1 m_i))² → min,

with places ``x`` along the spine, the person's factor ``f``, mean steps ``m``, and scatter ``s`` of a peak, which is
less the stronger it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cspine.inference.chain import STEP_MEAN_MM, THORACIC_STATE, Link

# Scatter of steps within a person, as a share of the step; of the person's factor around 1.
STEP_SCATTER, ATLAS_STEP_SCATTER, SIZE_SCATTER = 0.1, 0.12, 0.2
# Scatter of a peak, mm: at heat 1, and what it grows by towards heat 0.
PEAK_SCATTER_MM, WEAK_SCATTER_MM = 0.5, 6.0
# Thoracic vertebrae that still take part.
THORACIC_LINKS = 2
MIN_LINKS = 4
# A peak this near to the field's end is hardly believed.
RIM_MM = 5.0

Float = NDArray[np.float64]


def evened(links: Sequence[Link], heat: Float, depth: Float) -> tuple[Link, ...]:
    """Links moved along the spine to even steps; see the module. Short chains stay as they are.

    Args:
        links: of a chain, from head to chest.
        heat: ``(n,)`` of all candidates, 0..1.
        depth: ``(n,)`` of all candidates, mm to the nearer end of the field, up or down.
    """
    count = sum(link.state < THORACIC_STATE for link in links) + THORACIC_LINKS
    moved = list(links[:count])
    if len(moved) < MIN_LINKS:
        return tuple(links)
    points = np.array([link.position for link in moved])
    place = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    # At the field's end a peak may be the rim of a vertebra whose centre lies outside.
    trust = np.where(depth < RIM_MM, 0.0, heat)
    even = _least_squares(moved, place, trust)
    at = _along(points, place, even)
    return (*(replace(link, position=point) for link, point in zip(moved, at, strict=True)), *links[count:])


def _least_squares(links: Sequence[Link], place: Float, heat: Float) -> Float:
    """Places along the spine, mm ``(n,)``; heat 0 stands for a peak that hardly counts."""
    count = len(links)
    mean = STEP_MEAN_MM[[link.state for link in links[:-1]]]
    size = float(np.median(np.diff(place) / mean))
    scatter = np.array([ATLAS_STEP_SCATTER if link.state == 0 else STEP_SCATTER for link in links[:-1]])
    peaks = [k for k, link in enumerate(links) if link.candidate is not None]
    strength = np.array([heat[links[k].candidate] for k in peaks])
    weight = 1 / (PEAK_SCATTER_MM + WEAK_SCATTER_MM * (1 - strength))
    # One row a peak, one a step, one for the person's factor, which is the last unknown.
    rows = np.zeros((len(peaks) + count, count + 1))
    wanted = np.zeros(len(rows))
    rows[np.arange(len(peaks)), peaks] = weight
    wanted[: len(peaks)] = weight * place[peaks]
    for k in range(count - 1):
        rows[len(peaks) + k, [k, k + 1, count]] = np.array([-1.0, 1.0, -mean[k]]) / (scatter[k] * mean[k] * size)
    rows[-1, count], wanted[-1] = 1 / SIZE_SCATTER, 1 / SIZE_SCATTER
    return np.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0][:count])


def _along(points: Float, place: Float, wanted: Float) -> Float:
    """LPS points ``(n, 3)`` at wanted places of a polyline, which goes on straight beyond its ends."""
    out = np.stack([np.interp(wanted, place, points[:, axis]) for axis in range(3)], axis=1)
    for end, inner in ((0, 1), (-1, -2)):
        direction = (points[end] - points[inner]) / abs(place[end] - place[inner])
        over = np.maximum(place[0] - wanted, 0) if end == 0 else np.maximum(wanted - place[-1], 0)
        out += over[:, None] * direction
    return np.asarray(out)
