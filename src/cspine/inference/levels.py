"""From the locator's probabilities to ordered, unique levels with confidence, visibility and agreeing masks.

Peaks of the heat map are candidates; the class probabilities around each say what the network takes it for;
``chain`` picks the one consistent reading. Masks then follow the chain, not the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import THORACIC, Level
from cspine.inference.chain import STATES, THORACIC_STATE, ChainSettings, Link, build_problem, solve
from cspine.inference.locate import Located
from cspine.inference.relabel import relabel
from cspine.inference.visibility import Field, assumed_fraction, centre_inside, distance_to_ends, visible_fraction

Float = NDArray[np.float64]
Point = tuple[float, float, float]
# Most that peaks left out above or below a chain may cost, nats: three vertebrae.
LEFT_OUT_MAX = 12.0
# Heat tells where vertebrae are more surely than classes tell which: nats for a unit of its logit. Peaks below the
# second number cost nothing when they are left out.
HEAT_WEIGHT, DOUBTFUL = 1.4, 1.0
# Trust in what the network calls C1..C7 and thoracic.
STATE_WEIGHT = np.array([1.5, 1.5, 1.0, 0.8, 0.8, 0.8, 1.0, 1.5])


@dataclass(frozen=True, slots=True)
class LevelSettings:
    """Numbers of the level search; those that need fitting live in bundle.json.

    Attributes:
        chain: weights of the dynamic programme.
        heat_floor: peaks below this are not looked at, 0..1.
        relative_floor: nor those below this share of the scan's strongest peaks.
        heat_neutral: heat at which a peak speaks neither for nor against a vertebra.
        relative_neutral: the same as a share of the scan's strongest peaks; the larger of the two counts.
        peak_distance_mm: of two peaks nearer than this only the stronger stays.
        ball_mm: radius around a peak in which class evidence is averaged.
        atlas_ball_mm: the same for C1, whose ring lies far from its centre.
        max_candidates: the strongest peaks kept.
    """

    chain: ChainSettings = field(default_factory=ChainSettings)
    heat_floor: float = 0.08
    relative_floor: float = 0.25
    heat_neutral: float = 0.2
    relative_neutral: float = 0.42
    peak_distance_mm: float = 7.0
    ball_mm: float = 6.0
    atlas_ball_mm: float = 15.0
    max_candidates: int = 48


@dataclass(frozen=True, slots=True)
class FoundLevel:
    """One vertebra of the chain.

    Attributes:
        label: 1..7 = C1..C7; 8 and up are thoracic, counted from T1 only when C7 was found.
        center_mm: LPS mm, body centre.
        confidence: probability that the label is right, 0..1.
        visible_fraction: share of the vertebra inside the field of view, 0..1.
        interpolated: no peak of its own; its centre is the middle of its neighbours.
        inside: the centre lies clearly inside what was scanned.
    """

    label: int
    center_mm: Point
    confidence: float
    visible_fraction: float
    interpolated: bool
    inside: bool

    @property
    def level(self) -> Level | None:
        """C1..C7, or None for thoracic."""
        return Level(self.label) if self.label <= Level.C7 else None


@dataclass(frozen=True, slots=True)
class LevelMap:
    """All vertebrae found, from head to chest, and the mask that agrees with them.

    Attributes:
        found: consecutive vertebrae, each label once; empty when there is no cervical spine.
        labels: uint8 ``[Z, Y, X]`` on the locator's grid, values of ``cspine.anatomy``.
        affine: index ``(x, y, z)`` → LPS mm of ``labels``.
        partial: visible fraction assumed for levels next to the chain's ends, whose centre lies outside the field.
        score: of the chain, nats.
    """

    found: tuple[FoundLevel, ...]
    labels: NDArray[np.uint8]
    affine: Float
    partial: dict[int, float]
    score: float

    def cervical(self) -> dict[Level, FoundLevel]:
        """Found levels keyed by ``Level``."""
        return {item.level: item for item in self.found if item.level is not None}

    def centers(self) -> dict[int, Point]:
        """Body centres keyed by label, thoracic ones included: what ``stacks.frames`` takes."""
        return {item.label: item.center_mm for item in self.found}


@dataclass(frozen=True, slots=True)
class Candidates:
    """Peaks sorted from head to chest.

    Attributes:
        positions: ``(n, 3)`` LPS mm.
        heat: ``(n,)`` 0..1.
        evidence: ``(n, 8)`` share of each state (C1..C7, thoracic) among vertebra probabilities near the peak.
        mass: ``(n,)`` mean probability of any vertebra near the peak.
    """

    positions: Float
    heat: Float
    evidence: Float
    mass: Float


def find_levels(located: Located, settings: LevelSettings | None = None) -> LevelMap:
    """Read the locator's answer.

    Nothing cervical, or too little evidence, gives an empty ``found`` and a mask of what the network said
    (vertebrae become "other bone", since no level can be vouched for).
    """
    settings = settings or LevelSettings()
    view = Field(located.field_affine, located.field_shape, located.void, located.affine)
    links, score = _solve(located, view, settings)
    if not any(link.state < THORACIC_STATE for link in links):
        links = ()
    labels = relabel(located, links)
    found = _describe(links, labels, located.affine, view)
    return LevelMap(found, labels, located.affine, _partial(found, view), score)


def _solve(located: Located, view: Field, settings: LevelSettings) -> tuple[tuple[Link, ...], float]:
    """Candidates, scores, chain."""
    peaks = find_candidates(located, settings)
    if len(peaks.heat) == 0:
        return (), -np.inf
    found = presence(peaks, max(settings.heat_neutral, settings.relative_neutral * _strongest(peaks.heat)))
    emission = found[:, None] + state_scores(peaks.evidence)
    strength = np.clip(found - DOUBTFUL, 0.0, 4.0)
    start, end = _end_scores(peaks.positions, strength, view)
    middle = _middle_scores(located, peaks.positions, settings.ball_mm)
    problem = build_problem(peaks.positions, emission, middle, start, end, strength, settings.chain)
    return solve(problem, settings.chain, nothing=-min(float(strength.sum()), LEFT_OUT_MAX))


def find_candidates(located: Located, settings: LevelSettings) -> Candidates:
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
    kept = [k for k in kept if values[k] >= settings.relative_floor * _strongest(values[kept])]
    fine = np.array([_centroid(heat, index[k]) for k in kept]).reshape(-1, 3)
    positions = fine[:, ::-1] @ located.affine[:3, :3].T + located.affine[:3, 3]
    down = np.argsort(-positions[:, 2], kind="stable")
    positions = positions[down]
    evidence, mass = class_evidence(located, positions, settings.ball_mm)
    # A peak of C1 often lies in the dens, where next to nothing is C1: its ring shows only in a wider ball.
    wide, _ = class_evidence(located, positions, settings.atlas_ball_mm)
    evidence[:, 0] = np.maximum(evidence[:, 0], wide[:, 0])
    return Candidates(positions, values[kept][down], evidence, mass)


def _strongest(heat: Float, count: int = 5) -> float:
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
    spacing = float(np.linalg.norm(located.affine[:3, 2]))
    reach = int(np.ceil(radius_mm / spacing))
    cube = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    ball = cube[np.linalg.norm(cube * spacing, axis=1) <= radius_mm]
    inverse = np.linalg.inv(located.affine)
    index = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)[:, ::-1]
    voxels = index[:, None, :] + ball[None]
    inside = ((voxels >= 0) & (voxels < located.heat.shape)).all(axis=2)
    z, y, x = np.moveaxis(np.clip(voxels, 0, np.array(located.heat.shape) - 1), 2, 0)
    values = located.classes[1 : THORACIC + 1, z, y, x].astype(np.float64) * inside
    total = values.sum(axis=2).T / np.maximum(inside.sum(axis=1), 1)[:, None]
    mass = total.sum(axis=1)
    return (total + 1e-4) / (total + 1e-4).sum(axis=1, keepdims=True), mass


def state_scores(evidence: Float) -> Float:
    """``(…, 8)`` shares → nats for each state, at most 0.

    C1's centre lies between its anterior arch and the dens, so half of what surrounds it is C2: C1's share counts
    double. A floor keeps one wrong vertebra from deciding the chain. Networks know the ends of the neck by shape but
    interpolate between them, so the ends weigh more and the middle is counted.
    """
    share = evidence.copy()
    share[..., 0] = np.minimum(1.0, 2.0 * share[..., 0])
    return np.asarray(STATE_WEIGHT * np.log((share + 0.02) / 1.02))


def presence(peaks: Candidates, heat_neutral: float) -> Float:
    """``(n,)`` nats: how much a peak looks like a vertebra at all. Strong peaks add to a chain, weak ones subtract."""
    heat = np.clip(peaks.heat, 1e-3, 1 - 1e-3)
    neutral = np.log(heat_neutral / (1 - heat_neutral))
    from_heat = HEAT_WEIGHT * np.clip(np.log(heat / (1 - heat)) - neutral, -2.5, 3.0)
    return np.asarray(from_heat + np.clip(np.log((peaks.mass + 0.02) / 0.25), -2.5, 0.5))


def _end_scores(positions: Float, strength: Float, view: Field) -> tuple[Float, Float]:
    """Nats for a chain to begin or to stop at each candidate, ``(n, 8)`` both.

    Chains may begin below C1, or stop above the chest, where the field ends; elsewhere a vertebra was missed. Strong
    peaks left out above or below cost as much as they would have brought, up to a limit.
    """
    above, below = distance_to_ends(positions, view)
    start = np.zeros((len(positions), STATES))
    end = np.zeros_like(start)
    start[above > 35.0, 1:] = -3.0
    end[below > 35.0, :THORACIC_STATE] = -1.5
    passed = np.cumsum(strength)
    start -= np.minimum(passed - strength, LEFT_OUT_MAX)[:, None]
    end -= np.minimum(passed[-1] - passed, LEFT_OUT_MAX)[:, None]
    return start, end


def _middle_scores(located: Located, positions: Float, radius_mm: float) -> Float:
    """``(n, n, 8)`` nats for an unseen vertebra half-way between two candidates."""
    count = len(positions)
    first, second = np.triu_indices(count, 1)
    gap = np.linalg.norm(positions[first] - positions[second], axis=1)
    near = gap < 68.0
    first, second = first[near], second[near]
    scores = np.full((count, count, STATES), -3.0)
    if len(first):
        evidence, mass = class_evidence(located, (positions[first] + positions[second]) / 2, radius_mm)
        scores[first, second] = state_scores(evidence) + np.clip(np.log((mass + 0.02) / 0.25), -2.5, 0)[:, None]
    return scores


def _describe(links: tuple[Link, ...], labels: NDArray[np.uint8], affine: Float, view: Field) -> tuple[FoundLevel, ...]:
    """Links as levels, thoracic ones numbered downwards."""
    found = []
    positions = np.array([link.position for link in links]).reshape(-1, 3)
    for order, link in enumerate(links):
        thoracic = sum(other.state == THORACIC_STATE for other in links[:order])
        label = link.state + 1 if link.state < THORACIC_STATE else THORACIC + thoracic
        share = visible_fraction(label, positions, order, labels, affine, view)
        x, y, z = (float(value) for value in link.position)
        found.append(
            FoundLevel(
                label, (x, y, z), link.confidence, share, link.candidate is None, centre_inside(link.position, view)
            )
        )
    return tuple(found)


def _partial(found: tuple[FoundLevel, ...], view: Field) -> dict[int, float]:
    """Visible fraction of the cervical level just above and just below the chain, placed by extrapolation."""
    if len(found) < 2:
        return {}
    centers = np.array([item.center_mm for item in found])
    out = {}
    for label, centre, along in (
        (found[0].label - 1, 2 * centers[0] - centers[1], centers[0] - centers[1]),
        (found[-1].label + 1, 2 * centers[-1] - centers[-2], centers[-2] - centers[-1]),
    ):
        if 1 <= label <= Level.C7:
            out[label] = assumed_fraction(label, centre, along, view)
    return out
