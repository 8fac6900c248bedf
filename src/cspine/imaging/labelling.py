"""Truth from truth: boxes from a mask, and the labels of slices from boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from cspine.anatomy import LEVELS
from cspine.errors import UsageError
from cspine.imaging.arrays import shape3
from cspine.imaging.boxes import boxes_from_mask, levels_from_boxes, slices_with_boxes
from cspine.imaging.sample import Sample, Step


class BoxesFromMask(Step):
    """One box a slice around each value of the mask, in place of the boxes."""

    kind: Literal["boxes-from-mask"] = "boxes-from-mask"
    values: tuple[int, ...] = Field(default=tuple(int(level) for level in LEVELS), description="mask values")

    def changed(self, sample: Sample, _rng: np.random.Generator, /) -> Sample:
        """See ``boxes_from_mask``.

        Raises:
            UsageError: the sample has no mask.
        """
        if sample.mask is None:
            raise UsageError("boxes-from-mask needs a sample with a mask, got none")
        return replace(sample, boxes=boxes_from_mask(sample.mask, self.values))


class LabelsFromBoxes(Step):
    """In place of the labels, a slice: which of C1 to C7 have a box, or whether there is `any` box."""

    kind: Literal["labels-from-boxes"] = "labels-from-boxes"
    of: Literal["levels", "any"] = "levels"

    def changed(self, sample: Sample, _rng: np.random.Generator, /) -> Sample:
        """See ``levels_from_boxes`` and ``slices_with_boxes``: ``(z, 7)`` or ``(z,)``, of an image less z."""
        make = levels_from_boxes if self.of == "levels" else slices_with_boxes
        labels = make(sample.boxes, shape3(sample.image.shape)[0])
        return replace(sample, labels=labels if sample.image.ndim == 3 else labels[0])
