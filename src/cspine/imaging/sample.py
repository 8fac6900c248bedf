"""``Sample``: an image with its mask, boxes and labels; and ``Step``, which makes one sample of another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cspine.errors import UsageError
from cspine.imaging.arrays import Image, Mask, Matrix, as_image, as_mask
from cspine.imaging.boxes import Boxes

Fraction = Annotated[float, Field(ge=0, le=1)]


def _ascending(span: float | tuple[float, float]) -> float | tuple[float, float]:
    low, high = span if isinstance(span, tuple) else (span, span)
    if not (np.isfinite([low, high]).all() and low <= high):
        raise ValueError(f"expected a number, or two with the smaller first, got {span}")
    return span


def _positive(span: float | tuple[float, float]) -> float | tuple[float, float]:
    if min(span if isinstance(span, tuple) else (span,)) <= 0:
        raise ValueError(f"expected positive numbers, got {span}")
    return span


# A number, or two ends between which one is drawn anew for every sample.
Span = Annotated[float | tuple[float, float], AfterValidator(_ascending)]
PositiveSpan = Annotated[Span, AfterValidator(_positive)]


def drawn(span: float | tuple[float, float], rng: np.random.Generator) -> float:
    """The number, or one drawn evenly between the two ends."""
    return float(rng.uniform(*span)) if isinstance(span, tuple) else float(span)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What preprocessing and augmentation work on. Nothing ever writes to its arrays.

    Attributes:
        image: ``[y, x]`` or ``[z, y, x]``, float32, finite, any unit.
        mask: whole numbers on the same grid (values as in ``anatomy``), or None.
        boxes: in this image.
        labels: of the whole sample, any shape, 0 to 1 (soft after mixing), or None.
        placement: ``(4, 4)``, index ``(x, y, z, 1)`` in this image → index in the image it was made of, so that
            ``volume.affine @ placement`` is its affine. None after a warp that no matrix describes.

    Raises:
        UsageError: a part has another shape or type.
        IntensityError: the image has a NaN or infinite value.
    """

    image: Image
    mask: Mask | None = None
    boxes: Boxes = field(default_factory=lambda: Boxes.of([]))
    labels: NDArray[np.float32] | None = None
    placement: Matrix | None = field(default_factory=lambda: np.eye(4))

    def __post_init__(self) -> None:
        # In memory order, because a flipped view cannot become a tensor.
        object.__setattr__(self, "image", np.ascontiguousarray(as_image(self.image)))
        if self.mask is not None:
            object.__setattr__(self, "mask", np.ascontiguousarray(as_mask(self.mask, self.image.shape)))
        if self.labels is not None:
            labels = np.asarray(self.labels, dtype=np.float32)
            if not ((labels >= 0) & (labels <= 1)).all():
                raise UsageError("expected labels from 0 to 1")
            object.__setattr__(self, "labels", labels)

    def moved(self, image: Image, mask: Mask | None, matrix: Matrix) -> Sample:
        """This sample on another grid: its new arrays, with boxes and placement taken along.

        Args:
            image: on the new grid.
            mask: on the new grid.
            matrix: ``(4, 4)``, index ``(x, y, z, 1)`` of the new grid → index here.
        """
        return replace(
            self,
            image=image,
            mask=mask,
            boxes=self.boxes.moved(np.asarray(np.linalg.inv(matrix), np.float64)).clipped(image.shape),
            placement=None if self.placement is None else np.asarray(self.placement @ matrix),
        )

    def to_original(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Indices ``(..., 3)`` x, y, z here → in the image this sample was made of.

        Raises:
            UsageError: the sample was warped.
        """
        matrix = _known(self.placement)
        return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])

    def from_original(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of ``to_original``.

        Raises:
            UsageError: the sample was warped.
        """
        matrix = np.linalg.inv(_known(self.placement))
        return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])

    def boxes_in_original(self) -> Boxes:
        """The boxes as they lie in the image this sample was made of.

        Raises:
            UsageError: the sample was warped.
        """
        return self.boxes.moved(_known(self.placement))


def _known(placement: Matrix | None) -> Matrix:
    if placement is None:
        raise UsageError("a warped sample has no way back", fix="Map points before grid, optical or elastic distortion")
    return placement


class Named(BaseModel):
    """Whatever a recipe can name: a frozen model with a ``kind``; keys it does not know are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: str


class Step(Named, ABC):
    """One change to a sample, with a chance of being made.

    Attributes:
        kind: its name in a recipe.
        probability: 0 to 1.
    """

    probability: Fraction = 1.0

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The changed sample, or with probability ``1 - probability`` the same one."""
        if self.probability < 1 and rng.random() >= self.probability:
            return sample
        return self.changed(sample, rng)

    @abstractmethod
    def changed(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """The changed sample."""


class ImageStep(Step, ABC):
    """A step that changes values and moves nothing."""

    def changed(self, sample: Sample, rng: np.random.Generator, /) -> Sample:
        """The sample with its image changed."""
        return replace(sample, image=self.image(sample.image, rng))

    @abstractmethod
    def image(self, image: Image, rng: np.random.Generator, /) -> Image:
        """The changed image, same shape."""
