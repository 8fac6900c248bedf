"""The cases of a user's own labelled data set, as a ``running.CaseSet``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cspine.cases import Case
from cspine.errors import UsageError
from cspine.studies.labelled import LabelledStudies, open_labelled


@dataclass(frozen=True, slots=True)
class LabelledCases:
    """Some studies of a data set.

    Attributes:
        path: of the data set.
        names: of the studies.
        threads: to read one on; None for all.
    """

    path: Path
    names: tuple[str, ...]
    threads: int | None = None

    @property
    def count(self) -> int:
        """How many."""
        return len(self.names)

    def name(self, number: int) -> str:
        """Name of study ``number``."""
        return self.names[number]

    def case(self, number: int) -> Case:
        """Study ``number`` with its truth.

        Raises:
            StudyError: it cannot be used.
        """
        return opened(self.path).case(self.names[number], threads=self.threads)


@lru_cache(maxsize=2)
def opened(path: Path) -> LabelledStudies:
    """The data set of a folder; its tables are read once a process.

    Raises:
        CspineError: not a data set that is known.
    """
    return open_labelled(path)


def held_back_cases(path: Path, parts: Sequence[Sequence[str]] | None = None, fold: int = 0) -> LabelledCases:
    """The studies to score.

    Args:
        path: of the data set.
        parts: of a split; None for all studies.
        fold: the part that was held back.

    Raises:
        UsageError: no such fold, or none of its studies is in the data set.
    """
    data = opened(path)
    if parts is None:
        return LabelledCases(path, tuple(data.studies))
    if not 0 <= fold < len(parts):
        raise UsageError(f"expected a fold of 0 to {len(parts) - 1}, got {fold}", where="--fold")
    names = tuple(name for name in data.studies if name in set(parts[fold]))
    if not names:
        raise UsageError(
            f"none of the studies of fold {fold} is in the data set",
            where=str(path),
            fix="Give the --samples that were made from this --data",
        )
    return LabelledCases(path, names)
