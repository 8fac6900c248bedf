"""``open_labelled``: one door for every folder of studies with labels, and what all of them can be asked.

A study that cannot be used (a row without images, images without a row, a row that is there twice) never stops the
others: it is kept in ``faults`` with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cspine.cases import Case
from cspine.errors import CspineError, StudyWarning, UsageError
from cspine.studies.nifti_folder import NiftiFolder, is_nifti_folder
from cspine.studies.phantom_folder import PhantomFolder, is_phantom_folder
from cspine.studies.picture_folder import PictureFolder, is_picture_folder
from cspine.studies.rsna import IMAGES_FOLDER, RsnaFolder
from cspine.studies.rsna_tables import BOXES_FILE
from cspine.volume import Volume

Kind = Literal["rsna2022", "phantoms", "nifti", "pictures"]
KNOWN = (
    "the RSNA 2022 folder (train.csv and train_images); a folder of cspine phantom; NIfTI volumes with labels.csv; "
    "pictures with labels.csv, or in folders named fractured and normal"
)
# Files counted at most when an unknown folder is described.
_LOOKED_AT = 5000


@runtime_checkable
class LabelledStudies(Protocol):
    """Studies with labels, wherever they come from."""

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    @property
    def kind(self) -> Kind:
        """What sort of folder it is."""
        ...

    @property
    def studies(self) -> tuple[str, ...]:
        """Names of the studies that can be tried, in order; safe as names of folders."""
        ...

    @property
    def patients(self) -> Mapping[str, str]:
        """Whose study it is, where known; any other is a patient's only one. Values group, and are never shown."""
        ...

    @property
    def held_back(self) -> frozenset[str]:
        """Studies that the data set itself keeps for validation or test."""
        ...

    @property
    def faults(self) -> Mapping[str, CspineError]:
        """What is wrong with single studies that are therefore not in ``studies``, by name."""
        ...

    @property
    def warnings(self) -> tuple[StudyWarning, ...]:
        """What a reader of the labels must know."""
        ...

    def labels(self) -> dict[str, tuple[bool, ...]]:
        """For each study whether C1 to C7 are fractured, and whether any is; False also where unknown."""
        ...

    def files(self, name: str, /) -> tuple[Path, ...]:
        """The files of a study's images."""
        ...

    def case(self, name: str, /, *, threads: int | None = None) -> Case:
        """A study with what is known of it.

        Raises:
            CspineError: it cannot be used.
        """
        ...

    def vertebrae(self, name: str, volume: Volume, /) -> NDArray[np.uint8] | None:
        """The study's mask on the grid of its volume with thoracic vertebrae told apart (8..19); None without one."""
        ...


def _resembles_rsna(path: Path) -> bool:
    """Whether a folder has any part that only RSNA 2022 has, so that what is missing of it can be named."""
    return (path / IMAGES_FOLDER).is_dir() or (path / BOXES_FILE).is_file()


_LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path], LabelledStudies]], ...] = (
    (_resembles_rsna, RsnaFolder.open),
    (is_phantom_folder, PhantomFolder.open),
    (is_nifti_folder, NiftiFolder.open),
    (is_picture_folder, PictureFolder.open),
)


def is_labelled(path: Path) -> bool:
    """Whether a folder looks like one that ``open_labelled`` reads."""
    return path.is_dir() and any(looks_so(path) for looks_so, _ in _LAYOUTS)


def open_labelled(path: str | Path) -> LabelledStudies:
    """The labelled studies in a folder, whatever its layout; no image is opened.

    Args:
        path: one of ``KNOWN``.

    Raises:
        UsageError: no such folder, of no layout that is known, or a table without a column that is needed.
        DamagedFileError: a table cannot be read.
        NoImagesError: no study of it has images.
    """
    path = Path(path)
    if not path.is_dir():
        raise UsageError("there is no such folder", where=str(path), fix="Name a folder of labelled studies")
    for looks_so, opened in _LAYOUTS:
        if looks_so(path):
            return opened(path)
    raise UsageError(
        f"expected labelled studies, found {_contents(path)}", where=str(path), fix=f"Layouts that are read: {KNOWN}"
    )


def _contents(path: Path) -> str:
    """What lies in a folder, in a few words."""
    kinds: Counter[str] = Counter()
    for number, item in enumerate(path.rglob("*")):
        if number >= _LOOKED_AT:
            break
        if item.is_file():
            kinds[".nii.gz" if item.name.endswith(".nii.gz") else item.suffix or "no ending"] += 1
    if not kinds:
        return "no files"
    return ", ".join(f"{count} {ending}" for ending, count in kinds.most_common(4))
