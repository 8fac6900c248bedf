"""Which studies are held back: drawn once, by patient and even in the labels, then kept in ``splits.json``.

Drawn by iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011): the rarest label that is left is shared
out first, each time to the part that wants it most. There are k folds, each of which may be held back; or one part is
held back, by a ratio or because the data set itself says so.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cspine.errors import UsageError
from cspine.reports.atomic import write_file

Kind = Literal["folds", "ratio", "given"]

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
        kind: ``folds``; ``ratio`` or ``given`` when the first of two parts is held back and never the other.
        ratio: with ``ratio``, the share of patients that is trained on.
    """

    parts: tuple[tuple[str, ...], ...]
    seed: int = 0
    kind: Kind = "folds"
    ratio: float | None = None

    @property
    def folds(self) -> int:
        """How many parts may be held back."""
        return len(self.parts) if self.kind == "folds" else 1

    def __str__(self) -> str:
        """How the studies are split, in words."""
        if self.kind == "folds":
            return f"in {len(self.parts)}"
        return f"by the ratio {self.ratio:g}" if self.kind == "ratio" else "as the data set says"

    @cached_property
    def part_of(self) -> dict[str, int]:
        """The part of each study."""
        return {name: number for number, part in enumerate(self.parts) for name in part}

    def require(self, folds: int | None = None, ratio: float | None = None, *, where: str = SPLITS_FILE) -> None:
        """Check that these are the splits that are wanted; None wants nothing.

        Raises:
            UsageError: they are others.
        """
        if folds is not None and (self.kind, len(self.parts)) != ("folds", folds):
            raise UsageError(f"the studies are split {self}, not in {folds}", where=where, fix=_FIX)
        if ratio is not None and (self.kind != "ratio" or abs((self.ratio or 0.0) - ratio) > 1e-6):
            raise UsageError(f"the studies are split {self}, not by the ratio {ratio:g}", where=where, fix=_FIX)

    def held_back(self, name: str, fold: int = 0) -> bool:
        """Whether a study is for validation when ``fold`` is held back.

        Raises:
            UsageError: no such study or fold.
        """
        if not 0 <= fold < self.folds:
            raise UsageError(f"expected a fold of 0 to {self.folds - 1}, got {fold}", where=SPLITS_FILE)
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
    folder: Path,
    labels: Mapping[str, Sequence[bool]],
    *,
    folds: int | None = None,
    ratio: float | None = None,
    seed: int = 0,
    patients: Mapping[str, str] | None = None,
    held_back: Collection[str] = (),
) -> Splits:
    """The splits of a folder of samples: those in its file, else new ones, which are then written.

    New ones have ``folds`` parts, or hold back one part by ``ratio``, or the studies ``held_back``, or else are
    ``DEFAULT_FOLDS`` parts.

    Args:
        folder: of the samples.
        labels: as in ``draw_splits``.
        folds: how many; None takes what the file has.
        ratio: share of the patients to train on, 0..1; None takes what the file has.
        seed: of new ones.
        patients: whose study it is, where that is known.
        held_back: studies that the data set itself keeps for validation or test.

    Raises:
        UsageError: folds and a ratio are asked for at once, or the file is of other studies or split otherwise.
        OutputError: it cannot be written.
    """
    if folds is not None and ratio is not None:
        raise UsageError("folds and a ratio are two ways to split", fix="Give --folds or --ratio, not both")
    if ratio is not None and not 0 < ratio < 1:
        raise UsageError(f"expected a ratio between 0 and 1, got {ratio:g}", where="--ratio")
    known = read_splits(folder)
    if known is None:
        drawn = _new_splits(labels, folds, ratio, seed, patients or {}, held_back)
        write_splits(drawn, folder)
        return drawn
    more, fewer = labels.keys() - known.part_of.keys(), known.part_of.keys() - labels.keys()
    if more or fewer:
        raise UsageError(
            f"the splits are of other studies: {len(more)} are new and {len(fewer)} are gone",
            where=str(folder / SPLITS_FILE),
            fix=_FIX,
        )
    known.require(folds, ratio, where=str(folder / SPLITS_FILE))
    return known


def _new_splits(
    labels: Mapping[str, Sequence[bool]],
    folds: int | None,
    ratio: float | None,
    seed: int,
    patients: Mapping[str, str],
    held_back: Collection[str],
) -> Splits:
    # Whoever is not known to be somebody's is his own patient.
    whose = {name: patients.get(name, f"only {name}") for name in labels}
    if ratio is not None:
        parts = draw_splits(labels, (1 - ratio, ratio), seed, patients=whose).parts
        return Splits(parts, seed, "ratio", ratio)
    kept = sorted(set(labels) & set(held_back))
    if folds is None and kept and len(kept) < len(labels):
        return Splits((tuple(kept), tuple(sorted(set(labels) - set(kept)))), seed, "given")
    count = folds or DEFAULT_FOLDS
    return draw_splits(labels, [1 / count] * count, seed, patients=whose)


def parsed_ratio(text: str) -> float:
    """The share to train on that ``0.8``, ``80:20`` or ``80/20`` means.

    Raises:
        UsageError: something else.
    """
    try:
        first, *rest = (float(part) for part in text.replace("/", ":").split(":"))
        share = first / (first + rest[0]) if rest else first
        if len(rest) > 1 or not 0 < share < 1:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"expected a ratio like 0.8 or 80:20, got {text!r}", where="--ratio", fix="Give the share to train on first"
        ) from None
    return share


def write_splits(splits: Splits, folder: Path) -> None:
    """Write ``splits.json``, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    content: dict[str, object] = {"format": FORMAT, "seed": splits.seed, "kind": splits.kind}
    if splits.ratio is not None:
        content["ratio"] = splits.ratio
    text = json.dumps({**content, "parts": splits.parts}, indent=1)
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
        # Files from before there were ratios do not say what kind they are.
        kind, ratio = content.get("kind", "folds"), content.get("ratio")
        if kind not in get_args(Kind) or (kind != "folds" and len(parts) != 2):
            raise ValueError(f"kind {kind}")
        return Splits(parts, int(content["seed"]), kind, None if ratio is None else float(ratio))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the splits cannot be read: {error}", where=str(path), fix=_FIX) from error
