"""Fit how sure the names of levels are: the chain's temperature, and what its anchors are worth.

    confidence = sigmoid(posterior * logit(p) + head * a_head + chest * a_chest + contradicted * c + bias)

(``inference.certainty``). It is fitted on levels whose truth is known, from scans that serve for development, and
checked by leaving out one scan, with all that was made from it, at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cspine.errors import UsageError
from cspine.evaluation.calibration import expected_calibration_error, log_loss, sigmoid
from cspine.evaluation.landmarks import Truths
from cspine.inference.certainty import LevelConfidence, limited_logit
from cspine.inference.levels import Chain
from cspine.inference.visibility import Field, centre_inside

# Temperatures tried; 1 takes peaks and classes as independent, which they are not.
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)
# Pull towards "the posterior as it is, and nothing else": a normal prior of variance one over this.
STRENGTH = 2.0
# Any set of scans has too few variants to learn what a contradiction is worth: that it counts is believed.
NEUTRAL = (1.0, 0.0, 0.0, -1.0, 0.0)
MIN_WRONG = 8

Float = NDArray[np.float64]


class ConfidenceRow(BaseModel):
    """One stated level: what its confidence may be read from, and whether its name was right.

    Attributes:
        scan: rows of one scan are left out together.
        variant: of the scan.
        level: stated name.
        posterior: by temperature, in the order of ``TEMPERATURES``.
        head, chest: anchors of its chain.
        contradicted: the network's classes take it for another level.
        right: the name is true.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scan: str
    variant: str
    level: str
    posterior: tuple[float, ...]
    head: float
    chest: float
    contradicted: bool
    right: bool


def rows_of(chains: Sequence[Chain], view: Field, there: Truths, *, scan: str, variant: str) -> list[ConfidenceRow]:
    """Stated levels of one scan whose truth is clear.

    Args:
        chains: of the same scan at each of ``TEMPERATURES``; only posteriors differ.
        view: field of view.
        there: where the marks lie.
        scan: name.
        variant: name.
    """
    rows = []
    for order, link in enumerate(chains[0].links):
        name = f"C{link.state + 1}"
        truth = there.truth.get(name, "edge")
        # Levels without a peak have half the confidence of their neighbours, by rule.
        if link.state > 6 or link.candidate is None or truth == "edge" or not centre_inside(link.position, view):
            continue
        rows.append(
            ConfidenceRow(
                scan=scan,
                variant=variant,
                level=name,
                posterior=tuple(chain.posterior[order] for chain in chains),
                head=chains[0].anchors.head,
                chest=chains[0].anchors.chest,
                contradicted=link.state + 1 in chains[0].doubts.contradicted,
                right=there.nearest(link.position) == name,
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class ConfidenceFit:
    """What goes into a bundle, and how good it is on scans left out.

    Attributes:
        temperature: of the chain.
        curve: from posterior and anchors to confidence.
        note: for the card.
    """

    temperature: float
    curve: LevelConfidence
    note: str


def fit_level_confidence(rows: Sequence[ConfidenceRow]) -> ConfidenceFit:
    """Temperature and curve with the least log-loss on scans left out.

    Raises:
        UsageError: fewer than eight right, or eight wrong, levels: there is nothing to learn from.
    """
    right = np.array([row.right for row in rows], dtype=bool)
    if min(right.sum(), (~right).sum()) < MIN_WRONG:
        raise UsageError(
            f"confidence needs {MIN_WRONG} right and wrong levels, got {right.sum()} and {(~right).sum()}",
            fix="Add variants of the scans, which are harder",
        )
    losses = [log_loss(right, held_out(rows, index)) for index in range(len(TEMPERATURES))]
    best = int(np.argmin(losses))
    curve = fit_curve(rows, best)
    plain = sigmoid([limited_logit(row.posterior[TEMPERATURES.index(3.0)]) for row in rows])
    checked = held_out(rows, best)
    note = (
        f"Confidence of level names: temperature {TEMPERATURES[best]:g}, fitted on {len(rows)} stated levels of "
        f"{len({row.scan for row in rows})} scans and their variants, {int((~right).sum())} of them wrong. On scans "
        f"left out one by one log-loss {losses[best]:.3f} and calibration error "
        f"{expected_calibration_error(right, checked):.3f}; the posterior alone has {log_loss(right, plain):.3f} and "
        f"{expected_calibration_error(right, plain):.3f}."
    )
    return ConfidenceFit(TEMPERATURES[best], curve, note)


def held_out(rows: Sequence[ConfidenceRow], temperature: int) -> Float:
    """Confidence of each row by a curve fitted without its scan; ``temperature`` is an index of ``TEMPERATURES``."""
    scans = np.array([row.scan for row in rows])
    out = np.zeros(len(rows))
    table = _table(rows, temperature)
    for scan in np.unique(scans):
        inside = scans == scan
        weights = _weights(table[~inside], np.array([row.right for row in rows])[~inside])
        out[inside] = sigmoid(table[inside] @ weights)
    return out


def fit_curve(rows: Sequence[ConfidenceRow], temperature: int) -> LevelConfidence:
    """The curve of all rows at one of ``TEMPERATURES``."""
    found = _weights(_table(rows, temperature), np.array([row.right for row in rows]))
    posterior, head, chest, contradicted, bias = (round(float(value), 4) for value in found)
    return LevelConfidence(posterior=posterior, head=head, chest=chest, contradicted=contradicted, bias=bias)


def _table(rows: Sequence[ConfidenceRow], temperature: int) -> Float:
    """``(n, 5)``: logit of the posterior, anchors, contradiction, one."""
    return np.array(
        [[limited_logit(row.posterior[temperature]), row.head, row.chest, row.contradicted, 1.0] for row in rows]
    )


def _weights(table: Float, right: NDArray[np.bool_]) -> Float:
    """Maximum a posteriori weights ``(5,)``: more posterior or anchor never means less confidence."""
    from scipy.optimize import minimize

    centre = np.array(NEUTRAL)

    def objective(weights: Float) -> tuple[float, Float]:
        score, away = table @ weights, weights - centre
        loss = float((np.logaddexp(0, score) - right * score).sum() + 0.5 * STRENGTH * (away @ away))
        return loss, table.T @ (sigmoid(score) - right) + STRENGTH * away

    bounds = [(0.05, None), (0.0, None), (0.0, None), (None, 0.0), (None, None)]
    return np.asarray(minimize(objective, centre, jac=True, method="L-BFGS-B", bounds=bounds).x)
