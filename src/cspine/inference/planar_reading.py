"""Which rows of a neck show which vertebra: the one ordered reading of what a network says of every row.

From head to chest a row lies above C1, in C1 to C7, or below. A reading gives each vertebra one stretch of rows, in
order, none left out; how long a stretch is follows adult means. It is a hidden semi-Markov model (Yu, Artificial
Intelligence 2010): the best reading is found by dynamic programming, and the same recursion, summed instead of
maximised, gives the posterior of each row's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

ABOVE, BELOW, STATES = 0, 8, 9
# Millimetres of rows in which C1 to C7 are what is seen most: adult means, and a scatter that leaves room for people.
STRETCH_MM = np.array([15.0, 23.0, 17.0, 16.5, 16.5, 17.0, 18.0])
STRETCH_SD_MM, STRETCH_MAX_MM = 4.0, 40.0
# Rows nearer than this to one another err together.
INDEPENDENT_MM = 6.0
# Share of belief that a row keeps in every name, whatever the network says.
DOUBT = 0.03
# Nats for a reading that begins below C1 although rows above show nothing, or ends before the chest likewise: images
# are padded, and networks miss vertebrae.
CUT_OFF = -5.0
# What a row shows below C7, where a network knows no thoracic vertebrae, is nothing; so it may be with one that does.
NOTHING_BELOW = 0.3


@dataclass(frozen=True, slots=True)
class Reading:
    """What each row shows.

    Attributes:
        rows: ``(start, stop)`` of each label, numbered from the head; consecutive labels.
        posterior: ``[rows, 9]``, of each row's name: above, C1..C7, below.
        score: of the best reading, nats.
    """

    rows: dict[int, tuple[int, int]]
    posterior: Float
    score: float


def read(scores: Float, row_mm: float, temperature: float = 1.0) -> Reading:
    """The best reading.

    Args:
        scores: ``[rows, 8]``, from the head on: how surely a row shows C1..C7 and thoracic vertebrae, 0..1; the last
            column is 0 for a network that does not know these.
        row_mm: height of a row.
        temperature: divides nats before the posterior.
    """
    nats = _emission(scores) * min(1.0, row_mm / INDEPENDENT_MM)
    rows, score = _best(_Model(nats, row_mm))
    return Reading(rows, _posterior(_Model(nats, row_mm, temperature)), score)


def shares(scores: Float) -> Float:
    """``[rows, 9]``: scores of ``read`` as shares of belief in above or nothing, C1..C7, thoracic; sum 1."""
    nothing = np.maximum(0.0, 1.0 - scores.max(axis=1, keepdims=True))
    belief = np.concatenate([nothing, scores], axis=1)
    return np.asarray(belief / np.maximum(belief.sum(axis=1, keepdims=True), 1e-9))


def _emission(scores: Float) -> Float:
    """``[rows, 9]`` nats."""
    belief = shares(scores)
    belief[:, BELOW] += belief[:, ABOVE] * (NOTHING_BELOW if scores[:, 7].any() else 1.0)
    return np.asarray(np.log(DOUBT + belief))


class _Model:
    """Nats of everything that a reading consists of, divided by the temperature.

    Attributes:
        count: rows.
        step: ``[9, 9]``, of one state following another.
    """

    def __init__(self, nats: Float, row_mm: float, temperature: float = 1.0) -> None:
        self.count = len(nats)
        # Of all rows before one: a stretch costs the difference of two.
        self._passed = np.concatenate([np.zeros((1, STATES)), np.cumsum(nats, axis=0)]) / temperature
        self._longest = max(2, round(STRETCH_MAX_MM / row_mm))
        length = np.arange(1, self._longest + 1) * row_mm
        density = np.exp(-0.5 * ((length[:, None] - STRETCH_MM) / STRETCH_SD_MM) ** 2)
        density /= density.sum(axis=0)
        with np.errstate(divide="ignore"):
            self._whole = np.log(density) / temperature
            # A stretch that the field cuts off is at least as long as what is seen of it.
            self._cut = np.log(np.cumsum(density[::-1], axis=0)[::-1]) / temperature
        self.step = np.full((STATES, STATES), -np.inf)
        for state in range(1, BELOW):
            self.step[ABOVE, state] = self.step[state, BELOW] = CUT_OFF / temperature
            self.step[state - 1, state] = self.step[state, state + 1] = 0.0

    def ends(self, state: int, row: int) -> NDArray[np.int64]:
        """Rows before which a stretch that begins at ``row`` may end."""
        return np.arange(row + 1, 1 + (self.count if _endless(state) else min(self.count, row + self._longest)))

    def begins(self, state: int, row: int) -> NDArray[np.int64]:
        """Rows at which a stretch that ends before ``row`` may begin."""
        return np.arange(0 if _endless(state) else max(0, row - self._longest), row)

    def stretch(self, state: int, begin: NDArray[np.int64] | int, end: NDArray[np.int64] | int) -> Float:
        """Nats of stretches of rows ``begin`` to ``end`` (excluded) in a state."""
        seen = self._passed[end, state] - self._passed[begin, state]
        if _endless(state):
            return np.asarray(seen)
        length = np.subtract(end, begin) - 1
        cut = np.equal(begin, 0) | np.equal(end, self.count)
        return np.asarray(seen + np.where(cut, self._cut[length, state - 1], self._whole[length, state - 1]))


def _endless(state: int) -> bool:
    return state in (ABOVE, BELOW)


def _added(values: Float) -> float:
    return float(np.logaddexp.reduce(values))


def _chosen(values: Float) -> float:
    return float(values.max())


def _after(model: _Model, join: Callable[[Float], float]) -> tuple[Float, Float]:
    """Nats ``[rows + 1, 9]`` of all that comes once a state begins at a row, and once it has ended before a row.

    ``join`` adds the ways that there are, or chooses the best.
    """
    begun = np.full((model.count + 1, STATES), -np.inf)
    ended = np.full((model.count + 1, STATES), -np.inf)
    ended[model.count] = 0.0
    for row in range(model.count - 1, -1, -1):
        for state in range(STATES):
            ends = model.ends(state, row)
            begun[row, state] = join(model.stretch(state, row, ends) + ended[ends, state])
        ended[row] = [join(model.step[state] + begun[row]) for state in range(STATES)]
    return begun, ended


def _before(model: _Model) -> tuple[Float, Float]:
    """Nats ``[rows + 1, 9]`` of all that came when a state begins at a row, and when it ends before a row."""
    begun = np.full((model.count + 1, STATES), -np.inf)
    ended = np.full((model.count + 1, STATES), -np.inf)
    begun[0] = 0.0
    for row in range(1, model.count + 1):
        for state in range(STATES):
            begins = model.begins(state, row)
            ended[row, state] = _added(begun[begins, state] + model.stretch(state, begins, row))
        begun[row] = [_added(ended[row] + model.step[:, state]) for state in range(STATES)]
    return begun, ended


def _best(model: _Model) -> tuple[dict[int, tuple[int, int]], float]:
    """The stretches of the best reading by label, and its nats."""
    begun, ended = _after(model, _chosen)
    state, row = int(begun[0].argmax()), 0
    found: dict[int, tuple[int, int]] = {}
    while True:
        ends = model.ends(state, row)
        end = int(ends[(model.stretch(state, row, ends) + ended[ends, state]).argmax()])
        if not _endless(state):
            found[state] = (row, end)
        if end == model.count:
            return found, float(begun[0].max())
        state, row = int((model.step[state] + begun[end]).argmax()), end


def _posterior(model: _Model) -> Float:
    """``[rows, 9]``: probability of each state in each row."""
    begin_before, end_before = _before(model)
    begin_after, end_after = _after(model, _added)
    total = _added(begin_after[0])
    begins = np.exp(begin_before + begin_after - total)
    ends = np.exp(end_before + end_after - total)
    # A state holds in a row when it has begun and not ended.
    inside = np.cumsum(begins - ends, axis=0)[:-1]
    return np.asarray(np.clip(inside, 0.0, 1.0))
