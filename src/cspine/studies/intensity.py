"""From stored values to Hounsfield units, in place in the volume; and the check that they are Hounsfield units."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import IntensityError, UsageError
from cspine.studies import tags
from cspine.studies.header import coded
from cspine.studies.instances import MAX_NUMBER, PixelFormat, Plane
from cspine.volume import AIR_HU

Array = NDArray[Any]

# Any CT of a person reaches air (outside, or in the airway) and bone.
AIR_REACHED_HU = -150
BONE_REACHED_HU = 150
# Beyond the 16-bit extended scale of metal there is no HU.
MAX_HU = 32_767
# Fat to contrast: at least this share of the voxels that are not air lies there in any CT of a person.
TISSUE_HU = (-250, 350)
TISSUE_SHARE = 0.05
# A padding value inside the range of tissue is believed only where it touches the border of the slice.
TISSUE_PADDING_HU = (-950, 3000)
# Rescale types that are Hounsfield units or leave it open (PS3.3 C.11.1.1.2).
HU_RESCALE_TYPES = frozenset(("", "HU", "US", "HU_MOD"))

# A slice is converted this many voxels at a time, so that floats of a large one are never all there.
_BLOCK_VOXELS = 2**20

Scale = tuple[float, float]


def parse_scale(scale: str | Scale | None) -> Scale | None:
    """``"4095,-1024"`` or a pair → (slope, intercept) with HU = slope * value + intercept.

    Raises:
        UsageError: not two numbers up to ``MAX_NUMBER``, or a slope of zero.
    """
    if scale is None:
        return None
    try:
        slope, intercept = (float(part) for part in (scale.split(",") if isinstance(scale, str) else scale))
    except (TypeError, ValueError):
        slope, intercept = float("nan"), 0.0
    if not max(abs(slope), abs(intercept)) <= MAX_NUMBER or slope == 0:  # so that NaN is refused too
        raise UsageError(f"expected a scale SLOPE,INTERCEPT, got {scale!r}", fix="For 0..1 values try 4095,-1024")
    return slope, intercept


def rescale_of(plane: Plane, scale: Scale | None) -> Scale:
    """Slope and intercept of a plane, or the user's.

    Raises:
        IntensityError: the file gives none, or gives another unit than HU.
    """
    if scale is not None:
        return scale
    missing = tags.SLOPE if plane.slope is None else tags.INTERCEPT if plane.intercept is None else None
    if missing is not None:
        raise IntensityError(
            f"{tags.describe(missing)} is missing, so stored values cannot become HU",
            where=plane.where,
            fix="Give scale=SLOPE,INTERCEPT when you know them",
        )
    if plane.rescale_type not in HU_RESCALE_TYPES:
        raise IntensityError(
            f"expected HU in {tags.describe(tags.RESCALE_TYPE)}, got {coded(plane.rescale_type)!r}",
            where=plane.where,
        )
    if not plane.slope:
        raise IntensityError(f"{tags.describe(tags.SLOPE)} is 0", where=plane.where)
    return plane.slope or 1.0, plane.intercept or 0.0


def is_integer(scales: list[Scale]) -> bool:
    """Whether HU stay whole numbers, so that int16 holds them without loss."""
    return all(slope == round(slope) and intercept == round(intercept) for slope, intercept in scales)


def to_hu(stored: Array, fmt: PixelFormat, scale: Scale, padding: tuple[int, int] | None, out: Array) -> None:
    """Write one slice in HU; padding and all below air become air.

    Args:
        stored: ``[y, x]`` as coded.
        fmt: which bits of it count.
        scale: slope and intercept.
        padding: inclusive range of stored values outside the field of view, or None.
        out: ``[y, x]`` int16 or float32, written.
    """
    values = _masked(stored, fmt)
    slope, intercept = scale
    if out.dtype == np.int16 and slope == 1 and -(2**14) <= intercept <= 2**14 and _fits(values, fmt):
        signed = values.view(np.int16) if values.dtype.isnative and values.itemsize == 2 else values
        np.add(signed, np.int16(intercept), out=out, casting="unsafe")
    else:
        step = max(1, _BLOCK_VOXELS // values.shape[1])
        for top in range(0, len(values), step):
            exact = values[top : top + step].astype(np.float64) * slope + intercept
            out[top : top + step] = np.clip(exact, AIR_HU, MAX_HU)
    if padding is not None:
        outside = _padded(values, scale, padding)
        if outside is not None:
            out[outside] = AIR_HU
    np.maximum(out, AIR_HU, out=out)


def _fits(values: Array, fmt: PixelFormat) -> bool:
    """Whether adding an intercept of at most 2^14 cannot leave int16."""
    if fmt.stored <= 14:
        return True
    return bool(values.max() < 2**14 and values.min() >= -(2**14))


def _masked(stored: Array, fmt: PixelFormat) -> Array:
    """Only the bits stored, sign extended: the others may hold overlays (PS3.5 8.1.1)."""
    unused = fmt.allocated - fmt.stored
    if unused == 0:
        return stored
    low = fmt.high_bit + 1 - fmt.stored
    return (stored << (unused - low)) >> unused


def _padded(values: Array, scale: Scale, padding: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Where the scanner saw nothing, or None when nowhere."""
    outside = (values >= padding[0]) & (values <= padding[1])
    if not outside.any():
        return None
    hu = [scale[0] * value + scale[1] for value in padding]
    if max(hu) <= TISSUE_PADDING_HU[0] or min(hu) >= TISSUE_PADDING_HU[1]:
        return np.asarray(outside)
    from scipy import ndimage

    border = np.zeros(outside.shape, bool)
    border[[0, -1], :] = border[:, [0, -1]] = True
    return np.asarray(ndimage.binary_propagation(border & outside, mask=outside))


def check_hu(hu: Array, *, where: str) -> None:
    """Refuse what cannot be Hounsfield units of a person, judged on every fourth row and column.

    Raises:
        IntensityError: no air, no bone, impossible values, or hardly any soft tissue.
    """
    some = hu[:: max(1, len(hu) // 64), ::4, ::4]
    low, high = float(some.min()), float(some.max())
    inside = some[some > -500]
    tissue = float(np.mean((inside >= TISSUE_HU[0]) & (inside <= TISSUE_HU[1]))) if inside.size else 0.0
    fix = "Give scale=SLOPE,INTERCEPT (HU = slope * value + intercept) when you know it, or export in HU"
    if low > AIR_REACHED_HU or high < BONE_REACHED_HU:
        raise IntensityError(
            f"expected Hounsfield units from air (-1000) to bone, got {low:.4g} to {high:.4g}", where=where, fix=fix
        )
    if high > MAX_HU or tissue < TISSUE_SHARE:
        raise IntensityError(
            f"values from {low:.4g} to {high:.4g} with {tissue:.0%} in the range of soft tissue are not HU",
            where=where,
            fix=fix,
        )
