"""``Volume``: a CT in Hounsfield units together with where it lies in the patient.

Arrays are ``[z, y, x]``. The affine maps a voxel index ``(x, y, z, 1)`` to LPS millimetres, DICOM's patient
frame: +x to the patient's left, +y to the back, +z to the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cspine.errors import GeometryError, StudyWarning

if TYPE_CHECKING:
    import SimpleITK

Array = NDArray[Any]
Affine = NDArray[np.float64]

AIR_HU = -1024
# Below this determinant of the unit axes a grid is so sheared that it is no usable frame.
MIN_AXES_DETERMINANT = 0.5


@dataclass(frozen=True, slots=True)
class Source:
    """Where a volume came from; what a report may say about it. Holds no patient name or identifier.

    Attributes:
        kind: what was opened.
        name: file or folder name without its ending, used to name results.
        sha256: digest over the bytes of all files used, in slice order; empty for generated volumes.
        series_uid: DICOM SeriesInstanceUID, or None.
        study_uid: DICOM StudyInstanceUID, or None.
        frame_of_reference_uid: DICOM FrameOfReferenceUID, or None.
        sop_instance_uids: the instance of each slice along z (empty when slices were resampled or not DICOM).
        files: the files used, relative to what was opened, in slice order along z.
        selection: why this series was chosen, one sentence.
        acquisition: facts that matter to a reader: kernel, thickness, manufacturer, kvp, patient position …
    """

    kind: Literal["dicom", "nifti", "image", "phantom", "array"]
    name: str = ""
    sha256: str = ""
    series_uid: str | None = None
    study_uid: str | None = None
    frame_of_reference_uid: str | None = None
    sop_instance_uids: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    selection: str = ""
    acquisition: dict[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Volume:
    """A CT volume.

    Attributes:
        hu: array ``[z, y, x]`` of Hounsfield units, int16 or float32.
        affine: 4x4 float64, index ``(x, y, z, 1)`` → LPS millimetres.
        source: where it came from.
        warnings: what the reader must know about how it was opened.

    Raises:
        GeometryError: the array is not 3D, or the affine is not a finite, invertible 4x4 matrix.
    """

    hu: Array
    affine: Affine
    source: Source = field(default_factory=lambda: Source(kind="array"))
    warnings: tuple[StudyWarning, ...] = ()

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or 0 in self.hu.shape:
            raise GeometryError(f"a volume needs a non-empty 3D array [z, y, x], got shape {self.hu.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.allclose(affine[3], (0, 0, 0, 1)):
            raise GeometryError("a volume needs a finite 4x4 affine with last row 0 0 0 1")
        axes = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
        if abs(np.linalg.det(axes)) < MIN_AXES_DETERMINANT:
            raise GeometryError("the three axes of the volume are not independent")
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along ``(z, y, x)``."""
        z, y, x = self.hu.shape
        return z, y, x

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxel centres along ``(x, y, z)``."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_volume(self) -> float:
        """Cubic millimetres of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_world(self, index_xyz: Array | Sequence[float]) -> NDArray[np.float64]:
        """LPS millimetres of voxel indices; shape ``(..., 3)`` in ``(x, y, z)`` order, in and out."""
        points = np.asarray(index_xyz, dtype=np.float64)
        return np.asarray(points @ self.affine[:3, :3].T + self.affine[:3, 3])

    def to_index(self, world: Array | Sequence[float]) -> NDArray[np.float64]:
        """Fractional voxel indices ``(x, y, z)`` of LPS points; shape ``(..., 3)``."""
        points = np.asarray(world, dtype=np.float64) - self.affine[:3, 3]
        return np.asarray(np.linalg.solve(self.affine[:3, :3], points.reshape(-1, 3).T).T.reshape(points.shape))

    def crop(self, z: slice, y: slice, x: slice) -> Volume:
        """The sub-volume of the given index ranges (step 1), sharing memory, with its affine moved along."""
        ranges = [s.indices(n) for s, n in zip((z, y, x), self.shape, strict=True)]
        if any(step != 1 for _, _, step in ranges):
            raise GeometryError("crop takes ranges with step 1")
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world([ranges[2][0], ranges[1][0], ranges[0][0]])
        source = self.source
        if len(source.sop_instance_uids) == self.shape[0]:
            source = replace(source, sop_instance_uids=source.sop_instance_uids[z])
        if len(source.files) == self.shape[0]:
            source = replace(source, files=source.files[z])
        return replace(self, hu=self.hu[z, y, x], affine=affine, source=source)

    def reoriented(self) -> Volume:
        """The same voxels with axes permuted and flipped so that they run closest to left, posterior, superior.

        No interpolation: only the order in memory and the affine change. Slice-wise source lists follow when the
        slice axis is kept, and are dropped when another axis becomes z.
        """
        order = _closest_axes(self.affine)
        moved = self.hu.transpose([2 - order[2 - k] for k in range(3)])
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, list(order)]
        source = self.source
        if order[2] != 2:
            source = replace(source, sop_instance_uids=(), files=())
        for axis in range(3):
            if affine[axis, axis] < 0:
                count = moved.shape[2 - axis]
                affine[:3, 3] += affine[:3, axis] * (count - 1)
                affine[:3, axis] *= -1
                moved = np.flip(moved, 2 - axis)
                if axis == 2:
                    source = replace(source, sop_instance_uids=source.sop_instance_uids[::-1], files=source.files[::-1])
        return replace(self, hu=moved, affine=affine, source=source)

    def resampled(self, spacing: float | tuple[float, float, float], *, order: Literal[0, 1] = 1) -> Volume:
        """The whole field of view on a grid with the same axes and the given spacing.

        Args:
            spacing: millimetres along ``(x, y, z)``, or one value for all three.
            order: 1 averages when it shrinks and interpolates linearly; 0 takes the nearest voxel (labels).
        """
        wanted = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
        have = np.asarray(self.spacing)
        count_xyz = np.maximum(1, np.round(np.asarray(self.shape[::-1]) * have / wanted)).astype(int)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * (wanted / have)
        # Voxel edges, not centres, coincide: the first centre moves by half the change in spacing.
        affine[:3, 3] += self.affine[:3, :3] @ ((wanted / have - 1) / 2)
        volume = self if order == 0 else self._averaged(wanted / have)
        return volume.resampled_to(affine, (count_xyz[2], count_xyz[1], count_xyz[0]), order=order)

    def _averaged(self, factor: NDArray[np.float64]) -> Volume:
        """Means over whole blocks of floor(factor) voxels per axis, so that shrinking does not alias."""
        step = np.maximum(1, np.floor(factor + 1e-6)).astype(int)
        step = np.minimum(step, self.shape[::-1])
        if (step == 1).all():
            return self
        count = np.asarray(self.shape[::-1]) // step
        trimmed = self.hu[: count[2] * step[2], : count[1] * step[1], : count[0] * step[0]]
        blocks = trimmed.reshape(count[2], step[2], count[1], step[1], count[0], step[0])
        # x last: sums over z and y run along contiguous rows; a float32 copy of the full volume is never made.
        mean = blocks.mean(axis=(1, 3), dtype=np.float32).mean(axis=3)
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ ((step - 1) / 2)
        affine[:3, :3] *= step
        return replace(self, hu=mean, affine=affine)

    def resampled_to(
        self,
        affine: Affine,
        shape: tuple[int, int, int],
        *,
        order: Literal[0, 1] = 1,
        fill: float = AIR_HU,
    ) -> Volume:
        """This volume on any other grid: ``affine`` and ``shape`` ``(z, y, x)``; outside it is ``fill``.

        Linear (``order=1``, float32 out) or nearest (``order=0``, same type). No smoothing: see ``resampled``.
        """
        import SimpleITK as sitk

        count = [int(n) for n in shape[::-1]]
        mapping = np.linalg.solve(self.affine, np.asarray(affine, dtype=np.float64))
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(mapping[:3, :3].ravel().tolist())
        transform.SetTranslation(mapping[:3, 3].tolist())
        # In index space both grids are unit grids, so sheared affines need no orthonormal direction.
        image = sitk.GetImageFromArray(np.ascontiguousarray(self.hu))
        pixel = image.GetPixelID() if order == 0 else sitk.sitkFloat32
        interpolator = sitk.sitkNearestNeighbor if order == 0 else sitk.sitkLinear
        out = sitk.Resample(
            image, count, transform, interpolator, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0),
            (1, 0, 0, 0, 1, 0, 0, 0, 1), float(fill), pixel,
        )  # fmt: skip
        # The new slices are no longer those of the files.
        source = replace(self.source, sop_instance_uids=(), files=())
        return replace(self, hu=sitk.GetArrayFromImage(out), affine=np.asarray(affine, dtype=np.float64), source=source)

    def to_sitk(self) -> SimpleITK.Image:
        """A SimpleITK image with the same geometry (ITK's world is LPS too)."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(np.ascontiguousarray(self.hu))
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.affine[:3, 3].tolist())
        image.SetDirection((self.affine[:3, :3] / np.asarray(self.spacing)).ravel().tolist())
        return image

    @classmethod
    def from_sitk(cls, image: SimpleITK.Image, **fields: Any) -> Volume:
        """A volume from a 3D scalar SimpleITK image in HU; ``fields`` are the other attributes."""
        import SimpleITK as sitk

        affine = np.eye(4)
        affine[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        return cls(hu=sitk.GetArrayFromImage(image), affine=affine, **fields)


def _closest_axes(affine: Affine) -> tuple[int, int, int]:
    """Which index axis runs closest to world x, y and z; each is used once."""
    from itertools import permutations

    weight = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    return max(permutations(range(3)), key=lambda order: sum(weight[k, order[k]] for k in range(3)))  # type: ignore[return-value]
