"""The same scan as it might have been: turned, stored otherwise, cut, sliced, filtered, noisy, with metal.

A variant is made from a volume and the marks of its levels, the same way every time. It may have no meaning for a
scan (a cut between levels that are not marked), and is then left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import Level
from cspine.errors import UsageError
from cspine.evaluation.degrading import filtered, noisy, sliced, with_screws, with_teeth
from cspine.evaluation.marks import Marks, present
from cspine.volume import AIR_HU, Volume

# Part of what identifies a stored score: raised when a variant is made differently.
VERSION = 1
AS_IS = "as-is"
# Of what is left of a level at a cut through it: the cut lies this far from the centre, so the centre is outside.
THROUGH_MM = 5.0
MIN_SLICES = 8

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Made:
    """A variant of a scan.

    Attributes:
        volume: what is judged.
        motion: 4x4, LPS mm of the scan to LPS mm of the variant; None when nothing moved.
    """

    volume: Volume
    motion: Float | None = None


Make = Callable[[Volume, Marks, np.random.Generator], Made | None]


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to change a scan.

    Attributes:
        name: of the variant.
        group: what is put together in tables.
        make: from a volume in canonical axes, its marks and a random generator; None when it makes no sense there.
    """

    name: str
    group: str
    make: Make

    def __call__(self, volume: Volume, marks: Marks, scan: str) -> Made | None:
        """The variant of one scan; the same name gives the same voxels."""
        seed = hashlib.sha256(f"{scan}/{self.name}".encode()).digest()[:8]
        return self.make(volume, marks, np.random.default_rng(int.from_bytes(seed, "big")))


def turned(volume: Volume, marks: Marks, degrees: tuple[float, float, float]) -> Made:
    """The patient turned about the middle of the marks, in the same field of view; what moves in from outside is air.

    Args:
        volume: HU.
        marks: of its levels.
        degrees: about LPS x (nodding), y (tilting to the side) and z (turning), one after the other.
    """
    from scipy.spatial.transform import Rotation

    pivot = marks.points()[1].mean(axis=0)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    motion[:3, 3] = pivot - motion[:3, :3] @ pivot
    moved = replace(volume, affine=motion @ volume.affine)
    return Made(_like(volume, moved.resampled_to(volume.affine, volume.shape, fill=AIR_HU)), motion)


def stored(volume: Volume, order: tuple[int, int, int], flipped: tuple[int, ...]) -> Volume:
    """The same voxels in another order in memory; the world stays where it is.

    Args:
        volume: HU.
        order: which of x, y, z (0, 1, 2) becomes the new x, y and z.
        flipped: new axes (0 = x) that run backwards.
    """
    hu = volume.hu.transpose([2 - order[2 - k] for k in range(3)])
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, list(order)]
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (hu.shape[2 - axis] - 1)
        affine[:3, axis] *= -1
        hu = np.flip(hu, 2 - axis)
    source = replace(volume.source, sop_instance_uids=(), files=())
    return replace(volume, hu=hu, affine=affine, source=source)


def cut(volume: Volume, lowest: Float | None, highest: Float | None) -> Volume | None:
    """The slices between two LPS points ``(3,)`` (None: to the end).

    None when nothing would go, or next to nothing stay.
    """
    low = 0 if lowest is None else int(np.ceil(volume.to_index(lowest)[2]))
    high = volume.shape[0] if highest is None else int(np.floor(volume.to_index(highest)[2])) + 1
    low, high = max(low, 0), min(high, volume.shape[0])
    if not MIN_SLICES <= high - low < volume.shape[0]:
        return None
    return volume.crop(slice(low, high), slice(None), slice(None))


def _like(volume: Volume, changed: Volume) -> Volume:
    """``changed`` as int16, as scans are stored."""
    return replace(changed, hu=np.rint(np.clip(changed.hu, AIR_HU, 32767)).astype(np.int16), source=volume.source)


def _turn(x: float, y: float, z: float) -> Make:
    return lambda volume, marks, _: turned(volume, marks, (x, y, z))


def _store(order: tuple[int, int, int], *flipped: int) -> Make:
    return lambda volume, _, __: Made(stored(volume, order, flipped))


def _middle(marks: Marks, upper: Level) -> Float | None:
    """The point half-way from a level to the next one."""
    above, below = present(marks, upper), present(marks, Level(upper + 1))
    return None if above is None or below is None else (above + below) / 2


def _moved(marks: Marks, level: Level, up: float) -> Float | None:
    """A point over (or under) the centre of a level."""
    point = present(marks, level)
    return None if point is None else point + np.array([0.0, 0.0, up])


def _cut(above: Level | None, below: Level | None) -> Make:
    """Cut off ``above`` and all levels over it, and all levels under ``below``, through the discs."""

    def make(volume: Volume, marks: Marks, _: np.random.Generator) -> Made | None:
        high = None if above is None else _middle(marks, above)
        low = None if below is None else _middle(marks, below)
        if (above is not None and high is None) or (below is not None and low is None):
            return None
        part = cut(volume, low, high)
        return None if part is None else Made(part)

    return make


def _cut_through(upper: Level, lower: Level) -> Make:
    """Cut into two levels, so that their centres lie ``THROUGH_MM`` outside the field."""

    def make(volume: Volume, marks: Marks, _: np.random.Generator) -> Made | None:
        high, low = _moved(marks, upper, -THROUGH_MM), _moved(marks, lower, THROUGH_MM)
        part = None if high is None or low is None else cut(volume, low, high)
        return None if part is None else Made(part)

    return make


def _pixels(change: Callable[[Volume, np.random.Generator], Volume]) -> Make:
    return lambda volume, _, rng: Made(_like(volume, change(volume, rng)))


def _metal(change: Callable[[Volume, Marks, np.random.Generator], Volume | None]) -> Make:
    def make(volume: Volume, marks: Marks, rng: np.random.Generator) -> Made | None:
        changed = change(volume, marks, rng)
        return None if changed is None else Made(_like(volume, changed))

    return make


VARIANTS: tuple[Variant, ...] = (
    Variant(AS_IS, "as it is", lambda volume, _, __: Made(volume)),
    Variant("nod+25", "rotated", _turn(25, 0, 0)),
    Variant("nod-25", "rotated", _turn(-25, 0, 0)),
    Variant("tilt+25", "rotated", _turn(0, 25, 0)),
    Variant("turn-25", "rotated", _turn(0, 0, -25)),
    Variant("oblique", "rotated", _turn(-14, 14, 14)),
    Variant("stored-mirrored", "storage", _store((0, 1, 2), 0)),
    Variant("stored-reversed", "storage", _store((0, 1, 2), 0, 1, 2)),
    Variant("stored-sagittal", "storage", _store((1, 2, 0), 1)),
    Variant("cut-above", "cropped", _cut(Level.C2, None)),
    Variant("cut-below", "cropped", _cut(None, Level.C5)),
    Variant("cut-both", "cropped", _cut(Level.C2, Level.C6)),
    Variant("cut-through", "cropped", _cut_through(Level.C1, Level.C5)),
    Variant("slices-0.5", "slices", _pixels(lambda volume, _: sliced(volume, 0.5))),
    Variant("slices-1", "slices", _pixels(lambda volume, _: sliced(volume, 1.0))),
    Variant("slices-3", "slices", _pixels(lambda volume, _: sliced(volume, 3.0))),
    Variant("slices-5", "slices", _pixels(lambda volume, _: sliced(volume, 5.0))),
    Variant("kernel-soft", "kernel", _pixels(lambda volume, rng: filtered(volume, "soft", rng))),
    Variant("kernel-bone", "kernel", _pixels(lambda volume, rng: filtered(volume, "bone", rng))),
    Variant("low-dose", "dose", _pixels(noisy)),
    Variant("metal-teeth", "metal", _metal(with_teeth)),
    Variant("metal-screws", "metal", _metal(with_screws)),
)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(variant.group for variant in VARIANTS))


def choose(text: str) -> tuple[Variant, ...]:
    """Variants from ``all``, ``none``, or names and groups with commas between; the scan as it is comes always first.

    Raises:
        UsageError: an unknown name.
    """
    wanted = {part.strip() for part in text.split(",") if part.strip()}
    known = {"all", "none", *GROUPS, *(variant.name for variant in VARIANTS)}
    if wanted - known:
        names = ", ".join((*GROUPS[1:], *(variant.name for variant in VARIANTS[1:])))
        raise UsageError(f"no variant {sorted(wanted - known)[0]!r}", fix=f"Known are all, none, {names}")
    return tuple(v for v in VARIANTS if v.name == AS_IS or "all" in wanted or v.name in wanted or v.group in wanted)
