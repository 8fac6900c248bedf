"""Drawing layers of tissue on a grid: distances on coarse lattices, edges at full resolution.

Every layer is a union of parts. Its signed distance is computed where its parts are, on a lattice of about 1.2 or
2 mm, and interpolated block by block; only then it is turned into HU. So a field of 512x512x250 costs seconds and
little memory, and edges stay as sharp as the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from cspine.phantoms.grid import Box, Grid
from cspine.phantoms.parts import Part, smooth_min
from cspine.phantoms.textures import Coordinates, Float, coordinates, part_of

FAR = 6.0  # mm; distances are cut here, and parts matter no further away
COARSE, FINE = 2.0, 1.2  # mm between lattice points
_BLOCK = (32, 96, 96)


@dataclass(frozen=True, slots=True)
class Coat:
    """What fills a layer deeper than ``offset`` mm (negative is inside): HU and how much textures change it."""

    offset: float
    hu: float
    grain: float = 0.0
    mottle: float = 0.0


@dataclass(frozen=True, slots=True)
class Layer:
    """A tissue: a union of parts painted in coats, outermost first.

    Attributes:
        parts: the solids.
        coats: from the outside to the inside.
        spacing: of its lattice, mm.
        blend: mm over which its parts flow into each other.
        ragged: mm by which the mottle texture moves its surface.
    """

    parts: tuple[Part, ...]
    coats: tuple[Coat, ...]
    spacing: float = COARSE
    blend: float = 0.0
    ragged: float = 0.0


@dataclass(frozen=True)
class Lattice:
    """A coarse grid over the field of a fine one, with its coordinates."""

    grid: Grid
    where: Coordinates

    @classmethod
    def over(cls, grid: Grid, spacing: float) -> Lattice:
        """About ``spacing`` mm apart, along the axes of ``grid``."""
        coarse = grid.coarsened(spacing)
        return cls(coarse, coordinates(coarse))


@dataclass(frozen=True)
class Field:
    """Distances (or other values) in the box ``box`` of a lattice; ``outside`` elsewhere."""

    values: Float
    box: Box
    lattice: Lattice
    outside: float = FAR


def union(parts: Sequence[Part], lattice: Lattice, *, blend: float = 0.0, reach: float = FAR) -> Field | None:
    """Signed distance to the union of ``parts``, cut at ``reach`` mm; None if the lattice meets none of them."""
    found: list[tuple[Part, Box]] = []
    for part in parts:
        low, high = part.box
        box = lattice.grid.covering(low - reach, high + reach)
        if box is not None:
            found.append((part, box))
    if not found:
        return None
    hull = tuple(slice(min(b[a].start for _, b in found), max(b[a].stop for _, b in found)) for a in range(3))
    values = np.full(tuple(s.stop - s.start for s in hull), reach, dtype=np.float32)
    for part, box in found:
        target = values[tuple(slice(s.start - h.start, s.stop - h.start) for s, h in zip(box, hull, strict=True))]
        target[...] = smooth_min(target, part.distance(part_of(lattice.where, box)), blend)
    return Field(values, (hull[0], hull[1], hull[2]), lattice, reach)


class Zoom:
    """Interpolates fields from a lattice to blocks of the fine grid (trilinear, as matrix products)."""

    def __init__(self, lattice: Lattice, grid: Grid) -> None:
        mapping = np.linalg.solve(lattice.grid.affine, grid.affine)
        self._place = []
        for axis in range(3):
            world = 2 - axis
            index = np.arange(grid.shape[axis]) * mapping[world, world] + mapping[world, 3]
            self._place.append(np.clip(index, 0, lattice.grid.shape[axis] - 1))
        self._shape = lattice.grid.shape

    def span(self, block: Box) -> Box:
        """Lattice index ranges that the block needs."""
        out = []
        for axis, s in enumerate(block):
            place = self._place[axis][s]
            low, high = float(place.min()), float(place.max())
            out.append(slice(int(low), min(int(high) + 2, self._shape[axis])))
        return out[0], out[1], out[2]

    def cut(self, source: Field, span: Box) -> Float | None:
        """The field's values in ``span``, padded with its outside value; None if they do not meet."""
        inner = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(span, source.box, strict=True)]
        if any(s.stop <= s.start for s in inner):
            return None
        local = source.values[
            tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(inner, source.box, strict=True))
        ]
        if all(s == i for s, i in zip(span, inner, strict=True)):
            return local
        out = np.full(tuple(s.stop - s.start for s in span), source.outside, dtype=np.float32)
        out[tuple(slice(i.start - s.start, i.stop - s.start) for i, s in zip(inner, span, strict=True))] = local
        return out

    def up(self, values: Float, span: Box, block: Box) -> Float:
        """``values`` of ``span`` at the voxels of ``block``."""
        wz, wy, wx = (self._matrix(axis, span[axis], block[axis]) for axis in range(3))
        n = values.shape
        along_x = values.reshape(n[0] * n[1], n[2]) @ wx.T
        along_y = np.matmul(wy, along_x.reshape(n[0], n[1], -1))
        out = wz @ along_y.reshape(n[0], -1)
        return np.asarray(out.reshape(wz.shape[0], wy.shape[0], wx.shape[0]))

    def _matrix(self, axis: int, span: slice, block: slice) -> Float:
        place = self._place[axis][block] - span.start
        count = span.stop - span.start
        low = np.minimum(place.astype(int), max(count - 2, 0))
        weight = (place - low).astype(np.float32)
        out = np.zeros((place.size, count), dtype=np.float32)
        rows = np.arange(place.size)
        out[rows, low] = 1 - weight
        out[rows, np.minimum(low + 1, count - 1)] += weight
        return out


@dataclass
class Brush:
    """One block being painted: HU so far, and the textures at its voxels."""

    hu: Float
    grain: Float
    mottle: Float
    width: float
    near: Callable[[Field | None], tuple[Float, float, float] | None] = field(repr=False)

    def coat(self, distance: Float, coat: Coat) -> None:
        """Paint where ``distance`` is below the coat's offset, with an edge one voxel wide."""
        self.mix(np.clip((coat.offset - distance) / np.float32(self.width) + np.float32(0.5), 0, 1), coat)

    def mix(self, cover: Float | float, coat: Coat) -> None:
        """Blend the coat in with weight ``cover`` 0..1."""
        value: Float | np.float32 = np.float32(coat.hu)
        if coat.grain:
            value = value + np.float32(coat.grain) * self.grain
        if coat.mottle:
            value = value + np.float32(coat.mottle) * self.mottle
        self.hu += cover * (value - self.hu)

    def layer(self, layer: Layer, distances: Field | None) -> None:
        """Paint a layer, skipping the coats that do not reach this block."""
        found = self.near(distances)
        if found is None:
            return
        values, low, high = found
        half = self.width / 2 + 1e-3
        if low - (layer.ragged * 3) > max(c.offset for c in layer.coats) + half:
            return
        if layer.ragged:
            values = values + np.float32(layer.ragged) * self.mottle
            low, high = -np.inf, np.inf
        for coat in layer.coats:
            if low < coat.offset + half:
                if high < coat.offset - half:
                    self.mix(1.0, coat)
                else:
                    self.coat(values, coat)


def blocks(shape: tuple[int, int, int]) -> Iterator[Box]:
    """The blocks of a volume, small enough to stay in a core's cache."""
    steps = [range(0, n, b) for n, b in zip(shape, _BLOCK, strict=True)]
    for z in steps[0]:
        for y in steps[1]:
            for x in steps[2]:
                starts = (z, y, x)
                b = [slice(s, min(s + w, n)) for s, w, n in zip(starts, _BLOCK, shape, strict=True)]
                yield b[0], b[1], b[2]


def edge_width(grid: Grid) -> float:
    """Width in mm of drawn edges: a voxel, but not below 0.7 mm, so that fine grids agree with each other."""
    return float(max(0.7, grid.spacing.min()))
