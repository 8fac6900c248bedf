"""A template's surface laid over a solid: least squares on distances, rigid first, then smoothly warped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.errors import ShapeError
from cspine.phantoms.shapes import Shape
from cspine.phantoms.template import Points, Pose, Template, surface_of, value_and_normal

# Starting tilts: nod about x and turn about z, degrees.
_NODS, _TURNS = (-30.0, 0.0, 30.0), (-25.0, 0.0, 25.0)
_WARP_CENTRES, _WARP_WIDTH_MM = 48, 11.0
_SURFACE_POINTS, _FEWEST_POINTS = 1600, 60
# Fits stop short of smoothing noise away: reach of the distances (mm) and how firmly bumps are held, step by step.
_START_REACH_MM = (12.0, 10.0, 8.0, 8.0, 6.0, 6.0)
_RIGID_REACH_MM = (6.0, 6.0, 5.0, 5.0, 4.0, 4.0)
_AFFINE_REACH_MM = (5.0, 5.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0)
_WARP_STEPS = ((4.0, 30.0), (4.0, 20.0), (3.5, 12.0), (3.0, 8.0), (3.0, 5.0), (3.0, 3.0), (3.0, 3.0))


@dataclass(frozen=True)
class Warp:
    """A map of points: affine part (rows 1, x, y, z of ``weights``) plus Gaussian bumps at ``centres``."""

    weights: Points
    centres: Points

    def basis(self, points: Points) -> Points:
        """``(n, 4 + k)`` functions whose weighted sum is the map."""
        squared = ((points[:, None] - self.centres[None]) ** 2).sum(axis=2)
        bumps = np.exp(squared / (-2 * _WARP_WIDTH_MM**2))
        return np.concatenate([np.ones((len(points), 1)), points, bumps], axis=1)

    def __call__(self, points: Points) -> Points:
        """Where ``points`` (n, 3) go."""
        return np.asarray(self.basis(points) @ self.weights)


@dataclass(frozen=True)
class Overlay:
    """A solid, its surface, and the template that goes over it."""

    shape: Shape
    solid: Points
    normals: Points
    template: Template

    @classmethod
    def of(cls, shape: Shape, template: Template) -> Overlay:
        """The task of laying ``template`` over ``shape``.

        Raises:
            ShapeError: the solid has next to no surface.
        """
        solid, normals = surface_of(shape, _SURFACE_POINTS)
        if len(solid) < _FEWEST_POINTS:
            raise ShapeError(f"a solid of {len(solid)} surface points is no vertebra", fix="Give a whole vertebra.")
        return cls(shape, solid, normals, template)

    def best_start(self) -> Warp:
        """The best of several starting tilts after a few rigid steps with few points."""
        every = 6
        best, least = None, np.inf
        centre = _middle(self.shape)
        for turn in _starts():
            warp = Warp(_similarity(turn, 1.0, _middle(self.template.shape), centre), np.zeros((0, 3)))
            for reach in _START_REACH_MM:
                warp = self._rigid_step(warp, reach, every)
            distance = self._distances(warp(self.template.surface[::every]))
            cost = float(np.mean(1 - np.exp(-((distance / 4.0) ** 2))))
            if cost < least:
                best, least = warp, cost
        if best is None:
            raise ShapeError("no starting position", fix="Give a whole vertebra.")
        for reach in _RIGID_REACH_MM:
            best = self._rigid_step(best, reach, 3)
        return best

    def affine(self, warp: Warp) -> Warp:
        """Twelve parameters, held near the rigid start."""
        for reach in _AFFINE_REACH_MM:
            ridge = np.array([0.0, 60.0, 60.0, 60.0]) * len(self.template.surface)
            warp = self._linear_step(warp, reach, ridge, every=2)
        return warp

    def warped(self, affine: Warp) -> Warp:
        """The affine map with bumps; their ridge falls as the surfaces meet."""
        surface = self.template.surface
        centres = surface[:: max(1, len(surface) // _WARP_CENTRES)][:_WARP_CENTRES]
        warp = Warp(np.concatenate([affine.weights, np.zeros((len(centres), 3))]), centres)
        for reach, hold in _WARP_STEPS:
            ridge = np.concatenate([np.zeros(4) + 1e-3, np.full(len(centres), hold)])
            warp = self._linear_step(warp, reach, ridge, every=1, towards_zero=True)
        return warp

    def agreement(self, surface: Points) -> tuple[float, float]:
        """Typical distance between the surfaces (mm), and the share of the template that lies on the solid."""
        from scipy.spatial import cKDTree

        away = np.abs(self._distances(surface))
        back = cKDTree(surface).query(self.solid)[0]
        # Points of the template are some 2 mm apart, which the nearest of them cannot undercut.
        own = cKDTree(surface).query(surface, k=2)[0][:, 1]
        typical = max(float(np.median(away[self.template.body])), float(np.median(back)) - float(np.median(own)) / 2)
        return typical, float((away < 2.0).mean())

    def _distances(self, points: Points) -> NDArray[np.float64]:
        return self.shape.sample(points.astype(np.float32)).astype(np.float64)

    def _equations(
        self, warp: Warp, reach: float, every: int
    ) -> tuple[Points, Points, Points, NDArray[np.float64], NDArray[np.float64]]:
        """(template points, where they are now, directions, wanted steps along them, weights)."""
        from scipy.spatial import cKDTree

        chosen = self.template.surface[::every]
        now = warp(chosen)
        value, out = value_and_normal(self.shape, now)
        facing = self.template.normals[::every] @ np.linalg.pinv(warp.weights[1:4]).T
        facing /= np.maximum(np.linalg.norm(facing, axis=1, keepdims=True), 1e-9)
        weight = np.exp(-((value / reach) ** 2)) * np.clip((out * facing).sum(axis=1), 0.05, 1)
        # The other way round: each point of the solid wants the nearest template point that faces the same way.
        # Distance between normals, weighed against mm, keeps the two faces of a thin plate apart.
        solid, normals = self.solid[::every], self.normals[::every]
        tree = cKDTree(np.concatenate([now, 4.0 * facing], axis=1))
        gap, nearest = tree.query(np.concatenate([solid, 4.0 * normals], axis=1))
        wanted = ((solid - now[nearest]) * normals).sum(axis=1)
        return (
            np.concatenate([chosen, chosen[nearest]]),
            np.concatenate([now, now[nearest]]),
            np.concatenate([out, normals]),
            np.concatenate([-value, wanted]),
            np.concatenate([weight, np.exp(-((gap / (1.3 * reach)) ** 2))]),
        )

    def _rigid_step(self, warp: Warp, reach: float, every: int) -> Warp:
        """Turn, shift and one size, composed with the map so far."""
        from scipy.spatial.transform import Rotation

        _, now, along, wanted, weight = self._equations(warp, reach, every)
        centre = now.mean(axis=0)
        arm = now - centre
        rows = np.concatenate([np.cross(arm, along), along, (arm * along).sum(axis=1)[:, None]], axis=1)
        # Sizes change slowly: a small template inside a large solid must not vanish.
        ridge = np.diag([0.0, 0, 0, 0, 0, 0, 300.0 * len(self.template.surface) / every])
        left = rows.T @ (rows * weight[:, None]) + ridge + 1e-6 * np.eye(7)
        step = np.linalg.solve(left, rows.T @ (weight * wanted))
        turn = Rotation.from_rotvec(np.clip(step[:3], -0.3, 0.3)).as_matrix() * (1 + np.clip(step[6], -0.1, 0.1))
        weights = warp.weights @ turn.T
        weights[0] += centre - turn @ centre + step[3:6]
        return Warp(weights, warp.centres)

    def _linear_step(
        self, warp: Warp, reach: float, ridge: NDArray[np.float64], *, every: int, towards_zero: bool = False
    ) -> Warp:
        """One least-squares step on all weights; ``ridge`` holds each row at its value, or draws it to zero."""
        chosen, _, along, wanted, weight = self._equations(warp, reach, every)
        basis = warp.basis(chosen)
        rows = (along[:, :, None] * basis[:, None, :]).reshape(len(chosen), -1)
        hold = np.tile(ridge, 3)
        left = rows.T @ (rows * weight[:, None]) + np.diag(hold + 1e-6)
        right = rows.T @ (weight * wanted)
        if towards_zero:
            right = right - hold * warp.weights.T.reshape(-1)
        step = np.linalg.solve(left, right).reshape(3, -1).T
        return Warp(warp.weights + step, warp.centres)


def _starts() -> Iterator[Pose]:
    from scipy.spatial.transform import Rotation

    for nod in _NODS:
        for turn in _TURNS:
            yield np.asarray(Rotation.from_euler("xyz", (nod, 0.0, turn), degrees=True).as_matrix())


def _similarity(turn: Pose, size: float, source: Points, target: Points) -> Points:
    matrix = size * turn
    return np.concatenate([(target - matrix @ source)[None], matrix.T])


def _middle(shape: Shape) -> Points:
    """Centre of mass of the solid, with its thick parts counting most: the body more than the processes."""
    inside = np.argwhere(shape.values < 0)
    depth = -shape.values[tuple(inside.T)].astype(np.float64)
    centre = (inside[:, ::-1] * depth[:, None]).sum(axis=0) / depth.sum()
    return np.asarray(centre * shape.spacing + shape.origin)
