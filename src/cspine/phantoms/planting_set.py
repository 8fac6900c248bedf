"""Many planted studies of one scan in a folder, in the files that phantoms are written in.

``<out>/truth/<name>.json`` is written last, as for phantoms: a study that has it is whole, and the same command goes
on after an interruption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cspine.cases import Case
from cspine.errors import StudyError, UsageError
from cspine.phantoms.cohort import SEEDS_PER_SET, TRUTH_FOLDER, Cohort
from cspine.phantoms.planting import planted_case, whole_vertebrae
from cspine.phantoms.planting_solid import Solid
from cspine.phantoms.write import writing
from cspine.volume import Volume

SETTINGS_FILE = "planted.json"
# What DICOM's 16 bits hold with the usual intercept.
_LOWEST_HU, _HIGHEST_HU = -1024, 30000

PlantedLayout = Literal["nifti", "dicom"]


@dataclass(frozen=True, slots=True)
class PlantedSet:
    """Planted studies to be made of one scan.

    Attributes:
        out: the folder.
        scan: name of the scan, part of the studies' names.
        layout: ``nifti`` or ``dicom``. (RSNA's tables need the truth of all seven levels, which few scans show.)
        seed: of the set; study k is ``planted_case(seed=seed * 100000 + k)``.
        rate: chance of a fracture of every vertebra.
    """

    out: Path
    scan: str
    layout: PlantedLayout = "nifti"
    seed: int = 0
    rate: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1 or self.seed < 0:
            raise UsageError(f"expected a rate in 0..1 and a seed of 0 or more, got {self.rate} and {self.seed}")

    def name_of(self, k: int) -> str:
        """Name of study ``k``."""
        return f"{self.scan}-planted-{self.seed * SEEDS_PER_SET + k:06d}"

    def begin(self) -> None:
        """Make the folder and note the settings.

        Raises:
            UsageError: the folder holds studies of other settings.
            OutputError: the folder cannot be written.
        """
        settings = {key: value for key, value in asdict(self).items() if key != "out"}
        note = self.out / SETTINGS_FILE
        if note.is_file():
            if _read(note) != settings:
                raise UsageError(
                    "the folder holds studies planted with other settings",
                    where=str(note),
                    fix="Choose another folder, or the same scan, layout, seed and rate",
                )
            return
        with writing(note) as partial:
            partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def missing(self, count: int) -> list[int]:
        """Which of the first ``count`` studies are not finished."""
        if not 1 <= count <= SEEDS_PER_SET:
            raise UsageError(f"expected 1 to {SEEDS_PER_SET} studies, got {count}", where="--count")
        return [k for k in range(count) if not (self.out / TRUTH_FOLDER / f"{self.name_of(k)}.json").is_file()]

    def make(self, k: int, volume: Volume, labels: Volume, solids: Mapping[int, Solid]) -> Case:
        """Plant and write study ``k``; its case.

        Args:
            k: number of the study.
            volume: see ``storable``.
            labels: of it.
            solids: see ``whole_vertebrae``.
        """
        seed = self.seed * SEEDS_PER_SET + k
        case = planted_case(volume, labels, seed=seed, rate=self.rate, name=self.name_of(k), solids=solids)
        self._cohort().write(case, seed)
        return case

    def finish(self) -> int:
        """Write the table of all finished studies; how many there are."""
        return self._cohort().finish()

    def _cohort(self) -> Cohort:
        return Cohort(self.out, self.layout, self.seed)


def storable(volume: Volume) -> Volume:
    """The scan with axes near left, back, head and int16 HU, as files hold them."""
    volume = volume.reoriented()
    hu = np.clip(np.rint(volume.hu), _LOWEST_HU, _HIGHEST_HU).astype(np.int16)
    return replace(volume, hu=np.ascontiguousarray(hu))


def usable_vertebrae(volume: Volume, labels: Volume) -> dict[int, Solid]:
    """``whole_vertebrae``, at least one.

    Raises:
        StudyError: none of the scan's vertebrae can be broken.
    """
    solids = whole_vertebrae(volume, labels)
    if not solids:
        raise StudyError(
            "no cervical vertebra is whole and recognised in this scan",
            where=volume.source.name,
            fix="Give better labels with --labels, or another scan",
        )
    return solids


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
