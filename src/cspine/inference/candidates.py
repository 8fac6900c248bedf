"""Where vertebrae may be, and what the locator takes them for: peaks of its heat map with the classes around them.

C1 is told by its ring. Its centre lies between the anterior arch and the dens, so what is near it is mostly C2; but at
its height most vertebra voxels are C1's, and at the height of C2's body none are. Of all levels this tells most
surely where counting begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import THORACIC
from cspine.inference.locate import Located

Float = NDArray[np.float64]

# Heat tells where vertebrae are more surely than classes tell which: nats for a unit of its logit.
HEAT_WEIGHT = 1.4
# Trust in what the network calls C1..C7 and thoracic.
STATE_WEIGHT = np.array([1.5, 1.5, 1.0, 0.8, 0.8, 0.8, 1.0, 1.5])
# The slab around a candidate in which C1's ring is looked for: radius, half its height, and the volume of ring at
# which the share of C1 is believed half, mm and mm³. Arch and dens are part of it, so a share of 2/3 is a whole ring.
RING_RADIUS_MM, RING_HALF_MM, RING_HALF_MM3 = 28.0, 5.0, 1000.0
RING_WHOLE = 2 / 3


@dataclass(frozen=True, slots=True)
class CandidateSettings:
    """Numbers of the search for peaks.

    Attributes:
        heat_floor: peaks below this are not looked at, 0..1.
        relative_floor: nor those below this share of the scan's strongest peaks.
        heat_neutral: heat at which a peak speaks neither for nor against a vertebra.
        relative_neutral: the same as a share of the scan's strongest peaks; the larger of the two counts.
        peak_distance_mm: of two peaks nearer than this only the stronger stays.
        ball_mm: radius around a peak in which class evidence is averaged.
        max_candidates: the strongest peaks kept.
    """

    heat_floor: float = 0.08
    relative_floor: float = 0.25
    heat_neutral: float = 0.2
    relative_neutral: float = 0.42
    peak_distance_mm: float = 7.0
    ball_mm: float = 6.0
    max_candidates: int = 48


@dataclass(frozen=True, slots=True)
class Candidates:
    """Peaks sorted from head to chest.

    Attributes:
        positions: ``(n, 3)`` LPS mm.
        heat: ``(n,)`` 0..1.
        evidence: ``(n, 8)`` share of each state (C1..C7, thoracic) among vertebra probabilities near the peak.
        mass: ``(n,)`` mean probability of any vertebra near the peak.
        ring: ``(n,)`` 0..1, how much of C1's ring lies at its height.
    """

    positions: Float
    heat: Float
    evidence: Float
    mass: Float
    ring: Float


def find_candidates(located: Located, settings: CandidateSettings) -> Candidates:
    """Local maxima of the heat map, kept apart, with sub-voxel positions and the class evidence around them."""
    heat = located.heat.astype(np.float32)
    spacing = float(np.linalg.norm(located.affine[:3, 2]))
    smooth = ndimage.gaussian_filter(heat, 0.6)
    top = (ndimage.maximum_filter(smooth, size=3) == smooth) & (heat >= settings.heat_floor)
    index = np.argwhere(top)
    values = heat[top].astype(np.float64)
    # Ties broken by place, so that the order never depends on the platform's sort.
    order = np.lexsort((index[:, 2], index[:, 1], index[:, 0], -values))
    kept: list[int] = []
    for k in order:
        gap = np.linalg.norm((index[kept] - index[k]) * spacing, axis=1) if kept else np.empty(0)
        if not (gap < settings.peak_distance_mm).any():
            kept.append(int(k))
        if len(kept) == settings.max_candidates:
            break
    kept = [k for k in kept if values[k] >= settings.relative_floor * strongest(values[kept])]
    fine = np.array([_centroid(heat, index[k]) for k in kept]).reshape(-1, 3)
    positions = fine[:, ::-1] @ located.affine[:3, :3].T + located.affine[:3, 3]
    down = np.argsort(-positions[:, 2], kind="stable")
    positions = positions[down]
    evidence, mass = class_evidence(located, positions, settings.ball_mm)
    ring = ring_share(located, positions)
    evidence[:, 0] = ring
    evidence[:, 1] *= 1 - ring
    return Candidates(positions, values[kept][down], evidence, mass, ring)


def strongest(heat: Float, count: int = 5) -> float:
    """Mean of the strongest peaks: what a clear body centre looks like in this scan."""
    return float(np.sort(heat)[-count:].mean()) if len(heat) else 0.0


def _centroid(heat: NDArray[np.float32], peak: NDArray[np.intp]) -> Float:
    """Heat-weighted centre of the 5x5x5 block around a peak, index z, y, x."""
    low = np.maximum(peak - 2, 0)
    block = heat[tuple(slice(a, b) for a, b in zip(low, peak + 3, strict=True))].astype(np.float64)
    # The block is cut at the grid's face: make it symmetric, or the centre moves inwards.
    reach = np.minimum(peak - low, np.array(low + block.shape) - 1 - peak)
    near = block[tuple(slice(p - o - r, p - o + r + 1) for p, o, r in zip(peak, low, reach, strict=True))]
    weight = np.maximum(near - 0.5 * near.max(), 0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in near.shape), indexing="ij"), axis=-1)
    offset = (grid * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()
    return np.asarray(peak - reach + offset)


def class_evidence(located: Located, points: Float, radius_mm: float) -> tuple[Float, Float]:
    """Class probabilities averaged in a ball around each point.

    Args:
        located: the locator's answer.
        points: ``(n, 3)`` LPS mm.
        radius_mm: of the ball.

    Returns:
        ``(n, 8)`` shares among vertebra classes, summing to 1, and ``(n,)`` mean probability of any vertebra.
    """
    cube = _cube(located, radius_mm, radius_mm)
    total, inside = _sums(located, points, cube[np.linalg.norm(cube * _spacing(located), axis=1) <= radius_mm])
    total /= np.maximum(inside, 1)[:, None]
    mass = total.sum(axis=1)
    return (total + 1e-4) / (total + 1e-4).sum(axis=1, keepdims=True), mass


def ring_share(located: Located, points: Float) -> Float:
    """``(n,)`` 0..1: how much of what lies at the height of LPS points ``(n, 3)`` is the ring of C1."""
    spacing = _spacing(located)
    slab = _cube(located, RING_HALF_MM, RING_RADIUS_MM)
    slab = slab[np.hypot(slab[:, 1], slab[:, 2]) * spacing <= RING_RADIUS_MM]
    volume = _sums(located, points, slab)[0] * spacing**3
    return np.asarray(np.minimum(1.0, volume[:, 0] / (volume.sum(axis=1) + RING_HALF_MM3) / RING_WHOLE))


def _spacing(located: Located) -> float:
    return float(np.linalg.norm(located.affine[:3, 2]))


def _cube(located: Located, height_mm: float, radius_mm: float) -> NDArray[np.int64]:
    """Index offsets z, y, x ``(m, 3)`` up to the given reach."""
    up, side = (int(np.ceil(reach / _spacing(located))) for reach in (height_mm, radius_mm))
    axes = (np.arange(-up, up + 1), np.arange(-side, side + 1), np.arange(-side, side + 1))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _sums(located: Located, points: Float, offsets: NDArray[np.int64]) -> tuple[Float, NDArray[np.int64]]:
    """Summed vertebra probabilities ``(n, 8)`` over the offsets around each point, and how many were on the grid."""
    inverse = np.linalg.inv(located.affine)
    index = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)[:, ::-1]
    total, count = np.zeros((len(points), THORACIC)), np.zeros(len(points), dtype=np.int64)
    for row, centre in enumerate(index):
        voxels = centre + offsets
        z, y, x = voxels[((voxels >= 0) & (voxels < located.heat.shape)).all(axis=1)].T
        total[row] = located.classes[1 : THORACIC + 1, z, y, x].sum(axis=1, dtype=np.float64)
        count[row] = len(z)
    return total, count


def state_scores(evidence: Float) -> Float:
    """``(…, 8)`` shares → nats for each state, at most 0.

    A floor keeps one wrong vertebra from deciding the chain. Networks know the ends of the neck by shape but
    interpolate between them, so the ends weigh more and the middle is counted.
    """
    return np.asarray(STATE_WEIGHT * np.log((evidence + 0.02) / 1.02))


def presence(peaks: Candidates, settings: CandidateSettings) -> Float:
    """``(n,)`` nats: how much a peak looks like a vertebra at all. Strong peaks add to a chain, weak ones subtract."""
    heat_neutral = max(settings.heat_neutral, settings.relative_neutral * strongest(peaks.heat))
    heat = np.clip(peaks.heat, 1e-3, 1 - 1e-3)
    neutral = np.log(heat_neutral / (1 - heat_neutral))
    from_heat = HEAT_WEIGHT * np.clip(np.log(heat / (1 - heat)) - neutral, -2.5, 3.0)
    return np.asarray(from_heat + np.clip(np.log((peaks.mass + 0.02) / 0.25), -2.5, 0.5))
