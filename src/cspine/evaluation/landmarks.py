"""Levels against centres that a person marked: what is right, wrong, doubled or skipped.

A marked level is right when an answer of its name lies within 10 mm of the mark and no other mark is nearer to that
answer. Levels whose mark lies outside the field must be answered "not visible".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cspine.anatomy import LEVELS
from cspine.evaluation.marks import ORDER, Half, Marks
from cspine.evaluation.metrics import CENTRE_TOLERANCE_MM
from cspine.findings import Findings, WarningItem
from cspine.inference.visibility import Field as ScanField
from cspine.volume import Volume

# A mark this deep inside the field is a level that must be found; one this far outside must not be claimed. Between
# the two, about half a vertebra shows: either answer is fair, and the level is not counted.
VISIBLE_FROM_MM, OUTSIDE_FROM_MM = 4.0, 3.0
Truth = Literal["visible", "edge", "outside"]
Float = NDArray[np.float64]


class LevelAnswer(BaseModel):
    """Truth and answer of one cervical level of one scan.

    Attributes:
        level: C1..C7.
        truth: where its mark lies.
        claimed: the answer says that it is visible.
        right: claimed, within tolerance of its mark and nearest to it.
        error_mm: between mark and answer; None when either is missing.
        nearest: name of the mark nearest to the answer, when within tolerance.
        confidence: of the answer's name, 0..1.
        not_judged: reason given for no probability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: str
    truth: Truth
    claimed: bool
    right: bool
    error_mm: float | None = None
    nearest: str | None = None
    confidence: float = 0.0
    not_judged: str | None = None

    @property
    def stated_name_holds(self) -> bool | None:
        """Whether the stated name is true, for reliability; None where nothing was stated or truth is unclear."""
        return self.right if self.claimed and self.truth != "edge" else None


class LandmarkRecord(BaseModel):
    """One scan, or one variant of it, scored.

    Attributes:
        scan: name in the marks file.
        variant: name of the variant, ``as-is`` for none.
        group: of variants.
        half: which half the scan belongs to.
        bundle: digest of the bundle.
        digest: of the marks and of the way variants are made; records of another are done again.
        marks: word of the one who marked.
        status: of the findings.
        warnings: of the findings.
        levels: seven rows.
        doubled: names of marks that two answers lie at.
        skipped: names of visible marks between answers at which no answer lies.
        seconds: the predictor took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scan: str
    variant: str
    group: str
    half: Half
    bundle: str
    digest: str
    marks: str
    status: str
    warnings: tuple[WarningItem, ...]
    levels: tuple[LevelAnswer, ...]
    doubled: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float

    @property
    def wrong(self) -> tuple[LevelAnswer, ...]:
        """Visible levels that were not answered rightly, and claims of levels that are not there."""
        return tuple(
            row
            for row in self.levels
            if (row.truth == "visible" and not row.right) or (row.truth == "outside" and row.claimed)
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """What ``score`` finds out; fields as in ``LandmarkRecord``."""

    levels: tuple[LevelAnswer, ...]
    doubled: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Truths:
    """Marks as they lie in a field.

    Attributes:
        names: of the marks, from head to chest.
        points: ``(n, 3)`` LPS mm, after any motion.
        truth: of each mark, and of cervical levels without one.
    """

    names: tuple[str, ...]
    points: Float
    truth: Mapping[str, Truth]

    def nearest(self, point: Float) -> str | None:
        """Name of the mark nearest to a point ``(3,)``, None when none is within tolerance."""
        distance = np.linalg.norm(self.points - point, axis=1)
        best = int(distance.argmin())
        return self.names[best] if distance[best] <= CENTRE_TOLERANCE_MM else None


def truths(marks: Marks, fields: Sequence[Volume], motion: Float | None = None) -> Truths:
    """Which marked levels must be found.

    Args:
        marks: of the scan as it was.
        fields: volumes whose field of view a level must be in to be visible: first the one that was judged, then
            the original one when its content was moved.
        motion: 4x4 LPS mm to LPS mm by which the content was moved.
    """
    names, points = (marks if motion is None else marks.moved(motion)).points()
    depth = _depth(points, fields[0])
    for field in fields[1:]:
        depth = np.minimum(depth, _depth(marks.points()[1], field))
    truth = {name: _truth(value) for name, value in zip(names, depth, strict=True)}
    return Truths(names, points, truth | _estimated(names, points, fields[0]))


def score(findings: Findings, there: Truths) -> Scored:
    """Compare findings with marks."""
    answers = {
        item.level: np.array(item.body_center_mm)
        for item in findings.levels
        if item.visible and item.body_center_mm is not None
    }
    nearest: dict[str, str | None] = {level: there.nearest(at) for level, at in answers.items()}
    place = dict(zip(there.names, there.points, strict=True))
    rows = []
    for item in findings.levels:
        answer, mark = answers.get(item.level), place.get(item.level)
        error = None if answer is None or mark is None else round(float(np.linalg.norm(answer - mark)), 2)
        rows.append(
            LevelAnswer(
                level=item.level,
                truth=there.truth.get(item.level, "edge"),
                claimed=answer is not None,
                right=answer is not None and nearest[item.level] == item.level,
                error_mm=error,
                nearest=nearest.get(item.level),
                confidence=item.confidence,
                not_judged=item.not_judged,
            )
        )
    return Scored(tuple(rows), *_order_faults(there.names, there.truth, nearest))


def _depth(points: Float, volume: Volume) -> Float:
    """``(n,)`` mm from points to the nearest face of the field; negative outside."""
    return np.asarray(ScanField(volume.affine, volume.shape).depth_mm(points).min(axis=1))


def _truth(depth: float) -> Truth:
    if depth >= VISIBLE_FROM_MM:
        return "visible"
    return "outside" if depth <= -OUTSIDE_FROM_MM else "edge"


def _estimated(names: Sequence[str], points: Float, volume: Volume) -> dict[str, Truth]:
    """Cervical levels without a mark, placed by going on from the ends: outside when that is clear, else unknown."""
    out: dict[str, Truth] = {}
    for level in LEVELS:
        order = ORDER.index(level.name)
        first, last = ORDER.index(names[0]), ORDER.index(names[-1])
        if first <= order <= last:
            continue
        near, far, steps = (points[0], points[1], first - order) if order < first else (points[-1], points[-2], 0)
        steps = steps or order - last
        guess = near + (near - far) * steps
        out[level.name] = "outside" if _depth(guess[None], volume)[0] <= -OUTSIDE_FROM_MM else "edge"
    return out


def _order_faults(
    names: Sequence[str], truth: Mapping[str, Truth], nearest: Mapping[str, str | None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Marks answered twice, and visible marks between the first and last answered one that have no answer."""
    hit = [name for name in nearest.values() if name is not None]
    doubled = tuple(name for name in names if hit.count(name) > 1)
    order = [names.index(name) for name in hit]
    between = names[min(order) : max(order) + 1] if order else ()
    skipped = tuple(name for name in between if name not in hit and truth[name] == "visible")
    return doubled, skipped
