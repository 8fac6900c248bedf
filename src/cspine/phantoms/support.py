"""What holds the patient: table, head holder, cervical collar. Drawn before the body, which lies over it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cspine.phantoms.column import Column
from cspine.phantoms.neck import Habitus, neck_outline
from cspine.phantoms.paint import FINE, Coat, Layer
from cspine.phantoms.parts import Part, Vector
from cspine.phantoms.spine import Spine
from cspine.phantoms.textures import Coordinates, Float


@dataclass(frozen=True, slots=True)
class Trough:
    """A curved or flat shell along z under the patient.

    Attributes:
        x, y: of the middle of its upper surface, world mm.
        radius: of its curve, mm (large = flat).
        half_width: where it ends to both sides.
        thickness: mm.
    """

    x: float
    y: float
    radius: float
    half_width: float
    thickness: float

    @property
    def box(self) -> tuple[Vector, Vector]:
        """World box; unlimited along z."""
        rise = min(self.half_width**2 / (2 * self.radius) * 1.3, self.radius)
        low = np.array([self.x - self.half_width, self.y - rise - 2, -2000.0])
        return low, np.array([self.x + self.half_width, self.y + self.thickness, 2000.0])

    def distance(self, where: Coordinates) -> Float:
        """Signed distance, mm."""
        x = where[0] - np.float32(self.x)
        y = where[1] - np.float32(self.y - self.radius)
        shell = np.abs(np.sqrt(x * x + y * y) - np.float32(self.radius + self.thickness / 2)) - np.float32(
            self.thickness / 2
        )
        d = np.maximum(np.maximum(shell, np.abs(x) - np.float32(self.half_width)), -y)
        return np.asarray(d + 0 * where[2], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Limited:
    """A part cut off below the height ``floor`` and above ``roof`` mm."""

    part: Part
    floor: float
    roof: float = 2000.0

    @property
    def box(self) -> tuple[Vector, Vector]:
        """World box."""
        low, high = self.part.box
        return np.array([low[0], low[1], self.floor]), np.array([high[0], high[1], min(high[2], self.roof)])

    def distance(self, where: Coordinates) -> Float:
        """Signed distance, mm."""
        return np.asarray(
            np.maximum(
                self.part.distance(where),
                np.maximum(np.float32(self.floor) - where[2], where[2] - np.float32(self.roof)),
            ),
            dtype=np.float32,
        )


@dataclass(frozen=True, slots=True)
class Shell:
    """The skin of a part: ``thickness`` mm thick, its middle ``offset`` mm outside the part's surface."""

    part: Part
    offset: float
    thickness: float

    @property
    def box(self) -> tuple[Vector, Vector]:
        """World box."""
        low, high = self.part.box
        grow = max(self.offset, 0.0) + self.thickness
        return low - grow, high + grow

    def distance(self, where: Coordinates) -> Float:
        """Signed distance, mm."""
        d = np.abs(self.part.distance(where) - np.float32(self.offset)) - np.float32(self.thickness / 2)
        return np.asarray(d, dtype=np.float32)


def build_support(spine: Spine, column: Column, habitus: Habitus, rng: np.random.Generator) -> list[Layer]:
    """Table, and for some patients a head holder with foam or a cervical collar."""
    back = max(column.place(k, 0, 71)[1] for k in (9, 10, 11)) + habitus.fat_mm
    head = spine.head @ np.array([0, 0, 0, 1.0])
    middle = float(column.place(8)[0] + rng.normal(0, 12))
    top = max(back, float(head[1]) + 92) + float(rng.uniform(6, 26))
    layers: list[Layer] = []
    radius = float(rng.uniform(280, 520)) if rng.random() < 0.65 else 20000.0
    board = Trough(middle, top, radius, float(rng.uniform(195, 235)), float(rng.uniform(2.0, 3.5)))
    lower = Trough(middle, top + float(rng.uniform(22, 45)), radius * 1.2, board.half_width, 2.0)
    filling = replace(board, thickness=lower.y - board.y)
    layers.append(Layer((filling,), (Coat(0.0, float(rng.uniform(-975, -900))),)))
    layers.append(Layer((board, lower), (Coat(0.0, float(rng.uniform(-150, 250))),), FINE))
    if rng.random() < 0.6:
        layers += _holder(float(head[0]), float(head[1]) + 99, float(head[2]), rng)
    if rng.random() < 0.35:
        layers += _collar(column, habitus, rng)
    return layers


def _holder(x: float, y: float, z: float, rng: np.random.Generator) -> list[Layer]:
    """A curved shell with a foam pad under the head, ending at the neck."""
    pad = float(rng.uniform(6, 16))
    shell = Limited(Trough(x, y + pad, float(rng.uniform(100, 125)), 96.0, 2.5), z - 45.0)
    foam = Limited(Trough(x, y, float(rng.uniform(100, 120)), 88.0, pad), z - 40.0)
    return [
        Layer((foam,), (Coat(0.0, -955.0, grain=14.0),)),
        Layer((shell,), (Coat(0.0, float(rng.uniform(-60, 180))),), FINE),
    ]


def _collar(column: Column, habitus: Habitus, rng: np.random.Generator) -> list[Layer]:
    """A rigid collar from the chin to the chest: foam inside, plastic outside."""
    loose = float(rng.uniform(2, 9))
    thick = float(rng.uniform(5, 9))
    around = neck_outline(column, habitus, loose)
    floor, roof = float(column.place(7.4)[2]), float(column.place(2.2)[2])
    foam = Limited(Shell(around, thick / 2, thick), floor, roof)
    plastic = Limited(Shell(around, thick + 1.0, 2.0), floor, roof)
    return [
        Layer((foam,), (Coat(0.0, float(rng.uniform(-965, -900)), grain=12.0),)),
        Layer((plastic,), (Coat(0.0, float(rng.uniform(-90, 120))),), FINE),
    ]
