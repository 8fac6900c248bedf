"""The competition's answer file: one probability a vertebra and patient, whatever could be judged.

RSNA 2022 wants a number for every row. What was not judged gets the base rate, the share of the 2019 published
training studies in which that level, or any, is fractured.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cspine.anatomy import LEVELS, Level
from cspine.errors import DamagedFileError, NoImagesError, UsageError
from cspine.findings import Findings
from cspine.studies.rsna_tables import is_uid

STUDIES = 2019
_FRACTURED = dict(zip(LEVELS, (146, 285, 73, 108, 162, 277, 393), strict=True))
BASE_RATES: Mapping[Level, float] = MappingProxyType({level: n / STUDIES for level, n in _FRACTURED.items()})
OVERALL_RATE = 961 / STUDIES
IMAGE_FOLDERS = ("test_images", "train_images")
TEST_TABLE, OVERALL = "test.csv", "patient_overall"
KINDS = (*(level.name for level in LEVELS), OVERALL)


@dataclass(frozen=True, slots=True)
class TestFolder:
    """A folder of studies to be answered.

    Attributes:
        images: folder with one folder a study.
        rows: row name, study and kind (``C1`` … ``patient_overall``) in the order in which they are wanted.
    """

    # The word is the competition's; pytest must not take it for a test.
    __test__ = False

    images: Path
    rows: tuple[tuple[str, str, str], ...]

    @property
    def studies(self) -> tuple[str, ...]:
        """Each study once, in order."""
        return tuple(dict.fromkeys(study for _, study, _ in self.rows))


def open_test_folder(path: Path) -> TestFolder:
    """Which rows are wanted: those of ``test.csv``, or all eight of every study that has a folder.

    Raises:
        UsageError: no such folder, or not in the layout of RSNA 2022.
        DamagedFileError: ``test.csv`` is not as published.
        NoImagesError: there is no study.
    """
    if not path.is_dir():
        raise UsageError("there is no such folder", where=str(path))
    images = next((path / name for name in IMAGE_FOLDERS if (path / name).is_dir()), None)
    if images is None:
        raise UsageError(
            f"expected {' or '.join(IMAGE_FOLDERS)} in a folder of RSNA 2022 data",
            where=str(path),
            fix="Name the folder that holds test_images, with one folder of DICOM files a study",
        )
    if (path / TEST_TABLE).is_file():
        rows = _table_rows(path / TEST_TABLE)
    else:
        found = sorted(item.name for item in images.iterdir() if item.is_dir() and is_uid(item.name))
        rows = tuple((f"{study}_{kind}", study, kind) for study in found for kind in KINDS)
    if not rows:
        raise NoImagesError("no study to be answered", where=str(path), fix="Unpack the images there")
    return TestFolder(images, rows)


def _table_rows(path: Path) -> tuple[tuple[str, str, str], ...]:
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            for line, cells in enumerate(csv.DictReader(stream), start=2):
                study, kind = (
                    (cells.get("StudyInstanceUID") or "").strip(),
                    (cells.get("prediction_type") or "").strip(),
                )
                if not is_uid(study) or kind not in KINDS:
                    raise DamagedFileError(
                        f"expected a UID and one of {', '.join(KINDS)}", where=f"{path.name}, row {line}"
                    )
                rows.append((f"{study}_{kind}", study, kind))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DamagedFileError(f"the table cannot be read: {error}", where=path.name) from error
    return tuple(dict.fromkeys(rows))


def answers_of(findings: Findings | None) -> dict[str, float]:
    """Probability of every kind of row; base rates where nothing was judged, or without findings.

    Args:
        findings: None for a study that could not be read.
    """
    out = {level.name: rate for level, rate in BASE_RATES.items()} | {OVERALL: OVERALL_RATE}
    if findings is None:
        return out
    for item in findings.levels:
        if item.probability is not None:
            out[item.level] = item.probability
    if findings.patient.probability is not None:
        out[OVERALL] = findings.patient.probability
    return out


def submission_csv(rows: Sequence[tuple[str, str, str]], answers: Mapping[str, Mapping[str, float]]) -> str:
    """The file: ``row_id`` and ``fractured``.

    Args:
        rows: of ``TestFolder``.
        answers: of ``answers_of`` by study; a study without gets base rates.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("row_id", "fractured"))
    nothing = answers_of(None)
    for name, study, kind in rows:
        table.writerow((name, f"{answers.get(study, nothing)[kind]:.6g}"))
    return text.getvalue()
