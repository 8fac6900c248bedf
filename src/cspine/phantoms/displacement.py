"""How far a fracture is displaced, in millimetres, from its geometry: what a reader would measure at the break.

Two points that touched before a break end up apart by the cleft between the faces plus the movement of the piece.
The displacement of a cut is the largest such distance over the face; that of a crushed body is the height it lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.breakage import Change, Piece, Surface
from cspine.phantoms.crush import Crush
from cspine.phantoms.shatter import Shatter

Float = NDArray[np.float64]
# A face is looked at over this radius about the middle of its cut, mm: broken cervical bone is about twice as thick.
FACE_MM = 4.0
_RING = 8


def displacement_mm(changes: Iterable[Change]) -> float:
    """Largest distance, mm, between points of a vertebra that touched before it broke.

    Args:
        changes: of one fracture (``Fracture.changes``) or of several of one vertebra.

    Returns:
        The largest over all cuts of ``|movement of the piece + cleft|`` on the face (the cleft at its mean width),
        and over crushed bodies of the height lost at the front or the back. Loose splinters do not count. 0 for no
        change.
    """
    return max((value for change in changes for value in _displacements(change)), default=0.0)


def _displacements(change: Change) -> Iterator[float]:
    if isinstance(change, Crush):
        yield max(change.loss_front, change.loss_back, 0.0)
    elif isinstance(change, Shatter):
        for piece in change.pieces:
            for surface, sign in piece.cuts:
                yield _apart(piece, surface, sign)


def _apart(piece: Piece, surface: Surface, sign: int) -> float:
    """Largest distance over one face of a piece between what lay on either side of it."""
    at = _face(surface)
    moved = _forward(piece, at) - at
    cleft = sign * surface.gap * np.asarray(surface.normal, dtype=np.float64)
    return float(np.linalg.norm(moved + cleft, axis=1).max())


def _face(surface: Surface) -> Float:
    """The middle of a cut and points around it in its plane, ``[n, 3]``."""
    first, second = (tangent.astype(np.float64) for tangent in surface.tangents())
    angle = np.arange(_RING) * (2 * np.pi / _RING)
    ring = FACE_MM * (np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second)
    return np.asarray(np.asarray(surface.origin, dtype=np.float64) + np.vstack([np.zeros(3), ring]))


def _forward(piece: Piece, points: Float) -> Float:
    """Where ``Motion`` takes points ``[n, 3]`` of a piece: the inverse of ``Motion.back``."""
    pivot = np.asarray(piece.motion.pivot, dtype=np.float64)
    return np.asarray((points - pivot) @ piece.motion.matrix().T + pivot + np.asarray(piece.motion.shift))
