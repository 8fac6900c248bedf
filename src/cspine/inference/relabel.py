"""Masks that agree with the chain: every vertebra voxel goes to one vertebra of the chain.

For a voxel whose network probabilities of C1..C7 and thoracic are p, the vertebra n that wins has the largest

    log(sum_c q_n(c) p(c)) - (s / 7 mm)^2 / 2,

where ``q_n(c)`` is what the network says around the centre of n, and s is the signed distance from n along the
spine, in a plane that sinks towards the back as laminae and spinous processes do. Where network and chain agree this
keeps the network's mask; where the network drifted by a level a whole vertebra moves at once; where it merged two,
distance parts them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import BACKGROUND, OTHER_BONE, THORACIC, Level
from cspine.inference.chain import Link
from cspine.inference.locate import Located
from cspine.inference.visibility import SINK, SINK_FROM_MM, SINK_TO_MM

Float = NDArray[np.float64]

ALONG_SD_MM = 7.0
# The dens reaches this far above the body of C2, at no cost.
DENS_MM = 18.0
# A voxel this far from the body centre, square to the spine, belongs to no vertebra (rib, clavicle).
MAX_SIDE_MM = 75.0
# Beyond this distance from the last vertebra of a chain voxels belong to the next, unlisted one.
END_MM = 13.0
VOTE_RADIUS_MM = 12.0
# A loose piece of a cervical vertebra with fewer voxels is dropped.
CRUMB_VOXELS = 12


def relabel(located: Located, links: tuple[Link, ...]) -> NDArray[np.uint8]:
    """The label mask uint8 ``[Z, Y, X]`` for a chain; without a chain vertebra voxels become other bone."""
    labels: NDArray[np.uint8] = located.classes.argmax(axis=0).astype(np.uint8)
    spine = (labels >= 1) & (labels <= THORACIC)
    if not links:
        labels[spine] = OTHER_BONE
        return labels
    index = np.argwhere(spine)
    if len(index) == 0:
        return labels
    points = index[:, ::-1] @ located.affine[:3, :3].T + located.affine[:3, 3]
    share = located.classes[1 : THORACIC + 1, spine].astype(np.float32).T
    labels[spine] = _assign(points, labels[spine], share / share.sum(axis=1, keepdims=True), links)
    return without_crumbs(labels, CRUMB_VOXELS, Level.C7)


def _assign(
    points: Float, classes: NDArray[np.uint8], share: NDArray[np.float32], links: tuple[Link, ...]
) -> NDArray[np.uint8]:
    """Label of each voxel.

    Args:
        points: ``(n, 3)`` LPS mm.
        classes: ``(n,)`` 1..8, what the network says.
        share: ``(n, 8)`` its probabilities among vertebra classes.
        links: the chain.
    """
    centres = np.array([link.position for link in links])
    own = np.array([min(link.state + 1, THORACIC) for link in links])
    offset = points[:, None, :] - centres[None]
    along, behind = _along_and_behind(offset, _tangents(centres))
    side = np.sqrt(np.maximum((offset**2).sum(axis=2) - along**2, 0))
    sunk = along + SINK * np.clip(behind - SINK_FROM_MM, 0, SINK_TO_MM - SINK_FROM_MM)
    dens = (own == Level.C2) & (sunk > 0)
    sunk = np.where(dens, np.maximum(sunk - DENS_MM, 0), sunk)
    likely = share @ _votes(offset, share, own).T
    winner = (np.log(likely + 1e-3) - 0.5 * (sunk / ALONG_SD_MM) ** 2).argmax(axis=1)
    out: NDArray[np.uint8] = own[winner].astype(np.uint8)
    row = np.arange(len(points))
    reach, agrees = sunk[row, winner], classes == own[winner]
    above = (winner == 0) & (reach > END_MM) & ~agrees
    below = (winner == len(links) - 1) & (reach < -END_MM) & ~agrees
    out[above] = own[0] - 1 if own[0] > 1 else OTHER_BONE
    out[below] = min(own[-1] + 1, THORACIC)
    out[side[row, winner] > MAX_SIDE_MM] = OTHER_BONE
    return out


def _along_and_behind(offset: Float, tangents: Float) -> tuple[Float, Float]:
    """Millimetres up the spine and towards the back, ``(n, k)`` each, of offsets ``(n, k, 3)`` from k vertebrae."""
    back = np.array([0.0, 1.0, 0.0]) - tangents * tangents[:, 1:2]
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    return np.einsum("nkd,kd->nk", offset, tangents), np.einsum("nkd,kd->nk", offset, back)


def _votes(offset: Float, share: NDArray[np.float32], own: NDArray[np.int64]) -> Float:
    """``(k, 8)``: mean network share around each vertebra, with a little belief in the chain's label."""
    near = np.linalg.norm(offset, axis=2) < VOTE_RADIUS_MM
    votes = np.full((len(own), THORACIC), 0.02)
    for k in range(len(own)):
        if near[:, k].any():
            votes[k] += share[near[:, k]].mean(axis=0)
        votes[k, own[k] - 1] += 0.25
    return np.asarray(votes / votes.sum(axis=1, keepdims=True))


def _tangents(centres: Float) -> Float:
    """Unit vectors up the spine at each centre; straight up for a single one."""
    if len(centres) == 1:
        return np.array([[0.0, 0.0, 1.0]])
    difference = -np.gradient(centres, axis=0)
    return np.asarray(difference / np.linalg.norm(difference, axis=1, keepdims=True))


def without_crumbs(labels: NDArray[np.uint8], smallest: int, last: int) -> NDArray[np.uint8]:
    """Loose pieces of a vertebra become background, in place, unless nothing larger of it is there.

    Args:
        labels: uint8 ``[Z, Y, X]``.
        smallest: voxels of a piece that stays.
        last: the highest label that is looked at.
    """
    for label, box in enumerate(ndimage.find_objects(labels, max_label=last), start=1):
        if box is None:
            continue
        part = labels[box]
        pieces, count = ndimage.label(part == label, structure=np.ones((3, 3, 3)))
        if count < 2:
            continue
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        drop = (sizes < smallest) & (sizes < sizes.max())
        drop[0] = False
        part[drop[pieces]] = BACKGROUND
    return labels
