"""Which candidate is which vertebra: a dynamic programme over ordered, consecutive, unique levels.

States are C1..C7 (0..6) and thoracic (7, may repeat). A chain runs from head to chest through candidates; every
step goes to the next state, so a doubled or skipped level cannot be expressed. One missing peak at a time may be
bridged: its level exists, with an interpolated centre. The same recursion, summed instead of maximised, gives the
posterior of each label (forward-backward; Rabiner, Proc. IEEE 1989).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STATES = 8
THORACIC_STATE = 7
# Mean distance between neighbouring body centres, mm, from state k to the next; C1 is the point between anterior
# arch and dens. Adult means; the spread below leaves room for small and large people.
STEP_MEAN_MM = np.array([20.5, 18.0, 16.5, 16.5, 16.5, 17.0, 18.5, 20.5])
STEP_SD_MM = 4.0
STEP_RANGE_MM = (8.0, 30.0)
# A candidate this near to the line between two others lies between them.
BETWEEN_MM = 12.0
# A step may lean this far from straight down before it costs; past MAX_LEAN it is impossible. The upper thoracic spine
# of a patient who nods by 25 degrees leans by 60.
FREE_LEAN_DEG, LEAN_SD_DEG, MAX_LEAN_DEG = 35.0, 20.0, 80.0

Float = NDArray[np.float64]
NEVER = -np.inf


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """Weights of the dynamic programme, in nats.

    Attributes:
        bridge_penalty: cost of a level without a peak of its own.
        temperature: divides scores before the posterior; fitted on labelled scans.
        minimum_score: a best chain below this is no spine.
    """

    bridge_penalty: float = 4.0
    temperature: float = 1.0
    minimum_score: float = 2.0


@dataclass(frozen=True, slots=True)
class Link:
    """One vertebra of a chain.

    Attributes:
        state: 0..6 for C1..C7, 7 thoracic.
        candidate: index of its peak, or None when bridged.
        position: LPS mm ``(3,)``; the middle of its neighbours when bridged.
        confidence: posterior of this state, given that the vertebra is one.
    """

    state: int
    candidate: int | None
    position: Float
    confidence: float


@dataclass(frozen=True, slots=True)
class Problem:
    """What the recursion works on; candidates sorted from head to chest.

    Attributes:
        positions: ``(n, 3)`` LPS mm.
        emission: ``(n, 8)`` nats for candidate and state.
        direct: ``(8, n, n)`` nats for going from candidate i in state k to j in the next state.
        bridged: ``(8, n, n)`` the same with one vertebra without a peak in between.
        start, end: ``(n, 8)`` nats for a chain to begin or stop there.
    """

    positions: Float
    emission: Float
    direct: Float
    bridged: Float
    start: Float
    end: Float


def next_state(state: int, steps: int = 1) -> int:
    """The state ``steps`` vertebrae further down."""
    return min(state + steps, THORACIC_STATE)


def build_problem(
    positions: Float,
    emission: Float,
    middle: Float,
    start: Float,
    end: Float,
    strength: Float,
    settings: ChainSettings,
) -> Problem:
    """Transition scores from geometry.

    Args:
        positions: ``(n, 3)`` LPS mm, z decreasing.
        emission: ``(n, 8)`` nats.
        middle: ``(n, n, 8)`` nats for a vertebra half-way between i and j, at most 0.
        start: ``(n, 8)`` nats for a chain to begin there, at most 0.
        end: ``(n, 8)`` nats for a chain to stop there, at most 0.
        strength: ``(n,)`` nats that it costs to step over a candidate, at least 0.
        settings: weights.
    """
    step = positions[None, :, :] - positions[:, None, :]
    distance = np.linalg.norm(step, axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        lean = np.degrees(np.arccos(np.clip(-step[..., 2] / distance, -1, 1)))
    lean = np.where(distance > 0, lean, 180.0)
    bend = np.where(lean > MAX_LEAN_DEG, NEVER, -0.5 * (np.maximum(0, lean - FREE_LEAN_DEG) / LEAN_SD_DEG) ** 2)
    bend = bend - _stepped_over(positions, strength)
    direct = np.empty((STATES, *distance.shape))
    bridged = np.empty_like(direct)
    for state in range(STATES):
        first, second = STEP_MEAN_MM[state], STEP_MEAN_MM[next_state(state)]
        direct[state] = bend + _spacing(distance, first, 1)
        missing = middle[:, :, next_state(state)]
        bridged[state] = bend + _spacing(distance, first + second, 2) + missing - settings.bridge_penalty
    return Problem(positions, emission, direct, bridged, start, end)


def _stepped_over(positions: Float, strength: Float) -> Float:
    """``(n, n)`` nats: summed strength of the candidates that lie between i and j, near the line that joins them."""
    along = positions[None, :, :] - positions[:, None, :]
    length = np.maximum(np.linalg.norm(along, axis=2), 1e-9)
    # [i, j, m]: m seen from i.
    seen = along[:, None, :, :]
    share = (seen * along[:, :, None, :]).sum(axis=3) / length[:, :, None] ** 2
    aside = np.linalg.norm(seen - share[..., None] * along[:, :, None, :], axis=3)
    between = (share > 0) & (share < 1) & (aside < BETWEEN_MM)
    count = len(positions)
    index = np.arange(count)
    between[index, :, index] = False
    between[:, index, index] = False
    return np.asarray((between * strength).sum(axis=2))


def _spacing(distance: Float, mean: float, steps: int) -> Float:
    """Log-likelihood of a distance over one or two vertebrae; impossible outside the range."""
    low, high = (bound * steps for bound in STEP_RANGE_MM)
    score = -0.5 * ((distance - mean) / (STEP_SD_MM * steps**0.5)) ** 2
    return np.where((distance < low) | (distance > high), NEVER, score)


def solve(problem: Problem, settings: ChainSettings, nothing: float = 0.0) -> tuple[tuple[Link, ...], float]:
    """The best chain from head to chest, and by how many nats it beats ``nothing``, the score of no spine at all.

    Empty when it beats it by less than ``minimum_score``.
    """
    count = len(problem.positions)
    if count == 0:
        return (), NEVER
    best = np.empty((count, STATES))
    back: dict[tuple[int, int], tuple[int, int, bool]] = {}
    for j in range(count):
        for state in range(STATES):
            top, origin = problem.start[j, state], None
            for previous, is_bridge, scores in _arrivals(problem, best, j, state):
                if scores.size and scores.max() > top:
                    top, origin = float(scores.max()), (int(scores.argmax()), previous, is_bridge)
            best[j, state] = problem.emission[j, state] + top
            if origin is not None:
                back[j, state] = origin
    total = best + problem.end
    last, state = (int(k) for k in np.unravel_index(int(total.argmax()), total.shape))
    score = float(total[last, state]) - nothing
    if score < settings.minimum_score:
        return (), score
    return _unroll(problem, back, last, state, posterior(problem, settings.temperature)), score


def _arrivals(problem: Problem, table: Float, j: int, state: int) -> list[tuple[int, bool, Float]]:
    """Scores of reaching candidate j in ``state`` from each earlier candidate: (previous state, bridged, scores)."""
    found = []
    for previous in range(STATES):
        if next_state(previous) == state:
            found.append((previous, False, table[:j, previous] + problem.direct[previous, :j, j]))
        if next_state(previous, 2) == state:
            found.append((previous, True, table[:j, previous] + problem.bridged[previous, :j, j]))
    return found


def _unroll(
    problem: Problem, back: dict[tuple[int, int], tuple[int, int, bool]], last: int, state: int, belief: Float
) -> tuple[Link, ...]:
    """Follow the back pointers from the last vertebra up to the first."""
    links = [Link(state, last, problem.positions[last], float(belief[last, state]))]
    while (last, state) in back:
        i, previous, is_bridge = back[last, state]
        above = Link(previous, i, problem.positions[i], float(belief[i, previous]))
        if is_bridge:
            # Nobody saw this one: never surer than its neighbours, and half of that.
            sure = 0.5 * min(above.confidence, links[-1].confidence)
            centre = (problem.positions[i] + problem.positions[last]) / 2
            links.append(Link(next_state(previous), None, centre, sure))
        links.append(above)
        last, state = i, previous
    return tuple(reversed(links))


def posterior(problem: Problem, temperature: float) -> Float:
    """``(n, 8)``: probability of each state for each candidate, given that the candidate is part of a chain."""
    cold = Problem(
        positions=problem.positions,
        emission=problem.emission / temperature,
        direct=problem.direct / temperature,
        bridged=problem.bridged / temperature,
        start=problem.start / temperature,
        end=problem.end / temperature,
    )
    ahead = _forward(cold)
    behind = _backward(cold)
    joint = ahead + behind
    joint -= joint.max(axis=1, keepdims=True)
    share = np.exp(joint)
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def _forward(problem: Problem) -> Float:
    """Log of the sum over all chains that end at (candidate, state), its own emission included."""
    count = len(problem.positions)
    table = np.full((count, STATES), NEVER)
    for j in range(count):
        for state in range(STATES):
            parts = [np.atleast_1d(problem.start[j, state])]
            parts += [scores for _, _, scores in _arrivals(problem, table, j, state)]
            table[j, state] = problem.emission[j, state] + np.logaddexp.reduce(np.concatenate(parts))
    return table


def _backward(problem: Problem) -> Float:
    """Log of the sum over all continuations below (candidate, state), its own emission left out."""
    count = len(problem.positions)
    table = np.full((count, STATES), NEVER)
    for i in reversed(range(count)):
        for state in range(STATES):
            one, two = next_state(state), next_state(state, 2)
            below = problem.emission[i + 1 :] + table[i + 1 :]
            parts = [
                np.atleast_1d(problem.end[i, state]),
                below[:, one] + problem.direct[state, i, i + 1 :],
                below[:, two] + problem.bridged[state, i, i + 1 :],
            ]
            table[i, state] = np.logaddexp.reduce(np.concatenate(parts))
    return table
