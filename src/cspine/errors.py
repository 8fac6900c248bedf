"""The errors a user can meet, and the warnings that travel with a result.

Every error says what was expected, what was found, where, and what to do. ``exit_code`` is what the
command line returns when the error ends it; the codes are part of the documented interface.
"""

from __future__ import annotations

from dataclasses import dataclass


class CspineError(Exception):
    """Base of all errors that cspine raises on purpose.

    Args:
        message: what was expected and what was found.
        where: the file, tag or field, when there is one. Never a patient name or identifier.
        fix: what the user can do about it.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.message = message
        self.where = where
        self.fix = fix
        text = message if where is None else f"{message} ({where})"
        super().__init__(text if fix is None else f"{text}. {fix}")


class UsageError(CspineError):
    """The request itself makes no sense: an unknown option value, a missing folder, contradictory flags."""

    code = "usage"
    exit_code = 2


class ShapeError(UsageError):
    """A mesh or mask cannot serve as a vertebra: open, of another unit, turned, or like no vertebra of its level."""

    code = "shape"


class StudyError(CspineError):
    """The input cannot be opened as a CT study. Subclasses say why."""

    code = "study"
    exit_code = 3


class NoImagesError(StudyError):
    """Nothing in the input is an image that cspine reads."""

    code = "no-images"


class NotCtError(StudyError):
    """Images are there, but not a CT volume: another modality, a localizer, a derived picture."""

    code = "not-ct"


class DamagedFileError(StudyError):
    """A file is truncated, nested too deep, claims impossible sizes, or cannot be decoded."""

    code = "damaged-file"


class GeometryError(StudyError):
    """Positions, orientation or spacing are absent, contradictory or beyond what may be resampled."""

    code = "geometry"


class IntensityError(StudyError):
    """Values are not Hounsfield units and nothing in the file says how to make them so."""

    code = "intensity"


class TooLargeError(StudyError):
    """Decoding would need more memory, or inflate to more bytes, than is allowed."""

    code = "too-large"


class UnsafeArchiveError(StudyError):
    """An archive has entries that leave its folder, or that explode when unpacked."""

    code = "unsafe-archive"


class BundleError(CspineError):
    """A model bundle is missing, incomplete, of an unknown version, or its digests do not match."""

    code = "bundle"
    exit_code = 4


class OutputError(CspineError):
    """A result cannot be written: read-only folder, full disk, a file in the way."""

    code = "output"
    exit_code = 5


class MissingExtraError(CspineError):
    """The command needs an optional part that is not installed; ``fix`` holds the pip command."""

    code = "missing-extra"
    exit_code = 6


class RecipeError(CspineError):
    """A recipe or settings file is invalid; ``where`` names the offending key."""

    code = "recipe"
    exit_code = 7


class BatchError(CspineError):
    """Some studies of a batch were refused or failed; the others are done."""

    code = "batch"
    exit_code = 8


@dataclass(frozen=True, slots=True)
class StudyWarning:
    """Something the reader of a result must know, though the work went on.

    Attributes:
        code: stable, machine-readable, kebab-case (``resampled-uneven-slices``).
        message: one sentence for a person, without patient data.
    """

    code: str
    message: str
