"""What every step takes: finite images ``[y, x]`` or stacks ``[z, y, x]``, and masks of the same shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.errors import IntensityError, UsageError

Array = NDArray[Any]
Image = NDArray[np.float32]
Mask = NDArray[Any]
Matrix = NDArray[np.float64]


def as_image(image: Array) -> Image:
    """``image`` as float32; the same array when it is float32 already, so it must not be written to.

    Args:
        image: ``[y, x]`` or ``[z, y, x]``, any real type and unit.

    Raises:
        UsageError: another number of axes, or nothing in it.
        IntensityError: a value is NaN or infinite.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.size == 0 or image.dtype.kind not in "biuf":
        raise UsageError(
            f"expected numbers as a non-empty image [y, x] or stack [z, y, x], got {image.dtype} of shape {image.shape}"
        )
    with np.errstate(over="ignore"):
        out = np.asarray(image, dtype=np.float32)
    if not np.isfinite(out).all():
        count = int(out.size - np.isfinite(out).sum())
        raise IntensityError(
            f"expected finite values, got {count} pixels that are NaN or infinite",
            fix="Replace them, for example by the value of air, before this step",
        )
    return out


def as_mask(mask: Array, shape: tuple[int, ...]) -> Mask:
    """``mask`` unchanged, when it holds whole numbers or truth values on a grid of ``shape``.

    Raises:
        UsageError: another shape or type.
    """
    mask = np.asarray(mask)
    if mask.shape != shape or mask.dtype.kind not in "biu":
        raise UsageError(f"expected a mask of whole numbers of shape {shape}, got {mask.dtype} of shape {mask.shape}")
    return mask


def in_plane(value: float, ndim: int) -> tuple[float, ...]:
    """One value an axis, 0 along z: what filters take that must not mix slices."""
    return (0.0,) * (ndim - 2) + (value, value)


def shape3(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """``(z, y, x)``; an image ``[y, x]`` counts as one slice."""
    z, y, x = (1,) * (3 - len(shape)) + tuple(shape)
    return z, y, x


def fill_value(image: Image, fill: float | None) -> float:
    """What lies outside an image: ``fill``, or its smallest value, which is air in any unit."""
    return float(image.min()) if fill is None else float(fill)
