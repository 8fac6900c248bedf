"""``Findings``: the schema of one result. ``docs/reference/findings.md`` explains it; other systems depend on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cspine.anatomy import LEVELS
from cspine.errors import StudyError

SCHEMA_VERSION = "1.0"

Probability = Annotated[float, Field(ge=0, le=1)]
LevelName = Literal["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
Point = tuple[float, float, float]


class _Model(BaseModel):
    # What cspine writes always holds every key, so the published schema says so.
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class Evidence(_Model):
    """One place that speaks for a fracture."""

    slice_index: int = Field(ge=0, description="index along z of the volume as opened (z grows to the head)")
    sop_instance_uid: str | None = Field(default=None, description="DICOM instance of that slice, when there is one")
    box_px: tuple[float, float, float, float] = Field(description="x_min, y_min, x_max, y_max in that slice, pixels")
    box_mm: tuple[float, float, float, float, float, float] = Field(
        description="x_min, y_min, z_min, x_max, y_max, z_max, LPS millimetres"
    )
    score: Probability


class LevelFinding(_Model):
    """What is said of one vertebra. A level that is not visible has no probability, type or evidence."""

    level: LevelName
    visible: bool
    visible_fraction: Probability = Field(description="share of the vertebra inside the scanned field")
    confidence: Probability = Field(description="how sure the level's name is: posterior of the ordered reading, 0..1")
    body_center_mm: Point | None = Field(
        description="LPS mm; C1: midline point of anterior arch and dens at arch height"
    )
    probability: Probability | None = Field(description="calibrated probability of a fracture")
    fracture: bool | None = Field(description="probability reaches the threshold in provenance.bundle")
    threshold: Probability | None = Field(default=None, description="threshold used for ``fracture``")
    type: str | None = Field(default=None, description="likely fracture type when ``fracture`` is true")
    type_confidence: Probability | None = None
    evidence: tuple[Evidence, ...] = ()
    not_judged: str | None = Field(default=None, description="why there is no probability")


class PatientFinding(_Model):
    """What is said of the patient, over the levels that were judged."""

    probability: Probability | None
    fracture: bool | None
    threshold: Probability | None = None


class WarningItem(_Model):
    """A stable code and one sentence without patient data."""

    code: str
    message: str


class InputProvenance(_Model):
    """The images that were read."""

    name: str
    kind: str
    sha256: str
    series_uid: str | None = None
    study_uid: str | None = None
    frame_of_reference_uid: str | None = None
    selection: str = ""
    shape: tuple[int, int, int] = Field(description="voxels z, y, x as opened")
    spacing_mm: Point = Field(description="x, y, z")
    affine: tuple[tuple[float, ...], ...] = Field(description="4x4, index (x, y, z, 1) to LPS mm")
    acquisition: dict[str, str | float] = Field(default_factory=dict)


class BundleProvenance(_Model):
    """The model that judged."""

    name: str
    version: str
    sha256: str
    trained_on: str
    runtime: str
    precision: str


class Provenance(_Model):
    """Everything needed to say how a result came about."""

    cspine: str
    created: str = Field(description="ISO 8601, UTC")
    input: InputProvenance | None
    bundle: BundleProvenance | None
    seconds: dict[str, float] = Field(default_factory=dict, description="time of each step")


class Findings(_Model):
    """One result: always seven levels, in order C1 to C7.

    ``status`` is ``ok`` (all seven levels judged), ``partial`` (some were not) or ``refused`` (nothing was judged;
    ``warnings`` says why).
    """

    schema_version: str = SCHEMA_VERSION
    status: Literal["ok", "partial", "refused"]
    patient: PatientFinding
    levels: tuple[LevelFinding, ...]
    warnings: tuple[WarningItem, ...] = ()
    provenance: Provenance
    notice: str = "Research use only. Not a diagnosis, not a medical device."

    @model_validator(mode="after")
    def _seven_in_order(self) -> Findings:
        if [item.level for item in self.levels] != [level.name for level in LEVELS]:
            raise ValueError("levels must be C1 to C7, each once, in order")
        for item in self.levels:
            if not item.visible and (item.probability is not None or item.evidence):
                raise ValueError(f"{item.level} is not visible and cannot carry a probability or evidence")
        return self

    def to_json(self) -> str:
        """The JSON text; non-finite numbers cannot occur."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "findings.json") -> Findings:
        """Parse and validate.

        Raises:
            StudyError: not JSON, or not this schema; names the first offending field.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "top level"
            raise StudyError(
                f"expected findings of schema {SCHEMA_VERSION}: {first['msg']} at {place}",
                where=where,
                fix="Write it again with cspine predict",
            ) from error

    @classmethod
    def load(cls, path: Path) -> Findings:
        """Read a findings.json file."""
        return cls.from_json(path.read_bytes(), where=path.name)
