"""A vertebra of a labelled CT as a solid that can be broken: its signed distance, its frame, its landmarks.

A label mask is often coarser than the scan and a millimetre or two off, so its border is moved to where the CT says
that bone ends: everything within reach of the mask that is bright enough, and nearer to this vertebra than to any
other labelled bone, belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import BACKGROUND
from cspine.errors import ShapeError
from cspine.phantoms.fitting import fit_vertebra
from cspine.phantoms.grid import Box, Grid
from cspine.phantoms.planting_scan import USUAL_MUSCLE_HU
from cspine.phantoms.shapes import Float, Shape
from cspine.phantoms.vertebra import Landmarks
from cspine.volume import Volume

Pose = NDArray[np.float64]

# Lattice of the solid, mm.
LATTICE_MM = 0.75
# Beyond the mask's border the lattice goes on for this far: room for what moves, mm.
MARGIN_MM = 6.0
# Bone ends this far between soft tissue and what the vertebra is filled with, and at least so much brighter, HU.
_EDGE_SHARE, _EDGE_LEAST = 0.42, 60.0
# Soft tissue is what lies farther than this from all labels, mm, and is neither air nor fat nor bone, HU.
_SOFT_AWAY_MM, _SOFT_RANGE = 4.0, (-250.0, 160.0)
# The border moves by at most this much, and this share of the label voxel more, mm.
_REACH_MM, _REACH_SHARE = 0.5, 0.65
# Away from the mask bone must be brighter, within it may be darker, by up to this share of that.
_PULL_SHARE = 0.4
# A solid smaller than this is no vertebra that can be broken, mm³.
MIN_SOLID_MM3 = 2500.0
# Rim voxels (so many deep) are glow of the cortex when darker than this share of the brightest beside them.
_RIM, _GLOW_SHARE = 2, 0.42
# Share of the mean vertebra's surface that must be found.
MIN_COVERED = 0.55


@dataclass(frozen=True, slots=True)
class Solid:
    """One vertebra of a scan.

    Attributes:
        level: label value, 1..7.
        shape: signed distance in LPS mm.
        others: signed distance to all other labelled bone near it, LPS mm.
        pose: local frame of the phantoms → LPS mm, 4x4.
        marks: landmarks in the local frame, mm.
        cortex, trabecular: HU of its shell and of its inside.
        muscle: HU of the soft tissue around it.
    """

    level: int
    shape: Shape
    others: Shape
    pose: Pose
    marks: Landmarks
    cortex: float
    trabecular: float
    muscle: float

    def world(self, local: Float) -> Float:
        """LPS mm of local points (..., 3)."""
        turn, at = self.pose[:3, :3].astype(np.float32), self.pose[:3, 3].astype(np.float32)
        return np.asarray(local @ turn.T + at, dtype=np.float32)

    def local(self, world: Float) -> Float:
        """Local mm of LPS points (..., 3)."""
        turn, at = self.pose[:3, :3].astype(np.float32), self.pose[:3, 3].astype(np.float32)
        return np.asarray((world - at) @ turn, dtype=np.float32)

    def sample(self, local: Float) -> Float:
        """Signed distance, mm, at local points (..., 3)."""
        return self.shape.sample(self.world(local))


def solid_of(volume: Volume, labels: Volume, level: int) -> Solid:
    """The solid of one labelled vertebra.

    Args:
        volume: CT in HU; axes near left, back, head (as ``Volume.reoriented`` gives them).
        labels: values of ``cspine.anatomy`` on any grid, often coarser than the scan.
        level: 1..7.

    Raises:
        ShapeError: no such label, or what it marks does not look like that vertebra.
    """
    labels = _main_part(labels, level)
    grid = _lattice(labels, level)
    own, others = _memberships(labels, level, grid)
    hu = _sampled(volume.hu, volume.affine, grid)
    hu = ndimage.gaussian_filter(hu, 0.45)
    spacing = float(np.max(labels.spacing))
    muscle = _muscle(hu, np.minimum(own, others))
    inside, edge = _refined(hu, own, others, spacing, muscle)
    if inside.sum() * LATTICE_MM**3 < MIN_SOLID_MM3:
        raise ShapeError(f"label {level} marks less bone than a vertebra has", fix="Leave this level out.")
    reach = _reach(spacing)
    rest = ~inside & (others < own) & (others < reach) & ((hu > edge) | (others < -reach))
    shape, beside = _shape(inside, grid), _shape(rest, grid)
    fit = fit_vertebra(level, shape)
    if fit.covered < MIN_COVERED:
        raise ShapeError(f"only {fit.covered:.0%} of vertebra {level} is there", fix="Leave this level out.")
    shell, core = hu[(shape.values < -0.3) & (shape.values > -1.2)], hu[shape.values < -2.0]
    return Solid(
        level=level,
        shape=shape,
        others=beside,
        pose=fit.frame,
        marks=fit.local_marks,
        cortex=float(np.percentile(shell, 85)) if shell.size else 900.0,
        trabecular=float(np.median(core)) if core.size else 300.0,
        muscle=muscle,
    )


def touches_border(labels: Volume, level: int, volume: Volume) -> bool:
    """Whether the label reaches the edge of its own grid or of the scan: part of the vertebra is not in view."""
    index = np.argwhere(labels.hu == level)
    if not len(index):
        return True
    if (index.min(axis=0) <= 0).any() or (index.max(axis=0) >= np.array(labels.shape) - 1).any():
        return True
    corners = np.array(np.meshgrid(*zip(index.min(axis=0), index.max(axis=0), strict=True))).reshape(3, -1).T[:, ::-1]
    at = volume.to_index(labels.to_world(corners))
    slack = 0.75 * np.asarray(labels.spacing) / np.asarray(volume.spacing)
    return bool((at < slack).any() or (at > np.asarray(volume.shape[::-1]) - 1 - slack).any())


def _main_part(labels: Volume, level: int) -> Volume:
    """The labels without islands of ``level`` away from its largest part."""
    pieces, count = ndimage.label(labels.hu == level)
    if count < 2:
        return labels
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    stray = (pieces > 0) & (pieces != largest)
    return replace(labels, hu=np.where(stray, BACKGROUND, labels.hu))


def _lattice(labels: Volume, level: int) -> Grid:
    index = np.argwhere(labels.hu == level)
    if not len(index):
        raise ShapeError(f"no voxel has label {level}", fix="Leave this level out.")
    ends = np.array(np.meshgrid(*zip(index.min(axis=0), index.max(axis=0), strict=True))).reshape(3, -1).T[:, ::-1]
    world = labels.to_world(ends)
    low, high = world.min(axis=0) - MARGIN_MM, world.max(axis=0) + MARGIN_MM
    return Grid.axis_aligned((low + high) / 2, high - low, LATTICE_MM)


def _sampled(values: NDArray[np.generic], affine: Pose, grid: Grid) -> Float:
    """Linear interpolation of an array on another grid, from the part of it that matters; edges continue."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape[::-1]])).reshape(3, -1).T
    mapping = np.linalg.solve(affine, grid.affine)
    at = corners @ mapping[:3, :3].T + mapping[:3, 3]
    first = np.clip(np.floor(at.min(axis=0)) - 1, 0, np.asarray(values.shape[::-1]) - 1).astype(int)
    last = np.clip(np.ceil(at.max(axis=0)) + 2, first + 1, values.shape[::-1]).astype(int)
    box: Box = (slice(first[2], last[2]), slice(first[1], last[1]), slice(first[0], last[0]))
    part = np.asarray(values[box], dtype=np.float32)
    flip = mapping[:3, :3][::-1, ::-1]
    offset = (mapping[:3, 3] - first)[::-1]
    out = ndimage.affine_transform(part, flip, offset, grid.shape, np.float32, order=1, mode="nearest")
    return np.asarray(out)


def _memberships(labels: Volume, level: int, grid: Grid) -> tuple[Float, Float]:
    """Signed distances, mm, to the label and to all other labels."""
    own = _sampled((labels.hu == level).astype(np.float32), labels.affine, grid) > 0.5
    others = _sampled(((labels.hu != BACKGROUND) & (labels.hu != level)).astype(np.float32), labels.affine, grid) > 0.5
    return _signed(own), _signed(others)


def _muscle(hu: Float, away: Float) -> float:
    """The commonest HU of soft tissue: the mode, in bins of 10 HU. Scans whose scale was guessed are off by some."""
    soft = hu[(away > _SOFT_AWAY_MM) & (hu > _SOFT_RANGE[0]) & (hu < _SOFT_RANGE[1])]
    if soft.size < 500:
        return USUAL_MUSCLE_HU
    counts, edges = np.histogram(soft, bins=np.arange(_SOFT_RANGE[0], _SOFT_RANGE[1] + 10, 10))
    best = int(np.argmax(np.convolve(counts, np.ones(3), mode="same")))
    return float((edges[best] + edges[best + 1]) / 2)


def _refined(hu: Float, own: Float, others: Float, spacing: float, muscle: float) -> tuple[NDArray[np.bool_], float]:
    """The vertebra's voxels as the CT shows them, and the HU at which its bone ends."""
    reach = _reach(spacing)
    core = hu[own < -reach] if (own < -reach).any() else hu[own < 0]
    step = max(_EDGE_SHARE * (float(np.median(core)) - muscle), _EDGE_LEAST)
    edge = muscle + step
    bright = hu > edge + _PULL_SHARE * step * np.clip(own / reach, -1, 1)
    inside = ((own < reach) & bright & (own <= others)) | (own < -reach)
    ball = ndimage.iterate_structure(ndimage.generate_binary_structure(3, 1), 2)
    closed = ndimage.binary_closing(inside, ball) & (own < reach) & (own <= others)
    inside = ndimage.binary_fill_holes(inside | closed)
    inside &= ~_glow(hu, inside, muscle)
    pieces, count = ndimage.label(inside)
    if count > 1:
        inside = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return np.asarray(inside), edge


def _glow(hu: Float, inside: NDArray[np.bool_], muscle: float) -> NDArray[np.bool_]:
    """The rim that is brighter than soft tissue only because dense cortex beside it is blurred into it."""
    rim = inside & ~ndimage.binary_erosion(inside, iterations=_RIM)
    brightest = ndimage.maximum_filter(hu, 2 * _RIM + 1)
    return np.asarray(rim & (hu - muscle < _GLOW_SHARE * (brightest - muscle)))


def _reach(spacing: float) -> float:
    return _REACH_MM + _REACH_SHARE * spacing


def _signed(inside: NDArray[np.bool_]) -> Float:
    """Signed distance in mm of a lattice mask; far away everywhere when it is empty."""
    if not inside.any():
        return np.full(inside.shape, 99.0, dtype=np.float32)
    out = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    return np.asarray((out - 0.5 * np.sign(out)) * LATTICE_MM, dtype=np.float32)


def _shape(inside: NDArray[np.bool_], grid: Grid) -> Shape:
    """The solid with its lattice steps smoothed away."""
    values = ndimage.gaussian_filter(_signed(inside), 0.8)
    return Shape(values, grid.affine[:3, 3].astype(np.float32), LATTICE_MM)
