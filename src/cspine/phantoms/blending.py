"""Bones of new people out of mesh sets and the parametric anatomy.

A person's C1..C7 are mixtures of the sets' vertebrae and the parametric ones, with weights that change little from
level to level; their proportions follow the person's own parametric sizes in part; every vertebra is then scaled a
little along its axes and bent by a smooth random field, differently left and right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cspine.errors import UsageError
from cspine.phantoms.meshes import MeshSet, load_mesh_set
from cspine.phantoms.morphing import Mixture, Source, spread, template_source
from cspine.phantoms.shapes import Shape, ShapeBuilder
from cspine.phantoms.template import Points, Pose, inverse, template_of
from cspine.phantoms.vertebra import Landmarks, Wear, roughen
from cspine.phantoms.weathering import weather

if TYPE_CHECKING:
    from cspine.phantoms.spine import Anatomy

LEVELS = range(1, 8)
# Chance that a person has one set's bones alone (with their own proportions) instead of a mixture.
_PURE = 0.35
# Standard deviation, in the logarithm, of how weights wander from level to level.
_WANDER = 0.35
# Of the scale of one vertebra along x, y and z, beyond the person's own size.
_STRETCH = 0.03
# Of the smooth random field, mm, and its wave lengths, mm.
_BEND_MM, _WAVES_MM = 0.55, (24.0, 60.0)
# How strongly the person's parametric proportions show in bones from meshes.
_PROPORTIONS = (0.25, 0.9)


@dataclass(frozen=True)
class Bones:
    """C1..C7 of one person.

    Attributes:
        shapes: the solids by label, local mm, as in ``Spine``.
        landmarks: named points in the same frames.
        atlas_on_axis: neutral C1 → C2 frame, 4x4.
    """

    shapes: dict[int, Shape]
    landmarks: dict[int, Landmarks]
    atlas_on_axis: Pose


@dataclass(frozen=True)
class MeshLibrary:
    """Mesh sets to draw people from.

    Attributes:
        sets: one or more.
        share: of spines that are drawn with them, 0..1; the others stay parametric.
    """

    sets: tuple[MeshSet, ...]
    share: float = 0.6

    def __post_init__(self) -> None:
        if not self.sets:
            raise UsageError("a library needs at least one set of meshes")
        if not 0 <= self.share <= 1:
            raise UsageError(f"expected a share of 0..1, got {self.share}")

    @classmethod
    def load(cls, folders: Iterable[Path | str], share: float = 0.6) -> MeshLibrary:
        """Read the sets in ``folders``; some ten seconds each.

        Raises:
            ShapeError: a set cannot be used; says which file and why.
            UsageError: no folder, or a share outside 0..1.
        """
        return cls(tuple(load_mesh_set(Path(folder)) for folder in folders), share)

    @cached_property
    def sizes(self) -> tuple[float, ...]:
        """Size of each set's owner against the mean man."""
        return tuple(float(np.mean(list(s.sizes.values()))) for s in self.sets)

    def draw(
        self,
        rng: np.random.Generator,
        anatomy: Anatomy,
        parametric: dict[int, Landmarks],
        wear: dict[int, Wear],
        spacing: float,
    ) -> Bones | None:
        """Bones of one person, or None when this one stays parametric.

        Args:
            rng: source of all chance; the same bones whatever ``spacing``.
            anatomy: the person, whose size the bones get.
            parametric: landmarks of the person's parametric vertebrae, local mm.
            wear: age of each vertebra.
            spacing: mm between lattice points of the solids.
        """
        if rng.random() >= self.share:
            return None
        weights = self._weights(rng)
        strength = float(rng.uniform(*_PROPORTIONS))
        mirrored = bool(rng.random() < 0.5)
        shapes, landmarks = {}, {}
        for level in LEVELS:
            own = np.random.default_rng(int(rng.integers(2**63)))
            mixture = self._mixture(own, level, weights[level], anatomy.scale, parametric[level], strength)
            marks = mixture.marks()
            shape = _finished(own, level, mixture, marks, wear[level], spacing)
            shapes[level], landmarks[level] = _flipped(shape, marks) if mirrored else (shape, marks)
        neutral = self._atlas_on_axis(weights[2], anatomy.scale)
        if mirrored:
            flip = np.diag([-1.0, 1.0, 1.0, 1.0])
            neutral = flip @ neutral @ flip
        return Bones(shapes, landmarks, neutral)

    def _weights(self, rng: np.random.Generator) -> dict[int, NDArray[np.float64]]:
        """Weights of the sets and, last, of the parametric vertebra, a level."""
        count = len(self.sets) + 1
        if rng.random() < _PURE:
            start = np.full(count, -6.0)
            start[rng.integers(count - 1)] = 0.0
        else:
            start = np.log(np.maximum(rng.dirichlet([1.2] * (count - 1) + [0.6]), 1e-3))
        out = {}
        for level in LEVELS:
            start = start + rng.normal(0, _WANDER, count)
            weight = np.exp(start - start.max())
            weight[weight < 0.04] = 0.0
            out[level] = weight / weight.sum()
        return out

    def _mixture(
        self,
        rng: np.random.Generator,
        level: int,
        weights: NDArray[np.float64],
        scale: float,
        parametric: Landmarks,
        strength: float,
    ) -> Mixture:
        template = template_of(level)
        sources = [self._source(i, level) for i in range(len(self.sets))] + [template_source(level)]
        controls = sum(w * s.controls() for w, s in zip(weights, sources, strict=True))
        person = {name: at / scale for name, at in parametric.items()}
        controls = controls + strength * spread(template, person)
        controls = controls * rng.normal(1, _STRETCH, 3)
        controls = scale * controls + _bent(rng, scale * controls)
        used = [i for i, w in enumerate(weights) if w > 0]
        return Mixture(level, [sources[i] for i in used], weights[used], np.asarray(controls), scale)

    def _source(self, index: int, level: int) -> Source:
        one = self.sets[index]
        return Source(one.shapes[level], one.landmarks[level], one.surfaces[level], self.sizes[index])

    def _atlas_on_axis(self, weights: NDArray[np.float64], scale: float) -> Pose:
        """C1 in C2's frame as in the sets, by weight; the parametric relation has no set and follows theirs."""
        from scipy.spatial.transform import Rotation

        own = weights[:-1] if weights[:-1].sum() > 0 else np.ones(len(self.sets))
        relations = [inverse(s.poses[2]) @ s.poses[1] for s in self.sets]
        shifts = np.array([r[:3, 3] / size for r, size in zip(relations, self.sizes, strict=True)])
        turns = Rotation.from_matrix([r[:3, :3] for r in relations])
        pose = np.eye(4)
        pose[:3, :3] = turns.mean(weights=own).as_matrix()
        pose[:3, 3] = scale * (own @ shifts) / own.sum()
        return pose


def _bent(rng: np.random.Generator, points: Points) -> Points:
    """A smooth random displacement at ``points``: a few waves of random direction, length and phase."""
    out = np.zeros_like(points)
    count = 6
    for _ in range(count):
        direction = rng.normal(size=3)
        wave = direction / np.linalg.norm(direction) * 2 * np.pi / rng.uniform(*_WAVES_MM)
        out += np.cos(points @ wave + rng.uniform(0, 2 * np.pi))[:, None] * rng.normal(0, 1, 3)
    return np.asarray(out * _BEND_MM * np.sqrt(2 / count))


def _finished(
    rng: np.random.Generator, level: int, mixture: Mixture, marks: Landmarks, wear: Wear, spacing: float
) -> Shape:
    """The solid with its wear and a surface as irregular as bone's."""
    values, low = mixture.lattice(spacing)
    builder = ShapeBuilder(low, low + (np.array(values.shape[::-1]) - 1.001) * spacing, spacing)
    builder.values = values
    weather(builder, rng, level, marks, wear)
    roughen(builder, rng, float(rng.uniform(0.08, 0.3)))
    return builder.shape()


def _flipped(shape: Shape, marks: Landmarks) -> tuple[Shape, Landmarks]:
    """The mirror image: left becomes right."""
    origin = shape.origin.copy()
    origin[0] = -shape.high[0]
    sides = {"left": "right", "right": "left"}
    out = {}
    for name, at in marks.items():
        stem, _, side = name.rpartition("_")
        other = f"{stem}_{sides[side]}" if side in sides else name
        out[other] = at.copy() if name == "canal_radius" else at * np.array([-1.0, 1.0, 1.0])
    return Shape(np.ascontiguousarray(shape.values[:, :, ::-1]), origin, shape.spacing), out
