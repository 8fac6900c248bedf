"""From the locator's probabilities to ordered, unique levels with confidence, visibility and agreeing masks.

Peaks of the heat map are candidates; the class probabilities around each say what the network takes it for;
``chain`` picks the one consistent reading. Masks then follow the chain, not the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import THORACIC, Level
from cspine.inference.candidates import (
    Candidates,
    CandidateSettings,
    class_evidence,
    find_candidates,
    presence,
    state_scores,
)
from cspine.inference.certainty import Anchors, Doubts, LevelConfidence, anchors_of, confidences, doubts_of
from cspine.inference.chain import STATES, THORACIC_STATE, ChainSettings, Link, Problem, build_problem, solve
from cspine.inference.evening import evened
from cspine.inference.locate import Located
from cspine.inference.relabel import relabel
from cspine.inference.visibility import Field, assumed_fraction, centre_inside, distance_to_ends, visible_fraction

Float = NDArray[np.float64]
Point = tuple[float, float, float]
# Most that peaks left out above or below a chain may cost, nats: three vertebrae.
LEFT_OUT_MAX = 12.0
# Peaks whose presence is below this, in nats, cost nothing when they are left out.
DOUBTFUL = 1.0


@dataclass(frozen=True, slots=True)
class LevelSettings:
    """Numbers of the level search; those that need fitting live in bundle.json.

    Attributes:
        chain: weights of the dynamic programme.
        candidates: of the search for peaks.
        confidence: from the posterior of a name and what it was counted from to its confidence.
        even: move centres along the spine to even steps.
    """

    chain: ChainSettings = field(default_factory=ChainSettings)
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    confidence: LevelConfidence = field(default_factory=LevelConfidence)
    even: bool = True


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
        anchors: what it was counted from.
        doubts: what speaks against it.
    """

    found: tuple[FoundLevel, ...]
    labels: NDArray[np.uint8]
    affine: Float
    partial: dict[int, float]
    score: float
    anchors: Anchors = field(default_factory=Anchors)
    doubts: Doubts = field(default_factory=Doubts)

    def cervical(self) -> dict[Level, FoundLevel]:
        """Found levels keyed by ``Level``."""
        return {item.level: item for item in self.found if item.level is not None}

    def centers(self) -> dict[int, Point]:
        """Body centres keyed by label, thoracic ones included: what ``stacks.frames`` takes."""
        return {item.label: item.center_mm for item in self.found}


@dataclass(frozen=True, slots=True)
class Chain:
    """The ordered reading, before masks.

    Attributes:
        links: from head to chest, moved to even steps; empty when nothing is cervical.
        posterior: of each link's name.
        confidence: of each link's name, from that and the rest.
        score: nats.
        anchors: what it was counted from.
        doubts: what speaks against it.
    """

    links: tuple[Link, ...]
    posterior: tuple[float, ...]
    confidence: tuple[float, ...]
    score: float
    anchors: Anchors
    doubts: Doubts


def find_levels(located: Located, settings: LevelSettings | None = None) -> LevelMap:
    """Read the locator's answer.

    Nothing cervical, or too little evidence, gives an empty ``found`` and a mask of what the network said
    (vertebrae become "other bone", since no level can be vouched for).
    """
    view = _view(located)
    chain = find_chain(located, settings)
    return level_map(chain, relabel(located, chain.links), located.affine, view)


def level_map(chain: Chain, labels: NDArray[np.uint8], affine: Float, view: Field) -> LevelMap:
    """A reading and the mask that agrees with it, described.

    Args:
        chain: the reading.
        labels: uint8 ``[Z, Y, X]``.
        affine: index ``(x, y, z)`` → LPS mm of ``labels``.
        view: field of view.
    """
    found = _describe(chain, labels, affine, view)
    return LevelMap(
        found=found,
        labels=labels,
        affine=affine,
        partial=_partial(found, view),
        score=chain.score,
        anchors=chain.anchors,
        doubts=chain.doubts,
    )


def find_chain(located: Located, settings: LevelSettings | None = None) -> Chain:
    """The one consistent reading of the locator's answer, without masks."""
    settings = settings or LevelSettings()
    return find_chains(located, settings, (settings.chain.temperature,))[0]


def find_chains(located: Located, settings: LevelSettings, temperatures: Sequence[float]) -> list[Chain]:
    """The same reading at several temperatures, which change its confidence and nothing else."""
    peaks = find_candidates(located, settings.candidates)
    if len(peaks.heat) == 0:
        return [_read((), -np.inf, peaks, np.empty(0), settings)] * len(temperatures)
    depth = np.minimum(*distance_to_ends(peaks.positions, _view(located)))
    problem, nothing = _problem(located, peaks, settings)
    out = []
    for temperature in temperatures:
        links, score = solve(problem, replace(settings.chain, temperature=temperature), nothing)
        out.append(_read(links, score, peaks, depth, settings))
    return out


def _read(links: tuple[Link, ...], score: float, peaks: Candidates, depth: Float, settings: LevelSettings) -> Chain:
    """What there is to say of a chain; nothing when no link of it is cervical."""
    raw = links if any(link.state < THORACIC_STATE for link in links) else ()
    anchors, doubts = anchors_of(raw, peaks), doubts_of(raw, peaks)
    return Chain(
        links=evened(raw, peaks.heat, depth) if settings.even else raw,
        posterior=tuple(link.confidence for link in raw),
        confidence=tuple(confidences(raw, anchors, doubts, settings.confidence)),
        score=score,
        anchors=anchors,
        doubts=doubts,
    )


def _view(located: Located) -> Field:
    return Field(located.field_affine, located.field_shape, located.void, located.affine)


def _problem(located: Located, peaks: Candidates, settings: LevelSettings) -> tuple[Problem, float]:
    """What the dynamic programme works on, and the score of no spine at all."""
    found = presence(peaks, settings.candidates)
    emission = found[:, None] + state_scores(peaks.evidence)
    strength = np.clip(found - DOUBTFUL, 0.0, 4.0)
    start, end = _end_scores(peaks.positions, strength, _view(located))
    middle = _middle_scores(located, peaks.positions, settings.candidates.ball_mm)
    problem = build_problem(peaks.positions, emission, middle, start, end, strength, settings.chain)
    return problem, -min(float(strength.sum()), LEFT_OUT_MAX)


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


def _describe(chain: Chain, labels: NDArray[np.uint8], affine: Float, view: Field) -> tuple[FoundLevel, ...]:
    """Links as levels, thoracic ones numbered downwards."""
    found = []
    positions = np.array([link.position for link in chain.links]).reshape(-1, 3)
    thoracic = 0
    for order, (link, confidence) in enumerate(zip(chain.links, chain.confidence, strict=True)):
        label = link.state + 1 if link.state < THORACIC_STATE else THORACIC + thoracic
        thoracic += link.state == THORACIC_STATE
        x, y, z = (float(value) for value in link.position)
        found.append(
            FoundLevel(
                label=label,
                center_mm=(x, y, z),
                confidence=confidence,
                visible_fraction=visible_fraction(label, positions, order, labels, affine, view),
                interpolated=link.candidate is None,
                inside=centre_inside(link.position, view),
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
