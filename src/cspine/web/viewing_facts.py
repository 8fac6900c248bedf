"""``ViewFacts``: what the reading room knows of a judged CT, written once beside its pictures (``view.json``)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cspine.errors import StudyError

# Where a run keeps what the reading room shows, below its results; and the facts in it.
VIEW_FOLDER = "view"
FACTS_FILE = "view.json"

Point = tuple[float, float, float]
Plane = Literal["axial", "sagittal", "coronal"]
PLANES: tuple[Plane, ...] = ("axial", "sagittal", "coronal")
# Along which axis of ``[z, y, x]`` the pictures of a plane follow each other.
AXIS: dict[Plane, int] = {"axial": 0, "sagittal": 2, "coronal": 1}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ViewGrid(_Model):
    """The voxels that are shown: a crop of the CT along its own axes, perhaps coarser.

    Attributes:
        shape: voxels ``(z, y, x)``; axes run closest to head, back and left.
        spacing: millimetres along ``(x, y, z)``.
        affine: 4x4, index ``(x, y, z, 1)`` → LPS millimetres.
        first_slice: slice of the CT at which the first slice of the view begins.
        slices: slices of the CT in one of the view.
    """

    shape: tuple[int, int, int]
    spacing: Point
    affine: tuple[tuple[float, float, float, float], ...]
    first_slice: int
    slices: int

    def slice_of(self, source: int) -> int:
        """Slice of the view that shows a slice of the CT; the nearest when it lies outside."""
        return min(max((source - self.first_slice) // self.slices, 0), self.shape[0] - 1)

    def source_of(self, view: int) -> int:
        """Slice of the CT in the middle of a slice of the view."""
        return self.first_slice + view * self.slices + (self.slices - 1) // 2

    def count(self, plane: Plane) -> int:
        """How many pictures a plane has."""
        return self.shape[AXIS[plane]]


class ViewEvidence(_Model):
    """One place that speaks for a fracture.

    Attributes:
        level: ``C1`` … ``C7``.
        slice_index: of the CT as opened, from the feet.
        view_slice: of the view.
        at_mm: its middle, LPS.
        box_px: ``x_min, y_min, x_max, y_max`` in the slice of the CT, pixels.
        score: 0 to 1.
    """

    level: str
    slice_index: int
    view_slice: int
    at_mm: Point
    box_px: tuple[float, float, float, float]
    score: float


class ViewLevel(_Model):
    """Where a vertebra is.

    Attributes:
        level: ``C1`` … ``C7``.
        center_mm: middle of its body, LPS; None when it was not located.
        jump_mm: where its key leads: the strongest evidence, else the body; None when it is nowhere in the view.
        mesh: file of its surface, or None.
    """

    level: str
    center_mm: Point | None
    jump_mm: Point | None
    mesh: str | None


class SpineMark(_Model):
    """A level's place on the map, pixels of the map."""

    level: str
    x: float
    y: float
    label_x: float


class SpineMap(_Model):
    """The curved sagittal picture that shows the whole neck at once.

    Attributes:
        width, height: pixels of the marks' frame, whatever the file's own size.
        overlay: file of the outlines, or None.
    """

    file: str
    overlay: str | None
    width: int
    height: int
    alt: str
    marks: tuple[SpineMark, ...]


class ViewFacts(_Model):
    """Everything that the page must know before it draws.

    Attributes:
        source_shape: voxels ``(z, y, x)`` of the CT, axes closest to head, back and left.
        source_spacing: millimetres along ``(x, y, z)``.
        evidence: head to feet level by level, within a level from head to feet.
        neighbours: file of the surface of what lies below C7, or None.
        files: bytes of each file that browsers fetch.
    """

    version: Literal[1] = 1
    source_shape: tuple[int, int, int]
    source_spacing: Point
    grid: ViewGrid
    levels: tuple[ViewLevel, ...]
    evidence: tuple[ViewEvidence, ...]
    neighbours: str | None
    map: SpineMap | None
    files: dict[str, int]

    @classmethod
    def load(cls, folder: Path) -> ViewFacts | None:
        """The facts of a folder that ``prepare_view`` wrote; None when there are none.

        Raises:
            StudyError: they are of another version, or damaged.
        """
        try:
            text = (folder / FACTS_FILE).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise StudyError(
                "the pictures of this study were prepared by another version",
                where=FACTS_FILE,
                fix="Run the study again",
            ) from error
