"""Which of the image stacks in the input is the one to read, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cspine.errors import GeometryError, NotCtError, TooLargeError, UsageError
from cspine.studies import tags
from cspine.studies.geometry import (
    MIN_PLANES,
    ORIENTATION_TOLERANCE,
    PIXEL_SPACING_TOLERANCE,
)
from cspine.studies.header import coded
from cspine.studies.instances import Instance, Plane, planes_of

# Images in one input, each some 300 bytes of memory; a tiny file may claim a hundred thousand.
MAX_PLANES = 1_000_000
# Directions and pixel spacings in one series; images around an axis have some hundred.
MAX_DIRECTIONS = 512
# Reasons and series that a message names.
MAX_NAMED = 10

# Points of the score. They only order what one input holds; what is chosen and why is always reported.
COVERAGE_POINTS, COVERAGE_WANTED_MM = 4.0, 180.0
THINNESS_POINTS, THIN_MM, COARSE_MM = 4.0, 1.0, 5.0
BONE_KERNEL_POINTS = 1.5
AXIAL_POINTS = 1.5
NECK_POINTS = 1.0
DERIVED_POINTS = -1.0
COUNT_POINTS, COUNT_WANTED = 1.0, 200
NO_GEOMETRY_POINTS = -20.0
TOO_FEW_POINTS = -10.0

_LOCALIZERS = frozenset(("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM", "REF_SURVIEW"))
_PICTURES = frozenset(
    ("MIP", "MINIP", "VOLUME_RENDERED", "VRT", "SSD", "PROJECTION", "PROJECTION IMAGE", "SCREEN SAVE")
)
_NECK = re.compile(r"c-?\s?spine|cervic|neck|hals|hws|rachis|cspine|csp\b", re.IGNORECASE)
# Siemens B/H/I/Br/Hr/Qr… with a sharpness of 59 or more; GE BONE*, EDGE; Toshiba and Canon FC30..35, FC80..86; Philips.
_BONE = re.compile(r"bone|edge|sharp|^fc(3[0-5]|8[0-6])|^y[b-d]$|^[de]$|^[a-z]{1,2}(59|6\d|7\d|8\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Stack:
    """Planes of one series that share size, orientation, spacing and reconstruction."""

    series_uid: str
    planes: tuple[Plane, ...]
    refusal: str
    score: float
    axis: str
    coverage_mm: float
    spacing_mm: float
    bone_kernel: bool

    @property
    def first(self) -> Plane:
        """Any plane, for what all share."""
        return self.planes[0]

    def describe(self) -> str:
        """``300 axial slices 0.6 mm apart over 180 mm, bone kernel Br64``."""
        text = f"{len(self.planes)} {self.axis} slices"
        if self.spacing_mm:
            text += f" {self.spacing_mm:.2g} mm apart over {self.coverage_mm:.0f} mm"
        kernel = f"{'bone' if self.bone_kernel else 'kernel'} {self.first.kernel}".strip()
        return (
            f"{text}, {kernel if not self.bone_kernel else 'bone kernel ' + self.first.kernel}"
            if self.first.kernel
            else text
        )


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """One stack of images as a user sees it in a list.

    Attributes:
        series_uid: what ``series=`` takes; empty for anything but DICOM.
        readable: it can be opened as a CT volume.
        reason: why not, or empty.
        score: how well it fits; the highest is opened.
        description: slices, spacing, coverage, kernel, in words.
    """

    series_uid: str
    modality: str
    slices: int
    rows: int
    columns: int
    orientation: str
    spacing_mm: float
    coverage_mm: float
    kernel: str
    readable: bool
    reason: str
    score: float
    description: str


def stacks_of(instances: Iterable[Instance]) -> list[Stack]:
    """Group planes into stacks, best first; stacks that are no CT volume carry their refusal.

    Raises:
        DamagedFileError: numbers that are none; names file and tag.
        GeometryError: one series of more than ``MAX_DIRECTIONS`` directions.
        TooLargeError: more than ``MAX_PLANES`` images.
    """
    groups: dict[tuple[object, ...], list[list[Plane]]] = {}
    count = 0
    for instance in instances:
        count += instance.format.frames
        if count > MAX_PLANES:
            raise TooLargeError(
                f"expected at most {MAX_PLANES} images, got more", where=instance.file.name, fix="Give one study"
            )
        for plane in planes_of(instance):
            among = groups.setdefault(_key(plane), [])
            for planes in among:
                if (planes[0].orientation == plane.orientation and planes[0].spacing == plane.spacing) or _alike(
                    planes[0], plane
                ):
                    planes.append(plane)
                    break
            else:
                among.append([plane])
                if len(among) > MAX_DIRECTIONS:
                    raise GeometryError(
                        f"one series has more than {MAX_DIRECTIONS} directions or pixel spacings", where=plane.where
                    )
    alike = [planes for among in groups.values() for planes in among]
    stacks = [_judge(part) for planes in alike for part in _by_acquisition(planes)]
    return sorted(stacks, key=lambda s: (bool(s.refusal), -s.score, -len(s.planes), s.series_uid, s.first.where))


def choose(stacks: list[Stack], series: str | None) -> tuple[Stack, str]:
    """The stack to read and one sentence that says why.

    Raises:
        UsageError: ``series`` is not there.
        NotCtError: there is no CT volume among them.
    """
    among = stacks if series is None else [stack for stack in stacks if stack.series_uid == series]
    if not among:
        known = _listed({coded(stack.series_uid) for stack in stacks}, ", ") or "none"
        raise UsageError(f"series {series} is not in the input, which holds: {known}", fix="Copy a UID from the list")
    best = among[0]
    if best.refusal:
        reasons = _listed({stack.refusal for stack in among}, "; ")
        raise NotCtError(f"expected a CT volume, got {reasons}", where=best.first.instance.file.name)
    others = [stack for stack in among if stack is not best]
    if series is not None:
        return best, f"Series named by the user: {best.describe()}."
    if not others:
        return best, f"The only series: {best.describe()}."
    passed = Counter(stack.refusal or _why_not(stack, best) for stack in others)
    left = ", ".join(f"{count} {reason}" for reason, count in passed.items())
    return best, f"Best of {len(among)}: {best.describe()}. Passed over: {left}."


def _listed(words: set[str], between: str) -> str:
    """The words in order, not more than fit a message."""
    more = [f"{len(words) - MAX_NAMED} more"] if len(words) > MAX_NAMED else []
    return between.join(sorted(words)[:MAX_NAMED] + more)


def info(stack: Stack) -> SeriesInfo:
    """The public view of a stack."""
    fmt = stack.first.instance.format
    return SeriesInfo(
        series_uid=stack.series_uid,
        modality=stack.first.instance.modality,
        slices=len(stack.planes),
        rows=fmt.rows,
        columns=fmt.columns,
        orientation=stack.axis,
        spacing_mm=stack.spacing_mm,
        coverage_mm=stack.coverage_mm,
        kernel=stack.first.kernel,
        readable=not stack.refusal,
        reason=stack.refusal,
        score=round(stack.score, 2),
        description=stack.describe(),
    )


def _key(plane: Plane) -> tuple[object, ...]:
    """What planes must share exactly to be one stack."""
    fmt = plane.instance.format
    return (
        plane.instance.series_uid,
        plane.instance.header.text(tags.FRAME_OF_REFERENCE),
        fmt.rows,
        fmt.columns,
        fmt.allocated,
        plane.kernel,
        plane.orientation is None,
        plane.spacing is None,
        _refusal(plane),
    )


def _alike(one: Plane, other: Plane) -> bool:
    """Same direction and pixel spacing, as far as printed digits tell."""
    if one.orientation == other.orientation and one.spacing == other.spacing:
        return True
    pairs = zip(one.orientation or (), other.orientation or (), strict=True)
    if any(abs(a - b) > ORIENTATION_TOLERANCE for a, b in pairs):
        return False
    pairs = zip(one.spacing or (), other.spacing or (), strict=True)
    return all(abs(a - b) <= PIXEL_SPACING_TOLERANCE * abs(a) for a, b in pairs)


def _by_acquisition(planes: list[Plane]) -> list[list[Plane]]:
    """Split by acquisition only where planes share a place; else one scan in several steps stays one stack."""
    places = Counter(plane.position for plane in planes)
    if planes[0].position is None or max(places.values()) == 1:
        return [planes]
    parts: dict[str, list[Plane]] = {}
    for plane in planes:
        parts.setdefault(plane.acquisition, []).append(plane)
    doubled = any(max(Counter(p.position for p in part).values()) > 1 for part in parts.values())
    return [planes] if doubled or len(parts) == 1 else list(parts.values())


def _refusal(plane: Plane) -> str:
    """Why this is no CT volume, or empty."""
    instance = plane.instance
    words = set(plane.frame_type)
    if instance.modality and instance.modality != "CT":
        return f"images of modality {coded(instance.modality)}"
    if words & _LOCALIZERS:
        return "localizers"
    if instance.color:
        return "colour pictures"
    if instance.sop_class not in tags.CT_CLASSES and (instance.sop_class or not instance.modality):
        return "secondary captures" if ".1.1.7" in instance.sop_class else "images that are not said to be CT"
    if words & _PICTURES:
        return "projections"
    return ""


def _judge(planes: list[Plane]) -> Stack:
    first = planes[0]
    refusal = _refusal(first)
    score, axis, coverage, spacing = 0.0, "unplaced", 0.0, 0.0
    bone = bool(_BONE.search(first.kernel))
    if first.orientation is None or first.spacing is None or any(p.position is None for p in planes):
        score += NO_GEOMETRY_POINTS
    else:
        row, column = np.asarray(first.orientation).reshape(2, 3)
        normal = np.cross(row, column)
        axis = ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(normal)))]
        along = np.unique(np.round([np.dot(p.position or (0, 0, 0), normal) for p in planes], 2))
        coverage = float(along[-1] - along[0])
        spacing = float(np.median(np.diff(along))) if len(along) > 1 else 0.0
        score += COVERAGE_POINTS * min(coverage / COVERAGE_WANTED_MM, 1)
        thin = (COARSE_MM - max(spacing, first.thickness or 0.0)) / (COARSE_MM - THIN_MM)
        score += THINNESS_POINTS * min(max(thin, 0.0), 1.0)
        score += AXIAL_POINTS * (axis == "axial")
    score += TOO_FEW_POINTS * (len(planes) < MIN_PLANES)
    score += BONE_KERNEL_POINTS * bone
    score += COUNT_POINTS * min(len(planes) / COUNT_WANTED, 1)
    score += DERIVED_POINTS * ("DERIVED" in first.frame_type)
    top = first.instance.header
    words = (tags.BODY_PART, tags.SERIES_DESCRIPTION, tags.STUDY_DESCRIPTION)
    score += NECK_POINTS * any(_NECK.search(top.text(tag)) for tag in words)
    return Stack(first.instance.series_uid, tuple(planes), refusal, score, axis, coverage, spacing, bone)


def _why_not(stack: Stack, best: Stack) -> str:
    """The plainest difference to the one chosen."""
    if stack.axis == "unplaced":
        return "without position or orientation"
    if stack.series_uid == best.series_uid:
        return "of other size, direction or kernel in the same series"
    if len(stack.planes) < MIN_PLANES:
        return "with too few slices"
    if stack.axis != best.axis:
        return stack.axis
    if stack.spacing_mm > 1.2 * best.spacing_mm:
        return f"with slices {stack.spacing_mm:.2g} mm apart"
    if stack.coverage_mm < 0.9 * best.coverage_mm:
        return f"that covers {stack.coverage_mm:.0f} mm"
    if best.bone_kernel and not stack.bone_kernel:
        return "with a softer kernel"
    return "of lower score"
