"""``PictureFindings``: the schema of what is said of single pictures. ``docs/reference/pictures.md`` explains it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cspine.anatomy import LEVELS, Level
from cspine.errors import CspineError, StudyError
from cspine.findings import BundleProvenance, LevelName, Probability, WarningItem
from cspine.inference.pictures import PictureAnswer
from cspine.reports.summary import text_cell
from cspine.studies.images import SliceImage

SCHEMA_VERSION: Literal["1.0"] = "1.0"
# Probabilities of pictures are not calibrated and no threshold is fitted to them: this is the middle.
THRESHOLD = 0.5
COLUMNS: tuple[str, ...] = (
    "picture", "status", "probability", "fracture", "threshold",
    *(f"{level.name}_{what}" for level in LEVELS for what in ("shown", "fracture")),
    "unit", "columns", "rows", "sha256", "reason",
)  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class PictureLevel(_Model):
    """What is said of one level in one picture; null what the bundle does not say."""

    level: LevelName
    shown: Probability | None = Field(description="that the picture shows this vertebra")
    fracture: Probability | None = Field(description="that it shows a fracture of this vertebra")


class PictureBox(_Model):
    """A box around a vertebra, by a detector."""

    level: LevelName
    fractured: bool | None = Field(description="null when the detector does not tell fractured ones apart")
    score: Probability
    box_px: tuple[float, float, float, float] = Field(description="x_min, y_min, x_max, y_max, pixels of the picture")


class PictureFinding(_Model):
    """What is said of one picture."""

    name: str = Field(description="path below the folder that was given, or the file's name")
    status: Literal["ok", "refused"] = Field(description="refused: it could not be opened, ``reason`` says why")
    sha256: str = ""
    unit: Literal["HU", "grey"] | None = None
    columns: int = 0
    rows: int = 0
    probability: Probability | None = Field(default=None, description="that it shows a fracture; not calibrated")
    fracture: bool | None = Field(default=None, description="``probability`` reaches ``threshold``")
    threshold: Probability | None = None
    strongest_px: tuple[float, float] | None = Field(
        default=None, description="x and y of the pixel that speaks most for a fracture"
    )
    levels: tuple[PictureLevel, ...] = Field(default=(), description="C1 to C7; empty when the bundle names none")
    boxes: tuple[PictureBox, ...] = ()
    warnings: tuple[WarningItem, ...] = ()
    reason: str | None = None


class PictureProvenance(_Model):
    """How the result came about."""

    cspine: str
    created: str = Field(description="ISO 8601, UTC")
    bundle: BundleProvenance


class PictureFindings(_Model):
    """The content of pictures.json: every picture that was given, in order."""

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    pictures: tuple[PictureFinding, ...]
    provenance: PictureProvenance
    notice: str = "Research use only. Not a diagnosis, not a medical device."

    def to_json(self) -> str:
        """The JSON text."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> PictureFindings:
        """Read a pictures.json file.

        Raises:
            StudyError: not JSON, or not this schema; names the first offending field.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            first = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
            place = ".".join(str(part) for part in first) or "top level"
            raise StudyError(
                f"expected findings of pictures, schema {SCHEMA_VERSION}, at {place}",
                where=path.name,
                fix="Write it again with cspine predict",
            ) from error


def finding_of(name: str, image: SliceImage, answer: PictureAnswer) -> PictureFinding:
    """What is written of a picture that was judged."""
    rows, columns = (int(count) for count in image.pixels.shape)
    fracture = None if answer.fracture is None else round(answer.fracture, 4)
    told = answer.visible is not None or answer.broken is not None
    return PictureFinding(
        name=name,
        status="ok",
        sha256=image.source.sha256,
        unit=image.unit,
        columns=columns,
        rows=rows,
        probability=fracture,
        fracture=None if fracture is None else fracture >= THRESHOLD,
        threshold=None if fracture is None else THRESHOLD,
        strongest_px=_strongest(answer),
        levels=tuple(_level(answer, level) for level in LEVELS) if told else (),
        boxes=_boxes(answer),
        warnings=tuple(WarningItem(code=item.code, message=item.message) for item in image.warnings),
    )


def refused_picture(name: str, error: CspineError) -> PictureFinding:
    """What is written of a picture that could not be opened."""
    reason = error.message if error.fix is None else f"{error.message}. {error.fix}"
    return PictureFinding(name=name, status="refused", reason=reason)


def _level(answer: PictureAnswer, level: Level) -> PictureLevel:
    shown, fracture = (
        None if values is None else round(float(values[level.index]), 4) for values in (answer.visible, answer.broken)
    )
    return PictureLevel(level=level.name, shown=shown, fracture=fracture)  # type: ignore[arg-type]


def _strongest(answer: PictureAnswer) -> tuple[float, float] | None:
    heat = answer.heat
    if heat is None or np.ptp(heat.values) == 0:
        return None
    row, column = np.unravel_index(int(heat.values.argmax()), heat.values.shape)
    x, y, _ = heat.affine @ (float(column), float(row), 1.0)
    return round(float(x), 1), round(float(y), 1)


def _boxes(answer: PictureAnswer) -> tuple[PictureBox, ...]:
    found = []
    for label, score, *corners in () if answer.boxes is None else answer.boxes.tolist():
        number = int(label) - 1
        found.append(
            PictureBox(
                level=LEVELS[number % len(LEVELS)].name,  # type: ignore[arg-type]
                fractured=None if answer.broken is None else number >= len(LEVELS),
                score=round(min(max(score, 0.0), 1.0), 4),
                box_px=(round(corners[0], 1), round(corners[1], 1), round(corners[2], 1), round(corners[3], 1)),
            )
        )
    return tuple(found)


def to_csv(pictures: Sequence[PictureFinding]) -> bytes:
    """One row a picture, UTF-8, header first, line feeds at the ends of lines."""
    stream = StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(_row(picture) for picture in pictures)
    return stream.getvalue().encode()


def _row(picture: PictureFinding) -> dict[str, str]:
    cells = {
        "picture": text_cell(picture.name),
        "status": picture.status,
        "probability": _number(picture.probability),
        "fracture": "" if picture.fracture is None else "yes" if picture.fracture else "no",
        "threshold": _number(picture.threshold),
        "unit": picture.unit or "",
        "sha256": picture.sha256,
        "reason": text_cell(picture.reason or ""),
    }
    if picture.status == "ok":
        cells |= {"columns": str(picture.columns), "rows": str(picture.rows)}
    for item in picture.levels:
        cells |= {f"{item.level}_shown": _number(item.shown), f"{item.level}_fracture": _number(item.fracture)}
    return cells


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
