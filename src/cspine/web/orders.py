"""What the confined children are told, and what the one that recognises uploads answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cspine.node.child import Order

RECOGNISED_FILE = "recognised.json"
# What is written for every volume, and for DICOM also.
FORMATS = ("html", "pdf", "csv", "json")
DICOM_FORMATS = ("seg", "sr", "sc", "gsps", "dicom-pdf", "fhir")
# The folder among the results that the reading room shows; see ``viewing_files``.
VIEW_FOLDER = "view"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JudgeOrder(Order):
    """A study to judge.

    Attributes:
        kind: how its files are opened.
        series: SeriesInstanceUID to take; None for the best one.
        title: what results call the study.
        progress: file that says how far it is, see ``progress.Progress``.
    """

    kind: Literal["volume", "pictures"] = "volume"
    series: str | None = None
    title: str = ""
    progress: Path | None = None


class Received(_Model):
    """One file of an upload: where it lies, and what its owner calls it."""

    path: Path
    name: str


class IntakeOrder(Order):
    """An upload to recognise.

    Attributes:
        files: that have arrived.
        deidentify: take out what names somebody.
        pseudonym_key: file of the key that pseudonyms are made with.
        most_bytes: that may be written.
    """

    files: tuple[Received, ...]
    deidentify: bool = False
    pseudonym_key: Path
    most_bytes: int = Field(ge=0)


class Note(_Model):
    """Something the owner must know. ``name`` is a file as the owner calls it, or empty."""

    code: str
    message: str
    name: str = ""


class SeriesFound(_Model):
    """A stack of images of a study."""

    uid: str
    description: str
    readable: bool
    reason: str = ""
    slices: int = 0


class StudyFound(_Model):
    """One study of an upload; its files lie in the folder of its number.

    Attributes:
        patient_label: what its owner calls the patient, or a stand-in.
        facts: slices, rows, columns, spacing, coverage, thickness, kernel, maker, orientation, selection, files, bytes.
        notes: what its owner must know.
    """

    kind: Literal["volume", "pictures"]
    title: str
    patient_label: str = ""
    study_uid: str | None = None
    series_uid: str | None = None
    facts: dict[str, object] = Field(default_factory=dict)
    series: tuple[SeriesFound, ...] = ()
    notes: tuple[Note, ...] = ()


class Recognised(_Model):
    """What an upload holds.

    Attributes:
        studies: numbered in this order, see ``Store.adopt``.
        problems: what could not be taken, and why.
        patients: how many there are among DICOM studies.
        left_out: files that are no images, or none that are judged.
    """

    studies: tuple[StudyFound, ...] = ()
    problems: tuple[Note, ...] = ()
    patients: int = 0
    left_out: int = 0
