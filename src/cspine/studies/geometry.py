"""How planes lie in space: order along the normal, gaps, tilt. Measures, then says what must be done, or refuses.

Nothing here is guessed: a plane without position, orientation or spacing ends the reading. DICOM PS3.3 C.7.6.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.errors import GeometryError, StudyWarning
from cspine.studies import tags
from cspine.studies.instances import Plane

# Direction cosines are printed with few digits; more than this is not a pair of perpendicular unit vectors.
COSINE_TOLERANCE = 2e-3
# Planes whose cosines differ by more belong to different stacks (0.1 degree).
ORIENTATION_TOLERANCE = 2e-3
# Pixel spacings, relative, that differ by more belong to different stacks.
PIXEL_SPACING_TOLERANCE = 1e-3
# Two planes closer than this lie at the same place.
DUPLICATE_MM = 0.01
# A plane may lie this share of the spacing off its regular place (positions are rounded, tables are not perfect) …
SPACING_TOLERANCE = 0.1
# … or this much, for very thin slices with positions printed to a tenth of a millimetre.
SPACING_TOLERANCE_MM = 0.06
# Between two planes further apart than this a vertebra can hide; such a gap is not bridged.
MAX_GAP_MM = 10.0
# At most this share of the slices may be filled in between neighbours.
MAX_FILLED_SHARE = 0.2
# Uneven slices may become at most this many times as many.
MAX_GROWTH = 2.0
# Beyond this the stack is coarser than the fractures looked for; read, with a warning.
THICK_SPACING_MM = 3.0
# In-plane drift of the slice origins below this many pixels over the whole stack is left as it is.
DRIFT_TOLERANCE_PX = 0.5
# Gantries tilt up to 30 degrees; more is a mistake in the file.
MAX_TILT_DEG = 31.0
# Two planes are the least that have a spacing; a volume to look through has three.
MIN_PLANES = 3
PIXEL_SPACING_MM = (0.02, 20.0)
# No scanner's table is longer than this from its origin (1 km); larger numbers leave no digits for millimetres.
MAX_POSITION_MM = 1e6


@dataclass(frozen=True, slots=True)
class Layout:
    """Where ``planes`` go in the volume.

    Attributes:
        planes: in order along the normal.
        slots: output slice of each plane; None when the planes are uneven and must be interpolated.
        count: output slices.
        step: mm between output slices along the normal.
        depths: mm of each plane along the normal, from the first.
        shifts: ``(n, 2)`` pixels (x, y) by which the content of each plane moves onto the common grid, or None.
        margin: pixels added before (x, y) and after (x, y) so that shifted content stays inside.
        affine: of the output grid, index (x, y, z) to LPS mm, z along the planes' order.
        warnings: what was done about it.
    """

    planes: tuple[Plane, ...]
    slots: tuple[int, ...] | None
    count: int
    step: float
    depths: NDArray[np.float64]
    shifts: NDArray[np.float64] | None
    margin: tuple[int, int, int, int]
    affine: NDArray[np.float64]
    warnings: tuple[StudyWarning, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels ``(z, y, x)`` of the output."""
        fmt = self.planes[0].instance.format
        left, top, right, bottom = self.margin
        return self.count, fmt.rows + top + bottom, fmt.columns + left + right


def require_geometry(plane: Plane) -> None:
    """Refuse a plane that does not say where it lies.

    Raises:
        GeometryError: position, orientation or spacing is absent or impossible; names the tag.
    """
    needed = (
        (tags.POSITION, plane.position),
        (tags.ORIENTATION, plane.orientation),
        (tags.PIXEL_SPACING, plane.spacing),
    )
    for tag, value in needed:
        if value is None:
            raise GeometryError(
                f"{tags.describe(tag)} is missing",
                where=plane.where,
                fix="Export the original axial series; geometry is never guessed",
            )
    if max(map(abs, plane.position or ())) > MAX_POSITION_MM:
        raise GeometryError(
            f"expected at most {MAX_POSITION_MM:.0f} mm in {tags.describe(tags.POSITION)}, got {plane.position}",
            where=plane.where,
        )
    row, column = np.asarray(plane.orientation).reshape(2, 3)
    crooked = (abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1), abs(row @ column))
    if max(crooked) > COSINE_TOLERANCE:
        raise GeometryError(
            f"expected two perpendicular unit vectors in {tags.describe(tags.ORIENTATION)}, got {plane.orientation}",
            where=plane.where,
        )
    low, high = PIXEL_SPACING_MM
    if not all(low <= value <= high for value in plane.spacing or ()):
        raise GeometryError(
            f"expected {low} to {high} mm in {tags.describe(tags.PIXEL_SPACING)}, got {plane.spacing}",
            where=plane.where,
        )


def lay_out(planes: list[Plane]) -> Layout:
    """Order the planes of one stack (same size, orientation and spacing, all with geometry, no two at one place).

    Raises:
        GeometryError: too few planes, gaps too long, a tilt too steep.
    """
    row, column, normal = _axes(planes)
    origins = np.asarray([plane.position for plane in planes], dtype=np.float64)
    along = origins @ normal
    order = np.argsort(along, kind="stable")
    planes, origins, along = [planes[k] for k in order], origins[order], along[order]
    if len(planes) < MIN_PLANES or along[-1] - along[0] < DUPLICATE_MM:
        raise GeometryError(
            f"expected at least {MIN_PLANES} slices at different places, got {len(planes)}",
            where=planes[0].where,
            fix="Give the folder of the whole series",
        )
    warnings: list[StudyWarning] = []
    slots, count, step = _spread(planes, along - along[0], warnings)
    y_mm, x_mm = planes[0].spacing or (0.0, 0.0)
    offsets = np.stack([(origins - origins[0]) @ row / x_mm, (origins - origins[0]) @ column / y_mm], axis=1)
    shifts = _drift(offsets, along, (x_mm, y_mm), warnings)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = row * x_mm, column * y_mm, origins[0]
    margin = (0, 0, 0, 0)
    if shifts is None:
        affine[:3, 2] = (origins[-1] - origins[0]) * (step / (along[-1] - along[0]))
    else:
        affine[:3, 2] = normal * step
        low = np.floor(np.minimum(shifts.min(axis=0), 0)).astype(int)
        high = np.ceil(np.maximum(shifts.max(axis=0), 0)).astype(int)
        margin = (-int(low[0]), -int(low[1]), int(high[0]), int(high[1]))
        affine[:3, 3] += affine[:3, 0] * low[0] + affine[:3, 1] * low[1]
    if step > THICK_SPACING_MM:
        warnings.append(
            StudyWarning("thick-slices", f"Slices lie {step:.1f} mm apart; fractures may fall between them.")
        )
    return Layout(tuple(planes), slots, count, step, along - along[0], shifts, margin, affine, tuple(warnings))


def _axes(planes: list[Plane]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit row, column and normal direction; exactly perpendicular, which printed cosines are not."""
    row, column = np.asarray(planes[0].orientation, dtype=np.float64).reshape(2, 3)
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return row, column, np.cross(row, column)


def _spread(
    planes: list[Plane], depths: NDArray[np.float64], warnings: list[StudyWarning]
) -> tuple[tuple[int, ...] | None, int, float]:
    """Output slice of each plane (None: interpolate), number of output slices, mm between them."""
    gaps = np.diff(depths)
    widest = int(np.argmax(gaps))
    if gaps[widest] > MAX_GAP_MM:
        raise GeometryError(
            f"{gaps[widest]:.1f} mm lie between two neighbouring slices, at most {MAX_GAP_MM:.0f} mm is bridged",
            where=f"{planes[widest].where} and {planes[widest + 1].where}",
            fix="Export the complete series",
        )
    slots = np.arange(len(planes))
    if _is_regular(slots, depths):
        return tuple(slots.tolist()), len(planes), depths[-1] / (len(planes) - 1)
    nominal = float(np.median(gaps))
    slots = np.concatenate([[0], np.cumsum(np.maximum(1, np.rint(gaps / nominal)).astype(int))])
    count = int(slots[-1]) + 1
    filled = count - len(planes)
    if _is_regular(slots, depths):
        if filled > MAX_FILLED_SHARE * count:
            raise GeometryError(
                f"{filled} of {count} slices are missing, at most {MAX_FILLED_SHARE:.0%} are filled in",
                where=planes[widest].where,
                fix="Export the complete series",
            )
        message = (
            f"{filled} of {count} slices are missing (widest gap {gaps[widest]:.1f} mm) and were filled in between "
            "their neighbours; a fracture there cannot be seen."
        )
        warnings.append(StudyWarning("filled-missing-slices", message))
        return tuple(slots.tolist()), count, depths[-1] / (count - 1)
    return None, *_even_out(planes, gaps, warnings)


def _even_out(
    planes: list[Plane], gaps: NDArray[np.float64], warnings: list[StudyWarning]
) -> tuple[int, float]:  # fmt: skip
    """Number of output slices and mm between them, for uneven ``gaps`` between the planes."""
    widest = int(np.argmax(gaps))
    step = float(gaps[gaps > np.median(gaps) / 2].min())
    count = int(np.floor(gaps.sum() / step + 1e-6)) + 1
    if count > MAX_GROWTH * len(planes):
        raise GeometryError(
            f"slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart, too uneven to be resampled",
            where=planes[widest].where,
            fix="Export the complete series",
        )
    message = (
        f"Slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart and were resampled to {step:.2f} mm; "
        "detail between the wider ones is interpolated."
    )
    warnings.append(StudyWarning("resampled-uneven-slices", message))
    return count, step


def _is_regular(slots: NDArray[np.int64], depths: NDArray[np.float64]) -> bool:
    """Whether ``depths`` is a straight line over ``slots`` within the tolerances."""
    step = depths[-1] / slots[-1]
    allowed = max(SPACING_TOLERANCE * step, SPACING_TOLERANCE_MM)
    return bool(np.abs(depths - slots * step).max() <= allowed)


def _drift(
    offsets: NDArray[np.float64],
    along: NDArray[np.float64],
    pixel_mm: tuple[float, float],
    warnings: list[StudyWarning],
) -> NDArray[np.float64] | None:
    """Pixels ``(x, y)`` each plane must move so that its origin lies on the normal through the first, or None."""
    if np.abs(offsets).max() <= DRIFT_TOLERANCE_PX:
        return None
    drift_mm = offsets[-1] * pixel_mm
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(drift_mm), along[-1] - along[0])))
    share = (along - along[0]) / (along[-1] - along[0])
    if np.abs(offsets * pixel_mm).max() > np.tan(np.radians(MAX_TILT_DEG)) * (along[-1] - along[0]):
        raise GeometryError(
            f"slice positions run {tilt:.0f} degrees off the slice normal, at most {MAX_TILT_DEG:.0f} is a gantry tilt",
            fix="Export the original axial series",
        )
    if np.abs(offsets - share[:, None] * offsets[-1]).max() <= 2 * DRIFT_TOLERANCE_PX:
        message = f"The gantry was tilted by {tilt:.1f} degrees; slices were shifted onto a straight grid."
        warnings.append(StudyWarning("corrected-gantry-tilt", message))
    else:
        message = "Slices do not lie straight above each other; they were shifted in plane onto a common grid."
        warnings.append(StudyWarning("shifted-slices", message))
    return offsets
