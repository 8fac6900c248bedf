"""Balancing a data set: fewer of the many, more of the few, or new ones between the few."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cspine.errors import UsageError
from cspine.imaging.arrays import Array
from cspine.imaging.extras import imbalanced_learn
from cspine.imaging.sample import Named

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows of a data set and the class of each.

    Attributes:
        rows: ``(n, ...)``: features, or row numbers of whatever is to be balanced.
        classes: ``(n,)`` whole numbers, 0 intact and 1 fractured, or any others.

    Raises:
        UsageError: not as many classes as rows, none at all, or classes that are not whole numbers.
    """

    rows: NDArray[Any]
    classes: NDArray[Any]

    def __post_init__(self) -> None:
        if self.classes.ndim != 1 or len(self.rows) != len(self.classes) or len(self.rows) == 0:
            raise UsageError(f"expected rows and a class for each, got {self.rows.shape} and {self.classes.shape}")
        if self.classes.dtype.kind not in "biu":
            raise UsageError(f"expected classes as whole numbers, got {self.classes.dtype}")

    def picked(self, which: Indices) -> Table:
        """The rows at these indices, with their classes."""
        return Table(self.rows[which], self.classes[which])


def under_sample(classes: Array, rng: np.random.Generator, ratio: float = 1.0) -> Indices:
    """Indices, ascending, that keep at most ``ratio`` (1 or more) times the smallest class of every class."""
    if ratio < 1:
        raise UsageError(f"expected a ratio of at least 1, got {ratio}")
    groups = _groups(classes)
    most = int(ratio * min(len(group) for group in groups))
    kept = [rng.choice(group, min(len(group), most), replace=False) for group in groups]
    return np.sort(np.concatenate(kept))


def over_sample(classes: Array, rng: np.random.Generator, ratio: float = 1.0) -> Indices:
    """Indices, ascending: all, and so many again that every class has at least ``ratio`` (0 to 1) of the largest."""
    if not 0 < ratio <= 1:
        raise UsageError(f"expected a ratio above 0 and at most 1, got {ratio}")
    groups = _groups(classes)
    least = int(np.ceil(ratio * max(len(group) for group in groups)))
    added = [rng.choice(group, max(least - len(group), 0)) for group in groups]
    return np.sort(np.concatenate([*groups, *added]))


def class_weights(classes: Array) -> NDArray[np.float64]:
    """A weight a row, mean 1, with which every class weighs the same: ``n / (classes * rows of the class)``.

    G. King and L. Zeng, Logistic regression in rare events data, 2001.
    """
    _, which, counts = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    return np.asarray(len(which) / (len(counts) * counts[which]), dtype=np.float64)


def weighted_sample(classes: Array, count: int, rng: np.random.Generator) -> Indices:
    """``count`` indices drawn with replacement by ``class_weights``: each class comes up equally often on average."""
    if count < 1:
        raise UsageError(f"expected a count of at least 1, got {count}")
    weights = class_weights(classes)
    return np.asarray(rng.choice(len(weights), count, p=weights / weights.sum()), dtype=np.int64)


def smote(table: Table, rng: np.random.Generator, neighbours: int = 5) -> Table:
    """New rows between each row of a small class and its nearest of that class, until all classes are as large.

    N. Chawla et al., SMOTE, JAIR 16, 2002; by imbalanced-learn. Given rows come first, unchanged.

    Args:
        table: rows ``(n, features)`` of finite real numbers.
        rng: source of chance.
        neighbours: how many nearest to choose from; fewer where a class has no more.

    Raises:
        UsageError: rows are no features, or a class has a single row or there is a single class.
        MissingExtraError: imbalanced-learn is not installed.
    """
    rows = np.asarray(table.rows)
    if rows.ndim != 2 or rows.dtype.kind != "f" or not np.isfinite(rows).all():
        raise UsageError(
            f"SMOTE needs finite features (n, features), got {rows.dtype} of shape {rows.shape}",
            fix="Compute features first, or use over-sample",
        )
    smallest = min(len(group) for group in _groups(table.classes))
    if smallest < 2 or len(np.unique(table.classes)) < 2:
        raise UsageError(
            f"SMOTE needs two classes with two rows each, the smallest has {smallest}", fix="Use over-sample"
        )
    sampler = imbalanced_learn("over_sampling").SMOTE(
        k_neighbors=min(neighbours, smallest - 1), random_state=int(rng.integers(2**31))
    )
    more, classes = sampler.fit_resample(rows, table.classes)
    return Table(np.asarray(more, rows.dtype), np.asarray(classes))


def _groups(classes: Array) -> list[Indices]:
    classes = np.asarray(classes)
    if classes.ndim != 1 or len(classes) == 0:
        raise UsageError(f"expected a class for each row, got shape {classes.shape}")
    return [np.flatnonzero(classes == value) for value in np.unique(classes)]


class BalanceStep(Named, ABC):
    """One way to balance a data set."""

    @abstractmethod
    def apply(self, table: Table, rng: np.random.Generator) -> Table:
        """The balanced table."""


class UnderSample(BalanceStep):
    """Drops rows at random until no class has more than `ratio` times the smallest."""

    kind: Literal["under-sample"] = "under-sample"
    ratio: float = Field(default=1.0, ge=1)

    def apply(self, table: Table, rng: np.random.Generator) -> Table:
        """See ``under_sample``."""
        return table.picked(under_sample(table.classes, rng, self.ratio))


class OverSample(BalanceStep):
    """Repeats rows at random until every class has at least `ratio` of the largest."""

    kind: Literal["over-sample"] = "over-sample"
    ratio: float = Field(default=1.0, gt=0, le=1)

    def apply(self, table: Table, rng: np.random.Generator) -> Table:
        """See ``over_sample``."""
        return table.picked(over_sample(table.classes, rng, self.ratio))


class WeightedSample(BalanceStep):
    """Draws rows with replacement so that classes come up equally often."""

    kind: Literal["weighted-sample"] = "weighted-sample"
    count: int | None = Field(default=None, ge=1, description="rows; none: as many as there are")

    def apply(self, table: Table, rng: np.random.Generator) -> Table:
        """See ``weighted_sample``."""
        return table.picked(weighted_sample(table.classes, self.count or len(table.classes), rng))


class Smote(BalanceStep):
    """New feature rows between those of the smaller classes, until all are as large."""

    kind: Literal["smote"] = "smote"
    neighbours: int = Field(default=5, ge=1)

    def apply(self, table: Table, rng: np.random.Generator) -> Table:
        """See ``smote``."""
        return smote(table, rng, self.neighbours)
