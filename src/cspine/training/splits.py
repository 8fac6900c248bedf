"""Which studies are held back: drawn once, by patient and even in the labels, then kept in ``splits.json``.

Drawn by iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011): the rarest label that is left is shared
out first, each time to the part that wants it most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine.errors import UsageError
from cspine.reports.atomic import write_file

SPLITS_FILE = "splits.json"
FORMAT = 1
DEFAULT_FOLDS = 5
_FIX = (
    "Take another folder for the samples, or remove splits.json to draw new splits; networks trained with the old "
    "ones must then not be measured on the new"
)


@dataclass(frozen=True)
class Splits:
    """Parts of a data set that no patient straddles.

    Attributes:
        parts: names of the studies of each part, in order; part ``k`` is what fold ``k`` holds back.
        seed: of the draw.
    """

    parts: tuple[tuple[str, ...], ...]
    seed: int = 0

    @cached_property
    def part_of(self) -> dict[str, int]:
        """The part of each study."""
        return {name: number for number, part in enumerate(self.parts) for name in part}

    def held_back(self, name: str, fold: int = 0) -> bool:
        """Whether a study is for validation when ``fold`` is held back.

        Raises:
            UsageError: no such study or fold.
        """
        if not 0 <= fold < len(self.parts):
            raise UsageError(f"expected a fold of 0 to {len(self.parts) - 1}, got {fold}", where=SPLITS_FILE)
        if name not in self.part_of:
            raise UsageError(f"a sample is of no study in the splits: {name}", where=SPLITS_FILE, fix=_FIX)
        return self.part_of[name] == fold


def draw_splits(
    labels: Mapping[str, Sequence[bool]],
    shares: Sequence[float],
    seed: int = 0,
    *,
    patients: Mapping[str, str] | None = None,
) -> Splits:
    """Share out studies; the same arguments give the same parts.

    Args:
        labels: what is true of each study, one flag a label.
        shares: of the parts; k equal ones for k folds, (0.2, 0.8) to hold back a fifth.
        seed: decides between equals.
        patients: whose study it is, where patients have several; by default each study is a patient's only one.

    Raises:
        UsageError: fewer than two parts, or more parts than patients.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(labels):
        groups.setdefault(name if patients is None else patients[name], []).append(name)
    if len(shares) < 2 or min(shares) <= 0 or len(groups) < len(shares):
        raise UsageError(
            f"cannot share {len(groups)} patients out to {len(shares)} parts", fix="Ask for 2 folds or more, but fewer"
        )
    keys = sorted(groups)
    truth = np.array([np.any([labels[name] for name in groups[key]], axis=0) for key in keys], dtype=bool)
    part = _stratified(truth.reshape(len(keys), -1), np.asarray(shares, dtype=float), np.random.default_rng(seed))
    parts = [
        [name for key, own in zip(keys, part, strict=True) if own == k for name in groups[key]]
        for k in range(len(shares))
    ]
    return Splits(tuple(tuple(sorted(names)) for names in parts), seed)


def _stratified(truth: NDArray[np.bool_], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.intp]:
    """Part of each row of ``truth`` ``[n, labels]``; algorithm 1 of Sechidis et al. (2011)."""
    shares = shares / shares.sum()
    wanted = shares * len(truth)
    wanted_of = shares[:, None] * truth.sum(axis=0)
    part = np.full(len(truth), -1, dtype=np.intp)

    def give(row: int, desire: NDArray[np.float64]) -> None:
        # Where parts want the label alike: what else the row has (an addition to the paper), then size, then chance.
        best = np.lexsort((rng.random(len(shares)), wanted, wanted_of[:, truth[row]].sum(axis=1), desire))[-1]
        part[row] = best
        wanted[best] -= 1
        wanted_of[best] -= truth[row]

    while (left := truth[part < 0].sum(axis=0)).any():
        label = int(np.where(left > 0, left, len(truth) + 1).argmin())
        for row in rng.permutation(np.flatnonzero((part < 0) & truth[:, label])):
            give(int(row), wanted_of[:, label].copy())
    for row in rng.permutation(np.flatnonzero(part < 0)):
        give(int(row), wanted.copy())
    return part


def settled_splits(
    folder: Path, labels: Mapping[str, Sequence[bool]], *, folds: int | None = None, seed: int = 0
) -> Splits:
    """The splits of a folder of samples: those in its file, else new ones, which are then written.

    Args:
        folder: of the samples.
        labels: as in ``draw_splits``.
        folds: how many; None takes what the file has, or ``DEFAULT_FOLDS``.
        seed: of new ones.

    Raises:
        UsageError: the file is of other studies or of another number of folds.
        OutputError: it cannot be written.
    """
    known = read_splits(folder)
    if known is None:
        count = folds or DEFAULT_FOLDS
        drawn = draw_splits(labels, [1 / count] * count, seed)
        write_splits(drawn, folder)
        return drawn
    more, fewer = labels.keys() - known.part_of.keys(), known.part_of.keys() - labels.keys()
    if more or fewer:
        raise UsageError(
            f"the splits are of other studies: {len(more)} are new and {len(fewer)} are gone",
            where=str(folder / SPLITS_FILE),
            fix=_FIX,
        )
    if folds is not None and folds != len(known.parts):
        raise UsageError(
            f"the studies are split in {len(known.parts)}, not in {folds}", where=str(folder / SPLITS_FILE), fix=_FIX
        )
    return known


def write_splits(splits: Splits, folder: Path) -> None:
    """Write ``splits.json``, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps({"format": FORMAT, "seed": splits.seed, "parts": splits.parts}, indent=1)
    write_file(folder / SPLITS_FILE, (text + "\n").encode())


def read_splits(folder: Path) -> Splits | None:
    """The splits of a folder of samples; None when it has none.

    Raises:
        UsageError: the file is not one that ``write_splits`` wrote.
    """
    path = folder / SPLITS_FILE
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return None
    return _parsed(path, stamp)


@lru_cache(maxsize=8)
def _parsed(path: Path, _: int) -> Splits:
    """Read once for each version of the file: training looks often."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        parts = tuple(tuple(str(name) for name in part) for part in content["parts"])
        names = [name for part in parts for name in part]
        if len(parts) < 2 or len(set(names)) != len(names):
            raise ValueError("studies in two parts")
        return Splits(parts, int(content["seed"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the splits cannot be read: {error}", where=str(path), fix=_FIX) from error
