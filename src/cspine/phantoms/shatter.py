"""``Shatter``: bone parted into pieces along rough surfaces, fresh or healed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.breakage import (
    CLOSED_MM,
    REGION_MM,
    SOFT_MM,
    BrokenBone,
    Piece,
    Points,
    SampleBone,
    Values,
)

# Points farther outside the bone than this (plus the largest movement) cannot be changed by a break.
_MARGIN_MM = 2.5
# A cut that opens less than this (mm, half gap) is closed: no fracture to see or to mark there.
_OPEN_MM = 0.04
# The unbroken surface counts as bone up to here (mm outside) when the fracture truth is drawn.
_AT_BONE_MM = 0.6


@dataclass(frozen=True)
class Shatter:
    """Pieces parted from a bone, the rest of which stays.

    Attributes:
        pieces: what comes off. Pieces may share surfaces, with opposite signs.
        rounding: mm by which edges of cut faces are rounded (remodelling).
        sclerosis: HU added along the faces (old fractures).
        corticated: the faces have grown a cortex (old fractures, unfused apophyses).
        marked: the faces belong to the fracture truth.
    """

    pieces: tuple[Piece, ...]
    rounding: float = 0.0
    sclerosis: float = 0.0
    corticated: bool = False
    marked: bool = True

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """See ``Change``."""
        result = bone(points)
        reach = _MARGIN_MM + max(piece.motion.reach(piece.extent) for piece in self.pieces)
        candidates = np.flatnonzero(result.sdf < reach)
        near = points[candidates]
        weights = [piece.extent.weights(near) for piece in self.pieces]
        inside = np.any([cut > 0 for cut, _ in weights], axis=0)
        index, within = candidates[inside], near[inside]
        if index.size == 0:
            return result
        places = [_place(piece, within, cut[inside]) for piece, (cut, _) in zip(self.pieces, weights, strict=True)]
        before = result.take(index)
        after = self._cut(before, *_outermost(places))
        hull = before.depth.copy()
        for piece, place, (_, move) in zip(self.pieces, places, weights, strict=True):
            here = before
            if not piece.motion.still:
                place, here = _moved(piece, place, before, within, move[inside], bone)
            self._add(after, hull, here, place)
        after.lucency = np.maximum(after.lucency * _gone(after.sdf), _missing(after.sdf, hull))
        result.put(index, after)
        return result

    def _add(self, after: BrokenBone, hull: Values, here: BrokenBone, place: _Place) -> None:
        """Unites ``after`` with a piece; ``hull`` becomes the depth in whatever bone was or is here."""
        index = np.flatnonzero(place.signed > place.half - _MARGIN_MM)
        piece = here.take(index)
        hull[index] = np.minimum(hull[index], piece.depth)
        _unite(after, index, self._cut(piece, -place.signed[index], place.half[index]))

    def _cut(self, bone: BrokenBone, face: Values, half: Values) -> BrokenBone:
        """``bone`` without what lies beyond ``face`` (positive = removed), ``half`` a gap short of it."""
        wall = face + half
        sdf = _smooth_max(bone.sdf, wall, self.rounding)
        depth = bone.depth
        density = bone.density
        open_here = half > _OPEN_MM
        if self.corticated:
            depth = np.where(open_here, np.maximum(depth, sdf), depth)
        if self.sclerosis:
            edge = np.exp(-np.square(np.minimum(wall, 0.0) / 1.1)) * (half > -0.5)
            density = density + self.sclerosis * edge
        near_face = (np.abs(face) < half + REGION_MM) & (face < half + 0.5)
        region = bone.region | (self.marked & open_here & near_face & (bone.depth < _AT_BONE_MM))
        return BrokenBone(
            sdf.astype(np.float32),
            depth.astype(np.float32),
            bone.lucency,
            density.astype(np.float32),
            region,
            None if bone.source is None else bone.source.copy(),
        )


@dataclass
class _Place:
    """Where points lie in respect of a piece: signed distance (positive inside) and half gap, mm, (N,) each."""

    signed: Values
    half: Values


def _place(piece: Piece, points: Points, cut: Values) -> _Place:
    """``cut`` is the weight of the piece's extent at the points: 1 the gap is as given, 0 closed for good."""
    signed, half = piece.level(points)
    return _Place(signed, np.asarray(CLOSED_MM + cut * (half - CLOSED_MM), dtype=np.float32))


def _outermost(places: list[_Place]) -> tuple[Values, Values]:
    """Signed distance out of the rest (positive in any piece) and the half gap there."""
    face, half = places[0].signed, places[0].half
    for place in places[1:]:
        wins = place.signed + place.half > face + half
        face, half = np.where(wins, place.signed, face), np.where(wins, place.half, half)
    return face, half


def _moved(
    piece: Piece, place: _Place, before: BrokenBone, points: Points, move: Values, bone: SampleBone
) -> tuple[_Place, BrokenBone]:
    """Place and bone as ``piece`` brings them along; ``move`` (N,) is how fully each point moves."""
    index = np.flatnonzero(move)
    start = points[index]
    source = np.asarray(start + move[index, None] * (piece.motion.back(start) - start), dtype=np.float32)
    there = _place(piece, source, piece.extent.weights(source)[0])
    signed, half = place.signed.copy(), place.half.copy()
    signed[index], half[index] = there.signed, there.half
    here = before.take(np.arange(len(points)))
    needed = there.signed > there.half - _MARGIN_MM
    here.put(index[needed], bone(source[needed]))
    return _Place(signed, half), here


def _unite(bone: BrokenBone, index: NDArray[np.intp], piece: BrokenBone) -> None:
    """Adds ``piece`` (at the points ``index``) to ``bone``, in place: whichever is deeper inside wins."""
    now = bone.take(index)
    wins = piece.sdf < now.sdf
    source = None
    if now.source is not None and piece.source is not None:
        source = np.where(wins[:, None], piece.source, now.source)
    bone.put(
        index,
        BrokenBone(
            np.where(wins, piece.sdf, now.sdf),
            np.where(wins, piece.depth, now.depth),
            np.maximum(now.lucency, piece.lucency),
            np.where(wins, piece.density, now.density),
            now.region | piece.region,
            source,
        ),
    )


def _smooth_max(first: Values, second: Values, width: float) -> Values:
    """Maximum with a rounding of about ``width`` mm where the two are close (polynomial, Quilez)."""
    if width <= 0:
        return np.maximum(first, second)
    close = np.maximum(width - np.abs(first - second), 0.0) / width
    return np.asarray(np.maximum(first, second) + close * close * (0.25 * width))


def _gone(sdf: Values) -> Values:
    """0 in bone, 1 outside; already a quarter at the very face, so that a hairline thinner than a voxel shows."""
    return np.asarray(np.clip(0.25 + sdf / (0.75 * SOFT_MM), 0.0, 1.0), dtype=np.float32)


def _missing(sdf: Values, hull: Values) -> Values:
    """0..1: how surely bone was here (``hull`` < 0) and is not any more (``sdf`` > 0)."""
    was = np.clip(0.5 - hull / SOFT_MM, 0.0, 1.0)
    return np.asarray(_gone(sdf) * was * np.clip((sdf - hull) / 0.3, 0.0, 1.0), dtype=np.float32)
