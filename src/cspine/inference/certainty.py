"""How sure the names of levels are, and what they were counted from.

The posterior of the chain says how well one name fits against the others, given that peaks and classes err on their
own. They do not: without an anchor all of them err together, by one. So the posterior is one of four things that a
fitted logistic curve takes together:

    confidence = sigmoid(posterior * logit(p) + head * a_head + chest * a_chest + contradicted * c + bias),

where ``p`` is the posterior, ``a_head`` is how much of C1's ring the chain begins with, ``a_chest`` how much thoracic
spine it ends in, and ``c`` is 1 for a level that the network's classes take for another.
``cspine.training.level_confidence`` fits it on labelled scans. Heat, mean agreement of classes with names, distance
from the anchor, and evenness of steps were tried as well and did not help on scans left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cspine.inference.candidates import Candidates
from cspine.inference.chain import STEP_MEAN_MM, THORACIC_STATE, Link

# Logits of posteriors are cut here: a chain of many peaks is never a million to one.
LOGIT_LIMIT = 4.0
# This many thoracic vertebrae below C7 make a whole anchor.
CHEST_LINKS = 3
# An anchor counts as in view from here on.
ANCHORED = 0.5
# A step this many times as long, or short, as the person's others is unusual: in 13 people marked by hand none of 104
# steps was outside 0.87 to 1.33.
LONG_STEP, SHORT_STEP = 1.6, 0.5
# A name is contradicted when the network gives it less than the first, and another more than the second.
CONTRADICTED, CONTRADICTING = 0.15, 0.7

Finite = Annotated[float, Field(allow_inf_nan=False)]


class LevelConfidence(BaseModel):
    """Weights of the formula above; part of the ``calibration`` table of bundle.json.

    The default was fitted with the locator of bundle base 0.1.0, so that a bundle without a fit of its own is not
    surer than that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    posterior: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3
    head: Finite = 2.8
    chest: Finite = 0.0
    contradicted: Finite = -1.0
    bias: Finite = -0.2

    def __call__(self, posterior: float, anchors: Anchors, contradicted: bool = False) -> float:
        """Confidence of a level whose name has this posterior, 0..1."""
        score = self.posterior * limited_logit(posterior) + self.head * anchors.head + self.chest * anchors.chest
        score += self.contradicted * contradicted + self.bias
        return float(0.5 * (1 + np.tanh(0.5 * score)))


@dataclass(frozen=True, slots=True)
class Anchors:
    """What a chain was counted from, 0 (not in view) to 1.

    Attributes:
        head: the ring of C1 around the chain's C1.
        chest: thoracic vertebrae at the chain's lower end.
    """

    head: float = 0.0
    chest: float = 0.0


@dataclass(frozen=True, slots=True)
class Doubts:
    """What speaks against a chain.

    Attributes:
        uneven: pairs of labels with an unusual step between them.
        contradicted: labels that the network takes for another level.
    """

    uneven: tuple[tuple[int, int], ...] = ()
    contradicted: tuple[int, ...] = ()


def limited_logit(probability: float) -> float:
    """Logit, cut at ``LOGIT_LIMIT`` to both sides."""
    p = min(max(probability, 1e-9), 1 - 1e-9)
    return float(np.clip(np.log(p / (1 - p)), -LOGIT_LIMIT, LOGIT_LIMIT))


def anchors_of(links: Sequence[Link], peaks: Candidates) -> Anchors:
    """What the chain was counted from."""
    if not links:
        return Anchors()
    first = links[0]
    head = float(peaks.ring[first.candidate]) if first.state == 0 and first.candidate is not None else 0.0
    chest = [
        float(peaks.evidence[link.candidate, THORACIC_STATE])
        for link in links
        if link.state == THORACIC_STATE and link.candidate is not None
    ]
    return Anchors(head, sum(chest[:CHEST_LINKS]) / CHEST_LINKS)


def confidences(links: Sequence[Link], anchors: Anchors, doubts: Doubts, curve: LevelConfidence) -> list[float]:
    """Confidence of each link; one without a peak is never surer than its neighbours, and half of that."""
    sure = [curve(link.confidence, anchors, link.state + 1 in doubts.contradicted) for link in links]
    for k, link in enumerate(links):
        if link.candidate is None:
            sure[k] = 0.5 * min(sure[max(k - 1, 0)], sure[min(k + 1, len(sure) - 1)])
    return sure


def doubts_of(links: Sequence[Link], peaks: Candidates) -> Doubts:
    """Unusual steps between cervical vertebrae, and names that the network's classes contradict."""
    if len(links) < 3:
        return Doubts()
    positions = np.array([link.position for link in links])
    relative = relative_steps(positions, np.array([link.state for link in links]))
    uneven = tuple(
        (above.state + 1, below.state + 1)
        for above, below, step in zip(links, links[1:], relative, strict=False)
        if below.state < THORACIC_STATE and not SHORT_STEP <= step <= LONG_STEP
    )
    contradicted = tuple(
        link.state + 1
        for link in links
        if 0 < link.state < THORACIC_STATE
        and link.candidate is not None
        and peaks.evidence[link.candidate, link.state] < CONTRADICTED
        and peaks.evidence[link.candidate].max() > CONTRADICTING
    )
    return Doubts(uneven, contradicted)


def relative_steps(positions: NDArray[np.float64], states: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(n - 1,)``: each step over the mean of its kind, over the median of that in this person."""
    share = np.linalg.norm(np.diff(positions, axis=0), axis=1) / STEP_MEAN_MM[states[:-1]]
    return np.asarray(share / np.median(share))
