"""Mixup and CutMix: two samples of a batch become one, and so do their labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cspine.errors import IntensityError, UsageError
from cspine.imaging.arrays import Array, Mask
from cspine.imaging.sample import Fraction, Named


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples of one shape, with soft labels.

    Attributes:
        images: ``(n, ..., y, x)`` float32, finite.
        labels: ``(n, ...)`` float32, 0 to 1.
        masks: ``(n, ..., y, x)`` of whole numbers, or None.

    Raises:
        UsageError: the parts do not belong together, or a label is not 0 to 1.
        IntensityError: an image has a NaN or infinite value.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.float32]
    masks: Mask | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", np.asarray(self.images, dtype=np.float32))
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.float32))
        n = len(self.images)
        if self.images.ndim < 3 or n == 0 or self.labels.ndim < 1 or len(self.labels) != n:
            raise UsageError(
                f"expected images (n, ..., y, x) and as many labels, got {self.images.shape} and {self.labels.shape}"
            )
        if self.masks is not None and (len(self.masks) != n or self.masks.shape[-2:] != self.images.shape[-2:]):
            raise UsageError(f"expected masks like the images {self.images.shape}, got {self.masks.shape}")
        if not ((self.labels >= 0) & (self.labels <= 1)).all():
            raise UsageError("expected labels from 0 to 1")
        if not np.isfinite(self.images).all():
            raise IntensityError("expected finite images in the batch, got NaN or infinite pixels")


def mixup(batch: Batch, partner: NDArray[np.int64], share: Array) -> Batch:
    """Images and labels as weighted means of two: ``share`` of its own, the rest of the partner's.

    H. Zhang et al., mixup: Beyond empirical risk minimization, ICLR 2018. A mask cannot be a mean: it is that of the
    greater share.

    Args:
        batch: n samples.
        partner: ``(n,)`` whom each is mixed with.
        share: ``(n,)``, 0 to 1.
    """
    share = _shares(batch, partner, share)

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        own = share.reshape(-1, *(1,) * (values.ndim - 1))
        return np.asarray(own * values + (1 - own) * values[partner], dtype=np.float32)

    masks = batch.masks
    if masks is not None:
        masks = np.where((share >= 0.5).reshape(-1, *(1,) * (masks.ndim - 1)), masks, masks[partner])
    return Batch(mean(batch.images), np.clip(mean(batch.labels), 0, 1), masks)


def cutmix(batch: Batch, partner: NDArray[np.int64], holes: NDArray[np.int64]) -> Batch:
    """A rectangle of each image and mask comes from the partner; labels are mixed by the rectangle's share of the area.

    S. Yun et al., CutMix, ICCV 2019.

    Args:
        batch: n samples.
        partner: ``(n,)`` whom each is mixed with.
        holes: ``(n, 4)`` pixel edges x0, y0, x1, y1; what lies outside the image does not count.
    """
    rows, columns = batch.images.shape[-2:]
    holes = np.clip(holes, 0, [columns, rows, columns, rows])
    if holes.shape != (len(batch.images), 4) or (holes[:, 2:] < holes[:, :2]).any():
        raise UsageError(f"expected one rectangle x0, y0, x1, y1 a sample, got shape {holes.shape}")
    share = 1 - (holes[:, 2] - holes[:, 0]) * (holes[:, 3] - holes[:, 1]) / (rows * columns)
    labels = mixup(Batch(batch.images, batch.labels), partner, share).labels
    images, masks = batch.images.copy(), None if batch.masks is None else batch.masks.copy()
    for k, (other, (x0, y0, x1, y1)) in enumerate(zip(partner, holes, strict=True)):
        images[k, ..., y0:y1, x0:x1] = batch.images[other, ..., y0:y1, x0:x1]
        if masks is not None and batch.masks is not None:
            masks[k, ..., y0:y1, x0:x1] = batch.masks[other, ..., y0:y1, x0:x1]
    return Batch(images, labels, masks)


def _shares(batch: Batch, partner: NDArray[np.int64], share: Array) -> NDArray[np.float32]:
    share, n = np.asarray(share, dtype=np.float32), len(batch.images)
    if np.shape(partner) != (n,) or share.shape != (n,) or not ((share >= 0) & (share <= 1)).all():
        raise UsageError(f"expected a partner and a share from 0 to 1 for each of {n} samples")
    return share


class BatchStep(Named, ABC):
    """One change to a batch, with a chance of being made.

    Attributes:
        kind: its name in a recipe.
        probability: 0 to 1.
        alpha: both parameters of the Beta distribution that shares are drawn from; 1 is even, less is closer to 0 or 1.
    """

    probability: Fraction = 1.0
    alpha: float = Field(default=1.0, gt=0)

    def apply(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The changed batch, or with probability ``1 - probability`` the same one."""
        if self.probability < 1 and rng.random() >= self.probability:
            return batch
        n = len(batch.images)
        return self.changed(batch, rng.permutation(n), rng.beta(self.alpha, self.alpha, n), rng)

    @abstractmethod
    def changed(self, batch: Batch, partner: NDArray[np.int64], share: Array, rng: np.random.Generator, /) -> Batch:
        """The batch with each sample mixed with its partner."""


class Mixup(BatchStep):
    """Weighted means of two images and of their labels; a mask is that of the greater share."""

    kind: Literal["mixup"] = "mixup"
    alpha: float = Field(default=0.4, gt=0, description="Beta distribution")

    def changed(self, batch: Batch, partner: NDArray[np.int64], share: Array, _rng: np.random.Generator, /) -> Batch:
        """See ``mixup``."""
        return mixup(batch, partner, share)


class CutMix(BatchStep):
    """A rectangle of each image and mask comes from another; labels by area."""

    kind: Literal["cutmix"] = "cutmix"
    alpha: float = Field(default=1.0, gt=0, description="Beta distribution")

    def changed(self, batch: Batch, partner: NDArray[np.int64], share: Array, rng: np.random.Generator, /) -> Batch:
        """See ``cutmix``; the rectangle has the image's aspect, and its middle lies anywhere."""
        size = np.array([batch.images.shape[-1], batch.images.shape[-2]])
        half = np.sqrt(1 - share)[:, None] * size / 2
        middle = rng.uniform(0, size, (len(share), 2))
        holes = np.rint(np.concatenate([middle - half, middle + half], -1)).astype(np.int64)
        return cutmix(batch, partner, holes)
