"""``Column``: places beside the spine named by level, so that organs follow every posture.

A place is (level, left, back): level 3 is the height of C3's body centre, 3.5 half-way to C4, 8 is T1; 0 is the
occipital condyles and -1 lies 20 mm above them. ``left`` and ``back`` are mm for a mean man, measured in the axial
plane from the line of the body centres (in front of the condyles, where that line would go on).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.parts import Tube, Vector
from cspine.phantoms.spine import Spine

TOP, BOTTOM = -3, 16
_ABOVE_MM = 20.0  # between the invented levels above the condyles
_CONDYLES_BEHIND = 8.0  # the line of the bodies passes this far in front of the condyles


@dataclass(frozen=True)
class Column:
    """The line of the body centres with the turn of the trunk, neck and head about it.

    Attributes:
        levels: level numbers of the rows below, rising (from the head down).
        centers: ``(n, 3)`` world mm.
        turns: ``(n,)`` radians about z.
        scale: size of the person, 1 = mean man.
    """

    levels: Vector
    centers: Vector
    turns: Vector
    scale: float

    @classmethod
    def of(cls, spine: Spine) -> Column:
        """The column of ``spine``, continued above the condyles and below T5."""
        s = spine.anatomy.scale
        rows: dict[int, Vector] = {k: pose[:3, 3] for k, pose in spine.poses.items()}
        turn = {k: float(np.arctan2(pose[1, 0], pose[0, 0])) for k, pose in spine.poses.items()}
        head = spine.head
        turn[0] = float(np.arctan2(head[1, 0], head[0, 0]))
        rows[0] = head[:3, :3] @ np.array([0, -_CONDYLES_BEHIND * s, 0]) + head[:3, 3]
        for level in range(-1, TOP - 1, -1):
            rows[level] = rows[0] + head[:3, 2] * (-level * _ABOVE_MM * s)
            turn[level] = turn[0]
        last = max(spine.poses)
        step = (spine.poses[last][:3, 3] - spine.poses[last - 2][:3, 3]) / 2
        for level in range(last + 1, BOTTOM + 1):
            rows[level] = rows[last] + step * (level - last)
            turn[level] = turn[last]
        levels = sorted(rows)
        return cls(
            np.array(levels, dtype=np.float64),
            np.array([rows[k] for k in levels]),
            np.array([turn[k] for k in levels]),
            s,
        )

    def raised(self, mm: float) -> Column:
        """The same column ``mm`` higher, for shoulders that are pulled up or down."""
        return replace(self, centers=self.centers + np.array([0.0, 0.0, mm]))

    def level_at(self, z: float) -> float:
        """The level at height ``z`` mm."""
        return float(np.interp(-z, -self.centers[:, 2], self.levels))

    def lean_deg(self, upper: float, lower: float) -> float:
        """How far the column leans forwards from ``lower`` up to ``upper``, degrees."""
        step = self.place(lower) - self.place(upper)
        return float(np.degrees(np.arctan2(step[1], -step[2])))

    def turn(self, level: float) -> float:
        """Turn about z at a level, radians."""
        return float(np.interp(level, self.levels, self.turns))

    def place(self, level: float, left: float = 0.0, back: float = 0.0, up: float = 0.0) -> Vector:
        """World mm of a place; ``up`` mm above the level (not scaled by posture)."""
        center = np.array([np.interp(level, self.levels, self.centers[:, a]) for a in range(3)])
        a = self.turn(level)
        x, y = left * self.scale, back * self.scale
        offset = np.array([np.cos(a) * x - np.sin(a) * y, np.sin(a) * x + np.cos(a) * y, up * self.scale])
        return np.asarray(center + offset)

    def frame(self, level: float, left: float = 0.0, back: float = 0.0, up: float = 0.0) -> NDArray[np.float64]:
        """4x4 upright frame at a place, turned with the body."""
        a = self.turn(level)
        out = np.eye(4)
        out[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
        out[:3, 3] = self.place(level, left, back, up)
        return out

    def tube(
        self,
        nodes: Sequence[Sequence[float]],
        *,
        side: int = 1,
        grow: float = 0.0,
        bulk: float = 1.0,
        power: float = 2.0,
    ) -> Tube:
        """A tube through ``nodes`` of (level, left, back, half width, half depth[, angle degrees[, bend 1/mm]]).

        Args:
            nodes: in any order of level; sizes and offsets for a mean man.
            side: -1 mirrors to the right.
            grow: mm added to every half axis.
            bulk: factor on sizes and on the offset from the column, for strong and slender necks.
            power: see ``Tube``.
        """
        rows = []
        for node in nodes:
            level, left, back, rx, ry, *rest = (float(v) for v in node)
            at = self.place(level, side * left * bulk, back * (bulk if back > 0 else 1.0))
            angle = side * np.radians(rest[0] if rest else 0.0) + self.turn(level)
            bend = rest[1] / self.scale if len(rest) > 1 else 0.0
            size = self.scale * bulk
            rows.append((at[2], at[0], at[1], rx * size + grow, ry * size + grow, angle, bend))
        table = np.array(sorted(rows))
        z, x, y, wide, deep, turns, bends = _refined(table)
        return Tube(z, x, y, wide, deep, turns, bends, power=power)


def _refined(table: NDArray[np.float64]) -> list[Vector]:
    """The table's columns resampled every few mm by monotone cubic interpolation, so that outlines have no kinks."""
    from scipy.interpolate import PchipInterpolator

    z = table[:, 0]
    keep = np.concatenate([[True], np.diff(z) > 0.05])
    table = table[keep]
    count = max(len(table), int((table[-1, 0] - table[0, 0]) / 4.0) + 2)
    fine = np.linspace(table[0, 0], table[-1, 0], count)
    if len(table) < 2:
        return [table[:, i] for i in range(table.shape[1])]
    return [fine, *np.asarray(PchipInterpolator(table[:, 0], table[:, 1:])(fine)).T]
