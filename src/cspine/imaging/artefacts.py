"""What does not belong to the patient: table, head rest, burned-in text and markers; and metal with its streaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from cspine.errors import IntensityError, UsageError
from cspine.imaging.arrays import Array, Image, as_image, fill_value, shape3
from cspine.imaging.sample import ImageStep, Sample, Step
from cspine.volume import AIR_HU

# Halfway between air and soft tissue, with room for fat and noise.
BODY_HU = -300.0
# Above this no bone is left: enamel, implants, screws.
METAL_HU = 3000.0


def body_mask(image: Array, threshold: float = BODY_HU, opening: int = 2) -> NDArray[np.bool_]:
    """The patient: the largest connected part above ``threshold``, with the air inside it.

    Args:
        image: ``[y, x]`` or ``[z, y, x]``, HU unless ``threshold`` is in another unit.
        threshold: between air and soft tissue, in the unit of the image.
        opening: pixels; what hangs on the body by less than twice this is cut off, as a table's sheet or a cable.

    Raises:
        IntensityError: nothing is above the threshold.
    """
    image = as_image(image)
    above = (image > threshold).reshape(shape3(image.shape))
    if not above.any():
        raise IntensityError(
            f"expected a body above {threshold:g}, but the brightest pixel is {image.max():g}",
            fix="Give the threshold between air and tissue in the unit of the image",
        )
    cross, core = ndimage.generate_binary_structure(2, 1)[None], above
    if opening:
        # The body goes on beyond the frame.
        core = ndimage.binary_erosion(above, cross, opening, border_value=1)
        core = ndimage.binary_dilation(core, cross, opening)
    labels, _ = ndimage.label(core if core.any() else above)
    kept = labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())
    if opening:
        kept = ndimage.binary_dilation(kept, cross, opening) & above
    return np.stack([_filled(plane) for plane in kept]).reshape(image.shape)


def _filled(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A plane without holes: what of the rest reaches the frame is outside, all else is in."""
    rest, _ = ndimage.label(np.pad(~plane, 1, constant_values=True))
    return np.asarray(rest[1:-1, 1:-1] != rest[0, 0])


def keep_body(sample: Sample, threshold: float = BODY_HU, opening: int = 2, fill: float | None = None) -> Sample:
    """Outside ``body_mask`` the image becomes ``fill``, its smallest value unless told, and the mask 0; boxes stay.

    Raises:
        IntensityError: nothing is above the threshold.
    """
    body = body_mask(sample.image, threshold, opening)
    image = np.where(body, sample.image, np.float32(fill_value(sample.image, fill)))
    mask = None if sample.mask is None else np.where(body, sample.mask, np.zeros((), sample.mask.dtype))
    return replace(sample, image=image, mask=mask)


def clip_metal(
    image: Array, metal: float = METAL_HU, air: float = AIR_HU, dark: float = -200.0, reach: int = 8
) -> Image:
    """HU cut to ``air`` … ``metal``; within ``reach`` pixels of metal also what is darker than ``dark``.

    Dark streaks beside metal become fat at least instead of air. Real air so close to metal is lost with them, and
    streaks farther away stay: this limits values, it reconstructs nothing.
    """
    if not air <= dark < metal:
        raise UsageError(f"expected air <= dark < metal, got {air}, {dark} and {metal}")
    image = as_image(image)
    out = np.clip(image, np.float32(air), np.float32(metal))
    shining = (image > metal).reshape(shape3(image.shape))
    if reach and shining.any():
        away = np.stack(
            [ndimage.distance_transform_edt(~plane) if plane.any() else np.inf * ~plane for plane in shining]
        )
        out = np.where(away.reshape(image.shape) <= reach, np.maximum(out, np.float32(dark)), out)
    return out


class KeepBody(Step):
    """Fills all but the largest part above `threshold`: table, text and markers go, and the mask there."""

    kind: Literal["keep-body"] = "keep-body"
    threshold: float = Field(default=BODY_HU, description="HU, or the image's unit")
    opening: int = Field(default=2, ge=0, description="px")
    fill: float | None = Field(default=None, description="unit of the image; none: its smallest value")

    def changed(self, sample: Sample, _rng: np.random.Generator, /) -> Sample:
        """See ``keep_body``."""
        return keep_body(sample, self.threshold, self.opening, self.fill)


class ClipMetal(ImageStep):
    """Values cut to `air` … `metal`; within `reach` of metal nothing is darker than `dark` (streaks)."""

    kind: Literal["clip-metal"] = "clip-metal"
    metal: float = Field(default=METAL_HU, description="HU")
    air: float = Field(default=float(AIR_HU), description="HU")
    dark: float = Field(default=-200.0, description="HU")
    reach: int = Field(default=8, ge=0, description="px")

    def image(self, image: Image, _rng: np.random.Generator, /) -> Image:
        """See ``clip_metal``."""
        return clip_metal(image, self.metal, self.air, self.dark, self.reach)
